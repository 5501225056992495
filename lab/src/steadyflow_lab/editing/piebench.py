"""PIE-Bench (Ju et al. 2023, 2310.01506) on the user's own copy of its data, by its published protocol.

The folder holds `mapping_file.json` and `annotation_images/`. As in the published evaluation code:
- prompts lose their square brackets;
- the mask is run-length encoded over 512 x 512 pixels, and its outermost pixels are set, so that they count as edited;
- "unedited" metrics multiply both images by 1 - mask and then take the whole frame, the black part included;
- where a mask covers all (or nothing) the metric is NaN, and means leave it out;
- structure distance x 10^3, LPIPS x 10^3, MSE x 10^4, SSIM x 10^2 are what tables show.
`PROTOCOL` and the extractors' hashes are hashed into every result, so that two tables can be told apart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from steadyflow._internal import files, strict_json
from steadyflow.errors import MALFORMED, CorruptFileError, InputError
from steadyflow.metrics import Extractor, lpips, mse, psnr, ssim
from steadyflow.metrics.features import structure_distance

SIDE = 512
PROTOCOL = {
    "benchmark": "PIE-Bench, 700 images",
    "frame": SIDE,
    "prompts": "square brackets removed",
    "mask": "run lengths, outermost pixels set",
    "unedited": "both images times (1 - mask), then the whole frame",
    "empty masks": "NaN, left out of means",
    "range": "[0, 1], LPIPS in [-1, 1]",
}
METRICS: tuple[str, ...] = ("structure", "psnr", "lpips", "mse", "ssim", "clip whole", "clip edited")


@dataclass(frozen=True)
class Item:
    """One picture of the benchmark."""

    key: str
    path: Path
    source: str
    target: str
    category: str
    mask: Tensor
    """(512, 512), 1 where the edit belongs."""

    @property
    def content(self) -> str:
        """A hash of all that an edit of it depends on, the picture's bytes among it."""
        hashed = hashlib.sha256(strict_json.dumps([self.key, self.source, self.target, self.category]).encode())
        hashed.update(self.mask.numpy().tobytes())
        hashed.update(self.path.read_bytes())
        return hashed.hexdigest()[:16]


@dataclass(frozen=True)
class Score:
    """What one edit was given; NaN where a metric is not defined or has no weights."""

    key: str
    category: str
    values: dict[str, float] = field(default_factory=dict)


def decode_mask(runs: Sequence[int]) -> Tensor:
    """Decode the mask (512, 512) from pairs (start, length), and set its outermost pixels, as the benchmark does."""
    if len(runs) % 2 or any(not isinstance(v, int) or v < 0 for v in runs):
        raise InputError("mask: expected pairs of a start and a length, integers >= 0")
    flat = torch.zeros(SIDE * SIDE)
    for start, length in zip(runs[::2], runs[1::2], strict=True):
        flat[start : start + length] = 1.0
    mask = flat.view(SIDE, SIDE)
    mask[0] = mask[-1] = 1.0
    mask[:, 0] = mask[:, -1] = 1.0
    return mask


def items(folder: str | Path, limit: int | None = None) -> list[Item]:
    """Read the benchmark's entries in the order of its file.

    limit: at most so many, the first ones.

    Raises `FileNotFoundError` without the mapping file, `CorruptFileError` where it is not as published, `InputError`
    for a limit below 1.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit: got {limit}, expected at least 1")
    folder = Path(folder)
    mapping = folder / "mapping_file.json"
    if not mapping.is_file():
        raise FileNotFoundError(f"{mapping}: no such file; PIE-Bench's folder holds it beside annotation_images")
    root = (folder / "annotation_images").resolve()
    found = []
    try:
        entries = strict_json.loads(files.read_text(mapping, 2**30))
        for key, entry in list(entries.items())[:limit]:
            path = (root / entry["image_path"]).resolve()
            if not path.is_relative_to(root):
                raise ValueError(f"{entry['image_path']} leads out of annotation_images")
            source, target = (_plain(entry[name]) for name in ("original_prompt", "editing_prompt"))
            kind = str(entry["editing_type_id"])
            found.append(Item(str(key), path, source, target, kind, decode_mask(entry["mask"])))
    except MALFORMED as error:
        raise CorruptFileError(f"{mapping}: not PIE-Bench's mapping ({error})") from error
    if not found:
        raise CorruptFileError(f"{mapping}: holds no entries")
    return found


def score(
    source: Tensor, edited: Tensor, item: Item, extractors: dict[str, Extractor], perceptual: bool = False
) -> dict[str, float]:
    """Compute the benchmark's metrics of images (1, 3, 512, 512) in [-1, 1]."""
    keep = 1.0 - item.mask
    whole = bool(keep.sum() > 0)
    x, y = ((v + 1.0) / 2.0 * keep for v in (source, edited))
    values: dict[str, float] = dict.fromkeys(METRICS, float("nan"))
    if whole:
        values["psnr"] = psnr(y, x, span=1.0).item()
        values["mse"] = mse(y, x).item()
        values["ssim"] = ssim(y, x, span=1.0).item()
        if perceptual:
            values["lpips"] = lpips(2.0 * y - 1.0, 2.0 * x - 1.0).item()
    if "dino" in extractors:
        values["structure"] = structure_distance(extractors["dino"], source, edited).item()
    if "clip" in extractors:
        inside = 2.0 * ((edited + 1.0) / 2.0 * item.mask) - 1.0
        values["clip whole"] = extractors["clip"].alignment(edited, [item.target]).item()
        values["clip edited"] = extractors["clip"].alignment(inside, [item.target]).item()
    return values


def summary(scores: Sequence[Score]) -> dict[str, float]:
    """Give the mean of each metric over the pictures for which it is defined; NaN where there is none."""
    means = {}
    for name in METRICS:
        known = torch.tensor([s.values[name] for s in scores], dtype=torch.float64)
        known = known[known.isfinite()]
        means[name] = known.mean().item() if len(known) else float("nan")
    return means


def fingerprint(hashes: dict[str, str], **settings: Any) -> str:
    """Hash the protocol, the hashes of the extractors and the settings of the edits into sixteen digits."""
    text = strict_json.dumps({**PROTOCOL, "extractors": hashes, "settings": settings}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(prompt: str) -> str:
    return prompt.replace("[", "").replace("]", "")


def sized(image: Tensor) -> Tensor:
    """Scale images to the benchmark's frame."""
    if tuple(image.shape[-2:]) == (SIDE, SIDE):
        return image.clamp(-1.0, 1.0)
    return functional.interpolate(image, (SIDE, SIDE), mode="bicubic", antialias=True).clamp(-1.0, 1.0)
