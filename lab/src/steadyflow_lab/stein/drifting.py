"""The drift term of the form for VP: its size as alpha goes to 0 and over a run, and the noise it leaves."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from steadyflow.denoisers import Denoiser
from steadyflow.metrics.statistics import Estimate, average
from steadyflow.solvers.base import Step

from ..findings import Claim, Curve, Finding
from ..studies import Bench
from .quality import decided, short
from .states import FORMS, PROBLEMS, Terms, cells_of, data_of, log_slope, noised, run_states, step_at, terms

_LEVELS = (0.5, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
_HIGH = 0.2
"""Where alpha is below this, the growth of the term is fitted."""
_PARTS = 20
_SPREAD = (math.sqrt(19.0 / 32.852), math.sqrt(19.0 / 8.907))
"""The ends of a 95 % interval of a standard deviation of twenty numbers, over its estimate (chi square, 19)."""


@dataclass(frozen=True)
class _Measured:
    problem: str
    where: str
    alpha: float
    sizes: list[float]
    """The drift term's size in each part of the sample."""
    cells: list[str]
    best: float
    spread: dict[str, Estimate]
    """Of each form: the standard deviation over the parts, over the best coefficient."""

    @property
    def size(self) -> float:
        """The drift term's size, the mean over the parts."""
        return math.fsum(self.sizes) / len(self.sizes)


def _measured(name: str, where: str, model: Denoiser, x: Tensor, step: Step, x0: Tensor | None, seed: int) -> _Measured:
    clean, vp = (terms(model, x, step, form, x0=x0, probes=1, seed=seed) for form in FORMS)
    best = {t.form: _mean_over(t.model if t.reference is None else t.reference, t.size) for t in (clean, vp)}
    spread = {t.form: _spread(t, best[t.form]) for t in (clean, vp)}
    sizes = (_parted(vp.drift).mean(1) / _parted(vp.size).mean(1)).abs().tolist()
    parts = [_mean_over(vp.drift, vp.size), _mean_over(vp.above[0] - vp.drift, vp.size), vp.coefficient, best["vp"]]
    return _Measured(name, where, step.start.alpha, sizes, [f"{part:.3g}" for part in parts], best["vp"], spread)


def _parted(values: Tensor) -> Tensor:
    return values[: len(values) // _PARTS * _PARTS].unflatten(0, (_PARTS, -1))


def _mean_over(above: Tensor, below: Tensor) -> float:
    return (above.mean() / below.mean()).item()


def _spread(t: Terms, best: float) -> Estimate:
    over = (_parted(t.above[0]).mean(1) / _parted(t.size).mean(1)).std().item() / abs(best)
    return Estimate(over, _SPREAD[0] * over, _SPREAD[1] * over)


def drift(bench: Bench) -> Finding:
    """Follow the drift term as alpha goes to 0, at a step that halves the noise level, and over a run of 8 steps."""
    size, seed = bench.size, bench.size.seed

    def count(name: str) -> int:
        return min(size.images if name == "digits" else size.long, 4000)

    def on_marginal(item: tuple[int, str, float]) -> _Measured:
        k, name, chi = item
        model, x0 = data_of(name, count(name), seed)
        x, step = noised(model, x0, chi, seed + 1, k), step_at(model, chi, 0.5)
        return _measured(name, "marginal", model, x, step, x0, k)

    def on_run(name: str) -> list[_Measured]:
        model, _ = data_of(name, count(name), seed)
        states = run_states(model, count(name), 8, seed)
        return [_measured(name, f"step {k + 1} of 8", model, x, s, None, k) for k, (x, s) in enumerate(states)]

    found = bench.map(on_marginal, cells_of(_LEVELS))
    along = [one for part in bench.map(on_run, PROBLEMS) for one in part]
    return Finding(
        "drift",
        "The drift term of the VP form as alpha goes to 0, and along a run",
        [_grows(found), _noisy(found)],
        ["problem", "states", "alpha", "1 - 1/alpha", "drift term", "divergence term", "sum", "best", "spread, VP",
         "spread, clean"],
        [
            [one.problem, one.where, f"{one.alpha:.4f}", f"{1.0 - 1.0 / one.alpha:.3g}", *one.cells,
             short(one.spread["vp"]), short(one.spread["clean"])]
            for one in (*found, *along)
        ],
        note=(
            "The terms of the coefficient are divided by E|u|^2. On marginals, a step halves the noise level, and the "
            "best coefficient is computed from the data; along a run, which starts at t = 0.99, it is computed from "
            f"the model's clean estimate. Spread: standard deviation of the coefficient over {_PARTS} batches, divided "
            f"by the best coefficient, with a 95 % chi-square interval; one probe, batches of {count('2-D') // _PARTS} "
            f"(digits: {count('digits') // _PARTS})."
        ),
        curves=[
            Curve(f"{name}: {word}", [1.0 / one.alpha for one in mine], [abs(value(one)) for one in mine])
            for name in PROBLEMS
            for mine in [[one for one in found if one.problem == name]]
            for word, value in (("drift term", lambda one: one.size), ("best coefficient", lambda one: one.best))
        ],
        axes=("1 / alpha", "size"),
        scales=("log", "log"),
    )  # fmt: skip


def _grows(found: list[_Measured]) -> Claim:
    slopes = dict[str, Estimate]()
    for name in PROBLEMS:
        high = [one for one in found if one.problem == name and one.alpha < _HIGH]
        inverse = [1.0 / one.alpha for one in high]
        slopes[name] = average(log_slopes(inverse, [one.sizes for one in high]))
    return Claim(
        "VP singularity",
        "as alpha goes to 0, the drift term grows without bound",
        "1 - 1/alpha goes to minus infinity at high noise; EDM avoids this entirely",
        f"for alpha < {_HIGH:g}, its size grows like 1/alpha to the power "
        + ", ".join(f"{short(slope)} ({name})" for name, slope in slopes.items()),
        decided([slope.low > 0.0 for slope in slopes.values()]),
    )


def log_slopes(x: list[float], sizes: list[list[float]]) -> Tensor:
    """The slope of log size over log x in each part of the sample; sizes: one list of parts per x."""
    return Tensor([log_slope(x, list(values)) for values in zip(*sizes, strict=True)]).double()


def _noisy(found: list[_Measured]) -> Claim:
    ends = [min((one for one in found if one.problem == name), key=lambda one: one.alpha) for name in PROBLEMS]
    words = [f"{one.problem}: VP {short(one.spread['vp'])}, clean {short(one.spread['clean'])}" for one in ends]
    return Claim(
        "VP instability",
        "the VP form therefore becomes numerically unstable, and the clean form does not",
        "1/alpha can become numerically unstable; EDM avoids it",
        f"spread over batches, relative to the best coefficient, at alpha = {ends[0].alpha:.4f}: {'; '.join(words)}",
        decided([one.spread["vp"].low > 1.0 and one.spread["clean"].high < 1.0 for one in ends]),
    )
