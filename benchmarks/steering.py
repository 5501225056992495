"""What steering reaches, at which cost, and how far it leaves the data:  python benchmarks/steering.py [--quick]

Two models: an exact mixture of 12 modes in 16 dimensions with two labels, and the bundled digits, unconditional.
Rewards: "label", the exact log p(label 1 | x) of the mixture; "linear", a direction in it, which has no largest value;
"target", -|x - y|^2 / 2 to samples y of the same model; and on the digits "eight", log p(8 | x) of a small network that
was trained on real held-out digits. What is judged:

- the mean reward of the best round within so many model evaluations per sample, those that an adjoint repeats included;
- the noise: how far its norm is from that of a Gaussian, and its divergence from one in nats per number;
- the data: for the mixture, the distance to the nearest mode in those of exact samples (1 is typical); for digits, that
  to the nearest real training digit in those of held-out digits, and, as what the reward did not see, the share that a
  support vector machine, trained on other real digits, takes for an eight.

A round of "zero-order" makes 17 runs (8 pairs and the point itself), of "gradient" one run and the way back through it,
of "flowopt" one run.
"""

import argparse
import copy

import torch

import steadyflow as sf
from steadyflow.datasets import digits
from steadyflow_lab.digits import nearest, recognise

NFE = 8
METHODS = {"gradient": {}, "zero-order": {}, "flowopt": {}}
GUARDS = {"none": "none", "norm": "norm", "regular": "regular"}
EIGHT = 8


class Mixture:
    """The exact mixture, and how its samples are judged."""

    def __init__(self):
        plain = sf.GaussianMixture.farthest_points(12, 16, std=0.3)
        self.mixture = sf.GaussianMixture(plain.means, 0.3, labels=torch.arange(12) % 2)
        self.model = self.mixture.denoiser(sf.RectifiedFlow())
        self.usual = self.off(self.mixture.sample(2000, seed=3)).median()
        self.way = torch.linspace(-1.0, 1.0, 16, dtype=torch.float64)
        self.targets = self.mixture.sample(64, seed=5)

    def off(self, x):
        """The distance to the nearest mode."""
        return torch.cdist(x.double(), self.mixture.means).min(1).values

    def judged(self, x):
        """In distances of exact samples, and nothing else."""
        return self.off(x).median() / self.usual, None

    def rewards(self):
        """By name."""
        means, labels = self.mixture.means, self.mixture.labels

        def label(x):
            near = -(x.double()[:, None] - means).square().sum(2) / (2 * 0.3**2)
            return near[:, labels == 1].logsumexp(1) - near.logsumexp(1)

        return {
            "label": label,
            "linear": lambda x: x.double() @ self.way,
            "target": lambda x: -(x - self.targets[: len(x)]).square().sum(1) / 2,
        }


class Digits:
    """The bundled digits without a condition, and how they are judged."""

    def __init__(self):
        self.model = sf.load("digits")
        self.train = digits("train")[0]
        self.images, self.labels = digits("held-out")
        self.usual = nearest(self.images, self.train).median()
        self.targets = sf.sample(self.model, n=64, nfe=NFE, seed=77).x

    def judged(self, x):
        """In distances of held-out digits, and the share of eights."""
        return nearest(x, self.train).median() / self.usual, (recognise(x) == EIGHT).double().mean()

    def rewards(self):
        """By name."""
        net = classifier(self.images, self.labels)
        return {
            "eight": lambda x: net(x).log_softmax(1)[:, EIGHT],
            "target": lambda x: -(x - self.targets[: len(x)]).square().flatten(1).sum(1) / 2,
        }


