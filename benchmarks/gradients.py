"""Error, memory and time of gradients through runs (`sf.Adjoint`):

    python benchmarks/gradients.py [--full] [part ...]

Parts: errors, memory, seconds, peers, times. All by default, six minutes of one core; --full has more steps,
scales and rounds, and takes several times as long. Parts that were run one by one, each into a file PART.txt of a
folder, are put together by --read FOLDER.

errors   The gradient of a random weighting of a run's end, with respect to the start, the condition, the scale of
         guidance (a tensor) and the network's parameters, by plain back-propagation (adjoint="none") in float64, and
         by every adjoint. An error is that of the worst of the four, the norm of the difference over the norm. The
         float32 columns are against the float64 gradient as well, with what plain back-propagation in float32 is off
         by beside them. The network is a random one on 16 numbers, bounded and a function of x, time and condition.
times    The gradient with respect to a grid's times, against differences of the whole run, of sixth order.
memory   Bytes of tensors that are held between forward and backward, and at most during backward, by the profiler's
         record of every allocation.
seconds  Forward and backward against plain back-propagation, all kinds in turns; the median of the rounds' ratios,
         and in brackets an interval that holds it with 95 % confidence (order statistics).
peers    torchdiffeq and torchsde (where they are installed) on the field of a small network that is first trained
         on digits, over the same times in the same coordinates. An adjoint is compared with plain back-propagation of
         the same run of the same package. torchsde's drift is that field, its noise g is 0 (the same run as ours), or
         0.1, for which only its own error is told.
"""

import argparse
import copy
import dataclasses
import gc
import importlib.util
import math
import statistics
import time
import warnings
from functools import partial
from pathlib import Path

import torch
from memory_record import changes
from timing import keep_memory

import steadyflow as sf
from steadyflow import solvers
from steadyflow.coordinates import FLOW, NOISE
from steadyflow.corrections import Relaxed
from steadyflow.datasets import digits
from steadyflow.models.networks import ResidualMLP, UNet

DIM, GIVEN, BATCH = 16, 4, 3
PATHS = {
    "VP": (sf.VPLinear(), "v_prediction"),
    "cosine": (sf.VPCosine(), "v_prediction"),
    "VE": (sf.VE(), "sample"),
    "flow": (sf.RectifiedFlow(), "flow"),
}
SHORT = {  # part of a message: what the tables say
    "iterates until": "iterates",
    "fresh noise": "noise",
    "it has no inverse": "no inverse",
    "earlier predictions": "multistep",
    "predicted to amplify": "rounding",
    "is not exact, and of order 2": "order 2",
}
REASONS = (
    "iterates: the number of rounds may differ;  noise: fresh noise at every step;  multistep: goes on from earlier "
    "predictions;\nrounding: the inverse would amplify rounding errors beyond bearing (cells so refused / cells)"
)
LONGER = [("VP", 3.0, 50), ("cosine", 3.0, 20), ("VE", 1.0, 20), ("flow", 3.0, 50)]
WIDE = ("ddim", "ees25", "unipc", "ddpm", "rex-midpoint, auto", "edict, auto", "bdia, auto")
"""The solvers that run over all paths and numbers of steps."""
TARGETS = {"float64": 1e-10, "float32": 1e-4, "checkpoint": 2.2, "reversible": 3.2}
CENTRAL = ((1, 0.75), (2, -0.15), (3, 1.0 / 60.0))
WIDTHS = (3e-3, 3e-4, 3e-5)
"""Of differences in times; the narrower ones where the first is off, and the one that is the nearest counts."""
SAID = []


class Net(torch.nn.Module):
    """A smooth bounded function of x, time and condition."""

    def __init__(self, width=24):
        super().__init__()
        self.enter, self.given = torch.nn.Linear(DIM, width), torch.nn.Linear(GIVEN, width)
        self.time, self.leave = torch.nn.Linear(2, width), torch.nn.Linear(width, DIM)

    def forward(self, x, t, given):
        scaled = 2.0 * x * (1.0 + x.square().mean(1, keepdim=True)).rsqrt()
        when = self.time(torch.stack([t.sin(), t.cos()], 1))
        return 2.0 * self.leave(torch.tanh(self.enter(scaled) + self.given(given) + when))


class Problem:
    """A run on a random network: `gradient` of its end's weighting, one tensor for each kind of input."""

    names = ("start", "condition", "guidance", "parameters")

    def __init__(self, path, guidance):
        generator = torch.Generator().manual_seed(0)
        draw = partial(torch.randn, generator=generator)
        torch.manual_seed(1)
        self.net, self.guidance = Net(), guidance
        self.schedule, self.prediction = PATHS[path]
        self.x = self.schedule.at(self.schedule.t_range[1]).sigma * draw(BATCH, DIM)
        self.given, self.null, self.weights = draw(BATCH, GIVEN), draw(1, GIVEN), draw(BATCH, DIM)
        self.nets = {torch.float32: self.net, torch.float64: copy.deepcopy(self.net).double()}

    def inputs(self, dtype):
        leaves = [part.to(dtype).requires_grad_() for part in (self.x, self.given, torch.tensor(self.guidance))]
        return leaves, list(self.nets[dtype].parameters())

    def end(self, solver, leaves, dtype, **options):
        x, given, scale = leaves
        model = sf.Denoiser(self.nets[dtype], self.schedule, self.prediction, (DIM,), null=self.null.to(dtype))
        model = model.with_condition(given).with_guidance(scale)
        return sf.sample(model, x=x, solver=solver, seed=0, **options).x

    def gradient(self, solver, dtype, twice=False, **options):
        leaves, parameters = self.inputs(dtype)
        loss = (self.end(solver, leaves, dtype, **options) * self.weights.to(dtype)).sum()
        sources = [*leaves, *parameters]
        found = torch.autograd.grad(loss, sources, create_graph=twice)
        if twice:  # a product of the Hessian with a direction
            loss = sum((part * torch.sin(1.0 + torch.arange(part.numel()).view(part.shape))).sum() for part in found)
            found = torch.autograd.grad(loss, sources)
        return [*found[:3], torch.cat([part.flatten() for part in found[3:]])]


