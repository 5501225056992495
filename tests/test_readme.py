"""The README's examples run, and its table is the registry's."""

import re
from pathlib import Path

import pytest

import steadyflow as sf

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_the_five_examples_run_one_after_the_other(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 5
    names = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert "True" in capsys.readouterr().out  # the addressed sample is the same one


def test_the_table_of_solvers_is_the_registrys():
    rows = re.findall(
        r"^\| `(\S+)` \| (\d+) \| (\d+) \| (\w+).*?\| (\d*) *\| (.*?) *\|$", README.read_text(), re.M
    )
    assert [row[0] for row in rows] == sf.solvers.names()
    for name, order, cost, inverse, back, interval in rows:
        facts = sf.solvers.get(name).facts
        assert (int(order), int(cost), inverse) == (facts.order, facts.evaluations, facts.inverse)
        assert back == ("" if facts.antisymmetric_order is None else str(facts.antisymmetric_order))
        if facts.real_interval is not None:
            assert float(interval[2:].split(",")[0]) == pytest.approx(facts.real_interval, abs=1e-3)
