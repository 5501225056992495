"""A run without its graph, and its way back: each step is made again, with a graph, and that graph is dropped.

Let the run be s_(k+1) = F_k(s_k; p), with s_k the solver's state and p all else that a gradient may reach (parameters,
conditions, a scale). With the cotangents w_N of the end,

    w_k = (dF_k / ds)^T w_(k+1),        dp = sum_k (dF_k / dp)^T w_(k+1),

each from one graph of one step at s_k, which was kept, or is recovered from s_(k+1) by the solver's inverse. This is
the gradient of the steps that were made ("discretise, then optimise"), not of the ODE that they approximate.

What p is, is not asked for but found: every step is also recorded the first time, and the leaves of its graph are p. A
network that is a closure, a correction that holds a tensor, noise maps that depend on a picture are therefore all
reached.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor

from .._internal.tensors import rms
from ..denoisers.base import Denoiser
from ..errors import InputError
from ..solvers.base import Solver, Step
from ..solvers.state import flatten_state
from .adjoint import Adjoint
from .graphs import Random, autocast_now, check_autograd, detached, graph_leaves, leaves_in, silenced, unhooked
from .steps import Model, drive
from .times import Times

DRAWS = (
    "adjoint: the network draws random numbers (dropout in training mode?), so that 'reversible' cannot recover the "
    "states; use adjoint='checkpoint', or the network's eval()"
)


class Made(NamedTuple):
    """A step that was made."""

    plain: Any
    """The solver's state after the step."""
    after: Any
    """The same after the corrections."""
    corrected: bool
    """Whether a correction has changed it; `plain` is then a copy."""
    calls: int
    """Evaluations of the model by the step."""


class Make(Protocol):
    """Makes step k of a run from the state before it, and lets the corrections act; `live` the first time only."""

    def __call__(self, asked: Model, before: Any, step: Step, k: int, live: bool) -> Made: ...


