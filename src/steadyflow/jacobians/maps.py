"""A whole run over a grid as a differentiable map, with its Jacobian's products.

`jvp` carries a tangent along, step by step, so that its memory does not grow with the number of steps. `vjp` keeps one
state a step on the way there and runs each step again on the way back. Never is more than one step's graph alive
(checkpointing; Chen et al. 2016).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from .._integrate import StepLoop, check_state, drive
from .._internal.autograd import no_grad_unless
from .._internal.tensors import basis_vectors, finite, norm
from ..denoisers.base import Denoiser
from ..errors import InputError, NonFiniteError
from ..grids import Grid
from ..noise import NoiseSource
from ..solvers import registry
from ..solvers.base import Solver, Step, each_step
from ..solvers.state import flatten_state

DENSE_LIMIT = 4096
"""The largest number of dimensions for which a whole Jacobian is made."""

_LARGE = 2**14
"""The size of a state from which products of the Jacobian are made without a graph."""

_Function = Callable[..., list[Tensor]]
_Build = Callable[[Sequence[Tensor]], Any]


@dataclass(frozen=True)
class Tangent:
    """A tangent carried along a run."""

    x: Tensor
    """Where the run ends, shape (B, ...)."""
    change: Tensor
    """The Jacobian times the direction, shape (B, ...)."""
    times: tuple[float, ...]
    norms: Tensor
    """The tangent's Euclidean norm in model space at each time, shape (steps + 1, B)."""


@dataclass(frozen=True, eq=False)
class FlowMap:
    """z -> x: a solver's run over a grid; the generation map G of a model over a falling grid.

    All methods take z of shape (B, ...) and treat the samples of the batch as separate maps.

    Args:
        model: The model of the data.
        grid: The times of the run.
        solver: The method, or its name.
        noise: Of a stochastic solver, whose map for these draws it then is.
    """

    model: Denoiser
    grid: Grid
    solver: Solver[Any]
    noise: NoiseSource | None = None

    def __post_init__(self):
        self.grid.check_domain(self.model.schedule)
        object.__setattr__(self, "solver", registry.get(self.solver))
        if self.grid.rising:
            self.solver.check_invertible()
        if self.solver.properties.stochastic and self.noise is None:
            raise InputError(f"map: solver {self.solver.name!r} is stochastic; give the noise for which to take it")

    @no_grad_unless("z")
    def __call__(self, z: Tensor) -> Tensor:
        """The end of the run, shape (B, ...)."""
        check_state("z", z, self.model.shape)
        state = self.solver.start(z, self.model.schedule, self.grid.times[0])
        loop = StepLoop(self.model, self.solver, self.model.schedule, self.grid, state, **self._how)
        for _ in loop:
            pass
        return _finite(self.solver.output(loop.state))

    def jvp(self, z: Tensor, u: Tensor) -> Tensor:
        """The Jacobian at z times u, shape (B, ...)."""
        return self.carry(z, u).change

    def carry(self, z: Tensor, u: Tensor) -> Tangent:
        """The Jacobian at z times u, and the tangent's norm at every time of the grid."""
        check_state("z", z, self.model.shape)
        check_state("u", u, tuple(z.shape[1:]))
        norms = [norm(u)]
        values, changes = [z], [u]
        x, change = z, u
        for function in self._functions():
            values, changes = _forward(function, values, changes)
            (x,), (change,) = _forward(function.output, values, changes)
            norms.append(norm(change))
        return Tangent(_finite(x), change, self.grid.times, torch.stack(norms))

    def vjp(self, z: Tensor, w: Tensor) -> Tensor:
        """The transposed Jacobian at z times w, shape (B, ...)."""
        check_state("z", z, self.model.shape)
        check_state("w", w, tuple(z.shape[1:]))
        tape: list[tuple[_Function, list[Tensor]]] = []
        values, last = [z], None
        for function in self._functions():
            tape += [(function, values)]
            with torch.no_grad():
                values = function(*values)
            last = function
        assert last is not None  # a grid has at least one step
        tape += [(last.output, values)]
        pulled = [w]
        while tape:
            function, values = tape.pop()
            pulled = pullback(function, values, keep=False)(pulled)
        return _finite(pulled[0])

    def dense(self, z: Tensor) -> Tensor:
        """The Jacobian at z, shape (B, n, n), n the dimensions of a sample; one `jvp` a column.

        Raises `InputError` beyond `DENSE_LIMIT` dimensions.
        """
        n = z[0].numel()
        if n > DENSE_LIMIT:
            raise InputError(f"dense: {n} dimensions; a whole Jacobian is made up to {DENSE_LIMIT}")
        return torch.stack([self.jvp(z, u.contiguous()).flatten(1) for u in basis_vectors(z)], 2)

    @property
    def _how(self) -> dict[str, Any]:
        return {"noise": self.noise, "defined_at_zero_noise": self.model.defined_at_zero_noise}

    def _functions(self) -> Iterator[_StepFunction]:
        """The run as functions of the state's tensors; the first takes z itself."""

        def start(tensors: Sequence[Tensor]) -> Any:
            return self.solver.start(tensors[0], self.model.schedule, self.grid.times[0])

        build: _Build = start
        for step in each_step(self.model.schedule, self.grid, **self._how):
            function = _StepFunction(self.model, self.solver, step, build)
            yield function
            build = function.after


