"""Scores over the features of an exchangeable network: alignment with prompts, structure, distributions.

An `Extractor` turns images into features. The one for the bundled pictures is in `steadyflow_lab.editing.ink`;
`efficientnet.EfficientNetLite0`, for photographs, takes weights that a package carries; `Clip` and `Dino` take weights
that lie on this machine, through transformers; `lpips` and `inception_features` come from torchmetrics. Every extractor
has a `hash` of its weights, to be reported with every number that it gives. Distances between sets of features are in
`samples`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from .._internal import files
from .._internal.imports import needing
from ..errors import InputError
from .images import as_frames


class Extractor(Protocol):
    """A network that sees images of shape (B, 3, H, W) in [-1, 1]: what the scores need."""

    name: str

    @property
    def hash(self) -> str:
        """A hash of the weights; see `weights_hash`."""
        ...

    def features(self, images: Tensor) -> Tensor:
        """Describe each image by one vector.

        Args:
            images: In [-1, 1], shape (B, 3, H, W).

        Returns:
            The vectors, shape (B, d).
        """
        ...

    def patches(self, images: Tensor) -> Tensor:
        """Describe each patch of each image by one vector.

        Args:
            images: In [-1, 1], shape (B, 3, H, W).

        Returns:
            The vectors, shape (B, patches, d).
        """
        ...

    def alignment(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Score how well each image shows its prompt.

        Args:
            images: In [-1, 1], shape (B, 3, H, W).
            prompts: One per image.

        Returns:
            The scores, shape (B,); larger is better.
        """
        ...


def weights_hash(parts: Iterable[nn.Module]) -> str:
    """Hash the weights of networks.

    Args:
        parts: The networks.

    Returns:
        The first sixteen hexadecimal digits of SHA-256 over all weights and their names.
    """
    digest = hashlib.sha256()
    for part in parts:
        for name, value in sorted(part.state_dict().items()):
            digest.update(name.encode())
            digest.update(files.content(value))
    return digest.hexdigest()[:16]


def structure_distance(extractor: Extractor, x: Tensor, y: Tensor) -> Tensor:
    """The structure distance: the mean square difference of the self-similarities of patches (Tumanyan et al. 2022).

    Args:
        extractor: What describes patches; `Dino` in the source.
        x: Images in [-1, 1], shape (B, 3, H, W).
        y: Images of the same shape.

    Returns:
        The distance of each pair, shape (B,).
    """
    check_images(x, y)
    one, two = (_similarities(extractor.patches(images)) for images in (x, y))
    return (one - two).square().flatten(1).mean(1)


def feature_distance(x: Tensor, y: Tensor, *, kind: Literal["cosine", "l2"] = "cosine") -> Tensor:
    """The distance between the features of each pair of images, such as a picture and its edit.

    Args:
        x: Features of one image each, shape (B, d), as `Extractor.features` gives them.
        y: Features of the other, of the same shape.
        kind: "cosine" for 1 minus the cosine, in [0, 2] and blind to the features' scale, or "l2" for the Euclidean
            distance.

    Returns:
        The distance of each pair, shape (B,).

    Raises:
        InputError: The shapes differ or are none of features, or there is no such kind.
    """
    if x.shape != y.shape or x.ndim != 2:
        raise InputError(
            f"feature_distance: got shapes {tuple(x.shape)} and {tuple(y.shape)}, expected (B, d) of both; of images, "
            "give an extractor's features"
        )
    if kind not in ("cosine", "l2"):
        raise InputError(f"feature_distance: kind is {kind!r}, expected 'cosine' or 'l2'")
    if kind == "l2":
        return (x - y).norm(dim=1)
    one, two = functional.normalize(x, dim=1), functional.normalize(y, dim=1)
    return 0.5 * (one - two).square().sum(1)  # exact where they nearly agree, as 1 minus the cosine is not


