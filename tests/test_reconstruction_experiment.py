"""The paper's experiment for pipelines of one's own: what is measured, kept, refused and held in memory."""

import json
import shutil

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")

import pipelines  # needs diffusers
import steadyflow as sf
from steadyflow.datasets import arrays
from steadyflow.datasets.ink import ink
from steadyflow_lab.instability import reconstruction as experiment
from steadyflow_lab.precision import load_in

CAPTION = "a handwritten seven in red ink"
FEW = experiment.Settings(steps=3, directions=2, batch_size=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("pictures")
    pictures = ink("held-out", 5, torch.Generator().manual_seed(0))
    for k in range(5):
        arrays.write(place / f"p{k}.png", pictures.images[k : k + 1])
    written = {f"p{k}.png": pictures.caption(k) for k in range(5)}
    (place / "captions.json").write_text(json.dumps(written))
    return place


@pytest.fixture(scope="module")
def bundled():
    return load_in("ink")


def test_errors_floor_and_coefficient_are_what_they_say(folder, bundled):
    paths = experiment.pictures(folder, 3)
    words = experiment.captions(folder / "captions.json", [path.name for path in paths])
    found = experiment.run(bundled, paths, words, experiment.Settings(steps=8, directions=2, batch_size=2))
    images = torch.cat([arrays.read(path, (3, 32, 32)) for path in paths])
    x = bundled.encode(images)
    trip = sf.reconstruct(bundled.with_condition(words), x, solver="euler", steps=8, grid="uniform")
    rmse = sf.metrics.rmse
    expected = {
        "latent_error": trip.error,
        "image_error": rmse(bundled.decode(trip.x), images),
        "floor": rmse(bundled.decode(x), images),
        "beyond": rmse(bundled.decode(trip.x), bundled.decode(x)),
    }
    for name, values in expected.items():
        assert [getattr(row, name) for row in found.rows] == pytest.approx(values.tolist(), rel=1e-3), name
    generation = sf.FlowMap(bundled.with_condition(words), trip.inversion.grid.reversed(), trip.inversion.solver)
    u = sf.noise.like(x, 0, sf.noise.PERTURBATION, (0, 2, 0))
    exact = sf.diagnostics.amplification.coefficient(generation, trip.inversion.latent, u)
    assert [row.coefficients[0] for row in found.rows] == pytest.approx(exact.tolist(), rel=0.03)
    assert "within the linear regime" in experiment.note(found)
    assert found.dim == 256


@pytest.mark.parametrize(("name", "size", "grid", "guidance"), [("sd3", 32, "own", 2.0), ("flux", 8, "uniform", 1.0)])
def test_flow_pipelines_run_too(name, size, grid, guidance, folder):
    model = sf.from_diffusers(pipelines.smooth_in_time(pipelines.build(name)), height=size, width=size)
    settings = experiment.Settings(steps=3, directions=1, batch_size=2, grid=grid, guidance=guidance)
    found = experiment.run(model, experiment.pictures(folder, 3), CAPTION, settings)
    values = [(row.latent_error, row.image_error, row.floor, row.beyond, row.coefficient) for row in found.rows]
    assert np.isfinite(values).all()
    assert len(values) == 3
    assert {"median coefficient", "rank correlation of E with latent error"} <= set(experiment.summary(found))


def test_an_interrupted_run_loses_no_more_than_a_batch(folder, bundled, tmp_path, monkeypatch):
    paths, measured = experiment.pictures(folder, 5), experiment._batch
    done = []

    def stopping(model, paths, given, settings, rows):
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(rows)
        return measured(model, paths, given, settings, rows)

    monkeypatch.setattr(experiment, "_batch", stopping)
    with pytest.raises(KeyboardInterrupt):
        experiment.run(bundled, paths, CAPTION, FEW, folder=tmp_path)

    def counted(model, paths, given, settings, rows):
        done.append(rows)
        return measured(model, paths, given, settings, rows)

    monkeypatch.setattr(experiment, "_batch", counted)
    monkeypatch.setattr(experiment, "_linear", lambda *_: pytest.fail("this is kept too"))
    resumed = experiment.run(bundled, paths, CAPTION, FEW, folder=tmp_path)
    assert done == [(0, 2), (2, 4), (4, 5)]
    assert [row.name for row in resumed.rows] == [f"p{k}.png" for k in range(5)]
    assert experiment.run(bundled, paths, CAPTION, FEW, folder=tmp_path) == resumed
    assert len(done) == 3  # nothing anew
    monkeypatch.undo()
    whole = experiment.run(bundled, paths, CAPTION, FEW)
    for a, b in zip(resumed.rows, whole.rows, strict=True):
        assert a.image_error == pytest.approx(b.image_error, rel=1e-4)
    other = experiment.Settings(steps=4, directions=1, batch_size=2)
    assert experiment.run(bundled, paths, CAPTION, other, folder=tmp_path).rows != resumed.rows  # of other settings


def test_a_picture_that_has_changed_is_done_again_with_its_batch_alone(folder, bundled, tmp_path, monkeypatch):
    """Same name and same size: told apart by its bytes; and more pictures leave the batches that are there."""
    copies = tmp_path / "pictures"
    shutil.copytree(folder, copies)
    paths, measured, done = experiment.pictures(copies, 5), experiment._batch, []

    def counted(model, paths, given, settings, rows):
        done.append(rows)
        return measured(model, paths, given, settings, rows)

    monkeypatch.setattr(experiment, "_batch", counted)
    experiment.run(bundled, paths[:4], CAPTION, FEW, folder=tmp_path)
    experiment.run(bundled, paths, CAPTION, FEW, folder=tmp_path)
    assert done == [(0, 2), (2, 4), (4, 5)]
    data = bytearray(paths[2].read_bytes())
    paths[2].write_bytes(paths[3].read_bytes())
    assert bytes(data) != paths[2].read_bytes()
    experiment.run(bundled, paths, CAPTION, FEW, folder=tmp_path)
    assert done[3:] == [(2, 4)]


def test_no_more_than_a_batch_is_held_in_memory(folder, bundled, tmp_path, monkeypatch):
    paths, read, sizes, ahead = experiment.pictures(folder, 5), arrays.read, [], []
    progress = []

    def reading(path, shape, **options):
        ahead.append(len(ahead) + 1 - len(progress))
        return read(path, shape, **options)

    monkeypatch.setattr(experiment.arrays, "read", reading)
    forward = type(bundled).evaluate

    def evaluating(self, x, *given):
        sizes.append(len(x))
        return forward(self, x, *given)

    monkeypatch.setattr(type(bundled), "evaluate", evaluating)
    experiment.run(bundled, paths, CAPTION, FEW, folder=tmp_path, progress=lambda: progress.append(1))
    assert len(progress) == 5
    assert max(sizes) == 2
    assert max(ahead) <= 2 + 2  # a batch, and the first one again for the linear regime


def test_the_command_prints_correlations_and_keeps_all_rows(call, folder, tmp_path):
    options = ["--images", folder, "--captions", folder / "captions.json", "--n", 3, "--steps", 3, "--batch-size", 2]
    code, out, err = call("lab", "run", "reconstruction", "--model", "ink", *options, "--out", tmp_path)
    assert code == 0, err
    assert "rank correlation of E with latent error" in out
    written = json.loads((tmp_path / "reconstruction.json").read_text())
    assert [row["name"] for row in written["rows"]] == ["p0.png", "p1.png", "p2.png"]
    assert written["settings"]["steps"] == 3
    assert written["dtype"] == "float32"


def test_half_precision_is_honoured(folder, bundled):
    half = load_in("ink", dtype="bfloat16")
    assert half.family.pipe.unet.dtype == half.family.pipe.vae.dtype == torch.bfloat16
    found = experiment.run(half, experiment.pictures(folder, 3), CAPTION, experiment.Settings(steps=2, directions=1))
    whole = experiment.run(bundled, experiment.pictures(folder, 3), CAPTION, experiment.Settings(steps=2, directions=1))
    assert found.rows != whole.rows
    assert found.rows[0].floor == pytest.approx(whole.rows[0].floor, rel=0.3)
    digits = load_in("digits", dtype="float16")
    assert next(digits.net.parameters()).dtype == torch.float16


def test_captions_are_read_from_three_kinds_of_files(tmp_path):
    coco = {
        "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "b.jpg"}],
        "annotations": [
            {"id": 2, "image_id": 7, "caption": "later"},
            {"id": 1, "image_id": 7, "caption": " a cat "},
            {"id": 3, "image_id": 8, "caption": "a dog"},
        ],
    }
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    (tmp_path / "plain.json").write_text(json.dumps({"a.jpg": "a cat", "b.jpg": "a dog"}))
    (tmp_path / "lines.txt").write_text("a.jpg\ta cat\n\nb.jpg\ta dog\n")
    for name in ("coco.json", "plain.json", "lines.txt"):
        assert experiment.captions(tmp_path / name, ["b.jpg", "a.jpg"]) == ["a dog", "a cat"]
    with pytest.raises(sf.InputError, match=r"none for c\.jpg"):
        experiment.captions(tmp_path / "coco.json", ["a.jpg", "c.jpg"])
    for name, text in (("bad.json", "[1]"), ("worse.json", "{"), ("bad.txt", "a.jpg a cat"), ("n.json", '{"a": 3}')):
        (tmp_path / name).write_text(text)
        with pytest.raises(sf.errors.CorruptFileError, match=name):
            experiment.captions(tmp_path / name, ["a.jpg"])


def test_what_cannot_be_done_is_refused_by_name(call, folder, bundled, tmp_path):
    with pytest.raises(sf.InputError, match="dtype"):
        load_in("ink", dtype="float8")
    with pytest.raises(sf.InputError, match="height"):
        load_in("digits", height=8)
    with pytest.raises(sf.InputError, match="at least 3"):
        experiment.pictures(folder, 2)
    paths = experiment.pictures(folder, 3)
    with pytest.raises(sf.InputError, match="takes none"):
        experiment.run(load_in("digits"), paths, CAPTION)
    with pytest.raises(sf.InputError, match="'own' is for pipelines"):
        experiment.run(load_in("digits"), paths, None, experiment.Settings(grid="own", steps=2))
    with pytest.raises(sf.UnknownNameError):
        experiment.run(bundled, paths, CAPTION, experiment.Settings(solver="eule"))
    with pytest.raises(sf.InputError, match="positive"):
        experiment.run(bundled, paths, CAPTION, experiment.Settings(directions=0))
    code, _, err = call("lab", "run", "reconstruction", "--model", "ink", "--images", folder, "--out", tmp_path)
    assert code != 0
    assert "--no-captions" in err


def test_a_model_of_pixels_needs_no_codec(folder):
    found = experiment.run(load_in("digits"), experiment.pictures(folder, 3), None, FEW)
    assert all(row.floor == 0.0 and row.image_error == row.latent_error for row in found.rows)
