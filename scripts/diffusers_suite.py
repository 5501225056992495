"""The common scheduler tests of diffusers, run on our schedulers:  python scripts/diffusers_suite.py CHECKOUT

CHECKOUT is a checkout of huggingface/diffusers, best at the version that is installed; nothing is copied from it. All
of its SchedulerCommonTest is run for SteadyScheduler and SteadyFlowScheduler with several solvers, and the checks of
`PEERS` for SteadyScheduler, made from the configs of diffusers' own schedulers. A Markdown table says how many pass,
and below it stands every test that does not, with the reason from `EXPLAINED`. The exit status is 1 if a failure is
not explained, or if an explanation fits no failure.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import sys
import traceback
import unittest
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from logging import NullHandler
from pathlib import Path
from typing import Any
from unittest import mock

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from diffusers.utils import logging

from steadyflow import SteadyFlowScheduler, SteadyScheduler, solvers

SOLVERS = ("ddim", "dpmpp-2m", "unipc", "ddpm", "lcm", "ees25", "rk4", "heun")
TABLE = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}

FOLDER = "tests/schedulers"
COMMON = ("test_schedulers", "SchedulerCommonTest")

NOT_FOR_FLOWS = ("test_trained_betas",)
"""The common tests that need a table of betas."""
NOTE = (
    f"SteadyFlowScheduler: {', '.join(NOT_FOR_FLOWS)} is not applicable, as flow models have no betas; diffusers "
    "itself has no common tests for FlowMatchEulerDiscreteScheduler."
)

# The checks that diffusers makes of one of its classes and that any scheduler with the same config can be given: they
# need only `scheduler_classes` and `get_scheduler_config`, and ask whether each field of the config survives saving and
# loading, whether lists of timesteps and sigmas give the run that they were taken from, and whether half precision and
# many steps work. Left out are
#     the full loops (test_full_loop_*, test_switch), which compare with stored sums of that class's own steps,
#     test_variance of DDIM, which calls a private method and compares with stored numbers, and
#     test_custom_timesteps of Heun, which picks every other timestep, as HeunDiscreteScheduler lays them out.
PEERS = {
    ("test_scheduler_euler", "EulerDiscreteSchedulerTest"): (
        "test_timesteps",
        "test_betas",
        "test_schedules",
        "test_prediction_type",
        "test_timestep_type",
        "test_karras_sigmas",
        "test_rescale_betas_zero_snr",
        "test_custom_timesteps",
        "test_custom_sigmas",
        "test_beta_sigmas",
        "test_exponential_sigmas",
    ),
    ("test_scheduler_ddim", "DDIMSchedulerTest"): (
        "test_timesteps",
        "test_steps_offset",
        "test_betas",
        "test_schedules",
        "test_prediction_type",
        "test_clip_sample",
        "test_timestep_spacing",
        "test_rescale_betas_zero_snr",
        "test_thresholding",
        "test_time_indices",
        "test_inference_steps",
        "test_eta",
    ),
    ("test_scheduler_dpm_multi", "DPMSolverMultistepSchedulerTest"): (
        "test_step_shape",
        "test_timesteps",
        "test_thresholding",
        "test_prediction_type",
        "test_solver_order_and_type",
        "test_lower_order_final",
        "test_euler_at_final",
        "test_lambda_min_clipped",
        "test_variance_type",
        "test_inference_steps",
        "test_rescale_betas_zero_snr",
        "test_fp16_support",
        "test_duplicated_timesteps",
        "test_custom_timesteps",
        "test_beta_sigmas",
        "test_exponential_sigmas",
    ),
    ("test_scheduler_heun", "HeunDiscreteSchedulerTest"): (
        "test_timesteps",
        "test_betas",
        "test_schedules",
        "test_clip_sample",
        "test_prediction_type",
        "test_beta_sigmas",
        "test_exponential_sigmas",
    ),
}

OTHER_DEFAULTS = (
    "A config counts with the defaults of the class that wrote it. Coming back from another class, ours keeps the "
    "values by which that class went, and names it in `follows`; the test expects the defaults of before."
)
WITHIN_A_STEP = (
    "The test gives the same sample at two calls in turn. Within a step of several calls that is a change of the "
    "latents, from which the solver cannot go on; one that the user has named refuses it."
)
CALLS = (
    "An entry of `timesteps` is a network call. A solver of several calls a step has more of them than steps, and "
    "most of them begin none. A list says where steps begin, so that the calls of one run, given as a list, are "
    "another run."
)
ROUNDING = (
    "The same steps to single precision: those of a number of steps lie where diffusers' rounded sigmas say, those of "
    "a list at the timesteps themselves. The test allows for less than a rounding of each value."
)
INTERPOLATION = (
    "Between the entries of the table Euler interpolates sigma linearly, ours the log-SNR, so that timesteps with a "
    "fraction, given as a list, stand some millionths aside of those of a number of steps."
)
OFF_THE_RUN = (
    "The test steps at a timestep where the run has no step, which diffusers' DDIM does not notice and ours refuses. "
    "Pipelines hand over the entries of `timesteps`."
)
ETA = (
    "`eta` is chosen with the solver, by its options. What a pipeline passes at every step must be 0 or the same; "
    "another value is refused, in words that say how to choose it."
)
NO_SUCH_TABLE = (
    "The table leaves (0, 1): its alphas_cumprod reach 0 in single precision or fall below it, so that there is no "
    "noise level to step from. The test itself steps at the first entry only."
)
NO_SUCH_LEVEL = (
    "The config asks for a noise level above all of the table. diffusers begins there and tells the network the "
    "table's last timestep; ours refuses it."
)
LOG_LINEAR = (
    "With this interpolation diffusers' Euler leaves the timesteps where they are and moves the sigmas away from "
    "them. A list of timesteps stands for the table's own levels there, and a solver of several calls a step, which "
    "needs a time for the levels in between, refuses the interpolation by its name."
)
EXP = (
    "A schedule of HeunDiscreteScheduler alone, refused by the field's name; its betas can be given as `trained_betas`."
)
VARIANCE = (
    "The solver ddpm draws the fixed small variance, so a config that asks for a learned one is refused with it; it "
    "is taken with the others, which do without that variance."
)

SEVERAL = "^(ees25|rk4|heun): "
"""The solvers of several network calls a step."""

EXPLAINED: dict[tuple[str, str], str] = {
    (
        "test_compatibles",
        r"by=\w+: AssertionError: assert new_scheduler_config == dict\(scheduler.config\)",
    ): OTHER_DEFAULTS,
    ("test_step_shape", r"^heun: InputError: step: got timestep"): CALLS,
    ("test_step_shape", SEVERAL + "InputError: step: the latents were changed within a step"): WITHIN_A_STEP,
    ("test_step_shape", SEVERAL + r"InputError: step: no step begins at timestep \d+\.\d"): CALLS,
    ("test_steps_offset", SEVERAL + r"AssertionError: assert torch.equal\(scheduler.timesteps"): CALLS,
    ("test_duplicated_timesteps", SEVERAL + r"AssertionError: assert len\(scheduler.timesteps\)"): CALLS,
    ("test_custom_timesteps", "^(ees25|rk4): .*the runs differ"): CALLS,
    ("test_custom_sigmas", "^(ees25|rk4): .*the runs differ"): CALLS,
    ("test_custom_timesteps", r"InputError: interpolation_type: the timesteps of 'log_linear'"): LOG_LINEAR,
    ("test_custom_timesteps", r"interpolation_type=linear.*the runs differ by \de-0[678] "): INTERPOLATION,
    ("test_custom_sigmas", r"the runs differ by \de-0[78] "): ROUNDING,
    ("test_custom_timesteps", r"algorithm_type=.*the runs differ by \de-0[78] "): ROUNDING,
    ("test_custom_timesteps", "interpolation_type=log_linear.*(the runs differ|expected falling values)"): LOG_LINEAR,
    (
        "test_timestep_spacing",
        "timestep_spacing=trailing: InputError: step: no step begins at timestep 0;",
    ): OFF_THE_RUN,
    ("test_time_indices", "time_step=(10|49): InputError: step: no step begins at timestep"): OFF_THE_RUN,
    ("test_inference_steps", "time_step=10, num_.*: InputError: step: no step begins at timestep 10;"): OFF_THE_RUN,
    ("test_eta", r"eta=(0\.5|1\.0): InputError: eta: got"): ETA,
    ("test_eta", "^ddpm: time_step=49, eta=1.0: InputError: step: no step begins at timestep 49;"): OFF_THE_RUN,
    ("test_betas", r"beta_end=(0\.2|2): InputError: betas: the products of 1 - beta leave \(0, 1\)"): NO_SUCH_TABLE,
    ("test_karras_sigmas", "InputError: sigmas: 700 lies above the largest of the model's table"): NO_SUCH_LEVEL,
    ("test_schedules", "beta_schedule=exp: InputError: beta_schedule: got 'exp'"): EXP,
    ("test_variance_type", "^ddpm: variance_type=learned_range: InputError: variance_type: 'learned_range'"): VARIANCE,
}
"""Why ours is right, by the name of a test and a pattern in "solver: error"."""


@dataclass(frozen=True)
class Outcome:
    """How one test ended."""

    column: str
    """The column of the table to which it belongs."""
    solver: str
    origin: str
    """The class of diffusers that defines the test."""
    test: str
    errors: tuple[str, ...]
    """The first line of each error, behind what was checked and the error's type; none if the test passed."""


