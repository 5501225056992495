"""Injected features, taken beside the source or from a store:  python benchmarks/injection.py [--full]

equal   The greatest difference between edits whose features are recomputed beside the source (`store=False`) and those
        of the stored form, of edits that are of order one, by solver, in float32 and with networks in float64. With an
        exactly reversible solver the two ask at the same states, so that they differ by rounding alone.
memory  The most bytes of tensors beyond those before the edit, by the profiler's record, over steps and frames: a
        random video transformer of Wan's class, keys and values of its later attention (masactrl).
seconds An edit of the bundled pipeline without injection, beside its source, and from a store, in turns.
"""

import argparse
import statistics
import time
import warnings
from functools import partial

import torch
from memory_record import peak
from timing import keep_memory

import steadyflow as sf
from steadyflow import editing, solvers
from steadyflow.datasets.ink import INKS, caption, ink
from steadyflow.diffusers import load_pipeline
from steadyflow.models import pipeline_folder

METHODS = ("prompt-to-prompt", "plug-and-play", "masactrl", "value-injection")
EXACT = {
    "edict": {},
    "bdia": {},
    "rex-euler": {},
    "rex-midpoint": {},
    "rex-midpoint, auto": {"coordinates": "flow", "coupling": "auto"},
}
NEAR = {"ees25": {}, "ees27": {}, "ddim": {}}


def solver_of(name, options):
    return solvers.get(name.split(",")[0], **options)


def task(n, dtype=torch.float32):
    """The bundled pipeline, and edits of held-out pictures to another digit."""
    model = load_pipeline(pipeline_folder("ink"), dtype=dtype)
    pictures = ink("held-out", n, torch.Generator().manual_seed(1))
    digits, inks = pictures.digits.tolist(), [list(INKS)[k] for k in pictures.inks.tolist()]
    sources = [caption(d, c) for d, c in zip(digits, inks, strict=True)]
    targets = [caption((d + 3) % 10, c) for d, c in zip(digits, inks, strict=True)]
    return model, model.encode(pictures.images).to(dtype), sources, targets


def equal(full):
    """Part 1."""
    n, steps = (8, 12) if full else (4, 8)
    print(f"Greatest difference of recomputed from stored, {n} edits at guidance 3 in {steps} steps\n")
    heads = ["solver", *(f"{m}, {t}" for m in METHODS for t in ("float32", "float64"))]
    print(" | ".join(heads))
    for name, options in (EXACT | NEAR).items():
        cells = []
        for method in METHODS:
            for dtype in (torch.float32, torch.float64):
                model, x, sources, targets = task(n, dtype)
                words = {"source": sources, "guidance": 3.0, "solver": solver_of(name, options), "steps": steps}
                found = [
                    sf.edit(model, x, targets, method=editing.get(method, store=store), progress=False, **words).x
                    for store in (False, True)
                ]
                cells.append(f"{(found[0] - found[1]).abs().max():.1e}")
        print(" | ".join([name, *cells]), flush=True)


class Video(torch.nn.Module):
    """A random transformer of Wan's class over videos of 16 x 16 places, under one embedding of a prompt."""

    def __init__(self):
        super().__init__()
        from diffusers import WanTransformer3DModel

        self.inner = WanTransformer3DModel(
            patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=24, in_channels=4, out_channels=4,
            text_dim=16, freq_dim=32, ffn_dim=64, num_layers=4, rope_max_seq_len=64,
        )  # fmt: skip

    def forward(self, x, time, condition):
        return self.inner(x, 1000.0 * time, condition, return_dict=False)[0]


def memory(full):
    """Part 2."""
    torch.manual_seed(0)
    net = Video().eval().requires_grad_(False)
    words, solver = torch.randn(3, 1, 6, 16), solver_of("rex-midpoint", EXACT["rex-midpoint, auto"])
    print(
        "\nMost bytes beyond those before, MB: recomputed / stored. masactrl, 4 layers, rex-midpoint, coupling auto, "
        "one video\n"
    )
    steps, frames = ((10, 20, 35, 50), (4, 8, 12, 16)) if full else ((10, 30), (4, 16))
    print(" | ".join(["frames", *(f"{s} steps" for s in steps)]))
    for f in frames:
        model = sf.Denoiser(net, sf.RectifiedFlow(), prediction="flow", shape=(4, f, 16, 16), null=words[0])
        x, cells = torch.randn(1, 4, f, 16, 16), []
        for s in steps:
            held = []
            for store in (False, True):
                how = {"method": editing.get("masactrl", store=store), "solver": solver, "steps": s, "progress": False}
                held.append(peak(partial(sf.edit, model, x, words[1], source=words[2], **how)))
            cells.append(" / ".join(f"{h / 1e6:.1f}" for h in held))
        print(" | ".join([str(f), *cells]), flush=True)


def seconds(full):
    """Part 3."""
    model, x, sources, targets = task(8)
    kinds = {"without": "inversion", "beside": editing.get("masactrl"), "store": editing.get("masactrl", store=True)}
    times = {name: [] for name in kinds}
    for _ in range(9 if full else 3):
        for name, method in kinds.items():
            start = time.perf_counter()
            found = sf.edit(
                model, x, targets, source=sources, guidance=3.0, method=method, steps=8, solver="ees25", progress=False
            )
            times[name].append((time.perf_counter() - start) / found.nfe)
    plain = statistics.median(times["without"])
    print("\nMilliseconds an evaluation, 8 pictures, guidance 3, ees25: " + ", ".join(
        f"{name} {1e3 * statistics.median(some):.1f} ({statistics.median(some) / plain:.2f}x)"
        for name, some in times.items()
    ))  # fmt: skip


parser = argparse.ArgumentParser()
parser.add_argument("--full", action="store_true")
parser.add_argument("parts", nargs="*", choices=["equal", "memory", "seconds", []])
options = parser.parse_args()
warnings.filterwarnings("ignore")
keep_memory()
for part in options.parts or ("equal", "memory", "seconds"):
    {"equal": equal, "memory": memory, "seconds": seconds}[part](options.full)
