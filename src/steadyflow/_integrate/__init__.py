"""Running a solver over a grid: the loop, the stepper, and adaptive steps."""

from .conditioning import ModelCorrection, conditioned
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
)
from .solution import Solution, Trajectory
from .stepper import Stepper, plan
from .steps import Controller, StepLoop, drive

__all__ = [
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
    "check_state",
    "check_state_type",
    "conditioned",
    "drive",
    "integrate",
    "plan",
    "progress_bar",
]
