"""Running a solver over a grid: the loop, the stepper, and adaptive steps."""

from .adjoint import Adjoint, AdjointKind, AdjointRecord, adjoint_of
from .controllers import PIDController
from .loop import (
    Callback,
    Correction,
    Progress,
    Record,
    StepInfo,
    check_state,
    check_state_type,
    integrate,
    progress_bar,
    unrecorded,
)
from .solution import Solution, Trajectory
from .stepper import Stepper, plan
from .steps import Controller, StepLoop, drive

__all__ = [
    "Adjoint",
    "AdjointKind",
    "AdjointRecord",
    "Callback",
    "Controller",
    "Correction",
    "PIDController",
    "Progress",
    "Record",
    "Solution",
    "StepInfo",
    "StepLoop",
    "Stepper",
    "Trajectory",
    "adjoint_of",
    "check_state",
    "check_state_type",
    "drive",
    "integrate",
    "plan",
    "progress_bar",
    "unrecorded",
]
