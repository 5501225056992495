"""Solvers: one file per family, tableaux as data, and a registry with each solver's properties."""

# isort: off  # the order of the families is that of the registry's table
from .ancestral import DDIM, DDPM
from .base import Properties, Queries, Query, Solver, Step, each_step, steps_for
from .fixed_point import AIDI, FireFlow, ReNoise
from .hybrid import Hybrid
from .multistep import DEIS, IPNDM, LMS, DPMpp2M, DPMpp3M, DPMppSDE, UniPC
from .registry import from_spec, get, names, register
from .reversible import ALF, BDIA, BELM, EDICT, ImplicitMidpoint, ReversibleHeun
from .rex import Rex, RexSDE
from .runge_kutta import (
    EES25,
    EES27,
    RK4,
    SSPRK3,
    BogackiShampine,
    Dopri5,
    Euler,
    Heun,
    Midpoint,
    Ralston,
    RungeKutta,
    Tsit5,
)
from .singlestep import DPMpp2S, DPMSolver2, DPMSolver3
from .state import solver_state
from .stochastic import LCM, SEEDS2, EDMStochastic

# isort: on

__all__ = [
    "AIDI",
    "ALF",
    "BDIA",
    "BELM",
    "DDIM",
    "DDPM",
    "DEIS",
    "EDICT",
    "EES25",
    "EES27",
    "IPNDM",
    "LCM",
    "LMS",
    "RK4",
    "SEEDS2",
    "SSPRK3",
    "BogackiShampine",
    "DPMSolver2",
    "DPMSolver3",
    "DPMpp2M",
    "DPMpp2S",
    "DPMpp3M",
    "DPMppSDE",
    "Dopri5",
    "EDMStochastic",
    "Euler",
    "FireFlow",
    "Heun",
    "Hybrid",
    "ImplicitMidpoint",
    "Midpoint",
    "Properties",
    "Queries",
    "Query",
    "Ralston",
    "ReNoise",
    "ReversibleHeun",
    "Rex",
    "RexSDE",
    "RungeKutta",
    "Solver",
    "Step",
    "Tsit5",
    "UniPC",
    "each_step",
    "from_spec",
    "get",
    "names",
    "register",
    "solver_state",
    "steps_for",
]