class Result(unittest.TestResult):
    """Keeps the errors of the test that ran last; a test that was skipped did not pass."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def _keep(self, err: Any, checked: str = "") -> None:
        kind, error, trace = err
        lines = str(error).strip().splitlines() or [traceback.extract_tb(trace)[-1].line or ""]  # of a bare assertion
        self.found.append(f"{checked}{kind.__name__}: {lines[0]}")

    def addError(self, test: Any, err: Any) -> None:  # noqa: N802, as unittest calls it
        self._keep(err)

    def addFailure(self, test: Any, err: Any) -> None:  # noqa: N802
        self._keep(err)

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:  # noqa: N802
        if err is not None:
            self._keep(err, ", ".join(f"{k}={v}" for k, v in subtest.params.items()) + ": ")

    def addSkip(self, test: Any, reason: str) -> None:  # noqa: N802
        self.found.append(f"skipped: {reason}")


def settings(solver: str) -> dict[str, Any]:
    """What a scheduler's config says about its solver."""
    stochastic = solvers.get(solver).properties.stochastic
    return {"solver": solver, **({"seed": 0} if stochastic else {})}


def common_case(base: Any, scheduler: type, solver: str) -> type[unittest.TestCase]:
    """The common tests for one of our classes and one solver."""
    path = TABLE if issubclass(scheduler, SteadyScheduler) else {}

    class Common(base):
        scheduler_classes = (scheduler,)
        forward_default_kwargs = (("num_inference_steps", 10),)

        def get_scheduler_config(self, **kwargs: Any) -> dict[str, Any]:
            return {**settings(solver), "num_train_timesteps": 1000, **path, **kwargs}

        def test_compatibles(self) -> None:
            # the inherited test comes back from one class, the last by the hashes of the names: here from every one
            for name in scheduler._compatibles:
                with self.subTest(by=name), mock.patch.object(scheduler, "_compatibles", [name]):
                    super().test_compatibles()

    return Common


