"""Attention written out, in which an edit takes parts of its source's: oracles of `test_injection`.

A batch is made of blocks of n samples; `source` is the block that is taken from. Every map is made, and edited as
published.
"""

import torch
from diffusers.models.embeddings import apply_rotary_emb


def sharpened(network, scale=6.0):
    """The network with attention that is far from even, which random weights make it."""
    for name, weight in network.named_parameters():
        if name.endswith(("to_q.weight", "to_k.weight", "add_q_proj.weight", "add_k_proj.weight")):
            weight.mul_(scale)
    return network


def blocks_of(tensor, n):
    """The blocks of a batch, along a new first dimension; a view."""
    return tensor.view(-1, n, *tensor.shape[1:])


class Written:
    """A processor of UNets that makes all maps and lets `change` edit what it is made of.

    `change(name, q, k, v)` and `change_map(name, map)` get (B, heads, tokens, ...) and return it edited.
    """

    def __init__(self, name, change=None, change_map=None):
        self.name, self.change, self.change_map = name, change, change_map

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **rest):
        given = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        b = len(hidden_states)
        q, k, v = attn.to_q(hidden_states), attn.to_k(given), attn.to_v(given)
        q, k, v = (x.view(b, -1, attn.heads, x.shape[-1] // attn.heads).transpose(1, 2).clone() for x in (q, k, v))
        if self.change is not None and encoder_hidden_states is None:
            q, k, v = self.change(self.name, q, k, v)
        maps = attn.get_attention_scores(q.flatten(0, 1), k.flatten(0, 1)).view(b, attn.heads, q.shape[2], k.shape[2])
        if self.change_map is not None:
            maps = self.change_map(self.name, maps, encoder_hidden_states is not None)
        out = (maps @ v).transpose(1, 2).flatten(2)
        return attn.to_out[0](out)


def write_out(unet, change=None, change_map=None):
    """Give a UNet processors that write attention out."""
    unet.set_attn_processor({name: Written(name, change, change_map) for name in unet.attn_processors})


def aligned(source, target):
    """Needleman-Wunsch of two lists of tokens, gap 0, match 1, mismatch -1: for each token of the target, its partner.

    None stands for no partner.
    """
    rows, columns = len(source), len(target)
    score = torch.zeros(rows + 1, columns + 1)
    for i in range(1, rows + 1):
        for j in range(1, columns + 1):
            match = 1.0 if source[i - 1] == target[j - 1] else -1.0
            score[i, j] = max(score[i - 1, j], score[i, j - 1], score[i - 1, j - 1] + match)
    partner, i, j = [None] * columns, rows, columns
    while i and j:
        match = 1.0 if source[i - 1] == target[j - 1] else -1.0
        if score[i, j] == score[i - 1, j - 1] + match:
            partner[j - 1], i, j = i - 1, i - 1, j - 1
        elif score[i, j] == score[i, j - 1]:
            j -= 1
        else:
            i -= 1
    return partner


class Controller:
    """Prompt-to-prompt as published: whole maps of the branch under the condition, edited by words.

    `mapper` (source's tokens, target's) and `alphas` (target's tokens) are those of "refine"; with alphas of 1 it is
    "replace". `equalizer` is that of "reweight".
    """

    def __init__(self, n, source, target, mapper, alphas, equalizer, cross_steps, self_steps, coarse):
        self.n, self.source, self.target = n, source, target
        self.mapper, self.alphas, self.equalizer = mapper, alphas, equalizer
        self.cross_steps, self.self_steps, self.coarse = cross_steps, self_steps, coarse
        self.step = 0

    def __call__(self, name, maps, is_cross):
        maps = maps.clone()
        blocks = blocks_of(maps, self.n)
        if is_cross and self.step < self.cross_steps:
            replaced = torch.einsum("bhpw,wn->bhpn", blocks[self.source], self.mapper.to(maps))
            alphas = self.alphas.to(maps)
            blocks[self.target] = (alphas * replaced + (1 - alphas) * blocks[self.target]) * self.equalizer.to(maps)
        elif not is_cross and self.step < self.self_steps and maps.shape[2] <= self.coarse:
            blocks[self.target] = blocks[self.source]
        return maps


def joint_sd3(attn, hidden, context, change):
    """SD3's joint attention, written out: (picture, prompt). `change(q, k, v)` edits those of the picture."""
    b, n = hidden.shape[:2]

    def heads(x):
        return x.view(b, -1, attn.heads, x.shape[-1] // attn.heads).transpose(1, 2)

    own = change(*(heads(to(hidden)).clone() for to in (attn.to_q, attn.to_k, attn.to_v)))
    beside = [heads(to(context)) for to in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)]
    q, k, v = (torch.cat(pair, 2) for pair in zip(own, beside, strict=True))
    maps = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
    out = (maps @ v).transpose(1, 2).flatten(2)
    picture, prompt = attn.to_out[0](out[:, :n]), out[:, n:]
    return picture, prompt if attn.context_pre_only else attn.to_add_out(prompt)


class WrittenSD3:
    """A processor of SD3 by `joint_sd3`."""

    def __init__(self, change):
        self.change = change

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None):
        return joint_sd3(attn, hidden_states, encoder_hidden_states, self.change)


class WrittenFlux:
    """A processor of FLUX, of double and of single blocks; `change(q, k, v)` edits those of the picture."""

    _attention_backend = None
    _parallel_config = None

    def __init__(self, change, places):
        self.change, self.places = change, places

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, image_rotary_emb=None):
        b = len(hidden_states)

        def heads(x):
            return x.view(b, -1, attn.heads, attn.head_dim)

        q, k, v = (heads(to(hidden_states)) for to in (attn.to_q, attn.to_k, attn.to_v))
        q, k = attn.norm_q(q), attn.norm_k(k)
        if encoder_hidden_states is not None:
            aq, ak, av = (
                heads(to(encoder_hidden_states)) for to in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
            )
            aq, ak = attn.norm_added_q(aq), attn.norm_added_k(ak)
            q, k, v = torch.cat([aq, q], 1), torch.cat([ak, k], 1), torch.cat([av, v], 1)
        q, k = (apply_rotary_emb(x, image_rotary_emb, sequence_dim=1) for x in (q, k))
        q, k, v = (x.transpose(1, 2).clone() for x in (q, k, v))
        start = q.shape[2] - self.places
        own = self.change(*(x[:, :, start:].clone() for x in (q, k, v)))
        for whole, part in zip((q, k, v), own, strict=True):
            whole[:, :, start:] = part
        maps = (q @ k.transpose(-1, -2) / attn.head_dim**0.5).softmax(-1)
        out = (maps @ v).transpose(1, 2).flatten(2)
        if encoder_hidden_states is None:
            return out
        n = encoder_hidden_states.shape[1]
        return attn.to_out[0](out[:, n:]), attn.to_add_out(out[:, :n])
