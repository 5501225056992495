"""Small networks: the architectures of the bundled models."""

import math

import torch
from torch import Tensor, nn


class ResidualMLP(nn.Module):
    """A residual perceptron on flattened samples, conditioned on time and, optionally, on a label.

    Each block is  h + W2 silu((1 + scale(c)) * W1 norm(h) + shift(c)),  with c the embedding of time and label, so the
    network is smooth in x and in time. Label `classes` stands for "no label".

    Args:
        shape: The shape of one sample.
        hidden: The width of the blocks and of the embedding.
        blocks: The number of blocks.
        classes: The number of labels, 0 for an unconditional network.
        frequencies: The number of frequencies in the embedding of time.
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
        """Predict from noisy samples.

        Args:
            x: The samples, shape (B, *shape).
            time: The network's time in [0, 1], shape (B,).
            label: Integers in 0..classes, shape (B,); "no label" by default.

        Returns:
            The prediction, of x's shape.
        """
        context = _context(self, x, time, label)
        h = self.enter(x.flatten(1))
        for block in self.blocks:
            h = block(h, context)
        return self.leave(h).view(x.shape)


class UNet(nn.Module):
    """A small convolutional U-Net for images, conditioned on time and, optionally, on a label.

    It has residual blocks with group norm, modulated by the embedding of time and label, and halves the image between
    levels. Label `classes` stands for "no label".

    Args:
        shape: The shape of one image, (C, H, W), with H and W divisible by patch * 2^(levels - 1).
        channels: The number of channels at each level, multiples of 8, the finest level first.
        classes: The number of labels, 0 for an unconditional network.
        frequencies: The number of frequencies in the embedding of time.
        patch: The side of the squares of pixels that become one position with more channels (Luhman & Luhman 2022,
            2207.04316), which saves time by the square of the side.
    """

    rates: Tensor

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        channels: tuple[int, ...] = (32, 64, 64),
        classes: int = 0,
        frequencies: int = 16,
        patch: int = 1,
    ):
        super().__init__()
        channels = tuple(channels)
        self.patch = patch
        colours = shape[0] * patch**2
        wide = 4 * channels[0]
        self.classes = classes
        self.register_buffer("rates", math.pi * 2.0 ** torch.linspace(-1, 5, frequencies), persistent=False)
        self.time = nn.Sequential(nn.Linear(2 * frequencies, wide), nn.SiLU(), nn.Linear(wide, wide))
        self.label = nn.Embedding(classes + 1, wide) if classes else None
        self.enter = nn.Conv2d(colours, channels[0], 3, padding=1)
        coarser = [*channels[1:], channels[-1]]
        self.down = nn.ModuleList(_ConvBlock(c, c, wide) for c in channels)
        self.halve = nn.ModuleList(
            nn.Conv2d(c, d, 3, stride=2, padding=1) for c, d in zip(channels[:-1], coarser, strict=False)
        )
        self.middle = _ConvBlock(channels[-1], channels[-1], wide)
        self.up = nn.ModuleList(_ConvBlock(c + d, c, wide) for c, d in zip(channels, coarser, strict=True))
        last = nn.Conv2d(channels[0], colours, 3, padding=1)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        self.leave = nn.Sequential(nn.GroupNorm(8, channels[0]), nn.SiLU(), last)

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        """Predict from noisy images.

        Args:
            x: The images, shape (B, C, H, W).
            time: The network's time in [0, 1], shape (B,).
            label: Integers in 0..classes, shape (B,); "no label" by default.

        Returns:
            The prediction, of x's shape.
        """
        context = _context(self, x, time, label)
        functional = nn.functional
        h, skips = self.enter(functional.pixel_unshuffle(x, self.patch)), []
        for level, block in enumerate(self.down):
            if level:
                h = self.halve[level - 1](h)
            h = block(h, context)
            skips.append(h)
        h = self.middle(h, context)
        for level in reversed(range(len(self.up))):
            h = self.up[level](torch.cat([h, skips[level]], dim=1), context)
            if level:
                h = functional.interpolate(h, scale_factor=2.0, mode="nearest")
        return functional.pixel_shuffle(self.leave(h), self.patch)


def _context(net: ResidualMLP | UNet, x: Tensor, time: Tensor, label: Tensor | None) -> Tensor:
    """The embedding of time (B,) and label (B,), shape (B, width); (1, width) for one time and no labels."""
    if time.stride() == (0,):  # one time, expanded over the batch
        time = time[:1]
    angles = time[:, None].to(x.dtype) * net.rates.to(x.dtype)
    context = net.time(torch.cat([angles.sin(), angles.cos()], dim=1))
    if net.label is None:
        return context
    if label is None:
        label = torch.full((len(x),), net.classes, device=x.device)
    return context + net.label(label)


class _ConvBlock(nn.Module):
    """h -> skip(h) + conv(silu((1 + scale(c)) * norm(conv(silu(norm(h)))) + shift(c)))."""

    def __init__(self, inner: int, outer: int, wide: int):
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(8, inner), nn.SiLU(), nn.Conv2d(inner, outer, 3, padding=1))
        self.norm = nn.GroupNorm(8, outer)
        self.modulate = nn.Linear(wide, 2 * outer)
        self.second = nn.Conv2d(outer, outer, 3, padding=1)
        self.skip = nn.Identity() if inner == outer else nn.Conv2d(inner, outer, 1)

    def forward(self, h: Tensor, context: Tensor) -> Tensor:
        scale, shift = self.modulate(context)[:, :, None, None].chunk(2, dim=1)
        inner = torch.nn.functional.silu(self.norm(self.first(h)) * (1.0 + scale) + shift)
        return self.skip(h) + self.second(inner)


class _Block(nn.Module):
    """h -> h + W2 silu((1 + scale(c)) * W1 norm(h) + shift(c))."""

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
