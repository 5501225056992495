"""Velocities of flow matching as models: those of Meta's flow_matching and of torchcfm, with data at time 1.

Their time s runs from noise to data, ours is t = 1 - s. On an affine path x = alpha x0 + sigma eps a velocity is

    u = dx/ds = -(alpha' x0 + sigma' eps)           (primes are derivatives in t)

from which x0 and eps follow where alpha sigma' - sigma alpha' is not 0 (Lipman et al. 2024, 2412.06264):

    straight path, CondOT               flow = -u
    variance preserving, alpha = cos A  v    = -u / A'
    alpha + sigma = 1                   flow = -u / sigma'
    otherwise                           flow = ((alpha + sigma) w - (alpha' + sigma') x) / (alpha sigma' - sigma alpha')
                                        with w = -u
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor

from .._internal.tensors import broadcast
from ..denoisers.base import Condition, Denoiser
from ..errors import InputError, UnknownNameError
from ..prediction import PredictionType
from ..schedules import RectifiedFlow, Schedule, VPCosine, VPLinear
from ..schedules.affine import LinearVP, NoisyFlow, PolynomialFlow, SmoothedFlow
from ._adapters import Adapted, check_path, lineage, network_dtype, number, parameters_of

Matcher = Literal["independent", "target", "variance-preserving", "ot", "schrodinger-bridge"]

_MATCHERS: dict[str, Matcher] = {  # the most derived first
    "ExactOptimalTransportConditionalFlowMatcher": "ot",
    "SchrodingerBridgeConditionalFlowMatcher": "schrodinger-bridge",
    "TargetConditionalFlowMatcher": "target",
    "VariancePreservingConditionalFlowMatcher": "variance-preserving",
    "ConditionalFlowMatcher": "independent",
}
_SCHEDULERS = (
    "CondOTScheduler",
    "PolynomialConvexScheduler",
    "VPScheduler",
    "LinearVPScheduler",
    "CosineScheduler",
)
_PLACES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Where a path is compared with the numbers of the object that it comes from."""


class VelocityNet(Adapted):
    """A velocity u(x, s) as the network of a model, which predicts "flow" or "v_prediction" at t = 1 - s.

    Args:
        velocity: The velocity; it is called as `call` says.
        schedule: The path.
        call: How: by keywords, "x, t"; likewise with one time for the batch, "x, one t"; or as a network of the two in
            one tensor, "cat".
        extra: The keyword of a condition that is no mapping.
    """

    def __init__(self, velocity: Callable[..., Any], schedule: Schedule, call: str, extra: str | None):
        super().__init__(velocity, extra)
        self.schedule, self.call = schedule, call

    def forward(self, x: Tensor, time: Tensor, condition: Any = None) -> Tensor:
        """Return the prediction, of x's shape; `time` is ours, shape (B,)."""
        keywords, s = self.keywords(condition), 1.0 - time
        if self.call == "x, one t":
            if time.stride(0) and not bool((time == time[0]).all()):
                raise InputError(
                    "velocity: a ScheduleTransformedModel takes one time for the batch, but there are several"
                )
            s = s[0]
        if self.call == "cat":
            u = self.inner(torch.cat([x, s[:, None]], 1), **keywords)
        else:
            u = self.inner(x=x, t=s, **keywords)
        if not isinstance(u, Tensor):
            raise InputError(f"velocity: returned {type(u).__name__}, expected a tensor")
        if u.shape != x.shape:
            raise InputError(f"velocity: returned shape {tuple(u.shape)} for a state of shape {tuple(x.shape)}")
        of_x, of_w = _factors(self.schedule, time)
        w = -u if of_w is None else -broadcast(of_w, x) * u
        return w if of_x is None else w + broadcast(of_x, x) * x


def _kind(schedule: Schedule) -> PredictionType:
    """What `VelocityNet` predicts on a path."""
    return "v_prediction" if isinstance(schedule, VPLinear | VPCosine | LinearVP) else "flow"