@dataclass(frozen=True, eq=False)
class StepMap:
    """x -> x1: one solver step as a map of the sample alone; what else the solver carries is held.

    state: the solver's state before the step. All methods take x of shape (B, ...) and keep samples apart.
    """

    model: Denoiser
    solver: Solver[Any]
    step: Step
    state: Any

    @property
    def x(self) -> Tensor:
        """The sample before the step."""
        return self.solver.output(self.state)

    def __call__(self, x: Tensor) -> Tensor:
        """The sample after the step, shape (B, ...)."""
        return self._run(x)[0]

    def jvp(self, x: Tensor, u: Tensor) -> Tensor:
        """The Jacobian at x times u, shape (B, ...)."""
        return _forward(self._run, [x], [u])[1][0]

    def vjp(self, x: Tensor, w: Tensor) -> Tensor:
        """The transposed Jacobian at x times w, shape (B, ...)."""
        return self.pullback(x)(w)

    def pullback(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """w -> the transposed Jacobian at x times w, for as many w as are asked, on one graph."""
        pull = pullback(self._run, [x])
        return lambda w: pull([w])[0]

    def _run(self, x: Tensor) -> list[Tensor]:
        build, parts = flatten_state(self.state)
        state, _ = drive(self.solver.advance(build([x, *parts[1:]]), self.step), self.model)
        return [self.solver.output(state)]


class _StepFunction:
    """One solver step as a function from the tensors of the state before to those of the state after."""

    def __init__(self, model: Denoiser, solver: Solver[Any], step: Step, before: _Build):
        self._model, self._solver, self._leg, self._before = model, solver, step, before
        self.after: _Build = before
        """How to build the state after the step from its tensors; known once the step has run."""

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        state, _ = drive(self._solver.advance(self._before(tensors), self._leg), self._model)
        self.after, parts = flatten_state(state)
        return parts

    def output(self, *tensors: Tensor) -> list[Tensor]:
        """The sample of the state after the step."""
        return [self._solver.output(self.after(tensors))]


def _forward(run: _Function, values: Sequence[Tensor], changes: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The function's values, and its derivative along the changes: the fast way, or for large states the lean one."""
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has neither a forward nor a second derivative
        way = _forward_mode if values[0].numel() > _LARGE else _twice_transposed
        return way(run, values, changes)


def _forward_mode(run: _Function, values: Sequence[Tensor], changes: Sequence[Tensor]) -> tuple[list, list]:
    """By torch's forward mode, which keeps no graph."""
    with torch.no_grad(), forward_ad.dual_level():
        duals = [forward_ad.make_dual(value, change) for value, change in zip(values, changes, strict=True)]
        parts = [forward_ad.unpack_dual(part) for part in run(*duals)]
    return (
        [part.primal for part in parts],
        [torch.zeros_like(part.primal) if part.tangent is None else part.tangent for part in parts],
    )


def _twice_transposed(run: _Function, values: Sequence[Tensor], changes: Sequence[Tensor]) -> tuple[list, list]:
    """J^T w is linear in w, and the derivative of that along the changes is J times them.

    On small models two to six times as fast as forward mode, many of whose formulas run in Python; keeps a graph.
    """
    with torch.enable_grad():
        leaves = [value.detach().requires_grad_() for value in values]
        parts = run(*leaves)
        moving = [part for part in parts if part.requires_grad]
        weights = [torch.zeros_like(part).requires_grad_() for part in moving]
        pulled = torch.autograd.grad(moving, leaves, weights, create_graph=True, allow_unused=True) if moving else []
        used = [(g, change) for g, change in zip(pulled, changes, strict=False) if g is not None and g.requires_grad]
        pushed = iter(
            torch.autograd.grad([g for g, _ in used], weights, [c for _, c in used], allow_unused=True) if used else []
        )
    tangents = [next(pushed, None) if part.requires_grad else None for part in parts]
    return (
        [part.detach() for part in parts],
        [torch.zeros_like(p) if t is None else t for p, t in zip(parts, tangents, strict=True)],
    )


def pullback(
    run: _Function, values: Sequence[Tensor], *, keep: bool = True
) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    """What makes cotangents of the function's arguments from those of its values; once, unless the graph is kept."""
    with torch.enable_grad():
        leaves = [value.detach().requires_grad_() for value in values]
        parts = run(*leaves)

    def pull(pulled: Sequence[Tensor]) -> list[Tensor]:
        wanted = [(part, w) for part, w in zip(parts, pulled, strict=True) if part.requires_grad]
        if not wanted:
            return [torch.zeros_like(value) for value in values]
        ends, weights = [p for p, _ in wanted], [w for _, w in wanted]
        grads = torch.autograd.grad(ends, leaves, weights, allow_unused=True, retain_graph=keep)
        return [torch.zeros_like(v) if g is None else g for v, g in zip(values, grads, strict=True)]

    return pull


def _finite(x: Tensor) -> Tensor:
    if not finite(x):
        raise NonFiniteError("map: NaN or infinity along the run; more steps, less guidance or another solver")
    return x
