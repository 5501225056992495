"""Samples from p(x0 | y) for a measurement y = A(x0) + noise n, with a model that was trained without it.

At noise level t the state has density p(x_t | y), whose score is

    grad log p(x_t | y) = grad log p(x_t) + grad log p(y | x_t),

so that a posterior is a change of the model (`guided`), on any path and with any solver. The methods differ in what
they put in the place of p(y | x_t) (`_likelihoods`). DDRM (Kawar et al. 2022) changes the state instead (`ddrm`).
"""

# What a user gives is checked where the program runs:
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor

from .. import operators
from .._integrate import StepInfo
from .._internal.given import number, whole
from .._internal.tensors import finite
from ..denoisers.base import Denoiser
from ..errors import InputError, UnknownNameError
from ..grids import Grid
from ..operators import Operator
from ..solvers.ancestral import DDIM
from ..solvers.base import Solver
from . import _likelihoods as likelihoods
from .ddrm import Decomposition, decomposed, moved
from .guided import PosteriorDenoiser, check_fits

Method = Literal["dps", "pigdm", "mmps", "ddrm"]
_OPTIONS: Mapping[str, Mapping[str, float]] = {
    "dps": {"zeta": 1.0},
    "pigdm": {"prior_variance": 1.0},
    "mmps": {"iterations": 3},
    "ddrm": {"eta": 0.85, "eta_b": 1.0},
}
"""The options of each method, with their defaults."""
_UNLIKELY = 4.0
"""How many standard deviations of a misfit are reported."""


