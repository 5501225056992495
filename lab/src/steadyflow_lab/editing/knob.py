"""Whether near-reversibility should follow the strength of the edit.

Two knobs: the x of EES(2,5;x), and the exponent c of automatic coupling, |D| = (tau1 / tau0)^c per step, which bounds
how much an inversion of Rex over midpoint amplifies. Both are swept at several guidance scales, and the best value at
each is found with its interval: by bootstrap over the samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from steadyflow import solvers
from steadyflow.coordinates import CoordinatesName
from steadyflow.errors import NonFiniteError
from steadyflow.metrics import rmse
from steadyflow.metrics.statistics import Estimate
from steadyflow.solvers.base import Step, steps_for
from steadyflow.solvers.reversible import Coupling, contraction, regular_coordinates
from steadyflow.solvers.rex import Rex
from steadyflow.tasks import invert

from ..findings import FAILS, HOLDS, PARTLY, Claim, Curve, Finding, shown
from ..studies import Bench
from .coupling import NFE, problem, reference
from .methods import GUIDANCES, ratio

KNOBS: dict[str, tuple[float, ...]] = {
    "x of ees25": (-0.2, -0.1, 0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4),
    "c of rex-midpoint": (0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.6, 2.0),
}
USED = {"x of ees25": 0.1, "c of rex-midpoint": 0.8}
"""The values that are used whatever the guidance."""
WORTH = 1.1
"""By how many times an error has to fall for a rule to be worth its name."""


@dataclass(frozen=True)
class Bounded(Rex):
    """Rex over midpoint in flow coordinates with automatic coupling of another exponent."""

    method: str = "midpoint"
    coordinates: CoordinatesName = "flow"
    coupling: Coupling = "auto"
    power: float = 0.8

    def determinant(self, step: Step) -> float:
        return contraction(step, self.power, regular_coordinates(self.coordinates, step))


def errors(n: int, item: tuple[str, str, float]) -> dict[float, Tensor]:
    """Give the error of every edit with a knob at a value, by guidance; (n,) each."""
    name, knob, value = item
    model, x, labels, targets = problem(name, n)
    wanted, _ = reference(name, n, GUIDANCES)
    solver = solvers.get("ees25", x=value) if knob.startswith("x") else Bounded(power=value)
    there = model.with_condition(targets)
    inversion = invert(model.with_condition(labels), x, solver=solver, steps=steps_for(solver, NFE), progress=False)
    found = {}
    for w in GUIDANCES:
        try:
            found[w] = rmse(inversion.decode(there, guidance=w).x, wanted[w])
        except NonFiniteError:
            found[w] = torch.full((n,), torch.inf, dtype=x.dtype)
    return found


def best(table: Tensor, values: Sequence[float], resamples: int = 1000) -> tuple[float, float, float]:
    """Give the value with the smallest geometric mean error, and the middle 95 % of it over resampled pictures.

    table: errors, (values, n).
    """
    logs = table.double().clamp(1e-300, 1e30).log()
    rows = torch.randint(logs.shape[1], (resamples, logs.shape[1]), generator=torch.Generator().manual_seed(0))
    drawn = torch.tensor(values, dtype=torch.float64)[logs[:, rows].mean(2).argmin(0)].sort().values
    low, high = drawn[int(0.025 * resamples)], drawn[int(0.975 * resamples)]
    return values[int(logs.mean(1).argmin())], low.item(), high.item()


@dataclass(frozen=True)
class Sweep:
    """What a knob did on a problem."""

    problem: str
    knob: str
    best: dict[float, tuple[float, float, float]]
    """The best value at each guidance, with its interval."""
    fixed: float
    """The best of the values that stay the same at every guidance."""
    gain: dict[float, Estimate]
    """The error at the best fixed value over that at the best, by guidance."""

    @property
    def moves(self) -> float:
        """How far the best value moves from the weakest to the strongest edit; 0 if within its intervals."""
        weak, strong = self.best[min(self.best)], self.best[max(self.best)]
        return strong[0] - weak[0] if weak[2] < strong[1] or strong[2] < weak[1] else 0.0

    @property
    def follows(self) -> bool:
        """Whether following the edit's strength is worth it."""
        return self.moves != 0.0 and any(e.low > WORTH for e in self.gain.values())


