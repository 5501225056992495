"""A test of the library itself, by figures that need no stored ones: slopes, inverses and identities.

The models are a Gaussian, whose solution is known in closed form, a mixture, and the bundled digits. All of it takes a
few seconds on one core.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from ..denoisers import Denoiser, GaussianMixture
from ..denoisers.mixtures import MixtureDenoiser
from ..loading import load_model
from ..schedules import Level, VPLinear
from ..tasks import reconstruct, sample
from .devices import usable
from .findings import Finding, cause_of

REMEDY = "install torch and steadyflow anew; if it still fails, report it with the output of steadyflow doctor --json"


@dataclass(frozen=True)
class Check:
    """A figure and the most that it may be."""

    name: str
    what: str
    """What the figure is."""
    bound: float
    measure: Callable[[], float]

    def finding(self) -> Finding:
        """Measure it; what it raises is a fault as well."""
        begun = time.perf_counter()
        try:
            value = self.measure()
        except Exception as error:  # a broken installation raises anything
            return Finding("self test", self.name, "fail", f"raised {cause_of(error)}", REMEDY)
        seconds = time.perf_counter() - begun
        figures = {"value": value, "bound": self.bound, "seconds": seconds}
        says = f"{self.what} {value:.1e}, at most {self.bound:.0e} accepted ({seconds:.1f} s)"
        if math.isfinite(value) and value <= self.bound:
            return Finding("self test", self.name, "pass", says, figures=figures)
        return Finding("self test", self.name, "fail", says, REMEDY, figures)


def findings() -> Iterator[Finding]:
    """Measure each figure, on the CPU and, the last, on every GPU."""
    for check in checks():
        yield check.finding()


def checks() -> list[Check]:
    """The checks for this machine."""
    own = [
        Check("order of ees25", "the slope of its error on a Gaussian less 2:", 0.1, lambda: slope("ees25", 2)),
        Check("order of rk4", "the slope of its error on a Gaussian less 4:", 0.2, lambda: slope("rk4", 4)),
        Check("round trip", "largest error of rex-euler, which is exactly reversible:", 1e-10, round_trip),
        Check("score", "difference of the mixture's from the gradient of its log-density:", 1e-10, score_is_gradient),
        Check("addressed noise", "difference of sample 7 alone from sample 7 of ten:", 1e-10, one_of_ten),
        Check("bundled model", "median error of a round trip of its own samples:", 1e-2, bundled),
    ]
    gpus = [
        Check(
            str(device), "difference of its samples from those of the CPU:", 1e-2, lambda device=device: same_on(device)
        )
        for device in usable()
    ]
    return [*own, *gpus]


def _gaussian() -> tuple[Denoiser, float, float]:
    """An exact model of one mode, with its mean and standard deviation."""
    mean, std = 0.5, 0.7
    return GaussianMixture(torch.full((1, 2), mean, dtype=torch.float64), std).denoiser(VPLinear()), mean, std


def _mixture() -> MixtureDenoiser:
    return GaussianMixture.grid(3, std=0.4).denoiser(VPLinear())


def slope(name: str, order: int) -> float:
    """How far the slope of a solver's error is from its order, where the solution is known in closed form.

    Args:
        name: The solver.
        order: Its order.
    """
    model, mean, std = _gaussian()
    low, high = model.schedule.t_range
    start, end = model.schedule.at(high), model.schedule.at(low)
    z = torch.linspace(-2.0, 2.0, 8, dtype=torch.float64).view(4, 2)

    def spread(level: Level) -> float:
        return math.hypot(level.alpha * std, level.sigma)

    x, exact = start.alpha * mean + spread(start) * z, end.alpha * mean + spread(end) * z
    errors = [
        float((sample(model, x=x, solver=name, steps=steps, end="path").x - exact).abs().max()) for steps in (80, 160)
    ]
    return abs(math.log2(errors[0] / errors[1]) - order)


def round_trip() -> float:
    """The largest error of a round trip by an exactly reversible solver."""
    model = _mixture()
    x = torch.linspace(-2.0, 2.0, 32, dtype=torch.float64).view(16, 2)
    return float(reconstruct(model, x, solver="rex-euler", nfe=48).error.max())


def score_is_gradient() -> float:
    """The difference between a mixture's score and the gradient of its log-density by back-propagation, relative."""
    model = _mixture()
    x = torch.linspace(-2.0, 2.0, 32, dtype=torch.float64).view(16, 2).requires_grad_()
    with torch.enable_grad():
        density = model.mixture.marginal(model.schedule, 0.5).log_prob(x)
        (gradient,) = torch.autograd.grad(density.sum(), x)
    x = x.detach()
    return float((model(x, 0.5).score - gradient).abs().max() / gradient.abs().max())


def one_of_ten() -> float:
    """The difference between a stochastic sample alone and the same one in a batch."""
    model = _mixture()
    batch = sample(model, n=10, solver="ddpm", steps=20, dtype=torch.float64).x[7]
    alone = sample(model, n=1, index=7, solver="ddpm", steps=20, dtype=torch.float64).x[0]
    return float((batch - alone).abs().max())


def bundled() -> float:
    """The median error of a round trip of the bundled digits' own samples."""
    model = load_model("digits").with_condition([1, 3, 7])
    x = sample(model, n=3, steps=16).x
    return float(reconstruct(model, x, nfe=48).error.median())


def same_on(device: torch.device) -> float:
    """The difference between the bundled model's samples on a device and on the CPU, in plain float32."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        x = [sample(load_model("digits", where).with_condition([1, 3, 7]), n=3, steps=8, device=where).x.cpu()
             for where in ("cpu", device)]  # fmt: skip
    return float((x[0] - x[1]).abs().max())