def classifier(images, labels, *, seed=0, epochs=200):
    """A small network that was trained to tell real digits."""
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(seed)
        layers = torch.nn.Linear(64, 64), torch.nn.SiLU(), torch.nn.Linear(64, 10)
        net = torch.nn.Sequential(torch.nn.Flatten(), *layers)
        optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-2)
        for _ in range(epochs):
            loss = torch.nn.functional.cross_entropy(net(images + 0.2 * torch.randn_like(images)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.requires_grad_(False).eval()


def reached(found, calls):
    """The mean over the samples of the best reward within so many evaluations per sample."""
    each = found.nfe / (found.rounds + 1)
    count = max(1, min(found.rounds + 1, int(calls / each)))
    return found.rewards[:count].amax(0).mean().item()


def row(bench, reward, n, rounds, **words):
    """One steering, and how it is judged."""
    dtype = torch.float64 if isinstance(bench, Mixture) else torch.float32
    return sf.steer(bench.model, reward, n=n, rounds=rounds, nfe=NFE, dtype=dtype, progress=False, **words)


def shown(bench, found, budgets):
    """The cells of a row."""
    far = {name: curve.gather(0, found.best[None])[0] for name, curve in found.distances.items()}
    off, share = bench.judged(found.x)
    cells = [f"{reached(found, calls):.2f}" for calls in budgets]
    cells += [f"{found.nfe}", f"{far['norm'].abs().mean():.3f}", f"{far['kl'].mean():.4f}", f"{off:.2f}"]
    return cells + ([] if share is None else [f"{share:.2f}"])


def table(name, bench, n, rounds, budgets, findings):
    """Methods and guards for every reward of a model."""
    for title, reward in bench.rewards().items():
        columns = [f"{calls} calls" for calls in budgets] + ["in all", "norm", "kl", "off"]
        columns += ["SVM: 8"] if isinstance(bench, Digits) else []
        print(f"\n{name}, reward {title!r}, {n} samples, {rounds} rounds, {NFE} calls a run")
        print("| method | guard | " + " | ".join(columns) + " |\n" + "|---" * (2 + len(columns)) + "|")
        plain = row(bench, reward, n, 0, guard="none")
        print("| plain sample | | " + " | ".join(shown(bench, plain, budgets)) + " |")
        for method, words in METHODS.items():
            for guard, kept in GUARDS.items():
                found = row(bench, reward, n, rounds, method=method, guard=kept, **words)
                print(f"| {method} | {guard} | " + " | ".join(shown(bench, found, budgets)) + " |", flush=True)
                findings[name, title, method, guard] = found, bench.judged(found.x)
        findings[name, title, "plain", ""] = plain, bench.judged(plain.x)


def rates(benches, n, rounds):
    """What the default rates were chosen by: the mean reward of the best round, less the plain one's."""
    tried = {
        ("gradient", "adam"): (0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
        ("gradient", "sgd"): (0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
        ("gradient", "plain"): (0.01, 0.1, 1.0),
        ("zero-order", "adam"): (0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
        ("flowopt", "plain"): (0.01, 0.03, 0.1, 0.3, 1.0),
        ("flowopt", "adam"): (0.02, 0.05, 0.1),
    }
    print(f"\nrates: gain in reward after {rounds} rounds, guard 'norm', {n} samples\n")
    for name, bench, title in benches:
        reward = bench.rewards()[title]
        plain = row(bench, reward, n, 0).reward.mean()
        for (method, optimizer), values in tried.items():
            gains = []
            for rate in values:
                found = row(bench, reward, n, rounds, method=method, optimizer=optimizer, rate=rate)
                gains.append(f"{rate:g}: {found.reward.mean() - plain:.2f}")
            print(f"{name}, {title!r}, {method} with {optimizer}: " + ", ".join(gains), flush=True)


def embeddings(n, rounds):
    """The same for embeddings of the digits model, of which its table of labels is taken out: null-text inversion."""
    model = sf.load("digits")
    net = copy.deepcopy(model.net)
    table, net.label = net.label.weight.detach(), torch.nn.Identity()
    model = sf.Denoiser(net, model.schedule, prediction=model.prediction, shape=model.shape, null=table[10:])
    source, labels = (part[:n] for part in digits("held-out"))
    model = model.with_condition(table[labels])
    latent = sf.invert(model, source, nfe=24).latent
    model = model.with_guidance(3.0)
    words = {"x": latent, "solver": "ees25", "nfe": 24, "rounds": rounds, "progress": False}

    def near(x):
        return -(x - source).square().flatten(1).mean(1)

    def error(found):
        return found.reward.neg().sqrt().mean().item()

    print(f"\nround trips at guidance 3, mean RMSE to the source after {rounds} rounds, {n} digits\n")
    print(f"before: {error(sf.steer(model, near, **{**words, 'rounds': 0})):.3f}")
    for over in ("null", "condition", "noise"):
        told = [f"{rate:g}: {error(sf.steer(model, near, over=over, rate=rate, **words)):.3f}"
                for rate in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)]  # fmt: skip
        print(f"{over}: " + ", ".join(told), flush=True)


def conclusions(findings):
    """What the numbers say, computed from them."""
    print("\nfindings")
    keys = sorted({(name, title) for name, title, *_ in findings})
    for name, title in keys:
        cases = {(m, g): found for (a, b, m, g), found in findings.items() if (a, b) == (name, title)}
        plain = cases.pop(("plain", ""))
        best = max(cases, key=lambda case: cases[case][0].reward.mean().item())
        near = [case for case, (_, (off, _)) in cases.items() if off <= 1.25 * max(1.0, float(plain[1][0]))]
        held = max(near, key=lambda case: cases[case][0].reward.mean().item()) if near else None
        print(
            f"- {name}, {title!r}: from {plain[0].reward.mean():.2f}, the most is {cases[best][0].reward.mean():.2f} "
            f"({best[0]}, guard {best[1]}, off {cases[best][1][0]:.2f})"
            + (f"; among those within 1.25 of the plain samples' distance to the data, "
               f"{cases[held][0].reward.mean():.2f} ({held[0]}, guard {held[1]})" if held else
               "; none stays within 1.25 of the plain samples' distance to the data")
        )  # fmt: skip
    for guard in GUARDS:
        far = [found.distances["kl"].gather(0, found.best[None])[0].mean().item()
               for (*_, m, g), (found, _) in findings.items() if g == guard and m != "plain"]  # fmt: skip
        gain = [(found.reward - found.rewards[0]).mean().item()
                for (*_, m, g), (found, _) in findings.items() if g == guard and m == "gradient"]  # fmt: skip
        gains = ", ".join(f"{value:.2f}" for value in gain)
        print(f"- guard {guard}: kl of the noise at most {max(far):.3f}; gains by gradient {gains}")


def main():
    """Run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="fewer samples and rounds")
    options = parser.parse_args()
    torch.set_num_threads(1)
    n, rounds = (8, 12) if options.quick else (32, 50)
    budgets = (100, 400, 1600) if options.quick else (100, 400, 1600, 6400)
    mixture, images = Mixture(), Digits()
    findings = {}
    table("mixture", mixture, n, rounds, budgets, findings)
    table("digits", images, n, rounds, budgets, findings)
    if not options.quick:
        rates([("mixture", mixture, "linear"), ("mixture", mixture, "target"), ("digits", images, "eight")], 8, 30)
        embeddings(8, 30)
    conclusions(findings)


if __name__ == "__main__":
    main()
