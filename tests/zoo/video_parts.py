"""What the tiny video and audio pipelines need beside the parts that they share with those of pictures."""

import sys
from types import SimpleNamespace

import torch
from diffusers import ConfigMixin, ModelMixin

from . import parts


def film(frames, side=16, seed=0):
    """Pictures of smooth noise, all different."""
    return [parts.picture(side, seed=seed + number) for number in range(frames)]


def with_ftfy(pipeline):
    """A class of pipelines that cleans its prompts with ftfy, whether or not that package is there.

    The modules of several pipelines import it only if it is installed, and use it in any case.
    """
    vars(sys.modules[pipeline.__module__]).setdefault("ftfy", SimpleNamespace(fix_text=str))
    return pipeline


class Permissive(ModelMixin, ConfigMixin):
    """In place of the safety checker of Cosmos, which is a large model: everything passes."""

    config_name = "config.json"

    def __init__(self):
        super().__init__()
        self.register_buffer("place", torch.zeros(1))

    def check_text_safety(self, prompt):
        return True

    def check_video_safety(self, frames):
        return frames