def error(found, truth):
    """The largest relative difference of two gradients, over the kinds of input."""
    parts = zip(found, truth, strict=True)
    return max(((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-300)).item() for a, b in parts)


def reason(problem):
    text = str(problem)
    return next((short for part, short in SHORT.items() if part in text), type(problem).__name__)


def table(heads, rows):
    """Print columns, the first to the left."""
    cells = [heads, *rows]
    widths = [max(len(str(row[k])) for row in cells) for k in range(len(heads))]
    for row in cells:
        text = [
            str(c).ljust(w) if k == 0 else str(c).rjust(w) for k, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(text).rstrip())
    print(flush=True)


def say(text):
    """A finding, which is printed at the end as well."""
    SAID.append(text)
    print(text, "\n", flush=True)


def size(value):
    return "" if value is None else "0" if value == 0.0 else f"{value:.0e}"


ADJOINTS = {
    "checkpoint": lambda: sf.Adjoint("checkpoint"),
    "sqrt": lambda: sf.Adjoint("checkpoint", every="sqrt"),
    "reversible": lambda: sf.Adjoint("reversible"),
}


def labelled():
    """The solvers of the table: all registered ones, and the exactly reversible ones with an automatic coupling."""
    found = {name: solvers.get(name) for name in solvers.names()}
    for name, solver in list(found.items()):
        fields = {field.name for field in dataclasses.fields(solver)}
        if solver.properties.inverse == "exact" and not solver.properties.stochastic and "coupling" in fields:
            flow = {"coordinates": "flow"} if "coordinates" in fields else {}
            found[f"{name}, auto"] = solvers.get(name, coupling="auto", **flow)
    return found


class Tally:
    """What the cells of one solver gave."""

    def __init__(self):
        self.worst, self.where, self.refused, self.cells = {}, {}, {}, 0
        self.drifts, self.silent, self.plain_refused = [], [], []

    def see(self, key, value, where=""):
        value = math.inf if math.isnan(value) else value
        if value >= self.worst.get(key, 0.0):
            self.worst[key], self.where[key] = value, where


def measure(tally, problem, solver, where="", sqrt=True, **options):
    """Add one cell: every adjoint in both precisions, against plain back-propagation in float64."""
    try:
        truth = problem.gradient(solver, torch.float64, adjoint="none", **options)
        tally.see("plain 32", error(problem.gradient(solver, torch.float32, adjoint="none", **options), truth))
    except sf.SteadyflowError as refused:
        tally.plain_refused.append(reason(refused))
        return
    tally.cells += 1
    for name, make in ADJOINTS.items():
        if name == "sqrt" and not sqrt:
            continue
        for dtype in (torch.float64, torch.float32)[: 1 if name == "sqrt" else 2]:
            how = make()
            key = f"{name} {32 if dtype is torch.float32 else 64}"
            try:
                off = error(problem.gradient(solver, dtype, adjoint=how, **options), truth)
            except sf.SteadyflowError as refused:
                why = reason(refused)
                tally.refused.setdefault(key, []).append(why)
                if why in SHORT.values() and why != "rounding":
                    break
                continue
            tally.see(key, off, where)
            if name == "reversible":
                drift = how.record.drift[-1]
                most = how.most(dtype, solvers.get(solver).properties.inverse == "exact")
                tally.silent += [(key[-2:], where, drift, off)] if off > 0.1 and drift <= most else []
                if dtype is torch.float64:
                    tally.drifts.append((drift, off))


def row(title, tally):
    def cell(key):
        refused = tally.refused.get(
            key, tally.refused.get(key.replace("32", "64"), []) if key not in tally.worst else []
        )
        found = size(tally.worst[key]) if key in tally.worst else ""
        if not refused:
            return found
        why = ", ".join(dict.fromkeys(refused))
        return why if not found and why != "rounding" else f"{found or '-'} ({why} {len(refused)}/{tally.cells})"

    drift = size(max(d for d, _ in tally.drifts)) if tally.drifts else ""
    over = [off for d, off in tally.drifts if off > max(d, 1e-10)]
    keys = ("checkpoint 64", "sqrt 64", "reversible 64", "plain 32", "checkpoint 32", "reversible 32")
    above = f"{len(over)}/{len(tally.drifts)}" if tally.drifts else ""
    return [title, *(cell(key) for key in keys), drift, above]


