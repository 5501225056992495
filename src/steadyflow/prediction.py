"""Predictions: what a model estimates from a noisy state, as data (`x0`) and as noise (`eps`).

A network outputs one of five quantities. Each of them is affine in (x0, eps), so that with
x = alpha x0 + sigma eps each determines both:

    epsilon        o = eps                     x0 = (x - sigma o) / alpha
    sample         o = x0                      eps = (x - alpha o) / sigma
    v_prediction   o = alpha eps - sigma x0    x0 = (alpha x - sigma o) / n,  eps = (sigma x + alpha o) / n,
                                               n = alpha^2 + sigma^2
    flow           o = eps - x0                x0 = (x - sigma o) / n,  eps = (x + alpha o) / n,  n = alpha + sigma
    score          o = -eps / sigma            x0 = (x + sigma^2 o) / alpha

Sources: Ho et al. 2020; Salimans & Ho 2022 (v); Liu et al. 2022 (flow); Song et al. 2021 (score).
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args, overload

import torch
from torch import Tensor

from ._internal.tensors import linear_combination
from .errors import InputError, SingularTimeError, UnknownNameError

PredictionType = Literal["epsilon", "sample", "v_prediction", "flow", "score"]


def check_type(name: str) -> None:
    """Check that a name is one of the five prediction types.

    Raises:
        UnknownNameError: It is none of them.
    """
    if name not in get_args(PredictionType):
        raise UnknownNameError("prediction", name, get_args(PredictionType))


def defined_at_zero_noise(kind: PredictionType) -> bool:
    """Return whether a network of this prediction type can be evaluated at sigma = 0 and determines x0 and eps there.

    A sample prediction does not determine the noise there; epsilon networks are not trained that close to the data.
    """
    return kind in ("flow", "v_prediction")


def linear(a: float | Tensor, x: Tensor, b: float | Tensor, y: Tensor) -> Tensor:
    """Return a x + b y; a and b are numbers, or tensors that broadcast against x and y."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return a * x + b * y
    return linear_combination((a, b), (x, y))


class Scaled(NamedTuple):
    """A quantity (B, ...) as the product factor * tensor, which is not carried out yet."""

    tensor: Tensor
    factor: float


@dataclass(frozen=True)
class Clip:
    """Bounds on the estimate of the data, for models of pixels in [-1, 1].

    With a quantile it is dynamic thresholding (Saharia et al. 2022): s is that quantile of |x0_hat| over a sample, at
    least 1 and at most the limit, and the estimate becomes clip(x0_hat, -s, s) / s.

    Args:
        limit: The largest value; with a quantile, of s.
        quantile: That of dynamic thresholding, in [0, 1]; None clips at the limit.
        keeps_noise: Whether DDIM steps keep the network's own estimate of the noise, as diffusers' DDIM does, instead
            of the one that fits to the clipped data.

    Raises:
        InputError: A value is out of range.
    """

    limit: float = 1.0
    quantile: float | None = None
    keeps_noise: bool = False

    def __post_init__(self):
        if not self.limit > 0.0:
            raise InputError(f"clip: got limit {self.limit}, expected a positive number")
        if self.quantile is not None and not 0.0 <= self.quantile <= 1.0:
            raise InputError(f"clip: got quantile {self.quantile}, expected a number in [0, 1]")

    def __call__(self, x0: Tensor) -> Tensor:
        """Return the bounded estimate, shape (B, ...)."""
        if self.quantile is None:
            return x0.clamp(-self.limit, self.limit)
        flat = x0.reshape(len(x0), -1)
        largest = torch.quantile(flat.abs().float(), self.quantile, dim=1, keepdim=True)
        largest = largest.clamp(min=1.0).clamp(max=max(self.limit, 1.0)).to(x0.dtype)
        return (flat.clamp(-largest, largest) / largest).view_as(x0)


