"""The network that reads digit and ink off the ink pictures: what edits are judged by."""

from torch import Tensor, nn


class Judge(nn.Module):
    """A network from images (B, 3, 32, 32) in [-1, 1] to logits of the digit (B, 10) and of the ink (B, 4)."""

    def __init__(self, digits: int = 10, inks: int = 4):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 24, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(24, 48, 3, stride=2, padding=1),
            nn.GroupNorm(8, 48),
            nn.SiLU(),
            nn.Conv2d(48, 96, 3, stride=2, padding=1),
            nn.GroupNorm(8, 96),
            nn.SiLU(),
            nn.Conv2d(96, 96, 4),
            nn.SiLU(),
            nn.Flatten(),
        )
        self.digit, self.ink = nn.Linear(96, digits), nn.Linear(96, inks)

    def features(self, images: Tensor) -> Tensor:
        """Give what the two answers are read from, (B, 96)."""
        return self.body(images)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        seen = self.features(images)
        return self.digit(seen), self.ink(seen)
