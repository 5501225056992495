"""Every error reaches another process as it was raised."""

import copy
import multiprocessing
import pickle

import pytest

import steadyflow as sf
from steadyflow import errors

ARGUMENTS = {
    sf.UnknownNameError: ("solver", "dimm", ["ddim", "rk4"]),
    sf.MissingExtraError: ("Pillow", "data", "reading pictures"),
    sf.BrokenExtraError: ("Pillow", "reading pictures", ImportError("no libjpeg")),
    sf.StorageError: (28, "No space left on device", "x.npy"),
}
"""Of classes that take other arguments than a message."""


def kinds(base=errors.SteadyflowError):
    """The base and all classes below it that the library has."""
    found = [base]
    for kind in base.__subclasses__():
        if kind.__module__.startswith("steadyflow"):
            found += kinds(kind)
    return found


class Own(errors.InputError):
    """As a user of the library may write one."""

    def __init__(self, first, *, second):
        super().__init__(f"{first} and {second}")
        self.second = second


def same(one, other):
    assert type(one) is type(other)
    assert str(one) == str(other)
    assert one.args == other.args
    assert vars(one) == vars(other)
    for name in ("errno", "strerror", "filename", "name", "path", "msg"):
        assert getattr(one, name, None) == getattr(other, name, None)


@pytest.mark.parametrize("kind", [*kinds(), Own])
def test_errors_survive_pickling_and_copying(kind):
    error = Own("a", second=2) if kind is Own else kind(*ARGUMENTS.get(kind, ("x: got 1, expected 2",)))
    error.add_note("a note")
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        same(pickle.loads(pickle.dumps(error, protocol)), error)
    same(copy.copy(error), error)
    if isinstance(error, OSError):
        same(pickle.loads(pickle.dumps(kind("full"))), kind("full"))


def test_what_a_pool_of_processes_raises_is_raised_here():
    with multiprocessing.get_context("fork").Pool(1) as pool, pytest.raises(sf.UnknownNameError, match="dimm"):
        pool.apply_async(sf.solvers.get, ("dimm",)).get(timeout=20)
