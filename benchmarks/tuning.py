"""Tuned solvers beside all plain ones and beside other libraries' samplers, on the same starts.

    python benchmarks/tuning.py [--quick] [--only NAME ...] [--calls N ...] [--round-trips] [--read FILE ...]

The problems and their fine solutions are those of tuning_problems.py. A solver is fitted on the starts of the part
"fit" and everything is compared on those of the part "judge", with other latents and other classes or prompts. An error
is the root mean square distance of one endpoint to the fine one from the same start. At each number of calls come

  tuned        what `sf.tune` returned; where its own verdict refused the fit, the row says which plain solver is used,
               and the row "fit" has what the fit would have reached
  plain        every registered deterministic solver on every named grid
  diffusers    its deterministic schedulers, with every spacing that they have
  k-diffusion  its deterministic samplers, with every spacing that it has

with median (mean) [95th percentile]. Of the last three each figure is the least of any candidate, chosen on these very
starts: all run on a few of them, and those whose median or mean is within twice the least there on all. A gain is the
best candidate's figure over the tuned solver's, with a paired 95 % bootstrap interval.

Round trips are from held-out data to noise and back, at the same number of calls each way; the fit is on training data.
"plain" are the solvers that invert approximately. "latents" are the median distances of the latents from fine ones,
"edits" those of edits under guidance from fine edits. Those "from EES" begin as EES25 or EES27, with these alone.

Every figure goes to a CSV file, from which --read prints the tables again; it takes several files.
"""

import argparse
import csv
import sys
import time
from pathlib import Path

import torch
from peers import LEFT_OUT, diffusers_samplers, k_diffusion_samplers, k_diffusion_sampling
from tuning_problems import left_out, problems, read_rows

import steadyflow as sf
from steadyflow import solvers
from steadyflow.datasets import digits
from steadyflow.metrics import rmse
from steadyflow.tuning import judging
from steadyflow_lab import models
from steadyflow_lab.datasets.faces import faces

BUDGETS = (5, 8, 12, 20)
EACH_WAY = (8, 12)
FEW, NEAR = 16, 2.0
ROWS = {"mixture": (1024, 2048), "modes": (1024, 2048), "digits": (256, 256), "faces": (96, 96), "ink": (32, 32)}
"""Starts to fit on and to judge on, by a part of the problem's name."""
GUIDANCE = 3.0
FIGURES = ("median", "mean", "p95")
GAINS = ("gain_median", "median_low", "median_high", "gain_mean", "mean_low", "mean_high")
COLUMNS = (
    "problem", "learned", "calls", "kind", "rows", "of_median", "of_mean", *FIGURES, *GAINS,
    "beside", "plain_beside", "seconds", "evaluations", "note",
)  # fmt: skip
AGAINST = ("plain", "diffusers", "k-diffusion")
WANTED = {5: 2.0, 8: 3.0, 12: 3.0, 20: 3.0}
WANTED_MEAN, WANTED_EXACT, WANTED_OTHERS = 2.0, 10.0, 4.0


