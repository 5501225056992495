"""`steadyflow invert`."""

from . import options as o
from .runs import RunLocation, perform, report


def invert(
    model: o.Model = "digits",
    call: o.Call = None,
    input: o.Input = None,
    n: o.Number = None,
    resize: o.Resize = False,
    frames: o.Frames = None,
    label: o.Label = None,
    prompt: o.Prompt = None,
    source_guidance: o.SourceGuidance = None,
    solver: o.Solver = None,
    coordinates: o.Coordinates = None,
    steps: o.Steps = None,
    nfe: o.Nfe = None,
    grid: o.Grid = None,
    strength: o.Strength = None,
    t_min: o.TimeMin = None,
    t_max: o.TimeMax = None,
    seed: o.Seed = None,
    index: o.Index = None,
    noise: o.Noise = None,
    batch_size: o.BatchSize = None,
    device: o.Device = "cpu",
    double: o.Double = False,
    save: o.Save = None,
    out: o.Out = None,
    run: o.Run = None,
    engine: o.Engine = None,
    address: o.Address = None,
    workers: o.Workers = None,
    shard: o.Shard = None,
    strict: o.Strict = False,
    check_inputs: o.CheckInputs = None,
    recompute_changed: o.RecomputeChanged = False,
    model_version: o.ModelVersion = None,
    as_json: o.Json = False,
) -> None:
    """Find the latents that generate samples, and keep them."""
    from ..loading import load_model
    from ..runs import Inverting
    from ..tasks import Inversion

    care = o.given(strict=strict, check_inputs=check_inputs, recompute_changed=recompute_changed)
    care |= o.given(model_version=model_version)
    place = RunLocation(run, engine, address, workers, shard, care)
    place.refuse(save=save)
    o.check_place("save", save)
    words = o.given(
        input=input, resize=resize, frames=frames, label=label, prompt=prompt, source_guidance=source_guidance
    )
    words |= o.given(steps=steps, nfe=nfe, grid=grid, strength=strength, t_min=t_min, t_max=t_max)
    words |= o.given(seed=seed, index=index, noise=noise, block=batch_size, double=double)
    words |= o.given(call_inputs=o.call_of(call))
    words["solver"] = o.solver_spec(solver, coordinates)
    denoiser = load_model(model, device, o.call_of(call))
    job = Inverting(model, n=o.count_samples(denoiser, input, n, resize, label, frames), device=device, **words)
    done = perform(job, place, denoiser, out=out, decode=False)
    if save is not None:
        parts = [Inversion.unpacked(part.tensors, part.metadata) for part in done.parts()]
        Inversion.concatenate(parts).save(save)
    report(done, place, as_json, save or out)
