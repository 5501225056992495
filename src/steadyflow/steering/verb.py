"""`steer`: optimises what goes into a sampler so that a reward, a function of the picture that comes out, grows."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, cast

import torch
from torch import Tensor

from .._integrate import (
    Adjoint,
    AdjointKind,
    Correction,
    Progress,
    Solution,
    check_state,
    check_state_type,
    shown_bar,
)
from .._internal import files
from .._internal.autograd import check_derivatives
from .._internal.given import device_of, number, whole
from .._internal.places import check_writable
from ..denoisers.base import Denoiser
from ..denoisers.fingerprints import fingerprint
from ..errors import InputError
from ..grids import Grid
from ..schedules import Schedule
from ..solvers.base import Solver
from ..tasks._options import Auto, NoiseKind, Options, Resolved
from ..tasks.sampling import sample, settled
from .controls import Control, control_of
from .guards import Free, Guard, guard_of
from .methods import FlowOpt, Gradient, Method, ZeroOrder, method_of
from .optimizers import Factory, make, name_of
from .rewards import Reward
from .rounds import Plan, Round, Rounds
from .steered import Steered

_NO_MEANING = ("callback", "record")
RATES = {"noise": 0.1, "condition": 0.05, "null": 0.1, "guidance": 0.1}
"""Adam's rate by what is optimised, in its own units; all but the last were measured by benchmarks/steering.py."""
PLAIN = 0.1
"""The rate of plain steps, times a gradient whose size is the reward's."""


class SteerOptions(TypedDict, total=False):
    """The words of `Options` that steering takes, with the same meaning; its own callback is called once a round."""

    solver: str | Solver[Any] | Auto
    steps: int | None
    nfe: int | None
    grid: str | Grid | None
    strength: float | None
    t_min: float | None
    t_max: float | None
    seed: int
    index: int
    noise: NoiseKind
    batch_size: int | None
    corrections: Iterable[Correction]
    progress: Progress
    adjoint: Adjoint | AdjointKind | None


