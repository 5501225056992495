"""What a correction costs in wall time beside the plain run, and beside the nominal counter of evaluations."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steadyflow._integrate import StepInfo
from steadyflow._internal.tensors import dot
from steadyflow.corrections import Stein
from steadyflow.corrections.scaling import rescaled, residual
from steadyflow.denoisers import Denoiser
from steadyflow.metrics.statistics import Estimate
from steadyflow.models import load
from steadyflow.tasks import sample

from ..findings import FAILS, HOLDS, OPEN, Claim, Finding, verdict
from ..studies import Bench
from .quality import decided, short
from .settings import EVERYWHERE

_STEPS = 8
_BATCHES = {"digits": 64, "faces": 16}
_PROBES = (1, 2, 4)


class Given:
    """The paper's correction with a given divergence: everything of it but the products of the Jacobian."""

    def __call__(self, info: StepInfo) -> Any:
        start = info.step.start
        x, u = info.solver.output(info.before), residual(info, "model")
        drift, size = dot(x, u).mean(), dot(u, u).mean()
        gamma = ((1.0 - 1.0 / start.alpha) * drift + start.sigma**2 / start.alpha * 1.0) / size
        return rescaled(info, gamma.clamp(0.9, 1.1), "model")


@dataclass(frozen=True)
class _Timed:
    model: str
    seconds: dict[str, list[float]]
    """Of each variant, one per round."""
    nominal: dict[str, float]
    """Evaluations over those of the plain run."""


def median(values: Sequence[float], *, resamples: int = 2000, seed: int = 0) -> Estimate:
    """The median of numbers, with a 95 % bootstrap interval."""
    x = torch.tensor(values, dtype=torch.float64)
    drawn = (
        x[torch.randint(len(x), (resamples, len(x)), generator=torch.Generator().manual_seed(seed))].median(1).values
    )
    low, high = drawn.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Estimate(x.median().item(), low, high)


def _timed(item: tuple[str, int]) -> _Timed:
    """Time plain and corrected runs in turns."""
    name, rounds = item
    model = load(name).with_condition(0)
    methods: tuple[Any, ...] = ("vjp", "jvp")
    made = {
        f"{method}, {m}": Stein("vp", 0.1, EVERYWHERE, probes=m, method=method) for method in methods for m in _PROBES
    }
    kinds: dict[str, Any] = {"plain": None, "the rest": Given(), **made}
    seconds = {kind: list[float]() for kind in kinds}
    for k in range(rounds + 1):  # the first round warms up
        for kind, correction in kinds.items():
            taken = _run(model, _BATCHES[name], correction)
            seconds[kind] += [taken] if k else []
    nominal = {kind: 1.0 + one.record.evaluations / (_STEPS * (rounds + 1)) for kind, one in made.items()}
    return _Timed(name, seconds, {"plain": 1.0, "the rest": 1.0, **nominal})


def _run(model: Denoiser, n: int, correction: Any) -> float:
    began = time.perf_counter()
    corrections = () if correction is None else (correction,)
    options = {"n": n, "solver": "ddim", "steps": _STEPS, "t_max": 0.99, "end": "path", "progress": False}
    found: Tensor = sample(model, corrections=corrections, **options).x
    assert len(found) == n
    return time.perf_counter() - began


def overhead(bench: Bench) -> Finding:
    """Time runs of two networks, plain and corrected, with 1, 2 and 4 probes of both kinds."""
    models = ("digits",) if bench.size.quick else tuple(_BATCHES)
    timed = bench.map(_timed, [(name, 5 if bench.size.quick else 15) for name in models])
    rows = []
    for one in timed:
        for kind in one.seconds:
            ratio = median(_paired(one, kind))
            each = 1e3 * median(one.seconds[kind]).value / _BATCHES[one.model]
            nominal = f"{one.nominal[kind]:.3g}" if kind != "the rest" else ""
            rows.append([one.model, kind, f"{each:.3g}", short(ratio), nominal])
    return Finding(
        "overhead",
        "Wall time of a corrected run relative to a plain one",
        _claims(timed),
        ["model", "correction", "ms per sample", "time / plain", "evaluations / plain"],
        rows,
        note=(
            f"DDIM, {_STEPS} steps, corrected at every step, one thread; batches of "
            + ", ".join(f"{n} ({name})" for name, n in _BATCHES.items() if name in models)
            + ". Every round times each variant once; ratios are taken within a round, and medians over the rounds, "
            "with 95 % bootstrap intervals. The rest: residual, means, coefficient and update, with the divergence "
            "given. Evaluations are counted as by `Stein.record`: one for the graph, two for a transposed product, "
            "one for a Jacobian product."
        ),
    )


def _paired(one: _Timed, kind: str) -> list[float]:
    return [a / b for a, b in zip(one.seconds[kind], one.seconds["plain"], strict=True)]


def _claims(timed: list[_Timed]) -> list[Claim]:
    shares, products, rests, jvps = {}, {}, {}, {}
    counted: list[Estimate] = []
    for one in timed:
        of = {kind: _paired(one, kind) for kind in one.seconds}
        rounds = range(len(of["plain"]))
        shares[one.model] = median([(of["vjp, 1"][k] - of["the rest"][k]) / (of["vjp, 1"][k] - 1.0) for k in rounds])
        products[one.model] = median([(of["vjp, 4"][k] - of["vjp, 1"][k]) / 3.0 for k in rounds])
        jvps[one.model] = median([(of["jvp, 4"][k] - of["jvp, 1"][k]) / 3.0 for k in rounds])
        rests[one.model] = median([of["the rest"][k] - 1.0 for k in rounds])
        counted += [median([v / n for v in of[kind]]) for kind, n in one.nominal.items() if kind.startswith("vjp")]
    return [
        Claim(
            "table 3: the VJP dominates",
            "most of the time that the correction adds is spent on the vector-Jacobian product",
            "the VJP computation dominates; the numbers of table 3 are not in the sources at hand",
            f"share of the added time, with one probe: {_listed(shares)}",
            verdict(all(e.low > 0.5 for e in shares.values())),
        ),
        Claim(
            "table 3: a VJP",
            "each further vector-Jacobian product costs about as much as one forward pass (at most twice as much)",
            "each VJP has complexity comparable to one forward pass",
            f"relative to a plain step: {_listed(products)}; each further Jacobian product (jvp): {_listed(jvps)}",
            below(2.0, products),
        ),
        Claim(
            "table 3: the rest",
            "means, coefficient and update are cheap (less than a tenth of a step)",
            "O(Bd) operations for the means, O(1) for coefficient and update",
            f"relative to a plain step: {_listed(rests)}",
            below(0.1, rests),
        ),
        Claim(
            "ours: the counter",
            "with vjp, the counted evaluations predict the wall time to within a quarter",
            "not stated",
            "wall time over counted evaluations, both relative to a plain run: "
            f"{min(e.value for e in counted):.2f} to {max(e.value for e in counted):.2f}",
            decided([e.low > 0.75 and e.high < 1.25 for e in counted]),
        ),
    ]


def below(limit: float, found: dict[str, Estimate]) -> str:
    """Give the verdict on a claim that all numbers are below a limit; open where an interval has it within."""
    if any(e.low > limit for e in found.values()):
        return FAILS
    return HOLDS if all(e.high < limit for e in found.values()) else OPEN


def _listed(found: dict[str, Estimate]) -> str:
    return ", ".join(f"{name} {short(e)}" for name, e in found.items())
