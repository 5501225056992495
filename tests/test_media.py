"""Videos and sounds, from files to files: each works, or is refused by its name, and nothing is taken for a picture."""

import base64
import dataclasses
import functools
import html.parser
import struct
import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

import moving
import steadyflow as sf
from steadyflow import editing, metrics, runs
from steadyflow._internal import kinds, sounds, videos
from steadyflow.cli import app
from steadyflow.datasets import arrays, films, media
from steadyflow.datasets.sources import open_source, slice_of

av = pytest.importorskip("av")
wavfile = pytest.importorskip("scipy.io.wavfile")

APPLICATION = typer.main.get_command(app)
SHAPES = [(2, 3, 2, 2), (6, 3)]
C, F, H, W = moving.VIDEO


@pytest.fixture(autouse=True)
def built_once(monkeypatch):
    monkeypatch.setattr(typer.testing, "_get_command", lambda app: APPLICATION)


# --- states of any shape


def flat_and_shaped(shape):
    size = torch.Size(shape).numel()
    one = moving._model(sf.Denoiser, (size,))
    other = sf.Denoiser(one.net, sf.VPLinear(), shape=shape, null=3, classes=3)
    x = torch.randn(3, size, generator=torch.Generator().manual_seed(1))
    return (one, x), (other, x.view(3, *shape))


def sampled(solver, **options):
    def run(model, x):
        options.setdefault("steps", 8)
        found = sf.sample(model.with_condition(1), n=3, solver=solver, seed=3, index=5, **options)
        return [found.x]

    return run


def diagnosed(model, x):
    found = sf.diagnose(model.with_condition(0), x.double()[:2], solver="ddim", steps=4)
    return [found.measured, found.total, found.reconstruction]


def mapped(model, x):
    generation = sf.FlowMap(model.with_condition(0), sf.Grid((0.9, 0.6, 0.3, 0.1)), "ees25")
    x = x.double()
    spectrum = sf.jacobians.singular_values(generation, x, 2)
    return [generation.jvp(x, x.cos()), generation.vjp(x, x.cos()), spectrum.values, generation.dense(x)]


def likelihood(model, x):
    return [sf.log_likelihood(model.with_condition(0), x.double(), steps=4).value]


def edited(method):
    def run(model, x):
        words = {} if "seed" in editing.get(method).refuses else {"seed": 2}
        found = sf.edit(model, x, 1, source=0, guidance=2.0, steps=6, method=method, **words)
        return [found.x, found.distance]

    return run


def steps_of(model, x):
    grid = sf.Grid((0.9, 0.6, 0.3, 0.1))
    return [sf.diagnostics.contractivity(model.with_condition(0), x.double(), grid, "ddim").lipschitz]


