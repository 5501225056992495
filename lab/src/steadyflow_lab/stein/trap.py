"""The contractivity trap: local constants of steps over their size, guidance, and the sharpness of the denoiser."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from steadyflow import grids
from steadyflow.datasets import digits
from steadyflow.denoisers import GaussianMixture
from steadyflow.diagnostics import contractivity
from steadyflow.metrics.statistics import average
from steadyflow.models import load
from steadyflow.schedules import VPCosine
from steadyflow.tasks import invert

from ..findings import PARTLY, Claim, Finding, verdict
from ..studies import Bench
from .problems import mixture
from .quality import short

_GUIDANCES, _WIDTHS, _SOLVERS = (1.0, 3.0, 7.5), (2.0, 1.0, 0.5), ("ddim", "heun")


@dataclass(frozen=True)
class _Row:
    model: str
    sharpness: str
    solver: str
    steps: int
    largest: Tensor
    """The largest constant of a step of each sample's run, shape (B,)."""
    certified: Tensor
    """The share of its steps that contract, shape (B,)."""
    product: Tensor
    """The product over its steps, shape (B,)."""


def trap(bench: Bench) -> Finding:
    """Measure the constants of the steps of runs of 5 to 50 steps, in flow coordinates."""
    size = bench.size
    counts = (5, 20) if size.quick else (5, 10, 20, 50)
    n = 4 if size.quick else 16
    images, labels = (part[:n] for part in digits("held-out"))
    net = load("digits").with_condition(labels)
    latent = invert(net, images, solver="rk4", steps=24, progress=False).latent

    def one(item: tuple[str, float, str, int]) -> _Row:
        name, value, solver, steps = item
        if name == "digits":
            model, x, sharpness = net.with_guidance(value), latent, f"guidance {value:g}"
        else:
            data = mixture(2, 12)
            model = GaussianMixture(data.means, data.std * value, data.weights).denoiser(VPCosine())
            x = torch.randn(8 * n, 2, generator=torch.Generator().manual_seed(size.seed))
            sharpness = f"modes of width {float(data.std) * value:g}"
        grid = grids.make("quadratic", model.schedule, steps)
        found = contractivity(model, x, grid, solver, coordinates="flow").lipschitz.double()
        return _Row(name, sharpness, solver, steps, found.amax(0), (found < 1.0).double().mean(0), found.prod(0))

    items = [("digits", value, solver, k) for value in _GUIDANCES for solver in _SOLVERS for k in counts]
    items += [("2-D mixture", value, "ddim", k) for value in _WIDTHS for k in counts]
    rows = bench.map(one, items)
    return Finding(
        "trap",
        "Local Lipschitz constants of steps, by their number and the sharpness of the denoiser",
        _claims(rows, counts),
        ["model", "sharpness", "solver", "steps", "certified", "largest constant, mean",
         "product over the run, median"],
        [
            [r.model, r.sharpness, r.solver, str(r.steps), f"{r.certified.mean():.0%}", short(average(r.largest)),
             f"{r.product.median():.3g}"]
            for r in rows
        ],
        note=(
            "Flow coordinates; the runs on digits start from the latents of held-out images. Certified: share of steps "
            "with a local constant below 1. Largest constant: the largest among a run's steps, mean over the runs with "
            "a 95 % interval. Product: the product of the constants of a run's steps, which bounds, to first order, "
            "the factor by which the whole run amplifies an error at its start."
        ),
    )  # fmt: skip


def _claims(rows: list[_Row], counts: tuple[int, ...]) -> list[Claim]:
    few, many = counts[0], counts[-1]
    pairs = [
        (
            a,
            next(
                b for b in rows if (b.model, b.sharpness, b.solver, b.steps) == (a.model, a.sharpness, a.solver, many)
            ),
        )
        for a in rows
        if a.steps == few
    ]
    grows = [average((a.largest / b.largest).log()) for a, b in pairs]
    fewer = [average(a.certified - b.certified) for a, b in pairs]
    worse = [average((a.product / b.product).log()) for a, b in pairs]
    ordered = [[r for r in rows if (r.model, r.solver, r.steps) == ("digits", "ddim", few)],
               [r for r in rows if (r.model, r.steps) == ("2-D mixture", few)]]  # fmt: skip
    sharper = [average((b.largest / a.largest).log()) for part in ordered for a, b in itertools.pairwise(part)]
    steps = f"with {few} steps over that with {many}"
    return [
        Claim(
            "trap: constants",
            "larger steps have larger Lipschitz constants",
            "aggressive steps undermine contraction-based certificates; no number in the sources at hand",
            f"the largest constant {steps}: {_range([e.value for e in grows])}; the interval lies above 1 in "
            f"{sum(e.low > 0.0 for e in grows)} of {len(grows)} settings",
            verdict(all(e.low > 0.0 for e in grows), PARTLY if any(e.low > 0.0 for e in grows) else verdict(False)),
        ),
        Claim(
            "trap: certificates",
            "the larger the steps, the fewer of them are certified to contract",
            "large steps undermine contraction-based stability certificates",
            f"the share of certified steps with {few} steps less that with {many}: "
            f"{min(e.value for e in fewer):+.0%} to {max(e.value for e in fewer):+.0%}; "
            f"the interval lies below 0 in {sum(e.high < 0.0 for e in fewer)} and "
            f"above 0 in {sum(e.low > 0.0 for e in fewer)} of {len(fewer)} settings",
            verdict(all(e.high < 0.0 for e in fewer), PARTLY if any(e.high < 0.0 for e in fewer) else verdict(False)),
        ),
        Claim(
            "trap: expressive denoisers",
            "more expressive denoisers have larger constants (here: stronger guidance, narrower modes)",
            "highly expressive denoisers undermine certificates",
            f"with {few} steps, the largest constant over that of the next less sharp denoiser: "
            f"{_range([e.value for e in sharper])}; the interval lies above 1 in {sum(e.low > 0.0 for e in sharper)} "
            f"of {len(sharper)} pairs",
            verdict(all(e.low > 0.0 for e in sharper), PARTLY if any(e.low > 0.0 for e in sharper) else verdict(False)),
        ),
        Claim(
            "ours: the whole run",
            "the factor by which all steps together may amplify an error grows with the size of the steps",
            "not stated; the reason why the trap would matter",
            f"the product {steps}: {_range([e.value for e in worse])}; the interval lies above 1 in "
            f"{sum(e.low > 0.0 for e in worse)} and below 1 in {sum(e.high < 0.0 for e in worse)} of {len(worse)} "
            "settings",
            verdict(all(e.low > 0.0 for e in worse), PARTLY if any(e.low > 0.0 for e in worse) else verdict(False)),
        ),
    ]


def _range(logs: list[float]) -> str:
    low, high = torch.tensor([min(logs), max(logs)]).exp().tolist()
    return f"{low:.3g} to {high:.3g}"
