"""The ways of editing that take a part of the source's attention, each with its published choice of what and where.

All go the way by latent: invert under the source, generate under the target. On the way down a second copy of the
latent is led back under the source, beside the edit and in the same calls of the network, and the edit takes its
queries, keys or values there; with an exactly reversible solver the copy retraces the way up to rounding, so that
nothing needs to be stored. `store=True` is the published form, which keeps what the way up has seen.

    prompt-to-prompt   the maps: cross attention by words, and queries and keys of coarse self attention
                       Hertz et al. 2022, 2208.01626
    plug-and-play      queries and keys of the later self attention, and the output of one convolution
                       Tumanyan et al. 2022, 2211.12572
    masactrl           keys and values of the later self attention          Cao et al. 2023, 2304.08465
    value-injection    values of the later attention                        RF-Solver-Edit, Wang et al. 2024, 2411.04746

In joint attention it is the tokens of the picture alone that are taken (as in 2508.07519), and never those of the
prompt.
"""

# What a user gives is checked where the program runs:
# pyright: reportUnnecessaryIsInstance=false

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import nn

from ..._integrate import Solution, StepInfo, Trajectory, integrate
from ..._internal.given import number
from ...denoisers.base import Denoiser, is_words
from ...errors import InputError
from ...noise import SOURCES
from ...solvers.state import concat_states, slice_state
from ...tasks.inversion import Inversion, decode_options, run_inversion
from ..base import Edit, EditMethod, EditRequest, finished, register
from .pair import Keep, Pair, Restoring, Storing, doubled, half, is_served, network_of
from .sharing import Features, Rule, Sharing
from .tap import Kind, Site, check_network, sites_of
from .words import Blend, Tokens, differing, word_map

Shares = tuple[float, float]


