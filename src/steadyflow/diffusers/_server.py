"""A pipeline that answers queries: it opens the pipeline's call, checks that it is a field, and asks it.

What a pipeline hands its scheduler is a field f(x, t) only if it depends on nothing else. That is checked once, at the
opening, by a short call of `_CHECKED` steps that is asked for the same (x, t) at every one of them, and by the first
answer of the long call: they must agree, the latents at which the networks were called must be those that were handed
over, and the time too. Windows by the number of the step, memories of guiders, caches, noise that is drawn inside,
blended masks and loops over pieces are all found in this way, and refused.
"""

from __future__ import annotations

import copy
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ._call import Request, Signature
from ._draws import without_variance
from ._line import Line
from ._served_paths import ServedPath
from ._way_out import Echoes

_STEPS = 2_000
"""How many queries a call answers before another is opened."""
_CHECKED = 4
"""The number of steps of the call that is checked."""
_FORCED = {"strength": 1.0, "intermediate_timesteps": None}
"""Arguments of calls that would choose the steps."""
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
        self._alone, self._twice = False, False
        self._lock = threading.RLock()
        self._finalizer = weakref.finalize(self, _close, self._lines)

    # ---- opening

    def open(self, request: Request) -> None:
        """Open the pipeline's call, and check that its answers are a field.

        Args:
            request: What to open it with.

        Raises:
            InputError: They are not, or the call does not accept its arguments.
        """
        _check_caches(self.pipe)
        try:
            checked = self._checked(request)
        except InputError:
            if len(self.sizes) < 2:
                raise
            self._twice = True  # it may do more with the first of its states before it steps the last
            checked = self._checked(request)
        line = self._lines[self._key(request, 1)] = self._line(request, 1)
        again = line.answer()
        for got, expected in zip(again, checked.answer(), strict=True):
            if not _close_to(got, expected):
                raise InputError(
                    f"pipeline: {self.signature.name} gives another output at the same latents and time if it is told "
                    f"{_STEPS} steps instead of {_CHECKED}: its call depends on the number of steps (a schedule of the "
                    "guidance, a generator that is not reset), which a field cannot"
                )

    def _checked(self, request: Request) -> Line:
        """Open the short call, check it and leave it."""
        line = self._line(request, 1, steps=_CHECKED * (2 if self._twice else 1))
        try:
            self._check(line)
        finally:
            line.close()
        return line

    def _check(self, line: Line) -> None:
        name = self.signature.name
        begun = [line.samples[k].clone() for k in sorted(line.samples)]
        outputs = [output.clone() for output in line.answer()]
        self.sizes, self.first, self.echoes = [tuple(p.shape[1:]) for p in begun], begun, line.echoes
        if any(o.shape[0] != p.shape[0] for o, p in zip(outputs, begun, strict=True)):
            raise InputError(f"pipeline: {name} hands its scheduler outputs of another batch than its latents")
        generator = torch.Generator().manual_seed(1)
        moved = [p + torch.randn(p.shape, generator=generator).to(p) for p in begun]
        before: list[Tensor] = []
        for k, given in enumerate((moved, moved, begun)):
            line.ask(given, line.first, self.path.level(self.path.middle))
            self._check_handed(line, given)
            expected = (None, before, outputs)[k]
            if expected is None:
                before += [output.clone() for output in line.answer()]
            elif not all(map(_close_to, line.answer(), expected)):
                raise InputError(
                    f"pipeline: {name} gives two answers at the same latents and time: its output depends on the "
                    "number of the step or on earlier steps (a window of steps such as control_guidance_end, a guider "
                    "with a memory, for which pipe.guider may be set to one without, a cache, noise that is drawn "
                    "inside, dropout), so that it is no field"
                )
        if "output_type" in self.signature.parameters:  # a second loop would begin now
            line.finish(begun)

    def _check_handed(self, line: Line, given: Sequence[Tensor]) -> None:
        """Check that the networks were called at the latents and the time that were handed over."""
        name = self.signature.name
        for k, sample in enumerate(given):
            if not _close_to(line.samples[k], sample):
                raise InputError(
                    f"pipeline: {name} changes the latents between its steps (a mask that is blended in, noise that is "
                    "added), so that they are not the state of one path; for masks there is sf.edit(mask=...) on the "
                    "pipeline without one"
                )
            told = line.told[k]
            if isinstance(told, Tensor | int | float) and abs(float(told) - line.first) > 1e-3 * abs(line.first):
                raise InputError(
                    f"pipeline: {name} hands its scheduler the time {float(told):g} where it was asked for "
                    f"{line.first:g}: its loop goes by the number of the step"
                )

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
        call = self._arguments(request, rows, steps) | more
        time, level = self.path.time(self.path.middle), self.path.level(self.path.middle)
        hear = Echoes.of(pipe) if steps < _STEPS and echoes is None and not plan_only else None
        try:
            with _same_draws():
                line = Line(pipe, call, time, level, steps=steps, plan_only=plan_only, echoes=hear, twice=self._twice)
        except (ValueError, TypeError, LookupError, AttributeError, NameError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"pipeline: the call of {self.signature.name} failed: {type(error).__name__}: {error}"
            ) from error
        if not plan_only and not line.samples:
            raise InputError(f"pipeline: the call of {self.signature.name} made no step")
        return line

    def _arguments(self, request: Request, rows: int, steps: int) -> dict[str, Any]:
        """The arguments of the pipeline's call."""
        signature = self.signature
        call = {**self.fixed, **request.inputs}
        if signature.takes_prompts and request.prompt is not None:
            call["prompt"] = _listed(request.prompt)
        if request.negative is not None:
            call["negative_prompt"] = _listed(request.negative)
        call |= signature.guided(request.guidance, "negative_prompt" in call or "negative_prompt_embeds" in call)
        if request.prompts > 1:
            for name in ("prompt", "negative_prompt"):
                if isinstance(call.get(name), str):
                    call[name] = [call[name]] * request.prompts
        elif rows > 1 and signature.count is not None:
            call[signature.count] = rows
        for name, value in _FORCED.items():
            if name in signature.parameters:
                call[name] = value
        call["num_inference_steps"] = steps
        call.setdefault("generator", torch.Generator().manual_seed(0))
        call["generator"] = _copied(call["generator"])
        if "output_type" in signature.parameters:
            call["output_type"] = "latent"
        signature.check_complete(call)
        return {k: v for k, v in call.items() if k in signature.parameters}

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

    def answer(self, request: Request, x: Tensor, t: float) -> Tensor:
        """What the pipeline hands its scheduler at a state and a time.

        Args:
            request: What the call is opened with.
            x: The state, shape (B, ...).
            t: The path time.
        """
        path, found = self.path, []
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
        joined = parts[0] if len(parts) == 1 else torch.cat([part.flatten(1) for part in parts], 1)
        if joined.data_ptr() == outputs[0].data_ptr():
            joined = joined.clone()  # it may be a view of what the networks write to next
        return joined if factor == 1.0 else joined * factor

    def split(self, x: Tensor) -> list[Tensor]:
        """A state as the pipeline's own states."""
        if len(self.sizes) == 1:
            return [x]
        lengths = [torch.Size(size).numel() for size in self.sizes]
        return [p.reshape(len(x), *size) for p, size in zip(x.split(lengths, 1), self.sizes, strict=True)]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The pipeline's states as one."""
        joined = parts[0] if len(parts) == 1 else torch.cat([part.flatten(1) for part in parts], 1)
        return joined / self.path.scale

    def _key(self, request: Request, rows: int) -> Any:
        return request.key, rows

    def _line_for(self, request: Request, rows: int) -> tuple[Line, int]:
        """A call that answers some samples at once, opened if need be; and how many."""
        if request.prompts > 1:
            rows = request.prompts
        elif self._alone or self.signature.count is None:
            rows = 1
        key = self._key(request, rows)
        line = self._lines.get(key)
        if line is not None and line.open and line.left > 1:
            self._lines.move_to_end(key)
            return line, rows
        if line is not None:
            self._lines.pop(key).close()
        while len(self._lines) >= _OPEN:
            self._lines.popitem(last=False)[1].close()
        if rows > 1 and request.prompts == 1:
            line = self._together(request, rows)
            if line is None:
                self._alone = True
                return self._line_for(request, 1)
        else:
            line = self._line(request, rows)
            if len(line.samples[0]) != rows:
                line.close()
                raise InputError(f"pipeline: its call is for {len(line.samples[0])} samples, asked for {rows}")
        self._lines[key] = line
        return line, rows

    def _together(self, request: Request, rows: int) -> Line | None:
        """A call for several samples of one prompt; None where the pipeline makes none of them."""
        try:
            line = self._line(request, rows)
        except (InputError, RuntimeError):
            return None
        if all(tuple(line.samples[k].shape) == (rows, *size) for k, size in enumerate(self.sizes)):
            return line
        line.close()
        return None

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