def sweep(name: str, knob: str, values: Sequence[float], tables: dict[float, Tensor]) -> Sweep:
    """Find the best values of a knob. tables: errors by guidance, (values, n) each."""
    optimum = {w: best(table, values) for w, table in tables.items()}
    logs = torch.stack([table.double().clamp(1e-300, 1e30).log().mean(1) for table in tables.values()])
    fixed = int(logs.mean(0).argmin())
    gain = {w: ratio(t[fixed], t[values.index(optimum[w][0])]) for w, t in tables.items()}
    return Sweep(name, knob, optimum, values[fixed], gain)


def judged(sweeps: Sequence[Sweep]) -> Claim:
    """Whether there is a rule for the knobs, on every problem alike."""
    by_knob = {knob: [s for s in sweeps if s.knob == knob] for knob in dict.fromkeys(s.knob for s in sweeps)}
    rule = [
        knob
        for knob, some in by_knob.items()
        if all(s.follows for s in some) and len({s.moves > 0.0 for s in some}) == 1
    ]
    said = [
        f"{s.problem}, {s.knob}: best {_value(s.best[min(s.best)])} at w = {min(s.best):g}, "
        f"{_value(s.best[max(s.best)])} at {max(s.best):g}; the error at the best fixed value, {s.fixed:g}, is at most "
        f"{shown(max(s.gain.values(), key=_worth))} times as large"
        for s in sweeps
    ]
    some = [f"{s.knob} on {s.problem}" for s in sweeps if s.follows]
    return Claim(
        "the knob",
        "the degree of near-reversibility should follow the strength of the edit: the best value moves with guidance, "
        "in the same direction on every problem, and gains a tenth over the best fixed value",
        'a reviewer\'s suggestion ("might be tuned automatically based on edit size"); no number',
        f"a rule that holds on every problem: {', '.join(rule) or 'none'}; worth following: "
        f"{', '.join(some) or 'none'}. " + "; ".join(said),
        HOLDS if len(rule) == len(by_knob) else PARTLY if rule or some else FAILS,
    )


def _worth(e: Estimate) -> float:
    return e.value


def figure(bench: Bench) -> Finding:
    """Sweep both knobs over guidance."""
    n, problems = bench.size.n, ("mixture",) if bench.size.quick else ("mixture", "digits")
    items = [(name, knob, value) for name in problems for knob, values in KNOBS.items() for value in values]
    found = dict(zip(items, bench.map(partial(errors, n), items), strict=True))
    rows, curves, sweeps = [], [], []
    for name in problems:
        for knob, values in KNOBS.items():
            tables = {w: torch.stack([found[name, knob, v][w] for v in values]) for w in GUIDANCES}
            sweeps.append(sweep(name, knob, values, tables))
            for w in GUIDANCES:
                used = ratio(tables[w][values.index(USED[knob])], tables[w][values.index(sweeps[-1].best[w][0])])
                rows.append([name, knob, f"{w:g}", _value(sweeps[-1].best[w]), shown(sweeps[-1].gain[w]), shown(used)])
                means = [t.clamp(1e-300, 1e30).log().mean().exp().item() for t in tables[w]]
                if name == problems[-1] and knob.startswith("x"):
                    curves.append(Curve(f"w = {w:g}", list(values), means))
    heads = ["problem", "knob", "guidance", "best value"]
    heads += ["error at the best fixed value / at the best", "error at the default / at the best"]
    claim = judged(sweeps)
    note = f"{n} samples, {NFE} evaluations each way. Values tried: " + "; ".join(
        f"{knob}: {', '.join(f'{v:g}' for v in values)}" for knob, values in KNOBS.items()
    )
    axes = ("x of ees25", f"error of the edit, {problems[-1]}")
    title = "Near-reversibility by the strength of the edit"
    return Finding("knob", title, [claim], heads, rows, note, curves, axes, ("linear", "log"))


def _value(found: tuple[float, float, float]) -> str:
    return f"{found[0]:g} [{found[1]:g}, {found[2]:g}]"
