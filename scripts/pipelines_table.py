"""The table of docs/diffusers.md, made anew:  python scripts/pipelines_table.py

Tiny pipelines of the tests are run in every mode. Each row says how far the result lies from that of diffusers' own
scheduler with the same method, how far the model of `from_diffusers` lies from the pipeline, and how far each solver in
the pipeline lies from the solver's own loop over that model, from the same latents: the largest difference over the
largest number. A refusal is a result as well.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from torch import Tensor  # noqa: E402

import pipelines  # noqa: E402  # of the tests
import steadyflow as sf  # noqa: E402
from steadyflow.diffusers import SteadyFlowScheduler, SteadyScheduler  # noqa: E402

STEPS = 6
METHODS = {
    "DDIMScheduler": "ddim",
    "FlowMatchEulerDiscreteScheduler": "euler",
    "LCMScheduler": "lcm",
    "DDPMScheduler": "ddpm",
}
SOLVERS = ("dpmpp-2m", "ees25", "rk4", "rex-midpoint")
PAGE = ROOT / "docs" / "diffusers.md"
BEGIN, END = "<!-- pipelines: made by scripts/pipelines_table.py -->", "<!-- end of pipelines -->"
MODE = {None: "text to image", "image": "image to image", "mask": "inpainting", "control": "ControlNet"}


def ours(scheduler: Any, solver: str | None) -> Any:
    """Our scheduler with the config of diffusers'."""
    kind = SteadyFlowScheduler if "Flow" in type(scheduler).__name__ else SteadyScheduler
    options = {"sigma_max": 0.999} if kind is SteadyFlowScheduler and solver == "rex-midpoint" else {}
    return kind.from_config(scheduler.config, solver=solver, seed=0, **options)


def apart(found: Tensor, expected: Tensor) -> str:
    """The largest difference over the largest number."""
    off = float((found - expected).abs().max() / expected.abs().max())
    return "0" if off == 0.0 else f"{off:.0e}"


def against_diffusers(pipe: Any, call: dict[str, Any]) -> str:
    """Our scheduler beside diffusers' own, with the same method."""
    own = pipe.scheduler
    expected = pipelines.run(pipe, call, STEPS)
    pipe.scheduler = ours(own, METHODS[type(own).__name__])
    try:
        return apart(pipelines.run(pipe, call, STEPS), expected)
    finally:
        pipe.scheduler = own


def against_the_loop(pipe: Any, call: dict[str, Any], title: str, solver: str | None, side: int) -> str:
    """A solver in the pipeline beside its own loop over the model, from the latents that the pipeline began with."""
    own, name = pipe.scheduler, pipelines.MODES[title][0]
    pipe.scheduler = scheduler = ours(own, solver)
    first: list[Tensor] = []
    real = scheduler.step

    def noting(output: Tensor, t: Tensor, sample: Tensor, *args: Any, **options: Any) -> Any:
        if not first:
            first.append(sample.clone())
        return real(output, t, sample, *args, **options)

    scheduler.step = noting
    try:
        found = pipelines.run(pipe, call, STEPS)
        if pipelines.MODES[title][1] == "mask":
            return "call by call" if scheduler.solver.name != (solver or "ees25") else "changed between steps"
        size = {} if side == 16 else {"height": side, "width": side}
        words = () if side == 16 else ("a cat",)
        model = sf.from_diffusers(pipe, *words, **size)
        if side != 16 and name not in ("flux", "lcm"):
            guidance = {"sd": 7.5, "controlnet": 7.5, "sdxl": 5.0, "refiner": 5.0, "sd3": 7.0}[name]
            model = model.with_guidance(guidance)
        begin = scheduler.begin_index or 0
        steps = scheduler._times.plan.starts.index(begin)
        grid = sf.Grid(scheduler.grid.times[steps:], clean=scheduler.grid.clean, firm=True)
        x = pipelines.unpacked(name, first[0])
        result = sf.sample(model, x=x, solver=scheduler.solver, grid=grid).x
        if side == 16:
            result = (result / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
        return apart(pipelines.packed(name, result) if found.ndim == 3 else result, found)
    except sf.SteadyflowError as error:
        return "model refused" if "pipeline:" in str(error) else "refused"
    finally:
        pipe.scheduler = own


def table() -> str:
    """The table, as Markdown."""
    heads = ["pipeline", "mode", "diffusers' own method", *(f"`{solver}`" for solver in SOLVERS), "no solver named"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for title, (_, mode) in pipelines.MODES.items():
        pipe, call, side = pipelines.in_mode(title)
        method = METHODS[type(pipe.scheduler).__name__]
        cells = [title, "unconditional" if side == 16 else MODE[mode], f"`{method}`: {against_diffusers(pipe, call)}"]
        cells += [against_the_loop(pipe, call, title, solver, side) for solver in (*SOLVERS, None)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Make the table, and put it on the page."""
    warnings.simplefilter("ignore")
    page = PAGE.read_text(encoding="utf-8")
    if BEGIN not in page or END not in page:
        sys.exit(f"{PAGE.name}: no place for the table, which is between {BEGIN} and {END}")
    made = table()
    pattern = re.escape(BEGIN) + ".*" + re.escape(END)
    PAGE.write_text(re.sub(pattern, lambda _: f"{BEGIN}\n\n{made}\n\n{END}", page, flags=re.DOTALL), encoding="utf-8")
    print(made)


if __name__ == "__main__":
    main()
