"""How the benchmarks here time things."""

import time


def least(work, rounds=7):
    """The least seconds of each piece of work, {name: function}, in turns; a function may return its own seconds."""
    times = dict.fromkeys(work, float("inf"))
    for _ in range(rounds):
        for name, run in work.items():
            began = time.perf_counter()
            said = run()
            times[name] = min(times[name], said if isinstance(said, float) else time.perf_counter() - began)
    return times


def repeated(run, times):
    """The work of doing something so many times."""

    def work():
        for _ in range(times):
            run()

    return work
