"""Images, detectors, and the comparison of remedies."""

from __future__ import annotations

import torch
from torch import Tensor

from steadyflow._integrate import StepInfo
from steadyflow.diagnostics.detectors import TrajectoryVariance, roc_area
from steadyflow.jacobians import largest_singular_value
from steadyflow.metrics import count_shapes, sliced_wasserstein
from steadyflow.metrics.statistics import Estimate, wilson
from steadyflow.models import load

from ..theory import interpolation as theory
from ..studies import Bench
from .drawing import Request, draw, invalid, run
from ..findings import RATE, Finding, percent
from .setting import DDPM, UNIT, Method, ddim, learned, remedies, thinned

_IMAGES = 64
"""Pictures per batch."""
_DDPM_250 = Method("DDPM-250", "ddpm", thinned)


def figure_e10(bench: Bench) -> Finding:
    """Measure the share of images of triangles with a wrong count, over training epochs."""
    rows, holds = [], True
    for name in ("triangles-20", "triangles-40", "triangles"):
        model = load(name)
        methods = ddim(), _DDPM_250
        drawn = draw(model, [Request(method, bench.size.images, batch=_IMAGES) for method in methods], bench.engine)
        shares = [wrong_count(images.x) for images in drawn]
        holds = holds and shares[0].low > shares[1].high
        rows.append([name, *(percent(share) for share in shares)])
    return Finding(
        "E.10",
        "Images of three triangles with a wrong count",
        "over the epochs of training DDIM miscounts more often than DDPM",
        holds,
        ["model (epochs of 80)", "DDIM-50", "DDPM-250"],
        rows,
        note="DDPM over every fourth timestep: a thousand steps of the U-Net take hours on two cores.",
    )


def wrong_count(images: Tensor) -> Estimate:
    """Give the share of images that do not hold three shapes."""
    return wilson(int((count_shapes(images) != 3).sum()), len(images))


def detection(bench: Bench) -> Finding:
    """Compare the detectors that know no modes with the exact classification."""
    rows, best = [], 0.0
    for name in ("mixture25", "mixture25-8d", "mixture25-32d"):
        problem = learned(name)
        (outcome,) = run(problem, [Request(ddim(), min(bench.size.n, 50_000), watch=_Detectors)], bench.engine)
        assert outcome.found is not None  # it was watched
        counted = outcome.classes.kind != theory.INVALID
        positive = (outcome.classes.kind == theory.INTERPOLATED)[counted]
        if not bool(positive.any()):
            rows.append([name, "no interpolated sample", "", "", ""])
            continue
        areas = [roc_area(scores, positive) for scores in outcome.found[counted].T]
        if name == "mixture25":
            best = max(areas[1:])
        rows.append([name, *(f"{area:.4f}" for area in areas)])
    return Finding(
        "detector",
        "ROC area of detectors of interpolated samples",
        "(ours) above 0.99 on the model in the plane",
        best > 0.99,
        ["model", "variance of x0 (Aithal et al.)", "stretch, 4 steps left", "6 left", "8 left"],
        rows,
    )


class _Detectors:
    """A watch with one column per detector: the variance, and the stretch with 4, 6 and 8 steps left."""

    def __init__(self):
        self._variance = TrajectoryVariance(10)
        self._stretches: dict[int, Tensor] = {}

    def __call__(self, info: StepInfo) -> None:
        self._variance(info)
        left = info.remaining
        if left in (4, 6, 8):
            self._stretches[left] = largest_singular_value(info.model, info.x, info.t)

    @property
    def found(self) -> Tensor:
        return torch.stack([self._variance.scores, *(self._stretches[left] for left in (4, 6, 8))], 1)


def remedy_table(bench: Bench) -> Finding:
    """Compare remedies at about equal evaluations, on all learned models."""
    rows, holds = [], False
    for name in ("mixture25", "mixture25-8d", "mixture25-32d"):
        problem = learned(name)
        data = problem.mixture.sample(min(bench.size.n, 50_000), seed=12345)
        few, many = (bench.size.long, bench.size.n) if name == "mixture25" else (bench.size.long // 10, bench.size.n // 4)
        requests = [Request(method, few if method is DDPM else many, seed=7) for method in remedies()]
        results = {outcome.label: outcome for outcome in run(problem, requests, bench.engine)}
        for label, outcome in results.items():
            rate, balance = outcome.classes.rate(), outcome.classes.balance(25)
            distance = sliced_wasserstein(outcome.x[: len(data)], data) * UNIT
            off = 0.5 * (balance - 0.04).abs().sum().item()
            cells = [f"{outcome.evaluations:.1f}", percent(rate), invalid(outcome), f"{distance:.4f}", f"{off:.4f}"]
            rows.append([name, label, *cells])
        if name == "mixture25":
            plain, freed, slow = (results[k].classes.rate() for k in ("DDIM-50", "Escape on DDIM-50", "DDPM-1000"))
            cost = results["Escape on DDIM-50"].evaluations
            holds = freed.value <= slow.value and freed.value <= plain.value / 50.0 and cost <= 57.5
    return Finding(
        "remedies",
        "Remedies at about equal evaluations",
        "(ours) Escape: at or below DDPM-1000's rate, 50 times below DDIM-50's, within 1.15 times its evaluations",
        holds,
        ["model", "sampler", "evaluations", *RATE[1:], "sliced Wasserstein", "imbalance"],
        rows,
        note=(
            "Sliced 2-Wasserstein distance to fresh data, in units of the published lattice; imbalance is the total "
            "variation from equal shares. A Jacobian product counts as two evaluations."
        ),
    )


def image_remedies(bench: Bench) -> Finding:
    """Compare remedies on images of triangles."""
    model, rows, shares = load("triangles"), [], {}
    methods = *remedies()[:-1], _DDPM_250
    drawn = draw(model, [Request(method, bench.size.images // 2, seed=7, batch=_IMAGES) for method in methods], bench.engine)
    for method, images in zip(methods, drawn, strict=True):
        share = shares[method.label] = wrong_count(images.x)
        held = "" if images.record is None else f"{images.record.flagged / images.record.samples:.1%}"
        rows.append([method.label, f"{images.evaluations:.1f}", percent(share), held])
    freed, plain = shares["Escape on DDIM-50"], shares["DDIM-50"]
    return Finding(
        "remedies-images",
        "Remedies on images of three triangles",
        "(ours) Escape lowers the share of images with a wrong count",
        freed.high < plain.low,
        ["sampler", "evaluations", "wrong count", "held at a saddle"],
        rows,
    )
