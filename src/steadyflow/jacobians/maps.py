"""Runs and single steps as differentiable maps, with the products of their Jacobians.

`FlowMap.jvp` carries a tangent along, step by step, so that its memory does not grow with the number of steps.
`FlowMap.vjp` stores one state per step on the way there and runs each step again on the way back. The graph of no more
than one step is alive at any time (checkpointing; Chen et al. 2016).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from .._integrate import StepLoop, check_state, drive
from .._internal.autograd import check_derivatives, no_grad_unless
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
"""A function from tensors to tensors."""
_Build = Callable[[Sequence[Tensor]], Any]
"""How to build a solver's state from its tensors."""

_make_dual: Callable[[Tensor, Tensor], Tensor] = cast(Any, forward_ad).make_dual
_unpack_dual: Callable[[Tensor], forward_ad.UnpackedDualTensor] = cast(Any, forward_ad).unpack_dual


@dataclass(frozen=True)
class Tangent:
    """The end of a run, with a tangent that was carried along it."""

    x: Tensor
    """Where the run ends, shape (B, ...)."""
    change: Tensor
    """The Jacobian times the direction, shape (B, ...)."""
    times: tuple[float, ...]
    """The times of the grid, steps + 1 of them."""
    norms: Tensor
    """The tangent's Euclidean norm in model space at each time, shape (steps + 1, B)."""


@dataclass(frozen=True, eq=False)
class FlowMap:
    """z -> x: a solver's run over a grid; over a falling grid, the generation map G of a model.

    All methods take z of shape (B, ...) and treat the samples of the batch as separate maps.

    Args:
        model: The model of the data.
        grid: The times of the run.
        solver: The method, or its name.
        noise: The noise source of a stochastic solver, whose draws the map then has fixed.

    Raises:
        InputError: The grid leaves the path, or the solver is stochastic and has no noise.
        NotInvertibleError: The grid rises and the solver has no inverse.
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
        self.solver.check_grid(self.model.schedule, self.grid)
        if self.solver.properties.stochastic and self.noise is None:
            raise InputError(f"map: solver {self.solver.name!r} is stochastic; give the noise for which to take it")

    @no_grad_unless("z")
    def __call__(self, z: Tensor) -> Tensor:
        """Run from z.

        Args:
            z: The start of the run, shape (B, ...).

        Returns:
            The end of the run, shape (B, ...).

        Raises:
            InputError: z does not fit the model.
            NonFiniteError: NaN or infinity appeared.
        """
        check_state("z", z, self.model.shape)
        state = self.solver.start(z, self.model.schedule, self.grid.times[0])
        loop = StepLoop(self.model, self.solver, self.model.schedule, self.grid, state, **self._how)
        for _ in loop:
            pass
        return _finite(self.solver.output(loop.state))

    def jvp(self, z: Tensor, u: Tensor) -> Tensor:
        """Multiply the Jacobian at z by a direction.

        Args:
            z: The start of the run, shape (B, ...).
            u: The direction, shape (B, ...).

        Returns:
            J u, shape (B, ...).
        """
        return self.carry(z, u).change

    def carry(self, z: Tensor, u: Tensor) -> Tangent:
        """Multiply the Jacobian at z by a direction, and measure the tangent at every time of the grid.

        Args:
            z: The start of the run, shape (B, ...).
            u: The direction, shape (B, ...).

        Returns:
            The end of the run, J u, and the tangent's norms.

        Raises:
            InputError: z or u does not fit the model.
            NonFiniteError: NaN or infinity appeared.
        """
        check_state("z", z, self.model.shape)
        check_state("u", u, tuple(z.shape[1:]))
        norms = [norm(u)]
        values, changes, x, change = [z], [u], z, u
        times = [self.grid.times[0]]
        for function in self._functions():
            values, changes = _forward(function, values, changes)
            (x,), (change,) = _forward(function.output, values, changes)
            norms.append(norm(change))
            times.append(function.step.t1)
        return Tangent(_finite(x), change, tuple(times), torch.stack(norms))

    def vjp(self, z: Tensor, w: Tensor) -> Tensor:
        """Multiply the transposed Jacobian at z by a cotangent.

        Args:
            z: The start of the run, shape (B, ...).
            w: The cotangent, in the space of the run's end, shape (B, ...).

        Returns:
            J^T w, shape (B, ...).

        Raises:
            InputError: z or w does not fit the model.
            NonFiniteError: NaN or infinity appeared.
        """
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
        """Build the whole Jacobian at z, with one `jvp` per column.

        Args:
            z: The start of the run, shape (B, ...).

        Returns:
            J, shape (B, n, n), with n the number of dimensions of a sample.

        Raises:
            InputError: A sample has more than `DENSE_LIMIT` dimensions.
        """
        n = z[0].numel()
        if n > DENSE_LIMIT:
            raise InputError(f"dense: {n} dimensions; a whole Jacobian is made up to {DENSE_LIMIT}")
        return torch.stack([self.jvp(z, u.contiguous()).flatten(1) for u in basis_vectors(z)], 2)

    @property
    def _how(self) -> dict[str, Any]:
        return {"noise": self.noise, "defined_at_zero_noise": self.model.defined_at_zero_noise}

    def _functions(self) -> Iterator[_StepFunction]:
        """The steps of the run as functions of the state's tensors; the first takes z itself."""

        def start(tensors: Sequence[Tensor]) -> Any:
            return self.solver.start(tensors[0], self.model.schedule, self.grid.times[0])

        build: _Build = start
        for step in each_step(self.model.schedule, self.grid, **self._how):
            function = _StepFunction(self.model, self.solver, step, build)
            yield function
            build = function.after


