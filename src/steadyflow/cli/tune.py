"""`steadyflow tune`."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from . import completion
from . import options as o

_MOST = 4096
"""The largest number of samples that is read for round trips."""


def tune(
    out: Annotated[Path, typer.Option(help="Where to write the tuned solver, a .json file.")],
    nfe: Annotated[
        str, typer.Option(help="The numbers of model evaluations to tune for: 8, 6,8,12 or 4:21, without the 21.")
    ],
    model: o.Model = "digits",
    call: o.Call = None,
    task: Annotated[
        str,
        typer.Option(
            help="sample, or round-trip: both ways fitted together on samples, for inversion.",
            autocompletion=completion.one_of("sample", "round-trip"),
        ),
    ] = "sample",
    input: o.Input = None,
    resize: o.Resize = False,
    target: Annotated[
        str | None, typer.Option(help="With --task round-trip, a class or a prompt: fit against fine edits to it, too.")
    ] = None,
    n: Annotated[int | None, typer.Option("--n", help="Starts to fit on; 256, or a third of the samples.")] = None,
    judge: Annotated[int | None, typer.Option(help="Starts to judge on; 256, or half of the samples.")] = None,
    label: Annotated[int | None, typer.Option(help="The class of all starts; by default all classes in turn.")] = None,
    prompt: Annotated[str | None, typer.Option(help="The prompt of all starts.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="A file with a prompt a line, dealt out to the starts.")] = None,
    judge_prompts: Annotated[
        Path | None, typer.Option(help="The same for the starts to judge on; by default also --prompts.")
    ] = None,
    guidance: Annotated[
        str | None,
        typer.Option(
            help="Scale of classifier-free guidance, or the smallest and the largest as 1:7.5; the model's own, 1, is "
            "none."
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="The plain solvers to compare with, separated by commas; all by default.",
            autocompletion=completion.plain_solvers,
        ),
    ] = None,
    fine: Annotated[int | None, typer.Option(help="Model evaluations of the fine solves; 200.")] = None,
    t_min: o.TimeMin = None,
    t_max: o.TimeMax = None,
    derivatives: Annotated[
        str | None,
        typer.Option(
            help="back-propagation, or differences for models that gradients do not pass, the first that works; none "
            "for least squares alone.",
            autocompletion=completion.one_of("back-propagation", "differences", "none"),
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the starts and of the fit; 0.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="How many starts are computed together; 64.")] = None,
    calls: Annotated[
        int | None, typer.Option(help="Make no step beyond so many model evaluations, of one start each.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Stop fitting after so long; the result then depends on the machine.")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="A file for the state of the work, from which the same command goes on.")
    ] = None,
    device: o.Device = "cpu",
    double: o.Double = False,
    as_json: o.Json = False,
) -> None:
    """Fit a solver to a model at few evaluations, judged against every plain solver on starts that were not fitted.

    Give the file to any command as --solver.
    """
    import torch

    from ..loading import load_model
    from ..tuning import estimate
    from ..tuning import tune as fit
    from ..tuning.verb import sizes_of

    budgets, scales = _budgets(nfe), _scales(guidance)
    _check_out(out)
    o.check_place("checkpoint", checkpoint)
    chosen = _conditions(label, prompt, prompts, judge_prompts)
    words = o.given(n=n, judge=judge, fine=fine, t_min=t_min, t_max=t_max, seed=seed, batch_size=batch_size)
    words |= o.given(calls=calls, minutes=minutes, checkpoint=checkpoint, guidance=scales, derivatives=derivatives)
    words |= o.given(against=None if against is None else [name.strip() for name in against.split(",")], **chosen)
    denoiser = _conditioned(load_model(model, device, o.call_of(call)), label, prompt, chosen, scales)
    words |= _round_trips(denoiser, task, input, resize, label, target, chosen)
    sizes = sizes_of(n, judge, words.get("x"))
    total = estimate(budgets, n=sizes["fit"], judge=sizes["judge"], **o.given(fine=fine, task=words.get("task")))
    total = total if calls is None else calls
    what = "evaluation" if len(budgets) == 1 and budgets[0] == 1 else "evaluations"
    typer.echo(
        f"fit to {denoiser.name!r} at {', '.join(map(str, budgets))} {what}: {sizes['fit']} starts to fit on, "
        f"{sizes['judge']} to judge on, about {total:,} model evaluations of one start each",
        err=as_json,
    )
    dtype = torch.float64 if double else torch.float32
    found = fit(denoiser, nfe=budgets, dtype=dtype, device=device, **words)
    found.save(out)
    if as_json:
        measured = {str(one.calls): one.verdict and dataclasses.asdict(one.verdict) for one in found.entries}
        o.print_json({"entries": measured, "written to": str(out)})
        return
    typer.echo(o.table(*_table(found), left=(1, 4)))
    typer.echo(f"written to {out}")


def _round_trips(
    model: Any,
    task: str,
    path: str | None,
    resize: bool,
    label: int | None,
    target: str | None,
    chosen: dict[str, Any],
) -> dict[str, Any]:
    """What fits of round trips are given beside: the samples with their classes, and the condition of edits."""
    import torch

    from ..datasets.sources import open_source
    from ..errors import InputError, UnknownNameError

    if task not in ("sample", "round-trip"):
        raise UnknownNameError("task", task, ("sample", "round-trip"))
    if task == "sample":
        for name, value in (("input", path), ("target", target), ("resize", resize or None)):
            if value is not None:
                raise InputError(f"{name}: only valid with --task round-trip")
        return {}
    source = open_source(model, path, _MOST, resize, label)
    x, known = source.rows(0, len(source))
    found: dict[str, Any] = {"task": "round trip", "x": x}
    if model.classes and known is not None and label is None and not chosen:
        found["conditions"] = list(known) if isinstance(known, list) else torch.as_tensor(known).tolist()
    if target is not None:
        found["targets"] = [o.condition(model, "target", target)]
    return found


def _table(found: Any) -> tuple[list[str], list[list[str]]]:
    """The verdicts, one a row."""
    heads = ["calls", "solver", "median", "mean", "best plain", "median", "mean", "gain, median", "gain, mean"]
    rows: list[list[str]] = []
    for entry in found.entries:
        verdict = entry.verdict
        solver = "tuned" if hasattr(entry.down, "times") else f"{entry.down.solver.name} on {entry.down.grid}"
        if verdict is None:
            rows.append([str(entry.calls), solver, *["-"] * 7])
            continue
        errors = [f"{verdict.median:.2e}", f"{verdict.mean:.2e}"]
        plain = [verdict.plain, f"{verdict.plain_median:.2e}", f"{verdict.plain_mean:.2e}"]
        gains = [
            f"{value:.2f} [{low:.2f}, {high:.2f}]" for value, low, high in (verdict.gain_median, verdict.gain_mean)
        ]
        rows.append([str(entry.calls), solver, *errors, *plain, *gains])
    return heads, rows


def _budgets(given: str) -> list[int]:
    """The numbers of evaluations: one, several with commas between them, or a range."""
    from ..errors import InputError

    try:
        first, colon, stop = given.partition(":")
        found = list(range(int(first), int(stop))) if colon else [int(part) for part in given.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1 or max(found) > 10_000:
        raise InputError(f"nfe: got {given!r}, expected whole numbers from 1: 8, 6,8,12 or 4:21")
    return sorted(set(found))


def _scales(given: str | None) -> float | tuple[float, float] | None:
    """A scale of guidance, or two with a colon between them."""
    from ..errors import InputError

    if given is None:
        return None
    try:
        low, colon, high = given.partition(":")
        return (float(low), float(high)) if colon else float(low)
    except ValueError:
        raise InputError(f"guidance: got {given!r}, expected a number, or two such as 1:7.5") from None


def _check_out(out: Path) -> None:
    """Raise `InputError` where the solver could not be written, or would replace something else."""
    from ..errors import CorruptFileError, InputError
    from ..solvers import Tuned

    if out.suffix != ".json":
        raise InputError(f"out: got {str(out)!r}, expected the name of a .json file")
    o.check_place("out", out)
    if out.is_file():
        try:
            Tuned.load(out)
        except CorruptFileError:
            raise InputError(f"out: {out} is there already, and is no tuned solver; choose another name") from None


def _conditions(label: int | None, prompt: str | None, prompts: Path | None, judge: Path | None) -> dict[str, Any]:
    """The conditions of the starts, from files of prompts."""
    from .._internal import files
    from ..errors import InputError

    given = o.given(label=label, prompt=prompt, prompts=prompts)
    if len(given) > 1:
        raise InputError(f"{', '.join(given)}: give one of them")
    if judge is not None and prompts is None:
        raise InputError("judge_prompts: only valid with --prompts")
    found: dict[str, Any] = {}
    for name, path in (("conditions", prompts), ("judge_conditions", judge)):
        if path is None:
            continue
        try:
            lines = [line.strip() for line in files.read_text(path).splitlines()]
        except (OSError, ValueError) as error:
            raise InputError(f"prompts: {path} could not be read ({error})") from error
        found[name] = [line for line in lines if line]
        if not found[name]:
            raise InputError(f"prompts: {path} has no line with a prompt")
    return found


def _conditioned(model: Any, label: int | None, prompt: str | None, conditions: dict[str, Any], scales: Any) -> Any:
    """The model under the condition of all starts, if they have one."""
    from ..errors import InputError
    from ..loading import apply_condition, takes_prompts

    if conditions and not takes_prompts(model):
        raise InputError(f"prompts: the model {model.name!r} takes none; give --label")
    if label is None and prompt is None and (conditions or model.classes):
        return model
    highest = scales[1] if isinstance(scales, tuple) else scales
    return apply_condition(model, label, prompt, guidance=highest)
