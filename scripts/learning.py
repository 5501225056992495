"""What the training scripts of the pipelines share: learning with checkpoints, and a tokenizer of whole words."""

import copy
import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers
from torch import Tensor, nn
from transformers import CLIPTokenizer, T5Tokenizer


def learn(
    work: Path,
    name: str,
    parts: nn.ModuleList,
    loss: Callable[[nn.ModuleList, torch.Generator], Tensor],
    steps: int,
    lr: float,
    *,
    seed: int = 0,
    every: int = 250,
    reading: bool = False,
) -> nn.ModuleList:
    """AdamW with a cosine decay: the averaged parts. What is finished lies in `work`, and is not done again.

    A step draws its random numbers from a generator of its own, so that training which was stopped goes on from its
    last checkpoint as if it had not been.

    Args:
        work: The folder of what is done.
        name: What is learned.
        parts: The networks.
        loss: Of the networks and a source of random numbers.
        steps: How many.
        lr: The largest rate.
        seed: Of all steps.
        every: Steps between checkpoints.
        reading: Whether parts without a checkpoint are an error, rather than learned.
    """
    done, going = work / f"{name}.safetensors", work / f"{name}.checkpoint.pt"
    averaged = copy.deepcopy(parts).eval().requires_grad_(False)
    if done.is_file():
        averaged.load_state_dict(load_file(done))
        return averaged
    optimizer = torch.optim.AdamW(parts.parameters(), lr=lr, weight_decay=0.01)
    decay = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.05)
    first = 1
    if going.is_file():
        held = torch.load(going, weights_only=True)
        parts.load_state_dict(held["parts"])
        averaged.load_state_dict(held["averaged"])
        optimizer.load_state_dict(held["optimizer"])
        decay.load_state_dict(held["decay"])
        first = held["step"] + 1
    total, since = 0.0, time.monotonic()
    for step in range(first, steps + 1):
        value = loss(parts, torch.Generator().manual_seed(seed * 1_000_003 + step))
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
        optimizer.step()
        decay.step()
        with torch.no_grad():
            share = 1.0 - min(0.999, step / (step + 10.0))
            torch._foreach_lerp_(list(averaged.parameters()), list(parts.parameters()), share)
            for mean, new in zip(averaged.buffers(), parts.buffers(), strict=True):
                mean.copy_(new)
        total += value.item()
        if step % every == 0:
            print(f"{name} step {step:6d}  loss {total / every:.5f}  {time.monotonic() - since:.0f} s", flush=True)
            total = 0.0
            held = {"parts": parts.state_dict(), "averaged": averaged.state_dict(), "step": step}
            torch.save(held | {"optimizer": optimizer.state_dict(), "decay": decay.state_dict()}, f"{going}.new")
            Path(f"{going}.new").replace(going)
    save_file({name: value.clone().contiguous() for name, value in averaged.state_dict().items()}, done)  # tied too
    going.unlink(missing_ok=True)
    return averaged


def captions(
    facts: Tensor,
    caption: Callable[..., str],
    much: Sequence[int],
    digit: int,
    left_out: float,
    generator: torch.Generator,
) -> tuple[list[str], Tensor]:
    """Captions, and of every fact what they say; how many there are of its kind where they say nothing.

    One in ten is empty, two in ten leave out what they like but for the first fact.

    Args:
        facts: What is shown, (n, facts): which digit, and all else.
        caption: Of one row of facts, in which None is left out.
        much: How many there are of each kind of fact.
        digit: How many facts are about the digit, which captions of no digit do not have.
        left_out: How often a fact is left out where some are.
        generator: The source of random numbers.
    """
    n, kinds_of = facts.shape
    kinds, left = torch.rand(n, generator=generator), torch.rand(n, kinds_of - 1, generator=generator) < left_out
    told, said = [], []
    for kind, row, without in zip(kinds.tolist(), facts.tolist(), left.tolist(), strict=True):
        rest = [None if kind < 0.3 and gone else value for value, gone in zip(row[1:], without, strict=True)]
        told.append("" if kind < 0.1 else caption(row[0], *rest))
        heard: list[int | None] = [None] * kinds_of if kind < 0.1 else [row[0], *rest]
        if row[0] == much[0] - 1:  # the last kind of digit is that there is none
            heard[1:digit] = [None] * (digit - 1)
        said.append([count if value is None else value for value, count in zip(heard, much, strict=True)])
    return told, torch.tensor(said)


def tokenizer(words: Iterable[str], length: int) -> CLIPTokenizer:
    """Every one of the words is one token, as are single characters of other words.

    Args:
        words: Those of the captions.
        length: Tokens to a prompt.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    merges: list[tuple[str, str]] = []

    def made() -> CLIPTokenizer:
        vocabulary = {token: k for k, token in enumerate(dict.fromkeys(tokens))}
        return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=length)

    for word in sorted(set(words)):  # one by one, as the merges of a word may cut another in its middle
        pieces = made().tokenize(word)
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces = ["".join(pieces[:2]), *pieces[2:]]
            tokens.append(pieces[0])
    whole = made()
    apart = [word for word in set(words) if len(whole.tokenize(word)) != 1]
    if apart:
        raise ValueError(f"these words are no single tokens: {apart}")
    return whole


def whole_words(words: Iterable[str], length: int) -> T5Tokenizer:
    """T5's tokenizer, in which every one of the words is one token, as are single characters of other words.

    Args:
        words: Those of the captions.
        length: Tokens to a prompt.
    """
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), ("\u2581", -5.0)]
    pieces += [(f"\u2581{word}", -1.0) for word in sorted(set(words))]
    return T5Tokenizer(vocab=[*pieces, *((chr(c), -6.0) for c in range(33, 127))], extra_ids=0, model_max_length=length)


def for_transformers_4(folder: Path, number: str = "") -> None:
    """Add a tokenizer's files and name a CLIP encoder's weights as transformers 4 does; 5 reads both.

    Args:
        folder: The pipeline's.
        number: What the names of the tokenizer and of the encoder end with, such as "_2".
    """
    words = folder / f"tokenizer{number}"
    model = json.loads((words / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (words / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False) + "\n", encoding="utf-8")
    merges = "".join(f"{' '.join(pair)}\n" for pair in model["merges"])
    (words / "merges.txt").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")
    file = folder / f"text_encoder{number}" / "model.safetensors"
    weights = {
        name if name.startswith(("text_model.", "text_projection.")) else f"text_model.{name}": value
        for name, value in load_file(file).items()
    }
    save_file(weights, file, {"format": "pt"})
