"""Write the example workflows of the nodes for ComfyUI:  python scripts/comfy_workflows.py

Each is given here as ComfyUI's server takes it (API format) and written twice: so, into comfy/api_workflows, and as its
editor keeps it, with a place for every node, into the pack's `example_workflows`, which ComfyUI lists among its
templates. With `--check` nothing is written, and the exit status says whether the files are up to date.
"""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
API = ROOT / "comfy" / "api_workflows"
EDITOR = ROOT / "comfy" / "src" / "steadyflow_comfy" / "example_workflows"

Prompt = dict[str, dict[str, Any]]

CORE: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "CheckpointLoaderSimple": ({"ckpt_name": "COMBO"}, ("MODEL", "CLIP", "VAE")),
    "CLIPTextEncode": ({"text": "STRING", "clip": "CLIP"}, ("CONDITIONING",)),
    "CFGGuider": (
        {"model": "MODEL", "positive": "CONDITIONING", "negative": "CONDITIONING", "cfg": "FLOAT"},
        ("GUIDER",),
    ),
    "RandomNoise": ({"noise_seed": "INT"}, ("NOISE",)),
    "EmptyLatentImage": ({"width": "INT", "height": "INT", "batch_size": "INT"}, ("LATENT",)),
    "SamplerCustomAdvanced": (
        {"noise": "NOISE", "guider": "GUIDER", "sampler": "SAMPLER", "sigmas": "SIGMAS", "latent_image": "LATENT"},
        ("LATENT", "LATENT"),
    ),
    "LoadImage": ({"image": "COMBO"}, ("IMAGE", "MASK")),
    "VAEEncode": ({"pixels": "IMAGE", "vae": "VAE"}, ("LATENT",)),
    "VAEDecode": ({"samples": "LATENT", "vae": "VAE"}, ("IMAGE",)),
    "SaveImage": ({"images": "IMAGE", "filename_prefix": "STRING"}, ()),
    "PreviewImage": ({"images": "IMAGE"}, ()),
    "PreviewAny": ({"source": "*"}, ()),
    "PrimitiveInt": ({"value": "INT"}, ("INT",)),
}
"""ComfyUI's own nodes that are used: their inputs, and what they return."""
WIDGETS = ("COMBO", "STRING", "INT", "FLOAT", "BOOLEAN")
SEEDS = ("noise_seed", "value")
"""The numbers beside which the editor keeps what becomes of them after a run."""

_CHECKPOINT = "v1-5-pruned-emaonly-fp16.safetensors"
_SOURCE, _TARGET = "a photograph of a cat on a sofa", "a photograph of a dog on a sofa"


def _node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def _guided(prompts: dict[str, tuple[str, float]]) -> Prompt:
    """A checkpoint, and a guider for each prompt with its cfg."""
    found: Prompt = {
        "model": _node("CheckpointLoaderSimple", ckpt_name=_CHECKPOINT),
        "nothing": _node("CLIPTextEncode", text="", clip=["model", 1]),
    }
    for name, (text, cfg) in prompts.items():
        found[f"{name} words"] = _node("CLIPTextEncode", text=text, clip=["model", 1])
        words, nothing = [f"{name} words", 0], ["nothing", 0]
        found[name] = _node("CFGGuider", model=["model", 0], positive=words, negative=nothing, cfg=cfg)
    return found


def _way(solver: str, steps: int, strength: float = 1.0, end: str = "zero", grid: str = "karras") -> Prompt:
    """A sampler and its sigmas."""
    return {
        "sampler": _node("SteadyFlowSampler", solver=solver, options=""),
        "sigmas": _node(
            "SteadyFlowSigmas", model=["model", 0], grid=grid, options="", steps=steps, strength=strength, end=end
        ),
    }


def _picture() -> Prompt:
    """A picture as a latent."""
    return {
        "picture": _node("LoadImage", image="example.png"),
        "latent": _node("VAEEncode", pixels=["picture", 0], vae=["model", 2]),
    }


def _saved(of: str, prefix: str) -> Prompt:
    return {
        "decoded": _node("VAEDecode", samples=[of, 0], vae=["model", 2]),
        "saved": _node("SaveImage", images=["decoded", 0], filename_prefix=prefix),
    }


def workflows() -> dict[str, Prompt]:
    """Return the workflows by their names, in API format with words for the numbers of nodes."""
    way = {"sampler": ["sampler", 0], "sigmas": ["sigmas", 0]}
    latent = {"latent": ["latent", 0]}
    between = {"source": ["source", 0], "target": ["target", 0]}
    return {
        "sample": {
            **_guided({"guider": (_SOURCE, 7.0)}),
            **_way("dpmpp-2m", 20),
            "noise": _node("RandomNoise", noise_seed=0),
            "empty": _node("EmptyLatentImage", width=512, height=512, batch_size=1),
            "sampled": _node(
                "SamplerCustomAdvanced", noise=["noise", 0], guider=["guider", 0], **way, latent_image=["empty", 0]
            ),
            **_saved("sampled", "steadyflow/sample"),
        },
        "invert_and_decode": {
            **_guided({"source": (_SOURCE, 1.0), "target": (_TARGET, 4.0)}),
            **_picture(),
            **_way("ees25", 16, end="smallest level"),
            "inversion": _node("SteadyFlowInvert", guider=["source", 0], **way, **latent),
            "edited": _node("SteadyFlowDecode", guider=["target", 0], inversion=["inversion", 0]),
            **_saved("edited", "steadyflow/decoded"),
        },
        "edit": {
            **_guided({"source": (_SOURCE, 1.5), "target": (_TARGET, 6.0)}),
            **_picture(),
            **_way("euler", 25, strength=0.7, grid="uniform"),
            "seed": _node("PrimitiveInt", value=0),
            "edited": _node(
                "SteadyFlowEdit", **between, **way, **latent, method="flow-edit", options="average=2", seed=["seed", 0]
            ),
            "report": _node("PreviewAny", source=["edited", 1]),
            **_saved("edited", "steadyflow/edited"),
        },
        "diagnose": {
            **_guided({"source": (_SOURCE, 1.0)}),
            **_picture(),
            **_way("ddim", 20, end="smallest level"),
            "returned": _node("SteadyFlowReconstruct", guider=["source", 0], **way, **latent),
            "error": _node("PreviewAny", source=["returned", 2]),
            "budget": _node("SteadyFlowDiagnose", guider=["source", 0], **way, **latent, tolerance=0.01),
            "causes": _node("PreviewImage", images=["budget", 0]),
            "advice": _node("PreviewAny", source=["budget", 1]),
        },
    }


