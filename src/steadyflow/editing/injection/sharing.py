"""What of a source's attention an edit takes, at which layers and steps, and from where: the same call, or a store."""

from __future__ import annotations

import math
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ...errors import InputError
from .tap import Call, Kind, Site, replaced, tapped
from .words import Blend, WordMap


@dataclass(frozen=True)
class Rule:
    """What is taken from the source."""

    take: Mapping[Kind, str]
    """Of each kind of attention: which of "q", "k" and "v" of the picture's tokens are the source's."""
    layers: tuple[float, float] = (0.0, 1.0)
    """From which share of the attentions of a kind, in the order in which they run, to which."""
    steps: tuple[float, float] = (0.0, 1.0)
    """From which share of the steps, counted from the noisy end, to which."""
    coarse: float | None = None
    """Only where there are at most this share as many tokens as the sample has places."""
    both: bool = True
    """Whether guidance's unconditional branch takes it too."""
    words: WordMap | None = None
    """Of cross attention: which words of the target stand for which of the source (prompt-to-prompt)."""


@dataclass(frozen=True)
class Features:
    """Which outputs of convolutions are the source's (plug-and-play)."""

    modules: tuple[nn.Module, ...]
    steps: tuple[float, float] = (0.0, 1.0)


class Taken(NamedTuple):
    """What a source's attention was asked, or those parts of it that are taken."""

    q: Tensor | None
    k: Tensor | None
    v: Tensor | None
    mask: Tensor | None

    @classmethod
    def of(cls, site: Site, call: Call, places: int | None, parts: Collection[str] = "qkv") -> Taken:
        """Take parts of a call, of the picture's tokens alone.

        Args:
            site: The attention.
            call: What the source asks it.
            places: The tokens of a picture, where they are known.
            parts: Which of "q", "k" and "v".
        """
        span = [site.picture(value.shape[2], places) for value in call[:3]]
        q, k, v = (
            value[:, :, where] if name in parts else None
            for name, value, where in zip("qkv", call[:3], span, strict=True)
        )
        return cls(q, k, v, call.mask if k is not None else None)


Found = dict[int | str, "Taken | Tensor"]
"""What one call of the source has shown, by the number of the attention or the name of the features."""

_SAME = 1e-9
"""Times that differ by no more are the same, rounded in two ways."""


