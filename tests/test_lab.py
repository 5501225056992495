"""The studies, small: what they claim must show."""

import pytest

import steadyflow as sf
from steadyflow_lab import coupling

METHODS = (
    ("ees25", {}),
    ("ees27", {}),
    ("rex-euler", {}),
    ("rex-euler", {"coordinates": "flow", "coupling": "auto"}),
    ("rex-midpoint", {"coordinates": "flow", "coupling": "auto"}),
    ("edict", {}),
)


@pytest.fixture(scope="module")
def rows():
    found = coupling.study("mixture", n=32, methods=METHODS, guidances=(7.5,))
    return {(row.solver, "auto" in row.options): row for row in found}


def test_exactly_reversible_solvers_blow_up_under_strong_guidance_where_near_reversible_ones_do_not(rows):
    assert rows["rex-euler", False].largest[7.5] > 100
    assert rows["edict", False].largest[7.5] > 10
    for name in ("ees25", "ees27"):
        assert rows[name, False].largest[7.5] < 5


def test_automatic_coupling_lowers_the_edit_error_of_rex_fifty_times_and_keeps_it_exact(rows):
    fixed, auto = rows["rex-euler", False], rows["rex-euler", True]
    assert auto.edit_error[7.5] < fixed.edit_error[7.5] / 50
    assert auto.round_trip < 1e-12
    assert rows["rex-midpoint", True].edit_error[7.5] < 0.02
    assert rows["rex-midpoint", True].largest[7.5] < 5


def test_all_methods_spend_the_same_evaluations(rows):
    assert {row.nfe for row in rows.values()} == {48}


def test_an_unknown_problem_is_refused():
    with pytest.raises(sf.UnknownNameError, match="problem 'mixtures'"):
        coupling.study("mixtures")
