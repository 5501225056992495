"""Posteriors under linear Gaussian measurements: exact distances on mixtures, and pictures beside a regression.

    python benchmarks/posteriors.py [--quick] [--part mixtures|pictures]

First, on Gaussian mixtures in 2, 16 and 64 dimensions whose posteriors are known exactly, the Wasserstein-2 distance
(by optimal assignment) between as many samples of a method and of the exact posterior, against model evaluations, in
which a transposed product counts as two. The floor is the distance between two independent sets of exact samples. In
many dimensions samples that are too close together come below it, which the spread shows: their total variance over
the exact one. Then pictures: inpainting and super-resolution of held-out digits and faces, beside linear regression,
with the coverage of the truth by the samples.

azula (Rozet et al.), with the MMPS of its authors, runs on the same models from the same starts, in uniform steps of
the path's time, its default. Its DPS divides by the norm of the whole batch's residual, so that its zeta is given as
the square root of the batch here, to be 1 for each sample.
"""

import argparse
import math
import sys
import time
import warnings

import azula
import numpy as np
import torch
from azula.denoise import Denoiser as AzulaDenoiser
from azula.denoise import DiracPosterior
from azula.guidance import DPSSampler, MMPSDenoiser, PGDMSampler
from azula.linalg.covariance import IsotropicCovariance
from azula.sample import DDIMSampler, DDPMSampler
from scipy.optimize import linear_sum_assignment

import steadyflow as sf
from steadyflow import operators
from steadyflow.corrections import Posterior
from steadyflow.datasets import digits
from steadyflow_lab.datasets import faces

SCHEDULE = sf.VPCosine()
OURS = [
    ("mmps, 3 rounds", {"method": "mmps", "iterations": 3}, ("ddim", "ees25", "ddpm")),
    ("mmps, 1 round", {"method": "mmps", "iterations": 1}, ("ddim", "ees25", "ddpm")),
    ("pigdm", {"method": "pigdm"}, ("ddim", "ees25", "ddpm")),
    ("dps", {"method": "dps"}, ("ddim", "ees25", "ddpm")),
    ("ddrm", {"method": "ddrm"}, ("ddim",)),
]
STAGES = {"ddim": 1, "ddpm": 1, "ees25": 3}
PRODUCTS = {"mmps, 3 rounds": 3, "mmps, 1 round": 1, "pigdm": 1, "dps": 1, "ddrm": 0}
THEIRS = [
    ("azula MMPS, 3 rounds", "ddim", 9),
    ("azula MMPS, 3 rounds", "ddpm", 9),
    ("azula MMPS, 1 round", "ddim", 5),
    ("azula MMPS, 1 round", "ddpm", 5),
    ("azula PGDM", "ddim", 3),
    ("azula DPS", "ddpm", 3),
]
"""Name, solver and evaluations per step: its MMPS takes one product more than there are rounds."""


class Wrapped(AzulaDenoiser):
    """One of our models as azula takes them: vectors, and a time in [0, 1]."""

    def __init__(self, model):
        super().__init__()
        self.model, self.calls = model, 0

    def _when(self, t):
        low, high = self.model.schedule.t_range
        return min(max(low + (high - low) * float(t), low), high)

    def schedule(self, t):
        level = self.model.schedule.at(self._when(t))
        return torch.tensor(level.alpha), torch.tensor(level.sigma)

    def forward(self, x_t, t, **kwargs):
        x = x_t.view(len(x_t), *self.model.shape)
        return DiracPosterior(mean=self.model(x, self._when(t)).x0.view_as(x_t))


def azula_samples(name, solver, model, operator, y, noise, steps, start):
    """Samples by azula, flat, or None where it fails."""
    shape = model.shape
    flat = Wrapped(model)

    def measure(v):
        return operator(v.view(len(v), *shape)).flatten(1)

    how = {"steps": steps, "silent": True}
    if "MMPS" in name:
        covariance = IsotropicCovariance(torch.tensor(noise**2, dtype=y.dtype))
        rounds = int(name.split(", ")[1].split(" ")[0])
        inner = MMPSDenoiser(flat, y.flatten(1), measure, covariance, iterations=rounds)
        sampler = (DDIMSampler if solver == "ddim" else DDPMSampler)(inner, **how)
    elif "PGDM" in name:
        inverse = torch.linalg.pinv(operator.matrix(shape)).to(y)
        sampler = PGDMSampler(flat, y.flatten(1), measure, lambda v: v @ inverse.T, **how)
    else:
        sampler = DPSSampler(flat, y.flatten(1), measure, zeta=math.sqrt(len(start)), **how)
    torch.manual_seed(0)
    found = sampler(start)
    return found if bool(found.isfinite().all()) else None


