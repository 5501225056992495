"""What SteinDiff's coefficient can and cannot stand for: a bound, and EDM's scalings as a special case.

The bound needs the score s_q of the states that a few steps have left, which is known in one and two dimensions.
Euler's step in y = x / alpha from chi0 to chi1 is T(y) = r y + (1 - r) D(y), r = chi1 / chi0. Its Jacobian is
r + (1 - r) Cov[x0 | y] / chi0^2, positive definite, so that T is one-to-one, and by the change of variables

    s_q'(T(y)) = DT(y)^-T (s_q(y) - grad log det DT(y)).

A run begins from N(0, chi^2), and its means are integrals over a lattice of starting points: there is no Monte Carlo
error in them.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steadyflow.denoisers import GaussianMixture
from steadyflow.errors import InputError


def shift_bound(residual_square: float, fisher: float, level: float) -> float:
    """How far Stein's coefficient can be from the one it stands for, on states that have left the model's marginal.

    On states of density q the step to the denoised point that is best for the model's own denoiser has the coefficient
    gamma* = - chi0^2 E_q<u, s> / E_q|u|^2, s the model's score; Stein's identity replaces s by the score s_q of the
    states. By Cauchy and Schwarz  |gamma_clean - gamma*| <= chi0^2 sqrt(E_q|s - s_q|^2 / E_q|u|^2). Only scores enter:
    it holds for any step, also where no contraction is certified. (Our derivation; the paper announces such a bound.)

    residual_square: E_q|u|^2. fisher: E_q|s - s_q|^2, scores in y = x / alpha. level: chi0.
    """
    if not residual_square > 0.0 or fisher < 0.0 or level < 0.0:
        raise InputError("shift_bound: expected E|u|^2 > 0, and the others >= 0")
    return level * level * math.sqrt(fisher / residual_square)


def edm_scalings(level: float, mean_square: float) -> tuple[float, float]:
    """c_skip and c_out of EDM (Karras et al. 2022), as Stein's coefficient of the step along the state itself.

    For u = y, div u = d, the best y - gamma y for x0 has gamma = chi^2 d / E|y|^2 = chi^2 / (chi^2 + m): that is
    1 - c_skip. What is left has mean square c_out^2 = chi^2 m / (chi^2 + m), which the network is scaled to.

    level: chi = sigma / alpha. mean_square: m, of the data's numbers, centred.
    """
    if not mean_square > 0.0 or level < 0.0:
        raise InputError("edm_scalings: expected a mean square > 0 and a level >= 0")
    total = level * level + mean_square
    return mean_square / total, level * math.sqrt(mean_square / total)


@dataclass(frozen=True)
class Shift:
    """Stein's coefficient at a step of a run, beside what it stands for."""

    level: float
    """chi0, where the step begins."""
    coefficient: float
    """gamma_clean on the states of the run."""
    meant: float
    """gamma*: the best coefficient for the model's own denoiser, on the same states."""
    bound: float
    """The bound on their distance; see `shift_bound`."""
    identity: float
    """The numerical error: how far both sides of Stein's identity are apart, as a share of gamma*."""
    lipschitz: float
    """The largest local Lipschitz constant of the step among states of the run (of those with all but 1e-4 of it)."""
    expanding: float
    """Share of the states at which it exceeds 1, so that no contraction is certified."""

    @property
    def error(self) -> float:
        """|gamma_clean - gamma*|."""
        return abs(self.coefficient - self.meant)


def shifts(
    mixture: GaussianMixture, levels: Sequence[float], *, bias: float = 0.0, side: int = 201, reach: float = 6.0
) -> list[Shift]:
    """Follow the law of the states of an Euler run, and hold Stein's coefficient at each step against the bound.

    mixture: which the model's score is of, of one standard deviation, in one or two dimensions. levels: chi, falling;
    the run begins from N(0, levels[0]^2). bias: added to the model's clean estimate along every axis. side, reach: the
    lattice of starting points has so many along an axis, and ends at so many standard deviations.

    Raises `InputError` for other dimensions or levels.
    """
    dim = mixture.means.shape[1]
    if dim > 2 or mixture.std.ndim or any(a <= b for a, b in itertools.pairwise(levels)):
        raise InputError("shifts: expected one or two dimensions, one standard deviation, and falling levels")
    axis = torch.linspace(-reach, reach, side, dtype=torch.float64)
    z = torch.cartesian_prod(*[axis] * dim).view(-1, dim)
    weight = torch.softmax(-0.5 * z.square().sum(1), 0)
    y, score, found = levels[0] * z, -z / levels[0], list[Shift]()
    for chi, end in itertools.pairwise(levels):
        r = end / chi
        own, jacobian, slope = _step(mixture, y, chi, r)
        own = own + bias / chi**2
        u = -(1.0 - r) * chi**2 * own  # y - T(y), with D = y + chi^2 s
        spread = dim - (weight * jacobian.diagonal(dim1=1, dim2=2).sum(1)).sum().item()
        size, along = _mean(weight, u, u), _mean(weight, u, score)
        coefficient, meant = chi**2 * spread / size, -(chi**2) * _mean(weight, u, own) / size
        constants = torch.linalg.eigvalsh(jacobian)[:, -1]
        order = constants.argsort()
        likely = weight[order].cumsum(0) < 1.0 - 1e-4
        found.append(
            Shift(
                chi,
                coefficient,
                meant,
                shift_bound(size, _mean(weight, own - score, own - score), chi),
                chi**2 * abs(spread + along) / (size * abs(meant)),
                constants[order][likely].max().item(),
                (weight * (constants > 1.0)).sum().item(),
            )
        )
        y, score = y - u, torch.linalg.solve(jacobian.mT, (score - slope)[:, :, None])[:, :, 0]
    return found


def _mean(weight: Tensor, a: Tensor, b: Tensor) -> float:
    return (weight * (a * b).sum(1)).sum().item()


def _step(mixture: GaussianMixture, y: Tensor, chi: float, r: float) -> tuple[Tensor, Tensor, Tensor]:
    """The score at y, the Jacobian of Euler's step, and the gradient of the logarithm of its determinant."""
    means, weights = mixture.means.double(), mixture.weights.double()
    variance = float(mixture.std) ** 2 + chi**2

    def log_density(one: Tensor) -> Tensor:
        return torch.logsumexp(weights.log() - 0.5 * (one - means).square().sum(1) / variance, 0)

    score = torch.func.grad(log_density)

    def slope(one: Tensor) -> Tensor:
        eye = torch.eye(len(one), dtype=one.dtype)
        return eye + (1.0 - r) * chi**2 * torch.func.jacrev(score)(one)  # r + (1 - r) (1 + chi^2 s')

    def volume(one: Tensor) -> Tensor:
        return torch.linalg.slogdet(slope(one))[1]

    parts = [
        (torch.func.vmap(score)(p), torch.func.vmap(slope)(p), torch.func.vmap(torch.func.grad(volume))(p))
        for p in y.split(20_000)
    ]
    return torch.cat([a for a, _, _ in parts]), torch.cat([b for _, b, _ in parts]), torch.cat([c for _, _, c in parts])