def steer(
    model: Denoiser,
    reward: Reward,
    *,
    over: Literal["noise", "condition", "null", "guidance"] = "noise",
    n: int | None = None,
    x: Tensor | None = None,
    guidance: float | Tensor | None = None,
    method: Literal["gradient", "zero-order", "flowopt"] | Method = "gradient",
    rounds: int = 50,
    rate: float | None = None,
    guard: Literal["none", "norm", "regular"] | Guard | None = None,
    optimizer: Literal["adam", "sgd", "plain"] | Factory | None = None,
    clip: float | None = None,
    verify: bool = False,
    resume: Steered | None = None,
    checkpoint: str | Path | None = None,
    callback: Callable[[Round], None] | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    **options: Unpack[SteerOptions],
) -> Steered:
    """Optimise what goes into a sampler, for each sample by itself, so that the reward of what comes out grows.

    Round 0 is the plain sample; each round then makes one step of the optimiser. The best round of every sample is
    returned, by its reward and what the guard adds to it. The noise of stochastic solvers is addressed by seed and
    place, so that the sampler is a fixed function of its start.

    Args:
        model: The model of the data, under a condition if it has one.
        reward: A function of the samples as `sample` returns them, shape (B, ...), always the whole batch in order. It
            returns one number for each, shape (B,); higher is better. With a latent model it decodes them itself.
        over: What is optimised: "noise", the latents at the start; "condition" or "null", the embedding of the
            condition or of the null condition; or "guidance", one scale per sample.
        n: How many samples to draw; their starts are those of `sample` with the same seed and index.
        x: Starting latents, instead of n, shape (B, ...).
        guidance: The scale of classifier-free guidance, or one for each sample, shape (B,); the model's own by
            default.
        method: Where the direction of a step comes from: "gradient", the exact one through the sampler; "zero-order" or
            `ZeroOrder(pairs=, radius=)`, pairs of runs with opposite perturbations, for rewards without a gradient;
            "flowopt", the reward's gradient at the samples, applied to the latents as it is, for `over="noise"` alone.
            See `steering.methods`.
        rounds: How many steps the optimiser makes.
        rate: The size of a step; for Adam about how far each number moves, in standard deviations of the noise, root
            mean squares of an embedding, or units of the guidance scale. By default 0.1, for conditions 0.05, and for
            plain steps 0.1.
        guard: What keeps optimised noise on the Gaussian that runs start from: "norm", the default, keeps its norm;
            "regular" or `Regular(weight=)` adds DNO's regularity to the reward; "none" does nothing. Only for
            `over="noise"`. See `steering.guards`.
        optimizer: "adam", the default; "sgd", a step along the gradient whose root mean square is `rate`; "plain", the
            rate times the gradient, the default for "flowopt"; or a factory, called as
            `torch.optim.Adam([...], lr=rate)` is.
        clip: The largest norm of each sample's gradient; none by default.
        verify: Compare the gradient of round 0 with differences of the reward along a random direction, at the cost of
            two more runs, and raise `InputError` if it is off by more than a tenth. Where a part of a reward or of a
            correction is detached, the gradient is wrong and nothing else shows it.
        resume: What another call has found, to go on from; that call must have had the same arguments, but for
            `rounds`.
        checkpoint: A file that is written after every round. If it is there already, the call goes on from it.
        callback: Called after every round with a `Round`.
        dtype: Of the latents that are drawn.
        device: Of the latents that are drawn.
        **options: The words of `sample` (see `Options`), but for `callback` and `record`. For `method="gradient"`,
            `adjoint` is "checkpoint" by default, and None means "none"; other methods take none.

    Returns:
        The best round of every sample: its samples in `x`, what produces them in `start`, and the history of rewards.
        A call that resumes gives the bits of one that was not interrupted; only its `nfe` is larger, by the one round
        that is made again.

    Raises:
        InputError: An argument does not fit, or the reward does not depend on the samples.
        NonFiniteError: A run, a reward or its gradient is NaN or infinite; the message names round and samples.
        CorruptFileError: The checkpoint is damaged.
    """
    if not callable(reward):
        raise InputError(f"reward: got {reward!r}, expected a function of the samples")
    if callback is not None and not callable(callback):
        raise InputError(f"callback: got {callback!r}, expected a function of a Round")
    if (n is None) == (x is None):
        raise InputError("steer: give either n (how many to draw) or x (starting latents)")
    how = method_of(method)
    rounds = whole("rounds", rounds, 0)
    if verify and not isinstance(how, Gradient):
        raise InputError("verify: compares the gradient through the sampler, which only method='gradient' has")
    defaults: dict[str, Any] = {"solver": "auto"}
    if isinstance(how, Gradient):
        defaults["adjoint"] = "checkpoint"
    elif options.get("adjoint") is not None:
        raise InputError("adjoint: has no meaning for this method, which takes no gradient through the sampler")
    chosen = Resolved.of(options, steer, refused=_NO_MEANING, defaults=defaults)
    through = cast("Adjoint | None", chosen.adjoint)
    if through is None:
        through = Adjoint("none")
    if chosen.controller is not None:
        raise InputError("steps: a controller chooses other steps in every round; give their number")
    if x is None:
        dtype, device = check_state_type(dtype), device_of(device)
    else:
        check_state("x", x, model.shape)
        x = x.detach()
    if not isinstance(how, ZeroOrder):
        check_derivatives()
    model = model if guidance is None else model.with_guidance(guidance)
    chosen, grid, start, reason = settled(model, chosen, n, x, None, None, dtype, device)
    mean, std = _prior(model, grid, start)
    control = control_of(over, model, start, mean, std)
    kept = _guard(guard, control)
    if isinstance(how, FlowOpt) and over != "noise":
        raise InputError(f"method: 'flowopt' is for over='noise', not for {over!r}, which has no sample's shape")
    named = ("plain" if isinstance(how, FlowOpt) else "adam") if optimizer is None else optimizer
    rate, clip = _rate(rate, over, named), _clip(clip, named)
    words: dict[str, Any] = {name: getattr(chosen, name) for name in Options.__annotations__ if name not in _NO_MEANING}
    words = {name: value for name, value in words.items() if value is not None} | {"progress": False}

    def run(one: Denoiser, begin: Tensor, gradient: bool) -> Solution:
        way_back: dict[str, Any] = {**words, "adjoint": through if gradient else None}
        found = sample(one, x=begin, **way_back)
        return found if n is None else _seeded(found, chosen, reason)

    about = {
        "model": fingerprint(model),
        "start": files.digest(over, {"x": start, **control.first, **control.fixed}),
        "condition": [_described(model.condition), _described(model.null)],
        "guidance": model.guidance if model.scale is None else cast(Any, model.scale).tolist(),
        "over": over,
        "adjoint": [through.kind, through.every] if isinstance(how, Gradient) else None,
        "method": repr(how),
        "guard": repr(kept),
        "rate": rate,
        "optimizer": name_of(named),
        "clip": clip,
        "solver": repr(sorted(chosen.method.spec().items(), key=str)),
        "times": [t.hex() for t in grid],
        "seed": chosen.seed,
        "index": chosen.index,
        "noise": chosen.noise,
        "corrections": [_told_of(one) for one in chosen.corrections],
    }
    if checkpoint is not None and not isinstance(cast(object, checkpoint), str | os.PathLike):
        raise InputError(f"checkpoint: got {checkpoint!r}, expected the path of a file")
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None:
        check_writable(path, "checkpoint")
    before = _before(resume, path, about, rounds)
    plan = Plan(
        control=control,
        reward=reward,
        run=run,
        redone=partial(_redone, through, model.schedule),
        method=how,
        guard=kept,
        optimizer=lambda leaves: make(named, leaves, rate),
        clip=clip,
        normalised=named == "sgd",
        verify=verify,
        seed=chosen.seed,
        rows=range(chosen.index, chosen.index + len(start)),
        about=about,
        checkpoint=path,
        callback=callback,
    )
    work = Rounds(plan, before)
    with shown_bar(chosen.progress, rounds, unit="round") as bar:
        return work.go(rounds, bar)


