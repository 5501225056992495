"""steadyflow: sample, invert, reconstruct, edit and diagnose diffusion and flow models, stably.

import steadyflow as sf

model = sf.load("digits")
inversion = sf.invert(model.with_condition(labels), images, solver="ees25", steps=16)
same = inversion.decode()
edited = inversion.decode(model.with_condition(8), guidance=3.0)
"""

from typing import TYPE_CHECKING

from ._version import __version__

if TYPE_CHECKING:  # at run time by `__getattr__` below: torch takes seconds, and help and completion need none of it
    from . import (
        coordinates,
        corrections,
        datasets,
        denoisers,
        diagnostics,
        diffusers,
        editing,
        grids,
        interop,
        jacobians,
        kdiffusion,
        metrics,
        models,
        noise,
        operators,
        runs,
        schedules,
        solvers,
        steering,
    )
    from ._integrate import Adjoint, AdjointRecord, PIDController, Solution, StepInfo, Stepper, Trajectory, integrate
    from .denoisers import Denoiser, GaussianMixture
    from .diagnostics import Comparison, Diagnosis, compare, diagnose, log_likelihood
    from .diffusers import (
        SteadyFlowInverseScheduler,
        SteadyFlowScheduler,
        SteadyInverseScheduler,
        SteadyScheduler,
        from_diffusers,
    )
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
    from .interop import (
        describe_onnx,
        from_edm,
        from_flow_matching,
        from_kdiffusion,
        from_onnx,
        from_sbi,
        from_torchcfm,
    )
    from .jacobians import FlowMap
    from .kdiffusion import sample_steady
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

_HOMES = {
    "_integrate": "Adjoint AdjointRecord PIDController Solution StepInfo Stepper Trajectory integrate",
    "denoisers": "Denoiser GaussianMixture",
    "diagnostics": "Comparison Diagnosis compare diagnose log_likelihood",
    "diffusers": (
        "SteadyFlowInverseScheduler SteadyFlowScheduler SteadyInverseScheduler SteadyScheduler from_diffusers"
    ),
    "editing": "Edit edit",
    "errors": (
        "BrokenExtraError ConvergenceError CorruptFileError InputError MissingExtraError NonFiniteError "
        "NotInvertibleError SingularTimeError SteadyflowError StorageError UnknownNameError"
    ),
    "grids": "Grid",
    "interop": "describe_onnx from_edm from_flow_matching from_kdiffusion from_onnx from_sbi from_torchcfm",
    "jacobians": "FlowMap",
    "kdiffusion": "sample_steady",
    "models": "load",
    "prediction": "Clip Prediction",
    "schedules": "VE RectifiedFlow Schedule Tabulated VPCosine VPLinear VPScaledLinear",
    "solvers": "DDIM DDPM EES25 EES27 RK4 DPMpp2M Euler Heun Midpoint Rex Solver UniPC",
    "steering": "Steered steer",
    "tasks": "Auto Choice Inversion Options Reconstruction choose_solver gits invert reconstruct sample",
    "tuning": "tune",
}
"""The modules of the names above; both are imported when a name is first asked for."""
_LAZY = {name: module for module, names in _HOMES.items() for name in names.split()}

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
    from importlib import import_module, util

    if name in _LAZY:
        found = getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
        globals()[name] = found
        return found
    if not name.startswith("__") and util.find_spec(f"{__name__}.{name}") is not None:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module 'steadyflow' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
