"""Training of the small bundled models: denoising score matching with an exponential moving average."""

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
    """What a network of this kind should answer, shapes all broadcasting to (B, ...)."""
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
    """Train `model.net` on batches of (x0, labels or None) and return the averaged network.

    The loss is the mean square of the prediction's error at times uniform in the schedule's range, stratified
    over the batch. Adam with a gradient clip of 1, and a cosine decay to zero, or a linear one to `last_lr`. The
    average of the weights forgets at the rate 1 - `average`; 0 is no average. Every `every` steps `report(step, loss)`
    and `snapshot(step, averaged network)` are called and the run's state written to `checkpoint`, from which the same
    call goes on.
    """
    net = model.net
    if not isinstance(net, nn.Module):
        raise TypeError("train: the denoiser's net must be a torch module")
    generator = torch.Generator().manual_seed(seed)
    averaged = copy.deepcopy(net).eval()
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=weight_decay)
    ratio = None if last_lr is None else last_lr / lr
    decay = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda k: 0.5 * (1 + math.cos(math.pi * k / steps)) if ratio is None else 1.0 + (ratio - 1.0) * k / steps,
    )
    low, high = model.schedule.t_range
    net.train()
    total, first = 0.0, 0
    if checkpoint is not None and Path(checkpoint).is_file():
        first = _resume(checkpoint, net, averaged, optimizer, generator)
        decay.last_epoch = first - 1
        decay.step()
    for step in range(first + 1, steps + 1):
        x0, labels = batch(generator)
        n = len(x0)
        t = low + (high - low) * (torch.arange(n) + torch.rand(n, generator=generator)) / n
        t = t[torch.randperm(n, generator=generator)]
        if labels is not None:
            dropped = torch.rand(n, generator=generator) < label_dropout
            labels = labels.masked_fill(dropped, int(model.null))  # type: ignore[arg-type]
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
                _keep(checkpoint, step, net, averaged, optimizer, generator)
            total = 0.0
    return averaged


def _keep(
    path: str | Path,
    step: int,
    net: nn.Module,
    averaged: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> None:
    """Write everything that training goes on from, atomically."""
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
    """Take up what `_keep` wrote; the number of steps done."""
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
