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
from torch.utils import checkpoint as checkpointing

from .._internal.tensors import rms
from ..denoisers.base import Denoiser
from ..errors import InputError
from ..prediction import Prediction
from ..solvers.base import Solver, Step
from ..solvers.state import flatten_state
from .adjoint import Adjoint
from .graphs import Random, autocast_now, clock, graph_leaves
from .steps import Model, drive
from .times import Times

_DRAWS = (
    "adjoint: the network draws random numbers (dropout in training mode?), so that 'reversible' cannot recover the "
    "states; use adjoint='checkpoint', or the network's eval()"
)


class Made(NamedTuple):
    """A step that was made."""

    plain: Any
    """The solver's state after the step."""
    after: Any
    """The same after the corrections."""
    calls: int
    """Evaluations of the model by the step."""


class Make(Protocol):
    """Makes step k of a run from the state before it, and lets the corrections act; `live` the first time only."""

    def __call__(self, asked: Model, before: Any, step: Step, k: int, live: bool) -> Made: ...


def answering(model: Denoiser) -> Model:
    """Return a model that refuses to answer without a graph where its answer must have one."""

    def answer(x: Tensor, t: float) -> Prediction:
        prediction = model(x, t)
        if x.requires_grad and torch.is_grad_enabled() and not prediction.output.requires_grad:
            raise InputError(
                f"adjoint: the output of the model {model.name!r} does not depend on the state by any graph, so that "
                "it has no gradient; a black box, or a network under torch.no_grad, can only be sampled"
            )
        return prediction

    return answer


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
    ):
        self.adjoint, self._solver, self._make, self._times = adjoint, solver, make, times
        self._stride = adjoint.stride(steps)
        self._build, self._starts = flatten_state(state)
        self._device = self._starts[0].device
        self._contexts = [autocast_now(kind) for kind in sorted({"cpu", self._device.type})]
        graph = adjoint.order == 2
        self._given, self.model = ([], model) if graph else _with_leaves(model)
        self.state = state if graph else _detached(state)
        """The state that the run has reached."""
        self._steps: list[Step] = []
        self._random: dict[int, Random] = {}
        self._kept: dict[int, Any] = {0: _detached(state)}
        self._uncorrected: dict[int, Any] = {}
        self._recent: dict[int, Any] = {}
        self._leaves: dict[int, Tensor] = {}
        self._goes_on = False
        self._recorded: list[int] = []

    @property
    def _reversible(self) -> bool:
        return self.adjoint.kind == "reversible"

    def take(self, step: Step) -> int:
        """Make a step; the number of evaluations."""
        k = len(self._steps)
        self._steps.append(step)
        if self.adjoint.order == 2:
            return self._take_with_graph(k, step)
        before, random = self.state, Random.now(self._device)
        build, parts = flatten_state(before)
        with torch.enable_grad():
            leaves, begun = [part.detach().requires_grad_() for part in parts], clock()
            made = self._make(answering(self.model), build(leaves), step, k, True)
            ends = flatten_state(made.after)[1]
            own = {id(leaf) for leaf in leaves}
            found, older = graph_leaves(ends, begun)
            self._leaves.update((id(leaf), leaf) for leaf in found if id(leaf) not in own)
            self._goes_on = self._goes_on or older
        self._remember(k, random, before, made)
        self.state = _detached(made.after)
        return made.calls

    def _remember(self, k: int, random: Random, before: Any, made: Made) -> None:
        """Keep what the way back of step k cannot do without."""
        step = self._steps[k]
        if random != Random.now(self._device):
            if self._reversible:
                raise InputError(_DRAWS)
            self._random[k] = random
        if self._reversible:
            if step.reads_clean or 0.0 in (step.end.sigma, step.start.sigma):  # which no step may lead back from
                self._kept[k] = _detached(before)
            if made.after is not made.plain:
                self._uncorrected[k] = _detached(made.plain)
        elif k % self._stride == 0:
            self._kept[k] = _detached(before)

    def finish(self, recorded: Sequence[int], samples: list[Tensor]) -> tuple[Any, list[Tensor]]:
        """Return the end of the run, and samples along it, as parts of the caller's graph.

        Args:
            recorded: The numbers of the steps whose ends were recorded, from 1.
            samples: What was recorded.
        """
        if self.adjoint.order == 2:
            end, self.state = self.state, _detached(self.state) if self._reversible else None
            return end, samples
        self._recorded = list(recorded)
        build, ends = flatten_state(self.state)
        inside = {id(leaf) for leaf, _ in self._given}
        hidden = [leaf for leaf in self._leaves.values() if id(leaf) not in inside]
        times = [] if self._times is None else [self._times.tensor]
        inputs = [*self._starts, *(original for _, original in self._given), *times, *hidden]
        self._hidden = [*(leaf for leaf, _ in self._given), *hidden]
        if not any(tensor.requires_grad for tensor in inputs):
            return self.state, samples
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
            build, parts = flatten_state(self._before(k))
            moves = k > 0 or begins
            with torch.enable_grad(), self._as_then(k):
                leaves = [part.detach().requires_grad_(moves) for part in parts]
                model = answering(self.model) if times is None else times.listening(self.model)
                made = self._make(model, build(leaves), self._steps[k], k, False)
                ends, sample = flatten_state(made.after)[1], self._solver.output(made.after)
            if k == 0 if self._reversible else k + 1 in self._kept:
                known = self._kept.get(k + 1, following)
                drift = torch.maximum(drift, _difference(made.after, known, self._solver))
            following = build(parts)
            weights = [*zip(ends, pulled, strict=True), (sample, seen.get(k + 1))]
            wanted = [(end, w) for end, w in weights if w is not None and end.requires_grad]
            sources = [*(leaves if moves else []), *self._hidden, *([] if times is None else times.sources)]
            found = _gradients(wanted, sources, keep=self._goes_on)
            if times is not None:
                of_calls = found[len(found) - len(times.sources) :]
                times.add(self._steps[k], k, self._solver, build(parts), [*pulled, seen.get(k + 1)], of_calls)
            pulled = found[: len(leaves)] if moves else [None] * len(leaves)
            first = len(leaves) if moves else 0
            for sum_, part in zip(total, found[first : first + len(total)], strict=True):
                if part is not None:
                    sum_ += part
        self._recent = {}
        self._tell(drift.item())
        rest = [] if times is None else [times.total()]
        return [*pulled, *total[:own], *rest, *total[own:]]

    def _before(self, k: int) -> Any:
        """Return the state before step k, kept or recovered."""
        if self._reversible and k not in self._kept:
            self._recover(k)
        elif k not in self._kept and k not in self._recent:
            first = max(kept for kept in self._kept if kept < k)
            self._recent, state = {}, self._kept[first]
            for i in range(first, k):
                with torch.no_grad(), self._as_then(i):
                    state = _detached(self._make(self.model, state, self._steps[i], i, False).after)
                self._recent[i + 1] = state
        return self._kept[k] if k in self._kept else self._recent[k]

    def _recover(self, k: int) -> None:
        """Find the state before step k from that after it, which is there."""
        step = self._steps[k]
        after = self._uncorrected[k] if k in self._uncorrected else self._kept.get(k + 1, self._recent.get(k + 1))
        last = self._steps[k - 1] if k > 0 else None
        with torch.no_grad(), self._as_then(k):
            state, _ = drive(self._solver.undo(after, step, last), self.model)
        self._recent = {k: _detached(state)}

    def _tell(self, drift: float) -> None:
        self.adjoint.record.drift.append(drift)
        if drift <= self.adjoint.tolerance:
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

    def _take_with_graph(self, k: int, step: Step) -> int:
        """Make a step as a part of the caller's graph, whose tensors are computed again where they are needed."""
        build, parts = flatten_state(self.state)
        self._remember_before(k)
        wants = [part.requires_grad for part in parts]
        calls, after = 0, build
        begun: list[list[Tensor]] = [parts]
        random = Random.now(self._device)

        def run(_: Tensor) -> tuple[Tensor, ...]:
            nonlocal calls, after
            live = bool(begun)
            values = begun.pop() if live else flatten_state(self._before_again(k))[1]
            if not live:
                values = [v.detach().requires_grad_(w) for v, w in zip(values, wants, strict=True)]
            made = self._make(answering(self.model), build(values), step, k, live)
            if live:
                calls = made.calls
                if self._reversible and made.after is not made.plain:
                    self._uncorrected[k] = _detached(made.plain)
            after, ends = flatten_state(made.after)
            return tuple(ends)

        del parts  # the run holds no tensor of its steps
        recomputed = cast(Any, checkpointing).checkpoint
        found = cast("tuple[Tensor, ...]", recomputed(run, torch.empty(0, device=self._device), use_reentrant=False))
        if self._reversible and random != Random.now(self._device):
            raise InputError(_DRAWS)
        self.state = after(found)
        return calls

    def _remember_before(self, k: int) -> None:
        step = self._steps[k]
        ends = step.reads_clean or 0.0 in (step.end.sigma, step.start.sigma)
        if (self._reversible and ends) or (not self._reversible and k % self._stride == 0):
            self._kept[k] = _detached(self.state)

    def _before_again(self, k: int) -> Any:
        """Return the state before step k, in whatever order the graph asks for it."""
        if k in self._kept:
            return self._kept[k]
        if not self._reversible:
            return self._before(k)
        if k not in self._recent:
            known = [j for j in (*self._kept, *self._recent) if j > k]
            nearest = min(known, default=len(self._steps))
            if nearest not in self._recent:
                end = self._kept.get(nearest)
                self._recent = {nearest: _detached(self.state) if end is None else end}
            for j in reversed(range(k, nearest)):
                self._recover(j)
        return self._recent[k]


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


