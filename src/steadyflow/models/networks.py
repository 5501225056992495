"""Small networks: the architectures of the bundled models."""

import math

import torch
from torch import Tensor, nn


class ResidualMLP(nn.Module):
    """A residual perceptron on flattened samples, conditioned on time and, optionally, on a label.

    Each block is  h + W2 silu(scale(c) * norm(W1 h) + shift(c)),  with c the embedding of time and label, so the
    network is smooth in x and in time. Label `classes` stands for "no label".

    shape: of one sample. classes: the number of labels, 0 for an unconditional network.
    """

    rates: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        hidden: int = 256,
        blocks: int = 3,
        classes: int = 0,
        frequencies: int = 16,
    ):
        super().__init__()
        self.size = math.prod(shape)
        self.classes = classes
        self.register_buffer("rates", math.pi * 2.0 ** torch.linspace(-1, 5, frequencies), persistent=False)
        self.time = nn.Sequential(nn.Linear(2 * frequencies, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.label = nn.Embedding(classes + 1, hidden) if classes else None
        self.enter = nn.Linear(self.size, hidden)
        self.blocks = nn.ModuleList(_Block(hidden) for _ in range(blocks))
        self.leave = nn.Linear(hidden, self.size)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        """x: (B, *shape); time: (B,) in [0, 1]; label: (B,) integers in 0..classes. Returns x's shape."""
        angles = time[:, None].to(x.dtype) * self.rates.to(x.dtype)
        context = self.time(torch.cat([angles.sin(), angles.cos()], dim=1))
        if self.label is not None:
            if label is None:
                label = torch.full((len(x),), self.classes, device=x.device)
            context = context + self.label(label)
        h = self.enter(x.flatten(1))
        for block in self.blocks:
            h = block(h, context)
        return self.leave(h).view(x.shape)


class _Block(nn.Module):
    def __init__(self, hidden: int):
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.modulate = nn.Linear(hidden, 2 * hidden)
        self.up = nn.Linear(hidden, hidden)
        self.down = nn.Linear(hidden, hidden)
        nn.init.zeros_(self.modulate.weight)
        nn.init.zeros_(self.modulate.bias)

    def forward(self, h: Tensor, context: Tensor) -> Tensor:
        scale, shift = self.modulate(context).chunk(2, dim=1)
        inner = torch.nn.functional.silu(self.up(self.norm(h)) * (1.0 + scale) + shift)
        return h + self.down(inner)