@dataclass(frozen=True, eq=False)
class StepMap:
    """x -> x1: one solver step as a map of the sample alone; whatever else the solver carries is held fixed.

    All methods take x of shape (B, ...) and treat the samples of the batch as separate maps.

    Args:
        model: The model of the data.
        solver: The method.
        step: The step.
        state: The solver's state before the step.
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
        """Take the step from the sample x, shape (B, ...), to the sample after it, of the same shape."""
        return self._run(x)[0]

    def jvp(self, x: Tensor, u: Tensor) -> Tensor:
        """Multiply the Jacobian at x by a direction.

        Args:
            x: The sample before the step, shape (B, ...).
            u: The direction, shape (B, ...).

        Returns:
            J u, shape (B, ...).
        """
        return _forward(self._run, [x], [u])[1][0]

    def vjp(self, x: Tensor, w: Tensor) -> Tensor:
        """Multiply the transposed Jacobian at x by a cotangent.

        Args:
            x: The sample before the step, shape (B, ...).
            w: The cotangent, shape (B, ...).

        Returns:
            J^T w, shape (B, ...).
        """
        return self.pullback(x)(w)

    def pullback(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """Evaluate the step once, and return the function w -> J^T w at x.

        Args:
            x: The sample before the step, shape (B, ...).

        Returns:
            A function of a cotangent w of shape (B, ...), which may be called any number of times on the one graph.
        """
        pull = pullback(self._run, [x])
        return lambda w: pull([w])[0]

    def _run(self, x: Tensor) -> list[Tensor]:
        build, parts = flatten_state(self.state)
        before = build([x, *parts[1:]])
        if self.solver.has_own_grid:  # whose state holds the start of the run too, which moves along
            before = self.solver.with_sample(self.state, x, self.step.schedule, self.step.t0)
        state, _ = drive(self.solver.advance(before, self.step), self.model)
        return [self.solver.output(state)]


class _StepFunction:
    """One solver step as a function from the tensors of the state before to those of the state after."""

    def __init__(self, model: Denoiser, solver: Solver[Any], step: Step, before: _Build):
        self._model, self._solver, self.step, self._before = model, solver, step, before
        self.after: _Build = before
        """How to build the state after the step from its tensors; known once the step has run."""

    def __call__(self, *tensors: Tensor) -> list[Tensor]:
        state, _ = drive(self._solver.advance(self._before(tensors), self.step), self._model)
        self.after, parts = flatten_state(state)
        return parts

    def output(self, *tensors: Tensor) -> list[Tensor]:
        """The sample of the state after the step."""
        return [self._solver.output(self.after(tensors))]


def _forward(run: _Function, values: Sequence[Tensor], changes: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The values, and the derivative along the changes; large states take the way without a graph."""
    check_derivatives()
    with sdpa_kernel(SDPBackend.MATH):  # fused attention has neither a forward nor a second derivative
        try:
            if values[0].numel() <= _LARGE:
                return _twice_transposed(run, values, changes)
        except RuntimeError as error:  # weights that were made under torch.inference_mode() bear no graph
            if "Inference tensors cannot be saved" not in str(error):
                raise
        return _forward_mode(run, values, changes)