def distance(a, b):
    """The Wasserstein-2 distance of two sets of as many points, by optimal assignment."""
    costs = torch.cdist(a, b).square().numpy()
    rows, columns = linear_sum_assignment(costs)
    return float(np.sqrt(costs[rows, columns].mean()))


def problem(dim, number):
    """A mixture of eight components in `dim` dimensions, m = dim / 2 measurements of it, and one of them made."""
    random = torch.Generator().manual_seed(dim)
    means = torch.randn(8, dim, generator=random, dtype=torch.float64)
    std = 0.15 + 0.25 * torch.rand(8, dim, generator=random, dtype=torch.float64)
    mixture = sf.GaussianMixture(means, std)
    here = torch.Generator().manual_seed(1000 * dim + number)
    matrix = torch.randn(max(1, dim // 2), dim, generator=here, dtype=torch.float64) / math.sqrt(dim)
    truth = mixture.sample(1, seed=5, index=number)
    y = truth @ matrix.T + NOISE * torch.randn(1, len(matrix), generator=here, dtype=torch.float64)
    return mixture, matrix, y


NOISE = 0.1


def mixtures(dims, budgets, count, n):
    """{dim: (floor, {row: {budget: [distances over the measurements]}}, {row: seconds at the last budget})}."""
    found = {}
    for dim in dims:
        floors, rows, about = [], {}, {}
        for number in range(count):
            mixture, matrix, y = problem(dim, number)
            law = mixture.posterior(matrix, y, NOISE)
            exact, other = law.sample(n, seed=1), law.sample(n, seed=2)
            floors.append(distance(exact, other))
            model, operator = mixture.denoiser(SCHEDULE), operators.Matrix(matrix)
            start = SCHEDULE.at(SCHEDULE.t_max).sigma * torch.randn(
                n, dim, generator=torch.Generator().manual_seed(number), dtype=torch.float64
            )
            for budget in budgets:
                for name, options, solvers in OURS:
                    for solver in solvers:
                        calls = budget // (1 + 2 * PRODUCTS[name])
                        if calls < STAGES[solver] + 1:
                            continue
                        began = time.perf_counter()
                        x = ours(model, operator, y, options, solver, calls, start)
                        note(rows, about, (name, solver), budget, x, (exact, law), time.perf_counter() - began)
                for name, solver, cost in THEIRS:
                    if budget // cost < 2:
                        continue
                    began = time.perf_counter()
                    x = azula_samples(name, solver, model, operator, y, NOISE, budget // cost, start)
                    note(rows, about, (name, solver), budget, x, (exact, law), time.perf_counter() - began)
        found[dim] = floors, rows, about
    return found


def ours(model, operator, y, options, solver, calls, start, noise=NOISE):
    """Samples of ours, or None where the run diverges."""
    try:
        how = Posterior(operator, y, noise, **options)
        return sf.sample(model, x=start, nfe=calls, solver=solver, corrections=[how], progress=False, batch_size=500).x
    except sf.NonFiniteError:
        return None


def note(rows, about, row, budget, x, aim, took):
    """Keep a distance, the spread of the samples, and the time."""
    exact, law = aim
    rows.setdefault(row, {}).setdefault(budget, []).append(math.inf if x is None else distance(x, exact))
    spread = math.nan if x is None else float(x.var(0).sum() / law.covariance().trace())
    about.setdefault(row, {}).setdefault(budget, []).append((spread, took))


def middle(values):
    """The median and the quartiles."""
    return tuple(float(v) for v in np.quantile(values, (0.5, 0.25, 0.75), method="nearest"))


def table(heads, lines):
    widths = [max(len(line[k]) for line in [heads, *lines]) for k in range(len(heads))]
    cells = [[cell.ljust(w) for cell, w in zip(line, widths, strict=True)] for line in [heads, *lines]]
    rule = ["-" * w for w in widths]
    return "\n".join("| " + " | ".join(line) + " |" for line in [cells[0], rule, *cells[1:]])


def shown(values):
    mid, low, high = middle(values)
    if not math.isfinite(mid):
        return "diverges"
    return f"{mid:.2f} ({low:.2f}-{high:.2f})" if math.isfinite(high) else f"{mid:.2f} ({low:.2f}-div.)"


def print_mixtures(found, budgets):
    for dim, (floors, rows, about) in found.items():
        floor = middle(floors)
        print(f"\nMixture of 8 in {dim} dimensions, {max(1, dim // 2)} measurements, noise {NOISE}: W2 to the exact")
        print(f"posterior by evaluations, median (quartiles) over {len(floors)} y. Floor {shown(floors)}.\n")
        lines = []
        for row, by in rows.items():
            spread, took = np.median(about[row][budgets[-1]], 0) if budgets[-1] in by else (math.nan, math.nan)
            lines.append([*row, *(shown(by[b]) if b in by else "" for b in budgets), f"{spread:.2f}", f"{took:.2f}"])
        print(table(["method", "solver", *map(str, budgets), "spread", f"s at {budgets[-1]}"], lines))
        summarise(floor[0], rows, about, budgets)


def summarise(floor, rows, about, budgets):
    """What the table shows, in sentences that are made of its numbers."""
    last, middle_budget = budgets[-1], budgets[(len(budgets) - 1) // 2]

    def best(name, budget):
        there = [(middle(by[budget])[0], row[1]) for row, by in rows.items() if row[0] == name and budget in by]
        return min(there) if there else (math.inf, "none")

    print()
    for name in dict.fromkeys(row[0] for row in rows):
        (far, solver), (half, half_solver) = best(name, last), best(name, middle_budget)
        words = "reaches the floor" if far <= 1.15 * floor else f"stays {far / floor:.1f} times above the floor"
        spread = np.median(about[name, solver][last], 0)[0] if (name, solver) in about else math.nan
        words += f", with a spread of {spread:.2f}"
        print(
            f"{name}: at {last} evaluations its best solver ({solver}) is at {far:.2f} and {words}; at {middle_budget} "
            f"({half_solver}) at {half:.2f}."
        )
    for mine, other in (("mmps, 3 rounds", "azula MMPS, 3 rounds"), ("mmps, 1 round", "azula MMPS, 1 round"),
                        ("pigdm", "azula PGDM"), ("dps", "azula DPS")):  # fmt: skip
        wins = sum(best(mine, b)[0] < best(other, b)[0] for b in budgets)
        print(f"{mine} is nearer than {other} at {wins} of {len(budgets)} budgets.")


TASKS = {
    "inpaint": lambda side: operators.Inpainting(_hole(side)),
    "superres": lambda side: operators.Downsampling(2),
}
DAMAGE = 0.05
SAMPLES = 20


def _hole(side):
    """All but the middle of a picture, half its side wide."""
    mask = torch.ones(1, side, side, dtype=torch.bool)
    mask[:, side // 4 : side - side // 4, side // 4 : side - side // 4] = False
    return mask


def regression(train, operator, noise, ridge=1e-3):
    """The linear map from measurements to pictures that is best on training pictures: least squares with a ridge."""
    flat = train.flatten(1).double()
    mean, matrix = flat.mean(0), operator.matrix(train.shape[1:])
    covariance = torch.cov(flat.T) + ridge * torch.eye(flat.shape[1], dtype=torch.float64)
    system = matrix @ covariance @ matrix.T + noise**2 * torch.eye(len(matrix), dtype=torch.float64)
    gain = torch.linalg.solve(system, matrix @ covariance).T
    return lambda y: (mean + (y.flatten(1).double() - mean @ matrix.T) @ gain.T).float().view(-1, *train.shape[1:])


def psnr(x, truth):
    """Decibels per picture; the range of values is 2."""
    return 10.0 * torch.log10(4.0 / (x - truth).square().flatten(1).mean(1))


def pictures(quick):
    calls, nominal = 48, 100.0 * (SAMPLES - 3) / (SAMPLES + 1)
    print(
        f"\n\nHeld-out pictures, noise {DAMAGE}, {calls} calls of the solver, {SAMPLES} samples each: PSNR in dB of a"
    )
    print(
        "sample and of the samples' mean (means over the pictures), the median misfit (1 is right), and how often the"
    )
    print("truth of a pixel lies within the second and the last but one of the samples, in %, with its standard error")
    print(f"over the pictures ({nominal:.0f} is right); for inpainting, of the pixels that are missing.")
    sets = {
        "digits": (sf.load("digits"), digits("train")[0], digits("held-out")[0], 6 if quick else 40),
        "faces": (sf.load("faces").with_condition(1), *_faces(), 2 if quick else 8),
    }
    for name, (model, train, held_out, count) in sets.items():
        truth = held_out[:count]
        for task, make in TASKS.items():
            operator = make(truth.shape[-1])
            y = operator(truth)
            y = y + DAMAGE * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
            base = psnr(regression(train, operator, DAMAGE)(y), truth)
            lines = {("linear regression", ""): (["", f"{float(base.mean()):.1f}", "", "", ""], base)}
            for row, *found in picture_rows(model, operator, task, y, truth, calls, float(train.var())):
                lines[row] = found
            print(f"\n{name}, {task}, {count} pictures\n")
            heads = ["method", "solver", "sample", "mean", "misfit", "coverage", "s"]
            print(table(heads, [[*row, *cells] for row, (cells, _) in lines.items()]))
            conclude(lines, base, nominal)


def _faces():
    images, labels = faces("train")
    return images[labels == 1], faces("held-out")[0]


def picture_rows(model, operator, task, y, truth, calls, variance):
    many, wide = y.repeat_interleave(SAMPLES, 0), truth.shape[-1] > 8
    start = model.schedule.at(model.schedule.t_max).sigma * torch.randn(
        len(many), *truth.shape[1:], generator=torch.Generator().manual_seed(1)
    )
    missing = ~operator.mask.expand(truth.shape[1:]) if task == "inpaint" else torch.ones(truth.shape[1:]).bool()
    for name, options, solvers in OURS:
        options = {**options, **({"prior_variance": variance} if name == "pigdm" else {})}
        for solver in solvers[-1:] if wide or name == "mmps, 1 round" else solvers:
            began = time.perf_counter()
            x = ours(model, operator, many, options, solver, calls, start, DAMAGE)
            yield (name, solver), *picture_row(x, truth, operator, y, missing, time.perf_counter() - began)
    for name, solver, _ in THEIRS:
        if wide and "MMPS" in name and solver == "ddim":
            continue
        began = time.perf_counter()
        x = azula_samples(name, solver, model, operator, many, DAMAGE, calls, start.flatten(1))
        x = None if x is None else x.view_as(start)
        yield (name, solver), *picture_row(x, truth, operator, y, missing, time.perf_counter() - began)


def picture_row(x, truth, operator, y, missing, took):
    """The cells of a row, and the PSNR of the mean of the samples for each picture."""
    if x is None:
        return ["diverges", "", "", "", f"{took:.1f}"], None
    by = x.view(len(truth), SAMPLES, *truth.shape[1:])
    misfit = Posterior(operator, y.repeat_interleave(SAMPLES, 0), DAMAGE).misfit(x)
    order = by.sort(1).values
    within = ((truth >= order[:, 1]) & (truth <= order[:, -2]))[:, missing].float().mean(1)
    error = float(within.std() / math.sqrt(len(within)))
    one, mean = psnr(by[:, 0], truth).mean(), psnr(by.mean(1), truth)
    cells = [f"{float(one):.1f}", f"{float(mean.mean()):.1f}", f"{float(misfit.median()):.2f}"]
    return [*cells, f"{100 * float(within.mean()):.0f} +- {100 * error:.1f}", f"{took:.1f}"], mean


def conclude(lines, base, nominal):
    """What the table shows, made of its numbers; differences are paired by picture."""
    rows = {row: found for row, found in lines.items() if row[1] and found[1] is not None}
    best = max(rows, key=lambda row: float(rows[row][1].mean()))
    near = min(rows, key=lambda row: abs(float(rows[row][0][3].split(" ")[0]) - nominal))
    gaps = {row: found[1] - base for row, found in rows.items()}
    sure = {row: float(gap.mean() / (gap.std() / math.sqrt(len(gap)))) for row, gap in gaps.items()}
    gap = gaps[best]
    print(
        f"\nThe best mean of samples is that of {best[0]} ({best[1]}), {float(gap.mean()):+.1f} +- "
        f"{float(gap.std() / math.sqrt(len(gap))):.1f} dB against the regression."
    )
    for words, chosen in (("above", [r for r in rows if sure[r] > 2]), ("below", [r for r in rows if sure[r] < -2])):
        named = ", ".join(f"{row[0]} ({row[1]})" for row in chosen) or "none"
        print(f"By more than two standard errors {words} the regression: {named}.")
    print(f"The coverage nearest to {nominal:.0f} % is that of {near[0]} ({near[1]}), {rows[near][0][3]} %.")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--part", choices=["mixtures", "pictures"])
    given = parser.parse_args()
    quick = given.quick
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(
        f"steadyflow {sf.__version__}, azula {getattr(azula, '__version__', '')}; {'quick' if quick else 'full'} form"
    )
    budgets = (16, 64) if quick else (8, 16, 32, 64, 128, 256)
    if given.part != "pictures":
        for dim in (2, 16, 64):
            print_mixtures(mixtures((dim,), budgets, 2 if quick else 6, 100 if quick else 250), budgets)
            sys.stdout.flush()
    if given.part != "mixtures":
        pictures(quick)


if __name__ == "__main__":
    main()