@dataclass(frozen=True)
class Injected(EditMethod):
    """What the ways of editing by injection have in common.

    Args:
        blend: Outside the places that attend to the words in which the prompts differ, the edit is its source; this is
            the threshold, as a share of the largest attention (prompt-to-prompt: 0.3). None for no such mask.
        store: Keep what the way up has seen, as published, in place of the second copy: one evaluation a step less, and
            memory that grows with the steps.
    """

    blend: float | None = None
    store: bool = False
    refuses: ClassVar[Mapping[str, str]] = {
        "adjoint": "what it takes from the source is no function of the edit's state",
        "corrections": "they would be given the source and its edit as one batch",
        "smoothing": "the network is asked at several places for one answer",
    }

    def __post_init__(self):
        if self.blend is not None:
            object.__setattr__(self, "blend", number("blend", self.blend))
            if not 0.0 < cast(float, self.blend) < 1.0:
                raise InputError(f"blend: got {self.blend}, expected a number in (0, 1), or None")
        if not isinstance(self.store, bool):
            raise InputError(f"store: got {self.store!r}, expected True or False")
        if self.store and self.blend is not None:
            raise InputError("blend: the source's own states are not there with store=True")

    @abstractmethod
    def rules(self, request: EditRequest, sites: Sequence[Site]) -> list[Rule]:
        """What is taken where.

        Args:
            request: What was asked for.
            sites: The attentions of the network.
        """

    def features(self, network: nn.Module) -> Features | None:
        """Which convolutions are taken.

        Args:
            network: The network.
        """
        return None

    def edit(self, request: EditRequest) -> Edit:
        options = request.options
        if self.store:
            for name, given in (("mask", request.mask), ("inversion", request.inversion)):
                if given is not None:
                    raise InputError(f"{name}: the source's own states are not there with store=True; leave it out")
            if options.auto is not None or options.controller is not None:
                raise InputError("store: is for steps that are known before; name a solver and a number of steps")
        if self.store or is_served(request.source):
            check_plain(request.source)
        size, n = options.batch_size, len(request.x)
        if size is None or size >= n:
            return self._edit(request)
        for model in (request.source, request.target):
            model.check_batch(n)
        return _joined([self._edit(_part(request, start, min(start + size, n))) for start in range(0, n, size)])

    def _edit(self, request: EditRequest) -> Edit:
        options = request.options.changed(batch_size=None)
        sharing, source, target = self._shared(request), request.source, request.target
        inversion, spent = request.inversion, 0
        for model in {id(m): m for m in (source, target) if is_served(m)}.values():
            model(request.x, target.schedule.t_max)  # so that its pipeline is opened before anyone looks into it
        if self.store:
            sharing.times = options.rising(source).reversed().times
        if inversion is None:
            inversion = run_inversion(Storing.of(source, sharing) if self.store else source, request.x, options)
            inversion, spent = replace(inversion, model=source), inversion.nfe
        sharing.times = inversion.grid.reversed().times
        if self.store:
            back = inversion.decode(Restoring.of(target, sharing), **decode_options(options))
        else:
            back = self._beside(request, inversion, sharing)
        return finished(request, self, back, nfe=spent + back.nfe, inversion=inversion)

    def _shared(self, request: EditRequest) -> Sharing:
        """The rules over the network of the request."""
        network = network_of(request.target)
        check_network(network)
        sites = sites_of(network)
        shape = tuple(request.target.shape or request.x.shape[1:])
        blend = None
        if self.blend is not None:
            words = differing(*_tokens(request, "blend"))
            blend = Blend(words, self.blend, shape)
        return Sharing(
            sites=sites,
            rules=self.rules(request, sites),
            times=(),
            places=math.prod(shape[1:]),
            features=self.features(network),
            blend=blend,
        )

    def _beside(self, request: EditRequest, inversion: Inversion, sharing: Sharing) -> Solution:
        """Generate beside the source's own way back."""
        options, n = request.options, len(inversion.latent)
        corrections = []
        if sharing.blend is not None:
            corrections.append(Keep(sharing.blend.mask))
        if request.mask is not None:
            mask = request.mask
            corrections.append(Keep(lambda x: mask.to(x)))
        pair = Pair.of(request.source, request.target, sharing)
        rows = range(inversion.index, inversion.index + n)
        noise = SOURCES[inversion.noise or options.noise].of(
            torch.cat([inversion.latent] * 2), inversion.seed or 0, [*rows, *rows]
        )
        callback = options.callback
        if callback is not None:
            seen = callback

            def outside(info: StepInfo) -> None:
                seen(info._replace(x=info.x[n:], state=half(info.state, n)))

            callback = outside
        found = integrate(
            pair,
            None,
            inversion.solver.way_back(pair.schedule, inversion.grid),
            inversion.solver,
            state=doubled(inversion.state),
            noise=noise,
            corrections=corrections,
            callback=callback,
            record=options.record,
            progress=options.progress,
        )
        kept = found.trajectory
        kept = None if kept is None else Trajectory(kept.times, kept.x[:, n:])
        return replace(found, state=half(found.state, n), trajectory=kept, seed=inversion.seed, index=inversion.index)


