"""steadyflow: sample, invert, reconstruct, edit and diagnose diffusion and flow models, stably.

import steadyflow as sf

model = sf.load("digits")
inversion = sf.invert(model.condition(labels), images, solver="ees25", steps=16)
same = inversion.decode()
edited = inversion.decode(model.condition(8), guidance=3.0)
"""

from . import corrections, diagnostics, grids, noise, schedules, solvers
from ._version import __version__
from .adaptive import AdaptiveRun, solve_adaptive
from .denoisers import Denoiser, GaussianMixture
from .diagnostics import Diagnosis, JourneyMap, diagnose, log_likelihood
from .errors import (
    ConvergenceError,
    CorruptFileError,
    InputError,
    MissingExtraError,
    NonFiniteError,
    NotInvertibleError,
    SingularTimeError,
    SteadyflowError,
    StorageError,
    UnknownNameError,
)
from .grids import Grid
from .integrate import Moment, Run, Stepper, Trajectory, integrate, plan
from .models import load
from .prediction import Prediction
from .schedules import VE, RectifiedFlow, Schedule, Tabulated, VPCosine, VPLinear, VPScaledLinear
from .solvers import (
    DDIM,
    DDPM,
    EES25,
    EES27,
    RK4,
    SSPRK3,
    Euler,
    Heun,
    Midpoint,
    Ralston,
    RungeKutta,
    Solver,
)
from .tasks import (
    Choice,
    Edit,
    FlowingEdit,
    Inversion,
    NoiseMaps,
    Reconstruction,
    Sample,
    choose_solver,
    edit,
    flow_edit,
    invert,
    noise_maps,
    reconstruct,
    rf_inversion,
    sample,
)

__all__ = [
    "DDIM",
    "DDPM",
    "EES25",
    "EES27",
    "RK4",
    "SSPRK3",
    "VE",
    "AdaptiveRun",
    "Choice",
    "ConvergenceError",
    "CorruptFileError",
    "Denoiser",
    "Diagnosis",
    "Edit",
    "Euler",
    "FlowingEdit",
    "GaussianMixture",
    "Grid",
    "Heun",
    "InputError",
    "Inversion",
    "JourneyMap",
    "Midpoint",
    "MissingExtraError",
    "Moment",
    "NoiseMaps",
    "NonFiniteError",
    "NotInvertibleError",
    "Prediction",
    "Ralston",
    "Reconstruction",
    "RectifiedFlow",
    "Run",
    "RungeKutta",
    "Sample",
    "Schedule",
    "SingularTimeError",
    "Solver",
    "SteadyflowError",
    "Stepper",
    "StorageError",
    "Tabulated",
    "Trajectory",
    "UnknownNameError",
    "VPCosine",
    "VPLinear",
    "VPScaledLinear",
    "__version__",
    "choose_solver",
    "corrections",
    "diagnose",
    "diagnostics",
    "edit",
    "flow_edit",
    "grids",
    "integrate",
    "invert",
    "load",
    "log_likelihood",
    "noise",
    "noise_maps",
    "plan",
    "reconstruct",
    "rf_inversion",
    "sample",
    "schedules",
    "solve_adaptive",
    "solvers",
]


_LAZY = {
    "SteadyFlowInverseScheduler": ".adapters.schedulers",
    "SteadyFlowScheduler": ".adapters.schedulers",
    "SteadyInverseScheduler": ".adapters.schedulers",
    "SteadyScheduler": ".adapters.schedulers",
    "from_diffusers": ".adapters.pipelines",
    "sample_steady": ".adapters.kdiffusion",
}
"""What is imported when it is first asked for, as it needs diffusers or is seldom wanted."""


def __getattr__(name: str):
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module 'steadyflow' has no attribute {name!r}")
