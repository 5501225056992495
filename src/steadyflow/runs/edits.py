"""The job of the verb `edit`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .. import editing
from .._internal import strict_json
from .._internal.videos import VIDEOS
from ..datasets import contents, media
from ..datasets.contents import Piece
from ..datasets.sources import CHUNKS, Read, open_source
from ..editing import Direct, Edit, EditMethod
from ..errors import InputError
from ..solvers.state import slice_state
from ..tasks import Inversion, invert
from .job import Addressed, Block, Data, Part
from .parts import facts_of, made

_OF_THE_WAY_UP = ("source", "source_guidance", "input", "resize", "frames", "double")


@dataclass(frozen=True, kw_only=True)
class Editing(Addressed):
    """Move samples to another condition; what came out, and how far it is from the source.

    Args:
        target: What to move to: a label, or a prompt.
        source: What the samples are; by default what is known of them. Of held-out data, a label also says which.
        method: A way of editing by its name, or its `spec()`.
        guidance: The scale of classifier-free guidance towards the target.
        source_guidance: That of the way up.
        mask: A picture, white where the edit may change something; for videos also a video or a folder of frames.
        smoothing: The radius over which the field is averaged.
        smooth: On which ways.
        lora: A LoRA, such as Smooth Diffusion's, that the model uses on those ways.
        inversion: A saved inversion to start from, instead of samples.
        input: As in `OnData`.
        resize: As in `OnData`.
        frames: As in `OnData`.

    Raises:
        InputError: Something that is given would change nothing, or the method cannot honour it.
    """

    target: int | str
    source: int | str | None = None
    method: str | dict[str, Any] | None = None
    guidance: float | None = None
    source_guidance: float | None = None
    mask: str | None = None
    smoothing: float | None = None
    smooth: str | None = None
    lora: str | None = None
    inversion: str | None = None
    input: str | None = None
    resize: bool = False
    frames: str | None = None
    task: ClassVar[str] = "edit"

    def __post_init__(self):
        if isinstance(self.method, str | EditMethod):
            spec = editing.get(self.method).spec()
            object.__setattr__(self, "method", strict_json.loads(strict_json.dumps(spec)))
        super().__post_init__()
        self._check_honoured()

    def _check_honoured(self) -> None:
        method = self.way
        refused = {} if method is None else method.refuses
        for word, name in (("mask", "mask"), ("inversion", "inversion"), ("noise", "noise")):
            if getattr(self, word) is not None and name in refused:
                raise InputError(f"{word}: method {self._name!r} cannot honour it: {refused[name]}")
        if self.solver == "auto" and "inversion" in refused:
            raise InputError(f"solver: 'auto' chooses for inversions, and method {self._name!r} makes none; name one")
        if self.frames == CHUNKS and self.mask is not None and not _stands_still(self.mask):
            raise InputError(f"mask: {self.mask} moves, and frames in chunks have one mask; give a picture")
        if self.smooth is not None and self.smoothing is None and self.lora is None:
            raise InputError("smooth: says on which ways the field is smoothed; give how, too")
        if self.lora is not None and self.smooth not in (None, "both") and "inversion" in refused:
            raise InputError(f"smooth: method {self._name!r} has one model for both ways; a LoRA goes on both")
        if self.inversion is None:
            return
        for word in _OF_THE_WAY_UP:
            if getattr(self, word):
                raise InputError(f"{word}: the inversion that is given has fixed it")
        if self.smooth == "inversion":
            raise InputError("smooth: the inversion that is given has been made; only the generation can be smoothed")

    @property
    def way(self) -> EditMethod | None:
        """The way of editing, if one is given."""
        if self.method is None:
            return None
        assert isinstance(self.method, dict)
        options = dict(self.method)
        return editing.get(str(options.pop("name", None)), **options)

    @property
    def _name(self) -> str:
        return "" if self.way is None else self.way.name

    @property
    def draws(self) -> bool:
        return self.way is not None and self.way.draws_noise

    def defaults(self) -> Mapping[str, Any]:
        found = {} if self.way is None else dict(self.way.defaults)
        if isinstance(self.grid, list):
            found.pop("strength", None)
        return found

    def data_of(self, model: Any) -> Data:
        if self.inversion is not None:
            return Saved(self.inversion)
        label = self.source if isinstance(self.source, int) else None
        return open_source(model, self.input, self.n, self.resize, label, self.frames)

    def other_files(self) -> list[str]:
        return [path for path in (self.mask, self.lora) if path is not None] + super().other_files()

    def call(self, block: Block) -> Edit:
        if self.lora is not None and self.smooth in ("inversion", "generation") and self.inversion is None:
            return self._with_lora_one_way(block)
        model = block.model if self.lora is None else _with_lora(block.model, self.lora)
        options = self.options(block.start)
        words = self.words("guidance", "source_guidance", *(() if self.smoothing is None else ("smoothing", "smooth")))
        if self.inversion is not None:
            words["inversion"] = block.given
            if self.index is None:
                options.pop("index")
        else:
            words["source"] = self._source_of(block)
        return editing.edit(
            model, block.x, self.target, **words, **self._how(model), **options, progress=block.progress
        )

    def _how(self, model: Any) -> dict[str, Any]:
        """The method and the mask, where they are given."""
        found: dict[str, Any] = {} if self.way is None else {"method": self.way}
        return found if self.mask is None else {**found, "mask": mask_of(self.mask, model)}

    def _source_of(self, block: Block) -> Any:
        """What the samples of a block are, if it is known."""
        return block.given if self.source is None else self.source

    def _with_lora_one_way(self, block: Block) -> Edit:
        """The edit with the LoRA, and the smoothing, on the way up or on the way down only, each by its own verb."""
        assert self.lora is not None
        assert block.x is not None
        plain, other, radius = block.model, _with_lora(block.model, self.lora), self.smoothing
        up, down = (other, plain) if self.smooth == "inversion" else (plain, other)
        source = self._source_of(block)
        if source is None and self.source_guidance not in (None, 1.0):
            raise InputError("source_guidance: without a source the way up is unconditional")
        above = up.with_condition(source)
        above = above.with_smoothing(radius) if radius is not None and self.smooth == "inversion" else above
        held = self.mask is not None or isinstance(self.way, Direct)
        how = {"record": "all" if held else None, "progress": block.progress}
        found = invert(above, block.x, **self.words("source_guidance"), **self.options(block.start), **how)
        words = self.words("guidance", *(("smoothing", "smooth") if self.smooth == "generation" else ()))
        edited = editing.edit(
            down, block.x, self.target, inversion=found, **words, **self._how(down), progress=block.progress
        )
        return dataclasses.replace(edited, nfe=found.nfe + edited.nfe)

    def part(self, found: Edit) -> Part:
        tensors = {"x": found.x.cpu()}
        if not bool(found.distance.isnan().any()):  # as it is where there are no sources
            tensors["distance"] = found.distance.cpu()
        kept = found.inversion
        kept = dataclasses.replace(kept, trajectory=None) if type(kept) is Inversion else None
        return Part("edits", tensors, made(found, method=found.method), kept)

    def figures(self, parts: Callable[[], Iterator[Part]]) -> dict[str, Any]:
        first = next(parts())
        facts = facts_of(first)
        figures = {
            "method": facts["method"],
            "solver": facts["solver"],
            "steps each way": facts["steps"],
            "nfe": facts["nfe"],
        }
        if "distance" in first.tensors:
            distances = torch.cat([part.tensors["distance"] for part in parts()])
            figures["distance median"] = float(np.quantile(distances.numpy(), 0.5))
        return {**figures, "max |x|": max(part.tensors["x"].abs().max().item() for part in parts())}


class Saved:
    """The samples of a saved inversion, as inversions; there are no samples beside them."""

    def __init__(self, path: str | Path):
        self._path, self._whole = Path(path), Inversion.load(path)

    def __len__(self) -> int:
        return len(self._whole.latent)

    def read(self, start: int, stop: int, pieces: Sequence[Piece] = ()) -> Read:
        """No samples, and the inversions of those from start to stop."""
        return Read(None, rows_of(self._whole, start, stop), {}, {})

    def pieces(self, block: int) -> None:
        """No list, as all of the file is in memory."""

    def fingerprint(self) -> str:
        """What stands for the file."""
        return contents.digest(self._path)


def rows_of(whole: Inversion, start: int, stop: int) -> Inversion:
    """The inversions of some of the samples of an inversion, under its condition.

    Args:
        whole: The inversion.
        start: The first sample.
        stop: The one after the last.
    """
    return dataclasses.replace(whole, state=slice_state(whole.state, start, stop), index=whole.index + start)


def mask_of(path: str | Path, model: Any) -> Tensor:
    """The largest share of white behind each place of a sample, of a picture or, for a video, of its frames."""
    return editing.mask_for(model, media.read_mask(path, model))


def _stands_still(path: str) -> bool:
    """Whether a mask is a single picture."""
    return Path(path).suffix.lower() not in VIDEOS and not Path(path).is_dir()


def _with_lora(model: Any, path: str) -> Any:
    if not hasattr(model, "with_lora"):
        raise InputError(f"lora: the model {model.name!r} is no pipeline")
    return model.with_lora(path)