def _listed(prompt: str | tuple[str, ...]) -> str | list[str]:
    return prompt if isinstance(prompt, str) else list(prompt)


def _copied(generator: Any) -> Any:
    """A generator in the same state, so that every call draws the same."""
    if isinstance(generator, torch.Generator):
        return torch.Generator(generator.device).set_state(generator.get_state())
    return [_copied(g) for g in generator] if isinstance(generator, Sequence) else generator


@contextmanager
def _same_draws() -> Iterator[None]:
    """Let a call draw the same every time from torch's own state, which is left as it was.

    Some pipelines encode the pictures of their call by a draw from the VAE's posterior, without their generator.
    """
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(0)
        yield


def _close_to(a: Tensor, b: Tensor) -> bool:
    """Whether two outputs of the same computation agree; accelerators may round otherwise from run to run."""
    if a.shape != b.shape:
        return False
    a, b = a.detach().double(), b.detach().double()
    scale = float(b.abs().amax()) if b.numel() else 0.0
    return bool(((a - b).abs() <= 1e-3 * scale).all())


def _check_caches(pipe: Any) -> None:
    """Refuse networks that reuse what they have computed for another step."""
    components: Mapping[str, Any] = pipe.components
    for name, module in components.items():
        if not isinstance(module, torch.nn.Module):
            continue
        on = bool(getattr(module, "is_cache_enabled", False))
        for part in module.modules():
            hooks = getattr(getattr(part, "_diffusers_hook", None), "hooks", {})
            on = on or any("cache" in key or "broadcast" in key or key.startswith("mag") for key in hooks)
        if on:
            raise InputError(
                f"pipeline: a cache is on for its {name}, which answers with what it computed for earlier steps; "
                f"switch it off (pipe.{name}.disable_cache())"
            )
