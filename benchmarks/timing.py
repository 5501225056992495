"""How the benchmarks here time things."""

import os
import sys
import time

KEEP = {"MALLOC_TRIM_THRESHOLD_": "2000000000", "MALLOC_MMAP_THRESHOLD_": "2000000000"}


def keep_memory():
    """Start this script anew with a C library that keeps the memory it is given back.

    Else whoever comes first to fresh memory pays for its page faults, which are the system's.
    """
    if not KEEP.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP})


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