def peers_case(base: Any, solver: str) -> type[unittest.TestCase]:
    """The tests of one of diffusers' schedulers for ours, made from the configs of that class as in a pipeline.

    The checks are the inherited ones, but each goes on where it would stop at the first config that fails.
    """
    (peer,) = base.scheduler_classes

    class Followed:
        from_pretrained = SteadyScheduler.from_pretrained

        def __new__(cls, **config: Any) -> Any:
            return SteadyScheduler.from_config(peer(**config).config, **settings(solver))

    class Peers(base):
        scheduler_classes = (Followed,)

        def check_over_configs(self, **config: Any) -> None:
            with self.subTest(**config):
                super().check_over_configs(**config)

        def check_over_forward(self, **kwargs: Any) -> None:
            with self.subTest(**kwargs):
                super().check_over_forward(**kwargs)

        def full_loop_custom_timesteps(self, **config: Any) -> Any:
            return self._compared(super().full_loop_custom_timesteps, config)

        def full_loop_custom_sigmas(self, **config: Any) -> Any:
            return self._compared(super().full_loop_custom_sigmas, config)

        def _compared(self, listed_loop: Callable[..., Any], config: dict[str, Any]) -> Any:
            """The run by number; that by list is compared with it here, as the inherited tests compare them."""
            named = self.full_loop(**config)
            with self.subTest(**config):
                listed = listed_loop(**config)
                apart, most = (listed - named).abs().sum(), max(named.abs().sum(), listed.abs().sum())
                assert apart < 1e-5, f"the runs differ by {apart / most:.0e} of their sum"
            return named

    return Peers


def run(case: type[unittest.TestCase], tests: Iterable[str], **place: str) -> Iterator[Outcome]:
    """Run some tests of a case, quietly and each from the same state of torch's random numbers."""
    for test in tests:
        result = Result()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            case(test).run(result)
        yield Outcome(**place, test=test, errors=tuple(result.found))


