"""Gaussian mixtures, whose denoiser is known exactly: the ground truth of every study here.

For p0 = sum_k w_k N(mu_k, S_k), S_k diagonal, and x = alpha x0 + sigma eps, component k has mean alpha mu_k
and variance v_k = alpha^2 s_k^2 + sigma^2 at time t. With responsibilities g_k(x) ~ w_k N(x; alpha mu_k, v_k),

    eps_hat = sigma sum_k g_k (x - alpha mu_k) / v_k,        x0_hat = (x - sigma eps_hat) / alpha.

The denoiser returns v = alpha eps - sigma x0, which loses no digits at either end:

    v = sum_k g_k (c_k x - d_k mu_k),    c_k = alpha sigma (1 - s_k^2) / v_k,    d_k = sigma + alpha c_k.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor

from .._internal.given import whole
from .._internal.tensors import padded
from ..errors import InputError
from ..noise import INITIAL, normal
from ..schedules import Schedule
from ._densities import log_joint
from .base import Condition, Denoiser
from .posteriors import FullMixture, conditioned

Numbers = Tensor | np.ndarray | float | Sequence[float] | Sequence[Sequence[float]]
"""What `torch.as_tensor` makes a tensor of real numbers from."""

# functions of torch that it leaves untyped
_ndtr: Callable[[Tensor], Tensor] = cast(Any, torch.special).ndtr
_split: Callable[[Tensor, int], Sequence[Tensor]] = cast(Any, Tensor).split
_to_list: Callable[[Tensor], list[int]] = cast(Any, Tensor).tolist


@dataclass(frozen=True, eq=False, init=False)
class GaussianMixture:
    """A mixture of K Gaussians in d dimensions.

    Args:
        means: The means, shape (K, d).
        std: The standard deviations: a number, shape (K,) (one per component) or (K, d) (diagonal covariances).
        weights: The weights, shape (K,), which are normalised; equal by default.
        labels: The class of each component, integers of shape (K,), for conditional models; none by default.

    Raises:
        InputError: A shape does not fit, a number is not finite, or a standard deviation or weight is not positive.
    """

    means: Tensor
    """The means, shape (K, d)."""
    std: Tensor
    """The standard deviations, shape (), (K,) or (K, d)."""
    weights: Tensor
    """The weights, shape (K,); they sum to 1."""
    labels: Tensor | None
    """The class of each component, shape (K,)."""

    def __init__(
        self,
        means: Numbers,
        std: Numbers,
        weights: Numbers | None = None,
        labels: Tensor | np.ndarray | Sequence[int] | None = None,
    ):
        means = torch.as_tensor(means)
        if not means.is_floating_point():
            means = means.double()
        if means.ndim != 2 or 0 in means.shape:
            raise InputError(f"means: got shape {tuple(means.shape)}, expected (K, d)")
        std = torch.as_tensor(std, dtype=means.dtype)
        if std.shape not in ((), means.shape[:1], means.shape):
            raise InputError(f"std: got shape {tuple(std.shape)}, expected a number, (K,) or (K, d)")
        weights = torch.ones(len(means)) if weights is None else torch.as_tensor(weights)
        weights = weights.to(means.dtype)
        if weights.shape != means.shape[:1]:
            raise InputError(f"weights: got shape {tuple(weights.shape)}, expected ({len(means)},)")
        for name, value in (("std", std), ("weights", weights)):
            if not bool((value > 0).all()):
                raise InputError(f"{name}: expected positive numbers")
        for name, value in (("means", means), ("std", std), ("weights", weights)):
            if not bool(value.isfinite().all()):
                raise InputError(f"{name}: expected finite numbers, got NaN or infinity")
        if labels is not None:
            labels = torch.as_tensor(labels)
            if labels.shape != weights.shape or labels.is_floating_point() or bool((labels < 0).any()):
                raise InputError(f"labels: expected {len(means)} integers >= 0, one per component")
        object.__setattr__(self, "means", means)
        object.__setattr__(self, "std", std)
        object.__setattr__(self, "weights", weights / weights.sum())
        object.__setattr__(self, "labels", labels)

    @classmethod
    def grid(
        cls, side: int = 5, *, spacing: float = 2.0, std: float = 0.02, dtype: torch.dtype = torch.float64
    ) -> "GaussianMixture":
        """Create side x side equal modes on a square grid centred at 0; the literature's 25 modes are those of side 5.

        Args:
            side: The number of modes along an axis.
            spacing: The distance between neighbouring modes.
            std: The standard deviation of every mode.
            dtype: The type of the numbers.
        """
        axis = (torch.arange(side, dtype=dtype) - (side - 1) / 2) * spacing
        return cls(torch.cartesian_prod(axis, axis), std)

    @classmethod
    def farthest_points(
        cls,
        modes: int,
        dim: int,
        *,
        spacing: float = 2.0,
        std: float = 0.02,
        side: int = 5,
        candidates: int = 4096,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
    ) -> "GaussianMixture":
        """Create modes on the centred lattice spacing * {0..side-1}^dim, each the farthest from the ones before.

        The first mode is the candidate with the smallest sum of coordinates.

        Args:
            modes: The number of modes.
            dim: d, the dimension.
            spacing: The distance between neighbouring lattice points.
            std: The standard deviation of every mode.
            side: The number of lattice points along an axis.
            candidates: Lattices of at most this many points are searched completely, larger ones at this many random
                points.
            seed: The seed of those random points.
            dtype: The type of the numbers.

        Raises:
            InputError: The lattice has fewer points than modes.
        """
        if modes > side**dim:
            raise InputError(f"modes: got {modes}, but the lattice has only {side}^{dim} points")
        if side**dim <= candidates:
            lattice = torch.cartesian_prod(*[torch.arange(side)] * dim).view(-1, dim)
        else:
            generator = torch.Generator().manual_seed(seed)
            drawn = torch.randint(side, (candidates, dim), generator=generator)
            lattice = cast(Tensor, cast(Any, drawn).unique(dim=0))
        points = (lattice.to(dtype) - (side - 1) / 2) * spacing
        chosen = [int(points.sum(1).argmin())]
        distance = (points - points[chosen[0]]).square().sum(1)
        while len(chosen) < modes:
            chosen.append(int(distance.argmax()))
            distance = torch.minimum(distance, (points - points[chosen[-1]]).square().sum(1))
        return cls(points[chosen], std)

    @property
    def dim(self) -> int:
        """d, the dimension of one sample."""
        return self.means.shape[1]

    @cached_property
    def spread(self) -> float:
        """The standard deviation that all components share.

        Raises:
            InputError: The components differ in it.
        """
        first = self.std.flatten()[0]
        if not bool((self.std == first).all()):
            raise InputError("spread: expected a mixture whose components share one spread (std)")
        return first.item()

    @property
    def classes(self) -> int | None:
        """The number of classes, one more than the largest label."""
        return None if self.labels is None else int(self.labels.max()) + 1

    def to(self, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> "GaussianMixture":
        """Return this mixture in another precision or on another device, each unchanged by default."""
        labels = None if self.labels is None else self.labels.to(device=device)
        means, std, weights = (v.to(dtype=dtype, device=device) for v in (self.means, self.std, self.weights))
        return GaussianMixture(means, std, weights, labels)

    def sample(self, n: int, seed: int = 0, label: int | None = None, *, index: int = 0) -> Tensor:
        """Draw exact samples, shape (n, d); row i depends on the seed and `index` + i alone.

        Args:
            n: The number of samples.
            seed: The seed.
            label: Draw only from the components of this class.
            index: The index of the first sample.

        Raises:
            InputError: No component has that label, or a number is none.
        """
        n, index = whole("n", n, 0), whole("index", index, 0)
        rows = range(index, index + n)
        uniform = _ndtr(normal(seed, INITIAL, (1, 0, 0), rows, (), dtype=torch.float64))
        chance = (self.weights * self._chosen(label)).double().cpu().cumsum(0)
        pick = torch.searchsorted(chance / chance[-1], uniform).clamp(max=len(chance) - 1)
        pick = pick.to(self.means.device)
        noise = normal(seed, INITIAL, (2, 0, 0), rows, (self.dim,), dtype=self.means.dtype, device=self.means.device)
        std = self.std if self.std.ndim == 0 else self.std[pick].view(n, -1)
        return self.means[pick] + std * noise

    def log_prob(self, x: Tensor, label: int | None = None) -> Tensor:
        """Return the exact log density, in nats, at each row of x, shape (n,).

        Args:
            x: Points, shape (n, d).
            label: Take only the components of this class.

        Raises:
            InputError: x has another shape, or no component has that label.
        """
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise InputError(f"x: got shape {tuple(x.shape)}, expected (n, {self.dim})")
        weights = self.weights * self._chosen(label)
        logs = (weights / weights.sum()).log()
        parts = _split(x, _rows_at_a_time(len(self.means)))
        return torch.cat([log_joint(part, self, logs, 1.0, 0.0).logsumexp(1) for part in parts])

    def _chosen(self, label: int | None) -> Tensor:
        if label is None:
            return torch.ones_like(self.weights)
        known = [] if self.labels is None else sorted(set(_to_list(self.labels)))
        if self.labels is None or label not in known:
            known = f"labels {known}" if known else "no labels"
            raise InputError(f"label: got {label}, but the mixture has {known}")
        return (self.labels == label).to(self.weights)

    def marginal(self, schedule: Schedule, t: float) -> "GaussianMixture":
        """Return the exact distribution at path time t: means alpha mu, variances alpha^2 s^2 + sigma^2."""
        level = schedule.at(t)
        alpha, sigma = level.alpha, level.sigma
        std = ((alpha * self.std) ** 2 + sigma**2).sqrt()
        return GaussianMixture(alpha * self.means, std, self.weights, self.labels)

    def posterior(self, operator: object, y: Tensor, noise: float | Tensor) -> FullMixture:
        """Return the exact distribution of x0 given y = A x0 + noise n, with n standard normal.

        Args:
            operator: A: a linear operator of `steadyflow.operators` on samples (B, d), or a matrix (m, d).
            y: What was measured, shape (m,) or (1, m).
            noise: The standard deviation of the noise, a number or shape (m,).

        Raises:
            InputError: The operator is not linear, y does not fit it, or the noise is not positive and finite.
        """
        std = self.std if self.std.ndim != 1 else self.std[:, None]
        return conditioned(self.means, std.square().expand_as(self.means), self.weights, operator, y, noise)

    def denoiser(self, schedule: Schedule) -> "MixtureDenoiser":
        """Return the exact model of this mixture along a path; it is conditional if the mixture has labels."""
        return MixtureDenoiser(self, schedule)


class MixtureDenoiser(Denoiser):
    """The exact denoiser of a mixture: differentiable, computed in the precision of the state, the same in any batch.

    Under a condition only the components with that label count. Cost: one product of (n, d) by (d, K), a
    softmax and one of (n, K) by (K, d) for isotropic components.

    Args:
        mixture: The distribution of the data.
        schedule: The path.
        **options: Other fields of `Denoiser`, such as `condition` and `guidance`.
    """

    mixture: GaussianMixture
    """The distribution of the data."""

    def __init__(self, mixture: GaussianMixture, schedule: Schedule, **options: Any):
        fields: dict[str, Any] = {"net": mixture, "schedule": schedule, "prediction": "v_prediction", "name": "mixture"}
        fields |= {"shape": (mixture.dim,), "classes": mixture.classes}
        fields |= {"null": None if mixture.labels is None else -1}
        super().__init__(**{**fields, **options})
        object.__setattr__(self, "mixture", mixture)

    def _replace(self, **changes: Any) -> Self:
        options = {field.name: getattr(self, field.name) for field in dataclasses.fields(Denoiser)} | changes
        return type(self)(options.pop("net"), options.pop("schedule"), **options)

    def _check_labels(self, given: Condition) -> None:
        if given is not None and self.mixture.labels is None:
            raise InputError(
                f"condition: got {given!r}, but the mixture has no labels; give GaussianMixture(labels=...)"
            )
        super()._check_labels(given)

    @cached_property
    def _versions(self) -> dict[tuple[torch.dtype, torch.device], GaussianMixture]:
        return {}

    def _at(self, x: Tensor) -> GaussianMixture:
        """Return the mixture in x's precision, on x's device."""
        key = (x.dtype, x.device)
        if key not in self._versions:
            self._versions[key] = self.mixture.to(*key)
        return self._versions[key]

    def evaluate(self, x: Tensor, t: float | Tensor, given: Any) -> Tensor:
        if x.ndim != 2 or x.shape[1] != self.mixture.dim:
            raise InputError(f"x: got shape {tuple(x.shape)}, expected (n, {self.mixture.dim})")
        mixture = self._at(x)
        if isinstance(t, Tensor):
            alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        else:
            level = self.schedule.at(t)
            alpha, sigma = level.alpha, level.sigma
        whole = tuple(padded(value, _ROWS) for value in (x, alpha, sigma, given))
        return self._of_whole_rows(mixture, *whole)[: len(x)]

    def _of_whole_rows(self, mixture: GaussianMixture, x: Tensor, alpha: Any, sigma: Any, given: Any) -> Tensor:
        """Return v at x, whose number of rows is a multiple of `_ROWS`."""
        if given is None and mixture.std.ndim == 0 and not isinstance(alpha, Tensor) and not isinstance(sigma, Tensor):
            return _shared_spread(x, mixture, alpha, sigma)
        wide = mixture.std.ndim == 2 and isinstance(alpha, Tensor)
        size = _rows_at_a_time(mixture.std.numel() if wide else len(mixture.means))
        if len(x) <= size:
            return self._part(x, mixture, alpha, sigma, given)

        def rows(value: Any, start: int) -> Any:
            return value[start : start + size] if isinstance(value, Tensor) else value

        starts = range(0, len(x), size)
        return torch.cat(
            [self._part(rows(x, k), mixture, *(rows(v, k) for v in (alpha, sigma, given))) for k in starts]
        )

    @staticmethod
    def _part(x: Tensor, mixture: GaussianMixture, alpha: Any, sigma: Any, given: Any) -> Tensor:
        """Return v at x, (n, d), for alpha and sigma that are numbers or of shape (n,), and labels (n,) or None."""
        if isinstance(alpha, Tensor) and isinstance(sigma, Tensor):
            alpha, sigma = alpha.to(x.dtype)[:, None], sigma.to(x.dtype)[:, None]
        log_weights = mixture.weights.log()
        if given is not None and mixture.labels is not None:
            wanted = (given[:, None] == mixture.labels) | (given[:, None] < 0)
            log_weights = log_weights.where(wanted, -math.inf)
        responsibilities = log_joint(x, mixture, log_weights, alpha, sigma).softmax(1)
        if mixture.std.ndim == 2 and isinstance(alpha, Tensor) and isinstance(sigma, Tensor):
            alpha, sigma = alpha[:, :, None], sigma[:, :, None]  # against (K, d)
        variance = (alpha * mixture.std) ** 2 + sigma**2
        of_x = alpha * sigma * (1.0 - mixture.std**2) / variance
        of_mean = sigma + alpha * of_x
        if mixture.std.ndim == 0:
            return of_x * x - of_mean * (responsibilities @ mixture.means)
        if mixture.std.ndim == 1:
            mean = (responsibilities * of_mean) @ mixture.means
            return (responsibilities * of_x).sum(1, keepdim=True) * x - mean
        if of_x.ndim == 2:
            return (responsibilities @ of_x) * x - responsibilities @ (of_mean * mixture.means)
        mean = torch.einsum("nk,nkd->nd", responsibilities, of_mean * mixture.means)
        return torch.einsum("nk,nkd->nd", responsibilities, of_x) * x - mean


_ROWS = 16
"""Products of fewer rows add up in another order, by which a sample would depend on its batch in the last digits."""
_CACHED = 2**16
"""How many logits to compute at a time, so that they fit a core's cache and memory does not grow with the batch."""


def _rows_at_a_time(components: int) -> int:
    """Return how many samples to compute at a time; fewer than 64 would make products slow."""
    return max(64, _CACHED // components // _ROWS * _ROWS)


def _shared_spread(x: Tensor, mixture: GaussianMixture, alpha: float, sigma: float) -> Tensor:
    """Return v of a mixture of one spread at one time, which leaves the sum over k, as |x|^2 leaves the softmax."""
    spread = mixture.spread
    variance = (alpha * spread) ** 2 + sigma**2
    of_x = alpha * sigma * (1.0 - spread**2) / variance
    of_mean = sigma + alpha * of_x
    bias = mixture.weights.log() - mixture.means.square().sum(1) * (alpha**2 / (2.0 * variance))
    scaled = mixture.means.T * (alpha / variance)
    parts = [
        torch.addmm(part, torch.addmm(bias, part, scaled).softmax(1), mixture.means, beta=of_x, alpha=-of_mean)
        for part in _split(x, _rows_at_a_time(len(mixture.means)))
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
