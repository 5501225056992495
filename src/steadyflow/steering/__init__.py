"""Steering: what goes into a sampler, optimised for a reward of what comes out."""

from .controls import OVER
from .guards import Free, Guard, Norm, Regular, distances, log_probability
from .methods import FlowOpt, Gradient, ZeroOrder
from .rewards import Reward
from .rounds import Round
from .steered import Steered
from .verb import SteerOptions, steer

__all__ = [
    "OVER",
    "FlowOpt",
    "Free",
    "Gradient",
    "Guard",
    "Norm",
    "Regular",
    "Reward",
    "Round",
    "SteerOptions",
    "Steered",
    "ZeroOrder",
    "distances",
    "log_probability",
    "steer",
]
