"""What SteinDiff's coefficient can and cannot stand for: a bound, and EDM's scalings as a special case."""

import math

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
