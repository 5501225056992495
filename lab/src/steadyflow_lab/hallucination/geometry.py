"""The geometry behind the rates: figures 4, E.6, E.7, E.12 and E.14 of arXiv 2605.06831."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from steadyflow.metrics.statistics import wilson
from steadyflow.tasks import sample

from ..theory import interpolation as theory
from ..theory import saddles
from ..findings import Finding, percent
from ..studies import Bench
from .setting import TAU, Problem, exact, learned, pair_length, quadratic, segments


def figure_4(bench: Bench) -> Finding:
    """Measure the convergence to the segment once two modes dominate, with exact and learned score."""
    rows, holds = [], True
    for problem in (exact(), learned()):
        slopes, under, first = convergence(problem, min(bench.size.n, 4000))
        rows.append(
            [
                problem.name,
                f"{first.median():.0f}",
                f"{slopes.median():.3f}",
                percent(wilson(int(under.sum()), len(under))),
            ]
        )
        holds = holds and abs(slopes.median().item() - 1.0) < 0.1
    return Finding(
        "4",
        "Convergence to the segment between two modes",
        "after two-mode dominance the distance to the segment falls like sqrt(s2): a slope of 1",
        holds,
        ["model", "steps left when dominance begins (kappa 7, median)", "slope (median)", "under the bound of T4.2"],
        rows,
        note="The slope is that of ln distance against ln sqrt(s2), while the distance is above the bound's tail.",
    )


def convergence(problem: Problem, n: int, kappa: float = 7.0, count: int = 200) -> tuple[Tensor, Tensor, Tensor]:
    """Give slopes of the distance to the segment, whether the bound held, and steps left at the beginning; each (m,).

    They are those of DDIM at `count` steps, for trajectories whose two nearest modes stay the same from the first
    dominance on.
    """
    grid = quadratic(count, problem.top)
    options = {"solver": "ddim", "record": "all", "noise": "white", "progress": False}
    states = sample(problem.model, n=n, grid=grid, end="path", **options)
    path = states.trajectory
    assert path is not None  # it was asked for
    mixture, schedule = problem.mixture.to(torch.float64), problem.schedule
    y = torch.stack([x.double() / schedule.alpha(t) for x, t in zip(path.x, path.times, strict=True)])
    s2 = torch.tensor([theory.variance(mixture, schedule, t) for t in path.times], dtype=torch.float64)
    first = theory.first_dominance(mixture, y, s2.tolist(), kappa)
    pairs = torch.stack(
        [theory.dominance(mixture, z, float(v)).pair.sort(1).values for z, v in zip(y, s2, strict=True)]
    )
    tail = theory.far_modes(mixture, kappa)
    slopes, under, left = [], [], []
    for k in range(n):
        begin = int(first[k])
        if begin > len(y) - 8 or not bool((pairs[begin:, k] == pairs[begin, k]).all()):
            continue
        i, j = pairs[begin, k]
        distance = theory.distance_to_segment(y[begin:, k], mixture.means[i], mixture.means[j])
        root = (s2[begin:] / s2[begin]).sqrt()
        under.append(bool((distance <= distance[0] * root + tail + 1e-9).all()))
        left.append((len(y) - 1 - begin) / (len(y) - 1) * 50.0)
        clear = (distance > 3.0 * float(mixture.spread)) & (distance > 0.02 * distance[0])
        if distance[0] > 10.0 * mixture.spread and int(clear.sum()) >= 4:
            last = int(clear.nonzero()[-1])
            slopes.append(float((distance[last] / distance[0]).log() / root[last].log()))
    return torch.tensor(slopes), torch.tensor(under), torch.tensor(left)


def figure_e6(bench: Bench) -> Finding:
    """Find when the assumptions hold in the plane, over kappa, with the exact score."""
    return _assumptions("E.6", (exact(),), min(bench.size.n, 4000))


def figure_e7(bench: Bench) -> Finding:
    """Find when the assumptions hold in higher dimensions (figures E.7 and E.8)."""
    return _assumptions("E.7", tuple(exact(dim) for dim in (4, 8, 32, 64)), min(bench.size.n, 2000))


def _assumptions(number: str, problems: tuple[Problem, ...], n: int) -> Finding:
    rows, least = [], 1.0
    for problem in problems:
        grid = quadratic(50, problem.top)
        options = {"solver": "ddim", "record": "all", "noise": "white", "progress": False}
        states = sample(problem.model, n=n, grid=grid, end="path", **options)
        path = states.trajectory
        assert path is not None
        y = torch.stack([x / problem.schedule.alpha(t) for x, t in zip(path.x, path.times, strict=True)])
        s2 = [theory.variance(problem.mixture, problem.schedule, t) for t in path.times]
        length = pair_length(problem)
        for kappa in (1.0, 3.0, 5.0, 7.0, 9.0):
            first = theory.first_dominance(problem.mixture, y, s2, kappa)
            reached = wilson(int((first < len(y)).sum()), n)
            alone = theory.responsibilities(problem.mixture, y[-1], s2[-1]).amax(1) > 1.0 - math.exp(-kappa)
            either = wilson(int(((first < len(y)) | alone).sum()), n)
            left = (len(y) - 1 - first[first < len(y)]).double()
            separated = next((len(y) - 1 - k for k, v in enumerate(s2) if length**2 / (2.0 * v) >= 2.0 * kappa), -1)
            least = min(least, either.value)
            cells = [
                str(problem.mixture.dim),
                f"{kappa:g}",
                percent(reached),
                percent(either),
                f"{left.median():.0f}",
                str(separated),
            ]
            rows.append(cells)
    return Finding(
        number,
        "When the assumptions begin to hold",
        "two-mode dominance (A4.1) and separation (A4.4) hold from some time on for large kappa",
        least > 0.99,
        [
            "dimension",
            "kappa",
            "A4.1 holds in the end",
            "or one mode has all but e^-kappa",
            "steps left then (median of 50)",
            "steps left, A4.4",
        ],
        rows,
        note="Near a mode several neighbours may be about as near: no two modes need dominate where one does.",
    )


def figure_e12(bench: Bench) -> Finding:
    """Compute the eigenvalues of the rescaled flow's Jacobian at the midpoint, for exact and learned score."""
    rows, holds = [], True
    times = quadratic(50).times[-TAU - 1 :]
    for problem in (exact(), learned()):
        values = torch.stack([midpoint_eigenvalues(problem, t) for t in times])
        holds = holds and bool((values[:, 1] > 0.0).all() and (values[:, 0] < 0.0).all())
        for k, name in ((1, "largest"), (0, "smallest")):
            rows.append([problem.name, name, *(f"{v:.3g}" for v in values[:, k].tolist())])
    mixture = exact().mixture
    expected = [
        saddles.saddle_rate(pair_length(exact()) ** 2 / theory.variance(mixture, exact().schedule, t)) for t in times
    ]
    rows.append(["l^2 / (4 s2) - 1", "", *(f"{v:.3g}" for v in expected)])
    return Finding(
        "E.12",
        "Eigenvalues of dy/ds at the midpoint of a segment (mean over the 40)",
        "one is positive and one negative over the last steps: a saddle",
        holds,
        ["model", "eigenvalue", *(f"t = {t:g}" for t in times)],
        rows,
    )