SHAPED = [
    "uni-edit",  # which looks at the channels
    *(name for name in editing.names() if isinstance(editing.get(name), editing.injection.Injected)),  # at tokens
]
CORRECTIONS = {
    "escape": lambda: sf.corrections.Escape(remaining=2, back=3, threshold=1e-3),
    "restart": lambda: sf.corrections.Restart(remaining=2, back=3),
    "stein": lambda: sf.corrections.Stein(levels=(0.0, 50.0)),
    "stein per sample": lambda: sf.corrections.Stein(levels=(0.0, 50.0), per="sample", form="vp"),
    "moments": lambda: sf.corrections.MomentMatching(mean_square=0.7),
    "relaxed": lambda: sf.corrections.Relaxed(1.1),
}
WORK = {
    "ddpm": sampled("ddpm"),
    "white": sampled("dpmpp-sde", noise="white"),
    "auto": sampled("auto", nfe=8, steps=None),
    "reconstruct": lambda m, x: [(r := sf.reconstruct(m.with_condition(0), x, solver="rex-rk4", steps=4)).x, r.error],
    "edict": lambda m, x: [sf.reconstruct(m, x, solver="edict", steps=4).x],
    "smoothed": lambda m, x: [sf.reconstruct(m.with_smoothing(0.2), x, steps=3).x],
    "adaptive": lambda m, x: [sf.invert(m, x, solver="dopri5", steps=sf.PIDController(1e-3, 1e-3)).latent],
    **{name: lambda m, x, make=make: sampled("ddim", corrections=[make()])(m, x) for name, make in CORRECTIONS.items()},
    **{f"edit {name}": edited(name) for name in editing.names() if name not in SHAPED},
    "diagnose": diagnosed,
    "maps": mapped,
    "likelihood": likelihood,
    "steps": steps_of,
}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("work", WORK)
def test_a_state_of_any_shape_gives_the_numbers_of_its_flat_vector(work, shape):
    (one, x), (other, y) = flat_and_shaped(shape)
    for a, b in zip(WORK[work](one, x), WORK[work](other, y), strict=True):
        torch.testing.assert_close(a.flatten(), b.flatten(), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("solver", ["ddpm", "dpmpp-sde", "rex-sde"])
def test_the_noise_of_a_sample_does_not_depend_on_its_batch(shape, solver):
    _, (model, _) = flat_and_shaped(shape)
    options = {"solver": solver, "steps": 5, "seed": 4}
    whole = sf.sample(model, n=5, **options).x
    torch.testing.assert_close(sf.sample(model, n=5, batch_size=2, **options).x, whole)
    torch.testing.assert_close(sf.sample(model, n=2, index=3, **options).x, whole[3:])


# --- what a model's samples are


@pytest.mark.parametrize(("make", "kind"), [
    (moving.video, "videos"), (moving.packed, "videos"), (moving.pixels, "videos"), (moving.picture, "pictures"),
    (moving.sound, "sounds"), (moving.rateless, "sounds"), (moving.joined, "joined"), (moving.numbers, "numbers"),
])  # fmt: skip
def test_the_kind_of_a_models_samples_is_that_of_what_it_decodes_to(make, kind):
    assert kinds.kind_of(make()) == kind


def test_a_packed_latent_is_no_sound_and_a_state_of_three_channels_no_picture():
    assert kinds.kind_of(moving._model(sf.Denoiser, (30, 4))) == "numbers"
    three = moving._model(moving.Coded, (3, 4, 4), image_shape=moving.VIDEO)
    assert kinds.kind_of(three) == "videos"


@pytest.mark.parametrize(("name", "value"), [("fps", -1.0), ("fps", "fast"), ("sample_rate", 0), ("sample_rate", 8e3)])
def test_a_rate_that_is_none_is_refused_by_its_name(name, value):
    model = moving._model(moving.Coded, (2, 60), image_shape=moving.SOUND, **{name: value})
    with pytest.raises(sf.InputError, match=f"{name}: the model says"):
        (kinds.frame_rate if name == "fps" else kinds.sample_rate)(model)


FILES = {
    "clip.mp4": ("videos", "joined"), "clip.gif": ("videos", "pictures"), "still.png": ("pictures",),
    "frames": ("videos", "pictures"), "tone.wav": ("sounds",),
}  # fmt: skip
MAKERS = {"videos": moving.video, "pictures": moving.picture, "sounds": moving.sound, "joined": moving.joined,
          "numbers": moving.numbers}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a video of six frames, a GIF, frames, a picture and a sound."""
    folder = tmp_path_factory.mktemp("media")
    x = moving.smooth_video()
    x = torch.cat([x, x[:, :, :1]], 2)
    for name in ("clip.mp4", "clip.gif", "clip.mkv"):
        media.write(folder / name, x, moving.video(), fps=10.0)
    for k in range(6):
        arrays.write(folder / "frames" / f"frame{k + 7}.png", x[:, :, k])
    arrays.write(folder / "still.png", x[:, :, 0])
    tone = 0.5 * torch.sin(torch.arange(480) * 0.3)[None]
    sounds.write(folder / "tone.wav", tone, 8000)
    for k in range(2):
        media.write(folder / "many" / f"{k}.mkv", moving.smooth_video(seed=k), moving.video())
    half = torch.full((1, 1, H, W), -1.0)
    half[..., W // 2 :] = 1.0
    arrays.write(folder / "half.png", half)
    return folder


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("name", FILES)
def test_every_file_is_read_by_the_models_it_fits_and_refused_by_the_others(name, kind, place):
    model, path = MAKERS[kind](), place / name
    if kind in FILES[name] and kind != "joined":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = open_source(model, str(path), 1).rows(0, 1)[0]
        assert found.shape == (1, *model.shape)
        return
    with pytest.raises(sf.InputError) as refused:
        open_source(model, str(path), 1).rows(0, 1)
    assert str(path) in str(refused.value)
    assert "model's samples" in str(refused.value)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("suffix", ["", ".npy", ".safetensors", ".png", ".mp4", ".gif", ".wav"])
def test_every_kind_of_file_is_written_or_refused_before_the_work(kind, suffix, tmp_path, monkeypatch):
    model, out = MAKERS[kind](), tmp_path / f"out{suffix}"
    x = model.decode(torch.zeros(1, *model.shape)) if hasattr(model, "decode") else torch.zeros(1, *model.shape)
    fits = {"videos": ("", ".mp4", ".gif"), "pictures": ("", ".png", ".gif"), "sounds": ("", ".wav"),
            "joined": ("", ".mp4"), "numbers": ("", ".png", ".gif")}[kind]  # fmt: skip
    if suffix not in (*fits, ".safetensors", *([] if kind == "joined" else [".npy"])):
        with pytest.raises(sf.InputError, match=rf"out: out{suffix} (holds no|cannot be written)"):
            media.check_writes(out, model)
        return
    media.check_writes(out, model)
    if suffix == "" and kind != "numbers":
        media.write_each(out, x, 0, model)
    elif kind != "numbers" or suffix in media.ARRAYS:
        media.write(out, x, model)
    else:
        with pytest.raises(sf.InputError, match="expected images of shape"):
            arrays.write(tmp_path / "x.png", x)
        return
    assert out.exists()
    read = {"pictures": (".png", ".gif"), "videos": (".mp4", ".gif"), "sounds": (".wav",)}.get(kind, ())
    if suffix in read or (suffix == "" and kind in ("videos", "sounds", "pictures")):
        (path,) = media.listed(out, model)
        assert media.read(path, model).shape == x.shape


# --- videos


@pytest.mark.parametrize(
    ("suffix", "off"), [(".mp4", 0.2), (".mov", 0.2), (".webm", 0.2), (".mkv", 0.005), (".m4v", 0.2)]
)
def test_a_video_comes_back_with_its_frames_and_its_rate(suffix, off, tmp_path):
    x = moving.smooth_video()
    x = torch.nn.functional.interpolate(x[:, :, :, ::4, ::4], scale_factor=(1, 4, 4))  # chroma is halved
    path = tmp_path / f"clip{suffix}"
    for rate in (12.5, 24000 / 1001, 30.0):
        media.write(path, x, moving.video(), fps=rate)
        assert media.rate_of(path) == pytest.approx(rate, rel=1e-3)
    found = media.read(path, moving.video())
    assert found.shape == x.shape
    assert (found - x).abs().mean() < off
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_gif_keeps_frames_that_are_alike_and_says_how_fast_it_can_be(tmp_path):
    still = torch.zeros(1, *moving.VIDEO)
    media.write(tmp_path / "still.gif", still, moving.video())
    found = media.read(tmp_path / "still.gif", moving.video())
    assert (found - still).abs().max() < 0.01
    with pytest.raises(sf.InputError, match=r"60 frames per second, but a GIF shows at most 50"):
        media.write(tmp_path / "fast.gif", still, moving.video(), fps=60.0)
    assert not (tmp_path / "fast.gif").exists()


def test_several_videos_lie_side_by_side(tmp_path):
    x = moving.smooth_video(n=3)
    media.write(tmp_path / "sheet.mkv", x, moving.video())
    wide = moving._model(moving.Coded, (4,), image_shape=(3, F, 2 * H, 2 * W))
    found = media.read(tmp_path / "sheet.mkv", wide)
    assert (found[..., :H, W:] - x[1:2]).abs().max() < 0.005
    assert (found[..., H:, W:] == -1.0).all()


def test_of_more_frames_the_first_are_taken_with_a_warning_and_fewer_are_refused(place, tmp_path):
    for name in ("clip.mp4", "clip.gif", "frames"):
        with pytest.warns(UserWarning, match=rf"{name}: has .*, of which the first 5 are taken"):
            assert media.read(place / name, moving.video()).shape == (1, *moving.VIDEO)
        with pytest.raises(sf.InputError, match=rf"{name}: has 2 frames between 4:, but the model's videos have 5"):
            media.read(place / name, moving.video(), frames=slice_of("4:"))
    media.write(tmp_path / "short.mp4", moving.smooth_video()[:, :, :1], moving.video())
    with pytest.raises(sf.InputError, match=r"short\.mp4: has 1 frame, but the model's videos have 5"):
        media.read(tmp_path / "short.mp4", moving.video())


def test_frames_can_be_chosen(place):
    whole = torch.cat([media.read(place / "clip.mkv", moving.pixels_of(1), frames=slice_of(f"{k}:{k + 1}"))
                       for k in range(6)], 2)  # fmt: skip
    for text, wanted in (("1:", slice(1, 6)), ("1:6", slice(1, 6)), ("0::2", slice(0, 6, 2)), (":", slice(0, 5))):
        model = moving.pixels_of(len(range(6)[wanted]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert torch.equal(media.read(place / "clip.mkv", model, frames=slice_of(text)), whole[:, :, wanted])
    for text in ("3", "a:b", "4:2", "-1:3", "0:4:0", "1:2:3:4"):
        with pytest.raises(sf.InputError, match="frames: got"):
            slice_of(text)


def test_a_video_of_another_size_is_refused_with_the_way_out(place):
    small = moving._model(moving.Coded, (4,), image_shape=(3, 6, 8, 8))
    with pytest.raises(sf.InputError, match=r"the video is 24 x 16, the model's samples are 8 x 8; .*--resize"):
        media.read(place / "clip.mp4", small)
    assert media.read(place / "clip.mp4", small, resize=True).shape == (1, 3, 6, 8, 8)
    grey = moving._model(moving.Coded, (4,), image_shape=(1, 6, H, W))
    colour = media.read(place / "clip.mkv", moving.pixels_of(6))
    luma = (colour[:, 0] * 0.299 + colour[:, 1] * 0.587 + colour[:, 2] * 0.114)[:, None]
    assert (media.read(place / "clip.mkv", grey) - luma).abs().max() < 0.02


MATRICES = {
    0: (1, 0, 0, 1), 90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0), "mirrored": (-1, 0, 0, 1),
}  # fmt: skip


@pytest.mark.parametrize("turn", MATRICES)
def test_a_video_is_turned_as_the_file_says(turn, tmp_path):
    path, x = tmp_path / "turned.mp4", torch.full((1, 3, 1, 32, 48), -1.0)
    x[..., :16, :24] = 1.0  # white in the upper left
    media.write(path, x, moving.video())
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    a, b, c, d = MATRICES[turn]
    data[at : at + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    size = (48, 32) if turn in (90, 270) else (32, 48)
    found = media.read(path, moving._model(moving.Coded, (4,), image_shape=(3, 1, *size)))[0, 0, 0] > 0
    rows, columns = found.any(1).nonzero().float().mean(), found.any(0).nonzero().float().mean()
    where = (bool(rows > size[0] / 2), bool(columns > size[1] / 2))
    assert where == {0: (False, False), 90: (False, True), 180: (True, True), 270: (True, False),
                     "mirrored": (False, True)}[turn]  # fmt: skip


def test_uneven_frames_are_told(tmp_path):
    path = tmp_path / "uneven.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = W, H, "bgr0"
        stream.codec_context.time_base = Fraction(1, 1000)
        for k, at in enumerate((0, 40, 80, 400, 440)):
            frame = av.VideoFrame.from_ndarray(np.full((H, W, 3), 40 * k, np.uint8), format="rgb24")
            frame.pts, frame.time_base = at, Fraction(1, 1000)
            container.mux(stream.encode(frame.reformat(format="bgr0")))
        container.mux(stream.encode(None))
    with pytest.warns(UserWarning, match=r"uneven\.mkv: its frames last from 40 to 320 ms; they are taken one by one"):
        found = media.read(path, moving.video())
    assert torch.equal(found.amax((0, 1, 3, 4)), torch.arange(5) * 40 / 127.5 - 1.0)


def test_a_transparent_gif_lies_over_white_with_a_warning(tmp_path):
    from PIL import Image

    pictures = []
    for k in range(5):
        one = Image.new("RGBA", (W, H), (0, 0, 0, 0))
        one.paste((255, 0, 0, 255), (k, 0, k + 4, H))
        pictures.append(one)
    pictures[0].save(tmp_path / "clear.gif", save_all=True, append_images=pictures[1:], duration=100, disposal=2)
    with pytest.warns(UserWarning, match=r"clear\.gif: is transparent in places"):
        found = media.read(tmp_path / "clear.gif", moving.video())
    assert (found[0, :, 2, 0, 0] == 1.0).all()
    torch.testing.assert_close(found[0, :, 2, 0, 3], torch.tensor([1.0, -1.0, -1.0]), atol=0.02, rtol=0)


def test_damaged_and_foreign_files_are_refused_by_name(place, tmp_path):
    whole = (place / "clip.mp4").read_bytes()
    wrong = {
        "cut.mp4": whole[:60], "text.mp4": b"not a video", "empty.webm": b"",
        "list.mp4": b"#EXTM3U\n#EXTINF:1,\nx.ts\n",
        "other.webm": whole,
        "noise.gif": b"GIF89a" + bytes(40),
    }  # fmt: skip
    for name, data in wrong.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises((sf.CorruptFileError, sf.InputError), match=name):
            media.read(tmp_path / name, moving.video())
    with pytest.raises(FileNotFoundError, match=r"gone\.mp4"):
        media.read(tmp_path / "gone.mp4", moving.video())
    media.write(tmp_path / "sound.mp4", moving.joined().decode(torch.zeros(1, 296)), moving.joined())
    with (
        pytest.warns(UserWarning, match=r"sound\.mp4: has a sound, which is left out"),
        pytest.raises(sf.InputError, match="the video is 6 x 4"),
    ):
        media.read(tmp_path / "sound.mp4", moving.pixels_of(3))


def test_frames_in_a_folder_go_by_their_numbers(place, tmp_path):
    x = media.read(place / "clip.mkv", moving.pixels_of(6))
    assert (media.read(place / "frames", moving.pixels_of(6)) - x).abs().max() < 0.01  # frame7 ... frame12
    assert [p.name for p in media.listed(place / "many", moving.video())] == ["0.mkv", "1.mkv"]
    media.write_each(tmp_path / "out", moving.smooth_video(n=2), 4, moving.video())
    media.write_each(tmp_path / "out", moving.smooth_video()[:, :, :3], 5, moving.video())
    listed = media.listed(tmp_path / "out", moving.video())
    assert [(p.name, len(list(p.iterdir()))) for p in listed] == [("000000004", 5), ("000000005", 3)]
    arrays.write(tmp_path / "out" / "stray.png", torch.zeros(1, 1, 4, 4))
    with pytest.raises(sf.InputError, match="holds 0 videos, 1 pictures and 2 folders of pictures"):
        media.listed(tmp_path / "out", moving.video())
    (tmp_path / "bare").mkdir()
    for kind in ("videos", "sounds", "joined"):
        with pytest.raises(sf.InputError, match="holds nothing that fits"):
            media.listed(tmp_path / "bare", MAKERS[kind]())


def test_a_picture_is_a_video_of_one_frame_and_of_no_more(place):
    assert torch.equal(media.read(place / "still.png", moving.pixels_of(1))[:, :, 0],
                       arrays.read(place / "still.png", (3, H, W)))  # fmt: skip
    with pytest.raises(
        sf.InputError, match=r"still\.png: is a picture, but .* videos of 5 frames of 24 x 16; give a v"
    ):
        media.read(place / "still.png", moving.video())


# --- sounds


@pytest.mark.parametrize(("dtype", "scale", "off"), [
    (np.uint8, 127.0, 0.01), (np.int16, 2.0**15 - 1, 1e-4), (np.int32, 2.0**31 - 1, 1e-6), (np.float32, 1.0, 1e-7),
    (np.float64, 1.0, 1e-7),
])  # fmt: skip
def test_a_wav_of_any_width_gives_the_same_sound(dtype, scale, off, tmp_path):
    tone = 0.5 * np.sin(np.arange(400) * 0.3)
    stored = tone * scale + (128 if dtype is np.uint8 else 0)
    wavfile.write(tmp_path / "tone.wav", 8000, (stored if dtype(0.5) else stored.round()).astype(dtype))
    found = media.read(tmp_path / "tone.wav", moving.sound())
    np.testing.assert_allclose(found[0, 0], tone, atol=off)


def test_a_wav_of_24_bits_is_read(tmp_path):
    tone = (0.5 * np.sin(np.arange(400) * 0.3) * (2**23 - 1)).round().astype(np.int32)
    data = b"".join(int(v).to_bytes(3, "little", signed=True) for v in tone)
    head = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + len(data), b"WAVE", b"fmt ", 16, 1, 1, 8000, 24000, 3, 24,
                       b"data", len(data))  # fmt: skip
    (tmp_path / "tone.wav").write_bytes(head + data)
    np.testing.assert_allclose(media.read(tmp_path / "tone.wav", moving.sound())[0, 0], tone / 2**23, atol=1e-6)
    (tmp_path / "cut.wav").write_bytes((head + data)[:400])
    for name in ("cut.wav", "text.wav"):
        (tmp_path / "text.wav").write_bytes(b"RIFF, or so it says")
        with pytest.raises(sf.CorruptFileError, match=rf"{name}: no \.wav, or a damaged one"):
            media.read(tmp_path / name, moving.sound())


def test_another_rate_is_refused_or_resampled(tmp_path):
    at = np.arange(1200) / 24_000
    wavfile.write(tmp_path / "fast.wav", 24_000, np.sin(2 * np.pi * 440 * at).astype(np.float32))
    with pytest.raises(sf.InputError, match=r"fast\.wav: has 24000 Hz, the model's sounds have 8000 Hz; .*--resize"):
        media.read(tmp_path / "fast.wav", moving.sound())
    found = media.read(tmp_path / "fast.wav", moving.sound(), resize=True)
    expected = np.sin(2 * np.pi * 440 * np.arange(400) / 8000)
    np.testing.assert_allclose(found[0, 0, 30:-30], expected[30:-30], atol=0.01)
    wavfile.write(tmp_path / "unknown.wav", 24_000, np.zeros(400, np.float32))
    with pytest.warns(UserWarning, match="does not say its sample_rate; 24000 Hz is taken to be it"):
        media.read(tmp_path / "unknown.wav", moving.rateless())
    with pytest.raises(sf.InputError, match="resize: the model does not say its sample_rate"):
        media.read(tmp_path / "fast.wav", moving.rateless(), resize=True)


def test_lengths_and_channels_of_sounds(place, tmp_path):
    with pytest.warns(UserWarning, match=r"tone\.wav: lasts 0\.06 s, of which the first 0\.05 s are taken"):
        found = media.read(place / "tone.wav", moving.sound())
    short = tmp_path / "short.wav"
    sounds.write(short, found[0, :, :100], 8000)
    with pytest.raises(
        sf.InputError, match=r"short\.wav: has 100 samples \(0\.0125 s\), but the model's sounds have 400"
    ):
        media.read(short, moving.sound())
    sounds.write(tmp_path / "two.wav", torch.cat([found[0], -found[0]]), 8000)
    with pytest.warns(UserWarning, match=r"two\.wav: has 2 channels, whose mean is taken"):
        assert media.read(tmp_path / "two.wav", moving.sound()).abs().max() < 1e-6
    stereo = moving._model(moving.Coded, (4,), image_shape=(2, 400), sample_rate=8000)
    sounds.write(tmp_path / "one.wav", found[0], 8000)
    with pytest.warns(UserWarning, match=r"one\.wav: has one channel, which is repeated for the model's 2"):
        assert torch.equal(media.read(tmp_path / "one.wav", stereo)[0, 1], found[0, 0])
    three = moving._model(moving.Coded, (4,), image_shape=(3, 400), sample_rate=8000)
    with pytest.raises(sf.InputError, match=r"two\.wav: has 2 channels, the model's sounds have 3"):
        media.read(tmp_path / "two.wav", three)


def test_a_sound_of_floats_comes_back_as_it_was(tmp_path):
    x = 1.5 * torch.randn(1, 1, 400, generator=torch.Generator().manual_seed(0))
    media.write(tmp_path / "x.wav", x, moving.sound())
    assert torch.equal(media.read(tmp_path / "x.wav", moving.sound()), x)


def test_a_video_with_its_sound_is_one_file(tmp_path):
    model = moving.joined()
    x = model.decode(torch.randn(2, 296, generator=torch.Generator().manual_seed(0)).clamp(-1, 1))
    media.write_each(tmp_path / "out", x, 0, model)
    assert [p.name for p in sorted((tmp_path / "out").iterdir())] == ["000000000.mp4", "000000001.mp4"]
    for name in ("x.mkv", "x.webm", "x.mp4"):
        media.write(tmp_path / name, {key: value[:1] for key, value in x.items()}, model)
        with av.open(str(tmp_path / name)) as container:
            assert sorted(stream.type for stream in container.streams) == ["audio", "video"]
            heard = sum(frame.samples for frame in container.decode(audio=0)) / container.streams.audio[0].rate
        assert heard >= 0.01
    with pytest.raises(sf.InputError, match="holds one sample, and there are 2; give a folder"):
        media.write(tmp_path / "x.mp4", x, model)
    media.write(tmp_path / "x.safetensors", x, model)


# --- masks


def test_a_mask_of_one_picture_counts_for_all_frames(place):
    model = moving.video()
    found = runs.edits.mask_of(place / "half.png", model)
    assert found.shape == (1, 1, 5, 2, 3)
    assert torch.equal(found[0, 0, 3, 0], torch.tensor([0.0, 1.0, 1.0]))
    assert torch.equal(found, editing.mask_for(model, media.read_mask(place / "half.png", model)[0]))


@pytest.mark.parametrize(("frames", "places", "white", "expected"), [
    (9, 3, 4, [0, 1, 0]), (9, 3, 0, [1, 0, 0]), (9, 3, 3, [0, 1, 0]), (8, 4, 5, [0, 0, 1, 0]),
    (5, 5, 2, [0, 0, 1, 0, 0]), (6, 2, 1, [1, 1]), (4, 1, 2, [1]), (1, 1, 0, [1]),
])  # fmt: skip
def test_a_mask_of_frames_counts_where_they_may_lie(frames, places, white, expected):
    model = moving._model(moving.Coded, (2, places, 2, 2), image_shape=(3, frames, 4, 4))
    mask = torch.zeros(frames, 4, 4)
    mask[white] = 1.0
    found = editing.mask_for(model, mask)[0, 0, :, 0, 0]
    assert (found >= torch.tensor(expected)).all()  # where two layouts are possible, both
    if frames != 9:
        assert found.tolist() == expected


def test_masks_that_do_not_fit_are_refused_by_name(place, tmp_path):
    odd = moving._model(moving.Coded, (2, 4, 2, 2), image_shape=(3, 6, H, W))
    assert editing.mask_for(odd, torch.ones(H, W)).shape == (1, 1, 4, 2, 2)
    with pytest.raises(sf.InputError, match="mask: which of 6 frames lie behind each of 4 places is not known"):
        editing.mask_for(odd, torch.ones(6, H, W))
    for wrong in (torch.ones(3, H, W), torch.ones(H, W + 1), torch.ones(1, 1, H, W)):
        with pytest.raises(sf.InputError, match=r"mask: got shape .*, expected \(1 or 5, 16, 24\)"):
            editing.mask_for(moving.video(), wrong)
    with pytest.raises(sf.InputError, match=r"mask: expected weights in \[0, 1\]"):
        editing.mask_for(moving.video(), 2 * torch.ones(H, W))
    for make in (moving.packed, moving.picture):
        with pytest.raises(sf.InputError, match="mask: which pixels lie behind the numbers of a sample"):
            editing.mask_for(make(), torch.ones(H, W))
    for make in (moving.sound, moving.joined, moving.numbers):
        with pytest.raises(sf.InputError, match="mask: is for pictures and videos"):
            editing.mask_for(make(), torch.ones(H, W))
    with pytest.raises(sf.InputError, match=r"mask: .*tone\.wav is a sound, expected a picture"):
        media.read_mask(place / "tone.wav", moving.video())
    assert media.read_mask(place / "many" / "0.mkv", moving.video()).shape == (F, H, W)


def test_a_packed_model_says_itself_what_lies_behind_its_tokens():
    class Knows(moving.Coded):
        def mask_weights(self, white):
            return white.amax((1, 2)).repeat_interleave(6)[None, :, None]

    model = moving._model(Knows, (30, 4), image_shape=moving.VIDEO)
    white = torch.zeros(F, H, W)
    white[2:] = 1.0
    x = torch.randn(2, 30, 4, generator=torch.Generator().manual_seed(0))
    mask = editing.mask_for(model, white)
    found = sf.edit(model, x, 1, source=0, steps=8, guidance=2.0, mask=mask)
    off = (found.x - x).abs().amax((0, 2))
    assert off[:12].max() < 1e-5
    assert off[12:].min() > 0.01


def test_weights_that_might_be_meant_otherwise_are_refused():
    _, (model, x) = flat_and_shaped((3, 3, 2, 2))
    for wrong in (torch.ones(3, 1, 2, 2), torch.ones(3, 3, 2, 2)):
        with pytest.raises(sf.InputError, match=r"mask: got shape .* one per sample or one for all"):
            sf.edit(model, x, 1, source=0, steps=4, mask=wrong)
    for wrong in (torch.ones(2, 1, 3, 1, 1), torch.ones(1, 1, 1, 1, 1, 1), torch.ones(5)):
        with pytest.raises(sf.InputError, match=r"mask: shape .* fits no samples"):
            sf.edit(model, x, 1, source=0, steps=4, mask=wrong)
    for right in (torch.ones(3, 1, 1, 1, 1), torch.ones(3, 2, 2), torch.ones(2, 2)):
        assert sf.edit(model, x, 1, source=0, steps=4, mask=right).x.shape == x.shape


# --- measures


def test_measures_of_pictures_are_those_of_the_frames():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 4, 24, 26, generator=generator) * 2 - 1
    y = (x + 0.1 * torch.randn(x.shape, generator=generator)).clamp(-1, 1)
    for measure in (metrics.ssim, metrics.ms_ssim, metrics.psnr):
        each = metrics.per_frame(measure, x, y, span=2.0)
        assert each.shape == (2, 4)
        one = torch.stack([measure(x[:, :, k], y[:, :, k], span=2.0) for k in range(4)], 1)
        torch.testing.assert_close(each, one)
        if measure is not metrics.psnr:
            torch.testing.assert_close(measure(x, y, span=2.0), each.mean(1))
    third = torch.zeros(1, 1, 4, 1, 1)
    third[:, :, 2] = 1.0
    alone = metrics.per_frame(metrics.ssim, x, y, span=2.0)[:, 2]
    torch.testing.assert_close(metrics.ssim(x, y, span=2.0, region=third), alone)
    torch.testing.assert_close(metrics.mse(x, y), (x - y).square().flatten(1).mean(1))


def test_networks_for_pictures_refuse_videos_by_name():
    x = torch.zeros(1, 3, 4, 16, 16)
    with pytest.raises(
        sf.InputError, match=r"images: got shape \(1, 3, 4, 16, 16\), expected \(B, 3, H, W\); .*as_frames"
    ):
        metrics.structure_distance(None, x, x)
    with pytest.raises(sf.InputError, match="images: got shape"):
        metrics.count_shapes(x[:, :1])
    for wrong in (torch.zeros(1, 3, 16), torch.zeros(1, 1, 3, 4, 16, 16)):
        with pytest.raises(sf.InputError, match=r"images: got shape .* for videos"):
            metrics.ssim(wrong, wrong, span=2.0)
    assert metrics.as_frames(x).shape == (4, 3, 16, 16)


def test_flicker_is_what_changes_from_frame_to_frame():
    x = torch.zeros(1, 1, 4, 2, 2)
    x[:, :, 1::2] = 1.0
    assert metrics.flicker(x) == 1.0
    assert metrics.flicker(torch.ones_like(x)) == 0.0
    assert metrics.flicker_difference(x, x + 0.3).item() == pytest.approx(0.0, abs=1e-6)
    assert metrics.flicker_difference(x, torch.zeros_like(x)) == 1.0
    for wrong in (x[:, :, :1], x[:, :, 0]):
        with pytest.raises(sf.InputError, match="with at least two frames"):
            metrics.flicker(wrong)


def test_measures_of_sounds():
    y = torch.sin(torch.arange(4000) * 0.1)[None, None]
    noise = torch.cos(torch.arange(4000) * 0.1)[None, None]
    assert metrics.si_snr(3.0 * (y + 0.1 * noise), y).item() == pytest.approx(20.0, abs=0.2)
    assert metrics.log_spectral_distance(y, y) == 0.0
    assert 0 < metrics.log_spectral_distance(0.1 * y, y) <= 20.0
    loud = torch.rand(1, 1, 4000, generator=torch.Generator().manual_seed(0)) - 0.5
    assert metrics.log_spectral_distance(0.1 * loud, loud).item() == pytest.approx(20.0, abs=0.1)
    for measure in (metrics.si_snr, metrics.log_spectral_distance):
        with pytest.raises(sf.InputError, match=r"expected sounds of one shape \(B, channels, samples\)"):
            measure(y[0], y[0])
    with pytest.raises(sf.InputError, match="window: got 8000"):
        metrics.log_spectral_distance(y, y, window=8000)


# --- reports


class Elements(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def of(self, name):
        return [attributes for tag, attributes in self.found if tag == name]


@functools.cache
def diagnosis_of(make, with_codec=False):
    model = make()
    latent = torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(0)) / 4.0
    options = {"codec": model} if with_codec else {}
    x = model.decode(latent) if with_codec else latent
    return sf.diagnose(model.with_condition(0), x, solver="ddim", steps=2, **options)


def report_of(found, tmp_path):
    from steadyflow.diagnostics import report

    return Elements(report.write(found, tmp_path / "report.html").read_text())


def data_of(attributes):
    return base64.b64decode(attributes["src"].partition("base64,")[2])


@pytest.mark.parametrize("with_codec", [False, True])
def test_a_report_shows_videos_as_strips_and_films(with_codec, tmp_path):
    found = diagnosis_of(moving.video, with_codec)
    x = found.images if with_codec else moving.video().decode(found.images)
    page = report_of(found, tmp_path)
    films = page.of("video")
    assert [one["title"].split(",")[0] for one in films] == ["Source", "Reconstruction", "Difference"]
    (tmp_path / "film.mp4").write_bytes(data_of(films[0]))
    wide = moving._model(moving.Coded, (4,), image_shape=(3, F, H, 2 * W))
    assert (media.read(tmp_path / "film.mp4", wide) - torch.cat([x[:1], x[1:]], 4)).abs().mean() < 0.1
    assert media.rate_of(tmp_path / "film.mp4") == pytest.approx(12.5)
    assert len(page.of("img")) == 2 + 3
    assert not any(one.get("src", "").startswith("http") for _, one in page.found)


def test_without_pyav_a_report_has_an_animated_picture(tmp_path, monkeypatch):
    from steadyflow._internal import video_writing

    def missing():
        raise sf.MissingExtraError("PyAV", "video", "reading and writing videos")

    monkeypatch.setattr(video_writing, "pyav", missing)
    page = report_of(diagnosis_of(moving.video), tmp_path)
    assert page.of("video") == []
    assert any(one["alt"].endswith("as a film") for one in page.of("img"))


def test_a_report_lets_sounds_be_heard(tmp_path):
    model, found = moving.sound(), diagnosis_of(moving.sound)
    page = report_of(found, tmp_path)
    assert len(page.of("audio")) == 3 * 2
    (tmp_path / "heard.wav").write_bytes(data_of(page.of("audio")[0]))
    heard = media.read(tmp_path / "heard.wav", model)
    torch.testing.assert_close(heard, model.decode(found.images)[:1].clamp(-1, 1), atol=1e-3, rtol=0)
    page = report_of(dataclasses.replace(found, model=moving.rateless()), tmp_path)
    assert page.of("audio") == []  # at which rate is not known


@pytest.mark.parametrize("make", [moving.joined, moving.numbers, moving.picture])
def test_a_report_of_anything_else_is_written_too(make, tmp_path):
    page = report_of(diagnosis_of(make), tmp_path)
    assert page.of("video") == page.of("audio") == []
    assert len(page.of("img")) == (5 if make is moving.picture else 2)


def test_a_codec_of_several_things_is_refused_in_a_diagnosis():
    model = moving.joined()
    codec = type("Codec", (), {"encode": staticmethod(lambda x: x), "decode": staticmethod(model.decode)})()
    with pytest.raises(sf.InputError, match="codec: decodes to dict, expected one tensor"):
        sf.diagnose(model, torch.randn(2, 296), codec=codec, steps=2)


# --- the command line


@pytest.fixture
def invoke(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def call(*words):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            done = CliRunner().invoke(app, [str(place / w[1:]) if w.startswith("@") else w for w in words])
        if isinstance(done.exception, sf.SteadyflowError):
            return str(done.exception)
        assert done.exit_code == 0, (words, done.output, done.exception)
        return ""

    return call


VIDEO, PACKED, SOUND, JOINED = ("moving:video", "moving:packed", "moving:sound", "moving:joined")
QUICK = ("--steps", "2")


@pytest.mark.parametrize(("name", "verb"), [
    (PACKED, ("reconstruct", "--label", "0")), (VIDEO, ("edit", "--source", "0", "--target", "1")),
])  # fmt: skip
def test_a_video_goes_in_and_a_video_comes_out(name, verb, invoke, tmp_path):
    rate = {"@clip.mp4": 10.0, "@frames": 12.5 if name == VIDEO else 8.0}
    for given in ("@clip.mp4", "@frames"):
        assert invoke(*verb, "--model", name, "--image", given, *QUICK, "--out", "out.mkv") == ""
        assert media.rate_of(tmp_path / "out.mkv") == pytest.approx(rate[given])
        found = media.read(tmp_path / "out.mkv", moving.video())
    assert invoke(*verb, "--model", name, "--image", "@clip.mp4", *QUICK, "--out", "out.npy") == ""
    assert np.load("out.npy").shape == (1, *moving.VIDEO)
    assert invoke(*verb, "--model", name, "--image", "@frames", *QUICK, "--out", "frames") == ""
    assert (media.read(tmp_path / "frames" / "000000000", moving.video()) - found).abs().max() < 0.01
    assert invoke(*verb, "--model", name, "--image", "@many", *QUICK, "--out", "out.gif") == ""
    assert media.rate_of(tmp_path / "out.gif") == pytest.approx(12.5)


def test_a_reconstruction_comes_near_the_video(invoke, tmp_path):
    words = ("reconstruct", "--model", VIDEO, "--image", "@clip.mkv", "--frames", "0:5", "--nfe", "48")
    assert invoke(*words, "--out", "out.mkv") == ""
    assert (media.read(tmp_path / "out.mkv", moving.video()) - moving.smooth_video()).abs().max() < 0.02


def test_a_run_in_a_folder_is_exported_as_a_video(invoke, tmp_path):
    assert invoke("edit", "--model", VIDEO, "--image", "@many", "--target", "1", *QUICK, "--run", "run") == ""
    assert invoke("runs", "export", "run", "--out", "out.mp4") == ""
    assert media.read(tmp_path / "out.mp4", moving._model(moving.Coded, (4,), image_shape=(3, F, H, 2 * W))).shape
    assert invoke("runs", "export", "run", "--out", "each") == ""
    assert len(list((tmp_path / "each").iterdir())) == 2
    assert "holds no videos" in invoke("runs", "export", "run", "--out", "out.png")


def test_videos_and_sounds_are_sampled(invoke, tmp_path):
    assert invoke("sample", "--model", VIDEO, "--n", "2", *QUICK, "--out", "out.mp4") == ""
    assert media.rate_of(tmp_path / "out.mp4") == pytest.approx(12.5)
    assert invoke("sample", "--model", SOUND, "--n", "1", *QUICK, "--out", "out.wav") == ""
    assert media.read(tmp_path / "out.wav", moving.sound()).shape == (1, *moving.SOUND)
    assert invoke("sample", "--model", JOINED, "--n", "1", *QUICK, "--out", "both.mp4") == ""
    assert invoke("sample", "--model", JOINED, "--n", "2", *QUICK, "--out", "both") == ""
    assert invoke("sample", "--model", JOINED, "--n", "2", *QUICK, "--out", "both.safetensors") == ""
    assert invoke("sample", "--model", "moving:pixels", "--n", "2", *QUICK, "--out", "pixels.webm") == ""


REFUSED = [
    ("sample --model moving:sound --n 2 --out x.wav", "out: x.wav holds one sample, and there are 2; give a folder"),
    ("sample --model moving:joined --n 2 --out x.mp4", "out: x.mp4 holds one sample, and there are 2; give a folder"),
    ("sample --model moving:joined --n 1 --out x.npy", "out: x.npy holds no videos with their sound; expected .safete"),
    ("sample --model moving:joined --n 1 --out x.gif", "out: x.gif holds no videos with their sound"),
    ("sample --model moving:sound --n 1 --out x.mp4", "out: x.mp4 holds no sounds"),
    ("sample --model moving:rateless --n 1 --out x.wav", "out: the model does not say its sample_rate, which a .wav"),
    ("sample --model moving:video --n 1 --out x.png", "out: x.png holds no videos; expected .npy, .safetensors, .mp4"),
    ("sample --model moving:picture --n 1 --out x.mp4", "out: x.mp4 cannot be written, as the samples are pictures"),
    ("sample --model moving:numbers --n 1 --out x.mp4", "out: x.mp4 cannot be written, as the samples are of shape"),
    (
        "invert --model moving:video --image @clip.mp4 --out x.mp4",
        "out: x.mp4 cannot be written, as the samples are la",
    ),
    ("invert --model moving:video --image @still.png", "still.png: is a picture, but the model's samples are videos"),
    ("edit --model moving:video --image @still.png --target 1", "still.png: is a picture, but the model's samples are"),
    ("invert --model moving:picture --image @clip.mp4", "clip.mp4: is a video, but the model's samples are pictures"),
    ("invert --model moving:joined --image @clip.mp4", "clip.mp4: is a video, but the model's samples are videos with"),
    ("invert --model moving:sound --image @tone.wav --frames 0:2", "frames: says which frames of videos to take"),
    ("invert --model moving:picture --image @still.png --frames 0:2", "frames: says which frames of videos to take"),
    ("invert --model moving:video --image @clip.mp4 --frames 0", "frames: got '0', expected start:stop"),
    ("invert --model moving:video --frames 0:5", "frames: says which frames of videos to take"),
    ("edit --model moving:packed --image @clip.mp4 --target 1 --mask @half.png", "mask: which pixels lie behind"),
    ("edit --model moving:sound --image @tone.wav --target 1 --mask @half.png", "mask: a picture says nothing of"),
    ("edit --model moving:video --image @clip.mp4 --target 1 --mask @tone.wav", "tone.wav is a sound, expected a pic"),
]


@pytest.mark.parametrize(("words", "why"), REFUSED)
def test_what_cannot_be_honoured_is_refused_by_its_name(words, why, invoke, tmp_path):
    assert why in invoke(*words.split(), *QUICK)
    assert not list(tmp_path.glob("x.*"))


def test_a_masked_edit_keeps_the_other_half_of_the_latent(invoke, place):
    words = ("edit", "--model", VIDEO, "--image", "@many", "--n", "1", "--source", "0", "--target", "1", "--steps", "6")
    assert invoke(*words, "--mask", "@half.png", "--guidance", "2", "--out", "kept.npy") == ""
    model = moving.video()
    x = model.encode(media.read(place / "many" / "0.mkv", model))
    off = (model.encode(torch.from_numpy(np.load("kept.npy"))) - x).abs()
    assert off[..., 0].max() < 1e-4
    assert off[..., 1:].amin((0, 1, 2, 3)).min() > 1e-5
    assert off[..., 1:].mean() > 0.01


def test_inversions_of_videos_are_saved_and_edited(invoke, tmp_path):
    words = ("--model", VIDEO, "--image", "@clip.mp4", "--label", "0", "--save", "saved.safetensors")
    assert invoke("invert", *words, *QUICK, "--out", "latents.npy") == ""
    assert np.load("latents.npy").shape == (1, 4, 5, 2, 3)
    assert invoke("edit", "--model", VIDEO, "--from", "saved.safetensors", "--target", "1", "--out", "out.mp4") == ""
    assert media.rate_of(tmp_path / "out.mp4") == pytest.approx(12.5)
    assert invoke("invert", "--model", VIDEO, "--input", "latents.npy", *QUICK) == ""


@pytest.mark.parametrize(("name", "given"), [(PACKED, "@clip.mp4"), (SOUND, "@tone.wav")])
def test_videos_and_sounds_are_diagnosed(name, given, invoke, tmp_path):
    assert invoke("diagnose", "--model", name, "--image", given, *QUICK, "--out", "report") == ""
    page = Elements((tmp_path / "report" / "diagnosis.html").read_text())
    assert len(page.of("audio" if name == SOUND else "video")) == 3


# --- films that are longer than the model's videos


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """A folder with a film of twelve frames, of which a model of five makes three chunks; and the film."""
    folder = tmp_path_factory.mktemp("film")
    x = torch.cat([moving.smooth_video(seed=k) for k in range(3)], 2)[:, :, :12]
    for name in ("film.mkv", "one/film.mkv"):
        (folder / name).parent.mkdir(exist_ok=True)
        media.write(folder / name, x, fps=10.0)
    for k in range(12):
        arrays.write(folder / "frames" / f"{k}.png", x[:, :, k])
    return folder, x


@pytest.mark.parametrize("name", ["film.mkv", "frames", "one"])
def test_a_film_is_cut_into_chunks_of_which_the_last_ends_with_it(name, film):
    folder, x = film
    found = open_source(moving.pixels_of(5), str(folder / name), frames="chunks")
    assert len(found) == found.total() == 3
    rows, _ = found.rows(0, 3)
    for k, first in enumerate((0, 5, 7)):
        assert (rows[k] - x[0, :, first : first + 5]).abs().max() < 0.01
    few = open_source(moving.pixels_of(5), str(folder / name), 2, frames="chunks")
    assert (len(few), few.total(), len(list(few.pieces(1)))) == (2, 3, 2)
    assert len(open_source(moving.pixels_of(6), str(folder / name), frames="chunks")) == 2
    with pytest.raises(sf.InputError, match=r"has 12 frames, but the model's videos have 13; give a longer one"):
        len(open_source(moving.pixels_of(13), str(folder / name), frames="chunks"))


def test_chunks_are_joined_without_what_they_share_and_grey_where_one_is_missing():
    x = torch.rand(3, 12, 2, 2)
    chunks = [(first, x[:, first : first + 5]) for first in (0, 5, 7)]
    assert torch.equal(torch.cat(list(films.joined(chunks)), 2)[0], x)
    without = torch.cat(list(films.joined([chunks[0], chunks[2]])), 2)[0]
    assert torch.equal(without[:, 7:], x[:, 7:])
    assert torch.equal(without[:, :5], x[:, :5])
    assert not without[:, 5:7].any()


@pytest.mark.parametrize("more", [(), ("--run", "run"), ("--batch-size", "1")])
def test_a_film_is_edited_in_chunks_and_written_as_one(more, film, invoke, tmp_path):
    folder, _ = film
    words = ("edit", "--model", VIDEO, "--source", "0", "--target", "1", *QUICK)
    chunked = (*words, "--video", str(folder / "film.mkv"), "--frames", "chunks", *more)
    assert invoke(*chunked, "--out", "out.mkv") == ""
    assert media.rate_of(tmp_path / "out.mkv") == pytest.approx(10.0)
    assert videos.count(tmp_path / "out.mkv") == 12
    found = media.read(tmp_path / "out.mkv", moving.pixels_of(12))
    for first, kept in ((0, 0), (5, 0), (7, 3)):
        taken = ("--video", str(folder / "film.mkv"), "--frames", f"{first}:{first + 5}")
        assert invoke(*words, *taken, "--out", "alone.mkv") == ""
        alone = media.read(tmp_path / "alone.mkv", moving.video())
        assert (found[:, :, first + kept : first + 5] - alone[:, :, kept:]).abs().max() < 0.02
    if "--run" in more:
        assert invoke("runs", "export", "run", "--out", "again.mkv") == ""
        assert (tmp_path / "again.mkv").read_bytes() == (tmp_path / "out.mkv").read_bytes()
        chunked = (*words, "--video", str(folder / "film.mkv"), "--frames", "chunks", "--run", "run2")
    assert invoke(*chunked, "--out", "each") == ""
    assert len(list((tmp_path / "each" / "000000000").iterdir())) == 12
    assert len(list((tmp_path / "each").iterdir())) == 1


def test_arrays_hold_the_chunks_and_inversions_are_of_each(film, invoke):
    words = ("--model", VIDEO, "--video", str(film[0] / "film.mkv"), "--frames", "chunks", *QUICK)
    assert invoke("reconstruct", *words, "--label", "0", "--out", "out.npy") == ""
    assert np.load("out.npy").shape == (3, *moving.VIDEO)
    assert invoke("invert", *words, "--label", "0", "--n", "2", "--save", "saved.safetensors") == ""
    assert len(sf.Inversion.load("saved.safetensors").latent) == 2
    assert invoke("diagnose", *words, "--n", "1") == ""


def test_what_has_no_chunks_is_refused_by_its_name(film, place, invoke):
    words = ("edit", "--model", VIDEO, "--target", "1", "--frames", "chunks", *QUICK)
    assert "frames: chunks are cut of one film, and" in invoke(*words, "--video", "@many")
    assert "frames: says which frames of videos to take" in invoke(*words)
    assert "mask: " in invoke(*words, "--video", str(film[0] / "film.mkv"), "--mask", "@clip.mp4")
    assert invoke(*words, "--video", str(film[0] / "film.mkv"), "--mask", "@half.png") == ""
