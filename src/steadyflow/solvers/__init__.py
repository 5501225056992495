"""Solvers: one family a file, tableaux as data, a registry with each solver's facts."""

from .ancestral import DDIM, DDPM
from .base import Asking, Facts, Leg, Query, Solver
from .registry import get, names, register
from .runge_kutta import EES25, EES27, RK4, SSPRK3, Euler, Heun, Midpoint, Ralston, RungeKutta

__all__ = [
    "DDIM",
    "DDPM",
    "EES25",
    "EES27",
    "RK4",
    "SSPRK3",
    "Asking",
    "Euler",
    "Facts",
    "Heun",
    "Leg",
    "Midpoint",
    "Query",
    "Ralston",
    "RungeKutta",
    "Solver",
    "get",
    "names",
    "register",
]