def midpoint_eigenvalues(problem: Problem, t: float) -> Tensor:
    """Give the smallest and the largest eigenvalue of the Jacobian of dy/ds, means over the midpoints, (2,)."""
    alpha, mixture = problem.schedule.alpha(t), problem.mixture
    pairs = segments(mixture)
    y = 0.5 * (mixture.means[pairs[:, 0]] + mixture.means[pairs[:, 1]])
    leaf = (alpha * y).requires_grad_()
    with torch.enable_grad():
        # x0_hat = m + (s0^2 / s2) (y - m) of the exact score; the slope in the clock s is (x0_hat - y) s2 / (s2 - s0^2)
        clean = problem.model(leaf, t).x0
        rows = [torch.autograd.grad(clean[:, k].sum(), leaf, retain_graph=True)[0] for k in range(mixture.dim)]
    s2 = theory.variance(mixture, problem.schedule, t)
    jacobian = alpha * torch.stack(rows, 1) - torch.eye(mixture.dim)
    jacobian = jacobian * (s2 / (s2 - mixture.spread**2))
    return torch.linalg.eigvalsh(0.5 * (jacobian + jacobian.mT)).mean(0)[[0, -1]]


def figure_e14(bench: Bench) -> Finding:
    """Check the assumptions of P5.1 with the exact score on all 40 segments: |b| <= K, outward drift >= lambda_rep."""
    problem = exact()
    mixture = problem.mixture.to(torch.float64)
    pairs, length = segments(mixture), pair_length(problem)
    per = max(50, min(bench.size.n, 400_000) // len(pairs))
    generator = torch.Generator().manual_seed(0)
    grid = quadratic(50).times[-TAU - 1 :]
    variances = [theory.variance(mixture, problem.schedule, t) for t in grid]
    rows, holds = [], True
    for t, s2 in list(zip(grid, variances, strict=True))[::3]:
        z = (2.0 * torch.rand(len(pairs), per, generator=generator, dtype=torch.float64) - 1.0) * 0.45 * length
        first, second = mixture.means[pairs[:, 0]], mixture.means[pairs[:, 1]]
        unit = ((second - first) / length)[:, None]
        y = 0.5 * (first + second)[:, None] + z[..., None] * unit
        drift = (theory.drift(mixture, y.flatten(0, 1), s2).view_as(y) * unit).sum(-1)
        tail = 2.0 * theory.far_modes(mixture, length**2 / (4.0 * s2))
        inside, between = z.abs() <= 0.35 * length, (z.abs() >= 0.1 * length) & (z.abs() <= 0.45 * length)
        bound = saddles.greatest_outward(length, s2, 0.35 * length)
        margin = saddles.least_outward(length, s2, 0.1 * length, 0.45 * length)
        largest, least = drift.abs()[inside].max().item(), (drift * z.sign())[between].min().item()
        holds = holds and largest <= bound + tail and least >= margin - tail and margin > 0.0
        cells = [f"{t:g}", f"{bound:.4f}", f"{largest:.4f}", f"{margin:.4f}", f"{least:.4f}"]
        rows.append(cells)
    paper = saddles.confinement_bound(length, variances, 0.35 * length)
    sharp = [saddles.escape_bound(length, variances, share * length) for share in (0.1, 0.2, 0.35)]
    note = (
        f"The first term of P5.1 itself is {paper:.2f} here, at theta = 0.35 l and {TAU} steps left: it says nothing. "
        f"The sharper `escape_bound` is {sharp[0]:.2g}, {sharp[1]:.2g} and {sharp[2]:.2g} at 0.1, 0.2 and 0.35 l."
    )
    return Finding(
        "E.14",
        "Assumptions of P5.1 over 40 segments, exact score of all 25 modes",
        "the drift along the segment is bounded by K(t), and outward from 0.1 l on",
        holds,
        ["t", "K", "largest drift found", "lambda_rep", "least outward drift found"],
        rows,
        note=note,
    )