def numbered(prompt: Prompt) -> Prompt:
    """Return a workflow as ComfyUI's server takes it, its nodes numbered from 1."""
    numbers = {name: str(k) for k, name in enumerate(prompt, 1)}
    return {
        numbers[name]: {
            "class_type": node["class_type"],
            "_meta": {"title": name},
            "inputs": {
                key: [numbers[value[0]], value[1]] if isinstance(value, list) else value
                for key, value in node["inputs"].items()
            },
        }
        for name, node in prompt.items()
    }


def signatures() -> dict[str, tuple[dict[str, str], tuple[str, ...]]]:
    """Return the inputs of all nodes that are used, with their types, and what they return."""
    sys.path.insert(0, str(ROOT / "tests"))
    import comfy_engine

    found = dict(CORE)
    for name, node in comfy_engine.load().NODE_CLASS_MAPPINGS.items():
        given = node.INPUT_TYPES()
        inputs = {**given["required"], **given.get("optional", {})}
        found[name] = (
            {key: "COMBO" if isinstance(one[0], list) else one[0] for key, one in inputs.items()},
            node.RETURN_TYPES,
        )
    return found


def drawn(prompt: Prompt, known: dict[str, tuple[dict[str, str], tuple[str, ...]]]) -> dict[str, Any]:
    """Return a workflow as ComfyUI's editor keeps it.

    Args:
        prompt: The workflow as ComfyUI's server takes it.
        known: The inputs and outputs of its nodes.
    """
    depth: dict[str, int] = {}
    for name, node in prompt.items():  # a node stands behind those that it is linked to
        links = [value[0] for value in node["inputs"].values() if isinstance(value, list)]
        depth[name] = 1 + max((depth[one] for one in links), default=-1)
    links: list[list[Any]] = []
    nodes: list[dict[str, Any]] = []
    rows: dict[int, int] = {}
    for order, (name, node) in enumerate(prompt.items()):
        inputs, outputs = known[node["class_type"]]
        sockets: list[dict[str, Any]] = []
        values: list[Any] = []
        for key, kind in inputs.items():
            value = node["inputs"].get(key)
            if isinstance(value, list):
                links.append(
                    [len(links) + 1, int(value[0]), value[1], int(name), len(sockets), known_type(prompt, known, value)]
                )
                sockets.append({"name": key, "type": kind, "link": len(links)})
            elif kind in WIDGETS and key in node["inputs"]:
                values += [value, "fixed"] if key in SEEDS else [value]
            else:
                sockets.append({"name": key, "type": kind, "link": None})
        row = rows[depth[name]] = rows.get(depth[name], -1) + 1
        nodes.append({
            "id": int(name), "type": node["class_type"], "title": node["_meta"]["title"], "order": order, "mode": 0,
            "pos": [340 * depth[name], 240 * row], "size": [300, 200], "flags": {}, "inputs": sockets,
            "outputs": [{"name": kind, "type": kind, "links": [], "slot_index": k} for k, kind in enumerate(outputs)],
            "properties": {"Node name for S&R": node["class_type"]}, "widgets_values": values,
        })  # fmt: skip
    for number, source, slot, *_ in links:
        nodes[source - 1]["outputs"][slot]["links"].append(number)
    facts = {"last_node_id": len(nodes), "last_link_id": len(links), "nodes": nodes, "links": links}
    return {**facts, "groups": [], "config": {}, "extra": {}, "version": 0.4}


def known_type(prompt: Prompt, known: dict[str, tuple[dict[str, str], tuple[str, ...]]], link: list[Any]) -> str:
    """Return the type of what a link carries."""
    return known[prompt[link[0]]["class_type"]][1][link[1]]


def files() -> dict[Path, str]:
    """Return the texts of all files."""
    known, found = signatures(), dict[Path, str]()
    for name, words in workflows().items():
        prompt = numbered(words)
        found[API / f"{name}.json"] = json.dumps(prompt, indent=2) + "\n"
        found[EDITOR / f"{name}.json"] = json.dumps(drawn(prompt, known), indent=1) + "\n"
    return found


def main() -> int:
    """Write the files, or with `--check` compare them; the exit status."""
    texts = files()
    if "--check" in sys.argv[1:]:
        return int(any(not path.is_file() or path.read_text() != text for path, text in texts.items()))
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
