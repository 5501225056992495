"""Pictures are read as viewers show them, and what cannot be images in [-1, 1] is refused or warned of."""

import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from safetensors.torch import save_file

import steadyflow as sf
from steadyflow.datasets import arrays

GENERATOR = np.random.default_rng(3)
H, W = 4, 6
COLOURS = GENERATOR.integers(0, 256, (H, W, 3), dtype=np.uint8)
GREYS = np.ascontiguousarray(COLOURS[:, :, 0])
ALPHA = np.linspace(0, 255, H * W).round().astype(np.uint8).reshape(H, W)
RAMP = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
TURNS = {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: np.swapaxes(stored, 0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(np.swapaxes(stored, 0, 1), 2),
    8: np.rot90,
}
"""How a viewer turns what is stored, by the number of its EXIF orientation."""


def levels(path, *shape, **options):
    """A picture of this shape as it is read, in [0, 255], shape (h, w) or (h, w, 3)."""
    x = arrays.read(path, shape, **options)
    assert x.shape == (1, *shape)
    assert x.dtype == torch.float32
    return ((x[0].permute(1, 2, 0) + 1.0) * 127.5).squeeze(2).numpy()


def silent_levels(path, *shape):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return levels(path, *shape)


def over_white(values, alpha):
    share = alpha / 255.0 if values.ndim == alpha.ndim else alpha[:, :, None] / 255.0
    return share * values + (1.0 - share) * 255.0


def luma(colours):
    return colours @ np.array([0.299, 0.587, 0.114])


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def write_png_of_16_bits(path, values):
    """A PNG of 16-bit colours, which Pillow cannot write."""
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in values))
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)


def icc_profile(primaries):
    """An RGB profile without gamma, whose primaries are these columns of XYZ (version 2 of the format)."""

    def fixed(*values):
        return struct.pack(f">{len(values)}i", *(round(v * 65536) for v in values))

    def xyz(values):
        return b"XYZ \0\0\0\0" + fixed(*values)

    name = b"plain light\0"
    tags = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(name)) + name + bytes(78),
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": xyz(D50),
        **{kind + b"XYZ": xyz(column) for kind, column in zip((b"r", b"g", b"b"), primaries, strict=True)},
        **{kind + b"TRC": b"curv\0\0\0\0" + struct.pack(">I", 0) for kind in (b"r", b"g", b"b")},
    }
    table, body, start = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for kind, data in tags.items():
        table += kind + struct.pack(">II", start + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4sI4s4s4s12s4s", start + len(body), bytes(4), 0x02400000, b"mntr", b"RGB ", b"XYZ ",
                       struct.pack(">6H", 2020, 1, 1, 0, 0, 0), b"acsp")  # fmt: skip
    return (head + bytes(28) + fixed(*D50)).ljust(128, b"\0") + table + body


D50 = (0.9642, 1.0, 0.8249)
SRGB_PRIMARIES = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.7141))


def encoded(light):
    """sRGB's levels of linear light in [0, 1]."""
    return 255.0 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
@pytest.mark.parametrize("orientation", TURNS)
def test_a_picture_is_turned_as_its_exif_orientation_says(tmp_path, suffix, orientation):
    path, exif = tmp_path / f"turned.{suffix}", Image.Exif()
    exif[0x0112] = orientation
    options = {} if suffix == "png" else {"quality": 95} if suffix == "jpg" else {"lossless": True}
    Image.fromarray(COLOURS).save(path, exif=exif, **options)
    with Image.open(path) as image:
        assert image.getexif()[0x0112] == orientation
        stored = np.asarray(image.convert("RGB"))
    assert stored.shape == COLOURS.shape
    expected = TURNS[orientation](stored)
    np.testing.assert_allclose(silent_levels(path, 3, *expected.shape[:2]), expected, atol=1e-3)