class Prediction:
    """A model's output at (x, t), converted on request to an estimate of the data or of the noise.

    Estimates are computed when they are accessed. An estimate that equals the output or the state is that same tensor,
    not a copy, so do not modify estimates in place.

    Args:
        x: The state, shape (B, ...).
        output: What the network returned, of x's shape.
        kind: What the network predicts.
        alpha: The factor of the data: a float, or a tensor that broadcasts against x if each sample has its own time.
        sigma: The factor of the noise, likewise.
    """

    __slots__ = ("alpha", "kind", "output", "plain", "sigma", "x")

    def __init__(
        self,
        x: Tensor,
        output: Tensor,
        kind: PredictionType,
        alpha: float | Tensor,
        sigma: float | Tensor,
    ):
        self.x, self.output, self.alpha, self.sigma = x, output, alpha, sigma
        self.kind: PredictionType = kind
        self.plain: Prediction | None = None
        """The prediction before it was clipped, where DDIM steps keep its noise."""

    def clipped(self, clip: Clip) -> "Prediction":
        """Return this prediction with a bounded estimate of the data, and the noise that fits to it.

        Args:
            clip: The bounds.

        Raises:
            SingularTimeError: The output does not determine the data at this time.
        """
        bounded = Prediction(self.x, clip(self.x0), "sample", self.alpha, self.sigma)
        if clip.keeps_noise:
            bounded.plain = self
        return bounded

    def ddim(self, alpha: float, sigma: float) -> Tensor:
        """Return alpha x0 + sigma eps, the DDIM step to a time with these factors, shape (B, ...).

        Args:
            alpha: The factor of the data at that time.
            sigma: The factor of the noise at that time.

        Raises:
            SingularTimeError: The output does not determine this combination at this time.
        """
        if self.plain is None or sigma == 0.0:
            return self.mix(alpha, sigma)
        return linear(alpha, self.output, sigma, self.plain.eps)

    @property
    def x0(self) -> Tensor:
        """The estimate of the data, E[x0 | x] for a perfect model; shape (B, ...).

        Raises:
            SingularTimeError: alpha is 0 and the prediction type is "epsilon" or "score".
        """
        return self.mix(1.0, 0.0)

    @property
    def eps(self) -> Tensor:
        """The estimate of the noise; shape (B, ...).

        Raises:
            SingularTimeError: sigma is 0 and the prediction type is "sample".
        """
        return self.mix(0.0, 1.0)

    @property
    def score(self) -> Tensor:
        """The gradient of the log density at this time, -eps / sigma; shape (B, ...).

        Raises:
            SingularTimeError: sigma is 0, unless the network predicts the score.
        """
        if self.kind == "score":
            return self.output
        _check_nonzero(self.sigma, "a score", "sigma")
        return self.eps * (-1.0 / self.sigma)

    @property
    def flow(self) -> Tensor:
        """The velocity of the straight path, eps - x0; shape (B, ...).

        Raises:
            SingularTimeError: x0 or eps does not exist at this time.
        """
        return self.mix(-1.0, 1.0)

    def mix(self, data: float, noise: float) -> Tensor:
        """Return data * x0 + noise * eps, shape (B, ...); `mix(alpha', sigma')` is the DDIM step to that time.

        Args:
            data: The factor of x0.
            noise: The factor of eps.

        Raises:
            SingularTimeError: The output does not determine this combination at this time.
        """
        of_x, of_output = self.factors(data, noise)
        return linear(of_x, self.x, of_output, self.output)

    def scaled(self, data: float, noise: float) -> Scaled:
        """Return data * x0 + noise * eps as a tensor and a factor, which saves a pass if all samples share one time.

        Args:
            data: The factor of x0.
            noise: The factor of eps.

        Raises:
            SingularTimeError: The output does not determine this combination at this time.
        """
        of_x, of_output = self.factors(data, noise)
        if isinstance(of_x, Tensor) or isinstance(of_output, Tensor):
            return Scaled(linear(of_x, self.x, of_output, self.output), 1.0)
        if of_x == 0.0:
            return Scaled(self.output, of_output)
        if of_output == 0.0:
            return Scaled(self.x, of_x)
        if abs(of_x) >= abs(of_output):
            return Scaled(torch.add(self.x, self.output, alpha=of_output / of_x), of_x)
        return Scaled(torch.add(self.output, self.x, alpha=of_x / of_output), of_output)

    def factors(self, data: float, noise: float) -> tuple[float | Tensor, float | Tensor]:
        """Return the factors of x and of the output in data * x0 + noise * eps; floats if alpha and sigma are.

        Args:
            data: The factor of x0.
            noise: The factor of eps.

        Raises:
            SingularTimeError: The output does not determine this combination at this time.
        """
        return factors(self.kind, self.alpha, self.sigma, data, noise)


@overload
def factors(kind: PredictionType, alpha: float, sigma: float, data: float, noise: float) -> tuple[float, float]: ...
@overload
def factors(
    kind: PredictionType, alpha: float | Tensor, sigma: float | Tensor, data: float, noise: float
) -> tuple[float | Tensor, float | Tensor]: ...
def factors(
    kind: PredictionType, alpha: float | Tensor, sigma: float | Tensor, data: float, noise: float
) -> tuple[float | Tensor, float | Tensor]:
    """Return the factors of x and of a model's output in data * x0 + noise * eps; floats if alpha and sigma are.

    Args:
        kind: What the network predicts.
        alpha: The factor of the data in x.
        sigma: The factor of the noise in x.
        data: The factor of x0 in the result.
        noise: The factor of eps in the result.

    Raises:
        SingularTimeError: The output does not determine this combination at this time.
    """
    match kind:
        case "epsilon":
            if data == 0.0:
                return 0.0, noise
            _check_nonzero(alpha, "x0 from an epsilon prediction", "alpha")
            return data / alpha, noise - data * sigma / alpha
        case "sample":
            if noise == 0.0:
                return 0.0, data
            _check_nonzero(sigma, "eps from a sample prediction", "sigma")
            return noise / sigma, data - noise * alpha / sigma
        case "v_prediction":
            n = alpha * alpha + sigma * sigma
            return (data * alpha + noise * sigma) / n, (noise * alpha - data * sigma) / n
        case "flow":
            n = alpha + sigma
            return (data + noise) / n, (noise * alpha - data * sigma) / n
        case _:  # score
            if data == 0.0:
                return 0.0, -noise * sigma
            _check_nonzero(alpha, "x0 from a score", "alpha")
            return data / alpha, data * sigma * sigma / alpha - noise * sigma


def _check_nonzero(value: float | Tensor, what: str, name: str) -> None:
    # per-sample times are not checked, as that would read from their device: a zero gives infinity in the result
    if not isinstance(value, Tensor) and value == 0.0:
        raise SingularTimeError(f"{what} needs {name} > 0, but {name} is 0 at this time; stop short of that end")
