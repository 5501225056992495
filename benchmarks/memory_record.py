"""What a piece of work allocates, by the profiler's record of every tensor."""

import gc
from itertools import accumulate

from torch.profiler import ProfilerActivity, profile


def changes(run):
    """What a function returns, and the bytes that were allocated (or given back, below zero), in their order."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        result = run()
        gc.collect()
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    return result, [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]


def peak(run):
    """The most bytes that a function holds beyond what was there before."""
    return max(accumulate(changes(run)[1], initial=0))
