"""The rounds of a steering: run the sampler, ask the reward, find a direction, make a step, keep the best."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from .. import noise
from .._integrate import Solution
from .._integrate.bars import Bar
from .._internal.tensors import broadcast, rms
from ..denoisers.base import Denoiser
from ..errors import InputError, NonFiniteError
from ..solvers.state import flatten_state
from .controls import Control, Value
from .guards import Guard, distances
from .methods import FlowOpt, Gradient, Method, ZeroOrder
from .optimizers import Optimizer, clipped, packed, unpack
from .rewards import Reward, ask, reward_gradient, run_gradient
from .steered import Steered

Numbers = dict[str, Tensor]
_VERIFY, _VERIFIED = 0.1, 1 << 40
"""By how much a gradient may differ from differences of the reward, and the place of the direction that is tried."""
_SAME = 1e-3
"""By how much the reward of a round may differ when it is asked again, as a share of its size."""


class Round(NamedTuple):
    """Where a steering stands: what its callback is given after every round."""

    round: int
    """The round, from 0, which is the plain sample."""
    rounds: int
    """How many steps of the optimiser there will be."""
    rewards: Tensor
    """Of this round, shape (B,)."""
    x: Tensor
    """The samples, shape (B, ...)."""
    start: Value
    """What went into the sampler."""
    distances: dict[str, Tensor]
    """To the prior, by name, each of shape (B,)."""
    nfe: int
    """Model evaluations per sample so far."""


@dataclass(frozen=True)
class Plan:
    """What a steering does, checked."""

    control: Control
    reward: Reward
    run: Callable[[Denoiser, Tensor, bool], Solution]
    """A run of the sampler of a model from latents, whether or not it is to be differentiated."""
    redone: Callable[[Solution], int]
    """The model evaluations per sample that a gradient through a run makes once more."""
    method: Method
    guard: Guard
    optimizer: Callable[[list[Tensor]], Optimizer]
    clip: float | None
    normalised: bool
    verify: bool
    seed: int
    rows: range
    """The indices of the samples."""
    about: dict[str, Any]
    checkpoint: Path | None
    callback: Callable[[Round], None] | None


class Rounds:
    """A steering from where it begins, or from where another one ended.

    Args:
        plan: What to do.
        resume: Where to go on.

    Raises:
        InputError: The state of the optimiser to go on from does not fit.
    """

    def __init__(self, plan: Plan, resume: Steered | None):
        self.plan, self.found = plan, resume
        control = plan.control
        self.u = control.zeros()
        self.nfe, self.turn = 0, 0
        self._optimizer = plan.optimizer(list(self.u.values()))
        if resume is not None:
            at = resume.work["at"]
            if {name: part.shape for name, part in at.items()} != {name: part.shape for name, part in self.u.items()}:
                raise InputError("resume: what it optimised has another shape than what this call does")
            for name, part in self.u.items():
                part.copy_(at[name])
            unpack(self._optimizer, resume.work["optimizer"])
            self.nfe, self.turn = resume.nfe, resume.rounds

    def go(self, rounds: int, bar: Bar) -> Steered:
        """Make the rounds that are left, and return what was found.

        Args:
            rounds: How many there are in all.
            bar: Advanced once a round.
        """
        bar.update(self.turn)
        if self.found is None or self.turn < rounds:
            for turn in range(self.turn, rounds + 1):
                last = turn == rounds
                run, rewards, direction = self._evaluated(turn, wanted=not last)
                if self.found is None or turn > self.found.rounds:
                    self._keep(turn, rounds, run, rewards)
                else:
                    self._check_same(turn, rewards)
                    self.found = dataclasses.replace(self.found, nfe=self.nfe)
                if direction is not None:
                    self._step(turn, direction)
                    bar.update()
        else:
            self._check_reward()
        assert self.found is not None
        still = isinstance(self.plan.method, ZeroOrder) and not bool(self.found.distances["moved"].any())
        if still and self.found.rounds > 0:
            warnings.warn(
                f"reward: in {self.found.rounds} rounds no two runs of a sample had different rewards, so that nothing "
                "moved; give ZeroOrder a larger radius",
                stacklevel=4,
            )
        return self.found

    def _kept(self, turn: int) -> str:
        """Where the rounds before this one are, for messages."""
        if self.plan.checkpoint is None or turn == 0:
            return "with checkpoint=, a file keeps the rounds before" if turn else "this is the plain sample"
        return f"the rounds before are in {self.plan.checkpoint} (sf.Steered.load), and a call goes on from there"

    def _run(self, u: Mapping[str, Tensor], turn: int, *, gradient: bool) -> Solution:
        model, x = self.plan.control.applied(u)
        try:
            found = self.plan.run(model, x, gradient)
        except NonFiniteError as error:
            raise NonFiniteError(f"round {turn}: {error}; {self._kept(turn)}") from error
        self.nfe += found.nfe
        return found

    def _value(self, u: Mapping[str, Tensor], turn: int) -> Tensor | None:
        """What the guard adds to the reward."""
        control = self.plan.control
        return self.plan.guard.value(control.noise + u[""], self.plan.seed, turn) if control.over == "noise" else None

    def _evaluated(self, turn: int, *, wanted: bool) -> tuple[Solution, Tensor, Numbers | None]:
        """The run of a round with its rewards, and the direction in which to go, if it is wanted."""
        plan, method, kept = self.plan, self.plan.method, self._kept(turn)
        through = isinstance(method, Gradient) and wanted
        leaves = {name: part.detach().clone().requires_grad_(through) for name, part in self.u.items()}
        with torch.set_grad_enabled(through):
            run = self._run(leaves, turn, gradient=through)
        end = run.x.detach().clone()
        if not wanted or not isinstance(method, Gradient | FlowOpt):
            with torch.no_grad():
                rewards = ask(plan.reward, end, turn, gradient=False, kept=kept)
            return run, rewards, self._smoothed(turn, kept) if wanted else None
        with torch.enable_grad():
            rewards = ask(plan.reward, end.requires_grad_(), turn, gradient=True, kept=kept)
            slope = reward_gradient(rewards, end, turn, kept=kept)
        if not through:
            return run, rewards.detach(), self._with_guard({"": slope}, turn)
        direction = run_gradient(run.x, slope, leaves, turn, kept=kept)
        self.nfe += plan.redone(run)
        if plan.verify and turn == 0:
            self._verify(direction, kept)
        return run, rewards.detach(), self._with_guard(direction, turn)

    def _verify(self, direction: Numbers, kept: str) -> None:
        """Raise `InputError` unless the gradient is that of central differences along a random direction."""
        way = {name: self._direction(part, (0, _VERIFIED, k)) for k, (name, part) in enumerate(self.u.items())}
        step = torch.finfo(self.plan.control.x.dtype).eps ** (1 / 3)
        ends = list[Tensor]()
        for sign in (1.0, -1.0):
            run = self._run({name: self.u[name] + sign * step * part for name, part in way.items()}, 0, gradient=False)
            ends.append(_told(ask(self.plan.reward, run.x.detach(), 0, gradient=False, kept=kept)))
        found = (ends[0] - ends[1]) / (2.0 * step)
        told = torch.stack([_told(direction[name] * part).reshape(len(part), -1).sum(1) for name, part in way.items()])
        off = (told.sum(0) - found).norm() / torch.maximum(found.norm(), told.sum(0).norm()).clamp_min(1e-300)
        if off > _VERIFY:
            raise InputError(
                f"verify: along a random direction, the gradient is off by {100 * off:.0f} % of what differences of "
                "the reward say; is there a detach() in a part of the reward, of a correction or of the network?"
            )

    def _with_guard(self, direction: Numbers, turn: int) -> Numbers:
        """A direction with the gradient of what the guard adds."""
        leaves = {name: part.detach().clone().requires_grad_() for name, part in self.u.items()}
        with torch.enable_grad():
            value = self._value(leaves, turn)
            if value is None or not value.requires_grad:
                return direction
            parts = torch.autograd.grad(cast(Any, value.sum()), list(leaves.values()))
        return {name: direction[name] + part for name, part in zip(leaves, parts, strict=True)}

    def _smoothed(self, turn: int, kept: str) -> Numbers:
        """The estimate of the gradient from antithetic pairs of runs."""
        method = self.plan.method
        assert isinstance(method, ZeroOrder)
        ways, rewards = list[Numbers](), list[Tensor]()
        for pair in range(method.pairs):
            way = {name: self._direction(part, (turn, pair, k)) for k, (name, part) in enumerate(self.u.items())}
            ways.append(way)
            for sign in (1.0, -1.0):
                there = self._projected(
                    {name: self.u[name] + sign * method.radius * part for name, part in way.items()}
                )
                run = self._run(there, turn, gradient=False)
                asked = ask(self.plan.reward, run.x.detach(), turn, gradient=False, kept=kept)
                value = self._value(there, turn)
                rewards.append(_told(asked if value is None else asked + value))
        worth = method.shaped(torch.stack(rewards))
        apart = (worth[0::2] - worth[1::2]) / (2.0 * method.pairs * method.radius)
        return {
            name: torch.stack([broadcast(apart[k].to(part), part) * ways[k][name]
                               for k in range(method.pairs)]).sum(0)
            for name, part in self.u.items()
        }  # fmt: skip

    def _direction(self, part: Tensor, node: tuple[int, int, int]) -> Tensor:
        """Addressed standard normal numbers of the shape of what is optimised."""
        plan = self.plan
        shape, where = part.shape[1:], {"dtype": part.dtype, "device": part.device}
        return noise.normal(plan.seed, noise.STEERING, node, plan.rows, shape, **where)

    def _projected(self, u: Numbers) -> Numbers:
        """What the guard makes of numbers after a step."""
        control = self.plan.control
        if control.over != "noise":
            return u
        w = control.noise + u[""]
        held = self.plan.guard.project(w, control.noise)
        return u if held is w else control.projected(u, held)

    def _step(self, turn: int, direction: Numbers) -> None:
        """Make the optimiser's step, in place."""
        plan = self.plan
        for name, part in clipped(direction, plan.clip, normalised=plan.normalised).items():
            self.u[name].grad = -part
        self._optimizer.step()
        for name, part in self._projected(self.u).items():
            if part is not self.u[name]:
                self.u[name].copy_(part)
            self.u[name].grad = None
        if not all(bool(part.isfinite().all()) for part in self.u.values()):
            raise NonFiniteError(f"rate: the step of round {turn + 1} is NaN or infinite; {self._kept(turn + 1)}")
        self.turn = turn + 1

    def _keep(self, turn: int, rounds: int, run: Solution, rewards: Tensor) -> None:
        """Add a round to what was found, and write it."""
        plan, control = self.plan, self.plan.control
        with torch.no_grad():
            value = self._value(self.u, turn)
            start = _detached(control.value(self.u))
            far = dict[str, Tensor]() if control.over != "noise" else distances(control.noise + self.u[""])
            moved = torch.cat([_told(part).reshape(len(part), -1) for part in self.u.values()], dim=1)
            far["moved"] = rms(moved)
        told = _told(rewards)
        objective = told if value is None else told + _told(value)
        state = _state(run.state, lambda tensor: tensor.detach())
        work = {"at": {name: part.clone() for name, part in self.u.items()}, "optimizer": packed(self._optimizer)}
        before, now = self.found, dataclasses.replace(run, state=state)
        if before is None:
            best = torch.zeros(len(told), dtype=torch.int64, device=told.device)
            histories = told[None], objective[None], {name: curve.clone()[None] for name, curve in far.items()}
        else:
            reached = before.objectives.gather(0, before.best[None])[0]
            better = objective > reached
            best = torch.where(better, turn, before.best)
            state = _chosen(better, state, before.state)
            start = _chosen_value(better, start, before.start)
            histories = (
                torch.cat([before.rewards, told[None]]),
                torch.cat([before.objectives, objective[None]]),
                {name: torch.cat([before.distances[name], curve[None]]) for name, curve in far.items()},
            )
        fields = {field.name: getattr(now, field.name) for field in dataclasses.fields(Solution)}
        fields |= {"state": state, "nfe": self.nfe, "index": plan.rows.start}
        self.found = Steered(
            **fields,
            over=control.over,
            start=start,
            rewards=histories[0],
            objectives=histories[1],
            distances=histories[2],
            best=best,
            about=plan.about,
            work=work,
        )
        if plan.checkpoint is not None:
            self.found.save(plan.checkpoint)
        if plan.callback is not None:
            shown = run.x.detach().clone()
            plan.callback(Round(turn, rounds, told.clone(), shown, control.value(self.u), far, self.nfe))

    def _check_reward(self) -> None:
        """Raise `InputError` where there is nothing left to do, and the reward is another than that of the work."""
        assert self.found is not None
        with torch.no_grad():
            now = _told(ask(self.plan.reward, self.found.x, self.found.rounds, gradient=False, kept="this is a result"))
        known = _told(self.found.reward)
        if not torch.allclose(now, known, rtol=_SAME, atol=_SAME * float(known.abs().mean())):
            raise InputError("resume: for the samples that were found, the reward is another than it was")

    def _check_same(self, turn: int, rewards: Tensor) -> None:
        """Raise `InputError` where the reward or the model is not the one that the work was begun with."""
        assert self.found is not None
        known, now = self.found.rewards[turn], _told(rewards)
        if not torch.allclose(now, known, rtol=_SAME, atol=_SAME * float(known.abs().mean())):
            k = int((now - known).abs().argmax())
            raise InputError(
                f"resume: at round {turn} the reward of sample {k} was {float(known[k]):.6g} and is now "
                f"{float(now[k]):.6g}: the reward or the model is another"
            )


