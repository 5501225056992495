"""How trajectories come to the segment between two modes: figures 4 and E.6 to E.9, C4.3 of arXiv 2605.06831."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from steadyflow.metrics.statistics import Estimate, average, wilson
from steadyflow.tasks import sample

from ..findings import OPEN, Claim, Finding, decide, percent, short
from ..studies import Bench
from ..theory import interpolation as theory
from .drawing import Request, invalid, run
from .setting import DDPM, Method, Problem, ddim, exact, learned, pair_length

KAPPA = 7.0


@dataclass(frozen=True)
class Paths:
    """Trajectories in y = x / alpha, noisy end first."""

    y: Tensor
    """Shape (T, n, d)."""
    s2: Tensor
    """Shape (T,)."""


def paths(problem: Problem, method: Method, n: int, seed: int = 0) -> Paths:
    """Draw n trajectories by a method."""
    options = {"record": "all", "noise": "white", "progress": False, "seed": seed, "end": "path"}
    states = sample(problem.model, n=n, grid=method.grid(problem.top), solver=method.solver, **options)
    path = states.trajectory
    assert path is not None  # it was asked for
    y = torch.stack([x.double() / problem.schedule.alpha(t) for x, t in zip(path.x, path.times, strict=True)])
    s2 = [theory.variance(problem.mixture, problem.schedule, t) for t in path.times]
    return Paths(y, torch.tensor(s2, dtype=torch.float64))


@dataclass(frozen=True)
class Convergence:
    """How trajectories converge once their two nearest modes dominate and stay the same."""

    begins: Tensor
    """The first state from which on they do, shape (n,); T where they never do."""
    changed: Tensor
    """Whether the pair still changed after dominance had begun, so that the later time counts, shape (n,)."""
    alone: Tensor
    """Whether two modes never dominate because one has all but e^-kappa in the end, shape (n,)."""
    distance: Tensor
    """To the segment of the last pair, or to the one mode, shape (T, n)."""
    bounded: Tensor
    """Whether the distance stays under T4.2's bound from then on, of those for whom it applies, shape (m,)."""
    slopes: Tensor
    """Of ln distance against ln sqrt(s2) while the distance is above the bound's tail, shape (k,)."""
    tail: float

    @property
    def judged(self) -> Tensor:
        """Whether the bound applies, shape (n,)."""
        return self.alone | (self.begins < len(self.distance))


def convergence(problem: Problem, found: Paths, kappa: float = KAPPA) -> Convergence:
    """Measure the convergence of trajectories to their segment.

    Two modes dominate in the sense of A4.1. Beside a mode several neighbours may be about as near, so that no two
    dominate; there the same argument bounds the distance to the one mode, which is judged instead.
    """
    mixture = problem.mixture.to(torch.float64)
    y, s2 = found.y, found.s2
    seen = [theory.dominance(mixture, z, float(v)) for z, v in zip(y, s2, strict=True)]
    pairs = torch.stack([d.pair.sort(1).values for d in seen])
    first = theory.first_dominance(mixture, y, s2.tolist(), kappa)
    same = (pairs == pairs[-1]).all(2).flip(0).long().cumprod(0).sum(0)
    settled = len(y) - same
    begins = torch.where(first < len(y), torch.maximum(first, settled), len(y))
    share = torch.stack([theory.responsibilities(mixture, z, float(v)).amax(1) for z, v in zip(y, s2, strict=True)])
    single = (share > 1.0 - math.exp(-kappa)).flip(0).long().cumprod(0).sum(0)
    alone = (begins == len(y)) & (single > 0)
    begins = torch.where(alone, len(y) - single, begins)

    ends = mixture.means[pairs[-1]]
    to_segment = torch.stack([theory.distance_to_segment(z, ends[:, 0], ends[:, 1]) for z in y])
    nearest = mixture.means[torch.cdist(y[-1], mixture.means).argmin(1)]
    distance = torch.where(alone, (y - nearest).norm(dim=2), to_segment)
    tail = theory.far_modes(mixture, kappa)
    bounded, slopes = [], []
    for k in (begins < len(y)).nonzero()[:, 0].tolist():
        start = int(begins[k])
        mine, root = distance[start:, k], (s2[start:] / s2[start]).sqrt()
        bounded.append(bool((mine <= mine[0] * root + tail + 1e-9).all()))
        clear = (mine > 3.0 * float(mixture.spread)) & (mine > 0.02 * mine[0])
        if not alone[k] and mine[0] > 10.0 * mixture.spread and int(clear.sum()) >= 4:
            last = int(clear.nonzero()[-1])
            slopes.append(float((mine[last] / mine[0]).log() / root[last].log()))
    drawn = torch.tensor(bounded, dtype=torch.bool), torch.tensor(slopes, dtype=torch.float64)
    return Convergence(begins, (settled > first) & (first < len(y)), alone, distance, *drawn, tail)


