"""sbi's diffusion and flow-matching posteriors as models of the parameters theta, conditioned on the observation x.

sbi's score estimators (NPSE) give the score of theta_t = alpha(t) theta + sigma(t) eps on the paths

    vp       alpha = exp(-D / 2), sigma = sqrt(1 - alpha^2),  D = beta_min t + (beta_max - beta_min) t^2 / 2
    subvp    alpha = exp(-D / 2), sigma = 1 - alpha^2
    ve       alpha = 1,           sigma = sigma_min (sigma_max / sigma_min)^t

(Song et al. 2021), and its flow-matching estimator (FMPE, Wildberger et al. 2023) the velocity eps - theta on

    alpha = 1 - t,  sigma = t + noise_scale

all with the data at t = 0, as here. z-scoring of theta and of x, where it was asked for, is inside the estimators, so
that the state is theta itself; with sbi's `compose_standardization` it is z = (theta - shift) / scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Self, cast

import torch
from torch import Tensor

from .._internal.imports import needing
from ..denoisers.base import Condition, Denoiser
from ..errors import InputError
from ..prediction import PredictionType
from ..schedules import VE, Schedule, VPLinear
from ..schedules.affine import NoisyFlow, SubVP
from ._adapters import Adapted, check_path, lineage, network_dtype

_KINDS = ("VPScoreEstimator", "SubVPScoreEstimator", "VEScoreEstimator", "FlowMatchingEstimator")


class EstimatorNet(Adapted):
    """An estimator as the network of a model: score(theta, x, t), or the velocity of flow matching.

    Args:
        estimator: sbi's estimator, whose parameters are this module's.
        exploding: For the path "ve", sigma_min and ln(sigma_max / sigma_min), as our time is then sigma.
    """

    def __init__(self, estimator: Any, exploding: tuple[float, float] | None):
        super().__init__(estimator)
        self.exploding = exploding
        self.velocity = "FlowMatchingEstimator" in lineage(estimator)

    def forward(self, theta: Tensor, time: Tensor, x: Tensor | None = None) -> Tensor:
        """Return the score, or the velocity, of theta's shape; x has shape (B, ...)."""
        if x is None:
            raise InputError(
                "condition: the estimator is conditional; give the observation, x=... or with_condition(x)"
            )
        estimator = cast("Any", self.inner)
        time = _sbi_time(time, self.exploding)
        x = x.to(theta.dtype)
        if len(x) > 1 and x.stride(0) == 0:  # one observation for all: it is embedded once
            x = x[:1]
        return (estimator.ode_fn if self.velocity else estimator.score)(theta, x, time)


@dataclass(frozen=True, eq=False)
class PosteriorModel(Denoiser):
    """A posterior p(theta | x) of sbi as a model; its condition is the observation.

    `log_likelihood(model, model.to_state(theta)).value + model.log_det` is the log density of theta, which sbi cuts to
    the prior's support without renormalising it.
    """

    estimator: Any = field(default=None, repr=False)
    """sbi's estimator."""
    prior: Any = field(default=None, repr=False)
    """The prior, if a posterior was given."""

    def with_condition(self, condition: Condition, *, guidance: float | None = None) -> Self:
        """Set the observation.

        Args:
            condition: One observation for all samples, of the estimator's `condition_shape` or with a leading 1, or one
                observation per sample, (B, *condition_shape). Several rows are one posterior each, not independent
                observations of one theta.
            guidance: The scale of guidance; there is none but 1 unless `with_negative` gave an observation.

        Returns:
            This model under the observation.

        Raises:
            InputError: The observation is no tensor, or of another shape.
        """
        return super().with_condition(self._observation(condition), guidance=guidance)

    def with_negative(self, negative: Condition) -> Self:
        """Set an observation to move away from, as in `Denoiser.with_negative`.

        Args:
            negative: The observation, of the same shapes.
        """
        return super().with_negative(self._observation(negative))

    def _observation(self, x: Condition) -> Condition:
        """An observation with its leading dimension."""
        if x is None:
            return None
        try:
            x = torch.as_tensor(cast("Any", x))
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"condition: got {x!r}, expected an observation, a tensor") from error
        shape = tuple(self.estimator.condition_shape)
        if tuple(x.shape) == shape:
            x = x[None]
        if tuple(x.shape[1:]) != shape:
            raise InputError(
                f"condition: got an observation of shape {tuple(x.shape)}, expected {shape}, or one per sample: "
                f"({', '.join(map(str, ('B', *shape)))})"
            )
        return x if x.is_floating_point() else x.to(torch.get_default_dtype())

    @property
    def log_det(self) -> float:
        """ln |d state / d theta|; 0 but for composed standardization."""
        return -float(self.estimator.log_abs_det()) if _composed(self.estimator) else 0.0

    def to_state(self, theta: Tensor) -> Tensor:
        """Return parameters, shape (B, *shape), in the space in which the estimator works."""
        return self.estimator.to_z(theta) if _composed(self.estimator) else theta

    def to_parameters(self, x: Tensor) -> Tensor:
        """Return states at the clean end, shape (B, *shape), as parameters."""
        return self.estimator.from_z(x) if _composed(self.estimator) else x

    def within_prior(self, theta: Tensor) -> Tensor:
        """Return which parameters lie in the support of the prior, shape (B,).

        sbi's posteriors draw again what falls outside; `sf.sample` returns it, for the caller to leave out.

        Args:
            theta: Parameters, shape (B, *shape).

        Raises:
            InputError: The model was made of an estimator, which has no prior.
        """
        if self.prior is None:
            raise InputError("within_prior: an estimator has no prior; give from_sbi the posterior")
        from sbi.utils import within_support

        return within_support(self.prior, theta)


