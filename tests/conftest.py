"""Nothing is fetched by any test, and each uses one thread, as two of them run at a time."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys

import pytest


@pytest.fixture
def call(monkeypatch, capsys):
    """The command line in this process: exit status, standard output, standard error."""
    from steadyflow import cli

    def invoke(*arguments):
        monkeypatch.setattr(sys, "argv", ["steadyflow", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return stop.value.code or 0, out, err

    return invoke