def left_the_tube(found: Convergence) -> Estimate:
    """Give the share of trajectories that leave the tube of radius `tail` after they have come in (C4.3)."""
    index = torch.arange(len(found.distance))[:, None]
    within = (found.distance <= found.tail) & (index >= found.begins)
    entered = within.any(0)
    first = within.long().argmax(0)
    outside = (found.distance > found.tail) & (index > first)
    return wilson(int((outside.any(0) & entered).sum()), max(int(entered.sum()), 1))


def noisy_slope(problem: Problem, found: Paths, kappa: float = KAPPA, steps: int = 40) -> Estimate:
    """Give the slope of ln rms distance to the nearest segment against ln sqrt(s2) over stochastic trajectories.

    From the time on at which A4.4 holds. The part across the segment follows d eta = -2 eta ds + sqrt(2 s2) dW, whose
    second moment keeps to (d - 1) s2: the rms distance falls like sqrt(s2), though no single trajectory's has to, and
    the nearest segment may change. The interval is a bootstrap's over trajectories.
    """
    mixture, length = problem.mixture.to(torch.float64), pair_length(problem)
    apart = int((length**2 / (2.0 * found.s2) >= 2.0 * kappa).nonzero()[0])
    rows = torch.linspace(apart, len(found.y) - 1, steps).long().unique().tolist()
    squares = []
    for t in rows:
        pair = mixture.means[theory.dominance(mixture, found.y[t], float(found.s2[t])).pair]
        squares.append(theory.distance_to_segment(found.y[t], pair[:, 0], pair[:, 1]).square())
    square = torch.stack(squares)
    x = found.s2[rows].sqrt().log()
    x = (x - x.mean()) / (x - x.mean()).square().sum()
    again = torch.randint(square.shape[1], (400, square.shape[1]), generator=torch.Generator().manual_seed(0))
    drawn = torch.stack([(x * square[:, some].mean(1).sqrt().log()).sum() for some in again])
    low, high = drawn.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Estimate(float((x * square.mean(1).sqrt().log()).sum()), low, high)


def _near_one(slope: Estimate, margin: float) -> bool:
    """Say whether a slope's whole interval is within a margin of 1."""
    return max(abs(slope.low - 1.0), abs(slope.high - 1.0)) < margin


def _far_from_one(slope: Estimate, margin: float) -> bool:
    """Say whether none of it is."""
    return slope.high < 1.0 - margin or slope.low > 1.0 + margin


_HEADS = [
    "model",
    "sampler",
    "two modes dominate",
    "of these, pair still changed",
    "one mode alone",
    "neither (left out)",
    "judged from t on (median)",
    "slope",
    "under the bound of T4.2",
    "left the tube",
]