def errors(full):
    """Part 1."""
    steps, both = (5, 10, 20, 50), (1.0, 3.0)
    everything = [(path, guidance, n) for path in PATHS for guidance in both for n in steps]
    cells = [("VP", 3.0, 5), ("cosine", 1.0, 10), ("VE", 3.0, 10), ("flow", 3.0, 5)]
    if full:
        cells = [(path, g, n) for path in PATHS for g, n in ((1.0, 5), (3.0, 10), (1.0, 20))]
    print("1. Error of the gradient\n")
    print("cells (path, guidance, steps): " + "; ".join(f"{p} {g:g} {n}" for p, g, n in cells))
    many = "all paths, scales 1 3, steps 5 10 20 50" if full else "; ".join(f"{p} {g:g} {n}" for p, g, n in LONGER)
    print(
        f"rows 'all cells', 'longer': {many}\n{REASONS}\n"
        "drift: largest of `record.drift`;  above: cells whose error exceeds their drift (and 1e-10)\n"
    )
    heads = ["solver", "checkpoint", "sqrt", "reversible", "plain f32", "checkpoint f32", "reversible f32"]
    heads += ["drift", "above"]
    problems = {(path, guidance): Problem(path, guidance) for path in PATHS for guidance in both}
    found, rows = {}, []
    for title, solver in labelled().items():
        tally = found[title] = Tally()
        for path, guidance, n in cells:
            measure(tally, problems[path, guidance], solver, f"{path} {guidance:g} {n}", full or n > 5, steps=n)
        rows.append(row(title, tally))
    others = further({key: problems[key] for key in dict.fromkeys(cell[:2] for cell in cells)})
    for title in WIDE:
        tally = others[f"{title}, {'all cells' if full else 'longer'}"] = Tally()
        for path, guidance, n in everything if full else LONGER:
            measure(tally, problems[path, guidance], labelled()[title], f"{path} {guidance:g} {n}", steps=n)
    table(heads, [*rows, *(row(title, tally) for title, tally in others.items())])
    for title, tally in found.items():
        if tally.plain_refused:
            print(
                f"{title}: {len(tally.plain_refused)} cells are refused whatever the adjoint: {tally.plain_refused[0]}"
            )
    second({key: problems[key] for key in dict.fromkeys(cell[:2] for cell in cells)})
    judge({**found, **others}, len(cells))


def further(problems):
    """Adaptive steps, corrections, and a trained network."""
    found = {}
    for name in ("dopri5", "bogacki-shampine"):
        tally = found[f"{name}, adaptive"] = Tally()
        for (path, scale), problem in problems.items():
            measure(
                tally, problem, solvers.get(name), f"{path} {scale:g}", steps=sf.PIDController(rtol=1e-3, atol=1e-3)
            )
    for name in ("ddim", "ees25", "ddpm", "dpmpp-2m"):
        tally = found[f"{name}, Relaxed"] = Tally()
        for (path, scale), problem in problems.items():
            measure(tally, problem, solvers.get(name), f"{path} {scale:g} 10", steps=10, corrections=[Relaxed(1.05)])
    for name in ("ddim", "ees25", "ees27", "ddpm"):
        tally = found[f"{name}, digits model"] = Tally()
        for n in (5, 20):
            measure(tally, Digits(), solvers.get(name), steps=n)
    tally = found["rex-midpoint, auto, digits model"] = Tally()
    for n in (5, 20):
        measure(tally, Digits(), solvers.get("rex-midpoint", coupling="auto", coordinates="flow"), steps=n)
    return found


class Digits(Problem):
    """A run on the bundled digits model, without a gradient of its labels."""

    def __init__(self):
        self.model, generator = sf.load("digits"), torch.Generator().manual_seed(0)
        draw = partial(torch.randn, generator=generator)
        self.x, self.weights, self.guidance = draw(BATCH, 1, 8, 8), draw(BATCH, 1, 8, 8), 3.0
        net = self.model.net.requires_grad_(True)
        self.nets = {torch.float32: net, torch.float64: copy.deepcopy(net).double()}

    def inputs(self, dtype):
        leaves = [part.to(dtype).requires_grad_() for part in (self.x, torch.tensor(self.guidance))]
        table = self.nets[dtype].label.weight  # what labels become
        return [leaves[0], table, leaves[1]], [p for p in self.nets[dtype].parameters() if p is not table]

    def end(self, solver, leaves, dtype, **options):
        model = dataclasses.replace(self.model, net=self.nets[dtype], dtype=dtype)
        model = model.with_condition([3, 5, 8]).with_guidance(leaves[2])
        return sf.sample(model, x=leaves[0], solver=solver, seed=0, **options).x


def second(problems):
    """Products with the Hessian."""
    print("\nProducts with the Hessian, sf.Adjoint(kind, order=2), 10 steps, float64, worst over the paths\n")
    rows, worst = [], 0.0
    for title in ("ddim", "ees25", "ddpm", "unipc", "rex-midpoint, auto", "edict, auto"):
        name, _, auto = title.partition(", ")
        flow = {"coordinates": "flow"} if name.startswith("rex") else {}
        solver = solvers.get(name, **({"coupling": "auto", **flow} if auto else {}))
        tally = Tally()
        for problem in problems.values():
            try:
                truth = problem.gradient(solver, torch.float64, twice=True, adjoint="none", steps=10)
            except sf.SteadyflowError:  # as part 1 tells
                continue
            for kind, every in (("checkpoint", 1), ("checkpoint", "sqrt"), ("reversible", 1)):
                key = "sqrt" if every == "sqrt" else kind
                try:
                    how = sf.Adjoint(kind, every=every, order=2)
                    found = problem.gradient(solver, torch.float64, twice=True, adjoint=how, steps=10)
                    tally.see(key, error(found, truth))
                    worst = max(worst, tally.worst[key])
                except sf.SteadyflowError as refused:
                    tally.refused[key] = reason(refused)
        rows.append([title, *(size(tally.worst.get(k)) or tally.refused.get(k, "") for k in ADJOINTS)])
    table(["solver", *ADJOINTS], rows)
    say(f"Products with the Hessian are within {worst:.0e} of plain double back-propagation.")


def what_key(what):
    return what.replace(", float", " ")


