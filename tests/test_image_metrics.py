"""Image metrics against scikit-image, closed forms and brute force; extractors over tiny random networks from disk."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

import steadyflow as sf
from steadyflow.metrics import Clip, Dino, frechet_distance, ms_ssim, mse, precision_recall, psnr, ssim
from steadyflow.metrics import structure_distance as structure

pytest.importorskip("torchmetrics")


def pair(n=3, side=32, noise=0.2):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(n, 3, 6, 6, generator=generator)
    x = torch.nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1)
    return x, (x + noise * torch.randn(x.shape, generator=generator)).clamp(0, 1)


def test_psnr_and_ssim_are_those_of_scikit_image():
    x, y = pair()
    inner = torch.zeros(1, 1, 32, 32)
    inner[..., 5:-5, 5:-5] = 1.0  # scikit-image leaves the border out
    for k in range(len(x)):
        a, b = x[k].permute(1, 2, 0).numpy(), y[k].permute(1, 2, 0).numpy()
        assert psnr(x, y, span=1.0)[k].item() == pytest.approx(peak_signal_noise_ratio(a, b, data_range=1.0), abs=1e-3)
        expected = structural_similarity(
            a, b, data_range=1.0, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert ssim(x, y, span=1.0, region=inner)[k].item() == pytest.approx(expected, abs=1e-3)
    assert torch.allclose(ssim(x, x, span=1.0), torch.ones(3))
    assert torch.allclose(ms_ssim(x, x, span=1.0), torch.ones(3))
    assert (ms_ssim(x, y, span=1.0) < 0.95).all()
    assert (ms_ssim(*pair(1, 192), span=1.0) < 1.0).all()


def test_regions_see_only_themselves():
    x, y = pair()
    half = torch.zeros(1, 1, 32, 32)
    half[..., :16] = 1.0
    y = torch.where(half.bool(), x, y)
    assert (mse(x, y, region=half) == 0).all()
    assert torch.allclose(mse(x, y, region=1.0 - half), 2.0 * mse(x, y))
    assert psnr(x, y, span=1.0, region=half).isinf().all()
    assert (ssim(x, y, span=1.0, region=half) > ssim(x, y, span=1.0, region=1.0 - half)).all()
    assert mse(x, y, region=torch.zeros(1, 1, 32, 32)).isnan().all()


def test_the_frechet_distance_is_that_of_two_gaussians():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 5, generator=generator, dtype=torch.float64)
    y = (
        0.5 * torch.randn(4000, 5, generator=generator, dtype=torch.float64) @ torch.randn(5, 5, dtype=torch.float64)
        + 1
    )
    a, b = np.cov(x.numpy().T), np.cov(y.numpy().T)
    gap = (x.mean(0) - y.mean(0)).square().sum().item()
    expected = gap + np.trace(a + b - 2.0 * scipy.linalg.sqrtm(a @ b).real)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(x, x) == pytest.approx(0.0, abs=1e-9)


def test_precision_and_recall_tell_missing_modes_from_impossible_samples():
    generator = torch.Generator().manual_seed(0)
    real = torch.cat([torch.randn(200, 2, generator=generator), torch.randn(200, 2, generator=generator) + 50])
    one_mode = torch.randn(400, 2, generator=generator)
    precise, recalled = precision_recall(one_mode, real)
    assert precise > 0.85
    assert recalled == pytest.approx(0.5, abs=0.08)
    stray = torch.cat([real[:200] + 0.01, torch.full((200, 2), 25.0) + torch.randn(200, 2, generator=generator)])
    precise, _ = precision_recall(stray, real)
    assert precise == pytest.approx(0.5, abs=0.02)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    import pipelines

    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    text = {"hidden_size": 32, "intermediate_size": 37, "num_attention_heads": 4, "num_hidden_layers": 2}
    config = transformers.CLIPConfig(
        text_config={**text, "vocab_size": 1000, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1},
        vision_config={**text, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    transformers.CLIPModel(config).eval().save_pretrained(folder)
    pipelines._clip_tokenizer().save_pretrained(folder)
    return folder


def test_alignment_is_the_cosine_that_transformers_gives(clip_folder):
    import transformers

    extractor = Clip(clip_folder)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    prompts = ["a cat", "a dog on a mat"]
    model = transformers.CLIPModel.from_pretrained(clip_folder).eval()
    words = extractor._tokenizer(prompts, padding=True, return_tensors="pt")
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
    with torch.no_grad():
        seen = model(pixel_values=((images + 1) / 2 - mean) / std, **words)
    expected = 100.0 * (seen.image_embeds * seen.text_embeds).sum(1)
    assert torch.allclose(extractor.alignment(images, prompts), expected.clamp_min(0.0), atol=1e-3)
    assert extractor.hash == Clip(clip_folder).hash
    assert len(extractor.hash) == 16
    assert structure(extractor, images, images).abs().max() < 1e-6


def test_structure_is_read_from_the_keys_of_the_last_layer(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    net = transformers.ViTModel(
        transformers.ViTConfig(**sizes, image_size=32, patch_size=8), add_pooling_layer=False
    ).eval()
    net.save_pretrained(tmp_path)
    extractor = Dino(tmp_path, side=32)
    x, y = (2 * v - 1 for v in pair())
    assert extractor.patches(x).shape == (3, 17, 32)
    assert extractor.features(x).shape == (3, 32)
    near, far = structure(extractor, x, x + 0.01), structure(extractor, x, y)
    assert (near < far).all()
    with pytest.raises(sf.InputError, match="reads no prompts"):
        extractor.alignment(x, ["a"])


def test_what_is_missing_is_named(tmp_path):
    x, y = pair()
    with pytest.raises(sf.InputError, match="fetch them once"):
        Clip(tmp_path)
    with pytest.raises(sf.InputError, match="shapes"):
        ssim(x, y[:, :1], span=1.0)
    with pytest.raises(sf.InputError, match="does not fit"):
        mse(x, y, region=torch.zeros(1, 1, 5, 5))
    with pytest.raises(sf.InputError, match="window"):
        ms_ssim(x[..., :8, :8], y[..., :8, :8], span=1.0)
    with pytest.raises(sf.InputError, match="more than k"):
        precision_recall(torch.zeros(2, 2), torch.zeros(9, 2))
    try:
        import torchvision  # noqa: F401
    except ImportError:
        with pytest.raises(sf.MissingExtraError, match="torchvision"):
            sf.metrics.lpips(x, y)
    except RuntimeError:  # built for another torch
        with pytest.raises(sf.BrokenExtraError, match="torchvision"):
            sf.metrics.lpips(x, y)
    assert math.isfinite(psnr(x, y, span=1.0)[0])
