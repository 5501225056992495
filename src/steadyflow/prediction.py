"""What a model says of a noisy state: its estimate of the data (`x0`) and of the noise (`eps`).

A network predicts one of five things; every one of them is affine in (x0, eps), and with
x = alpha x0 + sigma eps each gives both:

    epsilon        o = eps                     x0 = (x - sigma o) / alpha
    sample         o = x0                      eps = (x - alpha o) / sigma
    v_prediction   o = alpha eps - sigma x0    x0 = (alpha x - sigma o) / n,  eps = (sigma x + alpha o) / n,
                                               n = alpha^2 + sigma^2
    flow           o = eps - x0                x0 = (x - sigma o) / n,  eps = (x + alpha o) / n,  n = alpha + sigma
    score          o = -eps / sigma            x0 = (x + sigma^2 o) / alpha

Sources: Ho et al. 2020; Salimans & Ho 2022 (v); Liu et al. 2022 (flow); Song et al. 2021 (score).
"""

from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ._internal.tensors import linear_combination
from .errors import SingularTimeError, UnknownNameError

PredictionType = Literal["epsilon", "sample", "v_prediction", "flow", "score"]


def check_type(name: str) -> None:
    """Raise `UnknownNameError` unless `name` is one of the five prediction types."""
    if name not in get_args(PredictionType):
        raise UnknownNameError("prediction", name, get_args(PredictionType))


def defined_at_zero_noise(kind: PredictionType) -> bool:
    """Whether a network of this prediction type can be asked at sigma = 0, where data and noise both follow from it.

    A sample prediction leaves the noise open there; epsilon networks are not trained so far.
    """
    return kind in ("flow", "v_prediction")


def linear(a: float | Tensor, x: Tensor, b: float | Tensor, y: Tensor) -> Tensor:
    """a x + b y; a and b are numbers, or tensors that broadcast against x and y."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return a * x + b * y
    return linear_combination((a, b), (x, y))


class Scaled(NamedTuple):
    """A reading as a tensor, shape (B, ...), and the factor that is still to be applied to it."""

    tensor: Tensor
    factor: float


class Prediction:
    """A model's output at (x, t), read as data or as noise.

    `x` and `output` have shape (B, ...); `alpha` and `sigma` are floats, or tensors that broadcast against
    them when each sample has its own time. Both readings are computed when asked for; where one is the output or the
    state itself, it is that tensor and no copy, so readings are not to be written to.
    """

    __slots__ = ("alpha", "kind", "output", "sigma", "x")

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

    @property
    def x0(self) -> Tensor:
        """The estimate of the data, E[x0 | x] for a perfect model; shape (B, ...)."""
        return self.mix(1.0, 0.0)

    @property
    def eps(self) -> Tensor:
        """The estimate of the noise; shape (B, ...)."""
        return self.mix(0.0, 1.0)

    @property
    def score(self) -> Tensor:
        """The gradient of the log density at this time, -eps / sigma; shape (B, ...)."""
        if self.kind == "score":
            return self.output
        _check_nonzero(self.sigma, "a score", "sigma")
        return self.eps * (-1.0 / self.sigma)

    @property
    def flow(self) -> Tensor:
        """The velocity of the straight path, eps - x0; shape (B, ...)."""
        return self.mix(-1.0, 1.0)

    def mix(self, data: float, noise: float) -> Tensor:
        """data * x0 + noise * eps; `mix(alpha', sigma')` is the DDIM step to that time."""
        of_x, of_output = self.factors(data, noise)
        return linear(of_x, self.x, of_output, self.output)

    def scaled(self, data: float, noise: float) -> Scaled:
        """data * x0 + noise * eps up to a factor, which saves a pass where all samples have one time."""
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

    def factors(self, data: float, noise: float) -> tuple[Any, Any]:
        """The factors of x and of the output in data * x0 + noise * eps."""
        return factors(self.kind, self.alpha, self.sigma, data, noise)


def factors(
    kind: PredictionType, alpha: float | Tensor, sigma: float | Tensor, data: float, noise: float
) -> tuple[Any, Any]:
    """The factors of x and of a model's output of this kind in data * x0 + noise * eps.

    Floats where alpha and sigma are. Raises `SingularTimeError` where the output does not say what is read.
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
    # per-sample times stay on their device: a zero among them shows as infinity in the result
    if not isinstance(value, Tensor) and value == 0.0:
        raise SingularTimeError(f"{what} needs {name} > 0, but {name} is 0 at this time; stop short of that end")
