"""All experiments of arXiv 2506.18290, but the one that needs weights of one's own (`reconstruction`)."""

from ..findings import Size
from ..studies import Paper
from . import chain, correlation, toys, training

PAPER = Paper(
    "instability",
    "2506.18290",
    {
        "correlation-digits": correlation.digits,
        "correlation-faces": correlation.faces,
        "chain-digits": chain.digits,
        "chain-faces": chain.faces,
        "chain-ink": chain.ink,
        "toys": toys.toys,
        "theorem": toys.theorem,
        "conditions": toys.conditions,
        "training": training.ablation,
    },
    full=Size("full", n=400, images=100),
    quick=Size("quick", n=100, images=24),
    page="instability.md",
)
