"""Which solver to take at few calls: every deterministic solver on every named grid, on all problems.

    python benchmarks/few_calls.py [--quick] [--only NAME ...] [--read FILE ...]

The problems and their fine solutions are those of tuning_problems.py. An error is the root mean square distance of one
endpoint to the fine one, from the same start; what is compared is the median over the starts. For each budget come the
candidates with the least geometric mean, over the problems, of the error over the best error on the problem, with the
worst such ratio, and then the best of each problem. A candidate that diverges on a problem counts there as the worst
that did not; one that is refused there, as a grid in the log-SNR is on a path that begins without data, or was not
measured there, does not count there, and the number of problems on which it counts is printed. Every figure goes to a
CSV file, from which --read prints the tables again; it takes several files.
"""

import argparse
import csv
import math
import sys
import time
from pathlib import Path

import torch
from tuning_problems import left_out, problems, read_rows, reference

import steadyflow as sf
from steadyflow import grids, solvers
from steadyflow.metrics import rmse

BUDGETS = (4, 5, 6, 8, 12, 20, 48)
COLUMNS = ("problem", "calls", "solver", "grid", "used", "median", "mean", "note")
TOP = 10


def candidates():
    """The names of all deterministic solvers whose steps have a fixed cost, with every named grid."""
    for name in solvers.names():
        facts = solvers.get(name).properties
        if not facts.stochastic and facts.evaluations:
            for grid in grids.names():
                yield name, grid


def measured(name, solved, budgets, chosen):
    """The rows of one problem, from its model, starts and fine endpoints."""
    model, start, fine = solved
    for calls in budgets:
        for solver, grid in chosen:
            row = {"problem": name, "calls": calls, "solver": solver, "grid": grid}
            try:
                run = sf.sample(model, x=start, solver=solver, nfe=calls, grid=grid, progress=False)
            except sf.SteadyflowError as error:
                yield {**row, "note": f"{type(error).__name__}: {error}"}
                continue
            errors = rmse(run.x, fine)
            yield {**row, "used": run.nfe, "median": errors.median().item(), "mean": errors.mean().item()}


def moved(problem, solved):
    """How far the fine solution is from the one with half the calls, which bounds its error: median and mean."""
    solver, grid, calls = problem.fine
    model, start, fine = solved
    errors = rmse(reference(model, start, solver=solver, grid=grid, calls=(calls + 1) // 2), fine)
    return errors.median().item(), errors.mean().item()


def table(rows, measure):
    """{calls: {problem: {candidate: error}}}; infinite where it diverged, without what is refused."""
    found = {}
    for row in rows:
        note = row.get("note") or ""
        if note and not note.startswith("NonFinite"):
            continue
        error = math.inf if note else float(row[measure])
        by_problem = found.setdefault(int(row["calls"]), {}).setdefault(row["problem"], {})
        by_problem[f"{row['solver']} {row['grid']}"] = error if error == error else math.inf
    return found


def ranking(by_problem):
    """For each candidate: the geometric mean of its ratios to the best, the largest, where that is, and how many."""
    ratios = {}
    for name, errors in by_problem.items():
        finite = [error for error in errors.values() if error < math.inf]
        for candidate, error in errors.items():
            ratios.setdefault(candidate, []).append((min(error, max(finite)) / min(finite), name))
    found = []
    for candidate, values in ratios.items():
        mean = math.exp(sum(math.log(ratio) for ratio, _ in values) / len(values))
        found.append((mean, *max(values), len(values), candidate))
    return sorted(found)


def summary(rows, measure):
    """Print, for each budget, the best over all problems and the best of each."""
    for calls, by_problem in sorted(table(rows, measure).items()):
        print(f"\n{calls} calls, {measure} error over the best, {len(by_problem)} problems")
        for mean, worst, where, count, candidate in ranking(by_problem)[:TOP]:
            only = f", on {count} of them" if count < len(by_problem) else ""
            print(f"  {candidate:<32} geometric mean {mean:6.2f}, worst {worst:8.2f} ({where}){only}")
        for name, errors in by_problem.items():
            best = sorted((error, candidate) for candidate, error in errors.items())[:3]
            print(f"    {name:<18} " + ", ".join(f"{candidate} {error:.1e}" for error, candidate in best))


def main():
    """Run, or read what was measured."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="the smaller problems, fewer starts and budgets")
    parser.add_argument("--only", nargs="+", help="parts of the names of problems")
    parser.add_argument("--solvers", nargs="+", help="the names of solvers; all by default")
    parser.add_argument("--grids", nargs="+", help="the names of grids; all by default")
    parser.add_argument("--calls", nargs="+", type=int, help=f"the budgets; {BUDGETS} by default")
    parser.add_argument("--rows", type=int, help="at most so many starts")
    parser.add_argument("--out", default="benchmarks/few_calls.csv")
    parser.add_argument("--measure", choices=("median", "mean"), default="median", help="over the starts")
    parser.add_argument("--read", nargs="+", help="print the tables of these files")
    options = parser.parse_args()
    if options.read:
        rows = read_rows(options.read, options.only)
        measured_pairs = {}
        for row in rows:
            measured_pairs.setdefault(row["problem"], set()).add((row["solver"], row["grid"]))
        print("pairs of a solver and a grid that were measured on each problem")
        for name, pairs in measured_pairs.items():
            named = {solver for solver, _ in pairs}, {grid for _, grid in pairs}
            print(f"  {name:<18} {len(pairs)}: {len(named[0])} solvers, {len(named[1])} grids")
        summary(rows, options.measure)
        return
    budgets = options.calls or ((4, 8, 20) if options.quick else BUDGETS)
    chosen = [
        (solver, grid)
        for solver, grid in candidates()
        if solver in (options.solvers or [solver]) and grid in (options.grids or [grid])
    ]
    for name, reason in left_out().items():
        print(f"left out: {name}; {reason}")
    taken = [p for p in problems(options.quick) if any(part in p.name for part in options.only or [""])]
    print("fine solutions: how far from half the calls, and beside the best of 20 calls")
    rows = []
    with Path(options.out).open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for problem in taken:
            n, begun, own = min(problem.rows[1], options.rows or problem.rows[1]), time.monotonic(), []
            solved = problem.solved(n, "judge")
            for row in measured(problem.name, solved, budgets, chosen):
                writer.writerow(row)
                file.flush()
                own.append(row)
            rows += own
            solver, grid, calls = problem.fine
            median, mean = moved(problem, solved)
            at_20 = table(own, "median").get(20)
            beside = f"; best of 20 calls / median {min(at_20[problem.name].values()) / median:.0f}" if at_20 else ""
            took = f"{n} starts, {time.monotonic() - begun:.0f} s"
            print(
                f"  {problem.name:<18} {solver}, {grid}, {calls}: median {median:.1e}, mean {mean:.1e}{beside} ({took})"
            )
            sys.stdout.flush()
    summary(rows, options.measure)


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