def load(checkout: Path, module: str, name: str) -> Any:
    """A class of tests from the checkout.

    Raises:
        SystemExit: It is not there, or cannot be imported.
    """
    path = f"{FOLDER}/{module}.py"
    if not (checkout / path).is_file():
        raise SystemExit(f"{checkout} is no checkout of huggingface/diffusers: {path} is missing")
    try:
        found = getattr(importlib.import_module(f"{FOLDER.replace('/', '.')}.{module}"), name, None)
    except ImportError as error:
        raise SystemExit(f"{path} of {checkout} cannot be imported: {error}") from None
    if found is None:
        raise SystemExit(f"{path} of {checkout} has no {name}")
    return found


def outcomes(checkout: Path) -> Iterator[Outcome]:
    """The outcomes of all tests."""
    common = load(checkout, *COMMON)
    peers = [(load(checkout, *where), tests) for where, tests in PEERS.items()]
    for base, tests in peers:
        missing = [test for test in tests if not hasattr(base, test)]
        if missing:
            raise SystemExit(f"{base.__name__} of {checkout} has no {', '.join(missing)}")
    names = unittest.TestLoader().getTestCaseNames(common)
    for solver in SOLVERS:
        for scheduler in (SteadyScheduler, SteadyFlowScheduler):
            tests = [test for test in names if scheduler is SteadyScheduler or test not in NOT_FOR_FLOWS]
            case = common_case(common, scheduler, solver)
            column = f"{scheduler.__name__}, inherited"
            yield from run(case, tests, column=column, solver=solver, origin=common.__name__)
        for base, tests in peers:
            case, column = peers_case(base, solver), "SteadyScheduler, peers'"
            yield from run(case, tests, column=column, solver=solver, origin=base.__name__)


def table(found: list[Outcome]) -> str:
    """How many tests passed, as a Markdown table."""
    columns = list(dict.fromkeys(o.column for o in found))
    lines = [f"| solver | {' | '.join(columns)} |", f"|---{'|---:' * len(columns)}|"]
    for solver in SOLVERS:
        cells = []
        for column in columns:
            own = [o for o in found if (o.solver, o.column) == (solver, column)]
            cells.append(f"{sum(not o.errors for o in own)}/{len(own)}")
        lines.append(f"| {solver} | {' | '.join(cells)} |")
    return "\n".join(lines)


def fitting(test: str, line: str) -> list[tuple[str, str]]:
    """The entries of `EXPLAINED` that fit a failure."""
    return [entry for entry in EXPLAINED if entry[0] == test and re.search(entry[1], line)]


def report(found: list[Outcome]) -> tuple[str, bool]:
    """Every test that did not pass, by cause, with its first error of that cause; and whether all is as explained."""
    causes: dict[str, dict[str, list[tuple[str, str]]]] = {}
    used: set[tuple[str, str]] = set()
    for outcome in found:
        where = f"{outcome.column.split(',')[0]}, {outcome.origin}.{outcome.test}"
        for error in outcome.errors:
            entries = fitting(outcome.test, f"{outcome.solver}: {error}")
            used.update(entries)
            cause = EXPLAINED[entries[0]] if entries else ""
            causes.setdefault(cause, {}).setdefault(where, []).append((outcome.solver, error))
    lines = []
    for cause in sorted(causes, key=lambda cause: cause == ""):
        lines.append(f"{cause or 'NOT EXPLAINED'}\n")
        for where, failures in causes[cause].items():
            names = ", ".join(dict.fromkeys(solver for solver, _ in failures))
            errors = list(dict.fromkeys(error for _, error in failures))
            more = f" and {len(errors) - 1} more like it" if len(errors) > 1 else ""
            lines.append(f"- {where} ({names}): `{errors[0]}`{more}")
        lines.append("")
    idle = [entry for entry in EXPLAINED if entry not in used]
    lines += [f"EXPLAINS NOTHING: {test}, {pattern!r}" for test, pattern in idle]
    return "\n".join(lines), not idle and "" not in causes


def main() -> int:
    """Run everything and print the report.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(description="The common scheduler tests of diffusers, run on our schedulers.")
    parser.add_argument("checkout", type=Path, help="a checkout of huggingface/diffusers")
    checkout = parser.parse_args().checkout
    sys.path.insert(0, str(checkout.resolve()))
    logging.disable_default_handler()
    logging.add_handler(NullHandler())
    found = list(outcomes(checkout))
    words, good = report(found)
    print(f"{table(found)}\n\n{NOTE}\n\n{words}")
    return int(not good)


if __name__ == "__main__":
    raise SystemExit(main())
