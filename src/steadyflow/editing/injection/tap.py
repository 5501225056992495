"""Hold of the attention inside a network while it runs: each attention of it asks a function for its answer.

Every attention module of diffusers and most others end in `torch.nn.functional.scaled_dot_product_attention`, after
norms, rotary embeddings, fused projections and LoRAs. A hook around each module opens a `TorchFunctionMode`, in whose
scope alone the call is seen: nothing is patched, no processor is exchanged, and other threads, networks and modules
are not touched.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ...errors import InputError

Kind = Literal["self", "cross", "joint"]

_ATTENTION = "scaled_dot_product_attention"
_BEFORE_IMAGE = ("Flux", "Qwen", "Cog", "AuraFlow", "Chroma", "Bria", "LongCat", "Ovis", "Krea", "EasyAnimate")
"""Networks, by the start of their class's name, that put the tokens of the prompt before those of the picture."""
_AFTER_IMAGE = ("SD3", "Hunyuan", "HiDream", "Mochi", "JoyImage", "Ernie", "Motif")
"""Those that put them after."""
_ASIDE = ("refiner", "context_embedder", "pooler", "caption", "text_model", "text_encoder")
"""Parts of a network whose attention is over the prompt alone."""


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

    def picture(self, call: Call, places: int | None) -> slice:
        """Which tokens of a call belong to the picture.

        Args:
            call: The call.
            places: How many tokens a picture is for this network; only joint attention has others beside them.
        """
        if self.kind != "joint":
            return slice(None)
        if places is None:
            raise InputError(f"method: which tokens of {self.name} belong to the picture is not known")
        return slice(call.q.shape[2] - places, None) if self.prompt_first else slice(0, places)


Answer = Callable[[Site, Call, int | None], Tensor]
"""What answers for an attention; the number is that of the picture's tokens, where it is known."""


def sites_of(network: nn.Module) -> list[Site]:
    """Find the attentions of a network, in the order in which they run.

    Args:
        network: A network of diffusers, or another whose attention modules have submodules `to_q` or `to_qkv`.

    Raises:
        InputError: There are none.
    """
    owner = type(network).__name__
    found: list[tuple[tuple[int, int], str, nn.Module, Kind]] = []
    modules = cast("Iterator[tuple[str, nn.Module]]", network.named_modules())
    for order, (name, module) in enumerate(modules):
        if any(part in name for part in _ASIDE) or not _attends(module):
            continue
        found.append(((_stage(name), order), name, module, _kind(owner, name, module)))
    if not found:
        raise InputError(
            f"method: {owner} has no attention to inject into; expected modules with `to_q`, `to_k` and `to_v`, as in "
            "the UNets and transformers of diffusers"
        )
    found.sort(key=lambda one: one[0])
    first = _prompt_first(owner, {kind for _, _, _, kind in found})
    return [Site(k, name, module, kind, first) for k, (_, name, module, kind) in enumerate(found)]


def _attends(module: nn.Module) -> bool:
    return hasattr(module, "to_q") or hasattr(module, "to_qkv") or hasattr(module, "to_qkv_mlp_proj")


def _stage(name: str) -> int:
    """Of a UNet's parts, which are not listed in the order in which they run."""
    return {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}.get(name.split(".")[0], 0)


def _kind(owner: str, name: str, module: nn.Module) -> Kind:
    if getattr(module, "add_k_proj", None) is not None and "Wan" not in owner:
        return "joint"
    if getattr(module, "is_cross_attention", False) or name.split(".")[-1] == "attn2":
        crosses = getattr(module, "is_cross_attention", None)
        dual = owner.startswith("SD3")  # whose second attention is over the picture alone
        return "self" if dual or crosses is False else "cross"
    joint = owner.startswith((*_BEFORE_IMAGE, *_AFTER_IMAGE))
    return "joint" if joint else "self"


def _prompt_first(owner: str, kinds: set[Kind]) -> bool:
    if owner.startswith(_BEFORE_IMAGE):
        return True
    if "joint" in kinds and not owner.startswith(_AFTER_IMAGE):
        raise InputError(
            f"method: in which order {owner} puts the tokens of the prompt and of the picture is not known, so that "
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
def tapped(sites: Sequence[Site], answer: Answer) -> Generator[None]:
    """Let a function answer for some attentions, wherever the network runs within.

    Args:
        sites: The attentions.
        answer: What answers.

    Raises:
        InputError: An attention ran without a call of torch's own, as under another backend, so that nothing was
            injected there.
    """
    listening: dict[int, list[_Listening]] = {site.number: [] for site in sites}
    places: list[int] = []  # of the picture; single streams are told by the double ones before them

    def opener(site: Site) -> Callable[..., None]:
        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            hidden = kwargs.get("hidden_states", args[0] if args else None)
            beside = kwargs.get("encoder_hidden_states", args[1] if len(args) > 1 else None)
            if site.kind == "joint" and isinstance(hidden, Tensor) and isinstance(beside, Tensor):
                places[:] = [hidden.shape[1]]
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
        for site in sites:
            handles.append(site.module.register_forward_pre_hook(opener(site), with_kwargs=True))
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