def precision_recall(found: Tensor, real: Tensor, k: int = 3) -> tuple[float, float]:
    """Precision and recall of a set of samples (Kynkaanniemi et al. 2019).

    Args:
        found: Features of the generated samples, shape (n, d).
        real: Features of the real ones, shape (m, d).
        k: A sample's ball reaches to its k-th nearest neighbour in its own set.

    Returns:
        The share of generated samples within the balls of real ones, and the share of real ones within the balls of
        generated ones.

    Raises:
        InputError: A set has k members or fewer.
    """
    if min(len(found), len(real)) <= k:
        raise InputError(f"precision_recall: got {len(found)} and {len(real)} samples, expected more than k = {k}")
    between = torch.cdist(found, real)
    reach_real, reach_found = (torch.cdist(s, s).kthvalue(k + 1, dim=1).values for s in (real, found))
    precise, recalled = (between <= reach_real).any(1), (between <= reach_found[:, None]).any(0)
    return precise.float().mean().item(), recalled.float().mean().item()


class Clip:
    """CLIP (Radford et al. 2021): alignment is 100 times the cosine between image and prompt, at least 0.

    Args:
        path: A folder with the weights, or the name on the hub of weights that are cached on this machine.

    Raises:
        MissingExtraError: transformers is not installed.
        InputError: There are no weights at the path.
    """

    def __init__(self, path: str | Path = "openai/clip-vit-large-patch14"):
        transformers = _transformers("clip")
        self.name = f"clip ({Path(path).name})"
        self._model = _pretrained(transformers.CLIPModel, path).eval()
        self._tokenizer = _pretrained(transformers.CLIPTokenizer, path)
        self._side = self._model.config.vision_config.image_size

    @property
    def hash(self) -> str:
        return weights_hash([self._model])

    def features(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            seen = self._model.vision_model(pixel_values=resized(images, self._side, _CLIP_MEAN, _CLIP_STD))
            return self._model.visual_projection(seen.pooler_output)

    def patches(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            seen = self._model.vision_model(pixel_values=resized(images, self._side, _CLIP_MEAN, _CLIP_STD))
        return seen.last_hidden_state[:, 1:]

    def alignment(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        words = self._tokenizer(list(prompts), padding=True, truncation=True, return_tensors="pt")
        with torch.no_grad():
            read = self._model.text_projection(self._model.text_model(**words).pooler_output)
        return (100.0 * functional.cosine_similarity(self.features(images), read)).clamp_min(0.0)


class Dino:
    """DINO's vision transformer (Caron et al. 2021); its patches are the last layer's keys, as the structure distance
    takes them. It cannot align images with prompts.

    Args:
        path: A folder with the weights, or the name on the hub of weights that are cached on this machine.
        side: The side in pixels to which images are resized.

    Raises:
        MissingExtraError: transformers is not installed.
        InputError: There are no weights at the path, or they have no layer of keys.
    """

    def __init__(self, path: str | Path = "facebook/dino-vitb8", side: int = 224):
        transformers = _transformers("dino")
        self.name = f"dino ({Path(path).name})"
        self._model = _pretrained(transformers.ViTModel, path, add_pooling_layer=False).eval()
        self._side = side
        keys = [part for name, part in self._model.named_modules() if name.endswith((".k_proj", ".key"))]
        if not keys:
            raise InputError(f"dino: {path} has no layer of keys that we know")
        self._key = keys[-1]

    @property
    def hash(self) -> str:
        return weights_hash([self._model])

    def _see(self, images: Tensor) -> tuple[Tensor, Tensor]:
        keys: list[Tensor] = []
        handle = self._key.register_forward_hook(lambda module, inputs, output: keys.append(output))
        try:
            with torch.no_grad():
                pixels = resized(images, self._side, _IMAGENET_MEAN, _IMAGENET_STD)
                state = self._model(pixel_values=pixels, interpolate_pos_encoding=True).last_hidden_state
        finally:
            handle.remove()
        return state[:, 0], keys[0]

    def features(self, images: Tensor) -> Tensor:
        return self._see(images)[0]

    def patches(self, images: Tensor) -> Tensor:
        return self._see(images)[1]

    def alignment(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        raise InputError("dino: reads no prompts; take clip for alignment")


def lpips(x: Tensor, y: Tensor, *, net: Literal["alex", "vgg", "squeeze"] = "squeeze") -> Tensor:
    """LPIPS (Zhang et al. 2018) of each pair of images, by torchmetrics.

    Args:
        x: Images in [-1, 1], shape (B, 3, H, W), or videos, shape (B, 3, F, H, W), whose frames' mean is taken.
        y: Images or videos of the same shape.
        net: The network whose features are compared.

    Returns:
        The distance of each pair, shape (B,).

    Raises:
        MissingExtraError: torchmetrics is not installed, or torchvision, whose weights it needs.
    """
    with needing(
        "torchmetrics with torchvision",
        "torchmetrics",
        "torchvision",
        extra="metrics",
        purpose="LPIPS",
        beside=("torchvision",),
    ):
        import torchvision  # noqa: F401  # pyright: ignore[reportMissingImports]
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
    measure = LearnedPerceptualImagePatchSimilarity(net_type=net, reduction="none")
    with torch.no_grad():
        found = measure(as_frames(x).clamp(-1.0, 1.0), as_frames(y).clamp(-1.0, 1.0))
    return found.view(len(x), -1).mean(1) if x.ndim == 5 else found


def inception_features(images: Tensor, path: str | None = None) -> Tensor:
    """The 2,048 features of Inception from which FID is computed, by torchmetrics with torch-fidelity.

    Args:
        images: In [-1, 1], shape (B, 3, H, W).
        path: The file of the weights, where they are not in torch-fidelity's cache.

    Returns:
        The features, shape (B, 2048).

    Raises:
        MissingExtraError: torchmetrics or torch-fidelity is not installed.
    """
    with needing(
        "torchmetrics with torch-fidelity",
        "torchmetrics",
        "torch_fidelity",
        extra="metrics",
        purpose="the use of Inception features",
        beside=("torch-fidelity",),
    ):
        import torch_fidelity  # noqa: F401  # pyright: ignore[reportMissingImports]
        from torchmetrics.image.fid import NoTrainInceptionV3
    network = NoTrainInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=path)
    check_images(images)
    with torch.no_grad():
        return network(((images.clamp(-1.0, 1.0) + 1.0) * 127.5).round().to(torch.uint8))


_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _similarities(patches: Tensor) -> Tensor:
    unit = functional.normalize(patches, dim=2)
    return unit @ unit.transpose(1, 2)


def check_images(*batches: Tensor) -> None:
    """Raise `InputError` for what is no batch of images, such as videos, whose frames `as_frames` gives."""
    for images in batches:
        if images.ndim != 4:
            raise InputError(
                f"images: got shape {tuple(images.shape)}, expected (B, 3, H, W); of videos, give the frames: "
                "steadyflow.metrics.as_frames(videos)"
            )


def resized(images: Tensor, side: int, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Images in [-1, 1], resized and normalised as a network for photographs expects them.

    Args:
        images: Of shape (B, 3, H, W).
        side: The side of the square that is returned.
        mean: What is subtracted from each channel's values in [0, 1].
        std: What they are then divided by.
    """
    check_images(images)
    values = functional.interpolate((images + 1.0) / 2.0, (side, side), mode="bicubic", antialias=True)
    center, scale = (values.new_tensor(v).view(1, 3, 1, 1) for v in (mean, std))
    return (values.clamp(0.0, 1.0) - center) / scale


def _transformers(name: str) -> ModuleType:
    with needing("transformers", "transformers", extra="diffusers", purpose=f"{name} features"):
        import transformers
    return transformers


def _pretrained(kind: Any, path: str | Path, **options: Any) -> Any:
    try:
        return kind.from_pretrained(str(path), **options)
    except (OSError, ValueError) as error:
        raise InputError(
            f"weights: none for {kind.__name__} at {path!s}; give a folder with them, or fetch them once on a machine "
            "with a network"
        ) from error