@dataclass(frozen=True, eq=False)
class Posterior:
    """A correction that makes a run sample p(x0 | y) instead of p(x0), for y = A(x0) + noise n, n standard normal.

    Give it to any verb that goes towards data, as `corrections=[Posterior(...)]`. It puts `of(model)` in the place of
    the model. With every method but "ddrm" it leaves the state alone, and any solver may run. Each call by the solver
    costs 3 model evaluations with "dps" and "pigdm" (one forward, and one transposed product, which counts as two),
    1 + 2 `iterations` with "mmps", and 1 with "ddrm". A choice of the solver by trial (`sf.Auto`) runs on some of the
    samples: give it `of(model)` as the model, so that the rows of y are cut along with the samples.

    Args:
        operator: A, what is measured: one of `steadyflow.operators`, a matrix (m, n) for samples that are vectors, or a
            function x (B, ...) -> (B, ...), which "dps" and "mmps" take as nonlinear. With a latent model it must
            decode first.
        y: What was measured, shape (B, ...), or (1, ...) if it is the same for all samples.
        noise: The standard deviation of the noise, a number or a tensor that broadcasts against y.
        method: "mmps" (Rozet et al. 2024), which takes the covariance of x0 given x_t from the model; "pigdm" (Song et
            al. 2023), which takes a fixed one; "dps" (Chung et al. 2022), which uses the variance of the residual
            y - A(x0_hat); or "ddrm" (Kawar et al. 2022), which changes the state in the basis of the operator's
            singular vectors, and runs with DDIM alone.
        zeta: For "dps": the strength; 1 by default.
        prior_variance: For "pigdm": the variance of the numbers in the data; 1 by default.
        iterations: For "mmps": rounds of GMRES, its linear solver; 3 by default.
        eta: For "ddrm": the share of fresh noise where nothing or little is measured, in [0, 1]; 0.85 by default.
        eta_b: For "ddrm": how strongly a state is drawn to y where it is measured well, in [0, 1]; 1 by default.

    Raises:
        InputError: A number, y or the noise is not accepted, or an option belongs to another method.
        UnknownNameError: There is no such method.
    """

    operator: Operator
    y: Tensor
    noise: Tensor
    method: Method
    zeta: float
    prior_variance: float
    iterations: int
    eta: float
    eta_b: float

    def __init__(
        self,
        operator: Operator | Tensor | np.ndarray | Callable[[Tensor], Tensor],
        y: Tensor,
        noise: float | Tensor,
        method: Method = "mmps",
        *,
        zeta: float | None = None,
        prior_variance: float | None = None,
        iterations: int | None = None,
        eta: float | None = None,
        eta_b: float | None = None,
    ):
        if method not in get_args(Method):
            raise UnknownNameError("method", method, get_args(Method))
        given: dict[str, Any] = {"zeta": zeta, "prior_variance": prior_variance, "iterations": iterations}
        given |= {"eta": eta, "eta_b": eta_b}
        for name, value in given.items():
            if value is not None and name not in _OPTIONS[method]:
                raise InputError(
                    f"{name}: has no meaning for method {method!r}; it takes {', '.join(_OPTIONS[method])}"
                )
        defaults = {name: value for options in _OPTIONS.values() for name, value in options.items()}
        chosen = {name: defaults[name] if value is None else value for name, value in given.items()}
        for name in ("zeta", "prior_variance"):
            chosen[name] = _within(name, chosen[name], 0.0, math.inf)
        for name in ("eta", "eta_b"):
            chosen[name] = _within(name, chosen[name], 0.0, 1.0, ends=True)
        chosen["iterations"] = whole("iterations", chosen["iterations"], 1)
        what = operators.of(operator)
        if method in ("pigdm", "ddrm") and not what.linear:
            raise InputError(
                f"operator: method {method!r} needs a linear one, of steadyflow.operators; give a function as "
                "operators.Linear(function, shape) if it is linear, else take method 'mmps' or 'dps'"
            )
        y = _measurement(y)
        values = {"operator": what, "y": y, "noise": _deviation(noise, y, method), "method": method, **chosen}
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def of(self, model: Denoiser) -> Denoiser:
        """Return the model of p(x_t | y). A model that this correction has made already is returned as it is.

        Args:
            model: The model of the data; its condition and guidance, if it has them, stay in force.

        Raises:
            InputError: The operator does not fit the model's samples, or y does not fit what it measures of them.
        """
        if self.method == "ddrm":
            raise InputError(
                "method: 'ddrm' is a step of its own, and no change of the model; give it in corrections=[...]"
            )
        return self._around(model)

    def _around(self, model: Denoiser) -> Denoiser:
        if self._own(model) is not None:
            return model
        if model.shape is not None:
            shape = operators.check(self.operator, model.shape, dtype=self.y.dtype, device=self.y.device)
            if shape != tuple(self.y.shape[1:]):
                raise InputError(
                    f"y: got measurements of shape {tuple(self.y.shape[1:])}, but the operator makes {shape} of the "
                    f"model's samples {tuple(model.shape)}"
                )
        change = {
            "dps": partial(likelihoods.dps, zeta=self.zeta),
            "pigdm": partial(likelihoods.pigdm, prior_variance=self.prior_variance),
            "mmps": partial(likelihoods.mmps, iterations=self.iterations),
        }.get(self.method)
        products = {"dps": 1, "pigdm": 1, "mmps": self.iterations, "ddrm": 0}[self.method]
        own = {"owner": self, "operator": self.operator, "y": self.y, "noise": self.noise}
        return PosteriorDenoiser.around(model, **own, change=change, products=products)

    def model_for(self, model: Denoiser, grid: Grid, solver: Solver[Any]) -> Denoiser:
        """Return the model that a run is to follow; see `of`.

        Args:
            model: The model of the run.
            grid: The times of the run.
            solver: Its method.

        Raises:
            InputError: The run goes towards noise, or "ddrm" is to run with a solver other than DDIM.
        """
        if grid.rising:
            raise InputError(
                "posterior: only valid on the way to data; a sample that is inverted is no measurement. Invert first, "
                "and give the correction to decode"
            )
        if self.method == "ddrm" and not (type(solver) is DDIM and solver.eta == 0.0):
            raise InputError(
                f"solver {solver.name!r}: method 'ddrm' is a step of its own that takes the place of DDIM's, with "
                "noise of its own (eta); give solver='ddim'"
            )
        inner = model
        while self.method == "ddrm" and isinstance(inner, PosteriorDenoiser):
            if isinstance(inner.owner, Posterior) and inner.owner.method == "ddrm" and inner.owner is not self:
                raise InputError("posterior: two of method 'ddrm' undo each other; give one with both measurements")
            inner = inner.base
        return self._around(model)

    def __call__(self, info: StepInfo) -> Tensor | None:
        own = self._own(info.model)
        if self.method != "ddrm" or info.step.reads_clean or own is None:
            return None
        return moved(info, self.decomposition(info.x), own.rows(own.y, info.x), self.eta, self.eta_b)

    def decomposition(self, x: Tensor) -> Decomposition:
        """Return the singular values and vectors of the operator in units of the noise, for samples like x.

        Args:
            x: Samples, shape (B, ...).

        Raises:
            InputError: The samples have too many dimensions for a dense matrix.
        """
        key = (tuple(x.shape[1:]), x.dtype, x.device)
        if key not in self._decompositions:
            self._decompositions[key] = decomposed(self.operator, self.noise, self.y, x)
        return self._decompositions[key]

    @cached_property
    def _decompositions(self) -> dict[Any, Decomposition]:
        return {}

    def misfit(self, x: Tensor) -> Tensor:
        """Return the misfit of samples to what was measured, a reduced chi-square: mean((y - A x)^2 / noise^2).

        For measurements of the model's own data, and samples of their exact posteriors, it has mean 1 and standard
        deviation sqrt(2 / m), with m numbers in a measurement, because x and the truth have the same law given y.

        Args:
            x: Samples, shape (B, ...).

        Returns:
            One number per sample, shape (B,).

        Raises:
            InputError: The samples fit neither the operator nor y.
        """
        with torch.no_grad():
            seen = operators.measured(self.operator, x)
            check_fits(seen, self.y)
            return ((self.y.to(seen) - seen) / self.noise.to(seen)).flatten(1).square().mean(1)

    def check(self, x: Tensor) -> Tensor:
        """Return `misfit(x)`, and warn if it is not compatible with the noise that was declared.

        The mean over all samples is compared with a chi-square of as many numbers as y holds (samples of one y share
        its noise), by the cube root of Wilson and Hilferty (1931). It warns beyond four standard deviations, which an
        exact sampler reaches once in 16,000 runs. If the mean is far above 1, the samples do not explain y: there were
        too few steps or iterations, the noise is declared too small, or the model does not know such data. If it is far
        below, y is fitted more closely than its noise: the noise is declared too large, or lies below the last noise
        level of the run.

        Args:
            x: Samples at the end of a run, shape (B, ...).

        Returns:
            One number per sample, shape (B,).
        """
        found = self.misfit(x)
        m = self.y.numel()
        mean = float(found.double().mean())
        away = (max(mean, 0.0) ** (1.0 / 3.0) - (1.0 - 2.0 / (9.0 * m))) / math.sqrt(2.0 / (9.0 * m))
        if not abs(away) <= _UNLIKELY:
            why = (
                "they do not explain y: more steps or iterations, or a larger noise"
                if not away < 0.0
                else "y is fitted closer than its noise, which is declared too large, or below that of the run's end"
            )
            warnings.warn(
                f"posterior: the samples have a misfit of {mean:.3g} where the declared noise gives 1 +- "
                f"{math.sqrt(2.0 / m):.2g} ({away:+.1f} standard deviations): {why}",
                stacklevel=2,
            )
        return found

    def _own(self, model: Denoiser) -> PosteriorDenoiser | None:
        """The model that this has made, within one that others have changed since."""
        while isinstance(model, PosteriorDenoiser):
            if model.owner is self:
                return model
            model = model.base
        return None


