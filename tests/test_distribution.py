"""What is built of this repository: whole sdists, the same bytes each time, and data whose origin is stated in them."""

import hashlib
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("hatchling")

ROOT = Path(__file__).parents[1]
LEFT_OUT = {
    ".": set(),
    "lab": {"results"},  # of the repository's pages; the sdist of steadyflow has them
    "comfy": {"api_workflows"},  # which are for those who call a server
}
"""Folders, below each distribution's own, that its sdist leaves out on purpose."""
DATES = {"SOURCE_DATE_EPOCH": "1577836800"}
BUILD = "import sys; from hatchling import build as b; print(getattr(b, 'build_' + sys.argv[1])(sys.argv[2]))"


def tracked():
    """What git tracks; in an unpacked sdist, which has no git, all that is there."""
    if (ROOT / ".git").exists() and shutil.which("git"):
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]
    made = {"__pycache__", ".pytest_cache", ".hypothesis", ".ruff_cache", ".venv", "demo", "site", "build", "dist"}
    found = [path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file() and path.name != "PKG-INFO"]
    return [path.as_posix() for path in found if not made & set(path.parts)]


def copied(folder, age):
    """A checkout of its own, whose files have other dates and rights, and were made in another order."""
    for name in sorted(tracked(), reverse=bool(age)):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
        target.chmod(0o600 if age else 0o664)
        os.utime(target, (1.6e9 + age, 1.6e9 + age))
    return folder


def built(folder, kind, out):
    """Build an sdist or a wheel of a folder; the file."""
    out.mkdir(parents=True)
    command = [sys.executable, "-c", BUILD, kind, str(out)]
    done = subprocess.run(command, cwd=folder, env={**os.environ, **DATES}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (found,) = out.iterdir()
    return found


@pytest.fixture(scope="module")
def checkouts(tmp_path_factory):
    return [copied(tmp_path_factory.mktemp(name), age) for name, age in (("one", 0), ("another", 86400 * 400))]


@pytest.fixture(scope="module")
def sdists(checkouts, tmp_path_factory):
    out = tmp_path_factory.mktemp("sdists")
    return {part: [built(checkout / part, "sdist", out / f"{k}-{Path(part).name}")
                   for k, checkout in enumerate(checkouts)] for part in LEFT_OUT}  # fmt: skip


@pytest.mark.parametrize("part", LEFT_OUT)
def test_an_sdist_has_every_file_of_the_repository_or_names_what_it_leaves_out(sdists, part):
    with tarfile.open(sdists[part][0]) as archive:
        got = {name.partition("/")[2] for name in archive.getnames()}
    below = "" if part == "." else f"{part}/"
    wanted = {name.removeprefix(below) for name in tracked() if name.startswith(below)}
    left_out = {name for name in wanted if name.split("/")[0] in LEFT_OUT[part]}
    assert wanted - left_out - got == set()
    assert {name.split("/")[0] for name in left_out} == LEFT_OUT[part]
    extra = got - wanted
    assert extra <= {"PKG-INFO", ".gitignore"}


@pytest.mark.parametrize("part", LEFT_OUT)
def test_sdists_and_wheels_of_other_folders_and_days_are_the_same_bytes(sdists, checkouts, tmp_path, part):
    one, other = (path.read_bytes() for path in sdists[part])
    assert one == other
    with tarfile.open(sdists[part][0]) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    wheels = [built(folder / part, "wheel", tmp_path / name) for folder, name in zip(checkouts, "ab", strict=True)]
    if part == ".":  # those of the others take their version from the folder above
        wheels.append(built(unpacked, "wheel", tmp_path / "c"))
    assert len({path.name for path in wheels}) == 1
    assert len({hashlib.sha256(path.read_bytes()).digest() for path in wheels}) == 1


def data_files():
    """Files in the packages that are no text of ours: weights, and what was made with them."""
    return [
        name for name in tracked() if name.startswith(("src/", "lab/src/")) and not name.endswith((".py", ".typed"))
    ]


def test_the_origin_of_all_bundled_data_is_stated_beside_it():
    """Each file of weights or words is in the table of the page in its folder, or a folder above."""
    found = data_files()
    assert any(name.endswith("digits.safetensors") for name in found)
    for name in found:
        path = ROOT / name
        if path.name == "ORIGIN.md":
            continue
        page = next(up / "ORIGIN.md" for up in path.parents if (up / "ORIGIN.md").is_file())
        text = page.read_text(encoding="utf-8")
        if path.suffix == ".json" and path.name not in ("tokenizer.json", "vocab.json"):
            assert "The `.json` files beside them" in text
            continue
        listed = path.relative_to(page.parent).as_posix()
        assert f"`{listed}`" in text, name


@pytest.mark.parametrize("part", [".", "lab"])
def test_origin_and_licence_travel_with_the_wheel_and_lead_to_scripts_that_are_there(checkouts, tmp_path, part):
    with zipfile.ZipFile(built(checkouts[0] / part, "wheel", tmp_path / "wheel")) as wheel:
        names = wheel.namelist()
        pages = [name for name in names if name.endswith("ORIGIN.md")]
        licences = [name for name in names if name.endswith("licenses/LICENSE")]
        texts = [wheel.read(name).decode() for name in pages]
        assert all(stat.S_IMODE(one.external_attr >> 16) & 0o444 == 0o444 for one in wheel.infolist())
    assert {"dist-info" in name for name in pages} == {True, False}  # with the licences, and beside the weights
    assert len(licences) == 1
    scripts = {word.strip("`") for text in texts for word in text.split() if word.startswith("`scripts/")}
    assert scripts
    text = "".join(texts)
    assert all((ROOT / script).is_file() for script in scripts)
    assert "Apache-2.0" in text
    assert "CC BY 4.0" in text