class Tape:
    """What the way back of a run needs.

    Args:
        adjoint: How the states come back.
        model: The model of the run.
        solver: Its method.
        state: The solver's state at the start, which may be part of the caller's graph.
        steps: The number of steps that the run can make.
        make: Makes a step.
        times: The grid's times, if they want gradients.
        given: Leaves in the place of tensors that corrections hold, and these tensors.
    """

    def __init__(
        self,
        adjoint: Adjoint,
        model: Denoiser,
        solver: Solver[Any],
        state: Any,
        steps: int,
        make: Make,
        times: Times | None,
        given: Sequence[tuple[Tensor, Tensor]],
    ):
        self.adjoint, self._solver, self._make, self._times = adjoint, solver, make, times
        self._stride = adjoint.stride(steps)
        exact = adjoint.kind == "checkpoint" or solver.properties.inverse == "exact"
        self._starts = flatten_state(state)[1]
        self._tolerance = adjoint.most(_precision(model, self._starts[0]), exact)
        self._watched = [(tensor, tensor._version) for tensor in _constants(model)]
        self._device = self._starts[0].device
        check_autograd(self._starts)
        self._contexts = [autocast_now(kind) for kind in sorted({"cpu", self._device.type})]
        self._given, self.model = _with_leaves(model)
        self._given += given
        self.state = detached(state)
        """The state that the run has reached."""
        self._steps: list[Step] = []
        self._random: dict[int, Random] = {}
        self._kept: dict[int, Any] = {0: detached(state)}
        self._uncorrected: dict[int, Any] = {}
        self._recent: dict[int, Any] = {}
        self._leaves: dict[int, Tensor] = {}
        self._keeps_graphs = True
        self._recorded: list[int] = []

    @property
    def _reversible(self) -> bool:
        return self.adjoint.kind == "reversible"

    def take(self, step: Step) -> int:
        """Make a step; the number of evaluations."""
        k = len(self._steps)
        self._steps.append(step)
        before, random = self.state, Random.now(self._device)
        build, parts = flatten_state(before)
        with torch.enable_grad():
            leaves = [part.detach().requires_grad_() for part in parts]
            made = self._make(self.model, build(leaves), step, k, True)
            ends = flatten_state(made.after)[1]
            own = {id(leaf) for leaf in leaves}
            self._leaves.update((id(leaf), leaf) for leaf in graph_leaves(ends) if id(leaf) not in own)
        self._remember(k, random, before, made)
        self.state = detached(made.after)
        return made.calls

    def _remember(self, k: int, random: Random, before: Any, made: Made) -> None:
        """Keep what the way back of step k cannot do without."""
        step = self._steps[k]
        if random.used():
            if self._reversible:
                raise InputError(DRAWS)
            self._random[k] = random
        if self._keeps(k, step):
            self._kept[k] = detached(before)
        if self._reversible and made.corrected:
            self._uncorrected[k] = made.plain
            self._kept[k + 1] = detached(made.after)

    def _keeps(self, k: int, step: Step) -> bool:
        """Whether the state before a step is kept."""
        if self._reversible:
            return step.reads_clean or 0.0 in (step.end.sigma, step.start.sigma)  # which no step may lead back from
        return k % self._stride == 0

    def finish(self, recorded: Sequence[int], samples: list[Tensor]) -> tuple[Any, list[Tensor]]:
        """Return the end of the run, and samples along it, as parts of the caller's graph.

        Args:
            recorded: The numbers of the steps whose ends were recorded, from 1.
            samples: What was recorded.
        """
        self._recorded = list(recorded)
        build, ends = flatten_state(self.state)
        inside = {id(leaf) for leaf, _ in self._given}
        hidden = [leaf for leaf in self._leaves.values() if id(leaf) not in inside]
        times = [] if self._times is None else [self._times.tensor]
        inputs = [*self._starts, *(original for _, original in self._given), *times, *hidden]
        self._hidden = [*(leaf for leaf, _ in self._given), *hidden]
        if not any(tensor.requires_grad for tensor in inputs):
            return self.state, samples
        if not self._reversible:  # a copy of its own, as the caller may write to the end
            self._kept[len(self._steps)] = build([end.clone() for end in ends])
        begun = {part.untyped_storage().data_ptr() for part in self._starts}
        ends = [end.clone() if end.untyped_storage().data_ptr() in begun else end.detach() for end in ends]
        self.state = None
        found = cast("tuple[Tensor, ...]", cast(Any, _Run).apply(self, build, ends, samples, *inputs))
        return build(found[: len(ends)]), [*found[len(ends) :]]

    def pull(self, end: Any, cotangents: Sequence[Tensor | None], needed: Sequence[bool]) -> list[Tensor | None]:
        """Return the gradients of all inputs.

        Args:
            end: The state at the end of the run, from which others are recovered.
            cotangents: The gradients of its tensors, and then of the recorded samples.
            needed: Which inputs want one.
        """
        self._check_constants()
        n, own = len(self._starts), len(self._given)
        total = [torch.zeros_like(leaf) for leaf in self._hidden]
        times, begins = self._times, any(needed[:n])
        if times is not None:
            times.begin()
        recorded = len(self._recorded)
        pulled = list(cotangents[: len(cotangents) - recorded])
        seen = dict(zip(self._recorded, cotangents[len(cotangents) - recorded :], strict=True))
        drift = torch.zeros((), device=self._device)
        self._recent, following = {len(self._steps): end}, end
        for k in reversed(range(len(self._steps))):
            before = self._before(k)
            pulled, off = self._pull_step(k, before, following, pulled, seen.get(k + 1), total, k > 0 or begins)
            drift, following = torch.maximum(drift, off), before
        self._recent = {}
        self._tell(drift.item())
        rest = [] if times is None else [times.total()]
        return [*pulled, *total[:own], *rest, *total[own:]]

    def _pull_step(
        self,
        k: int,
        before: Any,
        following: Any,
        pulled: list[Tensor | None],
        seen: Tensor | None,
        total: list[Tensor],
        moves: bool,
    ) -> tuple[list[Tensor | None], Tensor]:
        """Take a gradient back over a step, whose graph is gone when this returns.

        Args:
            k: The number of the step.
            before: The state before it.
            following: The state from which the step after it was made again.
            pulled: The gradients of the tensors of the state after the step.
            seen: That of its sample, if that was recorded.
            total: The gradients of what the run depends on, to which those of the step are added.
            moves: Whether the state before it wants a gradient.

        Returns:
            The gradients of the tensors of the state before it, and a drift.
        """
        times, step = self._times, self._steps[k]
        build, parts = flatten_state(before)
        with torch.enable_grad(), self._as_then(k):
            leaves = [part.detach().requires_grad_(moves) for part in parts]
            model = self.model if times is None else times.listening(self.model)
            made = self._make(model, build(leaves), step, k, False)
            ends, sample = flatten_state(made.after)[1], self._solver.output(made.after)
        drift = torch.zeros((), device=self._device)
        if k == 0 if self._reversible else k + 1 in self._kept:
            drift = _difference(made.after, self._kept.get(k + 1, following), self._solver)
        weights = [*zip(ends, pulled, strict=True), (sample, seen)]
        wanted = [(end, w) for end, w in weights if w is not None and end.requires_grad]
        sources = [*(leaves if moves else []), *self._hidden, *([] if times is None else times.sources)]
        found = self._gradients(wanted, sources)
        if times is not None:
            times.add(step, k, self._solver, before, [*pulled, seen], found[len(found) - len(times.sources) :])
        first = len(leaves) if moves else 0
        for sum_, part in zip(total, found[first : first + len(total)], strict=True):
            if part is not None:
                sum_ += part
        return found[: len(leaves)] if moves else [None] * len(leaves), drift

    def _gradients(self, wanted: list[tuple[Tensor, Tensor]], sources: list[Tensor]) -> list[Tensor | None]:
        """Return the weighted gradients of the ends of a step; hooks of parameters wait for the whole sum."""
        if not wanted or not sources:
            return [None] * len(sources)
        ends, weights = [end for end, _ in wanted], [weight for _, weight in wanted]
        # a graph may go on into one of the caller's, which must stay; compiled networks know none that do
        keep = self._keeps_graphs
        try:
            with silenced(self._hidden):
                found = torch.autograd.grad(ends, sources, weights, allow_unused=True, retain_graph=keep)
        except RuntimeError as error:
            if keep and "donated buffers" in str(error):
                self._keeps_graphs = False
                return self._gradients(wanted, sources)
            if "use_reentrant" not in str(error):
                raise
            raise InputError(
                "adjoint: the network is checkpointed with use_reentrant=True, which goes with no gradient of chosen "
                "tensors; checkpoint it with use_reentrant=False, or give sf.Adjoint(..., order=2)"
            ) from error
        return cast("list[Tensor | None]", [*found])

    def _check_constants(self) -> None:
        """Notice what was written to since the run, and is no part of its graph."""
        if any(tensor._version != version for tensor, version in self._watched):
            raise InputError(
                "adjoint: a parameter of the network or a condition has been written to since the run, whose steps "
                "cannot be made again; take the gradient first"
            )

    def _before(self, k: int) -> Any:
        """Return the state before step k, kept or recovered."""
        if self._reversible and k not in self._kept:
            self._recover(k)
        elif k not in self._kept and k not in self._recent:
            first = max(kept for kept in self._kept if kept < k)
            self._recent, state = {}, self._kept[first]
            for i in range(first, k):
                with torch.no_grad(), unhooked(), self._as_then(i):
                    state = detached(self._make(self.model, state, self._steps[i], i, False).after)
                self._recent[i + 1] = state
        return self._kept[k] if k in self._kept else self._recent[k]

    def _recover(self, k: int) -> None:
        """Find the state before step k from that after it, which is there."""
        step = self._steps[k]
        after = self._uncorrected[k] if k in self._uncorrected else self._kept.get(k + 1, self._recent.get(k + 1))
        last = self._steps[k - 1] if k > 0 else None
        with torch.no_grad(), unhooked(), self._as_then(k):
            state, _ = drive(self._solver.undo(after, step, last), self.model)
        self._recent = {k: detached(state)}

    def _tell(self, drift: float) -> None:
        self.adjoint.record.drift.append(drift)
        if drift <= self._tolerance:
            return
        if not self._reversible:
            raise InputError(
                f"adjoint: asked again for the same states, the model {self.model.name!r} has answered differently (by "
                f"{drift:.1e} of a state), so that there is no exact gradient; switch off caches and whatever else it "
                "carries from call to call"
            )
        warnings.warn(
            f"adjoint: the states recovered by solver {self._solver.name!r} are off by up to {drift:.1e} of their "
            "size, and the gradient may be; use an exactly reversible solver, more steps, or adjoint='checkpoint'",
            stacklevel=2,
        )

    @contextlib.contextmanager
    def _as_then(self, k: int) -> Generator[None]:
        """Compute as at step k: in the precision that autocast had, and with the same random numbers."""
        with contextlib.ExitStack() as stack:
            for context in self._contexts:
                stack.enter_context(context())
            if k in self._random:
                stack.enter_context(self._random[k].restored())
            yield


