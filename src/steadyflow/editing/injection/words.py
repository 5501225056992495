"""Words of prompts inside attention: which stand for which (prompt-to-prompt), and where in a picture they act.

Changes of an attention map are linear, so that they are moved onto the values and no map is ever made (Hertz et al.
2022, 2208.01626, in this form). With M the map of the source, M' that of the target, e the weights of the target's
words, P[j, i] = 1 where word i of the source stands for word j of the target, and a_j = 1 where there is one:

    M P^T (a e v) + M' ((1 - a) e v)

The attention that a place pays to some words is the answer for values that are 1 at these words and 0 elsewhere.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from ...errors import InputError
from .tap import Call, Site


@dataclass(frozen=True)
class WordMap:
    """Which tokens of a target's prompt stand for which of its source's, and how much each counts."""

    places: Tensor
    """P: (B or 1, target's tokens, source's tokens); rows of zeros where nothing stands for a token."""
    weights: Tensor
    """e: of each token of the target, (B or 1, tokens)."""

    def answer(self, call: Call, q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
        """The answer of the target's cross attention under the source's map.

        Args:
            call: The target's own.
            q: The source's queries.
            k: The source's keys.
            mask: The source's mask.
        """
        if call.v.shape[2] != self.places.shape[1] or k.shape[2] != self.places.shape[2]:
            raise InputError(
                f"method: the network attends to {call.v.shape[2]} and {k.shape[2]} tokens of the prompts, but they "
                f"were read as {self.places.shape[1]} and {self.places.shape[2]}"
            )
        rows = len(call.v)
        places, weights = (_rows(part.to(call.v), rows)[:, None] for part in (self.places, self.weights))
        shared = (places != 0.0).any(-1, keepdim=True).to(call.v)
        valued = weights[..., None] * call.v
        theirs = Call(q, k, places.transpose(-1, -2) @ (shared * valued), mask, call.options).answer()
        return theirs + call._replace(v=(1.0 - shared) * valued).answer()


def _rows(values: Tensor, rows: int) -> Tensor:
    """One row for each of a batch, in which samples may be cut into several (frames, say)."""
    return (
        values.expand(rows, *values.shape[1:]) if len(values) == 1 else values.repeat_interleave(rows // len(values), 0)
    )


Tokens = Sequence[Sequence[int]]
"""The tokens of one prompt, or of one per sample."""


def word_map(source: Tokens, target: Tokens, emphasis: Tokens | None = None, weights: Sequence[float] = ()) -> WordMap:
    """Align the tokens of prompts: equal ones stand for each other, and so do runs of others between them.

    Where two such runs have unequal lengths, the map of the source's is spread evenly over the target's. What fills up
    a prompt after its end stands for what does so in the same place of the other.

    Args:
        source: The source's tokens.
        target: The target's.
        emphasis: Words, as tokens, that count more or less.
        weights: How much, of each of those.
    """
    n, length = max(len(source), len(target)), len(source[0])
    places = torch.zeros(n, len(target[0]), length)
    counts = torch.ones(n, len(target[0]))
    for row in range(n):
        here, there = source[row % len(source)], target[row % len(target)]
        for tag, i0, i1, j0, j1 in _changes(here, there):
            if tag == "equal" or (tag == "replace" and i1 - i0 == j1 - j0):
                places[row, range(j0, j1), range(i0, i1)] = 1.0
            elif tag == "replace":
                places[row, j0:j1, i0:i1] = 1.0 / (j1 - j0)
        end, begun = _inside(here), _inside(there)
        for j in range(begun, len(there)):
            places[row, j, min(end if j == begun else max(end + 1, j), length - 1)] = 1.0
        for word, weight in zip(emphasis or (), weights, strict=True):
            found = [k for k in range(len(there) - len(word) + 1) if list(there[k : k + len(word)]) == list(word)]
            if not found:
                raise InputError(f"emphasis: the tokens {list(word)} of a word of it are not in the target's prompt")
            for k in found:
                counts[row, k : k + len(word)] = weight
    return WordMap(places, counts)


def differing(source: Tokens, target: Tokens) -> tuple[Tensor, Tensor]:
    """The tokens in which prompts differ: 1 or 0, (B or 1, tokens) of the source and of the target.

    Args:
        source: The source's tokens.
        target: The target's.
    """
    n = max(len(source), len(target))
    found = torch.zeros(n, len(source[0])), torch.zeros(n, len(target[0]))
    for row in range(n):
        for tag, i0, i1, j0, j1 in _changes(source[row % len(source)], target[row % len(target)]):
            if tag != "equal":
                found[0][row, i0:i1] = 1.0
                found[1][row, j0:j1] = 1.0
    return found


def _changes(source: Sequence[int], target: Sequence[int]) -> Sequence[tuple[str, int, int, int, int]]:
    """The runs of tokens that are equal or not, as `difflib` gives them, before what fills up the prompts."""
    source, target = source[: _inside(source)], target[: _inside(target)]
    return difflib.SequenceMatcher(None, source, target, autojunk=False).get_opcodes()


def _inside(tokens: Sequence[int]) -> int:
    """How many tokens come before the last one, which is repeated to fill up a prompt."""
    return next((k + 1 for k in reversed(range(len(tokens))) if tokens[k] != tokens[-1]), 0)


@dataclass
class Blend:
    """Where an edit may differ from its source: where the words in which the prompts differ are attended to.

    As prompt-to-prompt's local blend: the attention of each place to these words is averaged over heads, layers and
    the calls so far, widened by a place, divided by its largest, and compared with a threshold; what either prompt
    attends to counts.
    """

    words: tuple[Tensor, Tensor]
    """The words of the source's prompt and of the target's, as `differing` gives them."""
    threshold: float
    shape: tuple[int, ...]
    """Of one sample, (channels, ..., height, width)."""
    seen: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    """The sums so far, by the number of tokens of a picture: (2, B, tokens)."""

    def watches(self, sites: Sequence[Site]) -> set[int]:
        """The attentions that are looked at: all in which pictures attend to prompts."""
        return {site.number for site in sites if site.kind != "self"}

    def see(self, site: Site, source: Call, target: Call, places: int | None) -> None:
        """Add what an attention shows.

        Args:
            site: The attention.
            source: What the source asks it.
            target: What the target asks it.
            places: The tokens of a picture, where they are known.
        """
        both = [_attention(site, call, words, places) for call, words in zip((source, target), self.words, strict=True)]
        seen = torch.stack(both)
        before = self.seen.get(seen.shape[-1])
        self.seen[seen.shape[-1]] = seen if before is None else before + seen

    def mask(self, like: Tensor) -> Tensor:
        """Where the edit may differ, 1 or 0, in the shape of samples (B, 1, ..., h, w); 1 before anything was seen."""
        size = self.shape[1:]
        total = like.new_zeros((len(like), 1, *size))
        if not self.seen:
            return total + 1.0
        tokens = min(self.seen, key=lambda count: abs(count - total[0].numel() / 16))
        found = self.seen[tokens]
        flat = like.new_zeros((2, len(like), 1, *size))
        for k in range(2):
            flat[k] = _spread(found[k].to(like), size)
        flat = flat / flat.flatten(2).amax(2).view(2, -1, *[1] * (flat.ndim - 2)).clamp_min(1e-12)
        return (flat > self.threshold).any(0).to(like)


def _attention(site: Site, call: Call, words: Tensor, places: int | None) -> Tensor:
    """How much each token of the picture attends to some words, mean over the heads: (B, tokens)."""
    span = site.picture(call.q.shape[2], places)
    first = 0 if site.kind != "joint" or site.prompt_first else (places or 0)
    values = call.k.new_zeros((len(call.k), call.k.shape[1], call.k.shape[2], 1))
    last = min(first + words.shape[1], call.k.shape[2])
    values[:, :, first:last, 0] = _rows(words.to(values), len(values))[:, None, : last - first]
    mask = call.mask if call.mask is None or call.mask.shape[-2] == 1 else call.mask[..., span, :]
    return Call(call.q[:, :, span], call.k, values, mask, call.options).answer().mean(1)[..., 0].detach()


def _spread(tokens: Tensor, size: Sequence[int]) -> Tensor:
    """Tokens (B, n) of a picture or video as a map of its size (B, 1, *size), each widened by a place."""
    frames = size[0] if len(size) == 3 else 1
    height, width = size[-2:]
    n = tokens.shape[1]
    side = (n / frames * height / width) ** 0.5
    rows = round(side)
    columns = n // (frames * max(rows, 1))
    if rows * columns * frames != n:
        raise InputError(f"blend: {n} tokens do not lie on a grid over samples of {height} x {width} places")
    maps = tokens.view(-1, 1, rows, columns)
    maps = functional.max_pool2d(maps, 3, stride=1, padding=1)
    maps = functional.interpolate(maps, (height, width), mode="nearest")
    return maps.view(len(tokens), 1, *size)