def judge(found, cells):
    """The findings of part 1, from its numbers."""
    print()
    missed = []
    for key, limit in (("64", TARGETS["float64"]), ("32", TARGETS["float32"])):
        for name in ("checkpoint", "sqrt")[: 2 if key == "64" else 1]:
            worst = {title: tally.worst.get(f"{name} {key}", 0.0) for title, tally in found.items()}
            top = max(worst, key=worst.get)
            missed += [(f"{name}, float{key}", t, v, found[t]) for t, v in worst.items() if not v < limit]
            print(f"{name}, float{key}: worst {worst[top]:.1e} ({top}), target < {limit:.0e}")
        exact = {
            title: tally.worst[f"reversible {key}"]
            for title, tally in found.items()
            if ", auto" in title and f"reversible {key}" in tally.worst
        }
        top = max(exact, key=exact.get)
        missed += [(f"reversible, float{key}", t, v, found[t]) for t, v in exact.items() if not v < limit]
        print(f"reversible with automatic coupling, float{key}: worst {exact[top]:.1e} ({top}), target < {limit:.0e}")
    print()
    for what, title, value, tally in missed:
        beside = f" (plain back-propagation in float32: {tally.worst['plain 32']:.1e})" if "32" in what else ""
        print(f"VIOLATION {what}: {title} {value:.1e}{beside}, in {tally.where[what_key(what)]}")
    silent = [(title, *case) for title, tally in found.items() for case in tally.silent]
    for title, bits, where, drift, off in silent:
        print(f"SILENT float{bits}: {title}, {where}: error {off:.1e}, drift {drift:.1e}, which warns of nothing")
    rows = [(title, d, off) for title, tally in found.items() for d, off in tally.drifts]
    near = [
        (d, off)
        for t, d, off in rows
        if t.split(", ")[0] in solvers.names() and solvers.get(t.split(", ")[0]).properties.inverse != "exact"
    ]
    above = sum(off > max(d, 1e-10) for d, off in near)
    ratios = sorted(off / d for d, off in near if d > 1e-9)
    beyond = sum(r > 10.0 for r in ratios)
    say(
        f"Of {len(missed)} misses of the targets "
        f"{sum('32' in what and v < 3 * t.worst['plain 32'] for what, _, v, t in missed)} are float32 gradients within "
        "three times of plain float32 back-propagation's own error."
        if missed
        else "All targets for errors are met."
    )
    published = [
        (tally.worst.get("reversible 64"), len(tally.refused.get("reversible 64", [])))
        for title, tally in found.items()
        if f"{title}, auto" in found
    ]
    say(
        f"As published, the {len(published)} solvers with a coupling are refused as reversible in "
        f"{sum(n for _, n in published)} of {len(published) * cells} cells in float64, and where they run are off by "
        f"up to {max((v for v, _ in published if v is not None), default=0.0):.0e}."
    )
    say(
        f"Drift as an estimate: over {len(near)} gradients by near-reversible solvers the error exceeds the drift in "
        f"{above} ({100 * above / len(near):.0f} %), by more than ten times in {beyond}; error / drift has the median "
        f"{statistics.median(ratios):.2g}, nine of ten are below {ratios[int(0.9 * len(ratios))]:.2g}, and all below "
        f"{ratios[-1]:.2g}. In {len(silent)} reversible gradients of either precision an error above a tenth came "
        "without the warning, as the drift was below its tolerance."
    )


def of_times(full):
    """Part 5: the gradient with respect to a grid's times."""
    print(
        f"5. Gradient with respect to a grid's times, float64, {6 if full else 5} times, "
        "against differences of the whole run\n"
    )
    rows, all_worst = [], {}
    for title, solver in labelled().items():
        if solver.properties.stochastic:
            continue
        tally = Tally()
        for path in PATHS if full else ("VP", "flow"):
            problem = Problem(path, 3.0)
            schedule = problem.schedule
            levels = torch.linspace(0.93, 0.06, 6 if full else 5, dtype=torch.float64).tolist()
            times = torch.tensor([FLOW.when(schedule, tau) for tau in levels], dtype=torch.float64)
            for end in ("path", "clean") if full else ("path",) if path in ("VP", "VE") else ("clean",):
                measure_times(tally, problem, solver, times, end)
        all_worst[title] = tally
        cells = [size(tally.worst.get(kind)) or "" for kind in ("checkpoint", "reversible")]
        for k, kind in enumerate(("checkpoint", "reversible")):
            refused = tally.refused.get(kind, [])
            if refused:
                why = ", ".join(dict.fromkeys(refused))
                cells[k] = f"{cells[k]} ({why} {len(refused)})" if cells[k] else why
        rows.append([title, *cells])
    table(["solver", "checkpoint", "reversible"], rows)
    worst = {title: tally.worst["checkpoint"] for title, tally in all_worst.items() if "checkpoint" in tally.worst}
    top = max(worst, key=worst.get)
    near = sum(v < 1e-6 for v in worst.values())
    say(
        f"The gradient of grid times agrees with differences of the run to {statistics.median(worst.values()):.0e} in "
        f"the median of {len(worst)} solvers, below 1e-6 for {near}; the worst is {top} with {worst[top]:.0e}."
    )


def measure_times(tally, problem, solver, times, end):
    """Add one comparison, relative to the norm of the gradient."""
    leaves, _ = problem.inputs(torch.float64)
    leaves = [leaf.detach() for leaf in leaves]
    weights = problem.weights.double()

    def loss(times, **options):
        grid = sf.Grid(times)
        return (problem.end(solver, leaves, torch.float64, grid=grid, end=end, **options) * weights).sum()

    try:
        truth = differences_of(loss, times, WIDTHS[0])
    except sf.SteadyflowError as refused:
        tally.plain_refused.append(reason(refused))
        return
    for kind in ("checkpoint", "reversible"):
        leaf = times.clone().requires_grad_()
        try:
            found = torch.autograd.grad(loss(leaf, adjoint=kind), leaf)[0]
        except sf.SteadyflowError as refused:
            tally.refused.setdefault(kind, []).append(reason(refused))
            continue
        off = ((found - truth).norm() / truth.norm()).item()
        if kind == "checkpoint" and off > 1e-6:  # which the differences may be off by themselves
            others = [differences_of(loss, times, width) for width in WIDTHS[1:]]
            truth = min(others, key=lambda other: (found - other).norm().item())
            off = min(off, ((found - truth).norm() / truth.norm()).item())
        tally.see(kind, off)


