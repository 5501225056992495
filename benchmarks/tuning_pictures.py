"""What tuned solvers mean for pictures: how many are recognised, and how far they are from fine ones and real ones.

    python benchmarks/tuning_pictures.py [--quick] [--only NAME ...] [--calls N ...] [--read FILE ...]

Pictures of digits, and of the bundled text-to-image pipeline "ink", all from the same starts at each number of calls:
by the solver that `sf.tune` fits on other starts, by the best plain solver on the best grid (the one of least median
distance on the first starts), and by diffusers' DDIM (trailing) and DPM-Solver++ 2M. The row "fine" is the fine
solution.

  recognised  the share that a judge trained on real pictures alone reads as what was asked for, with Wilson's interval:
              the support vector machine of steadyflow_lab.digits, and the network of steadyflow_lab.judge, which reads
              digit and ink
  Frechet     the Frechet distance to real pictures: over the 64 pixels of digits, and over the 96 features of that
              network for ink. It is no FID, and depends on the number of pictures, which is the same in all rows; the
              interval is 1.96 bootstrap standard deviations to each side
  to fine     the median root mean square distance to the fine picture from the same start, in pixels of [-1, 1], with
              a bootstrap interval

Every figure goes to a CSV file, from which --read prints the tables again; it takes several files.
"""

import argparse
import csv
import sys
from pathlib import Path

import torch
from peers import diffusers_samplers
from tuning import best, plain, tuned
from tuning_problems import problems, prompts, read_rows

import steadyflow as sf
from steadyflow.datasets import digits
from steadyflow.datasets.ink import INKS, WORDS, ink
from steadyflow.metrics import frechet_distance, rmse
from steadyflow.metrics.statistics import wilson
from steadyflow.tuning import judging
from steadyflow_lab.digits import recognise
from steadyflow_lab.editing.ink import setting

BUDGETS = (4, 6, 8, 12)
SHOWN = {"digits w=1": 1000, "digits w=3": 1000, "ink w=3": 96}
"""The problems, and how many pictures."""
THEIRS = {"diffusers DDIM": "DDIM, trailing", "diffusers DPM-Solver++ 2M": "DPM++ 2M, linspace"}
REAL = 2000
RESAMPLES = 200
COLUMNS = (
    "problem", "calls", "method", "name", "n", "recognised", "recognised_low", "recognised_high",
    "frechet", "frechet_half", "to_fine", "to_fine_low", "to_fine_high",
)  # fmt: skip


class Digits:
    """How pictures of digits are seen."""

    def __init__(self, n):
        self.wanted = (7 * torch.arange(n) + 3) % 10
        self.real = torch.cat([digits(part)[0] for part in ("train", "held-out")]).flatten(1)

    def pictures(self, x):
        """The pictures themselves."""
        return x.float().clamp(-1.0, 1.0)

    def right(self, pictures):
        """Which are recognised."""
        return recognise(pictures) == self.wanted

    def features(self, pictures):
        """The pixels."""
        return pictures.flatten(1)


class Ink:
    """How pictures of the pipeline are seen."""

    def __init__(self, n):
        known = prompts("judge")
        asked = [known[k % len(known)].split() for k in range(n)]
        self.model, self.judge = setting()
        self.digit = torch.tensor([next(WORDS.index(w) for w in words if w in WORDS) for words in asked])
        inks = [next((list(INKS).index(w) for w in words if w in INKS), -1) for words in asked]
        self.ink = torch.tensor(inks)
        self.real = self.judge.features(ink("held-out", REAL, torch.Generator().manual_seed(0)).images)

    def pictures(self, x):
        """The decoded pictures."""
        return torch.cat([self.model.decode(part.float()) for part in x.split(32)]).clamp(-1.0, 1.0)

    def right(self, pictures):
        """Which are recognised: the digit, and the ink where the prompt names one."""
        digit, colour = (part.argmax(1) for part in self.judge.read(pictures))
        return (digit == self.digit) & ((colour == self.ink) | (self.ink < 0))

    def features(self, pictures):
        """The features that the judge reads."""
        return self.judge.features(pictures)


def seen(eye, pictures, fine):
    """The figures of some pictures."""
    right = wilson(int(eye.right(pictures).sum()), len(pictures))
    features, generator = eye.features(pictures), torch.Generator().manual_seed(0)
    draws = [torch.randint(len(pictures), (len(pictures),), generator=generator) for _ in range(RESAMPLES)]
    spread = torch.tensor([frechet_distance(features[drawn], eye.real) for drawn in draws]).std().item()
    far = rmse(pictures, fine).double()
    low, high = torch.stack([far[drawn].median() for drawn in draws]).quantile(torch.tensor([0.025, 0.975]).double())
    return {
        "n": len(pictures),
        "recognised": right.value,
        "recognised_low": right.low,
        "recognised_high": right.high,
        "frechet": frechet_distance(features, eye.real),
        "frechet_half": 1.96 * spread,
        "to_fine": far.median().item(),
        "to_fine_low": low.item(),
        "to_fine_high": high.item(),
    }


