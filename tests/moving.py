"""Models of videos, of sounds, and of both at once: a small smooth field over a linear codec.

They are what the library knows of such models: `image_shape`, `encode`, `decode`, `fps` and `sample_rate`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import steadyflow as sf


class Net(nn.Module):
    """A small smooth function of the state, the time and a label, that is no field of any real data."""

    classes = 3

    def __init__(self, size):
        super().__init__()
        generator = torch.Generator().manual_seed(size)
        self.weight = nn.Parameter(torch.randn(size, size, generator=generator) / size**0.5, requires_grad=False)
        self.shifts = nn.Parameter(torch.randn(4, size, generator=generator), requires_grad=False)

    def forward(self, x, time, label=None):
        shift = self.shifts[3] if label is None else self.shifts[label]
        flat = x.flatten(1)
        return (0.7 * flat + 0.3 * torch.tanh(flat @ self.weight + shift) * torch.cos(2 * time)[:, None]).view_as(x)


@dataclass(frozen=True, eq=False)
class Coded(sf.Denoiser):
    """A model of latents of any shape, whose codec is a projection onto a few directions of smooth samples."""

    image_shape: Any = None
    fps: float | None = None
    sample_rate: int | None = None

    def _basis(self, like):
        """Orthonormal directions, shape (numbers of a sample, numbers of a latent)."""
        whole, few = torch.Size(self.image_shape).numel(), torch.Size(self.shape).numel()
        drawn = torch.randn(whole, few, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
        return torch.linalg.qr(drawn)[0].to(like)

    def encode(self, images):
        assert tuple(images.shape[1:]) == tuple(self.image_shape)
        return (images.flatten(1) @ self._basis(images)).view(-1, *self.shape)

    def decode(self, latents):
        assert tuple(latents.shape[1:]) == tuple(self.shape)
        return (latents.flatten(1) @ self._basis(latents).T).view(-1, *self.image_shape)


@dataclass(frozen=True, eq=False)
class Both(sf.Denoiser):
    """Videos with their sound, flattened to one vector."""

    image_shape: Any = None
    fps: float | None = None
    sample_rate: int | None = None

    def decode(self, latents):
        at, found = 0, {}
        for name, shape in self.image_shape.items():
            size = torch.Size(shape).numel()
            found[name] = latents[:, at : at + size].reshape(-1, *shape)
            at += size
        return found


VIDEO = (3, 5, 16, 24)
SOUND = (1, 400)


def _model(kind, shape, **more):
    size = torch.Size(shape).numel()
    return kind(Net(size if size < 1000 else 1), sf.VPLinear(), shape=shape, null=3, classes=3, name="moving", **more)


def video():
    """Videos of five frames, in latents with a place per frame."""
    return _model(Coded, (4, 5, 2, 3), image_shape=VIDEO, fps=12.5)


def packed():
    """The same, packed into tokens."""
    return _model(Coded, (30, 4), image_shape=VIDEO)


def pixels():
    """Videos of three frames of 4 x 6, without a codec."""
    return _model(sf.Denoiser, (3, 3, 4, 6))


def picture():
    """Pictures, packed into tokens."""
    return _model(Coded, (24, 4), image_shape=(3, 16, 24))


def sound():
    """Sounds of 50 ms."""
    return _model(Coded, (2, 60), image_shape=SOUND, sample_rate=8000)


def rateless():
    """Sounds of a rate that is not known."""
    return _model(Coded, (2, 60), image_shape=SOUND)


def joined():
    """Videos with their sound."""
    shapes = {"video": (3, 3, 4, 6), "audio": (1, 80)}
    return _model(Both, (3 * 3 * 4 * 6 + 80,), image_shape=shapes, fps=10.0, sample_rate=8000)


def numbers():
    """Vectors of which nothing is known."""
    return _model(sf.Denoiser, (6,))


def pixels_of(frames):
    """Videos of 16 x 24 in so many frames, without a codec."""
    return _model(Flat, (3, frames, 16, 24))


class Flat(sf.Denoiser):
    """One that is only asked for its shape."""


def smooth_video(model=None, n=1, seed=0):
    """Videos that the model's codec keeps, shape (n, 3, F, H, W)."""
    model = model or video()
    size = torch.Size(model.shape).numel()
    z = torch.randn(n, size, generator=torch.Generator().manual_seed(seed)).view(n, *model.shape)
    x = model.decode(z)
    return (x / x.abs().amax(tuple(range(1, x.ndim)), keepdim=True)).contiguous()
