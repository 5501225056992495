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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from torch import nn

from ..._internal.given import number
from ...errors import InputError
from ..base import EditRequest, register
from .injected import Injected, tokens_of, word_of
from .pair import is_served
from .sharing import Features, Rule
from .tap import Kind, Site, has_levels
from .words import word_map

Shares = tuple[float, float]


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
        coarse: What is coarse: attention over at most this share as many tokens as a sample has places. Only UNets have
            attention at several resolutions; in other networks all of it counts as coarse.
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
        if not self.coarse >= 0.0:
            raise InputError(f"coarse: got {self.coarse}, expected a share, 0 or more")
        if self.emphasis is not None:
            _check_emphasis(self.emphasis)

    def rules(self, request: EditRequest, sites: Sequence[Site]) -> list[Rule]:
        if is_served(request.target) and request.target.guides:
            raise InputError(
                "guidance: prompt-to-prompt acts on the branch under the condition alone, and which one that is inside "
                "a served pipeline is not known; edit at guidance 1.0, or with 'plug-and-play'"
            )
        alike: dict[Kind, str] = {"self": "qk", "joint": "qk"}
        coarse = self.coarse if has_levels(sites) else None
        rules = [Rule(alike, layers=self.layers, steps=(0.0, self.self_share), coarse=coarse, both=False)]
        if any(site.kind == "cross" for site in sites) and self.cross_share > 0.0:
            source, target = tokens_of(request, "cross_share")
            emphasis = dict(self.emphasis or {})
            words = [word_of(request.target, word) for word in emphasis]
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


def _check_shares(method: Any, *names: str) -> None:
    for name in names:
        value = number(name, getattr(method, name))
        if not 0.0 <= value <= 1.0:
            raise InputError(f"{name}: got {value}, expected a share in [0, 1]")
        object.__setattr__(method, name, value)


def _check_emphasis(emphasis: object) -> None:
    if not isinstance(emphasis, Mapping):
        raise InputError(f"emphasis: got {emphasis!r}, expected weights by words, such as {{'fluffy': 3.0}}")
    for word, weight in cast("Mapping[object, object]", emphasis).items():
        if not isinstance(word, str):
            raise InputError(f"emphasis: got {word!r}, expected a word")
        if not math.isfinite(number("emphasis", weight)):
            raise InputError(f"emphasis: got {weight}, expected a number")


def _window(name: str, given: object) -> Shares:
    window = cast("tuple[object, ...]", tuple(cast(Any, given)) if isinstance(given, tuple | list) else ())
    ends = [float(value) for value in window if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(window) != 2 or len(ends) != 2 or not 0.0 <= ends[0] < ends[1] <= 1.0:
        raise InputError(f"{name}: got {given!r}, expected two rising shares in [0, 1]")
    return ends[0], ends[1]
