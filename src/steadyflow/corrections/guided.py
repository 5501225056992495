"""The model of p(x_t | y): that of p(x_t) with an estimate of the data that a measurement y pulls at.

    x0_hat(x_t, y) = x0_hat(x_t) + (sigma^2 / alpha) grad log p(y | x_t)         (Tweedie's formula)

Each of the five things that a network predicts is affine in x0_hat at a given state, and moves along. At alpha = 0 the
state says nothing about the data, and the two factors of the second term become 0 and infinite; it is taken there at a
noise level of a thousand.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Self, cast

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from .. import operators
from .._internal.autograd import check_derivatives
from ..denoisers.base import Condition, Denoiser
from ..denoisers.mixtures import GaussianMixture
from ..denoisers.smoothing import Smoothing
from ..errors import InputError
from ..operators import Operator
from ..prediction import Prediction
from ..solvers.state import flatten_state
from ._likelihoods import Point

Change = Callable[[Point], Tensor]
"""How far a likelihood moves the estimate of the data, shape (B, ...)."""
_FARTHEST = 1e3
"""The noise level sigma/alpha beyond which the likelihood is taken at this one: at alpha = 0 it says nothing."""
_NONE: Any = cast(Any, None)
"""In place of what `around` always gives: fields after those of `Denoiser` need a default."""


@dataclass(frozen=True, eq=False)
class PosteriorDenoiser(Denoiser):
    """The model of p(x_t | y), as `Posterior.of` makes it: a model of its own, for everything that takes one.

    Args:
        base: The model of the data.
        owner: The correction that made this.
        operator: What is measured of a sample.
        y: What was measured of these samples, shape (B or 1, ...).
        noise: Its standard deviation, which broadcasts against y.
        change: How far the likelihood moves the estimate of the data; None leaves the model as it is.
        products: Products with the model's transposed Jacobian in it.
    """

    base: Denoiser = field(default=_NONE)
    owner: object = None
    operator: Operator = field(default=_NONE)
    y: Tensor = field(default=_NONE)
    noise: Tensor = field(default=_NONE)
    change: Change | None = None
    products: int = 0

    @classmethod
    def around(cls, base: Denoiser, **own: Any) -> Self:
        """Make one.

        Args:
            base: The model of the data; the bounds on its estimate come last (`Denoiser.clip`).
            **own: The other arguments of the class.
        """
        inner = base if base.clip is None else dataclasses.replace(base, clip=None)
        return cls(**{**_fields(base), "clip": base.clip}, base=inner, **own)

    def __getattr__(self, name: str) -> Any:
        """What the class of the wrapped model adds to `Denoiser`: the decoder of latents, a pipeline's own grid."""
        if name.startswith("__") or name in {item.name for item in dataclasses.fields(PosteriorDenoiser)}:
            raise AttributeError(name)
        return getattr(self.base, name)

    def described(self) -> tuple[Any, ...]:
        """What tells this from another model around the same one, but for its numbers."""
        change: Any = self.change
        plain = sorted(f"{k}={v!r}" for k, v in vars(self.operator).items() if isinstance(v, int | float | str | tuple))
        how = None if change is None else (change.func.__name__, sorted(change.keywords.items()))
        return type(self.operator).__name__, plain, how

    def check_batch(self, n: int) -> None:
        self.base.check_batch(n)
        if len(self.y) not in (1, n):
            raise InputError(f"y: got {len(self.y)} measurements for a batch of {n} samples; give one, or one each")

    def _replace(self, **changes: Any) -> Self:
        clip = changes.pop("clip", self.clip)
        return self._with(self.base._replace(**changes) if changes else self.base, clip=clip)

    def _with(self, base: Denoiser, **own: Any) -> Self:
        """This model around another one, and with other values of its own."""
        return dataclasses.replace(self, **{**_fields(base), "clip": self.clip, "base": base, **own})

    def with_condition(self, condition: Condition, *, guidance: float | None = None) -> Self:
        return self._with(self.base.with_condition(condition, guidance=guidance))

    def with_guidance(self, guidance: float | Tensor) -> Self:
        return self._with(self.base.with_guidance(guidance))

    def with_negative(self, negative: Condition) -> Self:
        return self._with(self.base.with_negative(negative))

    def with_smoothing(self, smoothing: Smoothing | float | None) -> Self:
        return self._with(self.base.with_smoothing(smoothing))

    def slice(self, start: int, stop: int) -> Self:
        own = {name: _chosen(value, self.y, lambda v: v[start:stop]) for name, value in self._values.items()}
        return self._with(self.base.slice(start, stop), **own)

    def select(self, rows: Tensor) -> Self:
        own = {name: _chosen(value, self.y, lambda v: v[rows.to(v.device)]) for name, value in self._values.items()}
        return self._with(self.base.select(rows), **own)

    @property
    def _values(self) -> dict[str, Tensor]:
        return {"y": self.y, "noise": self.noise}

    @property
    def cost(self) -> int:
        """Evaluations of the wrapped model per call; a transposed product counts as two."""
        return self.base.cost * (1 + 2 * self.products)

    @property
    def defined_at_zero_noise(self) -> bool:
        return self.base.defined_at_zero_noise and self.clip is None

    def rows(self, values: Tensor, x: Tensor) -> Tensor:
        """Return y or its noise in x's precision. Raises `InputError` where it belongs to another batch.

        Args:
            values: y or the noise.
            x: Samples, shape (B, ...).
        """
        if len(self.y) not in (1, len(x)):
            raise InputError(
                f"y: got {len(self.y)} measurements for a batch of {len(x)} samples; give one, or one each"
            )
        return values.to(x)

    def __call__(self, x: Tensor, t: float | Tensor) -> Prediction:
        self.rows(self.y, x)
        there = self.change is not None and (isinstance(t, Tensor) or self.schedule.at(t).sigma > 0.0)
        found = self._pulled(x, t) if there else self.base(x, t)
        return found if self.clip is None else found.clipped(self.clip)

    @property
    def _wants_graph(self) -> bool:
        """Whether something that an answer depends on, besides the state, requires a gradient, or might."""
        if isinstance(self.base, PosteriorDenoiser) and self.base._wants_graph:
            return True
        given = [self.y, self.noise, *flatten_state((self.base.condition, self.base.null, self.base.scale))[1]]
        net, inside = self.base.net, vars(self.operator).values()
        if isinstance(net, torch.nn.Module):
            given += [*net.parameters(), *net.buffers()]
        elif isinstance(net, GaussianMixture):
            given += [net.means, net.std, net.weights]
        else:
            return True  # a function may hold anything
        functions = any(callable(part) and not isinstance(part, Tensor) for part in inside)
        return functions or any(part.requires_grad for part in [*given, *flatten_state(tuple(inside))[1]])

    def _pulled(self, x: Tensor, t: float | Tensor) -> Prediction:
        """The prediction of the wrapped model with its estimate of the data changed by the likelihood."""
        check_derivatives()
        keep = torch.is_grad_enabled() and (x.requires_grad or self._wants_graph)
        state = x if keep and x.requires_grad else x.detach().requires_grad_()
        near = self._near(t)
        # fused attention has no second derivative, which the product with a nonlinear operator's Jacobian takes as well
        twice = keep or not self.operator.linear
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH) if twice else nullcontext():
            if near is None:
                at = state
                model = prediction = self.base(state, t)
            else:  # where alpha is 0, or nearly so: at the same noise, a little later
                when, scale = near
                at = state * scale
                model, prediction = self.base(at, when), self.base(state, t)
            change = self._change(at, model, keep)
        alpha, sigma = prediction.alpha, prediction.sigma
        # of samples that have times of their own, some may be at the clean end, where nothing moves
        noisy = sigma > 0 if isinstance(sigma, Tensor) else None
        spread: float | Tensor = sigma
        if isinstance(sigma, Tensor) and noisy is not None:
            spread = torch.where(noisy, sigma, torch.ones_like(sigma))
        factors: dict[str, Callable[[], float | Tensor]] = {
            "epsilon": lambda: -alpha / spread,
            "sample": lambda: 1.0,
            "v_prediction": lambda: -(alpha * alpha + spread * spread) / spread,
            "flow": lambda: -(alpha + spread) / spread,
            "score": lambda: alpha / (spread * spread),
        }
        factor = factors[prediction.kind]()
        output = prediction.output if keep else prediction.output.detach()
        moved = factor * change
        if noisy is not None:
            moved = torch.where(noisy, moved, torch.zeros_like(moved))
        return Prediction(x, output + moved, prediction.kind, alpha, sigma)

    def _near(self, t: float | Tensor) -> tuple[float | Tensor, float | Tensor] | None:
        """The time at which the likelihood is taken instead, and sigma there over sigma here, if it is another one."""
        schedule = self.schedule
        if isinstance(t, Tensor):
            if schedule.ratio(schedule.domain[1]) <= _FARTHEST:
                return None
            return t.clamp(max=schedule.t_from_ratio(_FARTHEST)), 1.0
        level = schedule.at(t)
        if level.ratio <= _FARTHEST:
            return None
        other = schedule.at(schedule.t_from_ratio(_FARTHEST))
        return other.t, other.sigma / level.sigma

    def _change(self, x: Tensor, prediction: Prediction, keep: bool) -> Tensor:
        """How far the likelihood moves the estimate of the data, shape (B, ...)."""
        x0 = prediction.x0
        if not prediction.output.requires_grad:
            raise InputError(
                f"model: no derivatives go through {self.name!r}, which this method needs; method 'ddrm' does without"
            )
        seen = operators.measured(self.operator, x0)
        if not seen.requires_grad:
            raise InputError("operator: what it returns does not depend on x in a way that can be differentiated")
        check_fits(seen, self.y)
        assert self.change is not None
        with torch.set_grad_enabled(keep):
            noise = self.noise.to(seen)
            residual = (self.y.to(seen) - (seen if keep else seen.detach())) / noise
            alpha, sigma = prediction.alpha, prediction.sigma
            gain, ratio = sigma * sigma / alpha, sigma / alpha
            return self.change(Point(x, x0, gain, ratio, self.operator, seen, residual, noise, keep))


def _fields(base: Denoiser) -> dict[str, Any]:
    """What a model has in common with one around it, which does no smoothing of its own."""
    return {**{item.name: getattr(base, item.name) for item in dataclasses.fields(Denoiser)}, "smoothing": None}


def _chosen(value: Tensor, y: Tensor, choose: Callable[[Tensor], Tensor]) -> Tensor:
    """The rows of y or of its noise that belong to some samples; what is for all samples stays."""
    return choose(value) if value.ndim == y.ndim and len(value) > 1 else value


def check_fits(seen: Tensor, y: Tensor) -> None:
    """Refuse what was not measured by an operator.

    Args:
        seen: What the operator returned, shape (B, ...).
        y: What was measured.

    Raises:
        InputError: They have other shapes, or y belongs to another batch.
    """
    if seen.shape[1:] != y.shape[1:] or len(y) not in (1, len(seen)):
        raise InputError(f"y: got shape {tuple(y.shape)}, but the operator returned {tuple(seen.shape)}")