def _with_leaves(model: Denoiser) -> tuple[list[tuple[Tensor, Tensor]], Denoiser]:
    """Return the model with leaves in place of conditions that are computed with a graph, and pairs of both.

    The graph that leads to them is then followed once, and not once a step.
    """
    build, parts = flatten_state((model.condition, model.null, model.scale))
    pairs = {id(part): (part.detach().requires_grad_(), part) for part in parts if part.grad_fn is not None}
    if not pairs:
        return [], model
    condition, null, scale = build([pairs[id(part)][0] if id(part) in pairs else part for part in parts])
    return list(pairs.values()), model.with_given(condition, null, scale)


def _detached(state: Any) -> Any:
    build, parts = flatten_state(state)
    return build([part.detach() for part in parts])


def _difference(one: Any, other: Any, solver: Solver[Any]) -> Tensor:
    """Return the largest difference of a sample of two states, as a share of its size."""
    a, b = solver.output(one).detach(), solver.output(other).detach()
    return (rms(a - b) / rms(b).clamp_min(torch.finfo(b.dtype).tiny)).max()


def _gradients(wanted: list[tuple[Tensor, Tensor]], sources: list[Tensor], *, keep: bool) -> list[Tensor | None]:
    """Return the gradients of some sources; `keep` the graph where it goes on into one of the caller's."""
    if not wanted or not sources:
        return [None] * len(sources)
    ends, weights = [end for end, _ in wanted], [weight for _, weight in wanted]
    try:
        found = torch.autograd.grad(ends, sources, weights, allow_unused=True, retain_graph=keep)
    except RuntimeError as error:
        if "use_reentrant" not in str(error):
            raise
        raise InputError(
            "adjoint: the network is checkpointed with use_reentrant=True, which goes with no gradient of chosen "
            "tensors; checkpoint it with use_reentrant=False, or give sf.Adjoint(..., order=2)"
        ) from error
    return cast("list[Tensor | None]", list(found))
