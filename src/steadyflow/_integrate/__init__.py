"""Running a solver over a grid: the loop, the stepper, and adaptive steps."""

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
    "drive",
    "integrate",
    "plan",
    "progress_bar",
]