def differences_of(loss, times, width):
    """The derivatives in every time, by differences of sixth order; the width is a share of the nearest interval."""
    slopes = []
    with torch.no_grad():
        for k in range(len(times)):
            room = min((times[k] - times[j]).abs().item() for j in (k - 1, k + 1) if 0 <= j < len(times))
            h, one = width * room, torch.zeros_like(times)
            one[k] = h
            slopes.append(sum(c * (loss(times + n * one) - loss(times - n * one)) for n, c in CENTRAL) / h)
    return torch.stack(slopes)


def image_model(side, channels, schedule=None):
    torch.manual_seed(0)
    net = UNet((3, side, side), channels=channels)
    torch.nn.init.normal_(net.leave[-1].weight, std=0.05)  # it starts as zero
    return sf.Denoiser(net, schedule or sf.VPCosine(), prediction="v_prediction", shape=(3, side, side))


def allocated(work):
    """Bytes held after the first of two functions, and at most during the second beyond what was there before both."""
    forward, backward = work
    result, first = changes(forward)
    held = peak = now = sum(first)
    for change in changes(lambda: backward(result))[1]:
        now += change
        peak = max(peak, now)
    return held, peak


REX = {"solver": "rex-midpoint", "coupling": "auto", "coordinates": "flow"}
KINDS = {
    "none": lambda: "none",
    "checkpoint": lambda: sf.Adjoint("checkpoint"),
    "sqrt": lambda: sf.Adjoint("checkpoint", every="sqrt"),
    "reversible": lambda: sf.Adjoint("reversible"),
    "checkpoint, order 2": lambda: sf.Adjoint("checkpoint", order=2),
    "reversible, order 2": lambda: sf.Adjoint("reversible", order=2),
}


def mega(value):
    return f"{value / 1e6:.2f}" if value < 1e7 else f"{value / 1e6:.0f}"


def memory(full):
    """Part 2."""
    batch, counts = 8, (5, 10, 20, 50, 100) if full else (5, 20, 100)
    model = image_model(16, (16,))
    x = torch.randn(batch, 3, 16, 16)
    one = allocated((lambda: model(x, 0.5).output.sum(), lambda end: end.backward()))[0]
    print(
        f"2. Memory, MB: held between forward and backward / most during backward. U-Net, batch {batch} of "
        f"3 x 16 x 16, float32:\na state has {mega(x.numel() * 4)} MB, the graph of one call of the network "
        f"{mega(one)} MB\n"
    )
    rows, numbers = [], {}
    for name, options in (("ddim", {"solver": "ddim"}), ("rex-midpoint, auto", REX)):
        for title, make in KINDS.items():
            if name == "ddim" and "reversible" in title and "order" in title:
                continue
            if name != "ddim" and not full and title in ("sqrt", "checkpoint, order 2"):
                continue
            solver = solvers.get(options["solver"], **{k: v for k, v in options.items() if k != "solver"})
            cells = []
            for n in counts if full or name == "ddim" else counts[:2]:
                for p in model.net.parameters():
                    p.grad = None
                start = x.clone().requires_grad_()
                run = partial(sf.sample, model, x=start, solver=solver, steps=n, adjoint=make())
                found = allocated((run, lambda end: end.x.sum().backward()))
                numbers[name, title, n] = found
                cells.append(" / ".join(mega(v) for v in found))
            rows.append([f"{name}: {title}", *cells, *[""] * (len(counts) - len(cells))])
    table(["solver: adjoint", *(f"{n} steps" for n in counts)], rows)
    top = 100 if full else 20
    grows = numbers["rex-midpoint, auto", "reversible", top]
    least = numbers["rex-midpoint, auto", "reversible", 5]
    plain = numbers["rex-midpoint, auto", "none", top]
    ck, root = (numbers["ddim", kind, 100] for kind in ("checkpoint", "sqrt"))
    say(
        f"Memory from 5 to {top} steps: reversible (rex-midpoint) holds {mega(least[0])} and {mega(grows[0])} MB and "
        f"peaks at {mega(least[1])} and {mega(grows[1])} MB, where plain back-propagation holds {mega(plain[0])} MB; "
        f"for ddim over 100 steps plain {mega(numbers['ddim', 'none', 100][0])} MB, checkpoint {mega(ck[0])} MB, every "
        f"'sqrt' {mega(root[0])} MB (at most {mega(ck[1])} and {mega(root[1])} on the way back)."
    )


