"""What is read from a file is a state of the solver that the file names, or is refused, with what does not fit."""

import json
import re

import pytest
import torch

import steadyflow as sf
from steadyflow import solvers
from steadyflow._internal import files
from steadyflow.solvers.saved import check_saved
from steadyflow.solvers.state import serialize_state

NAMES = solvers.names()
MODEL = sf.Denoiser(lambda x, t, *_: 0.3 * x, sf.VPCosine(), shape=(2, 3), null=3, classes=3, dtype=torch.float32)
X = torch.linspace(-1.0, 1.0, 12).view(2, 2, 3)


def saved(name):
    """What the file of a run with a solver holds, its kind, and how it is read."""
    solver = solvers.get(name)
    if solver.invertible:
        found = sf.invert(MODEL.with_condition(torch.tensor([0, 2])), X, solver=solver, steps=4, t_min=0.05, t_max=0.9)
        return *found.packed(), sf.Inversion, "inversion"
    grid = sf.Grid((0.9, 0.7, 0.5, 0.3, 0.1))
    noise = sf.noise.Brownian(0, range(2), (2, 3)) if solver.properties.stochastic else None
    found = sf.integrate(MODEL, X, grid, solver, stop_after=3, noise=noise)
    tensors, structure = serialize_state(found.state)
    return tensors, {"solution": json.dumps(found._facts()), "state": structure}, sf.Solution, "solution"


@pytest.fixture(params=NAMES)
def there(request, monkeypatch):
    """The tensors, the texts, and a function that reads a file of changed ones."""
    tensors, texts, cls, kind = saved(request.param)

    def read(tensors=tensors, **changes):
        monkeypatch.setattr(files, "read", lambda path, kind: (tensors, {**texts, **changes}))
        return cls.load("saved")

    return tensors, texts, kind, read


def test_states_of_every_solver_are_read_back_and_altered_ones_refused(there):
    tensors, texts, kind, read = there
    again = read()
    assert torch.equal(check_saved(again.solver, again.state), again.x)
    some = sorted(name for name in tensors if name.startswith("state"))
    for name in {some[0], some[-1]}:
        t = tensors[name]
        for wrong in (t[:1], t[..., :1], t[0], t.half(), t.long(), t.bool(), t[:0], t.new_zeros(())):
            fits = wrong.dtype == t.dtype and len(some) == 1 and wrong.ndim > 1 and len(wrong) > 0
            if fits and kind == "solution":  # a sample of another size alone, which is one
                continue
            if fits and len(wrong) == len(t):
                continue
            with pytest.raises(sf.CorruptFileError, match=r"state|sample|rows"):
                read({**tensors, name: wrong})
        with pytest.raises(sf.CorruptFileError):
            read({key: value for key, value in tensors.items() if key != name})
    with pytest.raises(sf.CorruptFileError, match=r"belong to nothing: state\.more"):
        read({**tensors, "state.more": torch.zeros(2, 2, 3)})
    other = {"tuple": "Pair", "items": [{"tensor": some[0]}, {"tensor": "state.more"}]}
    other = {"tensor": some[0]} if "items" in json.loads(texts["state"]) else other
    with pytest.raises(sf.CorruptFileError, match="the state of solver"):
        read({**tensors, "state.more": tensors[some[0]].clone()}, state=json.dumps(other))


def nodes(node, path=()):
    """All nodes of a state's description, with their paths."""
    yield path, node
    for k, item in enumerate(node.get("items", ())):
        yield from nodes(item, (*path, k))


def replaced(node, path, new):
    if not path:
        return new
    items = list(node["items"])
    items[path[0]] = replaced(items[path[0]], path[1:], new)
    return {**node, "items": items}


def test_states_of_another_structure_are_refused(there):
    _, texts, _, read = there
    whole = json.loads(texts["state"])
    for path, node in nodes(whole):
        for new in ({"value": "text"}, {"mapping": {}}, {"tuple": "Scaled", "items": []}):
            with pytest.raises(sf.CorruptFileError):
                read(state=json.dumps(replaced(whole, path, new)))
        if "items" in node:
            for items in (node["items"][:-1], [*node["items"], {"float": "0x0p0"}]):
                if items != node["items"]:
                    with pytest.raises(sf.CorruptFileError):
                        read(state=json.dumps(replaced(whole, path, {**node, "items": items})))


def test_options_that_a_solver_refuses_are_refused_where_it_is_read(there):
    _, texts, kind, read = there
    facts = json.loads(texts[kind])
    spec = facts["solver"]
    bad = [{**spec, "name": "none"}, {**spec, "more": 1}, {}, [], {**spec, "name": None}]
    for key, value in spec.items():
        for wrong in ("nonsense", -7, [], None):
            changed = {**spec, key: wrong}
            try:
                solvers.registry.from_spec(changed)
            except sf.InputError:
                bad.append(changed)
        assert key == "name" or value is None or any(one.get(key) != value for one in bad), key
    for one in bad:
        with pytest.raises(sf.CorruptFileError):
            read(**{kind: json.dumps({**facts, "solver": one})})


FACTS = {
    "step": [-1, 99, 1.0, "1", True, None],
    "nfe": [-1, 1.5],
    "index": [-1, 2**63, 0.0, "0", [0, 1]],
    "rejected": [-1, None],
    "seed": [1.5, "0", True],
    "noise": ["pink", 1],
    "times": [[], ["0x1p-1"], ["nan", "0x1p-1"], ["0x1p-1", "0x1p-2"], [0.1, 0.9], None],
    "guidance": ["x", None, [], {"not finite": "nan"}],
    "schedule": [1, "VPCosine", None],
}


@pytest.mark.parametrize("name", FACTS)
def test_facts_of_the_wrong_kind_are_refused(name, tmp_path):
    tensors, texts, _, kind = saved("ees25")
    facts = json.loads(texts[kind])
    assert name in facts
    for wrong in FACTS[name]:
        files.write(tmp_path / "saved", kind, tensors, {**texts, kind: json.dumps({**facts, name: wrong})})
        with pytest.raises(sf.CorruptFileError, match=re.escape(str(tmp_path / "saved"))):
            sf.Inversion.load(tmp_path / "saved")


@pytest.mark.parametrize("condition", [torch.tensor([1, 2, 0]), (1, 2, 0), {"a": torch.zeros(3, 4)}, torch.zeros(0, 4)])
def test_conditions_of_another_number_of_samples_are_refused(condition, tmp_path):
    tensors, texts, _, kind = saved("ees25")
    more, text = serialize_state(condition, "condition")
    kept = {name: value for name, value in tensors.items() if name.startswith("state")}
    files.write(tmp_path / "saved", kind, {**kept, **more}, {**texts, "condition": text})
    with pytest.raises(sf.CorruptFileError, match=r"the condition.*rows, expected 1 or 2"):
        sf.Inversion.load(tmp_path / "saved")
