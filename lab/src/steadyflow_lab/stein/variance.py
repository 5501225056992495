"""Variance of both forms of the coefficient at equal states: of the probes alone, and of probes and batch together."""

from __future__ import annotations

import statistics

import torch
from torch import Tensor

from steadyflow.metrics.statistics import Estimate

from ..findings import Claim, Finding
from ..studies import Bench
from .quality import decided, short
from .states import FORMS, Terms, cells_of, data_of, noised, step_at, terms

_LEVELS = (0.2, 1.0, 5.0, 20.0, 64.0)
_BATCHES = (16, 64, 256)
_PROBES = 12


def spread_ratio(clean: Terms, vp: Terms, batch: int, *, of: str, resamples: int = 400, seed: int = 0) -> Estimate:
    """The standard deviation of the VP form over that of the clean one, with a bootstrap interval over batches.

    of: "probes", at fixed batches, each over its own mean; "batch", over batches with one probe each, over the mean of
    all; "step", the same as the distance by which it moves the step's end in model space.
    """
    groups = torch.randint(len(clean.size) // batch, (resamples, len(clean.size) // batch),
                           generator=torch.Generator().manual_seed(seed))  # fmt: skip
    found = [_spread(t, batch, of, groups) for t in (vp, clean)]
    drawn = found[0][1] / found[1][1]
    low, high = drawn.quantile(torch.tensor([0.025, 0.975], dtype=drawn.dtype)).tolist()
    return Estimate(found[0][0] / found[1][0], low, high)


def _spread(t: Terms, batch: int, of: str, groups: Tensor) -> tuple[float, Tensor]:
    """The standard deviation for all groups, and for each resample of them."""
    whole = len(t.size) // batch * batch
    above = t.above[:, :whole].unflatten(1, (-1, batch)).mean(2)  # (P, groups)
    below = t.size[:whole].unflatten(0, (-1, batch)).mean(1)
    gamma, best = above / below, _best(t)
    if of == "probes":
        squares = (gamma.var(0) / best**2)[None]
        return squares.mean().sqrt().item(), squares[0][groups].mean(1).sqrt()
    scale = t.scale * t.size.mean().sqrt().item() if of == "step" else 1.0 / abs(best)
    return (gamma[0].std() * scale).item(), gamma[0][groups].std(1) * scale


def _best(t: Terms) -> float:
    """The coefficient that the data give, which is free of both noises."""
    assert t.reference is not None  # the data were given
    return abs((t.reference.mean() / t.size.mean()).item())


def variance(bench: Bench) -> Finding:
    """Compare the standard deviations of both forms over probes and batches, at the same states and probes."""
    size = bench.size
    kinds = ("probes", "batch", "step")

    n = 1024 if size.quick else 4096

    def one(item: tuple[int, str, float]) -> tuple[str, float, list[Terms]]:
        k, name, chi = item
        model, x0 = data_of(name, n, size.seed)
        x, step = noised(model, x0, chi, size.seed + 2, k), step_at(model, chi, 0.5)
        return name, chi, [terms(model, x, step, form, x0=x0, probes=_PROBES, seed=k) for form in FORMS]

    rows, ratios = [], {kind: list[Estimate]() for kind in kinds}
    for name, chi, (clean, vp) in bench.map(one, cells_of(_LEVELS)):
        for batch in (b for b in _BATCHES if n // b >= 16):
            cells = {kind: spread_ratio(clean, vp, batch, of=kind) for kind in kinds}
            for kind, cell in cells.items():
                ratios[kind].append(cell)
            own = torch.zeros(1, 2, dtype=torch.long)
            spread = _spread(clean, batch, "probes", own)[0], _spread(clean, batch, "batch", own)[0]
            both = [f"{value:.2g}" for value in spread]
            rows.append([name, f"{chi:g}", str(batch), *both, *(short(cells[kind]) for kind in kinds)])
    says = {
        "probes": "in the Hutchinson estimator alone, at fixed states, the EDM form has the smaller relative variance",
        "batch": "with the noise of the batch included, the EDM form has the smaller relative variance",
        "step": "the resulting step has the smaller variance with the EDM form",
    }
    return Finding(
        "variance",
        "Standard deviation of the VP form over that of the EDM form, at the same states",
        [
            Claim(
                f"variance, {kind}",
                says[kind],
                "fewer terms to estimate reduce the variance of the Hutchinson estimator (EDM against VP); no number",
                _words(ratios[kind]),
                decided([e.low > 1.0 for e in ratios[kind]]),
            )
            for kind in kinds
        ],
        ["problem", "noise level", "batch", "EDM: probes", "EDM: batch", *(f"VP over EDM: {kind}" for kind in kinds)],
        rows,
        note=(
            "A step halves the noise level. Probes and batch: standard deviation of the coefficient relative to the "
            f"best one from reference samples, over {_PROBES} single probes at fixed states, and over batches with one "
            "probe each. Step: standard deviation of the step's end point in model space, over the same batches. 95 % "
            "bootstrap intervals over batches. In the VP form, as in the EDM form, only the divergence needs the "
            "estimator."
        ),
    )


def _words(found: list[Estimate]) -> str:
    larger, smaller = sum(e.low > 1.0 for e in found), sum(e.high < 1.0 for e in found)
    values = [e.value for e in found]
    return (
        f"VP over EDM: median {statistics.median(values):.3g}, range {min(values):.3g} to {max(values):.3g}; "
        f"the interval lies above 1 in {larger} of {len(found)} cells and below 1 in {smaller}"
    )
