"""`Denoiser`: a model of the data along a Gaussian path, called as `model(x, t) -> Prediction`.

A user's network, an exact mixture and a diffusers pipeline are all wrapped in this one class, which adds
what they share: the schedule, the prediction type, a condition, and classifier-free guidance

    output = output_null + guidance (output_condition - output_null)        (Ho & Salimans 2022)

with both branches in one batched call.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from .. import noise
from .._internal.tensors import broadcast
from ..errors import InputError
from ..prediction import Clip, Prediction, PredictionType, check_type, defined_at_zero_noise
from ..schedules import Schedule
from .conditions import (
    Condition,
    PerSample,
    check_guidance,
    check_scale,
    expand,
    is_words,
    join,
    rows_of,
    select,
)
from .smoothing import Smoothing

_TIMES = 4096
"""How many times a model caches as tensors."""


@dataclass(frozen=True, eq=False)
class Denoiser:
    """A model of the data along a Gaussian path.

    Args:
        net: Called as `net(x, time)` or, with a condition, `net(x, time, condition)`; x has shape (B, ...), time is a
            tensor of shape (B,), the result has x's shape. `time` is the schedule's `model_time`, times `time_scale`.
        schedule: The path.
        prediction: What the network predicts: "epsilon", "sample" (x0), "v_prediction", "flow" or "score".
        shape: The shape of one sample, without the batch; needed to draw samples.
        null: The condition that stands for "none", for guidance.
        time_scale: 1000 for networks that expect their time in [0, 1000) on a schedule over [0, 1].
        dtype: The type in which the network computes; that of its first parameter by default. The state keeps its own.
        classes: The number of labels, if the condition is a label; used to check labels.
        condition: The condition of every call (see `with_condition`).
        guidance: The scale of classifier-free guidance (see `with_guidance`). Given as a tensor, shape () or (B,), it
            is what `scale` holds, and this number is its mean.
        name: What messages and reports call the model.
        smoothing: How to average the field over neighbours (see `with_smoothing`); None for the plain field.
        reuses_output: Whether the network returns the same memory at every call, as under CUDA graphs (torch.compile
            in mode "reduce-overhead"). Its outputs are then copied, as solvers carry some of them over to later steps.
        clip: Bounds on the estimate of the data, for models of pixels (see `Clip`); guidance comes before.
        moments: Mean and variance of the data, numbers or of a sample's shape, if the model knows them. Samples then
            start from alpha mean and alpha^2 variance + sigma^2 instead of 0 and sigma^2, and the likelihood of a
            latent is that of this start; it matters on paths whose noisy end keeps a part of the data.
        has_score: Whether the estimates of the data and of the noise are the conditional means that a score is made
            of. Not so for velocities that were trained on coupled noise and data: they generate the data, and
            solvers that add noise are refused.
        scale: The scale of guidance as a tensor, if it was given as one: for gradients, or one per sample.

    Raises:
        UnknownNameError: The prediction type is none of the five.
        InputError: The schedule is not a `Schedule`.
    """

    net: Callable[..., Tensor]
    schedule: Schedule
    prediction: PredictionType = "epsilon"
    shape: tuple[int, ...] | None = None
    null: Condition = None
    time_scale: float = 1.0
    dtype: torch.dtype | None = None
    classes: int | None = None
    condition: Condition = None
    guidance: float = 1.0
    name: str = "model"
    smoothing: Smoothing | None = None
    reuses_output: bool = False
    clip: Clip | None = None
    moments: tuple[float | Tensor, float | Tensor] | None = None
    has_score: bool = True
    scale: Tensor | None = None

    def __post_init__(self):
        check_type(self.prediction)
        if not isinstance(cast(object, self.schedule), Schedule):
            raise InputError(f"schedule: got {self.schedule!r}, expected a steadyflow schedule, e.g. VPLinear()")
        given = cast("float | Tensor", self.guidance)
        if isinstance(given, Tensor):
            object.__setattr__(self, "scale", check_scale(given))
            given = given.detach().double().mean().item()
        object.__setattr__(self, "guidance", check_guidance(given))
        if self.guides and self.condition is not None and self.null is None:
            raise InputError(f"guidance: got {self.guidance}, but there is no null condition; give Denoiser(null=...)")
        if self.shape is not None:
            object.__setattr__(self, "shape", tuple(self.shape))
        if self.dtype is None and isinstance(self.net, nn.Module):
            parameter = next(self.net.parameters(), None)
            object.__setattr__(self, "dtype", None if parameter is None else parameter.dtype)

    def with_condition(self, condition: Condition, *, guidance: float | None = None) -> Self:
        """Return this model under a condition.

        Args:
            condition: A label or an embedding, one per batch or one per sample (see `Condition`).
            guidance: The guidance scale; unchanged by default.

        Raises:
            InputError: The condition does not fit the model, or `with_guidance` refuses the scale.
        """
        self._check_labels(condition)
        model = self._replace(condition=condition)
        return model if guidance is None else model.with_guidance(guidance)

    def with_guidance(self, guidance: float | Tensor) -> Self:
        """Return this model with another scale of classifier-free guidance.

        Args:
            guidance: The scale; 1 is the plain conditional model. A tensor, shape () or (B,), is one for all samples
                or one for each, and may require a gradient.

        Raises:
            InputError: The scale is too large or not a number, or the model has no null condition to guide from.
        """
        scale = check_scale(guidance) if isinstance(guidance, Tensor) else None
        number = check_guidance(guidance if scale is None else scale.detach().double().mean().item())
        if (number != 1.0 or scale is not None) and self.null is None:
            raise InputError(f"guidance: got {number}, but the model has no null condition; give Denoiser(null=...)")
        return self._replace(guidance=number, scale=scale)

    def with_given(self, condition: Condition, null: Condition, scale: Tensor | None) -> Self:
        """Return this model with other tensors, of the same shapes, in its conditions and its scale of guidance.

        Args:
            condition: The condition of every call.
            null: The condition that stands for "none".
            scale: The scale of guidance, or None where it is a number.
        """
        return self._replace(condition=condition, null=null, scale=scale)

    @property
    def guides(self) -> bool:
        """Whether the scale of guidance is another than 1, or a tensor."""
        return self.scale is not None or self.guidance != 1.0

    def with_negative(self, negative: Condition) -> Self:
        """Return this model with guidance that starts from another condition than "none" (a negative prompt).

        With the source's condition here, and the target's in `with_condition`, this is negative-prompt inversion
        (Miyake et al. 2023). Where both are equal the result is the plain conditional model at any guidance scale, so
        that a latent inverted at guidance 1 remains valid.

        Args:
            negative: The condition to start from.
        """
        return self._replace(null=negative)

    def check_batch(self, n: int) -> None:
        """Check that what the conditions have per sample fits a batch.

        Args:
            n: The number of samples.

        Raises:
            InputError: It has another number of rows.
        """
        sizes = [("condition", rows_of(self.condition)), ("condition", rows_of(self.null))]
        sizes.append(("guidance", set() if self.scale is None or not self.scale.ndim else {len(self.scale)}))
        for name, found in sizes:
            for rows in found - {1, n}:
                raise InputError(f"{name}: got {rows} rows for a batch of {n} samples")

    def slice(self, start: int, stop: int) -> Self:
        """Return this model for the samples [start, stop) of a batch; a condition per sample is sliced alike.

        Args:
            start: The first sample.
            stop: One past the last sample.
        """
        return self._of_samples(lambda values: values[start:stop])

    def select(self, rows: Tensor) -> Self:
        """Return this model for some samples of a batch; a condition per sample is indexed alike.

        Args:
            rows: The indices of the samples, shape (m,).
        """

        def chosen(values: PerSample) -> PerSample:
            values = values if isinstance(values, Tensor) else torch.as_tensor(values, device=rows.device)
            return values[rows.to(values.device)]

        return self._of_samples(chosen)

    def _of_samples(self, choose: Callable[[PerSample], PerSample]) -> Self:
        """Return this model with what its conditions have per sample chosen from, the null one included."""
        scale = self.scale
        if scale is not None and scale.ndim and len(scale) > 1:
            scale = cast(Tensor, choose(scale))
        changes = {"condition": select(self.condition, choose), "null": select(self.null, choose), "scale": scale}
        return self._replace(**changes)

    def with_smoothing(self, smoothing: Smoothing | float | None) -> Self:
        """Return this model with its field averaged over neighbours of the state (see `Smoothing`).

        Args:
            smoothing: How to average, or just the radius in noise levels; None for the plain field.

        Raises:
            InputError: The radius is not positive.
        """
        return self._replace(smoothing=Smoothing(smoothing) if isinstance(smoothing, int | float) else smoothing)

    @property
    def cost(self) -> int:
        """The number of network evaluations per call; the two branches of guidance count as one."""
        return 1 if self.smoothing is None else 2 * self.smoothing.pairs

    @property
    def defined_at_zero_noise(self) -> bool:
        """Whether the model can be evaluated at sigma = 0, which is the case for flow and v predictions."""
        return defined_at_zero_noise(self.prediction) and self.clip is None

    def _replace(self, **changes: Any) -> Self:
        return dataclasses.replace(self, **changes)

    def __call__(self, x: Tensor, t: float | Tensor) -> Prediction:
        """Evaluate the model.

        Args:
            x: The state, shape (B, ...).
            t: The path time, a float or a tensor of shape (B,).

        Returns:
            The prediction, from which x0, eps and the score can be computed.

        Raises:
            InputError: The condition does not fit the batch, or the network returns something else than a tensor of
                x's shape.
        """
        if isinstance(t, Tensor):
            alpha, sigma = broadcast(self.schedule.alpha(t), x), broadcast(self.schedule.sigma(t), x)
        else:
            level = self.schedule.at(t)
            alpha, sigma = level.alpha, level.sigma
        output = self._output(x, t) if self.smoothing is None else self._averaged(x, t, sigma, self.smoothing)
        prediction = Prediction(x, output, self.prediction, alpha, sigma)
        return prediction if self.clip is None else prediction.clipped(self.clip)

    def _averaged(self, x: Tensor, t: float | Tensor, sigma: float | Tensor, over: Smoothing) -> Tensor:
        """Return the mean output over neighbours of x (see `smoothing`)."""
        total: Tensor | None = None
        for k in range(over.pairs):
            step = (over.radius * sigma) * _direction(over.seed, k, tuple(x.shape[1:]), x.dtype, x.device)
            both = self._output(x + step, t) + self._output(x - step, t)
            total = both if total is None else total + both
        assert total is not None
        return total / (2.0 * over.pairs)

    def _output(self, x: Tensor, t: float | Tensor) -> Tensor:
        if self.condition is None or not self.guides:
            given = None if self.condition is None else expand(self.condition, x)
            output = self.evaluate(x, t, given)
        else:
            twice = x.repeat(2, *[1] * (x.ndim - 1))
            times = t.repeat(2) if isinstance(t, Tensor) else t
            labels = join(expand(self.null, x), expand(self.condition, x))
            without, conditional = self.evaluate(twice, times, labels).chunk(2)
            output = torch.lerp(without, conditional, self.weight(x))
        return output

    def weight(self, x: Tensor) -> float | Tensor:
        """Return the scale of guidance so that it broadcasts against x."""
        if self.scale is None:
            return self.guidance
        if self.scale.ndim and len(self.scale) not in (1, len(x)):
            raise InputError(f"guidance: got {len(self.scale)} scales for a batch of {len(x)} samples")
        return broadcast(self.scale, x).to(x.device)

    def evaluate(self, x: Tensor, t: float | Tensor, given: Any) -> Tensor:
        """Return the network's output in x's precision; one call for the whole batch.

        Args:
            x: The states, shape (B, ...).
            t: The path time.
            given: The condition, with a row per state, or None.
        """
        inputs = x if self.dtype is None else x.to(self.dtype)
        half = inputs.dtype in (torch.float16, torch.bfloat16)  # which would round timesteps
        precision = torch.float32 if half else inputs.dtype
        if isinstance(t, Tensor):
            time = (self.schedule.model_time(t) * self.time_scale).to(precision)
        else:
            time = self._time(self.schedule.model_time(t) * self.time_scale, precision, x.device)
            n = x.shape[0]
            time = time if n == 1 else time.expand(n)  # stride 0 lets a network see that there is one time
        if self.reuses_output:
            torch.compiler.cudagraph_mark_step_begin()
        net = cast("Callable[..., object]", self.net)  # a network may return anything
        try:
            output = net(inputs, time) if given is None else net(inputs, time, given)
        except RuntimeError as error:
            if self.dtype is None and inputs.dtype == torch.float64 and "dtype" in str(error):
                raise InputError(
                    f"dtype: the network cannot compute in float64 ({error}); give the type in which it computes, "
                    "for example Denoiser(dtype=torch.float32)"
                ) from error
            raise
        if not isinstance(output, Tensor):
            raise InputError(f"prediction: the network returned {type(output).__name__}, expected a tensor")
        if output.shape != x.shape:
            raise InputError(
                f"prediction: the network returned shape {tuple(output.shape)} for a state of shape "
                f"{tuple(x.shape)}; the shapes must be equal"
            )
        if x.requires_grad and not output.requires_grad and torch.is_grad_enabled():
            raise InputError(
                f"gradient: the output of the network of {self.name!r} does not depend on the state by any graph, so "
                "that it has none; a black box, or a network under torch.no_grad, can only be sampled"
            )
        if output.device != x.device:
            raise InputError(
                f"prediction: the network returned a tensor on {output.device}, the state is on {x.device}"
            )
        if output.dtype is not x.dtype and not output.is_floating_point():
            raise InputError(f"prediction: the network returned {output.dtype}, expected a type of floats")
        if output.dtype is x.dtype and not self.reuses_output:
            return output
        return output.to(x.dtype, copy=self.reuses_output)

    def _time(self, value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return a time as a tensor of shape (1,), from a cache, as solvers use the same few times again and again."""
        key, cached = (value, dtype, device), self._times
        time = cached.get(key)
        if time is not None and not torch.is_inference_mode_enabled() and time._version == 0:  # not written to
            return time
        time = torch.full((1,), value, dtype=dtype, device=device)
        if not (time.is_inference() or torch.compiler.is_compiling()):
            if len(cached) >= _TIMES:
                cached.clear()
            cached[key] = time
        return time

    @cached_property
    def _times(self) -> dict[tuple[float, torch.dtype, torch.device], Tensor]:
        return {}

    def _check_labels(self, given: Condition) -> None:
        if is_words(given):
            raise InputError(f"condition: got {given!r}, but the model {self.name!r} takes labels or embeddings")
        if given is not None and getattr(self.net, "classes", None) == 0:
            raise InputError(f"condition: got {given!r}, but the model {self.name!r} takes none")
        if self.classes is None or given is None or isinstance(given, Mapping):
            return
        try:
            labels = torch.as_tensor(given, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"condition: got {given!r}, expected a label, or one per sample") from error
        if labels.ndim > 1 or labels.is_floating_point() or labels.dtype == torch.bool:
            raise InputError(
                f"condition: got {labels.dtype} of shape {tuple(labels.shape)}, expected an integer label, or one per "
                "sample: (B,)"
            )
        allowed = [*range(self.classes), self.null]
        given_labels: list[int] = cast(Any, labels.flatten()).tolist()
        wrong = [v for v in given_labels if v not in allowed]
        if wrong:
            raise InputError(f"condition: got label {wrong[0]}, expected 0..{self.classes - 1}")


@lru_cache(maxsize=32)
def _direction(seed: int, k: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the k-th direction of smoothing, shape (1, *shape)."""
    return noise.normal(seed, noise.SMOOTHING, (k, 0, 0), (0,), shape, dtype=dtype, device=device)
