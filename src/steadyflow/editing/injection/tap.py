"""Hold of the attention inside a network while it runs: each attention of it asks a function for its answer.

Every attention module of diffusers and most others end in `torch.nn.functional.scaled_dot_product_attention`, after
norms, rotary embeddings, fused projections and LoRAs. A hook around each module opens a `TorchFunctionMode`, in whose
scope alone the call is seen: nothing is patched, no processor is exchanged, and other threads, networks and modules
are not touched.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ...errors import InputError

Kind = Literal["self", "cross", "joint"]

_ATTENTION = "scaled_dot_product_attention"
_BEFORE_IMAGE = (
    "FluxTransformer", "Flux2Transformer", "QwenImageTransformer", "CogVideoX", "CogView3Plus", "CogView4", "AuraFlow",
    "Chroma", "BriaTransformer", "BriaFiboTransformer", "LongCatImage", "OvisImage", "Krea2", "EasyAnimate", "GlmImage",
)  # fmt: skip
"""Networks, by the start of their class's name, that put the tokens of the prompt before those of the picture."""
_AFTER_IMAGE = ("SD3", "HunyuanVideo", "HunyuanImage", "HiDream", "Mochi", "ErnieImage", "MotifVideo")
"""Those that put them after."""
_ASIDE = ("refiner", "context_embedder", "pooler", "caption", "text_fusion", "text_model", "text_encoder")
"""Parts of a network whose attention is over the prompt alone."""
_CROSS = ("attn2", "cross", "_to_")
"""Parts of the names of attentions to something else, such as LTX-2's audio_attn2 and audio_to_video_attn."""
_HIDDEN = ("hidden_states", "norm_hidden_states")
_BESIDE = ("encoder_hidden_states", "norm_encoder_hidden_states")
"""What joint attention calls the tokens of the picture, and those of the prompt where they come apart from them."""
_PROMPTS = ("encoder_hidden_states", "cap_feats", "clip_text", "input_ids", "text_bth")
"""What networks call the prompt that they are given."""


class Call(NamedTuple):
    """What an attention is asked: softmax(q k^T scale + mask) v."""

    q: Tensor
    """(B, heads, n, d), as are k and v, which may have fewer heads."""
    k: Tensor
    v: Tensor
    mask: Tensor | None
    options: Mapping[str, Any]
    """The further arguments of torch's function, such as `scale`."""

    def answer(self) -> Tensor:
        """The attention itself, (B, heads, n, d)."""
        return functional.scaled_dot_product_attention(self.q, self.k, self.v, attn_mask=self.mask, **self.options)


@dataclass(frozen=True)
class Site:
    """One attention of a network."""

    number: int
    """In the order in which the network runs."""
    name: str
    module: nn.Module
    kind: Kind
    prompt_first: bool = False
    """Of joint attention: whether the tokens of the prompt come before those of the picture."""

    def picture(self, tokens: int, places: int | None) -> slice:
        """Which tokens of a call belong to the picture.

        Args:
            tokens: How many tokens there are.
            places: How many tokens a picture is for this network; only joint attention has others beside them.
        """
        if self.kind != "joint":
            return slice(None)
        if places is None:
            raise InputError(f"method: which tokens of {self.name} belong to the picture is not known")
        return slice(tokens - places, None) if self.prompt_first else slice(0, places)


Answer = Callable[[Site, Call, int | None], Tensor]
"""What answers for an attention; the number is that of the picture's tokens, where it is known."""


def sites_of(network: nn.Module) -> list[Site]:
    """Find the attentions of a network, in the order in which they run.

    Args:
        network: A network of diffusers, or another whose attention modules have submodules `to_q` or `to_qkv`.

    Raises:
        InputError: There are none.
    """
    owner = _owner(network)
    names = tuple(one.__name__ for one in type(owner).__mro__)
    found: list[tuple[tuple[int, int], str, nn.Module, Kind]] = []
    modules = cast("Iterator[tuple[str, nn.Module]]", network.named_modules())
    for order, (name, module) in enumerate(modules):
        if any(part in name for part in _ASIDE) or not _attends(module):
            continue
        found.append(((_stage(name), order), name, module, _kind(names, name, module)))
    if not found:
        raise InputError(
            f"method: {type(network).__name__} has no attention to inject into; expected modules with `to_q`, `to_k` "
            "and `to_v`, as in the UNets and transformers of diffusers"
        )
    found.sort(key=lambda one: one[0])
    first = _prompt_first(owner, names, {kind for _, _, _, kind in found})
    return [Site(k, name, module, kind, first) for k, (_, name, module, kind) in enumerate(found)]


def _owner(network: nn.Module) -> nn.Module:
    """The network of diffusers inside one of a user's own, or the network itself."""
    inside = (module for module in network.modules() if type(module).__module__.startswith("diffusers.models"))
    return next((module for module in inside if hasattr(module, "config")), network)


def _is(names: Sequence[str], starts: tuple[str, ...]) -> bool:
    """Whether a network is of some classes, or derived from one of them."""
    return any(name.startswith(starts) for name in names)


