"""Smoothing of a model's field without training: its mean over neighbours of the state.

    f_r(x, t) = 1/(2m) sum_k [ f(x + r sigma(t) z_k, t) + f(x - r sigma(t) z_k, t) ],   z_k standard normal, fixed

Over all z this is f convolved with a Gaussian, whose Lipschitz constant in x is at most sqrt(2/pi) sup|f| / (r sigma):
the peaks that amplify errors are cut, as Smooth Diffusion (Guo et al. 2024, 2312.04410) trains a LoRA to do. The z_k
are fixed, the same at all times and for all samples, so that the smoothed field is deterministic and an inversion
finds the latent of that same field; pairs of opposite signs cancel all odd orders.
"""

from dataclasses import dataclass

from ..errors import InputError


@dataclass(frozen=True)
class Smoothing:
    """How to average a model's field over neighbours of the state.

    Args:
        radius: r, the distance of the neighbours in noise levels.
        pairs: m, the number of pairs of neighbours; each pair costs two model evaluations.
        seed: The seed of the directions z_k.

    Raises:
        InputError: The radius is not positive, or there is no pair.
    """

    radius: float = 0.1
    pairs: int = 1
    seed: int = 0

    def __post_init__(self):
        if not self.radius > 0.0 or self.pairs < 1:
            raise InputError(f"smoothing: expected radius > 0 and pairs >= 1, got {self.radius} and {self.pairs}")