def rows_of(problem, options):
    """How many starts to fit on and to judge on."""
    n, m = next((sizes for part, sizes in ROWS.items() if part in problem.name), problem.rows)
    if options.quick:
        n, m = max(16, n // 8), max(16, m // 8)
    return min(n, options.fit_rows or n), min(m, options.judge_rows or m)


def tuned(problem, n, m, calls, options):
    """What sf.tune makes of a problem, with the seconds of the processor.

    Args:
        problem: The problem.
        n: How many starts to fit on.
        m: How many of the others its own verdict is on.
        calls: The number of calls.
        options: Those of the command line.
    """
    first = n + max(8, n // 2)
    x = torch.cat([problem.start(first, "fit"), problem.start(m, "judge")])
    parts = [problem.model(size, part).condition for size, part in ((first, "fit"), (m, "judge"))]
    conditions = None if parts[0] is None else [*listed(parts[0]), *listed(parts[1])]
    began = time.process_time()
    found = sf.tune(
        problem.model(len(x), "fit"),
        nfe=calls,
        n=n,
        judge=m,
        x=x,
        conditions=conditions,
        judge_conditions=conditions,
        against=options.solvers,
        fine=options.fine,
        minutes=options.minutes,
        batch_size=options.batch,
        progress=False,
    )
    return found, time.process_time() - began


def listed(condition):
    """A condition per sample as a list."""
    return condition.tolist() if isinstance(condition, torch.Tensor) else list(condition)


def plain(schedule, calls, options):
    """All plain solvers on all grids: {name: run(model, start) -> samples}."""
    low, high = schedule.t_range
    found = judging.candidates(schedule, calls, (high, low), options.solvers, clean=True)
    return {
        one.label: lambda model, start, one=one: (
            sf.sample(model, x=start, solver=one.plain.solver, grid=one.grid, progress=False).x
        )
        for one in found
    }


def errors_of(run, model, start, fine):
    """The errors of a run, or None where it cannot run or diverges; and why."""
    try:
        errors = rmse(run(model, start), fine).double()
    except Exception as error:  # other libraries raise what they like
        return None, f"{type(error).__name__}: {error}"
    return (errors, "") if bool(errors.isfinite().all()) else (None, "not finite")


def best(runs, model, start, fine, few):
    """The errors of the nearest candidates on all starts, and which of them could not run.

    Args:
        runs: {name: run(model, start) -> samples}.
        model: The model.
        start: The starts.
        fine: Where they lead.
        few: On how many of them all candidates run.
    """
    kept, failed = {}, []
    part = model.slice(0, few)
    for name, run in runs.items():
        errors, reason = errors_of(run, part, start[:few], fine[:few])
        if errors is None:
            failed.append(f"{name} ({reason[:60]})")
        else:
            kept[name] = errors
    if not kept:
        return {}, failed
    least = [min(of(errors) for errors in kept.values()) for of in (judging.median, judging.mean)]
    near = [
        name
        for name, errors in kept.items()
        if judging.median(errors) <= NEAR * least[0] or judging.mean(errors) <= NEAR * least[1]
    ]
    found = {name: errors_of(runs[name], model, start, fine)[0] for name in near}
    return {name: errors for name, errors in found.items() if errors is not None}, failed


def compared(found, ours):
    """The least figures of candidates, and the gains of the tuned solver over them."""
    by_median = min(found, key=lambda name: judging.median(found[name]))
    by_mean = min(found, key=lambda name: judging.mean(found[name]))
    medians, means = found[by_median], found[by_mean]
    gains = (
        *judging.gain(medians, ours, lambda errors: errors.quantile(0.5, dim=-1)),
        *judging.gain(means, ours, lambda errors: errors.mean(-1)),
    )
    return {
        "of_median": by_median,
        "of_mean": by_mean,
        "median": judging.median(medians),
        "mean": judging.mean(means),
        "p95": min(judging.p95(errors) for errors in found.values()),
        **dict(zip(GAINS, gains, strict=True)),
    }


def figures(errors):
    """Median, mean and 95th percentile."""
    return {name: of(errors) for name, of in zip(FIGURES, (judging.median, judging.mean, judging.p95), strict=True)}


def measured(problem, options):
    """The rows of a problem."""
    n, m = rows_of(problem, options)
    model, start, fine = problem.solved(m, "judge")
    few = min(options.few, m)
    for calls in options.calls:
        row = {"problem": problem.name, "learned": int(problem.learned), "calls": calls, "rows": m}
        solver, seconds = tuned(problem, n, min(m, options.verdict_rows or m), calls, options)
        ours = rmse(sf.sample(model, x=start, solver=solver, nfe=calls, progress=False).x, fine).double()
        found = solver.at(calls).verdict
        note, evaluations = "no fit", 0
        if found is not None:
            note, evaluations = ("" if found.won else f"refused, {found.plain} is used"), found.calls
        cost = {"seconds": seconds, "evaluations": evaluations}
        yield {**row, "kind": "tuned", **figures(ours), **cost, "note": note}
        if found is not None and not found.won:
            gains = dict(zip(GAINS, (*found.gain_median, *found.gain_mean), strict=True))
            reached = {name: getattr(found, name) for name in FIGURES}
            yield {**row, "kind": "fit", "rows": found.judged_rows, **reached, **gains, "of_median": found.plain}
        others = {"plain": plain(model.schedule, calls, options)}
        others["diffusers"] = diffusers_samplers(model.schedule, calls)
        others["k-diffusion"] = k_diffusion_samplers(model.schedule, calls)
        for kind, runs in others.items():
            candidates, failed = best(runs, model, start, fine, few)
            cannot = f"; cannot run here: {', '.join(failed)}" if failed and kind != "plain" else ""
            note = f"{len(runs) - len(failed)} compared{cannot}"
            if candidates:
                yield {**row, "kind": kind, **compared(candidates, ours), "note": note}
            else:
                yield {**row, "kind": kind, "note": "none can run"}


# round trips ---------------------------------------------------------------------------------------------------------


def round_trips(options):
    """The rows of round trips and edits of digits and faces."""
    shown = {
        "digits": (sf.load("digits"), digits, 10, (options.fit_rows or 96, options.judge_rows or 256)),
        "faces": (models.load("faces"), faces, 2, (options.fit_rows or 24, options.judge_rows or 64)),
    }
    inverting = [name for name in solvers.names() if not name.startswith("ees")]
    ways = {"": None, "from EES": ["ees25", "ees27"], "without EES": inverting}
    for name, (model, data, classes, (n, m)) in shown.items():
        if not any(part in f"{name} round trip" for part in options.only or [""]):
            continue
        if options.quick:
            n, m = max(8, n // 4), max(16, m // 4)
        x, labels = samples(data, n + max(8, n // 2), m)
        for calls in options.calls:
            edits = [(label + 3) % classes if classes > 2 else 1 - label for label in labels]
            for of, targets in (("", None), ("edits", edits)):
                for way, against in ways.items():
                    if targets is not None and way:
                        continue
                    title = ", ".join(part for part in (f"{name} round trip", of, way) if part)
                    row = {"problem": title, "learned": 1, "calls": calls}
                    yield from round_trip(row, model, x, labels, targets, against, n, m, calls, options)


def samples(data, n, m):
    """Training data to fit on and held-out data to judge on, with their labels."""
    found = []
    for part, count in (("train", n), ("held-out", m)):
        images, labels = data(part)
        chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))[:count]
        assert len(chosen) == count, f"{part}: {len(images)} images, {count} wanted"
        found.append((images[chosen].double(), labels[chosen].tolist()))
    (fit, fit_labels), (judge, judge_labels) = found
    return torch.cat([fit, judge]), [*fit_labels, *judge_labels]


def round_trip(row, model, x, labels, targets, against, n, m, calls, options):
    """The rows of one fit of round trips."""
    began = time.process_time()
    solver = sf.tune(
        model,
        nfe=calls,
        task="round trip",
        x=x,
        n=n,
        judge=m,
        conditions=labels,
        judge_conditions=labels,
        targets=targets,
        guidance=None if targets is None else GUIDANCE,
        against=against,
        fine=options.fine,
        minutes=options.minutes,
        batch_size=options.batch,
        progress=False,
    )
    found = solver.at(calls).verdict
    cost = {"seconds": time.process_time() - began}
    if found is None:
        yield {**row, "kind": "tuned", "rows": m, **cost, "note": "no fit"}
        return
    beside = dict(zip(("beside", "plain_beside"), found.beside or (), strict=False))
    gains = dict(zip(GAINS, (*found.gain_median, *found.gain_mean), strict=True))
    reached = {name: getattr(found, name) for name in FIGURES}
    note = "" if found.won else f"refused, {found.plain} is used"
    yield {
        **row, "kind": "tuned" if found.won else "fit", "rows": m, **reached, **beside, **cost,
        "evaluations": found.calls, "note": note,
    }  # fmt: skip
    plains = {name: getattr(found, f"plain_{name}") for name in FIGURES}
    note = f"{found.compared} compared"
    yield {**row, "kind": "plain", "rows": m, "of_median": found.plain, **plains, **gains, "note": note}


# tables --------------------------------------------------------------------------------------------------------------


def show(rows):
    """Print the tables and what they say of the targets."""
    for problem in dict.fromkeys(row["problem"] for row in rows):
        own = [row for row in rows if row["problem"] == problem]
        print(f"\n{problem}, {own[0]['rows']} starts: median (mean) [95th percentile]")
        for row in own:
            print(line(row))
    cannot_run(rows)
    summary([row for row in rows if "round trip" not in row["problem"]])
    structure([row for row in rows if "round trip" in row["problem"]])


def line(row):
    """A row as text."""
    if not row["median"]:
        return f"  {int(row['calls']):>3} {row['kind']:<12} {row['note']}"
    text = f"  {int(row['calls']):>3} {row['kind']:<12}"
    text += " {:.1e} ({:.1e}) [{:.1e}]".format(*(float(row[name]) for name in FIGURES))
    if row["gain_median"]:
        gains = [float(row[name]) for name in GAINS]
        text += "  gain {:.2f} [{:.2f}, {:.2f}], mean {:.2f} [{:.2f}, {:.2f}]".format(*gains)
    if row["of_median"]:
        text += f"  {row['of_median']}"
        text += f"; by mean {row['of_mean']}" if row["of_mean"] not in ("", row["of_median"]) else ""
    if row["beside"]:
        what = "edits" if "edits" in row["problem"] else "latents"
        text += f"  {what} {float(row['beside']):.1e}, plain {float(row['plain_beside']):.1e}"
    if row["seconds"]:
        text += f"  {float(row['seconds']):.0f} s, {int(row['evaluations'] or 0):,} evaluations for the fit"
    note = row["note"].split("; cannot")[0]
    return text + (f"  ({note})" if note else "")


def cannot_run(rows):
    """Name what other libraries could not run."""
    print("\nleft out of other libraries")
    for library, reasons in LEFT_OUT.items():
        for name, reason in reasons.items():
            print(f"  {library}, {name}: {reason}")
    found = {}
    for row in rows:
        if "cannot run here: " in row["note"]:
            for failed in row["note"].split("cannot run here: ")[1].split("), "):
                found.setdefault((row["kind"], failed.split(" (")[0]), set()).add(row["problem"])
    for (kind, name), where in found.items():
        print(f"  {kind}, {name}: fails on {', '.join(sorted(where))}")


def summary(rows):
    """Print the gains in one table, and each target that is missed."""
    gains = {(row["problem"], int(row["calls"]), row["kind"]): row for row in rows if row["gain_median"]}
    names = dict.fromkeys(row["problem"] for row in rows)
    calls = sorted({int(row["calls"]) for row in rows})
    if not gains:
        return
    print("\ngain of the tuned solver, median / mean, at " + ", ".join(map(str, calls)) + " calls")
    for name in names:
        for kind in AGAINST:
            cells = []
            for n in calls:
                row = gains.get((name, n, kind))
                cells.append(f"{float(row['gain_median']):6.2f} /{float(row['gain_mean']):6.2f}" if row else "-")
            print(f"  {name:<18} over {kind:<12} " + "  ".join(f"{cell:>14}" for cell in cells))
    missed = list(misses(rows, gains))
    print(f"\ntargets missed: {len(missed)}")
    for text in missed:
        print(f"  {text}")


def misses(rows, gains):
    """The targets that are missed, in words."""
    learned = {row["problem"]: row["learned"] == "1" for row in rows}
    for (name, calls, kind), row in gains.items():
        if kind not in AGAINST:
            continue
        median, mean = float(row["gain_median"]), float(row["gain_mean"])
        checks = []
        if kind == "plain":
            wanted = WANTED.get(calls, 0.0) if learned[name] else WANTED_EXACT
            checks = [("median", median, wanted), *([("mean", mean, WANTED_MEAN)] if learned[name] else [])]
            checks += [(f"{what}, below 1", gain, 1.0) for what, gain in (("median", median), ("mean", mean))]
        else:
            checks = [("median", median, WANTED_OTHERS)]
        for what, gain, wanted in checks:
            if gain < wanted - 1e-9:
                yield f"{name}, {calls} calls, over {kind}: {what} {gain:.2f}, wanted {wanted:g}"


def markdown(rows):
    """Print the main table for the documentation."""
    kept = {(row["problem"], int(row["calls"]), row["kind"]): row for row in rows if row["median"]}
    heads = ["model", "calls", "tuned", "best plain", "gain in the median", "gain in the mean", *AGAINST[1:]]
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for (name, calls, kind), row in kept.items():
        plain_row = kept.get((name, calls, "plain"))
        if kind != "tuned" or plain_row is None:
            continue
        gains = [float(plain_row[gain]) for gain in GAINS]
        cells = [name, str(calls), both(row), both(plain_row)]
        cells += ["{:.1f} [{:.1f}, {:.1f}]".format(*gains[k : k + 3]) for k in (0, 3)]
        cells += [both(kept[name, calls, other]) if (name, calls, other) in kept else "" for other in AGAINST[1:]]
        print("| " + " | ".join(cells) + " |")


def both(row):
    """Median and mean as text."""
    return "{:.1e} ({:.1e})".format(float(row["median"]), float(row["mean"]))


def structure(rows):
    """Print what beginning a fit of round trips from EES gives."""
    kept = {(row["problem"], int(row["calls"]), row["kind"]): row for row in rows}
    bases = [key for key in kept if key[2] in ("tuned", "fit") and "," not in key[0]]
    if bases:
        print("\nround trips, median error: does the structure of EES help a fit?")
    for name, calls, kind in bases:
        best_of_all = float(kept[name, calls, kind]["median"])
        texts = [f"  {name}, {calls} calls each way: fitted from the best plain {best_of_all:.1e}"]
        for way in ("from EES", "without EES"):
            title = f"{name}, {way}"
            fit = kept.get((title, calls, "tuned")) or kept.get((title, calls, "fit"))
            alone = kept.get((title, calls, "plain"))
            if fit and alone:
                medians = float(fit["median"]), float(alone["median"])
                texts.append("{} {:.1e}, alone {:.1e} ({})".format(way, *medians, alone["of_median"]))
        print("; ".join(texts))


def main():
    """Run, or read what was measured."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="the smaller problems, fewer starts and budgets")
    parser.add_argument("--only", nargs="+", help="parts of the names of problems")
    parser.add_argument("--calls", nargs="+", type=int, help=f"the budgets; {BUDGETS}, or {EACH_WAY} for round trips")
    parser.add_argument("--round-trips", action="store_true", help="round trips and edits instead")
    parser.add_argument("--solvers", nargs="+", help="the plain solvers; all by default")
    parser.add_argument("--fit-rows", type=int, help="at most so many starts to fit on")
    parser.add_argument("--judge-rows", type=int, help="at most so many starts to judge on")
    parser.add_argument(
        "--verdict-rows", type=int, help="of these, how many the tune itself decides on; all by default"
    )
    parser.add_argument("--few", type=int, default=FEW, help="on how many starts all candidates run")
    parser.add_argument("--fine", type=int, default=200, help="calls of the fine solves of the fit")
    parser.add_argument("--minutes", type=float, help="the most for one fit")
    parser.add_argument("--batch", type=int, default=64, help="starts that are computed together in a fit")
    parser.add_argument("--out", default="benchmarks/tuning.csv")
    parser.add_argument("--read", nargs="+", help="print the tables of these files")
    parser.add_argument("--markdown", action="store_true", help="with --read, the main table for the documentation")
    options = parser.parse_args()
    if options.read:
        rows = read_rows(options.read, options.only)
        (markdown if options.markdown else show)(rows)
        return
    options.calls = options.calls or (EACH_WAY if options.round_trips else (5, 12) if options.quick else BUDGETS)
    for name, reason in left_out().items():
        print(f"left out: {name}; {reason}")
    if k_diffusion_sampling() is None:
        print("left out: k-diffusion, which is not installed")
    with Path(options.out).open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for row in found(options):
            writer.writerow(row)
            file.flush()
            print(line({key: str(row.get(key, "")) for key in COLUMNS}), file=sys.stderr, flush=True)
    with Path(options.out).open(newline="") as file:
        show(list(csv.DictReader(file)))


def found(options):
    """The rows of everything that is asked for."""
    if options.round_trips:
        yield from round_trips(options)
        return
    taken = problems(options.quick)
    for problem in taken:
        if problem.name == "terrain" and not any(part in "terrain" for part in options.only or []):
            continue
        if any(part in problem.name for part in options.only or [""]):
            yield from measured(problem, options)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    main()