def _redone(adjoint: Adjoint, schedule: Schedule, found: Solution) -> int:
    """The evaluations per sample that the way back through a run makes once more."""
    steps = found.grid.steps
    each = (found.nfe - found.grid.clean) / max(1, steps - found.grid.clean)
    if adjoint.kind == "none":
        return 0
    if adjoint.kind == "reversible":  # all steps but the first are undone, and the last where no step leads back
        stays = found.grid.clean or schedule.at(found.grid.times[-1]).sigma == 0.0
        return found.nfe + round(each * max(0, steps - 1 - stays))
    return found.nfe + round(each * (steps - math.ceil(steps / adjoint.stride(steps))))


def _told_of(correction: object) -> Any:
    """What tells a correction from another: its class and its fields, but for its record."""
    if not dataclasses.is_dataclass(correction) or isinstance(correction, type):
        return name_of(correction)
    own = {field.name: getattr(correction, field.name) for field in dataclasses.fields(correction) if field.compare}
    fields = {name: _told_of(v) if dataclasses.is_dataclass(v) else _described(v) for name, v in own.items()}
    return [name_of(correction), {name: v for name, v in fields.items() if not name.startswith("_")}]


def _described(condition: object) -> Any:
    """What tells a condition from another."""
    if isinstance(condition, Tensor):
        return files.digest("condition", {"condition": condition})
    if isinstance(condition, Mapping):
        return {str(key): _described(value) for key, value in cast("Mapping[Any, Any]", condition).items()}
    return repr(condition)


def _prior(model: Denoiser, grid: Grid, like: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the standard deviation of the path's own start, shaped as one sample or as numbers."""
    level = model.schedule.at(grid.times[0])
    mean, variance = (0.0, 0.0) if model.moments is None else model.moments
    mean, variance = (torch.as_tensor(part, dtype=like.dtype, device=like.device) for part in (mean, variance))
    std = (level.alpha**2 * variance + level.sigma**2).sqrt()
    if not bool((std > 0).all()):
        raise InputError("over: the path has no noise where the runs start, so that there is none to optimise")
    return level.alpha * mean, std


def _guard(given: object, control: Control) -> Guard:
    if control.over != "noise":
        if given not in (None, "none") and not isinstance(given, Free):
            raise InputError(f"guard: got {given!r}, which keeps noise, and has no meaning for over={control.over!r}")
        return Free()
    found = guard_of("norm" if given is None else given)
    found.check(control.noise)
    return found


def _rate(given: object, over: str, optimizer: object) -> float:
    if given is None:
        return PLAIN if optimizer == "plain" else RATES[over]
    rate = number("rate", given)
    if not 0.0 < rate < math.inf:
        raise InputError(f"rate: got {rate}, expected a positive number")
    return rate


def _clip(given: object, optimizer: object) -> float | None:
    if given is None:
        return None
    if optimizer == "sgd":
        raise InputError("clip: has no meaning with optimizer='sgd', which sets the norm of the gradient")
    clip = number("clip", given)
    if not 0.0 < clip < math.inf:
        raise InputError(f"clip: got {clip}, expected a positive number, or None")
    return clip


def _before(resume: object, path: Path | None, about: dict[str, Any], rounds: int) -> Steered | None:
    """What to go on from, checked against the call."""
    if resume is not None and not isinstance(resume, Steered):
        raise InputError(f"resume: got {type(resume).__name__}, expected what steer or sf.Steered.load returned")
    word, found = "resume", cast("Steered | None", resume)
    if path is not None and path.is_file():
        if found is not None:
            raise InputError(f"checkpoint: {path} is there, and resume is given too; give one of them")
        word, found = f"checkpoint: {path}", Steered.load(path)
    if found is None:
        return None
    for name, value in about.items():
        known = found.about.get(name)
        if known != value:
            raise InputError(f"{word}: is of another call, whose {name} was {known!r} and not {value!r}")
    if found.rounds > rounds:
        raise InputError(f"rounds: got {rounds}, but {found.rounds} rounds are done already; give at least as many")
    return found


def _seeded(found: Solution, chosen: Resolved, reason: str) -> Solution:
    return replace(found, seed=chosen.seed, reason=reason)