def _row(problem: Problem, method: Method, n: int, seed: int) -> tuple[list[str], Convergence, Estimate]:
    found = paths(problem, method, n, seed)
    by = convergence(problem, found)
    two = by.judged & ~by.alone
    noisy = method.label == DDPM.label  # whose two nearest modes flicker, so that the last pair is no measure
    slope = (
        noisy_slope(problem, found)
        if noisy
        else average(by.slopes)
        if len(by.slopes) > 1
        else Estimate(*[math.nan] * 3)
    )
    begin = torch.tensor(method.grid(problem.top).times)[by.begins[two]].median()
    cells = [
        problem.name,
        method.label,
        f"{two.double().mean():.1%}",
        f"{(by.changed & two).double().sum() / two.sum().clamp_min(1):.1%}",
        f"{by.alone.double().mean():.1%}",
        f"{(~by.judged).double().mean():.1%}",
        f"{begin:.0f}",
        f"{slope.value:.3f} [{slope.low:.3f}, {slope.high:.3f}]",
        "" if noisy else short(wilson(int(by.bounded.sum()), max(len(by.bounded), 1))),
        "" if noisy else short(left_the_tube(by)),
    ]
    return cells, by, slope


_NOTE = (
    "Trajectories are judged if two modes dominate with kappa = 7, from the time on at which they dominate and are the "
    "final pair; and if they end at a single mode, where the same bound holds on the distance to it. The slope is that "
    "of ln distance against ln sqrt(s2) while the distance is above the bound's tail; for DDPM, that of the rms "
    "distance."
)