def median_ratio(ratios):
    """The median, and an interval of order statistics that holds it with 95 % confidence, as text; and the numbers."""
    values, n = sorted(ratios), len(ratios)
    k = max((k for k in range(n // 2) if sum(math.comb(n, i) for i in range(k + 1)) / 2**n <= 0.025), default=0)
    middle = statistics.median(values)
    return middle, values[k], values[n - 1 - k]


def in_turns(work, rounds):
    """The seconds of each piece of work in each round, after one that does not count."""
    seconds = {name: [] for name in work}
    for k in range(rounds + 1):
        for name, run in work.items():
            gc.collect()
            began = time.perf_counter()
            run()
            if k:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def timing(full):
    """Part 3."""
    rounds, n = (25, 10) if full else (9, 5)
    print(f"3. Seconds of forward and backward over plain back-propagation's, {n} steps, {rounds} rounds\n")
    rows, worst = [], {}
    networks = {"U-Net, 8 x 3 x 16 x 16": (image_model(16, (8, 16)), torch.randn(8, 3, 16, 16))}
    digit, labels = sf.load("digits"), digits("held-out")[1]
    digit.net.requires_grad_(True)
    networks["digits, 64 x 64"] = digit.with_condition(labels[:64]), torch.randn(64, 1, 8, 8)
    problem = Problem("cosine", 3.0)
    small = sf.Denoiser(problem.net, problem.schedule, "v_prediction", (DIM,)).with_condition(problem.given)
    networks["16 numbers, overhead only"] = small, problem.x
    chosen = {"ddim": {}, "ees25": {}, "dpmpp-2m": {}, "rex-midpoint": {"coupling": "auto", "coordinates": "flow"}}
    for title, (model, x) in networks.items():
        for name, options in chosen.items():
            if not full and (name == "dpmpp-2m" or (name == "ees25" and "U-Net" not in title)):
                continue
            solver, work = solvers.get(name, **options), {}
            for kind, make in KINDS.items():

                def run(make=make, solver=solver, model=model, x=x):
                    start = x.clone().requires_grad_()
                    for p in model.net.parameters():
                        p.grad = None
                    sf.sample(model, x=start, solver=solver, steps=n, adjoint=make()).x.sum().backward()

                if kind == "reversible, order 2" and not full:
                    continue
                try:
                    run()
                    work[kind] = run
                except sf.SteadyflowError:
                    continue
            seconds = in_turns(work, rounds)
            cells = []
            for kind in list(KINDS)[1:]:
                if kind not in seconds:
                    cells.append("")
                    continue
                pairs = zip(seconds[kind], seconds["none"], strict=True)
                middle, low, high = median_ratio([a / b for a, b in pairs])
                worst[title, name, kind] = middle, low, high
                cells.append(f"{middle:.2f} [{low:.2f} {high:.2f}]")
            rows.append([f"{title}: {name}", f"{1e3 * statistics.median(seconds['none']):.1f}", *cells])
    heads = list(KINDS)[1 : None if full else -1]
    table(["network: solver", "plain, ms", *heads], [row[: 2 + len(heads)] for row in rows])
    texts = []
    for kind, limit in (("checkpoint", TARGETS["checkpoint"]), ("reversible", TARGETS["reversible"])):
        found = {key[:2]: value for key, value in worst.items() if key[2] == kind}
        missed = {key: value for key, value in found.items() if value[0] > limit}
        top = max(found, key=lambda key: found[key][0])
        texts.append(
            f"{kind} takes {min(v[0] for v in found.values()):.2f} to {found[top][0]:.2f} times plain back-propagation "
            f"(target {limit}, missed in {len(missed)} of {len(found)})"
        )
        for (title, name), (middle, low, high) in missed.items():
            print(f"VIOLATION time, {kind}: {title}, {name}: {middle:.2f} [{low:.2f} {high:.2f}] > {limit}")
    say("Time: " + "; ".join(texts) + ".")


class Field(torch.nn.Module):
    """A model's probability-flow ODE as torchdiffeq and torchsde call it.

    Their time s runs from 0 to the number of steps, tau falls with it from `top` to `bottom`; with a level of noise g.
    """

    noise_type, sde_type = "diagonal", "stratonovich"

    def __init__(self, model, coordinates, top, bottom, steps, noise=0.0):
        super().__init__()
        self.net, self.noise, self._steps = model.net, noise, steps
        self._model, self._coordinates, self._top, self._speed = model, coordinates, top, (bottom - top) / steps

    def forward(self, s, u):
        schedule = self._model.schedule
        t = self._coordinates.when(schedule, self._top + self._speed * float(s))
        x = u.view(-1, 1, 8, 8) * self._coordinates.scale(schedule.at(t))
        return self._speed * self._coordinates.slope(self._model(x, t)).view(u.shape)

    f = forward

    def g(self, s, u):
        return torch.full_like(u, self.noise)


LOW, HIGH = 0.05, 5.0
"""The noise-to-signal ratios between which peers run."""


def grid_of(model, coordinates, steps):
    """The same times for our solvers."""
    schedule = model.schedule
    ends = [coordinates.time(schedule.at(schedule.t_from_ratio(r))) for r in (HIGH, LOW)]
    taus = [ends[0] + (ends[1] - ends[0]) * k / steps for k in range(steps + 1)]
    return ends, sf.Grid(tuple(coordinates.when(schedule, tau) for tau in taus))


def ours(solver, adjoint, coordinates, model, u, steps):
    """The end of our run in the coordinates."""
    _, grid = grid_of(model, coordinates, steps)
    first, last = (coordinates.scale(model.schedule.at(t)) for t in (grid.times[0], grid.times[-1]))
    found = sf.sample(
        model, x=u.view(-1, 1, 8, 8) * first, grid=grid, solver=solver, end="path", seed=0, adjoint=adjoint()
    )
    return found.x.view(u.shape) / last


def by_torchdiffeq(method, how, model, u, steps):
    """torchdiffeq: plain, its adjoint over all times of the grid, or over the two ends alone."""
    import torchdiffeq

    field = Field(model, FLOW, *grid_of(model, FLOW, steps)[0], steps)
    s = torch.linspace(0.0, steps, steps + 1, dtype=u.dtype)
    if how == "ends":
        options = {"options": {"step_size": 1.0}, "adjoint_options": {"step_size": 1.0}}
        return torchdiffeq.odeint_adjoint(field, u, s[[0, -1]], method=method, **options)[-1]
    return (torchdiffeq.odeint if how == "plain" else torchdiffeq.odeint_adjoint)(field, u, s, method=method)[-1]


def by_torchsde(noise, how, model, u, steps):
    """torchsde's reversible Heun."""
    import torchsde

    field = Field(model, NOISE, *grid_of(model, NOISE, steps)[0], steps, noise)
    s = torch.tensor([0.0, steps], dtype=u.dtype)
    bm = torchsde.BrownianInterval(0.0, float(steps), size=u.shape, dtype=u.dtype, entropy=0)
    options = {"method": "reversible_heun", "dt": 1.0, "bm": bm}
    if how == "plain":
        return torchsde.sdeint(field, u, s, **options)[-1]
    return torchsde.sdeint_adjoint(field, u, s, adjoint_method="adjoint_reversible_heun", **options)[-1]


def trained():
    """A small network, after 400 rounds of training on digits: enough of a field, and quick."""
    torch.manual_seed(0)
    net, schedule = ResidualMLP((1, 8, 8), hidden=64, blocks=2), sf.VPCosine()
    images = digits("train")[0]
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(400):
        clean = images[torch.randint(len(images), (128,))]
        t, noise = 0.998 * torch.rand(128) + 0.001, torch.randn_like(clean)
        alpha, sigma = (f(t.double()).float()[:, None, None, None] for f in (schedule.alpha, schedule.sigma))
        aim = alpha * noise - sigma * clean
        loss = (net(alpha * clean + sigma * noise, schedule.model_time(t)) - aim).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return sf.Denoiser(net, schedule, "v_prediction", (1, 8, 8))


def peers(full):
    """Part 4."""
    there = {name: importlib.util.find_spec(name) is not None for name in ("torchdiffeq", "torchsde")}
    digit, models = trained(), {}
    for dtype in (torch.float64, torch.float32):
        net = copy.deepcopy(digit.net).to(dtype).requires_grad_(True)
        models[dtype] = dataclasses.replace(digit, net=net, dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    u, w = (torch.randn(BATCH, 64, generator=generator, dtype=torch.float64) for _ in range(2))
    kinds = {"plain": lambda: "none", "checkpoint": KINDS["checkpoint"], "reversible": KINDS["reversible"]}
    groups = {}
    for name in ("euler", "midpoint", "rk4"):
        mine = solvers.get(name, coordinates="flow")
        groups[f"{name}, flow"] = {f"ours, {k}": partial(ours, mine, kinds[k], FLOW) for k in kinds}
        if there["torchdiffeq"]:
            for how in ("plain", "adjoint", "ends"):
                groups[f"{name}, flow"][f"torchdiffeq, {how}"] = partial(by_torchdiffeq, name, how)
    for title, solver in (
        ("ees25, flow", solvers.get("ees25", coordinates="flow")),
        ("rex-midpoint auto, flow", solvers.get("rex-midpoint", coupling="auto", coordinates="flow")),
    ):
        groups[title] = {f"ours, {k}": partial(ours, solver, kinds[k], FLOW) for k in kinds}
    mine = solvers.get("reversible-heun")
    groups["reversible Heun, noise"] = {f"ours, {k}": partial(ours, mine, kinds[k], NOISE) for k in kinds}
    if there["torchsde"]:
        for how in ("plain", "adjoint"):
            groups["reversible Heun, noise"][f"torchsde (g = 0), {how}"] = partial(by_torchsde, 0.0, how)
        groups["reversible Heun, g = 0.1"] = {
            f"torchsde (g = 0.1), {how}": partial(by_torchsde, 0.1, how) for how in ("plain", "adjoint")
        }
    groups["ddpm"] = {
        f"ours, {k}": partial(ours, solvers.get("ddpm"), kinds[k], NOISE) for k in ("plain", "checkpoint")
    }
    sde = solvers.get("rex-sde")
    groups["rex-sde"] = {f"ours, {k}": partial(ours, sde, kinds[k], NOISE) for k in kinds}
    counts, rounds = (10, 20, 50), (15 if full else 3)
    double, single = models[torch.float64], models[torch.float32]

    def gradient(run, steps):
        start = u.clone().requires_grad_()
        sources = [start, *double.net.parameters()]
        end = run(double, start, steps)
        found = torch.autograd.grad((end * w).sum(), sources)
        return end.detach(), [found[0], torch.cat([part.flatten() for part in found[1:]])]

    exact = gradient(partial(ours, solvers.get("dopri5", coordinates="flow"), kinds["checkpoint"], FLOW), 60)[1]
    print(
        "4. Peers: the field of a small network trained on digits, between sigma / alpha = "
        f"{HIGH:g} and {LOW:g}, batch {BATCH}, uniform steps in tau = sigma / (alpha + sigma) (flow) or sigma / alpha "
        "(noise).\nerror: of the gradient against plain back-propagation of the same run (float64), after 10 / 20 / 50 "
        "steps; from the ODE's: against the gradient\nof the exact solution; MB and ms (float32, 10 steps): held, most "
        "on the way back, forward and backward over the package's own plain run\n(torchdiffeq: adjoint = "
        "odeint_adjoint at all times of the grid, ends = with the two ends and step_size; its rk4 is the 3/8 rule)\n"
    )
    rows, numbers = [], {}
    for title, runs in groups.items():
        plains = {
            (key.split(",")[0], n): gradient(run, n) for key, run in runs.items() if "plain" in key for n in counts
        }
        work, extra = {}, {}

        for key, run in runs.items():
            own, how = key.rsplit(", ", 1)
            try:
                found = [plains[own, n][1] if how == "plain" else gradient(run, n)[1] for n in counts]
                off = [error(one, plains[own, n][1]) for one, n in zip(found, counts, strict=True)]
            except sf.SteadyflowError as refused:
                rows.append([f"{title}: {key}", reason(refused), *[""] * 5])
                continue
            stochastic = title in ("ddpm", "rex-sde", "reversible Heun, g = 0.1")
            far = [] if stochastic or "Heun" in title else [error(one, exact) for one in found]
            numbers[title, key] = off, far

            def both(run=run):
                run(single, u.float().requires_grad_(), 10).sum().backward()

            def forward(run=run):
                return run(single, u.float().requires_grad_(), 10).sum()

            for p in single.net.parameters():
                p.grad = None
            extra[key] = allocated((forward, lambda end: end.backward()))
            work[key] = both
        seconds = in_turns(work, rounds)
        for key, (held, peak) in extra.items():
            own = key.rsplit(", ", 1)[0]
            off, far = numbers[title, key]
            base = next(k for k in seconds if k.startswith(own) and "plain" in k)
            ratio = median_ratio([a / b for a, b in zip(seconds[key], seconds[base], strict=True)])[0]
            numbers[title, key] = off, far, held, peak, ratio, statistics.median(seconds[key])
            shown = "" if "plain" in key else " ".join(size(v) for v in off)
            cells = [shown, " ".join(size(v) for v in far), mega(held), mega(peak)]
            rows.append([f"{title}: {key}", *cells, f"{1e3 * numbers[title, key][5]:.1f}", f"{ratio:.2f}"])
        if "torchdiffeq, plain" in runs and title != "rk4, flow":
            apart = max(
                ((plains["ours", n][0] - plains["torchdiffeq", n][0]).norm() / plains["ours", n][0].norm()).item()
                for n in counts
            )
            apart = max(apart, *(error(plains["ours", n][1], plains["torchdiffeq", n][1]) for n in counts))
            print(f"{title}: ours and torchdiffeq's plain runs and gradients agree to {apart:.0e}")
        if "torchsde (g = 0), plain" in runs:
            apart = max(error(plains["ours", n][1], plains["torchsde (g = 0)", n][1]) for n in counts)
            print(f"{title}: ours and torchsde's plain gradients agree to {apart:.0e}")
    print(flush=True)
    table(["method: run", "error 10 20 50", "from the ODE's", "held MB", "most MB", "ms", "over plain"], rows)
    differences(double, u, w)
    about_peers(numbers, there)


def differences(model, u, w):
    """A stochastic run against differences of whole runs with the same noise, along one direction of all inputs."""
    generator = torch.Generator().manual_seed(3)
    parameters = list(model.net.parameters())
    begun = [p.detach().clone() for p in parameters]
    ways = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in (u, *parameters)]
    ways = [ways[0], *(way * p.std() for way, p in zip(ways[1:], begun, strict=True) if way.numel() > 1)]
    worst = 0.0
    for name in ("ddpm", "rex-sde", "dpmpp-2m-sde"):
        run = partial(ours, solvers.get(name), KINDS["checkpoint"], NOISE)
        start = u.clone().requires_grad_()
        found = torch.autograd.grad((run(model, start, 20) * w).sum(), [start, *parameters])
        slope = sum((g * way).sum() for g, way in zip(found, ways, strict=True)).item()

        def at(h, run=run):
            with torch.no_grad():
                for p, base, way in zip(parameters, begun, ways[1:], strict=True):
                    p.copy_(base + h * way)
                return (run(model, u + h * ways[0], 20) * w).sum().item()

        h = 1e-4
        difference = sum(c * (at(n * h) - at(-n * h)) for n, c in CENTRAL) / h
        at(0.0)
        worst = max(worst, abs(slope - difference) / abs(difference))
    say(
        "Stochastic runs (ddpm, rex-sde, dpmpp-2m-sde; addressed noise, 20 steps): the gradient along a random "
        f"direction of start and parameters agrees with differences of whole runs to {worst:.0e}."
    )


def about_peers(numbers, there):
    """The findings of part 4."""
    if there["torchdiffeq"]:
        adjoint = {
            title: numbers[title, "torchdiffeq, adjoint"] for title, key in numbers if key == "torchdiffeq, adjoint"
        }
        mine = max(max(numbers[title, "ours, checkpoint"][0]) for title in adjoint)
        texts = [f"{title.split(',')[0]} {' '.join(size(v) for v in found[0])}" for title, found in adjoint.items()]
        say(
            f"torchdiffeq's continuous adjoint is off from the gradient of its own run, after 10, 20 and 50 steps: "
            f"{'; '.join(texts)}; ours by checkpoint {mine:.0e} at most."
        )
        closer = [
            a < b
            for title, found in adjoint.items()
            for a, b in zip(numbers[title, "torchdiffeq, plain"][1], found[1], strict=True)
        ]
        say(
            f"Against the gradient of the exact solution, plain back-propagation is the nearer one in {sum(closer)} of "
            f"{len(closer)} of these runs, the continuous adjoint in {len(closer) - sum(closer)}."
        )
    if there["torchsde"]:
        theirs = numbers["reversible Heun, noise", "torchsde (g = 0), adjoint"]
        own = numbers["reversible Heun, noise", "ours, reversible"]
        say(
            f"Reversible Heun on the same times: ours is off by {max(own[0]):.0e}, holds {mega(own[2])} MB and takes "
            f"{1e3 * own[5]:.0f} ms ({own[4]:.1f} times plain); torchsde's adjoint {max(theirs[0]):.0e}, "
            f"{mega(theirs[2])} MB and {1e3 * theirs[5]:.0f} ms ({theirs[4]:.1f} times plain)."
        )


PARTS = {"errors": errors, "memory": memory, "seconds": timing, "peers": peers, "times": of_times}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", nargs="*", metavar="part", help=", ".join(PARTS))
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--read", help="a folder with what was printed for each part, PART.txt, to put together")
    options = parser.parse_args()
    if options.read:
        texts = [
            (Path(options.read) / f"{name}.txt").read_text().split("Findings\n\n") for name in options.parts or PARTS
        ]
        print("".join(text for text, _ in texts) + "Findings\n\n" + "".join(said for _, said in texts))
        return
    keep_memory()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for name in options.parts or PARTS:
        began = time.process_time()
        PARTS[name](options.full)
        print(f"({name}: {time.process_time() - began:.0f} s)\n", flush=True)
    print("Findings\n\n" + "\n".join(f"- {text}" for text in SAID))


if __name__ == "__main__":
    main()