def _within(name: str, value: object, low: float, high: float, *, ends: bool = False) -> float:
    accepted = f"a number in [{low:g}, {high:g}]" if ends else "a positive number"
    found = number(name, value, accepted)
    if not (low <= found <= high if ends else low < found < high):
        raise InputError(f"{name}: got {found}, expected {accepted}")
    return found


def _measurement(y: object) -> Tensor:
    """What was measured, checked."""
    if not isinstance(y, Tensor) or not y.is_floating_point():
        what = str(y.dtype) if isinstance(y, Tensor) else type(y).__name__
        raise InputError(f"y: got {what}, expected a tensor of floats, shape (B, ...) or (1, ...)")
    if y.ndim < 2 or 0 in y.shape:
        raise InputError(f"y: got shape {tuple(y.shape)}, expected (B, ...), or (1, ...) for all samples alike")
    if not finite(y.detach()):
        broken = y.detach().flatten(1).isfinite().all(1).logical_not().nonzero()
        rows = cast("list[int]", broken.flatten().tolist())  # pyright: ignore[reportUnknownMemberType]
        raise InputError(f"y: NaN or infinity in measurement(s) {', '.join(map(str, rows[:5]))}")
    return y


def _deviation(noise: object, y: Tensor, method: str) -> Tensor:
    """The standard deviation of the noise, checked, as a tensor that broadcasts against y."""
    accepted = f"a positive, finite number, or a tensor of them that broadcasts against y, {tuple(y.shape)}"
    wide = torch.promote_types(y.dtype, torch.float32)
    found = noise if isinstance(noise, Tensor) else torch.tensor(number("noise", noise, accepted), dtype=wide)
    if found.is_complex() or found.dtype == torch.bool:
        raise InputError(f"noise: got {found.dtype}, expected {accepted}")
    if not bool(((found > 0) & found.isfinite()).all()):
        got = noise if found.ndim == 0 else "a number that is not"
        raise InputError(f"noise: got {got}, expected {accepted}")
    try:
        found.expand(y.shape)
    except RuntimeError:
        raise InputError(f"noise: got shape {tuple(found.shape)}, expected {accepted}") from None
    if method == "ddrm" and found.ndim == y.ndim and len(found) > 1:
        raise InputError("noise: method 'ddrm' takes one noise for all samples, got one for each")
    return found.to(y.device)