@dataclass
class Sharing:
    """The rules of an edit over the attentions of its network, and what is on at a time of the run."""

    sites: Sequence[Site]
    rules: Sequence[Rule]
    times: Sequence[float]
    """The falling times of the run."""
    places: int
    """How many places a sample has."""
    features: Features | None = None
    blend: Blend | None = None
    kept: list[tuple[float, Found]] = field(default_factory=list[tuple[float, "Found"]])
    """What the calls on the way up have shown, with their times."""
    order: Sequence[int] = ()
    """For each call on the way down, the number of that on the way up which it repeats."""
    given: int = 0
    """How many calls on the way down were answered."""

    def __post_init__(self):
        self._where = [self._chosen(rule) for rule in self.rules]

    def check(self) -> None:
        """Raise `InputError` unless there is something that may be taken."""
        if not any(self._where) and self.features is None and self.blend is None:
            kinds = ", ".join(sorted({site.kind for site in self.sites}))
            raise InputError(f"method: takes nothing from the attention of this network, which is {kinds} attention")

    def keep(self, t: float, found: Found) -> None:
        """Store what a call on the way up has shown.

        Args:
            t: The time of the call.
            found: What `taking` gave.
        """
        self.kept.append((t, found))

    def next(self, t: float) -> Found:
        """What the next call on the way down is given: what the call that it repeats has shown, else the nearest.

        Args:
            t: The time of the call.
        """
        k = self.order[self.given] if self.given < len(self.order) else -1
        self.given += 1
        if not 0 <= k < len(self.kept) or abs(self.kept[k][0] - t) > _SAME * (1.0 + abs(t)):
            k = min(range(len(self.kept)), key=lambda j: (abs(self.kept[j][0] - t), -j))
        return self.kept[k][1]

    def _chosen(self, rule: Rule) -> set[int]:
        found: set[int] = set()
        for kind in {*rule.take, *(("cross",) if rule.words is not None else ())}:
            ours = [site.number for site in self.sites if site.kind == kind]
            begin, end = rule.layers
            found |= set(ours[-_ceil(-begin * len(ours)) : _ceil(end * len(ours))])
        return found

    def _on(self, steps: tuple[float, float], t: float) -> bool:
        """Whether a time lies in a share of the steps."""
        n = len(self.times) - 1
        begin, end = (_ceil(share * n) for share in steps)
        top = float("inf") if begin <= 0 else self.times[min(begin, n)]
        bottom = -float("inf") if end >= n else self.times[end]
        near = _SAME * (1.0 + abs(t))
        return bottom + near < t <= top + near

    def active(self, t: float) -> dict[int, list[Rule]]:
        """The rules that act at a time, by the number of the attention; none where nothing is taken."""
        found: dict[int, list[Rule]] = {}
        for rule, where in zip(self.rules, self._where, strict=True):
            for number in where if self._on(rule.steps, t) else ():
                found.setdefault(number, []).append(rule)
        return found

    def _answer(
        self, site: Site, call: Call, source: Taken, rules: Sequence[Rule], conditional: bool, places: int | None
    ) -> Tensor:
        """The answer of an attention of the edit with what it takes of the source's."""
        for rule in rules:
            if not (conditional or rule.both):
                continue
            if site.kind == "cross" and rule.words is not None:
                return rule.words.answer(call, cast(Tensor, source.q), cast(Tensor, source.k), source.mask)
            if site.kind == "self" and call.k.shape[2] != call.q.shape[2]:
                continue  # a network of one's own, whose names do not tell that this is cross attention
            tokens = places if site.kind == "joint" and places is not None else call.q.shape[2]
            if rule.coarse is not None and tokens > rule.coarse * self.places:
                continue
            for part in _parts(site, rule):
                call = call._replace(**{part: _with(site, getattr(call, part), getattr(source, part), places)})
                if part == "k" and site.kind == "self":
                    call = call._replace(mask=source.mask)
        return call.answer()

    @contextmanager
    def together(self, t: float, blocks: Sequence[int | None], conditional: int) -> Generator[None]:
        """Run a network on the source's rows and on the edit's in one batch, which is made of blocks of samples.

        Args:
            t: The time.
            blocks: Of each block, from which other one it takes what is the source's; None for the source's own.
            conditional: The number of the block of the edit under its condition.
        """
        rules = self.active(t)
        watched: set[int] = set() if self.blend is None else self.blend.watches(self.sites)
        own = blocks[conditional]

        def answer(site: Site, call: Call, places: int | None) -> Tensor:
            calls = _blocks(call, len(blocks))
            if self.blend is not None and site.number in watched and own is not None:
                self.blend.see(site, calls[own], calls[conditional], places)
            acting, answers = rules.get(site.number, []), list[Tensor]()
            for k, (one, source) in enumerate(zip(calls, blocks, strict=True)):
                if source is None or not acting:
                    answers.append(one.answer())
                else:
                    taken = Taken.of(site, calls[source], places)
                    answers.append(self._answer(site, one, taken, acting, k == conditional, places))
            return torch.cat(answers)

        def change(output: Tensor) -> Tensor:
            parts = output.chunk(len(blocks))
            return torch.cat([part if s is None else parts[s] for part, s in zip(parts, blocks, strict=True)])

        with ExitStack() as stack:
            stack.enter_context(tapped(self.sites, rules.keys() | watched, answer))
            if self.features is not None and self._on(self.features.steps, t):
                stack.enter_context(replaced(self.features.modules, change))
            yield

    @contextmanager
    def taking(self, t: float) -> Generator[Found]:
        """Run a network on the source's rows alone, and give what the edit takes of them."""
        found: Found = {}
        rules = self.active(t)

        def answer(site: Site, call: Call, places: int | None) -> Tensor:
            if site.number in found:
                raise InputError(
                    f"method: {site.name} of the network was asked twice for one query (guidance in two calls, or rows "
                    "one by one), and what belongs to which sample is not known; it cannot be injected into, unless it "
                    "was for several samples, by batch_size=1"
                )
            parts = {part for rule in rules[site.number] for part in _parts(site, rule)}
            found[site.number] = Taken.of(site, call, places, parts)
            return call.answer()

        with ExitStack() as stack:
            stack.enter_context(tapped(self.sites, rules, answer))
            if self.features is not None and self._on(self.features.steps, t):
                for number, module in enumerate(self.features.modules):

                    def keep(output: Tensor, name: str = f"features {number}") -> Tensor:
                        found[name] = output
                        return output

                    stack.enter_context(replaced([module], keep))
            yield found

    @contextmanager
    def giving(self, t: float, given: Mapping[int | str, Taken | Tensor]) -> Generator[None]:
        """Run a network on the edit's rows alone, with what was taken of the source's.

        Args:
            t: The time.
            given: What `taking` gave. Of several blocks of samples in a call, the last is taken to be that under the
                condition.
        """
        rules = {number: rules for number, rules in self.active(t).items() if number in given}

        def answer(site: Site, call: Call, places: int | None) -> Tensor:
            source = given[site.number]
            assert isinstance(source, Taken)
            rows = next(len(part) for part in source[:3] if part is not None)
            calls = _blocks(call, max(1, len(call.q) // rows))
            return torch.cat(
                [
                    self._answer(site, one, source, rules[site.number], k == len(calls) - 1, places)
                    for k, one in enumerate(calls)
                ]
            )

        with ExitStack() as stack:
            stack.enter_context(tapped(self.sites, rules, answer))
            if self.features is not None and self._on(self.features.steps, t):
                for number, module in enumerate(self.features.modules):
                    source = given.get(f"features {number}")
                    if isinstance(source, Tensor):

                        def put(output: Tensor, source: Tensor = source) -> Tensor:
                            return source.repeat(len(output) // len(source), *[1] * (source.ndim - 1))

                        stack.enter_context(replaced([module], put))
            yield


def _parts(site: Site, rule: Rule) -> str:
    """Which of q, k and v a rule needs of the source."""
    if site.kind == "cross" and rule.words is not None:
        return "qk"
    return rule.take.get(site.kind, "")


def _with(site: Site, own: Tensor, theirs: Tensor, places: int | None) -> Tensor:
    """Tokens of which those of the picture are another's."""
    if site.kind != "joint":
        return theirs
    made = own.clone()
    made[:, :, site.picture(own.shape[2], places)] = theirs
    return made


def _blocks(call: Call, blocks: int) -> list[Call]:
    """A call cut into blocks of its rows."""
    parts = [part.chunk(blocks) for part in call[:3]]
    each = call.mask is not None and call.mask.ndim > 2 and len(call.mask) > 1
    masks = call.mask.chunk(blocks) if call.mask is not None and each else [call.mask] * blocks
    return [Call(q, k, v, mask, call.options) for q, k, v, mask in zip(*parts, masks, strict=True)]


def _ceil(value: float) -> int:
    """The next whole number, where the value is not one already up to rounding."""
    return math.ceil(value - _SAME)
