"""What the ways of editing by injection have in common: the way up, and the way down beside the source."""

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

from ..._integrate import Correction, Solution, StepInfo, Trajectory, integrate
from ..._internal.given import number
from ...denoisers.base import Denoiser, is_words
from ...errors import InputError
from ...noise import SOURCES
from ...solvers.state import concat_states, slice_state
from ...tasks._batched import joined_trajectories
from ...tasks.inversion import Inversion, decode_options, run_inversion
from ..base import Edit, EditMethod, EditRequest, finished
from .calls import repeated
from .pair import Keep, Pair, Restoring, Storing, doubled, half, is_served, network_of
from .sharing import Features, Rule, Sharing
from .tap import Site, check_network, sites_of
from .words import Blend, Tokens, differing


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
            if not 0.0 < self.blend < 1.0:
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
        if request.inversion is not None:
            request = replace(request, source=source_of(request.inversion, request.target))
        if self.store or is_served(request.source):
            check_plain(request.source)
        size, n = options.batch_size, len(request.x)
        if size is None or size >= n:
            return self._edit(request)
        for model in (request.source, request.target):
            model.check_batch(n)
        parts = [self._edit(_part(request, start, min(start + size, n))) for start in range(0, n, size)]
        return _joined(parts, request.source)

    def _edit(self, request: EditRequest) -> Edit:
        options = request.options.changed(batch_size=None)
        sharing, source, target = self._shared(request), request.source, request.target
        inversion, spent = request.inversion, 0
        if self.store:
            sharing.times = options.rising(source).reversed().times
        if inversion is None:
            inversion = run_inversion(Storing.of(source, sharing) if self.store else source, request.x, options)
            inversion, spent = replace(inversion, model=source), inversion.nfe
        sharing.times = inversion.grid.reversed().times
        if self.store:
            seed, kind = inversion.seed or 0, SOURCES[inversion.noise or options.noise]
            sharing.order = repeated(inversion, target, lambda x: kind.of(x, seed, range(len(x))))
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
            words = differing(*tokens_of(request, "blend"))
            blend = Blend(words, self.blend, shape)
        sharing = Sharing(
            sites=sites,
            rules=self.rules(request, sites),
            times=(),
            places=math.prod(shape[1:]),
            features=self.features(network),
            blend=blend,
        )
        sharing.check()
        return sharing

    def _beside(self, request: EditRequest, inversion: Inversion, sharing: Sharing) -> Solution:
        """Generate beside the source's own way back."""
        options, n = request.options, len(inversion.latent)
        corrections: list[Correction] = []
        if sharing.blend is not None:
            corrections.append(Keep(sharing.blend.mask))
        if request.mask is not None:
            corrections.append(Keep(request.mask.to))
        pair = Pair.of(request.source, request.target, sharing)
        rows, kind = range(inversion.index, inversion.index + n), SOURCES[inversion.noise or options.noise]
        seed, both = inversion.seed or 0, torch.cat([inversion.latent] * 2)
        callback = options.callback
        if callback is not None:
            seen, own = callback, kind.of(inversion.latent, seed, rows)

            def outside(info: StepInfo) -> None:
                before, state = half(info.before, n), half(info.state, n)
                seen(info._replace(x=info.x[n:], model=request.target, noise=own, before=before, state=state))

            callback = outside
        found = integrate(
            pair,
            None,
            inversion.solver.way_back(pair.schedule, inversion.grid),
            inversion.solver,
            state=doubled(inversion.state),
            noise=kind.of(both, seed, [*rows, *rows]),
            corrections=corrections,
            callback=callback,
            record=options.record,
            progress=options.progress,
        )
        kept = found.trajectory
        kept = None if kept is None else Trajectory(kept.times, kept.x[:, n:])
        told = {"seed": inversion.seed, "noise": inversion.noise} if found.solver.properties.stochastic else {}
        return replace(found, state=half(found.state, n), trajectory=kept, index=inversion.index, **told)


def source_of(inversion: Inversion, target: Denoiser) -> Denoiser:
    """The model that leads an inversion back along its way up.

    Args:
        inversion: The inversion, which may have been read from a file.
        target: The model of the edit.
    """
    inversion.check_path(target)
    if inversion.model is not None:
        return inversion.model
    condition = inversion.condition
    plain = replace(target, condition=None, guidance=1.0, scale=None)
    return plain if condition is None else plain.with_condition(condition).with_guidance(inversion.guidance)


def check_plain(model: Denoiser) -> None:
    """Raise `InputError` for a source with guidance, where its branches cannot be told apart."""
    if model.guides and model.condition is not None:
        raise InputError(
            f"source_guidance: got {model.guidance}; what is stored, or taken inside a served pipeline, is that of one "
            "branch, so that the way up is without guidance; give 1.0"
        )


def tokens_of(request: EditRequest, name: str) -> tuple[Tokens, Tokens]:
    """The tokens of the source's prompt and of the target's."""
    if request.inversion is not None:
        raise InputError(f"{name}: needs the words of both prompts, and an inversion that is given has no words")
    source, target = request.prompts
    read = getattr(request.target, "tokens", None)
    if read is None or not is_words(target) or not (source is None or is_words(source)):
        raise InputError(
            f"{name}: needs the words of both prompts, and a pipeline that says which tokens they are "
            f"({request.target.name!r} does not, or the conditions are no prompts)"
        )
    return read("" if source is None else source), read(target)


def word_of(model: Denoiser, word: str) -> Sequence[int]:
    """The tokens of a word, without those that stand around every prompt. Raises `InputError` if it has none."""
    read = cast(Any, model).tokens
    empty, found = list(read("")[0]), list(read(word)[0])
    front = next((k for k, (a, b) in enumerate(zip(empty, found, strict=True)) if a != b), None)
    if front is None:
        raise InputError(f"emphasis: got {word!r}, which has no tokens")
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
        mask=mask[start:stop] if mask is not None and mask.ndim == request.x.ndim and len(mask) > 1 else mask,
        options=request.options.changed(index=request.options.index + start),
        inversion=inversion,
        prompts=cast(Any, prompts),
    )


def _joined(parts: Sequence[Edit], source: Denoiser) -> Edit:
    """One edit of successive batches, of a source under the conditions of them all."""
    inversions = [part.inversion for part in parts if part.inversion is not None]
    return replace(
        parts[0],
        state=concat_states([part.state for part in parts]),
        nfe=max(part.nfe for part in parts),
        distance=torch.cat([part.distance for part in parts]),
        trajectory=joined_trajectories([part.trajectory for part in parts]),
        inversion=replace(Inversion.concatenate(inversions), condition=source.condition, model=source),
    )
