"""steadyflow: sample, invert, reconstruct, edit and diagnose diffusion and flow models, stably.

import steadyflow as sf

model = sf.load("digits")
inversion = sf.invert(model.with_condition(labels), images, solver="ees25", steps=16)
same = inversion.decode()
edited = inversion.decode(model.with_condition(8), guidance=3.0)
"""

from typing import TYPE_CHECKING

from . import (
    coordinates,
    corrections,
    datasets,
    denoisers,
    diagnostics,
    editing,
    grids,
    jacobians,
    metrics,
    models,
    noise,
    operators,
    schedules,
    solvers,
    steering,
)
from ._integrate import Adjoint, AdjointRecord, PIDController, Solution, StepInfo, Stepper, Trajectory, integrate
from ._version import __version__
from .denoisers import Denoiser, GaussianMixture
from .diagnostics import Comparison, Diagnosis, compare, diagnose, log_likelihood
from .editing import Edit, edit
from .errors import (
    BrokenExtraError,
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
from .jacobians import FlowMap
from .models import load
from .prediction import Clip, Prediction
from .schedules import VE, RectifiedFlow, Schedule, Tabulated, VPCosine, VPLinear, VPScaledLinear
from .solvers import DDIM, DDPM, EES25, EES27, RK4, DPMpp2M, Euler, Heun, Midpoint, Rex, Solver, UniPC
from .steering import Steered, steer
from .tasks import (
    Auto,
    Choice,
    Inversion,
    Options,
    Reconstruction,
    choose_solver,
    gits,
    invert,
    reconstruct,
    sample,
)
from .tuning import tune

if TYPE_CHECKING:  # what is imported when it is first asked for, as it needs diffusers or is seldom wanted
    from . import diffusers, interop, kdiffusion, runs
    from .diffusers import (
        SteadyFlowInverseScheduler,
        SteadyFlowScheduler,
        SteadyInverseScheduler,
        SteadyScheduler,
        from_diffusers,
    )
    from .interop import (
        describe_onnx,
        from_edm,
        from_flow_matching,
        from_kdiffusion,
        from_onnx,
        from_sbi,
        from_torchcfm,
    )
    from .kdiffusion import sample_steady

_LAZY = {
    "SteadyFlowInverseScheduler": "diffusers",
    "SteadyFlowScheduler": "diffusers",
    "SteadyInverseScheduler": "diffusers",
    "SteadyScheduler": "diffusers",
    "describe_onnx": "interop",
    "from_diffusers": "diffusers",
    "from_edm": "interop",
    "from_flow_matching": "interop",
    "from_kdiffusion": "interop",
    "from_onnx": "interop",
    "from_sbi": "interop",
    "from_torchcfm": "interop",
    "sample_steady": "kdiffusion",
    "diffusers": "",
    "interop": "",
    "kdiffusion": "",
    "runs": "",
}
"""What is imported when it is first asked for, and the module that has it."""

__all__ = [
    "DDIM",
    "DDPM",
    "EES25",
    "EES27",
    "RK4",
    "VE",
    "Adjoint",
    "AdjointRecord",
    "Auto",
    "BrokenExtraError",
    "Choice",
    "Clip",
    "Comparison",
    "ConvergenceError",
    "CorruptFileError",
    "DPMpp2M",
    "Denoiser",
    "Diagnosis",
    "Edit",
    "Euler",
    "FlowMap",
    "GaussianMixture",
    "Grid",
    "Heun",
    "InputError",
    "Inversion",
    "Midpoint",
    "MissingExtraError",
    "NonFiniteError",
    "NotInvertibleError",
    "Options",
    "PIDController",
    "Prediction",
    "Reconstruction",
    "RectifiedFlow",
    "Rex",
    "Schedule",
    "SingularTimeError",
    "Solution",
    "Solver",
    "SteadyFlowInverseScheduler",
    "SteadyFlowScheduler",
    "SteadyInverseScheduler",
    "SteadyScheduler",
    "SteadyflowError",
    "Steered",
    "StepInfo",
    "Stepper",
    "StorageError",
    "Tabulated",
    "Trajectory",
    "UniPC",
    "UnknownNameError",
    "VPCosine",
    "VPLinear",
    "VPScaledLinear",
    "__version__",
    "choose_solver",
    "compare",
    "coordinates",
    "corrections",
    "datasets",
    "denoisers",
    "describe_onnx",
    "diagnose",
    "diagnostics",
    "diffusers",
    "edit",
    "editing",
    "from_diffusers",
    "from_edm",
    "from_flow_matching",
    "from_kdiffusion",
    "from_onnx",
    "from_sbi",
    "from_torchcfm",
    "gits",
    "grids",
    "integrate",
    "interop",
    "invert",
    "jacobians",
    "kdiffusion",
    "load",
    "log_likelihood",
    "metrics",
    "models",
    "noise",
    "operators",
    "reconstruct",
    "runs",
    "sample",
    "sample_steady",
    "schedules",
    "solvers",
    "steer",
    "steering",
    "tune",
]


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module 'steadyflow' has no attribute {name!r}")
    from importlib import import_module

    module = _LAZY[name]
    return getattr(import_module(f"{__name__}.{module}"), name) if module else import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