def measured(problem, n, options):
    """The rows of a problem."""
    if options.fine_calls:
        problem = problem._replace(fine=(*problem.fine[:2], options.fine_calls))
    model, start, end = problem.solved(n, "judge")
    eye = (Ink if "ink" in problem.name else Digits)(n)
    fine = eye.pictures(end)
    solver, grid, calls = problem.fine
    yield {
        "problem": problem.name, "calls": calls, "method": "fine", "name": f"{solver} on {grid}",
        **seen(eye, fine, fine),
    }  # fmt: skip
    for calls in options.calls:
        row = {"problem": problem.name, "calls": calls}
        ours, _ = tuned(problem, options.fit_rows, options.verdict_rows, calls, options)
        found = ours.at(calls).verdict
        note = "" if found is None or found.won else f"refused, {found.plain} is used"
        x = sf.sample(model, x=start, solver=ours, nfe=calls, progress=False).x
        yield {**row, "method": "tuned", "name": note, **seen(eye, eye.pictures(x), fine)}
        first = min(options.choose, n)
        runs = plain(model.schedule, calls, options)
        errors, _ = best(runs, model.slice(0, first), start[:first], end[:first], min(16, first))
        name = min(errors, key=lambda one: judging.median(errors[one]))
        yield {**row, "method": "plain", "name": name, **seen(eye, eye.pictures(runs[name](model, start)), fine)}
        theirs = diffusers_samplers(model.schedule, calls)
        for label, one in THEIRS.items():
            if one in theirs:
                x = theirs[one](model, start)
                yield {**row, "method": label, "name": "", **seen(eye, eye.pictures(x), fine)}


def show(rows):
    """Print the tables."""
    for problem in dict.fromkeys(row["problem"] for row in rows):
        own = [row for row in rows if row["problem"] == problem]
        over = "64 pixels" if "digits" in problem else "96 features"
        print(f"\n{problem}, {own[0]['n']} pictures; Frechet distance over {over}")
        for row in own:
            print(line(row))


def line(row):
    """A row as text."""
    value = {name: float(row[name]) for name in COLUMNS[5:]}
    return (
        f"  {int(row['calls']):>4} {row['method']:<26}"
        "recognised {recognised:.3f} [{recognised_low:.3f}, {recognised_high:.3f}]  "
        "Frechet {frechet:.3f} +- {frechet_half:.3f}  "
        "to fine {to_fine:.4f} [{to_fine_low:.4f}, {to_fine_high:.4f}]".format(**value)
        + (f"  ({row['name']})" if row["name"] else "")
    )


def main():
    """Run, or read what was measured."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="fewer pictures and budgets")
    parser.add_argument("--only", nargs="+", help="parts of the names of problems")
    parser.add_argument("--calls", nargs="+", type=int, help=f"the budgets; {BUDGETS} by default")
    parser.add_argument("--rows", type=int, help=f"how many pictures; {SHOWN} by default")
    parser.add_argument("--solvers", nargs="+", help="the plain solvers; all by default")
    parser.add_argument("--fit-rows", type=int, default=128, help="starts to fit on")
    parser.add_argument("--verdict-rows", type=int, default=64, help="starts that the tune itself decides on")
    parser.add_argument("--choose", type=int, default=64, help="starts on which the best plain solver is chosen")
    parser.add_argument("--fine", type=int, default=200, help="calls of the fine solves of the fit")
    parser.add_argument("--fine-calls", type=int, help="calls of the fine pictures; the problem's own by default")
    parser.add_argument("--minutes", type=float, help="the most for one fit")
    parser.add_argument("--batch", type=int, default=64, help="starts that are computed together in a fit")
    parser.add_argument("--out", default="benchmarks/tuning_pictures.csv")
    parser.add_argument("--read", nargs="+", help="print the tables of these files")
    options = parser.parse_args()
    if options.read:
        show(read_rows(options.read, options.only))
        return
    options.calls = options.calls or ((4, 8) if options.quick else BUDGETS)
    rows = []
    with Path(options.out).open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for problem in problems(False):
            if problem.name in SHOWN and any(part in problem.name for part in options.only or [""]):
                n = options.rows or SHOWN[problem.name]
                for row in measured(problem, n // 8 if options.quick else n, options):
                    writer.writerow(row)
                    file.flush()
                    rows.append(row)
                    print(line(row), file=sys.stderr, flush=True)
    show(rows)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    main()