def _forward_mode(
    run: _Function, values: Sequence[Tensor], changes: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """The values and the derivative by torch's forward mode, which records no graph."""
    with torch.no_grad(), forward_ad.dual_level():
        duals = [_make_dual(value, change) for value, change in zip(values, changes, strict=True)]
        parts = [_unpack_dual(part) for part in run(*duals)]
    return (
        [part.primal for part in parts],
        [torch.zeros_like(part.primal) if part.tangent is None else part.tangent for part in parts],
    )


def _twice_transposed(
    run: _Function, values: Sequence[Tensor], changes: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """The values and the derivative by two transposed products: J^T w is linear in w, and its transpose in w is J.

    On small models this is two to six times as fast as forward mode, many of whose formulas run in Python; it records
    a graph.
    """
    with torch.enable_grad():
        leaves = [value.detach().requires_grad_() for value in values]
        parts = run(*leaves)
        moving = [part for part in parts if part.requires_grad]
        weights = [torch.zeros_like(part).requires_grad_() for part in moving]
        pulled = _gradients(moving, leaves, weights, create_graph=True) if moving else ()
        used = [(g, change) for g, change in zip(pulled, changes, strict=False) if g is not None and g.requires_grad]
        pushed = iter(_gradients([g for g, _ in used], weights, [c for _, c in used]) if used else ())
    tangents = [next(pushed, None) if part.requires_grad else None for part in parts]
    return (
        [part.detach() for part in parts],
        [torch.zeros_like(p) if t is None else t for p, t in zip(parts, tangents, strict=True)],
    )


def _gradients(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    *,
    create_graph: bool = False,
    retain_graph: bool | None = None,
) -> Sequence[Tensor | None]:
    """The weighted gradients of the outputs; None for an input that has none, which torch's own types leave out."""
    found = torch.autograd.grad(
        outputs, inputs, weights, create_graph=create_graph, retain_graph=retain_graph, allow_unused=True
    )
    return cast("Sequence[Tensor | None]", found)


def pullback(
    run: _Function, values: Sequence[Tensor], *, keep: bool = True
) -> Callable[[Sequence[Tensor]], list[Tensor]]:
    """Evaluate a function once, and return its transposed derivative.

    Args:
        run: The function, from tensors to tensors.
        values: Its arguments.
        keep: Whether to retain the graph, so that the result may be called more than once.

    Returns:
        A function from cotangents of the function's values to cotangents of its arguments.
    """
    check_derivatives()
    with torch.enable_grad():
        leaves = [value.detach().requires_grad_() for value in values]
        parts = run(*leaves)

    def pull(pulled: Sequence[Tensor]) -> list[Tensor]:
        wanted = [(part, w) for part, w in zip(parts, pulled, strict=True) if part.requires_grad]
        if not wanted:
            return [torch.zeros_like(value) for value in values]
        ends, weights = [p for p, _ in wanted], [w for _, w in wanted]
        grads = _gradients(ends, leaves, weights, retain_graph=keep)
        return [torch.zeros_like(v) if g is None else g for v, g in zip(values, grads, strict=True)]

    return pull


def _finite(x: Tensor) -> Tensor:
    if not finite(x):
        raise NonFiniteError("map: NaN or infinity along the run; more steps, less guidance or another solver")
    return x
