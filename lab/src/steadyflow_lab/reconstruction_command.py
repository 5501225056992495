"""`steadyflow lab run reconstruction`: the main experiment of 2506.18290 for weights and pictures of one's own."""

from pathlib import Path
from typing import Annotated

import typer

from steadyflow.cli.options import Device, Json, bar, check_place, print_json, table
from steadyflow.errors import InputError

EPILOG = (
    "Example: steadyflow lab run reconstruction --model stabilityai/stable-diffusion-3.5-medium --images val2014 "
    "--captions captions_val2014.json --device cuda --dtype bfloat16"
)


def reconstruction(
    model: Annotated[str, typer.Option(help="A diffusers pipeline, by folder or name; or another model.")],
    images: Annotated[Path, typer.Option(help="The folder of pictures; they are scaled to the model's size.")],
    captions: Annotated[
        Path | None,
        typer.Option(help="JSON {file name: caption}, MSCOCO's captions, or lines of name, tab and caption."),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Instead, one prompt for all pictures.")] = None,
    no_captions: Annotated[bool, typer.Option("--no-captions", help="Instead, go without a condition.")] = False,
    n: Annotated[int, typer.Option("--n", help="How many pictures, the first by name.")] = 100,
    solver: Annotated[str, typer.Option(help="A solver's name; see `steadyflow solvers`.")] = "euler",
    steps: Annotated[int, typer.Option(help="Solver steps each way.")] = 500,
    grid: Annotated[
        str, typer.Option(help="uniform, quadratic, log-snr, karras, or own: the pipeline's own times.")
    ] = "uniform",
    guidance: Annotated[float, typer.Option(help="The scale of guidance, the same both ways.")] = 1.0,
    directions: Annotated[int, typer.Option(help="Random directions in which a latent is perturbed.")] = 2,
    perturbation: Annotated[float, typer.Option(help="Its root mean square; latents have 1.")] = 0.02,
    height: Annotated[int | None, typer.Option(help="Of a pipeline's pictures; its own by default.")] = None,
    width: Annotated[int | None, typer.Option(help="Of a pipeline's pictures; its own by default.")] = None,
    device: Device = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16, of the networks.")] = "float32",
    batch_size: Annotated[int, typer.Option(help="Pictures at a time; each batch is kept as it comes.")] = 4,
    seed: Annotated[int, typer.Option(help="Of the directions.")] = 0,
    out: Annotated[Path, typer.Option(help="The folder for results; a rerun goes on there.")] = Path("lab-results"),
    as_json: Json = False,
) -> None:
    """Errors and instability coefficients of real pictures, as 2506.18290 measures them, for any pipeline."""
    from steadyflow._internal import files, strict_json

    from .instability import reconstruction as experiment
    from .precision import load_in

    if [captions is not None, prompt is not None, no_captions].count(True) != 1:
        raise InputError("captions: give one of --captions, --prompt and --no-captions")
    check_place("out", out, folder=True)
    paths = experiment.pictures(images, n)
    given = prompt if captions is None else experiment.captions(captions, [path.name for path in paths])
    settings = experiment.Settings(
        solver, steps, grid, guidance, directions, perturbation, batch_size=batch_size, seed=seed
    )
    loaded = load_in(model, device, dtype, height, width)
    with bar("picture", len(paths)) as advance:
        result = experiment.run(loaded, paths, given, settings, folder=out, progress=lambda: advance(""))
    written = experiment.as_json(result, model=model, device=device, dtype=dtype)
    files.write_text(out / "reconstruction.json", strict_json.dumps(strict_json.plain(written), indent=1) + "\n")
    if as_json:
        print_json(written)
        return
    rows = [[name, str(e)] for name, e in experiment.summary(result).items()]
    typer.echo(f"{len(paths)} pictures, {solver}, {steps} steps each way, guidance {guidance:g}\n")
    typer.echo(table(["", "value [95 % interval]"], rows, left=(0, 1)))
    typer.echo(f"\n{experiment.note(result)}\nAll pictures: {out / 'reconstruction.json'}")