@register
@dataclass(frozen=True)
class PromptToPrompt(Injected):
    """Prompt-to-prompt: attend to the target's words where the source attends to those that they stand for.

    Equal words stand for each other, and so do runs of as many words between them; added words are attended to freely.
    Published for 50 steps at guidance 7.5. In joint attention, which has no cross attention, the queries and keys of
    the picture are taken for `self_share` of the steps.

    Args:
        cross_share: For which share of the steps, from the noisy end, cross attention is the source's.
        self_share: For which share the coarse self attention is.
        coarse: What is coarse: attention over at most this share as many tokens as a sample has places.
        layers: From which share of the layers to which.
        emphasis: Words of the target that are attended to more (or less), such as {"fluffy": 3.0}.
    """

    cross_share: float = 0.8
    self_share: float = 0.4
    coarse: float = 0.25
    layers: Shares = (0.0, 1.0)
    emphasis: Mapping[str, float] | None = None
    name: ClassVar[str] = "prompt-to-prompt"

    def __post_init__(self):
        super().__post_init__()
        _check_shares(self, "cross_share", "self_share")
        object.__setattr__(self, "layers", _window("layers", self.layers))
        object.__setattr__(self, "coarse", number("coarse", self.coarse))

    def rules(self, request: EditRequest, sites: Sequence[Site]) -> list[Rule]:
        if is_served(request.target) and request.target.guides:
            raise InputError(
                "guidance: prompt-to-prompt acts on the branch under the condition alone, and which one that is inside "
                "a served pipeline is not known; edit at guidance 1.0, or with 'plug-and-play'"
            )
        alike: dict[Kind, str] = {"self": "qk", "joint": "qk"}
        rules = [Rule(alike, layers=self.layers, steps=(0.0, self.self_share), coarse=self.coarse, both=False)]
        if any(site.kind == "cross" for site in sites) and self.cross_share > 0.0:
            source, target = _tokens(request, "cross_share")
            emphasis = dict(self.emphasis or {})
            words = [_word(request.target, word) for word in emphasis]
            mapped = word_map(source, target, words, list(emphasis.values()))
            rules.append(Rule({}, layers=self.layers, steps=(0.0, self.cross_share), both=False, words=mapped))
        elif self.emphasis:
            raise InputError("emphasis: is for cross attention, of which the network has none, or cross_share is 0")
        return rules


@register
@dataclass(frozen=True)
class PlugAndPlay(Injected):
    """Plug-and-play: keep the source's layout by its later self attention, and by the features of one layer.

    Published for 50 steps at guidance 7.5.

    Args:
        attention_share: For which share of the steps, from the noisy end, queries and keys are the source's.
        feature_share: For which share the output of a UNet's first convolutions on the way up is; None for 0.8, as
            published, where the network has them, and for 0 where it has not.
        layers: From which share of the attention layers to which.
    """

    attention_share: float = 0.5
    feature_share: float | None = None
    layers: Shares = (0.5, 1.0)
    name: ClassVar[str] = "plug-and-play"

    def __post_init__(self):
        super().__post_init__()
        _check_shares(self, "attention_share", *(("feature_share",) if self.feature_share is not None else ()))
        object.__setattr__(self, "layers", _window("layers", self.layers))

    def rules(self, request: EditRequest, sites: Sequence[Site]) -> list[Rule]:
        return [Rule({"self": "qk", "joint": "qk"}, layers=self.layers, steps=(0.0, self.attention_share))]

    def features(self, network: nn.Module) -> Features | None:
        try:
            found = network.get_submodule("up_blocks.1.resnets.1.conv2")
        except AttributeError:
            if self.feature_share:
                raise InputError(
                    f"feature_share: {type(network).__name__} has no up_blocks.1.resnets.1.conv2, whose output is "
                    "taken; give 0"
                ) from None
            return None
        share = 0.8 if self.feature_share is None else self.feature_share
        return Features((found,), (0.0, share)) if share else None


@register
@dataclass(frozen=True)
class MasaCtrl(Injected):
    """MasaCtrl: let the edit look up what it shows in the source, by the keys and values of its later self attention.

    It is for edits that move or reshape what is there. Published for 50 steps at guidance 7.5.

    Args:
        steps: From which share of the steps, counted from the noisy end, to which.
        layers: From which share of the attention layers to which.
    """

    steps: Shares = (0.08, 1.0)
    layers: Shares = (0.625, 1.0)
    name: ClassVar[str] = "masactrl"

    def __post_init__(self):
        super().__post_init__()
        for name in ("steps", "layers"):
            object.__setattr__(self, name, _window(name, getattr(self, name)))

    def rules(self, request: EditRequest, sites: Sequence[Site]) -> list[Rule]:
        return [Rule({"self": "kv", "joint": "kv"}, layers=self.layers, steps=self.steps)]