class _Run(torch.autograd.Function):
    """The end of a run as a function of all that it depends on."""

    @staticmethod
    def forward(ctx: Any, tape: Tape, build: Any, ends: list[Tensor], samples: list[Tensor], *inputs: Tensor) -> Any:
        ctx.tape, ctx.build, ctx.inputs = tape, build, len(inputs)
        ctx.save_for_backward(*inputs, *(ends if tape.adjoint.kind == "reversible" else ()))
        ctx.set_materialize_grads(False)
        return (*ends, *samples)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        if torch.is_grad_enabled():
            kind = ctx.tape.adjoint.kind
            raise InputError(f"adjoint: gradients of gradients need adjoint=sf.Adjoint({kind!r}, order=2)")
        saved = ctx.saved_tensors  # which notices what was written to since
        recoverable = ctx.tape.adjoint.kind == "reversible"
        end = ctx.build([part.detach() for part in saved[ctx.inputs :]]) if recoverable else None
        return (None, None, None, None, *ctx.tape.pull(end, grads, ctx.needs_input_grad[4:]))


def _constants(model: Denoiser) -> list[Tensor]:
    """Return the tensors that a run reads and does not change."""
    given = flatten_state((model.condition, model.null, model.scale))[1]
    return [*given, *(model.net.parameters() if isinstance(model.net, torch.nn.Module) else ())]


def _precision(model: Denoiser, x: Tensor) -> torch.dtype:
    """Return the coarsest type in which a run computes."""
    types = [x.dtype, *([] if model.dtype is None else [model.dtype])]
    if torch.is_autocast_enabled(x.device.type):
        types.append(torch.get_autocast_dtype(x.device.type))
    return max(types, key=lambda dtype: torch.finfo(dtype).eps)


def _with_leaves(model: Denoiser) -> tuple[list[tuple[Tensor, Tensor]], Denoiser]:
    """Return the model with leaves in place of conditions that are computed with a graph, and pairs of both.

    The graph that leads to them is then followed once, and not once a step.
    """
    pairs, (condition, null, scale) = leaves_in((model.condition, model.null, model.scale))
    return pairs, model.with_given(condition, null, scale) if pairs else model


def _difference(one: Any, other: Any, solver: Solver[Any]) -> Tensor:
    """Return the largest difference of a sample of two states, as a share of its size."""
    a, b = solver.output(one).detach(), solver.output(other).detach()
    return (rms(a - b) / rms(b).clamp_min(torch.finfo(b.dtype).tiny)).max()
