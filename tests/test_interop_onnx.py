"""Networks in ONNX files as models, against the torch network that they were exported from."""

import json

import pytest
import torch
from torch import nn

import steadyflow as sf
from steadyflow.jacobians import FlowMap
from steadyflow.loading import fingerprint

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytestmark = pytest.mark.filterwarnings("ignore")  # of the exporter


class Net(nn.Module):
    """v prediction of a small picture, with or without a label."""

    def __init__(self, classes=0, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(classes, 8) if classes else None
        self.inner = nn.Sequential(nn.Linear(17 + (8 if classes else 0), 32), nn.Tanh(), nn.Linear(32, 16))

    def forward(self, x, t, label=None):
        parts = [x.flatten(1), t.reshape(-1, 1).to(x.dtype).expand(len(x), 1)]
        if self.embed is not None:
            parts.append(self.embed(label))
        return self.inner(torch.cat(parts, 1)).reshape(x.shape)


def write(path, net, args, names, batch="B", beside=False):
    free = torch.export.Dim("B", min=1)
    shapes = {name: {0: free} for name in ("x", "t", "label")[: len(args)]} if batch == "B" else None
    torch.onnx.export(
        net.eval(), args, path, input_names=names, output_names=["out"], dynamo=True, verbose=False,
        dynamic_shapes=shapes, external_data=beside,
    )  # fmt: skip
    return path


X, T, LABEL = torch.randn(3, 1, 4, 4), torch.tensor([0.2, 0.5, 0.9]), torch.tensor([0, 2, 1])
PATH = sf.VPCosine()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    return {
        "plain": write(folder / "plain.onnx", Net(), (X, T), ["x", "t"]),
        "label": write(folder / "label.onnx", Net(3), (X, T, LABEL), ["sample", "timestep", "label"]),
        "fixed": write(folder / "fixed.onnx", Net(), (X, T), ["a", "b"], batch=3),
        "one time": write(folder / "one.onnx", Net(), (X, T[0]), ["x", "t"], batch=3),
        "whole": write(folder / "whole.onnx", Net(), (X, T.long()), ["x", "t"]),
    }


def load(file, **options):
    return sf.from_onnx(file, PATH, prediction="v_prediction", **options)


def mine(net=None, **options):
    return sf.Denoiser((net or Net()).eval(), PATH, "v_prediction", shape=(1, 4, 4), **options)


def test_the_file_is_the_network_in_batches_of_any_size(files):
    model, own = load(files["plain"]), mine()
    assert model.shape == (1, 4, 4)
    for n in (1, 3, 10):
        x = torch.randn(n, 1, 4, 4)
        torch.testing.assert_close(model(x, 0.3).x0, own(x, 0.3).x0, rtol=1e-4, atol=1e-5)
    times = torch.linspace(0.1, 0.9, 10)
    torch.testing.assert_close(model(x, times).x0, own(x, times).x0, rtol=1e-4, atol=1e-5)
    ours, theirs = (sf.sample(m, n=5, nfe=20, seed=1).x for m in (model, own))
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert model(x.double(), 0.3).x0.dtype == torch.float64


def test_conditions_by_their_names_or_alone(files):
    model, own = load(files["label"], null=0, classes=3), mine(Net(3), null=0)
    x = torch.randn(5, 1, 4, 4)
    labels = torch.tensor([0, 1, 2, 1, 0])
    for given in (labels, {"label": labels}):
        found = model.with_condition(given)(x, 0.3).x0
        torch.testing.assert_close(found, own.with_condition(labels)(x, 0.3).x0, rtol=1e-4, atol=1e-5)
    guided = model.with_condition(2, guidance=3.0)(x, 0.3).x0
    torch.testing.assert_close(guided, own.with_condition(2, guidance=3.0)(x, 0.3).x0, rtol=1e-4, atol=1e-4)
    with pytest.raises(sf.InputError, match="condition: got none, but the network has the inputs label"):
        model(x, 0.3)
    with pytest.raises(sf.InputError, match=r"condition: the input 'label' takes whole numbers, got torch.float32"):
        model.with_condition({"label": labels.float()})(x, 0.3)
    with pytest.raises(sf.InputError, match="condition: got word, but the network has the inputs label"):
        model.with_condition({"word": labels})(x, 0.3)
    with pytest.raises(sf.InputError, match="condition: got 1, but the model 'plain' takes none"):
        load(files["plain"]).with_condition(1)


@pytest.mark.parametrize("n", [1, 3, 7])
def test_a_fixed_batch_size_is_kept(files, n):
    own, x, times = mine(), torch.randn(n, 1, 4, 4), torch.linspace(0.1, 0.9, n)
    model = load(files["fixed"], inputs={"x": "a", "time": "b"})
    torch.testing.assert_close(model(x, times).x0, own(x, times).x0, rtol=1e-4, atol=1e-5)
    found = load(files["fixed"])  # told by their shapes
    torch.testing.assert_close(found(x, times).x0, own(x, times).x0, rtol=1e-4, atol=1e-5)
    scalar = load(files["one time"])
    torch.testing.assert_close(scalar(x, 0.3).x0, own(x, 0.3).x0, rtol=1e-4, atol=1e-5)
    if n > 1:
        with pytest.raises(sf.InputError, match="time: the input 't' takes one time for the batch"):
            scalar(x, times)


def test_whole_times_are_not_made_of_others_silently(files):
    table = sf.Tabulated.linear(100)
    model = sf.from_onnx(files["whole"], table, prediction="epsilon")
    own = sf.Denoiser(Net().eval(), table, shape=(1, 4, 4))
    torch.testing.assert_close(model(X, 40.0).eps, own(X, 40.0).eps, rtol=1e-4, atol=1e-4)
    with pytest.raises(sf.InputError, match=r"time: the input 't' takes whole numbers, but a solver asks at 40.4"):
        model(X, 40.4)
    rounded = sf.from_onnx(files["whole"], table, prediction="epsilon", round_time=True)
    torch.testing.assert_close(rounded(X, 40.4).eps, own(X, 40.0).eps, rtol=1e-4, atol=1e-4)


def test_what_is_described_in_the_file_need_not_be_given(files, tmp_path):
    file = tmp_path / "described.onnx"
    file.write_bytes(files["label"].read_bytes())
    given = mine(Net(3), null=0, classes=3, time_scale=1000.0)
    sf.describe_onnx(file, given)
    sf.describe_onnx(file, given)  # again, in its place
    model = sf.from_onnx(file)
    assert (model.schedule, model.prediction, model.shape) == (PATH, "v_prediction", (1, 4, 4))
    assert (model.null, model.classes, model.time_scale) == (0, 3, 1000.0)
    x = torch.randn(2, 1, 4, 4)
    found, own = (m.with_condition(1, guidance=2.0)(x, 0.4).x0 for m in (model, given))
    torch.testing.assert_close(found, own, rtol=1e-4, atol=1e-4)
    other = sf.from_onnx(file, sf.RectifiedFlow(), prediction="flow", time_scale=1.0)
    assert (other.schedule, other.prediction, other.time_scale) == (sf.RectifiedFlow(), "flow", 1.0)
    with pytest.raises(sf.InputError, match="smoothing: the file cannot hold it"):
        sf.describe_onnx(file, given.with_smoothing(0.1))
    broken = onnx.load(file)
    onnx.helper.set_model_props(broken, {"steadyflow": json.dumps([1, 2])})
    onnx.save(broken, file)
    with pytest.raises(sf.CorruptFileError, match="the metadata 'steadyflow' is damaged"):
        sf.from_onnx(file)


def test_gradients_are_refused_by_name(files):
    model = load(files["plain"])
    x = torch.randn(2, 1, 4, 4)
    with pytest.raises(sf.InputError, match="gradients: a network in an ONNX file has none"):
        sf.log_likelihood(model, x, steps=2)
    with pytest.raises(sf.InputError, match="gradients: a network in an ONNX file has none"):
        sf.sample(model, x=x.requires_grad_(), steps=2)
    flow = FlowMap(model, sf.grids.make("uniform", PATH, 2), sf.solvers.get("euler"))
    with pytest.raises(sf.InputError, match="gradients: a network in an ONNX file has none"):
        flow.jvp(x.detach(), x.detach())


def test_networks_are_told_apart_by_their_weights_in_a_file_beside_theirs(tmp_path):
    seen = set()
    for seed in (1, 2):
        (tmp_path / str(seed)).mkdir()
        file = write(tmp_path / str(seed) / "net.onnx", Net(seed=seed), (X, T), ["x", "t"], beside=True)
        assert (file.parent / "net.onnx.data").exists()
        assert fingerprint(load(file)) == fingerprint(load(file))
        seen.add(fingerprint(load(file)))
    assert len(seen) == 2


def test_what_is_refused(files, tmp_path):
    with pytest.raises(sf.InputError, match="schedule: the file does not say it"):
        sf.from_onnx(files["plain"])
    with pytest.raises(sf.InputError, match="prediction: the file does not say it"):
        sf.from_onnx(files["plain"], PATH)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none.onnx")
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"no network")
    with pytest.raises(sf.CorruptFileError, match="no network that onnxruntime can load"):
        load(bad)
    with pytest.raises(sf.InputError, match="providers: CUDAExecutionProvider is not available; this onnxruntime has"):
        load(files["plain"], device="cuda")
    with pytest.raises(sf.InputError, match="providers: Nothing is not available"):
        load(files["plain"], providers=["Nothing"])
    with pytest.raises(sf.InputError, match="device: got 'tpu', expected cpu or cuda"):
        load(files["plain"], device="tpu")
    with pytest.raises(sf.InputError, match="device: got 'cuda' beside providers"):
        load(files["plain"], device="cuda", providers=["CPUExecutionProvider"])
    assert load(files["plain"], providers=[("CPUExecutionProvider", {})])(X, 0.5).x0.shape == X.shape
    with pytest.raises(sf.InputError, match="inputs: 'y' for 'x' does not exist; the network has x, t"):
        load(files["plain"], inputs={"x": "y"})
    with pytest.raises(sf.InputError, match="inputs: got image, expected the names for 'x' and 'time'"):
        load(files["plain"], inputs={"image": "x"})
    with pytest.raises(sf.InputError, match="inputs: 'x' is given as 'x' and as 'time'"):
        load(files["plain"], inputs={"x": "x", "time": "x"})
    with pytest.raises(sf.InputError, match="output: got 'y', but the network has out"):
        load(files["plain"], output="y")
    with pytest.raises(sf.InputError, match="network: onnxruntime refused 2 samples"):
        load(files["plain"])(torch.zeros(2, 1, 3, 3), 0.5)