def test_grey_of_16_bits_is_turned_too(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    values = GENERATOR.integers(0, 2**16, (H, W), dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "x.png", exif=exif)
    np.testing.assert_allclose(silent_levels(tmp_path / "x.png", 1, W, H), np.rot90(values, -1) / 257.0, atol=0.51)


@pytest.mark.parametrize("shape", [(1, 256, 256), (3, 256, 256)], ids=["to grey", "to colour"])
@pytest.mark.parametrize("kind", ["png", "tif", "tif of the other byte order"])
def test_grey_of_16_bits_is_scaled(tmp_path, kind, shape):
    path = tmp_path / f"ramp.{kind[:3]}"
    other = kind.endswith("order")
    image = Image.frombytes("I;16B", RAMP.shape, RAMP.astype(">u2").tobytes()) if other else Image.fromarray(RAMP)
    image.save(path)
    with Image.open(path) as image:
        assert image.mode == ("I;16B" if other else "I;16")
    found = silent_levels(path, *shape)
    expected = RAMP / 65535.0 if shape[0] == 1 else (RAMP / 65535.0)[:, :, None].repeat(3, 2)
    assert np.abs(found / 255.0 - expected).max() < 1 / 255


def test_colour_of_16_bits_is_scaled(tmp_path):
    values = np.stack([RAMP, RAMP[::-1], RAMP.T], 2)
    write_png_of_16_bits(tmp_path / "x.png", values)
    assert np.abs(silent_levels(tmp_path / "x.png", 3, 256, 256) / 255.0 - values / 65535.0).max() < 1 / 255


@pytest.mark.parametrize(("dtype", "mode"), [(np.float32, "F"), (np.int32, "I")])
def test_values_without_a_known_range_are_refused_with_the_name_of_their_mode(tmp_path, dtype, mode):
    path = tmp_path / "range.tif"
    Image.fromarray(np.arange(H * W).reshape(H, W).astype(dtype)).save(path)
    with Image.open(path) as image:
        assert image.mode == mode
    for shape in ((1, H, W), (3, H, W)):
        with pytest.raises(sf.InputError, match=rf"range\.tif: .*mode '{mode}'"):
            arrays.read(path, shape)


PALETTE = GENERATOR.integers(0, 256, (4, 3), dtype=np.uint8)
INDICES = np.arange(H * W, dtype=np.uint8).reshape(H, W) % 4


def with_palette():
    image = Image.frombytes("P", (W, H), INDICES.tobytes())
    image.putpalette(PALETTE.tobytes())
    return image


@pytest.mark.parametrize("suffix", ["png", "gif", "bmp", "tif"])
def test_palettes_become_colours(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    with_palette().save(path)
    with Image.open(path) as image:
        assert image.mode == "P"
    np.testing.assert_allclose(silent_levels(path, 3, H, W), PALETTE[INDICES], atol=1e-3)
    np.testing.assert_allclose(silent_levels(path, 1, H, W), luma(PALETTE[INDICES]), atol=1.0)


@pytest.mark.parametrize(("suffix", "given", "alpha"), [
    ("png", bytes([255, 0, 128, 255]), [255, 0, 128, 255]),
    ("png", 2, [255, 255, 0, 255]),
    ("gif", 1, [255, 0, 255, 255]),
])  # fmt: skip
def test_what_a_palette_leaves_transparent_lies_over_white_with_a_warning(tmp_path, suffix, given, alpha):
    path = tmp_path / f"clear.{suffix}"
    with_palette().save(path, transparency=given)
    expected = over_white(PALETTE[INDICES], np.array(alpha)[INDICES])
    with pytest.warns(UserWarning, match=rf"clear\.{suffix}: is transparent"):
        found = levels(path, 3, H, W)
    np.testing.assert_allclose(found, expected, atol=1.0)


def test_a_transparent_entry_of_a_palette_that_no_pixel_has_gives_no_warning(tmp_path):
    image = with_palette()
    image.putpalette(np.concatenate([PALETTE, [[1, 2, 3]]]).astype(np.uint8).tobytes())
    image.save(tmp_path / "x.png", transparency=4)
    np.testing.assert_allclose(silent_levels(tmp_path / "x.png", 3, H, W), PALETTE[INDICES], atol=1e-3)


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk_becomes_colours(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    Image.frombytes("CMYK", (W, H), GENERATOR.integers(0, 256, (H, W, 4), dtype=np.uint8).tobytes()).save(path)
    with Image.open(path) as image:
        assert image.mode == "CMYK"
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_allclose(silent_levels(path, 3, H, W), expected, atol=1e-3)
    np.testing.assert_allclose(silent_levels(path, 1, H, W), luma(expected), atol=1.0)


CLEAR = np.where(GREYS[1, 2] == GREYS, 0, 255)
CLEAR_COLOUR = np.where((COLOURS[1, 2] == COLOURS).all(2), 0, 255)
WORDS = GREYS.astype(np.uint16) * 257
TRANSPARENT = {
    "RGBA": (np.dstack([COLOURS, ALPHA]), {}, over_white(COLOURS, ALPHA)),
    "LA": (np.dstack([GREYS, ALPHA]), {}, over_white(GREYS, ALPHA)),
    "colour with tRNS": (COLOURS, {"transparency": tuple(map(int, COLOURS[1, 2]))}, over_white(COLOURS, CLEAR_COLOUR)),
    "grey with tRNS": (GREYS, {"transparency": int(GREYS[1, 2])}, over_white(GREYS, CLEAR)),
    "grey of 16 bits with tRNS": (WORDS, {"transparency": int(WORDS[1, 2])}, over_white(GREYS, CLEAR)),
}


@pytest.mark.parametrize(("values", "options", "expected"), TRANSPARENT.values(), ids=TRANSPARENT)
def test_what_is_transparent_lies_over_white_with_a_warning_that_names_the_file(tmp_path, values, options, expected):
    path = tmp_path / "clear.png"
    Image.fromarray(values).save(path, **options)
    in_colour = expected if expected.ndim == 3 else expected[:, :, None].repeat(3, 2)
    for shape, wanted in (((3, H, W), in_colour), ((1, H, W), luma(in_colour))):
        with pytest.warns(UserWarning, match=r"clear\.png: is transparent in places"):
            found = levels(path, *shape)
        np.testing.assert_allclose(found, wanted, atol=1.01)


def test_transparency_of_webp_and_tiff_lies_over_white_too(tmp_path):
    for name, options in (("clear.webp", {"lossless": True, "exact": True}), ("clear.tif", {})):
        Image.fromarray(np.dstack([COLOURS, ALPHA])).save(tmp_path / name, **options)
        with pytest.warns(UserWarning, match=f"{name}: is transparent in places"):
            found = levels(tmp_path / name, 3, H, W)
        np.testing.assert_allclose(found, over_white(COLOURS, ALPHA), atol=1.01)


@pytest.mark.parametrize("values", [COLOURS, GREYS], ids=["RGBA", "LA"])
def test_an_opaque_alpha_gives_no_warning(tmp_path, values):
    Image.fromarray(np.dstack([values, np.full((H, W), 255, np.uint8)])).save(tmp_path / "x.png")
    expected = values if values.ndim == 3 else values[:, :, None].repeat(3, 2)
    np.testing.assert_allclose(silent_levels(tmp_path / "x.png", 3, H, W), expected, atol=1e-3)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
@pytest.mark.parametrize("count", [2, 3])
def test_of_an_animation_the_first_frame_is_taken_with_a_warning_that_counts_them(tmp_path, suffix, count):
    path = tmp_path / f"moving.{suffix}"
    flat = [Image.new("RGB", (W, H), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    options = {"lossless": True} if suffix == "webp" else {}
    flat[0].save(path, save_all=True, append_images=flat[1:count], **options)
    with pytest.warns(UserWarning, match=rf"moving\.{suffix}: has {count} frames, of which the first") as given:
        found = levels(path, 3, H, W)
    assert len(given) == 1
    np.testing.assert_allclose(found, np.broadcast_to([255, 0, 0], (H, W, 3)), atol=1e-3)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_an_animation_of_one_frame_gives_no_warning(tmp_path, suffix):
    path = tmp_path / f"still.{suffix}"
    Image.new("RGB", (W, H), (255, 0, 0)).save(path, save_all=True)
    np.testing.assert_allclose(silent_levels(path, 3, H, W), np.broadcast_to([255, 0, 0], (H, W, 3)), atol=2.0)


@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_colours_of_srgb_are_left_as_they_are(tmp_path, suffix):
    path, profile = tmp_path / f"x.{suffix}", ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    assert "sRGB" in ImageCms.getProfileDescription(profile)
    Image.fromarray(COLOURS).save(
        path, icc_profile=profile.tobytes(), **({"lossless": True} if suffix == "webp" else {})
    )
    np.testing.assert_allclose(silent_levels(path, 3, H, W), COLOURS, atol=1e-3)


@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_a_colour_profile_is_applied(tmp_path, suffix):
    red, green, blue = SRGB_PRIMARIES
    profile = icc_profile((green, blue, red))  # what is stored as red is sRGB's green, and so on
    path, options = tmp_path / f"x.{suffix}", {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(COLOURS).save(path, icc_profile=profile, **options)
    expected = encoded(COLOURS[:, :, [2, 0, 1]] / 255.0)
    assert np.abs(expected - COLOURS).max() > 50
    np.testing.assert_allclose(silent_levels(path, 3, H, W), expected, atol=2.0)
    np.testing.assert_allclose(silent_levels(path, 1, H, W), luma(expected), atol=2.0)


def test_a_colour_profile_is_applied_to_palettes_and_to_opaque_and_transparent_colours(tmp_path):
    profile = icc_profile(SRGB_PRIMARIES)
    with_palette().save(tmp_path / "palette.png", icc_profile=profile)
    expected = encoded(PALETTE[INDICES] / 255.0)
    np.testing.assert_allclose(silent_levels(tmp_path / "palette.png", 3, H, W), expected, atol=2.0)
    expected, opaque = encoded(COLOURS / 255.0), np.full((H, W), 255, np.uint8)
    Image.fromarray(np.dstack([COLOURS, opaque])).save(tmp_path / "opaque.png", icc_profile=profile)
    np.testing.assert_allclose(silent_levels(tmp_path / "opaque.png", 3, H, W), expected, atol=2.0)
    half = np.where(ALPHA < 128, 0, 255).astype(np.uint8)
    Image.fromarray(np.dstack([COLOURS, half])).save(tmp_path / "clear.png", icc_profile=profile)
    with pytest.warns(UserWarning, match=r"clear\.png: is transparent"):
        found = levels(tmp_path / "clear.png", 3, H, W)
    np.testing.assert_allclose(found, over_white(expected, half), atol=2.0)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_a_damaged_colour_profile_is_left_out_with_a_warning(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    for profile in (b"this is no profile", icc_profile(SRGB_PRIMARIES)[:200]):
        Image.fromarray(COLOURS).save(path, icc_profile=profile)
        with Image.open(path) as image:
            assert image.info["icc_profile"] == profile
            expected = np.asarray(image.convert("RGB"))
        with pytest.warns(UserWarning, match="profile is damaged"):
            found = levels(path, 3, H, W)
        np.testing.assert_allclose(found, expected, atol=1e-3)


def test_grey_samples_are_read_from_grey_and_from_coloured_pictures(tmp_path):
    Image.fromarray(GREYS).save(tmp_path / "grey.png")
    Image.fromarray(COLOURS).save(tmp_path / "colour.png")
    Image.fromarray(GREYS > 127).save(tmp_path / "bits.png")
    np.testing.assert_allclose(silent_levels(tmp_path / "grey.png", 1, H, W), GREYS, atol=1e-3)
    np.testing.assert_allclose(silent_levels(tmp_path / "colour.png", 1, H, W), luma(COLOURS), atol=1.0)
    np.testing.assert_allclose(silent_levels(tmp_path / "bits.png", 1, H, W), 255.0 * (GREYS > 127), atol=1e-3)
    np.testing.assert_allclose(silent_levels(tmp_path / "grey.png", 3, H, W), GREYS[:, :, None].repeat(3, 2), atol=1e-3)


def test_a_picture_of_another_size_is_refused_with_both_sizes_and_the_way_out(tmp_path):
    Image.fromarray(COLOURS).save(tmp_path / "small.png")
    with pytest.raises(sf.InputError, match=r"small\.png: .*6 x 4, the model's samples are 32 x 16; .*--resize"):
        arrays.read(tmp_path / "small.png", (3, 16, 32))
    assert arrays.read(tmp_path / "small.png", (3, 16, 32), resize=True).shape == (1, 3, 16, 32)


def test_the_size_of_a_turned_picture_is_that_which_viewers_show(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.fromarray(COLOURS).save(tmp_path / "x.png", exif=exif)
    with pytest.raises(sf.InputError, match="picture is 4 x 6, the model's samples are 6 x 4"):
        arrays.read(tmp_path / "x.png", (3, H, W))


def test_arrays_of_bytes_are_refused_by_name(tmp_path):
    values = COLOURS.transpose(2, 0, 1)[None].copy()
    np.save(tmp_path / "bytes.npy", values)
    save_file({"x": torch.from_numpy(values)}, tmp_path / "bytes.safetensors")
    for name in ("bytes.npy", "bytes.safetensors"):
        with pytest.raises(sf.InputError, match=rf"{name}: holds bytes; .*127\.5 - 1"):
            arrays.read(tmp_path / name, (3, H, W))


@pytest.fixture(scope="module")
def check_pixels():
    pytest.importorskip("diffusers")
    from steadyflow.diffusers.pipeline_model import check_pixels

    return check_pixels


@pytest.fixture(scope="module")
def codec():
    pytest.importorskip("diffusers")
    import pipelines

    return sf.from_diffusers(pipelines.build("sd"), "x").codec


IMAGES = torch.from_numpy(COLOURS.astype(np.float32)).permute(2, 0, 1)[None]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_images_of_integers_are_refused(check_pixels, codec, dtype):
    for check in (check_pixels, codec.encode):
        with pytest.raises(sf.InputError, match=rf"images: got {dtype}, expected floats in \[-1, 1\]"):
            check(IMAGES.to(dtype))


def test_images_in_0_to_255_are_refused(check_pixels, codec):
    images = IMAGES.clone()
    images[0, 0, 0, 0] = 255.0
    for check in (check_pixels, codec.encode):
        with pytest.raises(sf.InputError, match=r"images: got values up to 255, expected \[-1, 1\]"):
            check(images)


def test_images_in_0_to_1_are_warned_of(check_pixels, codec):
    for check in (check_pixels, codec.encode):
        with pytest.warns(UserWarning, match=r"images: all values lie in \[0, 1\]"):
            check(IMAGES / 255.0)


def test_images_in_minus_1_to_1_are_accepted_in_silence(check_pixels, codec):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for images in (IMAGES / 127.5 - 1.0, IMAGES.double() / 127.5 - 1.0, torch.zeros(1, 3, 4, 4), IMAGES[:0]):
            check_pixels(images)
        assert codec.encode(IMAGES / 127.5 - 1.0).isfinite().all()


@pytest.mark.parametrize(("height", "width"), [(15, 16), (16, 15), (15, 15)])
def test_images_whose_sides_are_no_multiples_of_the_factor_are_refused(codec, height, width):
    assert codec.factor == 2
    with pytest.raises(sf.InputError, match=f"got {height} x {width} pixels, expected multiples of 2"):
        codec.encode(torch.zeros(1, 3, height, width))
    assert codec.encode(torch.zeros(1, 3, 16, 14)).shape == (1, 4, 8, 7)
