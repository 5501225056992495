"""Running a solver over a grid: the loop, the stepper, and adaptive steps."""

from .adjoint import Adjoint, AdjointKind, AdjointRecord, adjoint_of
from .bars import Progress, progress_bar, shown_bar
from .conditioning import ModelCorrection, conditioned
from .controllers import PIDController
from .loop import (
    Callback,
    Correction,
    Record,
    StepInfo,
    check_state,
    check_state_type,
    integrate,
    unrecorded,
)
from .solution import Solution, Trajectory
from .stepper import Stepper, plan
from .steps import Controller, StepLoop, drive
from .times import level_at

__all__ = [
    "Adjoint",
    "AdjointKind",
    "AdjointRecord",
    "Callback",
    "Controller",
    "Correction",
    "ModelCorrection",
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
    "conditioned",
    "drive",
    "integrate",
    "level_at",
    "plan",
    "progress_bar",
    "shown_bar",
    "unrecorded",
]
