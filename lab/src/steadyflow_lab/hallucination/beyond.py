"""Beyond the paper: critical times from the score alone, noise placed by them, and errors that are no saddles."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from steadyflow import solvers
from steadyflow._integrate import StepInfo
from steadyflow.corrections import Escape
from steadyflow.denoisers import Denoiser
from steadyflow.diagnostics import CriticalWindow, critical_window
from steadyflow.grids import Grid
from steadyflow.metrics import count_shapes
from steadyflow.metrics.statistics import Estimate, average, wilson
from steadyflow.models import load
from steadyflow.tasks import sample

from ..datasets.triangles import triangles
from ..findings import FAILS, HOLDS, OPEN, Claim, Finding, decide, percent, short
from ..studies import Bench
from ..theory import interpolation as theory
from .drawing import Outcome, Request, run
from .remedies import DDPM_250, counted
from .setting import (
    DDPM,
    Method,
    Problem,
    ddim,
    eta,
    exact,
    hybrid,
    learned,
    quadratic,
    quadratic_50,
    uniform_20,
    uniform_50,
)


def window_of(problem: Problem, method: Method, n: int = 256, seed: int = 77) -> CriticalWindow:
    """Find the critical window of a method on a model, with pilot samples of their own seed."""
    options = {"grid": method.grid(problem.top), "noise": "white", "end": "path", "seed": seed}
    return critical_window(problem.model, n=n, solver=method.solver, **options)


def figure_critical(bench: Bench) -> Finding:
    """Find the critical time of each sample from the score alone, and see whether its mode is settled then."""
    n, rows, agree, settled, open_ = (300 if bench.size.quick else 2000), [], [], [], []
    for problem in (exact(), exact(8, level=True), learned()):
        grid, mixture = quadratic(50), problem.mixture
        window = window_of(problem, ddim(), n, bench.size.seed)
        options = {"record": "all", "noise": "white", "progress": False, "seed": bench.size.seed, "end": "path"}
        states = sample(problem.model, n=n, grid=grid, solver="ddim", **options)
        path = states.trajectory
        assert path is not None  # it was asked for
        known, likeliest = torch.full((n,), -1), []
        for k, (x, t) in enumerate(zip(path.x, path.times, strict=True)):
            s2 = theory.variance(mixture, problem.schedule, t)
            share = theory.responsibilities(mixture, x / problem.schedule.alpha(t), s2)
            likeliest.append(share.argmax(1))
            if 0 < k < len(path.x) - 1:
                centred = mixture.means - (share @ mixture.means)[:, None]
                spread = torch.linalg.eigvalsh(torch.einsum("nk,nki,nkj->nij", share, centred, centred))[:, -1]
                known = torch.where(spread > s2, len(path.x) - 1 - k, known)
        ended = torch.cdist(problem.model(path.x[-1], path.times[-1]).x0, mixture.means).argmin(1)
        right = torch.stack(likeliest).flip(0) == ended  # by steps left
        passed = window.decided >= 0
        after = right.gather(0, (window.decided.clamp_min(1) - 1)[None])[0]  # one step later: decided
        settled.append(wilson(int(after[passed].sum()), int(passed.sum())))
        open_.append(wilson(int(right[window.opens].sum()), n))
        agree.append(wilson(int(((window.decided - known).abs() <= 1).sum()), n))
        ends = [
            f"{window.opens}",
            f"{window.peak}",
            f"{window.closes}",
            f"{window.decided[passed].double().median():.0f}",
        ]
        rows.append([problem.name, *ends, *(short(e[-1]) for e in (open_, settled, agree))])
    settings = ("exact score in 2 dimensions", "exact score in 8", "learned score in 2")
    claims = [
        Claim(
            "future work",
            "the critical time of a sample, after which its mode is settled, can be found from the score alone",
            "an open question",
            "share of the samples whose likeliest mode is already the final one, once their critical time has passed "
            "and when the window opens: "
            + "; ".join(
                f"{where} {short(a)} against {short(b)}" for where, a, b in zip(settings, settled, open_, strict=True)
            ),
            decide(
                (a.low > 0.95 and b.high < a.low for a, b in zip(settled, open_, strict=True)),
                (a.high < 0.95 or b.low > a.high for a, b in zip(settled, open_, strict=True)),
            ),
        ),
        Claim(
            "ours",
            "two transposed Jacobian products per step are enough to find it",
            "",
            "it is within one step of the time given by the posterior covariance of the modes for "
            + ", ".join(short(e) for e in agree)
            + " of the samples",
            decide((e.low > 0.9 for e in agree), (e.high < 0.9 for e in agree)),
        ),
    ]
    heads = ["model", "window opens, steps left", "peaks", "closes", "median critical time, steps left"]
    heads += ["likeliest mode is the final one: when the window opens", "once a sample's critical time has passed"]
    heads += ["critical time within one step of that from the modes"]
    note = (
        "The critical time is the last of the 50 steps at which the largest singular value of alpha d x0_hat / d x is "
        "above 1. From the modes it is the last step at which the largest eigenvalue of the posterior covariance of "
        "their means exceeds s2."
    )
    return Finding("critical-time", "The critical time of each sample", claims, heads, rows, note=note)


def figure_placement(bench: Bench) -> Finding:
    """Place stochastic steps by the critical window, and compare with those set by hand."""
    cases = [
        (learned(), quadratic_50, "quadratic, 50"),
        (exact(), uniform_20, "uniform, 20"),
        (exact(), uniform_50, "uniform, 50"),
    ]
    cases += [(learned("mixture25-8d"), quadratic_50, "quadratic, 50")]
    rows, gains, cheap = [], [], []
    for problem, grid, name in cases:
        window = window_of(problem, Method("", "ddim", grid))
        n = bench.size.n // (2 if problem.name == "mixture25" else 10)
        methods = [
            Method("DDIM", "ddim", grid),
            Method("Escape, by hand", "ddim", grid, Escape),
            Method("Escape, by the window", "ddim", grid, partial(Escape.within, window)),
            Method("hybrid of 5, by hand", hybrid(5).solver, grid),
            Method("noise from the window's peak on", solvers.get("hybrid", noisy=window.peak), grid),
            Method("noise everywhere (eta = 1)", solvers.get("ddim", eta=1.0), grid),
        ]
        found = run(problem, [Request(m, n, bench.size.seed + 5) for m in methods], bench.engine)
        for outcome in found:
            ends = f"{window.opens}, {window.peak}, {window.closes}"
            off = wilson(int((outcome.classes.kind != theory.VALID).sum()), n)
            cells = [percent(outcome.classes.rate()), short(off), f"{outcome.evaluations:.1f}"]
            rows.append([problem.name, name, ends, outcome.label, *cells])
        plain, hand, placed, few, noisy, _ = (o.classes.rate() for o in found)
        if problem.name != "mixture25-8d":
            gains.append((plain, hand, placed))
            cheap.append((few, noisy))
    claims = [
        Claim(
            "ours",
            "Escape placed by the window at least halves the rate in three settings in the plane, with no number "
            "set by hand",
            "",
            "; ".join(f"from {short(a)} to {short(c)} (placed by hand: {short(b)})" for a, b, c in gains),
            decide((c.high < a.low / 2.0 for a, _, c in gains), (c.low > a.high / 2.0 for a, _, c in gains)),
        ),
        Claim(
            "ours",
            "stochastic steps from the window's peak on lower the rate more than five placed by hand, at equal "
            "evaluations",
            "",
            "rate " + "; ".join(f"{short(b)} against {short(a)}" for a, b in cheap),
            decide((b.high < a.low for a, b in cheap), (b.low > a.high for a, b in cheap)),
        ),
    ]
    heads = ["model", "grid", "window opens, peaks, closes", "sampler", "interpolated", "at no mode", "evaluations"]
    return Finding("placement", "Noise placed by the critical window", claims, heads, rows)


def off(outcome: Outcome):
    """Give the share of samples that belong to no mode: interpolated or invalid."""
    return wilson(int((outcome.classes.kind != theory.VALID).sum()), len(outcome.x))


class _Error:
    """A watch of the clean prediction's error against the exact one, in radii of a mode's shell, and of its stretch."""

    def __init__(self, problem: Problem):
        self._exact = problem.mixture.denoiser(problem.schedule)
        self._unit = float(problem.mixture.spread) * problem.mixture.dim**0.5
        self._found: list[Tensor] = []

    def __call__(self, info: StepInfo) -> None:
        if info.remaining in (0, 6, 12, 18):
            miss = info.model(info.x, info.t).x0 - self._exact(info.x, info.t).x0
            self._found.append(miss.norm(dim=1) / self._unit)

    @property
    def found(self) -> Tensor:
        return torch.stack(self._found, 1)


def _swapped(problem: Problem, cut: float, late: Denoiser) -> Problem:
    """Make a model that is the learned one until the path time `cut`, and another one from there on."""

    def net(x: Tensor, time: Tensor, given: object = None) -> Tensor:
        t = float(time[0])
        return (problem.model if t > cut else late)(x, t).x0

    model = Denoiser(net, problem.schedule, prediction="sample", shape=problem.model.shape)
    return Problem(problem.name, model, problem.mixture)


def figure_high(bench: Bench) -> Finding:
    """Find out what the errors in 8 and 32 dimensions are, and whether any sampler at equal calls lowers them."""
    size = bench.size
    n, rows, words, lowest, gaps, saved = (500 if size.quick else 4000), [], [], [], [], []
    for name in ("mixture25-8d", "mixture25-32d"):
        problem = learned(name)
        sharp = problem.mixture.denoiser(problem.schedule)
        for left in (10, 20):
            late = _swapped(problem, quadratic(50).times[-left - 1], sharp)
            (outcome,) = run(late, [Request(ddim(), n, size.seed)])
            rows.append(
                [name, f"DDIM-50, exact score in the last {left} steps", percent(off(outcome)), "", "", "", "50"]
            )
        saved.append(off(outcome))
        window = window_of(problem, ddim())
        methods = [
            ddim(),
            Method("DPM-Solver++(2M)", "dpmpp-2m", quadratic_50),
            Method("UniPC", "unipc", quadratic_50),
            Method("Heun, 25 steps", "heun", partial(quadratic, 26)),
            Method("EES25, 16 steps", "ees25", partial(quadratic, 17)),
            Method("Escape, by the window", "ddim", quadratic_50, partial(Escape.within, window)),
            hybrid(8),
            Method("noise from the window's peak on", solvers.get("hybrid", noisy=window.peak), quadratic_50),
            eta(0.5),
            eta(1.0),
            Method("SDE-DPM-Solver++(2M)", "dpmpp-2m-sde", quadratic_50),
        ]
        watch = partial(_Error, problem)
        requests = [Request(m, n, size.seed, watch=None if m.correct else watch) for m in methods]
        requests.append(Request(DDPM, n // 4, size.seed))
        found = run(problem, requests, bench.engine)
        for outcome in found:
            seen = outcome.found
            errors = ["", "", ""] if seen is None else [f"{seen[:, k].median():.2f}" for k in (-3, -2, -1)]
            rows.append([name, outcome.label, percent(off(outcome)), *errors, f"{outcome.evaluations:.1f}"])
        data, alpha = problem.mixture.sample(n, seed=size.seed + 1), problem.schedule.alpha
        generator, on, off_data = torch.Generator().manual_seed(size.seed), [], data[:, 0]
        for left in (12, 6, 0):
            t = quadratic(50).times[-left - 1]
            x = alpha(t) * data + problem.schedule.sigma(t) * torch.randn(data.shape, generator=generator)
            miss = (problem.model(x, t).x0 - sharp(x, t).x0).norm(dim=1)
            miss = miss / (float(problem.mixture.spread) * problem.mixture.dim**0.5)
            on.append(float(miss.median()))
            off_data = miss if left == 6 else off_data
        rows.append([name, "true noisy data", "", *(f"{v:.2f}" for v in on), ""])
        shares = {o.label: off(o) for o in found}
        plain = shares["DDIM-50"]
        best = min((k for k in shares if k != "DDPM-1000"), key=lambda k: shares[k].value)
        quiet = [shares[k] for k in ("DPM-Solver++(2M)", "UniPC", "Heun, 25 steps", "EES25, 16 steps")]
        lowest.append((plain, shares[best], best, all(q.low > plain.high - 0.05 for q in quiet)))
        along = found[0].found
        assert along is not None  # it was watched
        ratio = average((along[:, -2].log() - off_data.log()).double())
        factor = Estimate(*(math.exp(v) for v in (ratio.value, ratio.low, ratio.high)))
        gaps.append((factor, float(along[:, -2].median()), on[1]))
        words.append(f"from {short(plain)} to {short(saved[-1])}")
    claims = [
        Claim(
            "ours",
            "in 8 and 32 dimensions the fault lies in the score late in a run, not in the sampler",
            "",
            f"with the exact score in the last 20 of 50 steps, the share of samples at no mode falls "
            f"{'; '.join(words)}",
            decide((e.high < 0.05 for e in saved), (e.low > 0.05 for e in saved)),
        ),
        Claim(
            "ours",
            "the score is wrong off the data manifold: its error is larger along DDIM's trajectories than on true "
            "noisy data",
            "",
            "6 steps before the end, the median error of the clean prediction is "
            + "; ".join(
                f"{b:.2f} radii of a mode's shell, against {c:.2f} on true noisy data ({a} times as large in the "
                "geometric mean)"
                for a, b, c in gaps
            ),
            decide((a.low > 1.0 for a, _, _ in gaps), (a.high < 1.0 for a, _, _ in gaps)),
        ),
        Claim(
            "ours",
            "no deterministic sampler with 50 evaluations lowers the share at no mode; noise does, because it takes "
            "states back to where the score was trained",
            "",
            "; ".join(f"DDIM {short(a)}, the best ({c}) {short(b)}" for a, b, c, _ in lowest),
            decide(
                (b.high < a.low and same for a, b, _, same in lowest),
                (b.high > a.low or not same for a, b, _, same in lowest),
            ),
        ),
    ]
    heads = ["model", "sampler", "at no mode", "error with 12 steps left", "with 6 left", "with 0 left", "evaluations"]
    note = (
        "At no mode: interpolated or invalid. Error: the clean prediction's distance from the exact one at the same "
        "state, in radii of a mode's shell (medians)."
    )
    return Finding("high-dimensions", "What goes wrong in 8 and 32 dimensions", claims, heads, rows, note=note)


def figure_images(bench: Bench) -> Finding:
    """Find out when a wrong count of triangles is decided, and whether any sampler of 50 calls lowers it."""
    model, size, rows = load("triangles"), bench.size, []
    n = size.images // 2
    grid, real = quadratic(50), triangles(n, seed=size.seed + 31)
    starts = (10, 20, 30, 40, 49)

    def redrawn(left: int) -> int:
        t = grid.times[-left - 1]
        generator = torch.Generator().manual_seed(size.seed + left)
        x = model.schedule.alpha(t) * real + model.schedule.sigma(t) * torch.randn(real.shape, generator=generator)
        some = Grid(tuple(v for v in grid.times if v <= t))
        wrong = 0
        for part in x.split(50):
            states = sample(model, x=part, grid=some, solver="ddim", end="path", progress=False)
            wrong += int((count_shapes(model(states.x, some.times[-1]).x0) != 3).sum())
        return wrong

    again = [wilson(wrong, n) for wrong in bench.map(redrawn, starts)]
    for left, share in zip(starts, again, strict=True):
        rows.append([f"real images, noised to {left} steps left", percent(share), f"{left + 1}", ""])
    window = critical_window(model, n=32, solver="ddim", grid=grid, noise="white", end="path", seed=size.seed + 3)
    methods = [
        ddim(),
        Method("DPM-Solver++(2M)", "dpmpp-2m", quadratic_50),
        Method("Escape, by hand", "ddim", quadratic_50, Escape),
        Method("Escape, by the window", "ddim", quadratic_50, partial(Escape.within, window)),
        Method("noise from the window's peak on", solvers.get("hybrid", noisy=window.peak), quadratic_50),
        eta(1.0),
    ]
    if not size.quick:
        methods.append(DDPM_250)
    found = counted(bench, "images", [("triangles", m) for m in methods], n)
    for method, count in zip(methods, found, strict=True):
        held = "" if count.held is None else f"{count.held / count.n:.1%}"
        rows.append([method.label, percent(count.share), f"{count.evaluations:.1f}", held])
    plain, others = found[0].share, [c.share for c in found[1:] if c.evaluations < 60]
    lower = [m.label for m, c in zip(methods, found, strict=True) if c.evaluations < 60 and c.share.high < plain.low]
    claims = [
        Claim(
            "ours",
            "a wrong count is decided early, together with the layout: noise late in a run comes too late",
            "",
            f"of real images noised to {starts[1]} steps left, {short(again[1])} come back with a wrong count; of "
            f"those noised to {starts[-1]} left, {short(again[-1])}; of images drawn from noise, {short(plain)}",
            decide(
                [again[1].high < 0.1 and again[1].high < plain.low], [again[1].low > 0.1 or again[1].high > plain.low]
            ),
        ),
        Claim(
            "ours",
            "some sampler with about 50 evaluations lowers the share of wrong counts",
            "",
            f"DDIM-50: {short(plain)}; the lowest of {len(others)} others: {short(min(others, key=lambda e: e.value))}"
            + (f"; lower: {', '.join(lower)}" if lower else "; none has its whole interval below DDIM-50's"),
            HOLDS if lower else FAILS if all(e.low > plain.high - 0.25 for e in others) else OPEN,
        ),
    ]
    heads = ["start and sampler", "wrong count", "evaluations", "held at a saddle"]
    ends = f"opens with {window.opens} steps left, peaks at {window.peak} and closes at {window.closes}"
    note = f"The critical window of this model {ends}."
    return Finding("images", "When a wrong number of triangles is decided", claims, heads, rows, note=note)