def _told(x: Tensor) -> Tensor:
    """Numbers for a history: float64, on the CPU, as not all devices have it."""
    return x.detach().to("cpu", torch.float64)


def _where(better: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """The rows of a batch, of which some are better; what was read from a file comes to the device."""
    return torch.where(broadcast(better.to(new.device), new), new, old.to(new.device))


def _state(state: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A solver's state with its tensors changed."""
    rebuilt, tensors = flatten_state(state)
    return rebuilt([change(tensor) for tensor in tensors])


def _chosen(better: Tensor, new: Any, old: Any) -> Any:
    """A state with the rows of another one where it is better."""
    rebuilt, fresh = flatten_state(new)
    _, kept = flatten_state(old)
    return rebuilt([_where(better, a, b) for a, b in zip(fresh, kept, strict=True)])


def _chosen_value(better: Tensor, new: Value, old: Value) -> Value:
    if isinstance(new, Tensor) and isinstance(old, Tensor):
        return _where(better, new, old)
    assert not isinstance(new, Tensor)
    assert not isinstance(old, Tensor)
    entries = {name: (new[name], old[name]) for name in new}
    return {name: _where(better, a, b) if a.ndim and len(a) == len(better) else a for name, (a, b) in entries.items()}


def _detached(value: Value) -> Value:
    if isinstance(value, Tensor):
        return value.detach().clone()
    return {name: part.detach().clone() for name, part in value.items()}
