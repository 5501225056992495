"""Does training towards a less sparse distribution lower the amplification? Small networks of the digits, several ways.

The paper's open question 2. A network is trained as usual; with noise added to the data, whose score is that of a less
sparse distribution; and with a penalty on how fast its estimate of the clean image changes with its input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import steadyflow as sf
from steadyflow._internal.tensors import broadcast
from steadyflow.datasets import digits
from steadyflow.denoisers import Denoiser
from steadyflow.metrics import sliced_wasserstein
from steadyflow.metrics.statistics import Estimate, average, wilson
from steadyflow.models.networks import ResidualMLP
from steadyflow.models.training import target

from ..digits import recognise
from ..findings import FAILS, HOLDS, OPEN, PARTLY, Claim, Finding, short
from ..studies import Bench
from .correlations import median
from .setting import Problem, amplified, densities, round_trip

WAYS: dict[str, dict[str, float]] = {
    "plain": {},
    "noise 0.1": {"noise": 0.1},
    "noise 0.3": {"noise": 0.3},
    "penalty 0.3": {"penalty": 0.3},
}
"""The ways of training: the noise's standard deviation on images in [-1, 1], or the factor of the penalty."""
NFE = 100
"""Euler's evaluations each way."""


@dataclass(frozen=True)
class Trained:
    """What one network gives; lists have a number of each held-out image."""

    sparsity: list[float]
    """ln p_gen per dimension at the network's own samples under the images' labels: less the entropy, in the mean."""
    density: list[float]
    """ln p_gen(x) per dimension."""
    stretch: list[float]
    """ln |det J| per dimension."""
    random: list[float]
    """The coefficient along random directions."""
    along: list[float]
    """The coefficient along the inversion's error."""
    latent_error: list[float]
    error: list[float]
    recognised: list[bool]
    """Whether a classifier of real digits takes each of the network's samples for what was asked for."""
    distance: float
    """Sliced Wasserstein distance of its samples to the held-out digits."""


def train(steps: int, seed: int = 0, *, noise: float = 0.0, penalty: float = 0.0) -> Denoiser:
    """Train a small network on the real digits, by denoising score matching.

    noise: the standard deviation of what is added to the images. penalty: the factor of |J_D|_F^2 / dim in the loss,
    with J_D the Jacobian of the estimate of the clean image, by a difference along one random direction per sample.
    """
    torch.manual_seed(seed)
    net = ResidualMLP((1, 8, 8), hidden=128, blocks=2, classes=10)
    schedule, generator = sf.VPCosine(), torch.Generator().manual_seed(seed)
    images, labels = digits("train")
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.01)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    averaged = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99))
    low, high = schedule.t_range
    for _ in range(steps):
        rows = torch.randint(len(images), (128,), generator=generator)
        x0 = images[rows] + noise * torch.randn(128, 1, 8, 8, generator=generator)
        dropped = torch.rand(128, generator=generator) < 0.1
        given = labels[rows].masked_fill(dropped, 10)
        t = low + (high - low) * (torch.arange(128) + torch.rand(128, generator=generator)) / 128
        eps = torch.randn(x0.shape, generator=generator)
        alpha, sigma = (broadcast(f(t.double()), x0) for f in (schedule.alpha, schedule.sigma))
        noisy, time = alpha * x0 + sigma * eps, schedule.model_time(t)
        output = net(noisy, time, given)
        loss = (output - target("v_prediction", x0, eps, alpha, sigma)).square().mean()
        if penalty:
            h = 0.03
            u = torch.randn(x0.shape, generator=generator)
            change = alpha * u - sigma * (net(noisy + h * u, time, given) - output) / h  # of alpha x - sigma v
            loss = loss + penalty * change.square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        decay.step()
        averaged.update_parameters(net)
    ready = averaged.module.eval().requires_grad_(False)
    return Denoiser(ready, schedule, prediction="v_prediction", shape=(1, 8, 8), null=10, classes=10, name="small")


def measure(bench: Bench, model: Denoiser, n: int, drawn: int) -> Trained:
    """Measure sparsity, amplification and error on n held-out digits, and the quality of `drawn` samples."""
    images, labels = digits("held-out")
    data = Problem("small", model, images[:n], labels[:n], None, steps=12, reference=48, batch=50)
    found, density = amplified(bench, data), densities(bench, data)
    trip = round_trip(bench, data, found, "euler", NFE)
    own = densities(bench, data.own())
    wanted = torch.arange(drawn) % 10
    samples = sf.sample(model.with_condition(wanted), n=drawn, solver="rk4", steps=12, progress=False).x
    return Trained(
        own.value.tolist(),
        density.value.tolist(),
        density.mean.tolist(),
        found.random.tolist(),
        trip.inversion.tolist(),
        trip.latent_error.tolist(),
        trip.error.tolist(),
        (recognise(samples) == wanted).tolist(),
        float(sliced_wasserstein(samples.flatten(1), images.flatten(1))),
    )