def figure_4(bench: Bench) -> Finding:
    """Measure the convergence to the segment once two modes dominate: DDIM and DDPM, exact and learned score."""
    count = min(bench.size.n, 2000 if not bench.size.quick else 400)
    jobs = [(problem, method) for problem in (exact(), learned()) for method in (ddim(200), DDPM)]
    seed = bench.size.seed
    made = bench.map(lambda job: _row(*job, count if job[1].label != DDPM.label else count // 2, seed), jobs)
    rows = [cells for cells, _, _ in made]
    (_, sharp, slope), (_, _, noise), (_, rough, bent), (_, _, noise_bent) = made
    every = [wilson(int(by.bounded.sum()), len(by.bounded)) for by in (sharp, rough)]
    judged = [float(by.judged.double().mean()) for by in (sharp, rough)]
    left = [left_the_tube(by) for by in (sharp, rough)]
    claims = [
        Claim(
            "T4.2, figure 4",
            "with the exact score, DDIM's distance to the segment falls like sqrt(s2) once two modes dominate",
            "exponential decay with slope 1",
            f"slope {slope.value:.3f} [{slope.low:.3f}, {slope.high:.3f}]; of the trajectories judged, "
            f"{short(every[0])} stay under the bound; {judged[0]:.0%} are judged",
            decide(
                [every[0].low > 0.99 and _near_one(slope, 0.05)], [every[0].high < 0.99 or _far_from_one(slope, 0.05)]
            ),
        ),
        Claim(
            "T4.2, figure 4",
            "the same holds with a learned score",
            "exponential decay",
            f"slope {bent.value:.3f} [{bent.low:.3f}, {bent.high:.3f}]; of the trajectories judged, "
            f"{short(every[1])} stay under the bound; {judged[1]:.0%} are judged",
            decide([every[1].low > 0.95 and _near_one(bent, 0.1)], [every[1].high < 0.95 or _far_from_one(bent, 0.1)]),
        ),
        Claim(
            "figure 4",
            "DDPM converges to the segment as well",
            "exponential decay",
            f"slope of the rms distance {noise.value:.3f} [{noise.low:.3f}, {noise.high:.3f}] (exact), "
            f"{noise_bent.value:.3f} [{noise_bent.low:.3f}, {noise_bent.high:.3f}] (learned); 1 is predicted",
            decide(
                (_near_one(e, 0.1) for e in (noise, noise_bent)), (_far_from_one(e, 0.1) for e in (noise, noise_bent))
            ),
        ),
        Claim(
            "C4.3",
            "a trajectory that has entered the tube around the segment stays there",
            "a corollary of T4.2",
            f"of those that enter, {short(left[0])} leave again with the exact score, {short(left[1])} with the "
            "learned one",
            decide((e.high < 0.02 for e in left), (e.low > 0.02 for e in left)),
        ),
    ]
    title = "Convergence to the segment between two modes"
    return Finding("4", title, claims, _HEADS, rows, note=_NOTE)


def figure_e9(bench: Bench) -> Finding:
    """Measure rates and convergence in higher dimensions, with the learned scores."""
    rows, slopes, rates = [], [], []
    count, seed = (300 if bench.size.quick else 1000), bench.size.seed
    for name in ("mixture25-8d", "mixture25-32d"):
        problem = learned(name)
        sizes = bench.size.n // 4, bench.size.long // 20 if not bench.size.quick else 500
        requests = [Request(m, k, seed=seed) for m, k in zip((ddim(), DDPM), sizes, strict=True)]
        outcomes = run(problem, requests, bench.engine)
        for outcome, method in zip(outcomes, (ddim(200), DDPM), strict=True):
            few = count if method.label != DDPM.label else count // 2
            ((cells, _, slope),) = bench.map(lambda m, p=problem, k=few: _row(p, m, k, seed), [method])
            rows.append([*cells[:9], percent(outcome.classes.rate()), invalid(outcome)])
            slopes.append(slope)
        quick, slow = (outcome.classes.rate() for outcome in outcomes)
        rates.append((quick, slow))
    words = "; ".join(f"{short(quick)} against {short(slow)}" for quick, slow in rates)
    claims = [
        Claim(
            "figure E.9",
            "in 8 and 32 dimensions, too, DDIM interpolates more often than DDPM",
            "a gap at every dimension; no number in the text",
            f"{words}; but these rates leave out the many samples that lie at no mode and on no segment",
            decide((a.low > b.high for a, b in rates), (a.high < b.low for a, b in rates)),
        ),
        Claim(
            "figure E.9",
            "the convergence to the segment is exponential for both samplers",
            "exponential decay",
            "slopes " + ", ".join(f"{s.value:.2f} [{s.low:.2f}, {s.high:.2f}]" for s in slopes) + "; 1 is predicted",
            decide((_near_one(e, 0.1) for e in slopes), (_far_from_one(e, 0.1) for e in slopes)),
        ),
    ]
    return Finding(
        "E.9",
        "Learned scores in 8 and 32 dimensions",
        claims,
        [*_HEADS[:9], "interpolated", "invalid"],
        rows,
        note=_NOTE,
    )


def figure_e6(bench: Bench) -> Finding:
    """Find when the assumptions hold in the plane, over kappa, with the exact score."""
    return _assumptions("E.6", (2,), bench)


def figure_e7(bench: Bench) -> Finding:
    """Find when the assumptions hold in higher dimensions (figures E.7 and E.8)."""
    return _assumptions("E.7", (2, 4, 8, 32, 64), bench)


def _assumptions(number: str, dims: tuple[int, ...], bench: Bench) -> Finding:
    few = 200 if bench.size.quick else 400
    jobs = [(dim, method) for dim in dims for method in (ddim(), DDPM)]
    seed = bench.size.seed
    made = bench.map(lambda job: _begin(*job, few if job[1].label != DDPM.label else few // 4, seed), jobs)
    rows = [row for part, _, _ in made for row in part]
    reached, alone = [low for _, low, _ in made], [both for _, _, (*_, both) in made]
    strict = f"{min(e.value for e in alone):.0%} to {max(e.value for e in alone):.0%}"
    claims = [
        Claim(
            f"A4.1, figure {number}",
            "two modes dominate all others from some time on, with kappa = 7",
            "found valid in every dimension tried",
            f"for at least {short(min(reached, key=lambda e: e.value))} of the trajectories of DDIM and DDPM; for a "
            f"single pair alone in {strict} of them, because near a mode several pairs dominate",
            decide((e.low > 0.9 for e in reached), (e.high < 0.9 for e in reached)),
        )
    ]
    if len(dims) > 1:
        times = [times for _, _, times in made]  # DDIM and DDPM by turns
        dominance = [[entry[0] for entry in times[k::2]] for k in (0, 1)]
        growing = [entry[2] for entry in times[1::2]]
        spread = [(dim, method) for dim in dims for method in (ddim(), DDPM)]
        far = bench.map(lambda job: _begin(*job, few // 4, seed, False)[2][0], spread)
        words = ", ".join(f"{first:.0f} and {second:.0f}" for first, second in zip(*dominance, strict=True))
        apart = ", ".join(f"{first:.0f} and {second:.0f}" for first, second in zip(far[::2], far[1::2], strict=True))
        lines = [*dominance, far[::2], far[1::2]]
        claims += [
            Claim(
                "figures E.7, E.8",
                "tau_1 moves toward the noisy end as the dimension grows, for DDIM and DDPM",
                "grows with d = 4, 8, 32, 64; no number in the text",
                f"with the nearest modes as far apart as in the plane, A4.1 begins to hold at t = {words} (medians; "
                f"DDIM and DDPM) in d = {', '.join(map(str, dims))}; with modes at the farthest points of the lattice, "
                f"whose distances grow with d, at t = {apart}",
                decide((line[-1] > line[0] for line in lines), (line[-1] <= line[0] for line in lines)),
            ),
            Claim(
                "A4.4, figures E.7, E.8",
                "tau_2 moves toward the clean end as the dimension grows",
                "A4.4 with a factor that grows with d; the factor is not in the sources at hand",
                f"with a factor of our own, d / 2, A4.4 holds from t = {', '.join(f'{t:.0f}' for t in growing)} on",
                OPEN,  # with any factor that grows with d it does; the paper's own is what would have to be tested
            ),
        ]
    heads = ["dimension", "sampler", "kappa", "A4.1 holds from some time on", "for a single pair alone"]
    heads += ["A4.1 holds from t on (median)", "l^2 / (2 s2) >= 2 kappa from t on", "l^2 / (2 s2) >= kappa d from t on"]
    note = (
        "The modes are moved closer together, so that the nearest are as far apart as in the plane. Near a mode, "
        "several neighbours may be about equally close; by the remark after A4.1, it may then hold for several pairs. "
        "The last column is A4.4 with the factor d / 2, with which the shells of radius sqrt(d s2) around two modes do "
        "not overlap."
    )
    return Finding(number, "When the assumptions begin to hold", claims, heads, rows, note=note)


def _begin(
    dim: int, method: Method, n: int, seed: int, level: bool = True
) -> tuple[list[list[str]], Estimate, tuple[float, float, float, Estimate]]:
    """Give rows over kappa; at kappa 7, the share for which A4.1 holds, when it and A4.4 begin, and for one pair."""
    problem = exact(dim, level=level)
    found = paths(problem, method, n, seed)
    y, s2, length = found.y.to(torch.float32), found.s2.tolist(), pair_length(problem)
    grid = method.grid(problem.top).times
    rows = []
    seen = [theory.dominance(problem.mixture, z, v) for z, v in zip(y, s2, strict=True)]
    weak, strict = torch.stack([d.weak for d in seen]), torch.stack([d.kappa for d in seen])

    def since(threshold: float) -> float:
        return next((t for t, v in zip(grid, s2, strict=True) if length**2 / (2.0 * v) >= threshold), -1.0)

    def lasting(held: Tensor) -> Tensor:
        """The first state from which on it holds; T where it never does."""
        return len(held) - held.flip(0).long().cumprod(0).sum(0)

    holds = both = Estimate(0.0, 0.0, 0.0)
    times = 0.0, 0.0, 0.0
    for kappa in (1.0, 3.0, 5.0, 9.0, KAPPA):
        first = lasting(weak >= kappa)
        holds = wilson(int((first < len(y) - 1).sum()), n)  # from before the last state on
        both = wilson(int((lasting(strict >= kappa) < len(y) - 1).sum()), n)
        begin = float(torch.tensor(grid)[first[first < len(y)]].median())
        times = begin, since(2.0 * kappa), since(kappa * dim)
        cells = [f"{kappa:g}", short(holds), short(both), *(f"{t:.0f}" for t in times)]
        rows.append([str(dim), method.label, *cells])
    return rows, holds, (*times, both)