def _attends(module: nn.Module) -> bool:
    return hasattr(module, "to_q") or hasattr(module, "to_qkv") or hasattr(module, "to_qkv_mlp_proj")


_STAGES = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
"""A UNet's parts, which are not listed in the order in which they run."""


def _stage(name: str) -> int:
    return next((_STAGES[part] for part in name.split(".") if part in _STAGES), 0)


def has_levels(sites: Sequence[Site]) -> bool:
    """Whether attention is at several resolutions, as in UNets."""
    return any(part in _STAGES for site in sites for part in site.name.split("."))


def _kind(names: Sequence[str], name: str, module: nn.Module) -> Kind:
    called = any(part in name.split(".")[-1] for part in _CROSS)
    if getattr(module, "add_k_proj", None) is not None and not called:
        return "joint"
    crosses = getattr(module, "is_cross_attention", None)
    if crosses or called:
        dual = _is(names, ("SD3",))  # whose second attention is over the picture alone
        return "self" if dual or crosses is False else "cross"
    return "joint" if _is(names, (*_BEFORE_IMAGE, *_AFTER_IMAGE)) else "self"


def _prompt_first(owner: nn.Module, names: Sequence[str], kinds: set[Kind]) -> bool:
    if _is(names, _BEFORE_IMAGE):
        return True
    hidden = kinds == {"self"} and any(name in inspect.signature(owner.forward).parameters for name in _PROMPTS)
    if hidden or ("joint" in kinds and not _is(names, _AFTER_IMAGE)):
        raise InputError(
            f"method: in which order {names[0]} puts the tokens of the prompt and of the picture is not known, so that "
            "they cannot be told apart"
        )
    return False


def check_network(network: nn.Module) -> None:
    """Raise `InputError` for a network that was compiled, whose hooks would be passed over without a word."""
    compiled = hasattr(network, "_orig_mod") or any(
        getattr(module, "_compiled_call_impl", None) is not None for module in network.modules()
    )
    if compiled:
        raise InputError(
            "method: the network is compiled, so that nothing can be injected; use it before torch.compile"
        )


class _Listening(TorchFunctionMode):
    """Hands every attention in its scope to a function."""

    def __init__(self, site: Site, answer: Answer, places: int | None):
        super().__init__()
        self.site, self.reply, self.places, self.heard = site, answer, places, 0

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") != _ATTENTION:
            return func(*args, **(kwargs or {}))
        self.heard += 1
        return self.reply(self.site, _call(*args, **(kwargs or {})), self.places)


def _call(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *rest: Any, **options: Any
) -> Call:
    named = dict(zip(("dropout_p", "is_causal"), rest, strict=False))
    return Call(query, key, value, attn_mask, {**named, **options})


@contextmanager
def tapped(sites: Sequence[Site], chosen: Collection[int], answer: Answer) -> Generator[None]:
    """Let a function answer for some attentions, wherever the network runs within.

    Args:
        sites: All attentions of the network.
        chosen: The numbers of those for which the function answers.
        answer: What answers.

    Raises:
        InputError: An attention ran without a call of torch's own, as under another backend, so that nothing was
            injected there.
    """
    listening: dict[int, list[_Listening]] = {site.number: [] for site in sites}
    places: list[int] = []  # of the picture; single streams are told by the double ones before them

    def count(module: nn.Module, args: Any, kwargs: Any) -> None:
        given = {**dict(zip(inspect.signature(module.forward).parameters, args, strict=False)), **kwargs}
        hidden, beside = (next((given[n] for n in names if n in given), None) for names in (_HIDDEN, _BESIDE))
        if isinstance(hidden, Tensor) and isinstance(beside, Tensor):
            places[:] = [hidden.shape[1]]

    def opener(site: Site) -> Callable[..., None]:
        def enter(module: nn.Module, args: Any) -> None:
            mode = _Listening(site, answer, places[0] if places else None)
            mode.__enter__()
            listening[site.number].append(mode)

        return enter

    def closer(site: Site) -> Callable[..., None]:
        def leave(module: nn.Module, given: Any, output: Any = None) -> None:
            mode = listening[site.number].pop()
            cast(Any, mode).__exit__(None, None, None)
            if not mode.heard and output is not None:
                raise InputError(
                    f"method: {site.name} of the network ran without torch's scaled_dot_product_attention (another "
                    "attention backend, or a cache), so that nothing can be injected; switch it off"
                )

        return leave

    handles: list[Any] = []
    try:
        for site in sites if chosen else ():
            if site.kind == "joint":
                handles.append(site.module.register_forward_pre_hook(count, with_kwargs=True))
            if site.number not in chosen:
                continue
            handles.append(site.module.register_forward_pre_hook(opener(site)))
            handles.append(site.module.register_forward_hook(closer(site), always_call=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def replaced(modules: Sequence[nn.Module], change: Callable[[Tensor], Tensor]) -> Generator[None]:
    """Let a function change what some modules return, wherever the network runs within.

    Args:
        modules: The modules, which return a tensor.
        change: What it is replaced by.
    """

    def after(module: nn.Module, given: Any, output: Tensor) -> Tensor:
        return change(output)

    handles = [module.register_forward_hook(after) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
