"""Combinations of parameters of which half are enough in a usual run."""

import itertools

import pytest


def every_second(*axes):
    """All combinations of the values of some axes, as parameters; those at odd places are slow.

    The place of a combination is the sum of those of its values on their axes: each value of an axis meets every second
    of the next.
    """
    found = []
    for places in itertools.product(*(range(len(axis)) for axis in axes)):
        values = [axis[place] for axis, place in zip(axes, places, strict=True)]
        parts = [part for value in values for part in (value if isinstance(value, tuple) else (value,))]
        marks = pytest.mark.slow if sum(places) % 2 else ()
        found.append(pytest.param(*values, id="-".join(map(str, parts)), marks=marks))
    return found