@register
@dataclass(frozen=True)
class ValueInjection(Injected):
    """Injected values: the values of the later attention are the source's for the first steps (RF-Solver-Edit).

    Published for FLUX at 15 to 25 steps and guidance 2, with 2 to 5 steps of injection.

    Args:
        share: For which share of the steps, from the noisy end.
        layers: From which share of the attention layers to which.
    """

    share: float = 0.2
    layers: Shares = (0.7, 1.0)
    name: ClassVar[str] = "value-injection"

    def __post_init__(self):
        super().__post_init__()
        _check_shares(self, "share")
        object.__setattr__(self, "layers", _window("layers", self.layers))

    def rules(self, request: EditRequest, sites: Sequence[Site]) -> list[Rule]:
        return [Rule({"self": "v", "joint": "v"}, layers=self.layers, steps=(0.0, self.share))]


def check_plain(model: Denoiser) -> None:
    """Raise `InputError` for a source with guidance, where its branches cannot be told apart."""
    if model.guides:
        raise InputError(
            f"source_guidance: got {model.guidance}; what is stored, or taken inside a served pipeline, is that of one "
            "branch, so that the way up is without guidance; give 1.0"
        )


def _check_shares(method: Any, *names: str) -> None:
    for name in names:
        value = number(name, getattr(method, name))
        if not 0.0 <= value <= 1.0:
            raise InputError(f"{name}: got {value}, expected a share in [0, 1]")
        object.__setattr__(method, name, value)


def _window(name: str, given: object) -> Shares:
    window = tuple(given) if isinstance(given, tuple | list) else ()
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in window)
    if len(window) != 2 or not numbers or not 0.0 <= window[0] < window[1] <= 1.0:
        raise InputError(f"{name}: got {given!r}, expected two rising shares in [0, 1]")
    return float(window[0]), float(window[1])


def _tokens(request: EditRequest, name: str) -> tuple[Tokens, Tokens]:
    """The tokens of the source's prompt and of the target's."""
    source, target = request.prompts
    read = getattr(request.target, "tokens", None)
    if read is None or not is_words(target) or not (source is None or is_words(source)):
        raise InputError(
            f"{name}: needs the words of both prompts, and a pipeline that says which tokens they are "
            f"({request.target.name!r} does not, or the conditions are no prompts)"
        )
    return read("" if source is None else source), read(target)


def _word(model: Denoiser, word: str) -> Sequence[int]:
    """The tokens of a word, without those that stand around every prompt."""
    read = cast(Any, model).tokens
    empty, found = list(read("")[0]), list(read(word)[0])
    front = next(k for k, (a, b) in enumerate(zip(empty, found, strict=True)) if a != b)
    inside = found[front:]
    stop = empty[front] if front < len(empty) else None
    return inside[: inside.index(stop)] if stop in inside else inside


def _part(request: EditRequest, start: int, stop: int) -> EditRequest:
    """A request for some of the samples."""
    inversion, mask = request.inversion, request.mask
    if inversion is not None:
        part = slice_state(inversion.state, start, stop)
        inversion = replace(inversion, state=part, index=inversion.index + start, trajectory=None)
    prompts = tuple(list(p)[start:stop] if isinstance(p, list | tuple) and len(p) > 1 else p for p in request.prompts)
    return replace(
        request,
        x=request.x[start:stop],
        source=request.source.slice(start, stop),
        target=request.target.slice(start, stop),
        mask=mask[start:stop] if mask is not None and len(mask) > 1 else mask,
        options=request.options.changed(index=request.options.index + start),
        inversion=inversion,
        prompts=cast(Any, prompts),
    )


def _joined(parts: Sequence[Edit]) -> Edit:
    """One edit of successive batches."""
    tracks = [part.trajectory for part in parts]
    known = [track for track in tracks if track is not None]
    inversions = [part.inversion for part in parts if part.inversion is not None]
    return replace(
        parts[0],
        state=concat_states([part.state for part in parts]),
        nfe=max(part.nfe for part in parts),
        distance=torch.cat([part.distance for part in parts]),
        trajectory=Trajectory(known[0].times, torch.cat([one.x for one in known], 1)) if known else None,
        inversion=Inversion.concatenate(inversions),
    )
