"""A pipeline that answers queries: it opens the pipeline's call, checks that it is a field, and asks it.

Every request (prompts, guidance, further inputs) and number of samples has a suspended call of its own. Where something
that they depend on has changed since, all are left and opened again.
"""

from __future__ import annotations

import copy
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._internal.tensors import joined, pieces
from ..errors import InputError
from ._call import Request, Signature
from ._configs import settings_of
from ._draws import without_variance
from ._field_check import (
    CHECKED,
    agree,
    check_field,
    check_inputs,
    check_processors,
    processors_of,
    same_rows,
)
from ._line import Line, same_draws
from ._served_paths import ServedPath
from ._way_out import Echoes

_STEPS = 2_000
"""How many queries a call answers before another is opened."""
_OPEN = 4
"""How many calls are kept open; each holds the embeddings of its prompts."""


class Server:
    """A pipeline and its suspended calls.

    Args:
        pipe: The pipeline, which is left as it is.
        path: The path of its scheduler.
        call: The arguments of every call.
    """

    def __init__(self, pipe: Any, path: ServedPath, call: dict[str, Any]):
        self.pipe, self.path, self.signature = pipe, path, Signature.of(pipe)
        self.fixed = call
        self.sizes: list[tuple[int, ...]] = []
        """The shapes of one sample of each of the pipeline's states."""
        self.first: list[Tensor] = []
        """The latents with which the pipeline's own call begins, one tensor for each state."""
        self.echoes: Echoes | None = None
        self._lines: OrderedDict[Any, Line] = OrderedDict()
        self._names = [*pipe.components, "guider", "ocr_guider"]
        self._scheduler, self._parts = pipe.scheduler, 1
        self._kinds: set[Any] = set()
        self._together_kinds: set[Any] = set()
        self._stamp: tuple[Any, ...] = ()
        self._known_weights: int | None = None
        self._alone, self._twice = False, False
        self._lock = threading.RLock()
        self._finalizer = weakref.finalize(self, _close, self._lines)

    # ---- opening

    def open(self, request: Request) -> None:
        """Open the pipeline's call, and check that its answers are a field.

        Args:
            request: What to open it with, for one sample.

        Raises:
            InputError: They are not, or the call does not accept its arguments.
        """
        self._stamp = self._now()
        self._line_for(request, 1)

    def _check(self, request: Request) -> list[Tensor]:
        """Check a kind of request by a short call.

        Returns:
            Its first outputs.
        """
        call = self.signature.arguments(self.fixed, request, 1, CHECKED)
        defaults = {k: p.default for k, p in self.signature.parameters.items() if p.default is not p.empty}
        check_inputs(self.pipe, call, defaults)
        processors = processors_of(self.pipe)
        line = self._line(request, 1, steps=CHECKED * (2 if self._twice else 1))
        try:
            check_processors(self.pipe, processors)
            parts = [line.samples[k] for k in sorted(line.samples)]
            sizes = [tuple(part.shape[1:]) for part in parts]
            self._parts = len(sizes)
            if len(parts[0]) != 1:
                raise InputError(
                    f"pipeline: its call makes {len(parts[0])} samples of one prompt; give embeddings of one sample, "
                    "or prompts"
                )
            if self.sizes and sizes != self.sizes:
                raise InputError(
                    f"pipeline: with {', '.join(request.inputs) or 'this condition'} its samples are of shape "
                    f"{', '.join(map(str, sizes))}, those of the model are of {', '.join(map(str, self.sizes))}; make "
                    "another model for another size"
                )
            finishes = "output_type" in self.signature.parameters
            level = self.path.level(self.path.middle)
            begun, outputs = check_field(line, self.signature.name, level, finishes=finishes)
        finally:
            line.close()
        if not self.sizes:
            self.sizes, self.first, self.echoes = sizes, begun, line.echoes
        self._joined(outputs, begun[0])
        return outputs

    def _check_kind(self, request: Request) -> None:
        """Check a request of a kind that has not been seen, and that a long call answers as the short one does."""
        kind = request.kind
        if kind in self._kinds:
            return
        alone = request.alone
        try:
            expected = self._check(alone)
        except InputError:
            if self._parts < 2 or self._twice:
                raise
            self._twice = True  # it may do more with the first of its states before it steps the last
            expected = self._check(alone)
        line = self._line(alone, 1)
        if not all(map(agree, line.answer(), expected)):
            line.close()
            raise InputError(
                f"pipeline: {self.signature.name} gives another output at the same latents and time if it is told "
                f"{_STEPS} steps instead of {CHECKED}: its call depends on the number of steps (a schedule of the "
                "guidance), which a field cannot"
            )
        self._kinds.add(kind)
        self._keep(self._key(alone, 1), line)

    def _now(self) -> tuple[Any, ...]:
        """What answers depend on and users may change: the parts of the pipeline, as far as a glance shows."""
        pipe = self.pipe
        found: list[Any] = []
        for name in self._names:
            part = getattr(pipe, name, None)
            found.append(id(part))
            if isinstance(part, torch.nn.Module):
                weight = next(part.parameters(), None)
                found += [getattr(part, "is_cache_enabled", None), part.training]
                if weight is not None and not hasattr(part, "_hf_hook"):  # what is offloaded comes and goes
                    found += [weight._version if not weight.is_inference() else 0, weight.dtype, weight.device]
        return tuple(found)

    def _weights(self) -> int:
        """A number that changes where weights are written to, added or taken away."""
        modules = [part for part in self.pipe.components.values() if isinstance(part, torch.nn.Module)]
        weights = [weight for module in modules for weight in module.parameters() if not weight.is_inference()]
        guiders = [repr(settings_of(getattr(self.pipe, name, None))) for name in ("guider", "ocr_guider")]
        return hash((len(weights), sum(weight._version for weight in weights), *guiders))

    def _refresh(self, opening: bool) -> None:
        """Leave all calls if something that they depend on has changed.

        Args:
            opening: Whether another is about to be opened, so that a closer look is worth while.

        Raises:
            InputError: The scheduler has been replaced.
        """
        now = self._now()
        if self._scheduler is not self.pipe.scheduler:
            raise InputError(
                "scheduler: that of the pipeline was replaced after the model was made, whose path follows the former; "
                "make the model again"
            )
        weights = self._weights() if opening else self._known_weights
        if now != self._stamp or (weights != self._known_weights and self._known_weights is not None):
            _close(self._lines)
            self._kinds.clear()
        self._stamp, self._known_weights = now, weights

    def _line(self, request: Request, rows: int, *, steps: int = _STEPS, **more: Any) -> Line:
        """Open a call.

        Args:
            request: What to open it with.
            rows: The number of samples.
            steps: How many steps it is told to take.
            **more: `echoes` for a call without networks, `instead` for parts in place of the pipeline's, and arguments
                of the call.
        """
        pipe = copy.copy(self.pipe)
        pipe.set_progress_bar_config(disable=True)
        echoes, plan_only = more.pop("echoes", None), more.pop("plan_only", False)
        if echoes is not None:
            echoes.put_into(pipe)
        pipe.__dict__.update(more.pop("instead", {}))
        call = self.signature.arguments(self.fixed, request, rows, steps) | more
        time, level = self.path.time(self.path.middle), self.path.level(self.path.middle)
        hear = Echoes.of(pipe) if steps < _STEPS and not self.sizes and echoes is None and not plan_only else None
        try:
            with same_draws():
                line = Line(pipe, call, time, level, steps=steps, plan_only=plan_only, echoes=hear, twice=self._twice)
        except (InputError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise InputError(
                f"pipeline: the call of {self.signature.name} failed: {type(error).__name__}: {str(error)[:300]}"
            ) from error
        if not plan_only and not line.samples:
            raise InputError(f"pipeline: the call of {self.signature.name} made no step")
        return line

    def plan(self, request: Request, steps: int) -> dict[str, Any]:
        """What the pipeline hands its scheduler to plan a run of some steps."""
        line = self._line(request, 1, steps=steps, plan_only=True)
        line.close()
        return line.plan

    # ---- asking

    @property
    def parts(self) -> int:
        """The number of the pipeline's states."""
        return len(self.sizes)

    def ready(self, request: Request, rows: int) -> None:
        """Open the call that answers a number of samples, so that the next query does nothing but answer."""
        with self._lock:
            self._line_for(request, rows)

    def answer(self, request: Request, x: Tensor, t: float) -> Tensor:
        """What the pipeline hands its scheduler at a state and a time.

        Args:
            request: What the call is opened with.
            x: The state, shape (B, ...).
            t: The path time.
        """
        path, found = self.path, []
        if any(line.is_mine for line in self._lines.values()):
            raise InputError("model: asked from within its pipeline's own call, which waits for the answer")
        time, level = path.time(t), path.level(t)
        with self._lock:
            start = 0
            while start < len(x):
                line, rows = self._line_for(request, len(x) - start)
                piece = x[start : start + rows]
                outputs = line.ask(self.split(piece * path.scale if path.scale != 1.0 else piece), time, level)
                if torch.is_grad_enabled() and x.requires_grad and not any(o.requires_grad for o in outputs):
                    raise InputError(
                        f"gradients: {self.signature.name} cuts them off on the way from its latents to its scheduler; "
                        "ask under torch.no_grad()"
                    )
                found.append(self._joined(outputs, piece))
                start += rows
        return found[0] if len(found) == 1 else torch.cat(found)

    def _joined(self, outputs: Sequence[Tensor], x: Tensor) -> Tensor:
        """The outputs of all states as one, of the states' shape and type."""
        factor = self.path.sign / self.path.scale
        parts: list[Tensor] = []
        for output, size in zip(outputs, self.sizes, strict=True):
            shaped = (len(x), *size)
            if output.shape != shaped and self.path.learned_variance:
                output = without_variance(output, x)
            if output.shape != shaped:
                raise InputError(
                    f"pipeline: {self.signature.name} hands its scheduler outputs of shape {tuple(output.shape)} for "
                    f"latents of shape {shaped}"
                )
            parts.append(output.to(x.dtype))
        whole = joined(parts)
        if whole.data_ptr() == outputs[0].data_ptr():
            whole = whole.clone()  # it may be a view of what the networks write to next
        return whole if factor == 1.0 else whole * factor

    def split(self, x: Tensor) -> list[Tensor]:
        """A state as the pipeline's own states."""
        return pieces(x, self.sizes)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The pipeline's states as one."""
        return joined(parts) / self.path.scale

    def _key(self, request: Request, rows: int) -> Any:
        return request.key, rows

    def _line_for(self, request: Request, rows: int) -> tuple[Line, int]:
        """A call that answers some samples at once, opened if need be; and how many."""
        if request.prompts > 1:
            rows = request.prompts
        elif self._alone or self.signature.count is None:
            rows = 1
        self._refresh(opening=False)
        key = self._key(request, rows)
        line = self._lines.get(key)
        if line is not None and line.open and line.left > 1:
            self._lines.move_to_end(key)
            return line, rows
        self._refresh(opening=True)
        self._drop(key)
        self._check_kind(request)
        if key in self._lines:
            return self._lines[key], rows
        if rows > 1 and request.prompts == 1:
            line = self._together(request, rows)
            if line is None:
                self._alone = True
                return self._line_for(request, 1)
        else:
            line = self._line(request, rows)
            if not self._fits(line, rows):
                made = len(line.samples[0])
                line.close()
                raise InputError(f"pipeline: its call for these inputs makes {made} samples, asked for {rows}")
        self._keep(key, line)
        return line, rows

    def _keep(self, key: Any, line: Line) -> None:
        while len(self._lines) >= _OPEN:
            self._lines.popitem(last=False)[1].close()
        self._lines[key] = line

    def _drop(self, key: Any) -> None:
        if key in self._lines:
            self._lines.pop(key).close()

    def _fits(self, line: Line, rows: int) -> bool:
        return all(tuple(line.samples[k].shape) == (rows, *size) for k, size in enumerate(self.sizes))

    def _together(self, request: Request, rows: int) -> Line | None:
        """A call for several samples of one prompt; None where the pipeline does not make them as it does one."""
        try:
            line = self._line(request, rows)
        except torch.OutOfMemoryError:
            raise
        except Exception:
            return None
        if not self._fits(line, rows):
            line.close()
            return None
        if request.kind not in self._together_kinds:
            alone = self._line_for(request, 1)[0]
            time, level = self.path.time(self.path.middle), self.path.level(self.path.middle)
            expected = [output.clone() for output in alone.ask(self.first, time, level)]
            states = [p.expand(rows, *p.shape[1:]) for p in self.first]
            if not all(same_rows(o, e) for o, e in zip(line.ask(states, time, level), expected, strict=True)):
                line.close()
                return None
            self._together_kinds.add(request.kind)
        return line

    # ---- the way out

    def finished(self, request: Request, x: Tensor, **more: Any) -> Any:
        """What the pipeline returns for one final state.

        Args:
            request: What the call is opened with.
            x: The state, shape (1, ...).
            **more: As in `_line`.
        """
        try:
            line = self._line(request, 1, echoes=self.echoes, **more)
        except Exception:
            if self.echoes is None:
                raise
            self.echoes = None  # this pipeline needs its networks
            line = self._line(request, 1, **more)
        return line.finish(self.split(x * self.path.scale))

    def __deepcopy__(self, memo: dict[int, Any]) -> Server:
        return self  # models share it as they share the pipeline

    def __reduce__(self) -> Any:
        raise InputError("pickle: a served model is a running call of its pipeline; save the pipeline instead")

    def close(self) -> None:
        """Leave all calls; another query opens them again."""
        with self._lock:
            _close(self._lines)

    @property
    def lines(self) -> int:
        """How many calls are open."""
        return len(self._lines)


def _close(lines: OrderedDict[Any, Line]) -> None:
    while lines:
        lines.popitem()[1].close()