def ablation(bench: Bench) -> Finding:
    """Train the network in each way from several seeds, and compare."""
    quick = bench.size.quick
    ways = {name: WAYS[name] for name in (("plain", "noise 0.3") if quick else WAYS)}
    seeds, steps, n = (1, 300, 16) if quick else (3, 1000, bench.size.images)
    items = [(f"{way.replace(' ', '-')}-{k}", (way, k)) for way in ways for k in range(seeds)]

    size = bench.size

    def one(item: tuple[str, int]) -> Trained:
        way, seed = item
        alone = Bench(size)  # a network is one piece of work
        return measure(alone, train(steps, size.seed + seed, **WAYS[way]), n, 100 if quick else 1000)

    found = bench.cells("instability-training", one, items, _read, steps=steps, ways=ways)
    return report({way: found[k * seeds : (k + 1) * seeds] for k, way in enumerate(ways)}, n)


def _read(fields: dict[str, Any]) -> Trained:
    return Trained(**fields)


def report(found: dict[str, list[Trained]], n: int) -> Finding:
    """Judge the claims, on the images' means over the seeds; pairs of the same image are compared."""
    plain = found["plain"]
    rows = []
    for way, runs in found.items():
        recognised = wilson(sum(sum(run.recognised) for run in runs), sum(len(run.recognised) for run in runs))
        rows.append(
            [
                way,
                *(str(median(_mean(runs, key))) for key in KEYS),
                short(recognised),
                f"{sum(run.distance for run in runs) / len(runs):.3f}",
            ]
        )
    changes = {way: {key: _change(runs, plain, key) for key in KEYS} for way, runs in found.items() if way != "plain"}
    sparser = {way: change["sparsity"] for way, change in changes.items()}
    less = [way for way, e in sparser.items() if e.high < 0.0]
    for way in changes:
        rows.append(
            [
                f"{way} over plain",
                *(_signed(e) if key in ("sparsity", "density") else str(e) for key, e in changes[way].items()),
                "",
                "",
            ]
        )
    lower = [way for way in less if changes[way]["error"].high < 1.0]
    stretch = [way for way in less if changes[way]["random"].high < 1.0]
    worse = {way: sum(run.distance for run in found[way]) / sum(run.distance for run in plain) for way in changes}
    claims = [
        Claim(
            "open question 2",
            "training towards a less sparse distribution lowers the amplification along random directions",
            "asks whether training can reduce sparsity, and with it instability",
            "; ".join(f"{way}: E is {changes[way]['random']} times as large" for way in less) or _NONE,
            _all(stretch, less, [way for way in less if changes[way]["random"].low > 1.0]),
        ),
        Claim(
            "open question 2",
            "training towards a less sparse distribution lowers the reconstruction error",
            "asks whether training can mitigate the error of reconstructions",
            "; ".join(f"{way}: the error is {changes[way]['error']} times as large" for way in less) or _NONE,
            _all(lower, less, [way for way in less if changes[way]["error"].low > 1.0]),
        ),
        Claim(
            "ours",
            "the price is samples that lie farther from the real digits",
            "",
            "; ".join(f"{way}: the distance is {worse[way]:.2f} times as large" for way in less) or _NONE,
            OPEN if not less else HOLDS if all(worse[way] > 1.0 for way in less) else PARTLY,
        ),
    ]
    return Finding(
        "training",
        "Does training towards less sparsity lower the amplification?",
        claims,
        ["training", *KEYS.values(), "recognised", "distance"],
        rows,
        note=f"Residual perceptrons of width 128 on the digits, {len(plain)} seeds; medians over {n} held-out images "
        "of each image's mean over the seeds. Sparsity: ln p_gen per dimension at the network's own samples, whose "
        "mean is minus the entropy; density: the same at the images; stretch: |det J|^(1/dim). Errors are those of "
        f"Euler's round trip at {NFE} evaluations each way. Recognised: share of the samples in which a classifier "
        "sees the digit asked for; distance: sliced Wasserstein distance of the samples to the held-out digits. The "
        "lower rows compare with the plain network on the same images: differences in the first two columns, geometric "
        "means of ratios in the others.",
    )


KEYS = {
    "sparsity": "sparsity",
    "density": "density",
    "stretch": "stretch",
    "random": "E, random directions",
    "along": "E along the inversion's error",
    "latent_error": "latent error",
    "error": "error",
}
"""What is measured of each image, and its headings."""
_NONE = "no way of training made the distribution less sparse"


def _mean(runs: Sequence[Trained], key: str) -> Tensor:
    """Give the mean of each image over the seeds; a geometric one of errors and coefficients."""
    values = torch.tensor([getattr(run, key) for run in runs], dtype=torch.float64)
    if key in ("sparsity", "density"):
        return values.mean(0)
    return values.mean(0).exp() if key == "stretch" else values.log().mean(0).exp()


def _change(runs: Sequence[Trained], plain: Sequence[Trained], key: str) -> Estimate:
    """Give the geometric mean over the images of the ratio to the plain networks'; of densities the mean difference."""
    if key in ("sparsity", "density"):
        return average(_mean(runs, key) - _mean(plain, key))
    e = average((_mean(runs, key) / _mean(plain, key)).log())
    value, low, high = torch.tensor([e.value, e.low, e.high]).exp().tolist()
    return Estimate(value, low, high)


def _all(yes: Sequence[str], asked: Sequence[str], no: Sequence[str]) -> str:
    """Give the verdict on something that is to hold for all that were asked."""
    if not asked:
        return OPEN
    if len(yes) == len(asked):
        return HOLDS
    return PARTLY if yes else FAILS if no else OPEN


def _signed(e: Estimate) -> str:
    return f"{e.value:+.2f} [{e.low:+.2f}, {e.high:+.2f}]"
