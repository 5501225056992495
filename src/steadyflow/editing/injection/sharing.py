"""What of a source's attention an edit takes, at which layers and steps, and from where: the same call, or a store."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
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
    kept: dict[float, list[Found]] = field(default_factory=dict[float, "list[Found]"])
    """What was stored on the way up, of each time in the order of the calls."""
    given: dict[float, int] = field(default_factory=dict[float, int])
    """How many calls of each time were answered on the way down."""

    def __post_init__(self):
        self._where = [self._chosen(rule) for rule in self.rules]

    def keep(self, t: float, found: Found) -> None:
        """Store what a call on the way up has shown.

        Args:
            t: The time of the call.
            found: What `taking` gave.
        """
        near = min(self.kept, key=lambda time: abs(time - t), default=t)
        self.kept.setdefault(near if abs(near - t) <= _SAME * (1.0 + abs(t)) else t, []).append(found)

    def near(self, t: float) -> Found:
        """What a call on the way down is given: of the nearest time, the last that was stored and not yet given.

        An exactly reversible solver asks at the same times on its way down, at each in the opposite order.
        """
        near = min(self.kept, key=lambda time: abs(time - t))
        calls, done = self.kept[near], self.given.get(near, 0)
        self.given[near] = done + 1
        return calls[-1 - done % len(calls)]

    def _chosen(self, rule: Rule) -> set[int]:
        found: set[int] = set()
        for kind in {*rule.take, *(("cross",) if rule.words is not None else ())}:
            ours = [site.number for site in self.sites if site.kind == kind]
            begin, end = (round(share * len(ours)) for share in rule.layers)
            found |= set(ours[begin:end])
        return found

    def _on(self, steps: tuple[float, float], t: float) -> bool:
        """Whether a time lies in a share of the steps."""
        n = len(self.times) - 1
        begin, end = (_ceil(share * n) for share in steps)
        top = float("inf") if begin <= 0 else self.times[min(begin, n)]
        bottom = -float("inf") if end >= n else self.times[end]
        return bottom < t <= top

    def active(self, t: float) -> list[tuple[Site, list[Rule]]]:
        """The attentions that take something at a time, and by which rules."""
        on = [(rule, where) for rule, where in zip(self.rules, self._where, strict=True) if self._on(rule.steps, t)]
        found = [(site, [rule for rule, where in on if site.number in where]) for site in self.sites]
        return [(site, rules) for site, rules in found if rules]

    def _answer(
        self,
        site: Site,
        call: Call,
        source: Taken,
        rules: Mapping[int, Sequence[Rule]],
        conditional: bool,
        places: int | None,
    ) -> Tensor:
        return _edited(
            site,
            call,
            source,
            rules.get(site.number, ()),
            conditional=conditional,
            places=places,
            sample_places=self.places,
        )

    @contextmanager
    def together(self, t: float, blocks: Sequence[int | None], conditional: int) -> Generator[None]:
        """Run a network on the source's rows and on the edit's in one batch, which is made of blocks of samples.

        Args:
            t: The time.
            blocks: Of each block, from which other one it takes what is the source's; None for the source's own.
            conditional: The number of the block of the edit under its condition.
        """
        rules = {site.number: rules for site, rules in self.active(t)}
        watched: set[int] = set() if self.blend is None else self.blend.watches(self.sites)
        own = blocks[conditional]

        def answer(site: Site, call: Call, places: int | None) -> Tensor:
            calls = _blocks(call, len(blocks))
            if self.blend is not None and site.number in watched and own is not None:
                self.blend.see(site, calls[own], calls[conditional], places)
            return torch.cat(
                [
                    one.answer()
                    if source is None
                    else self._answer(site, one, Taken(*calls[source][:4]), rules, k == conditional, places)
                    for k, (one, source) in enumerate(zip(calls, blocks, strict=True))
                ]
            )

        def change(output: Tensor) -> Tensor:
            parts = output.chunk(len(blocks))
            return torch.cat([part if s is None else parts[s] for part, s in zip(parts, blocks, strict=True)])

        with ExitStack() as stack:
            stack.enter_context(tapped([s for s in self.sites if s.number in rules or s.number in watched], answer))
            if self.features is not None and self._on(self.features.steps, t):
                stack.enter_context(replaced(self.features.modules, change))
            yield

    @contextmanager
    def taking(self, t: float) -> Generator[Found]:
        """Run a network on the source's rows alone, and give what the edit takes of them."""
        found: Found = {}
        rules = {site.number: rules for site, rules in self.active(t)}

        def answer(site: Site, call: Call, places: int | None) -> Tensor:
            if site.number in found:
                raise InputError(
                    f"method: {site.name} of the network was asked twice for one query (guidance in two calls, or rows "
                    "one by one), and what belongs to which sample is not known; it cannot be injected into"
                )
            parts = {part for rule in rules[site.number] for part in _parts(site, rule)}
            q, k, v = ((value if name in parts else None) for name, value in zip("qkv", call[:3], strict=True))
            found[site.number] = Taken(q, k, v, call.mask if k is not None else None)
            return call.answer()

        with ExitStack() as stack:
            stack.enter_context(tapped([site for site in self.sites if site.number in rules], answer))
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
        rules = {site.number: rules for site, rules in self.active(t) if site.number in given}

        def answer(site: Site, call: Call, places: int | None) -> Tensor:
            source = given[site.number]
            assert isinstance(source, Taken)
            rows = next(len(part) for part in source[:3] if part is not None)
            calls = _blocks(call, max(1, len(call.q) // rows))
            return torch.cat(
                [self._answer(site, one, source, rules, k == len(calls) - 1, places) for k, one in enumerate(calls)]
            )

        with ExitStack() as stack:
            stack.enter_context(tapped([site for site in self.sites if site.number in rules], answer))
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


def _edited(
    site: Site,
    call: Call,
    source: Taken,
    rules: Sequence[Rule],
    *,
    conditional: bool,
    places: int | None,
    sample_places: int,
) -> Tensor:
    """The answer of an attention of the edit with what it takes of the source's.

    Args:
        site: The attention.
        call: What the edit asks it.
        source: What the source asked it.
        rules: Those that act here.
        conditional: Whether this is the branch under the condition.
        places: The tokens of a picture, where they are known.
        sample_places: The places of a sample.
    """
    for rule in rules:
        if not (conditional or rule.both):
            continue
        if site.kind == "cross" and rule.words is not None:
            return rule.words.answer(call, cast(Tensor, source.q), cast(Tensor, source.k), source.mask)
        if site.kind == "self" and call.k.shape[2] != call.q.shape[2]:
            continue  # a network of one's own, whose names do not tell that this is cross attention
        tokens = places if site.kind == "joint" and places is not None else call.q.shape[2]
        if rule.coarse is not None and tokens > rule.coarse * sample_places:
            continue
        span = site.picture(call, places)
        for part in _parts(site, rule):
            call = call._replace(**{part: _with(getattr(call, part), getattr(source, part), span)})
            if part == "k":
                call = call._replace(mask=source.mask)
    return call.answer()


def _with(own: Tensor, theirs: Tensor, span: slice) -> Tensor:
    """Tokens with some of them another's."""
    if span == slice(None):
        return theirs
    made = own.clone()
    made[:, :, span] = theirs[:, :, span]
    return made


def _blocks(call: Call, blocks: int) -> list[Call]:
    """A call cut into blocks of its rows."""
    masks = [call.mask] * blocks if call.mask is None or len(call.mask) == 1 or call.mask.ndim < 3 else None
    parts = [part.chunk(blocks) for part in call[:3]]
    masks = list(call.mask.chunk(blocks)) if masks is None and call.mask is not None else masks
    assert masks is not None
    return [Call(q, k, v, mask, call.options) for q, k, v, mask in zip(*parts, masks, strict=True)]


def _ceil(value: float) -> int:
    return -int(-value // 1)
