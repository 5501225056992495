"""More eights from a model without a condition, by DRaFT-K (Clark et al. 2023, 2309.17400):

    python examples/finetune_digits.py [--last 4] [--rounds 30]

The reward is log p(8 | x) of a small network that was trained on real digits which the model has not seen. Each round
draws samples, the first steps without a gradient and the last K with one, which reaches low-rank changes of the
model's weights (LoRA, Hu et al. 2021). What is printed before and after: the share of eights among new samples,
by a support vector machine that was trained on other digits, and as a sign of collapse how far these eights are from
each other, relative to real ones.
"""

import argparse
import copy

import torch
from sklearn.svm import SVC
from torch import nn

import steadyflow as sf
from steadyflow.datasets import digits

EIGHT, STEPS, SEED = 8, 16, 10_000


class LowRank(nn.Module):
    """A linear layer with a change of its weights of low rank, which begins at 0."""

    def __init__(self, layer, rank):
        super().__init__()
        self.layer = layer
        self.down = nn.Parameter(torch.randn(rank, layer.in_features) / layer.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(layer.out_features, rank))

    def forward(self, x):
        return self.layer(x) + x @ self.down.T @ self.up.T


def with_low_rank(net, rank=8):
    """A copy of a network, of which only changes of low rank can be trained."""
    net = copy.deepcopy(net).requires_grad_(False)
    for block in net.blocks:
        block.up, block.down = LowRank(block.up, rank), LowRank(block.down, rank)
    return net


def classifier(images, labels, epochs):
    """A small network that tells digits."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 10))
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-2)
    for _ in range(epochs):
        loss = nn.functional.cross_entropy(net(images + 0.2 * torch.randn_like(images)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.requires_grad_(False)


def tune(model, reward, *, last, rounds, batch, rate=1e-3):
    """Train what can be trained of a model's network; gradients go through the last steps of the sampler only."""
    grid = sf.grids.make("quadratic", model.schedule, STEPS, clean=True)
    cut = STEPS - last
    head, tail = sf.Grid(grid.times[: cut + 1]), sf.Grid(grid.times[cut:], clean=True)
    trained = [parameter for parameter in model.net.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=rate)
    for k in range(rounds):
        with torch.no_grad():
            x = sf.sample(model, n=batch, index=k * batch, seed=SEED, solver="ddim", grid=head, end="path").x
        x = sf.sample(model, x=x, solver="ddim", grid=tail, adjoint="checkpoint").x
        loss = -reward(x).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if k % 10 == 0 or k == rounds - 1:
            print(f"  round {k}: reward {-loss.item():.2f}", flush=True)
    return model


def judged(model, n):
    """The share of eights among new samples, and their mean distance to each other over that of real eights."""
    with torch.no_grad():
        x = sf.sample(model, n=n, seed=1, solver="ddim", steps=STEPS).x
    images, labels = digits("train")
    judge = SVC(gamma="scale", C=10.0).fit(images.flatten(1).numpy(), labels.numpy())
    seen = torch.from_numpy(judge.predict(x.flatten(1).numpy())) == EIGHT
    apart = [torch.pdist(y.flatten(1)).mean().item() for y in (x[seen], images[labels == EIGHT])]
    return seen.double().mean().item(), apart[0] / apart[1]


def main(last=4, rounds=30, batch=64, n=1000, epochs=200, rate=1e-3):
    """Fine-tune, and say what came of it; returns the shares and the spreads before and after."""
    torch.manual_seed(0)
    net = classifier(*digits("held-out"), epochs)
    model = sf.load("digits")
    before = judged(model, n)
    tuned = sf.Denoiser(
        with_low_rank(model.net), model.schedule, prediction=model.prediction, shape=model.shape, classes=10, null=10
    )
    tune(tuned, lambda x: net(x).log_softmax(1)[:, EIGHT], last=last, rounds=rounds, batch=batch, rate=rate)
    after = judged(tuned, n)
    for name, (share, spread) in (("before", before), ("after", after)):
        print(f"{name}: {100 * share:.0f} % eights, {spread:.2f} of the distance between real ones")
    return before, after


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--last", type=int, default=4, choices=range(1, STEPS), help="K, the steps through which gradients go"
    )
    parser.add_argument("--rounds", type=int, default=30)
    given = parser.parse_args()
    main(given.last, given.rounds)
