"""`steadyflow sample`."""

from . import options as o
from .runs import RunLocation, perform, report


def sample(
    model: o.Model = "digits",
    call: o.Call = None,
    n: o.Number = None,
    label: o.Label = None,
    prompt: o.Prompt = None,
    guidance: o.Guidance = None,
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
    """Draw samples from a model."""
    from ..loading import load_model
    from ..runs import Sampling

    care = o.given(strict=strict, check_inputs=check_inputs, recompute_changed=recompute_changed)
    care |= o.given(model_version=model_version)
    place = RunLocation(run, engine, address, workers, shard, care)
    words = o.given(label=label, prompt=prompt, guidance=guidance, steps=steps, nfe=nfe, grid=grid, strength=strength)
    words |= o.given(t_min=t_min, t_max=t_max, seed=seed, index=index, noise=noise, block=batch_size, double=double)
    words |= o.given(call_inputs=o.call_of(call))
    words["solver"] = o.solver_spec(solver, coordinates)
    job = Sampling(model, n=16 if n is None else n, device=device, **words)
    done = perform(job, place, load_model(model, device, o.call_of(call)), out=out)
    report(done, place, as_json, out)