def from_sbi(posterior: Any, *, x: Tensor | None = None) -> PosteriorModel:
    """Create a model over a score-based or flow-matching posterior of sbi.

    The path is the estimator's own: `VPLinear`, `schedules.SubVP`, `VE` (whose time is sigma), or `schedules.NoisyFlow`
    for flow matching, between its t_min and t_max. The model knows mean_0 and std_0 of a score estimator, from which
    sbi makes the base distribution, so that samples start from the same one (`Denoiser.moments`). For flow matching
    sbi starts from N(0, I) where the path that is trained has a standard deviation of 1 + noise_scale, as here. Its
    `score` leaves out a factor of 1 / (1 + noise_scale); ours follows from the velocity.

    Args:
        posterior: What `NPSE` or `FMPE` builds, a `VectorFieldPosterior`, or the estimator that their `train` returns.
        x: The observation, or one per sample (see `PosteriorModel.with_condition`); by default the posterior's
            `default_x`, if it has one.

    Returns:
        The model, of states of the estimator's `input_shape`; `to_state` and `to_parameters` lead from theta and back.

    Raises:
        MissingExtraError: sbi is not installed.
        InputError: The posterior or the estimator is of another kind, its path is not that of its class, or its
            default_x holds several independent observations.
    """
    with needing("sbi", "sbi", extra="sbi", purpose="from_sbi"):
        from sbi.inference.posteriors.vector_field_posterior import VectorFieldPosterior
        from sbi.neural_nets.estimators import ConditionalVectorFieldEstimator
    prior = None
    estimator = posterior
    if isinstance(posterior, VectorFieldPosterior):
        estimator, prior = posterior.vector_field_estimator, posterior.prior
        given = posterior.default_x
        if x is None and given is not None:
            if len(given) > 1:
                raise InputError(
                    f"x: the posterior's default_x holds {len(given)} independent observations, whose scores sbi "
                    "composes by its iid methods; from_sbi takes one observation: give x"
                )
            x = given
    if not isinstance(estimator, ConditionalVectorFieldEstimator):
        raise InputError(
            f"posterior: got {type(posterior).__name__}, expected the VectorFieldPosterior that NPSE or FMPE builds, "
            "or its estimator; other posteriors have no path from noise to data"
        )
    estimator.eval()
    schedule, exploding = _path(estimator)
    flow = isinstance(schedule, NoisyFlow)
    kind: PredictionType = "flow" if flow else "score"
    moments = None if flow else _moments(estimator)
    model = PosteriorModel(
        EstimatorNet(estimator, exploding),
        schedule,
        prediction=kind,
        shape=tuple(estimator.input_shape),
        dtype=network_dtype(estimator),
        name=type(estimator).__name__,
        moments=moments,
        estimator=estimator,
        prior=prior,
    )
    return model if x is None else model.with_condition(x)


def _sbi_time(time: Tensor, exploding: tuple[float, float] | None) -> Tensor:
    """sbi's time at one of ours, which is sigma on an exploding path."""
    return time if exploding is None else (time / exploding[0]).log() / exploding[1]


def _path(estimator: Any) -> tuple[Schedule, tuple[float, float] | None]:
    """The path of an estimator, and the numbers of an exploding one (see `EstimatorNet`)."""
    names = lineage(estimator)
    name = next((name for name in _KINDS if name in names), None)
    low, high = float(estimator.t_min), float(estimator.t_max)
    places = [low + (high - low) * share for share in (0.0, 0.2, 0.5, 0.8, 0.95)]
    exploding: tuple[float, float] | None = None
    schedule: Schedule
    match name:
        case "VPScoreEstimator":
            schedule = VPLinear(estimator.beta_min, estimator.beta_max, low, high)
        case "SubVPScoreEstimator":
            schedule = SubVP(estimator.beta_min, estimator.beta_max, low, high)
        case "FlowMatchingEstimator":
            noise = float(estimator.noise_scale)
            schedule = NoisyFlow(noise, 1.0 + noise, low, high)
        case "VEScoreEstimator":
            least, log_ratio = estimator.sigma_min, math.log(estimator.sigma_max / estimator.sigma_min)
            sigmas = [least * math.exp(log_ratio * t) for t in (low, high, *places)]
            schedule, places = VE(sigmas[0], sigmas[1]), sigmas[2:]
            exploding = (least, log_ratio)
        case _:
            raise InputError(
                f"posterior: {type(estimator).__name__} is none of {', '.join(_KINDS)}, whose paths are known"
            )

    def theirs(t: float) -> tuple[Any, Any]:
        device = estimator.mean_base.device
        time = _sbi_time(torch.tensor([t], device=device), exploding)
        return estimator.mean_t_fn(time), estimator.std_fn(time)

    check_path(schedule, places, theirs, type(estimator).__name__)
    return schedule, exploding


def _moments(estimator: Any) -> tuple[Tensor, Tensor]:
    """Mean and variance of the data, as a score estimator knows them, of a sample's shape."""
    shape = tuple(estimator.input_shape)

    def shaped(value: Tensor) -> Tensor:
        value = value.detach().double()
        return (value.reshape(shape) if value.numel() > 1 else value.reshape(()).expand(shape)).clone()

    return shaped(estimator.mean_0), shaped(estimator.std_0) ** 2


def _composed(estimator: Any) -> bool:
    """Whether an estimator works on standardized parameters."""
    return bool(getattr(estimator, "compose_enabled", False))
