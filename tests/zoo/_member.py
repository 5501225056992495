"""What the zoo knows about one family of pipelines."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Member:
    """One family: how to build its pipeline, and how to call it.

    `make` returns a fresh pipeline with random modules, neither seeded nor in evaluation mode: `zoo.build` sees to
    both. `call` returns the arguments of the smallest meaningful run, without `generator`, `num_inference_steps`,
    `output_type` and `latents`.
    """

    name: str
    family: str
    make: Callable[[], Any]
    call: Callable[[], dict[str, Any]]
    kind: str = "image"  # "image", "video", "audio" or "video+audio"
    text_to_image: bool = True  # False where the call needs a picture or another input
    image_sibling: str | None = None  # the member that is the image-to-image form of this one
    quick: bool = False  # in the quick selection: families that people use most, built and run in less than a second
    note: str = ""  # what is special
    loads: str = ""  # why a saved copy cannot be loaded, where it cannot
