"""Training of the small models: denoising score matching with an exponential moving average of the weights."""

import copy
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from .._internal import files
from .._internal.tensors import broadcast
from ..denoisers.base import Denoiser
from ..errors import MALFORMED, CorruptFileError
from ..prediction import PredictionType

_TARGETS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "epsilon": lambda x0, eps, alpha, sigma: eps,
    "sample": lambda x0, eps, alpha, sigma: x0,
    "v_prediction": lambda x0, eps, alpha, sigma: alpha * eps - sigma * x0,
    "flow": lambda x0, eps, alpha, sigma: eps - x0,
}


def target(kind: PredictionType, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """What a network of a kind should predict. All shapes broadcast to (B, ...).

    Args:
        kind: The type of the prediction.
        x0: The clean samples.
        eps: The noise.
        alpha: The scale of the samples at their times.
        sigma: The scale of the noise at their times.

    Raises:
        KeyError: There is no training for this type.
    """
    return _TARGETS[kind](x0, eps, alpha, sigma)


def train(
    model: Denoiser,
    batch: Callable[[torch.Generator], tuple[Tensor, Tensor | None]],
    *,
    steps: int,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    label_dropout: float = 0.1,
    average: float = 0.999,
    last_lr: float | None = None,
    seed: int = 0,
    report: Callable[[int, float], None] | None = None,
    every: int = 500,
    checkpoint: str | Path | None = None,
    snapshot: Callable[[int, nn.Module], None] | None = None,
) -> nn.Module:
    """Train a model's network in place, with AdamW and a gradient clip of 1.

    The loss is the mean square of the prediction's error at times uniform in the schedule's range, stratified over the
    batch.

    Args:
        model: The model, whose network is a torch module.
        batch: Draws a batch from a generator: samples x0 of shape (B, ...), and labels of shape (B,) or None.
        steps: The number of steps.
        lr: The learning rate of the first step.
        weight_decay: That of AdamW.
        label_dropout: The share of labels that are replaced by the model's null label, for guidance.
        average: The moving average of the weights forgets at the rate 1 - `average`; 0 is no average.
        last_lr: Where the learning rate ends, falling linearly; by default it falls to zero as a cosine.
        seed: Of the batches, the times, the noise and the dropout.
        report: Called as report(step, mean loss since the last report).
        every: The number of steps between reports, snapshots and checkpoints.
        checkpoint: A file for the state of the training, from which the same call goes on.
        snapshot: Called as snapshot(step, averaged network).

    Returns:
        The averaged network.

    Raises:
        TypeError: The network is not a torch module, or labels need a null label and the model has none.
        CorruptFileError: The checkpoint is damaged or belongs to another training.
    """
    net = model.net
    if not isinstance(net, nn.Module):
        raise TypeError("train: the denoiser's net must be a torch module")
    generator = torch.Generator().manual_seed(seed)
    averaged = copy.deepcopy(net).eval()
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=weight_decay)
    ratio = None if last_lr is None else last_lr / lr

    def factor(k: int) -> float:
        """The learning rate of step k over that of the first."""
        return 0.5 * (1 + math.cos(math.pi * k / steps)) if ratio is None else 1.0 + (ratio - 1.0) * k / steps

    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    low, high = model.schedule.t_range
    net.train()
    total, first = 0.0, 0
    if checkpoint is not None and Path(checkpoint).is_file():
        first = _resume(checkpoint, net, averaged, optimizer, generator)
        decay.last_epoch = first  # a step of the decay before one of the optimizer would warn
        for group in optimizer.param_groups:
            group["lr"] = lr * factor(first)
    for step in range(first + 1, steps + 1):
        x0, labels = batch(generator)
        n = len(x0)
        t = low + (high - low) * (torch.arange(n) + torch.rand(n, generator=generator)) / n
        t = t[torch.randperm(n, generator=generator)]
        if labels is not None:
            dropped = torch.rand(n, generator=generator) < label_dropout
            if not isinstance(model.null, int | Tensor):
                raise TypeError("train: labels need a model with a null label, Denoiser(null=...)")
            labels = labels.masked_fill(dropped, int(model.null))
        eps = torch.randn(x0.shape, generator=generator)
        alpha, sigma = (broadcast(f(t.double()), x0) for f in (model.schedule.alpha, model.schedule.sigma))
        time = model.schedule.model_time(t) * model.time_scale
        noisy = alpha * x0 + sigma * eps
        output = net(noisy, time) if labels is None else net(noisy, time, labels)
        loss = (output - target(model.prediction, x0, eps, alpha, sigma)).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        decay.step()
        rate = min(average, step / (step + 10.0))
        with torch.no_grad():
            for mean, value in zip(averaged.parameters(), net.parameters(), strict=True):
                mean.lerp_(value, 1.0 - rate)
        total += loss.item()
        if step % every == 0:
            if report is not None:
                report(step, total / every)
            if snapshot is not None:
                snapshot(step, averaged)
            if checkpoint is not None:
                _save(checkpoint, step, net, averaged, optimizer, generator)
            total = 0.0
    return averaged


def _save(
    path: str | Path,
    step: int,
    net: nn.Module,
    averaged: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> None:
    """Write everything that is needed to go on with a training; the file is replaced whole or not at all."""
    tensors = {"generator": generator.get_state()}
    for part, module in (("net", net), ("averaged", averaged)):
        tensors |= {f"{part}.{name}": value for name, value in module.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": value for name, value in state.items()}
    files.write(path, "training", tensors, {"step": str(step)})


def _resume(
    path: str | Path,
    net: nn.Module,
    averaged: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> int:
    """Load what `_save` wrote, and return the number of steps done."""
    tensors, metadata = files.read(path, "training")
    try:
        generator.set_state(tensors["generator"])
        for part, module in (("net.", net), ("averaged.", averaged)):
            module.load_state_dict({k.removeprefix(part): v for k, v in tensors.items() if k.startswith(part)})
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, number, name = key.split(".", 2)
                moments.setdefault(int(number), {})[name] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
        return int(metadata["step"])
    except MALFORMED as error:
        raise CorruptFileError(f"{path}: not a checkpoint of this training ({error})") from error