def _factors(schedule: Schedule, t: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """The factors of x and of w = dx/dt in the prediction; None for 0 and 1."""
    match schedule:
        case VPCosine():
            return None, torch.full_like(t, 2.0 / math.pi)
        case VPLinear():  # A' = beta alpha / (2 sigma)
            beta = schedule.beta_min + (schedule.beta_max - schedule.beta_min) * t
            return None, 2.0 * schedule.sigma(t) / (schedule.alpha(t) * beta)
        case LinearVP():  # A' = 1 / sigma
            return None, schedule.sigma(t)
        case PolynomialFlow():
            return None, (1.0 - t) ** (1.0 - schedule.n) / schedule.n
        case NoisyFlow():
            rise, top = schedule.top - schedule.floor, schedule.top
            return (1.0 - rise) * torch.ones_like(t) / top, (1.0 - t + schedule.sigma(t)) / top
        case SmoothedFlow():
            sigma, below = schedule.sigma(t), t + schedule.floor**2
            return (sigma - t) / below, sigma * (1.0 - t + sigma) / below
        case _:
            return None, None


def from_flow_matching(
    velocity: Callable[..., Any],
    path: Any = None,
    *,
    shape: tuple[int, ...] | None = None,
    extra: str | None = None,
    null: Condition = None,
    classes: int | None = None,
    dtype: torch.dtype | None = None,
) -> Denoiser:
    """Create a model over a velocity of Meta's flow_matching.

    The velocity was trained on an affine path x = alpha(s) x1 + sigma(s) x0 from noise at s = 0 to data at s = 1. The
    model's time is t = 1 - s, and its path is the same: `RectifiedFlow` for CondOT, `VPCosine(s=0)` for the cosine,
    `VPLinear`, `schedules.LinearVP` and `schedules.PolynomialFlow` for the others.

    Args:
        velocity: Called as velocity(x=x, t=s, **extras), x of shape (B, ...) and s of shape (B,); a `ModelWrapper`, a
            module or a function. It returns dx/ds, of x's shape. A `ScheduleTransformedModel` is given one s, of shape
            (), as it takes no others.
        path: The path on which it was trained: an `AffineProbPath` or `CondOTProbPath`, its scheduler, or a schedule of
            steadyflow that is one of those above; CondOT by default. For a `ScheduleTransformedModel` it is the path of
            the new scheduler.
        shape: The shape of one sample, without the batch; needed to draw samples.
        extra: The keyword under which a condition that is no mapping is passed to the velocity; a mapping is passed as
            keywords by itself.
        null: The condition that stands for "none", for guidance.
        classes: The number of labels, if the condition is a label.
        dtype: The type in which the network computes; that of its first parameter by default.

    Returns:
        The model; `sf.sample` starts from N(0, I) at s = 0, as theirs does.

    Raises:
        InputError: The path is of another kind (discrete, geodesic), or a scheduler of one's own.
    """
    schedule = _schedule(path)
    if "x" not in (names := parameters_of(velocity)) or "t" not in names:
        raise InputError(
            f"velocity: its parameters are ({', '.join(names)}), expected x and t, by which flow_matching calls it; "
            "wrap it: lambda x, t, **extras: ..."
        )
    call = "x, one t" if "ScheduleTransformedModel" in lineage(velocity) else "x, t"
    return _model(velocity, schedule, call, shape, extra, null, classes, dtype, "flow_matching")


def _schedule(path: Any) -> Schedule:
    """The schedule of a path, of a scheduler, or of what is one already."""
    if path is None:
        return RectifiedFlow()
    if isinstance(path, Schedule):
        own = isinstance(path, VPLinear | LinearVP | PolynomialFlow | NoisyFlow | SmoothedFlow)
        straight = isinstance(path, RectifiedFlow) and path.shift == 1.0
        if own or straight or (isinstance(path, VPCosine) and path.s == 0.0):
            return path
        raise InputError(
            f"path: got {path!r}, expected RectifiedFlow(shift=1), VPCosine(s=0), VPLinear, or one of "
            "steadyflow.schedules.affine but SubVP; the velocity of another path is not known"
        )
    names = lineage(path)
    if "AffineProbPath" in names:
        path = path.scheduler
        names = lineage(path)
    if not hasattr(path, "snr_inverse") or "ProbPath" in names:
        raise InputError(
            f"path: got {type(path).__name__}, expected an AffineProbPath, its scheduler, or a schedule; discrete and "
            "geodesic paths have no Gaussian noise"
        )
    name = next((name for name in _SCHEDULERS if name in names), None)
    match name:
        case "CondOTScheduler":
            schedule = RectifiedFlow()
        case "PolynomialConvexScheduler":
            schedule = PolynomialFlow(number(path.n, "n"))
        case "VPScheduler":
            schedule = VPLinear(number(path.beta_min, "beta_min"), number(path.beta_max, "beta_max"))
        case "LinearVPScheduler":
            schedule = LinearVP()
        case "CosineScheduler":
            schedule = VPCosine(s=0.0, t_min=0.0, t_max=1.0)
        case _:
            raise InputError(
                f"path: {type(path).__name__} is none of flow_matching's schedulers {', '.join(_SCHEDULERS)}; give the "
                "schedule of steadyflow that it is"
            )

    def theirs(t: float) -> tuple[Any, Any]:
        found = path(torch.tensor(1.0 - t, dtype=torch.float64))
        return found.alpha_t, found.sigma_t

    check_path(schedule, _PLACES, theirs, type(path).__name__)
    return schedule


def from_torchcfm(
    velocity: Callable[..., Any],
    matcher: Any = "independent",
    *,
    sigma: float | None = None,
    shape: tuple[int, ...] | None = None,
    extra: str | None = None,
    null: Condition = None,
    classes: int | None = None,
    dtype: torch.dtype | None = None,
) -> Denoiser:
    """Create a model over a velocity that was trained with torchcfm (Tong et al. 2024, 2302.00482).

    Noise x0 ~ N(0, I) is at s = 0, data x1 at s = 1, and ours is t = 1 - s. What the velocity was trained with decides
    the path of x = alpha x1 + sigma eps:

        "independent", "ot"     I-CFM, OT-CFM: s x1 + (1 - s) x0 + noise of standard deviation sigma
        "target"                Lipman et al. 2023: alpha = s and sigma 1 - (1 - sigma) s
        "variance-preserving"   Albergo & Vanden-Eijnden 2023: sin(pi s / 2) x1 + cos(pi s / 2) x0
        "schrodinger-bridge"    s x1 + (1 - s) x0 + sigma sqrt(s (1 - s)) noise

    With "ot" and "schrodinger-bridge" noise and data are coupled. Their velocity carries noise into data but is no
    conditional mean of independent noise, so the model follows that ODE on the straight path, ends where torchcfm ends
    (with the noise of sigma), and refuses solvers that add noise (`Denoiser.has_score`).

    Args:
        velocity: Called by keywords as velocity(t=s, x=x, **extras), in either order of its parameters, as torchcfm's
            UNets are; x has shape (B, ...), s shape (B,). torchcfm's `MLP(time_varying=True)` and `torch_wrapper` are
            called with the time as the last column of x.
        matcher: The flow matcher of the training, or its name above.
        sigma: The matcher's sigma; that of a matcher object, else 0.
        shape: The shape of one sample, without the batch; needed to draw samples.
        extra: The keyword under which a condition that is no mapping is passed, such as "y" for torchcfm's UNets.
        null: The condition that stands for "none", for guidance.
        classes: The number of labels, if the condition is a label.
        dtype: The type in which the network computes; that of its first parameter by default.

    Returns:
        The model.

    Raises:
        UnknownNameError: The matcher is none of these.
        InputError: Sigma does not fit the matcher, or it cannot be told how to call the velocity.
    """
    kind, noise = _matcher(matcher, sigma)
    inner: Any = velocity
    call, names = "x, t", lineage(velocity)
    if "torch_wrapper" in names:
        inner, call = inner.model, "cat"
    elif "MLP" in names and hasattr(inner, "time_varying"):
        if not inner.time_varying:
            raise InputError("velocity: this MLP was built with time_varying=False and takes no time")
        call = "cat"
    elif not {"x", "t"} <= set(parameters_of(velocity)):
        raise InputError(
            f"velocity: its parameters are ({', '.join(parameters_of(velocity))}), expected x and t; wrap it: "
            "lambda t, x, **extras: ..."
        )
    schedule: Schedule
    match kind:
        case "target":
            schedule = NoisyFlow(noise, 1.0) if noise else RectifiedFlow()
        case "variance-preserving":
            schedule = VPCosine(s=0.0, t_min=0.0, t_max=1.0)
        case "independent" if noise:
            schedule = SmoothedFlow(noise)
        case _:
            schedule = RectifiedFlow()
    score = kind not in ("ot", "schrodinger-bridge")
    return _model(inner, schedule, call, shape, extra, null, classes, dtype, "torchcfm", has_score=score)


def _matcher(matcher: Any, sigma: float | None) -> tuple[Matcher, float]:
    """The kind of a matcher, and its sigma."""
    if isinstance(matcher, str):
        if matcher not in _MATCHERS.values():
            raise UnknownNameError("matcher", matcher, _MATCHERS.values())
        kind = matcher
    else:
        names = lineage(matcher)
        found = next((kind for name, kind in _MATCHERS.items() if name in names), None)
        if found is None:
            raise UnknownNameError("matcher", type(matcher).__name__, _MATCHERS)
        kind, own = found, number(matcher.sigma, "sigma")
        if sigma is not None and sigma != own:
            raise InputError(f"sigma: got {sigma}, but the matcher has {own}")
        sigma = own
    noise = 0.0 if sigma is None else number(sigma, "sigma")
    if not 0.0 <= noise < math.inf or (kind == "target" and noise >= 1.0):
        raise InputError(f"sigma: got {sigma}, expected a number of at least 0, and below 1 for 'target'")
    if kind == "variance-preserving" and noise:
        raise InputError(f"sigma: got {noise} with 'variance-preserving', whose path is only known here for sigma = 0")
    return cast("Matcher", kind), noise


def _model(
    velocity: Callable[..., Any],
    schedule: Schedule,
    call: str,
    shape: tuple[int, ...] | None,
    extra: str | None,
    null: Condition,
    classes: int | None,
    dtype: torch.dtype | None,
    name: str,
    *,
    has_score: bool = True,
) -> Denoiser:
    if null is not None and extra is None and not isinstance(null, Mapping):
        raise InputError("null: got one value, but not the keyword under which the velocity takes it; give extra='...'")
    return Denoiser(
        VelocityNet(velocity, schedule, call, extra),
        schedule,
        prediction=_kind(schedule),
        shape=shape,
        null=null,
        classes=classes,
        dtype=network_dtype(velocity) if dtype is None else dtype,
        name=name,
        has_score=has_score,
    )
