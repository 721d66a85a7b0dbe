"""prepare.py: standard sets and their download, folders and zips of images, the folder of arrays, hostile files.

Files are also damaged at random: the suite tries a few, always the same; FUZZ=5000 pytest tests/test_prepare.py tries
5,000 new ones a test.
"""

import contextlib
import gzip
import hashlib
import io
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, make_images
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, features

import prepare

IMAGES, LABELS, TEST_IMAGES, TEST_LABELS = MNIST = [name.removesuffix(".gz") for name in [*prepare.SETS["mnist"]][2:]]
ARCHIVE, BATCH = "cifar-10-binary.tar.gz", "data_batch_1.bin"
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
PACKED = pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
Refused = Callable[..., str]


class Web(dict):
    """Takes the place of urlopen: by URL the page (bytes), the URL that it leads to, or the exception that it raises."""

    asked, sent = [], 0

    def __call__(self, request: object, timeout: float) -> io.BytesIO:
        self.asked = [*self.asked, url := request.full_url]
        while isinstance(page := self.get(url, OSError("HTTP Error 404")), str):
            url = page
        if isinstance(page, Exception):
            raise page
        reply = io.BytesIO(page)
        reply.url, reply.length, reply.read1 = url, len(page), lambda n: self.send(reply.read(n))
        return reply

    def send(self, data: bytes) -> bytes:
        self.sent += len(data)
        return data


@pytest.fixture(autouse=True)
def web(monkeypatch: pytest.MonkeyPatch) -> Web:
    """No network, but a web with a tiny mnist at the second of its two mirrors; and a bound that is soon reached."""
    pages = {f"{name}.gz": gzip.compress(idx(array)) for name, array in mnist().items()}
    about = {"mirrors": "https://first/ https://good/", "classes": prepare.SETS["mnist"]["classes"]}
    about |= {name: hashlib.sha256(data).hexdigest() for name, data in pages.items()}
    monkeypatch.setitem(prepare.SETS, "mnist", about)
    monkeypatch.setattr(prepare, "urlopen", Web({f"https://good/{name}": data for name, data in pages.items()}))
    monkeypatch.setattr(prepare, "LARGEST", 2**20)
    return prepare.urlopen


def load(*args: object, size: int = 8) -> tuple[np.ndarray, list[int] | None, list[str]]:
    """What prepare.py makes of args: images, labels (None if there are none), names of the classes."""
    shutil.rmtree("out", ignore_errors=True)
    assert prepare.main([*map(str, args), "--image-size", str(size), "--out", "out"]) == 0
    images = np.load("out/images.npy", mmap_mode="c")
    assert (images.dtype, images.shape[2:], images.flags.c_contiguous) == (np.uint8, (size, size), True)
    assert images.shape[1] in (1, 3)
    assert Path("out/images.npy").stat().st_size == 128 + images.size
    assert not list(Path().glob(".out*"))
    if not Path("out/classes.txt").exists():
        assert [path.name for path in Path("out").iterdir()] == ["images.npy"]
        return images, None, []
    labels, classes = np.load("out/labels.npy"), Path("out/classes.txt").read_text("utf-8").splitlines()
    assert (labels.dtype, labels.shape) == (np.int64, images.shape[:1])
    assert 0 <= labels.min() <= labels.max() < len(classes)
    return images, labels.tolist(), classes


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """refused(*args) asserts that prepare.py ends with the code, says one line, which it returns, and writes nothing."""

    def check(*args: object, code: int = 2) -> str:
        before, _ = sorted(Path().rglob("*")), capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            prepare.main([*map(str, args), *([] if "--out" in args else ["--out", "new"])])
        assert end.value.code == code
        (line,) = [line.rpartition("\r")[2] for line in capsys.readouterr().err.split("\n") if "error: " in line]
        assert line.startswith("prepare.py: error: ")
        assert sorted(Path().rglob("*")) == before
        return line

    return check


# ----------------------------------------------------------------------------------------------------- standard sets


def idx(array: np.ndarray) -> bytes:
    """The array as an IDX file."""
    return b"".join(n.to_bytes(4, "big") for n in (0x800 + array.ndim, *array.shape)) + array.tobytes()


def mnist() -> dict[str, np.ndarray]:
    """Noise in the shape of MNIST's four files: 12 images to train on and 5 to test."""
    rng = np.random.default_rng(0)
    images = [rng.integers(1, 256, (count, 28, 28), dtype=np.uint8) for count in (12, 5)]
    labels = [np.arange(count, dtype=np.uint8) % 10 for count in (12, 5)]
    return dict(zip(MNIST, (images[0], labels[0], images[1], labels[1]), strict=True))


def cifar() -> tuple[np.ndarray, np.ndarray, dict[str, bytes]]:
    """Noise in the shape of CIFAR-10: images and labels, of which the last 4 are to test, and the files, by name."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (24, 3, 32, 32), dtype=np.uint8), rng.integers(0, 10, 24, dtype=np.uint8)
    records = np.concatenate([labels[:, None], images.reshape(24, -1)], axis=1)
    return images, labels, {f: records[4 * i : 4 * i + 4].tobytes() for i, f in enumerate(prepare.CIFAR10_FILES)}


def tar_of(files: dict[str, bytes], kind: bytes = tarfile.REGTYPE, top: str = "cifar-10-batches-bin/") -> bytes:
    """A .tar.gz of the files, the first of this kind."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", format=tarfile.GNU_FORMAT) as tar:
        for name in reversed(files):  # in no helpful order
            member = tarfile.TarInfo(top + name)
            member.type, member.linkname = kind if name == BATCH else tarfile.REGTYPE, "/etc/passwd"
            member.size = len(files[name])
            tar.addfile(member, io.BytesIO(files[name]))
    return out.getvalue()


def put(name: str, files: dict[str, bytes], home: str = "data/downloads") -> None:
    for file, data in files.items():
        path = Path(home, name, file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize("zipped", [True, False], ids=["gzipped", "plain"])
def test_idx_files_in_place_are_used_as_they_are(name: str, zipped: bool, capsys: pytest.CaptureFixture[str]) -> None:
    put(name, {f + ".gz" * zipped: gzip.compress(idx(a)) if zipped else idx(a) for f, a in mnist().items()}, "else")
    train, train_labels, test, test_labels = mnist().values()
    images, labels, classes = load(name, "--downloads", "else", size=32)
    assert np.array_equal(images, np.pad(train[:, None], [(0, 0), (0, 0), (2, 2), (2, 2)]))  # a black border, no more
    assert np.array_equal(np.load("out/test_images.npy")[:, 0, 2:30, 2:30], test)
    assert labels == train_labels.tolist()
    assert np.load("out/test_labels.npy").tolist() == test_labels.tolist()
    assert classes == prepare.SETS[name]["classes"].split()
    said = capsys.readouterr().out.splitlines()
    assert said == ["out: 12 images, 1 x 32 x 32, 10 classes, 5 test images", "Train on it: python dcgan.py --data out"]
    assert np.array_equal(load(name, "--downloads", "else", size=28)[0][:, 0], train)
    assert "python vanilla_gan.py --data out" in capsys.readouterr().out  # the others need a power of two


@pytest.mark.parametrize("size", [16, 64])
def test_other_sizes_are_antialiased_resizes(size: int) -> None:
    stripes = np.zeros((3, 28, 28), np.uint8)
    stripes[0, :, ::2] = 255  # the finest there are: without antialiasing, some would vanish and some grow
    stripes[1] = stripes[2, :, 14:] = 255
    put("mnist", {file: idx(a) for file, a in zip(MNIST, (stripes, np.arange(3, dtype=np.uint8)) * 2, strict=True)})
    images = load("mnist", size=size)[0][:, 0].astype(int)
    assert (images[1] == 255).all()
    assert (images[2, :, : size // 2 - 4] == 0).all()  # nothing wraps around at black or white
    assert (images[2, :, size // 2 + 4 :] == 255).all()
    assert size > 28 or abs(images[0, :, 2:-2] - 127).max() < 40


@pytest.mark.parametrize("form", ["archive", "unpacked", "any/folder", "archive and a part unpacked"])
def test_cifar10_in_place_is_used_as_it_is(form: str) -> None:
    images, labels, files = cifar()
    if "archive" in form:
        put("cifar10", {ARCHIVE: tar_of(files, top="../../")})  # where it would be unpacked to, if it were
        put("cifar10", {BATCH: bytes(3073)} if "part" in form else {})
    else:
        put("cifar10", {f"{form}/{file}": data for file, data in files.items()})
    before = sorted(Path().rglob("*"))
    found, found_labels, classes = load("cifar10", size=32)
    assert np.array_equal(found, images[:20])
    assert np.array_equal(np.load("out/test_images.npy"), images[20:])
    assert found_labels == labels[:20].tolist()
    assert np.load("out/test_labels.npy").tolist() == labels[20:].tolist()
    assert classes[:2] == ["airplane", "automobile"]
    assert sorted(path for path in Path().rglob("*") if path.parts[0] != "out") == before
    assert load("cifar10", size=16)[0].shape == (20, 3, 16, 16)


def zeros(*shape: int) -> bytes:
    return idx(np.zeros(shape, np.uint8))


TRAIN, BATCHES = idx(mnist()[IMAGES]), cifar()[2]
BROKEN_SETS = {
    "images cut": {IMAGES: TRAIN[:-9]},
    "images and more": {IMAGES: TRAIN + b"more"},
    "not IDX": {IMAGES: b"<html>403 Forbidden</html>"},
    "gzip cut": {IMAGES: gzip.compress(TRAIN)[:-9]},
    "gzip with a wrong checksum": {IMAGES: gzip.compress(TRAIN)[:-8] + bytes(8)},
    "gzip with a wrong header": {IMAGES: b"\x1f\x8b" + bytes(99)},
    "gzip that unpacks to too much": {IMAGES: gzip.compress(zeros(1400, 28, 28))},
    "labels for images": {IMAGES: zeros(12)},
    "fewer labels": {LABELS: zeros(11)},
    "label 10": {LABELS: idx(np.arange(12, dtype=np.uint8))},
    "no images": {IMAGES: zeros(0, 28, 28), LABELS: zeros(0)},
    "images of no size": {IMAGES: zeros(12, 0, 0)},
    "sizes of 2**32 - 1": {IMAGES: b"\0\0\x08\x03" + b"\xff" * 12},
    "test images of another size": {TEST_IMAGES: zeros(5, 32, 32)},
    "test labels cut": {TEST_LABELS: zeros(5)[:-1]},
    "archive cut": {ARCHIVE: tar_of(BATCHES)[:-999]},
    "archive empty": {ARCHIVE: b""},
    "not tar": {ARCHIVE: b"<html>403 Forbidden</html>"},
    "a batch cut": {ARCHIVE: tar_of(BATCHES | {BATCH: bytes(3072)})},
    "a batch with label 10": {ARCHIVE: tar_of(BATCHES | {BATCH: b"\x0a" + bytes(3072)})},
    "a batch lacks": {ARCHIVE: tar_of({BATCH: bytes(3073)})},
    "all batches empty": {ARCHIVE: tar_of(dict.fromkeys(BATCHES, b""))},
    "a link to a file outside": {ARCHIVE: tar_of(BATCHES | {BATCH: b""}, tarfile.SYMTYPE)},
    "a batch with holes": {ARCHIVE: tar_of(BATCHES | {BATCH: bytes(512)}, tarfile.GNUTYPE_SPARSE)},
    "archive that unpacks to too much": {ARCHIVE: tar_of(BATCHES | {BATCH: bytes(3073 * 500)})},
}


@pytest.mark.parametrize("damage", BROKEN_SETS)
def test_a_broken_set_is_refused(damage: str, refused: Refused) -> None:
    name = "cifar10" if ARCHIVE in BROKEN_SETS[damage] else "mnist"
    put(name, {file: idx(array) for file, array in mnist().items()} | BROKEN_SETS[damage])
    assert f"error: {name}: " in refused(name)


# ---------------------------------------------------------------------------------------------------------- download

FIRST_MIRRORS = {
    "is down": lambda page: ConnectionRefusedError("refused"),
    "sends something else": lambda page: gzip.compress(b"please log in"),
    "sends nothing": lambda page: b"",
    "is cut half way": lambda page: page[: len(page) // 2],
    "leads to a page without https": lambda page: "http://unsafe/",
}


@pytest.mark.parametrize("first", FIRST_MIRRORS)
def test_the_second_mirror_serves_when_the_first(first: str, web: Web, capsys: pytest.CaptureFixture[str]) -> None:
    web |= {url.replace("good", "first"): FIRST_MIRRORS[first](page) for url, page in web.items()}
    web["http://unsafe/"] = b"anything"
    for _ in range(2):
        assert np.array_equal(load("mnist", size=28)[0][:, 0], mnist()[IMAGES])
        assert {path.name for path in Path("data/downloads/mnist").iterdir()} == {f"{name}.gz" for name in MNIST}
        assert "100%" in capsys.readouterr().err  # a progress bar
    assert web.asked == [f"https://{mirror}/{name}.gz" for name in MNIST for mirror in ("first", "good")]  # only once


def test_a_redirection_is_followed_but_not_from_https_to_http(web: Web, refused: Refused) -> None:
    web |= {url.replace("good", "first"): url for url in web}
    load("mnist")
    assert len(web.asked) == 4
    shutil.rmtree("data")
    web |= {url.replace("https", "http"): page for url, page in web.items()}  # which anybody can read and change
    web |= {url: url.replace("https", "http") for url in web if url.startswith("https")}
    assert "not https" in refused("mnist")


def test_without_a_network_one_line_says_which_files_to_put_where(web: Web, refused: Refused) -> None:
    web.clear()
    line = refused("mnist", "--downloads", "elsewhere")
    assert all(f"{name}.gz" in line for name in MNIST)
    assert str(Path("elsewhere/mnist")) in line


def test_only_a_missing_file_is_downloaded_and_nothing_larger_than_any_set(web: Web, refused: Refused) -> None:
    put("mnist", {name: idx(array) for name, array in mnist().items() if name != LABELS})
    load("mnist")
    assert web.asked == [f"https://{mirror}/{LABELS}.gz" for mirror in ("first", "good")]
    Path("data/downloads/mnist", f"{LABELS}.gz").unlink()
    web[f"https://good/{LABELS}.gz"] = bytes(2**24)
    assert "cannot download" in refused("mnist")
    assert web.sent < 2**21


def test_real_sets_have_two_https_mirrors_a_sha256_for_each_file_and_plain_names_of_classes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()  # the tiny mnist
    assert sorted(prepare.SETS) == ["cifar10", "fashion-mnist", "mnist"]
    for about in prepare.SETS.values():
        mirrors, classes, *sums = about.values()
        assert len(mirrors.split()) >= 2
        assert all(mirror.startswith("https://") and mirror.endswith("/") for mirror in mirrors.split())
        assert len(set(prepare.class_names([f"{name}/1.png" for name in classes.split()]))) == 10
        assert all(len(bytes.fromhex(value)) == 32 for value in sums)


# --------------------------------------------------------------------------------------------------- folders and zips


def zip_of(folder: Path, top: str = "") -> Path:
    """The folder as a .zip beside it, its content below the folder top."""
    with zipfile.ZipFile(folder.with_suffix(".zip"), "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, Path(top, file.relative_to(folder)).as_posix())
    return folder.with_suffix(".zip")


def encoded(kind: str = "png", mode: str = "RGB", colour: object = RED, **options: object) -> bytes:
    out, size = io.BytesIO(), options.pop("size", (8, 8))
    Image.new(mode, size, colour).save(out, kind, **options)
    return out.getvalue()


def png_of(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG that says it is so large, black and white, with this for pixels."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)), (b"IDAT", zlib.compress(data))]
    chunks = [(len(data), kind + data) for kind, data in [*chunks, (b"IEND", b"")]]
    return b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(f">I{n + 4}sI", n, x, zlib.crc32(x)) for n, x in chunks)


def write(folder: str, files: dict[str, bytes]) -> Path:
    put("", files, folder)
    return Path(folder)


@PACKED
def test_first_level_subfolders_are_the_classes(packed: bool) -> None:
    colours = {"zebras/1": RED, "Große Hunde 2.png/1": GREEN, "猫/grey/old/1": BLUE}
    photos = write("photos", {f"{name}.png": encoded(colour=colour) for name, colour in colours.items()})
    images, labels, classes = load(zip_of(photos, top="photos-main") if packed else photos)
    assert classes == ["Große Hunde 2.png", "zebras", "猫"]  # but not the folder that is around all of them
    assert labels == [0, 1, 2]
    assert images[:, :, 4, 4].tolist() == [[*GREEN], [*RED], [*BLUE]]


@PACKED
@pytest.mark.parametrize("classes", [[""], ["", "cats"], ["cats"]], ids=str)
def test_there_are_no_classes_unless_each_image_lies_in_one_of_several(packed: bool, classes: list[str]) -> None:
    photos = make_images(Path("photos"), classes, 4)
    images, labels, _ = load(zip_of(photos, top="photos-main") if packed else photos)
    assert (len(images), labels) == (4 * len(classes), None)


@pytest.mark.parametrize("name", ["a,b", "a\nb", " a", "a\\b", "a:b", "\x1b[1m", "\udcff"], ids=repr)
def test_a_class_without_a_plain_name_is_refused(name: str, refused: Refused) -> None:
    assert repr(name) in refused(make_images(Path("photos"), ["dogs", name], 1))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "I;16"])
def test_grey_images_have_one_channel_and_keep_their_grey(mode: str) -> None:
    grey = {"1": 255, "LA": (120, 255), "RGB": (120, 120, 120), "I;16": 120 * 257}.get(mode, 120)
    images = load(write("photos", {"1.png": encoded(mode=mode, colour=grey)}))[0]
    assert np.array_equal(images, np.full((1, 1, 8, 8), 255 if mode == "1" else 120))


@pytest.mark.parametrize("at", [0, 1, 7])
def test_one_colour_image_among_grey_ones_makes_three_channels(at: int) -> None:
    photos = make_images(Path("photos"), [""], 8, mode="L")
    expected = np.repeat(load(photos)[0], 3, axis=1)
    expected[at] = np.array([9, 9, 10])[:, None, None]
    write("photos", {f"{at}.png": encoded(colour=(9, 9, 10))})
    assert np.array_equal(load(photos)[0], expected)


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, -1), (8, 1)])
@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_the_centre_square_is_taken_shrunk_with_antialiasing_and_upright(
    kind: str, orientation: int, turns: int
) -> None:
    pixels = np.zeros((128, 256, 3), np.uint8)
    pixels[:, :64] = pixels[:, 192:] = RED  # to be cut off
    pixels[::2, 64:128:2] = pixels[1::2, 65:128:2] = 255  # the left half is grey from afar, the right half black
    exif = Image.Exif()
    exif[0x0112] = orientation
    Path("photos").mkdir()
    Image.fromarray(np.ascontiguousarray(np.rot90(pixels, -turns))).save("photos/1.png", kind, exif=exif, quality=95)
    image = load("photos")[0][0].astype(int)
    assert abs(image[:, 1:-1, 1:3] - 127).max() < 20
    assert image[:, 1:-1, 5:-1].max() < 20


MORE = {"save_all": True, "append_images": [Image.new("RGB", (8, 8), BLUE)]}
ODD = {
    "a.jpg": encoded("jpeg", quality=95),
    "a.JPEG": encoded("jpeg", quality=95, progressive=True),
    "a.BMP": encoded("bmp"),
    "named as another format.png": encoded("jpeg", quality=95),
    "animated.png": encoded("png", **MORE),
    "cmyk.jpg": encoded("jpeg", "CMYK", (0, 255, 255, 0), quality=95),
    "palette.png": encoded("png", "P", RED, transparency=bytes([9, 99])),
    "one pixel.png": encoded("png", size=(1, 1)),
    "one pixel high.png": encoded("png", size=(999, 1)),
    "64 KB of exif.jpg": encoded("jpeg", exif=b"Exif\0\0" + bytes(65_000), quality=95),
    "broken exif.jpg": encoded("jpeg", exif=b"Exif\0\0II*\0\xff\xff", quality=95),
}
ODD |= {"animated.webp": encoded("webp", lossless=True, **MORE)} if features.check("webp") else {}
NO_IMAGES = ["notes.txt", "__MACOSX/cats/._0.png", ".thumbnails/0.png", "cats/._0.png"]
BROKEN = {
    "another format": encoded("gif"),
    "cut": encoded("jpeg")[:-40],
    "empty": b"",
    "esc\x1b[1m": b"<html>403 Forbidden</html>",
    "more pixels than the bound": png_of(1024, 260, bytes(129 * 260)),
    "no pixels": png_of(0, 0),
    "very large": png_of(50_000, 50_000),
    "very wide": png_of(2**31 - 1, 2**31 - 1),
    "wrong checksum": png_of(8, 8, bytes(16)).replace(b"IDAT", b"IDAT\1"),
}


@PACKED
def test_odd_images_are_read_without_a_word(packed: bool, capsys: pytest.CaptureFixture[str]) -> None:
    photos = write("photos", ODD | dict.fromkeys(NO_IMAGES, b""))
    images = load(zip_of(photos) if packed else photos)[0].astype(int)
    assert len(images) == len(ODD)
    assert abs(images - np.array(RED)[:, None, None]).max() < 6
    assert all("\r" in line or not line for line in capsys.readouterr().err.split("\n"))  # only the progress bar


@PACKED
def test_what_cannot_be_read_is_left_out_and_named(packed: bool, capsys: pytest.CaptureFixture[str]) -> None:
    make_images(Path("photos"), per_class=2)
    photos = write("photos", {f"mice/{name}.png": data for name, data in BROKEN.items()})
    images, labels, classes = load(zip_of(photos) if packed else photos)
    assert (len(images), labels, classes) == (4, [0, 0, 1, 1], ["cats", "dogs"])
    names = ", ".join(f"'mice/{name}.png'" for name in BROKEN).replace("\x1b", "\\x1b")  # cannot write to the terminal
    assert capsys.readouterr().err.splitlines()[-1] == f"warning: left out 9 unreadable images: {names}"


@PACKED
@pytest.mark.parametrize("files", [{}, {"notes.txt": b""}, {"1.png": b"text"}], ids=["nothing", "no image", "broken"])
def test_a_set_without_a_readable_image_is_refused(files: dict[str, bytes], packed: bool, refused: Refused) -> None:
    Path("photos").mkdir()
    photos = write("photos", files)
    assert "[CLASS/]NAME.png" in refused(zip_of(photos) if packed else photos)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_links_in_a_circle_end_and_pipes_are_not_waited_for(refused: Refused) -> None:
    make_images(Path("photos"))
    Path("photos/cats/again").symlink_to(Path("photos").resolve(), target_is_directory=True)
    for link in ("loop", "photos/cats/itself.png"):
        Path(link).symlink_to(Path(link).name)
    put("cifar10", {"notes.txt": b""})
    for pipe in ("pipe", "photos/pipe.png", f"data/downloads/cifar10/{ARCHIVE}"):
        os.mkfifo(pipe)
    assert len(load("photos")[0]) == 16
    assert all("none of mnist" in refused(source) for source in ("loop", "pipe"))
    assert "cannot download" in refused("cifar10")


def test_names_in_a_zip_lead_nowhere_and_bad_entries_are_left_out(
    capsys: pytest.CaptureFixture[str], refused: Refused
) -> None:
    names = ["../up/1.png", "/top/2.png", "a/../../3.png", "a//4.png", "b\\..\\5.png", "b/6.png", "b/6.png"]
    with warnings.catch_warnings(), zipfile.ZipFile("odd.zip", "w") as archive:
        warnings.simplefilter("ignore")  # of the name that comes twice
        for name in [*names, "flipped.png", "locked.png"]:
            archive.writestr(name, encoded(colour=BLUE))
        archive.writestr("bomb.png", bytes(2**26), zipfile.ZIP_DEFLATED)
    data = bytearray(Path("odd.zip").read_bytes())
    data[data.index(b"flipped.png") + 50] ^= 1  # its checksum is wrong now
    data[data.rindex(b"locked.png") - 38] |= 1  # says that it is encrypted
    Path("odd.zip").write_bytes(data)
    assert len(load("odd.zip")[0]) == 4
    assert "3 unreadable images: 'bomb.png', 'flipped.png', 'locked.png'" in capsys.readouterr().err
    assert {path.name for path in Path().iterdir()} == {"odd.zip", "out"}
    with zipfile.ZipFile("lzma.zip", "w", zipfile.ZIP_LZMA) as archive:  # could unpack without a bound
        archive.writestr("1.png", encoded())
    assert "compression" in refused("lzma.zip")


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
def test_large_sets_and_bombs_take_little_memory() -> None:
    """In a process of its own with a bound of 16 MB: 96 MB of pixels and bombs of 128 MB and more, within 100 MB."""
    write("photos", {"bomb.png": png_of(50_000, 50_000, bytes(2**27))} | {f"{i}.png": encoded() for i in range(500)})
    with zipfile.ZipFile("bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1.png", encoded())
        archive.writestr("bomb.png", bytes(2**27))
    put("mnist", {IMAGES: gzip.compress(TRAIN + bytes(2**27))} | {name: zeros(12) for name in MNIST[1:]})
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import prepare; prepare.LARGEST = 2**24\n"
    code += "peak = lambda: int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) // 1024\n"
    code += "before = peak()\ntry:\n for source in 'photos', 'bomb.zip', 'mnist':\n"
    code += (
        "  prepare.main([source, '--image-size', '256'])\nexcept SystemExit as end:\n print(source, peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    source, peak = done.stdout.splitlines()[-1].split()
    assert source == "mnist", done.stderr
    assert int(peak) < 100


# -------------------------------------------------------------------------------------------------------- the output


def test_the_output_is_in_data_and_named_after_the_source_and_the_size(capsys: pytest.CaptureFixture[str]) -> None:
    photos = make_images(Path("some/my photos"), [""])
    for source in (photos, zip_of(photos)):
        assert prepare.main([str(source)]) == 0
        assert np.load("data/my photos-32/images.npy").shape == (8, 3, 32, 32)
        said = capsys.readouterr().out
        assert said.startswith("data/my photos-32: 8 images, 3 x 32 x 32, no classes\n")
        assert said.endswith("python dcgan.py --data 'data/my photos-32'\n")
        shutil.rmtree("data")


def test_bad_usage_is_refused_and_help_shows_an_example_of_each_kind(
    refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    write("", {"text.zip": b"text"})
    for args in ([], ["nothing"], ["text.zip"], ["mnist", "--image-size", "7"], ["mnist", "--nonsense"]):
        refused(*args)
    with pytest.raises(SystemExit):
        prepare.main(["--help"])
    said = capsys.readouterr().out
    assert all(f"python prepare.py {source}" in said for source in ("mnist", "photos --image-size", "photos.zip --out"))


def test_an_output_is_replaced_with_force_only_and_only_when_the_new_one_is_ready(refused: Refused) -> None:
    before = load(make_images(Path("photos")))[0].copy()
    Path("link").symlink_to("out")
    write("empty", {"1.png": b""})
    assert "--force" in refused("photos", "--out", "out")
    assert "readable" in refused("empty", "--force", "--out", "out")
    assert np.array_equal(np.load("out/images.npy"), before)
    make_images(Path("others"), [""], 3)
    assert prepare.main(["others", "--force", "--out", "link"]) == 0
    assert Path("link").is_symlink()
    assert {path.name: np.load(path).shape for path in Path("out").iterdir()} == {"images.npy": (3, 3, 32, 32)}
    write("out", {"my notes": b"precious"})
    assert all("nothing else" in refused("others", "--force", "--out", out) for out in ("out", "out/my notes"))


def test_what_cannot_be_written_is_exit_1(web: Web, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    photos, limits = make_images(Path("photos")), resource.getrlimit(resource.RLIMIT_FSIZE)
    assert "cannot write" in refused("photos", "--out", photos / "cats/0.png/x", code=1)
    Path("data/downloads/mnist").mkdir(parents=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))  # as if the disk were full
    try:
        assert all("cannot write" in refused(source, code=1) for source in ("photos", "mnist"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_or_killed_run_leaves_nothing_that_disturbs_the_next(how: int) -> None:
    make_images(Path("photos"))
    slow = f"import sys, time; sys.path.insert(0, {str(ROOT)!r}); import prepare; real = prepare.decode\n"
    slow += "prepare.decode = lambda *args: (time.sleep(0.2), real(*args))[1]\n"
    slow += "sys.exit(prepare.main(['photos', '--out', 'out']))"
    process = subprocess.Popen([sys.executable, "-c", slow], stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list(Path().glob(".out.part-*/images.npy")):
        time.sleep(0.01)
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    assert not Path("out").exists()
    if how == signal.SIGINT:
        assert (process.returncode, err.splitlines()[-1]) == (130, "prepare.py: error: interrupted, nothing is written")
        assert [path.name for path in Path().iterdir()] == ["photos"]
    assert len(load("photos")[0]) == 16  # and load() looks for what is left


# ------------------------------------------------------------------------------------------- files damaged at random

EXAMPLES = int(os.environ.get("FUZZ", "0"))
WORDS = [n.to_bytes(4, order) for n in (0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1) for order in ("big", "little")]
WORDS += [b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6", b"\x0c\0", b"../", b"/", b"\x80" + bytes(10) + b"\x7f", b"7" * 11]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """The data with one to four changes: bytes changed, cut out, put in, taken from elsewhere."""
    for _ in range(rng.randint(1, 4)):
        i, j = (int(len(data) * rng.choice([rng.random(), rng.random() / 20, 1 - rng.random() / 20])) for _ in "ij")
        new = rng.choice([rng.randbytes(rng.randint(1, 8)), rng.choice(WORDS)])
        old, new = rng.choice([(len(new), new), (0, new), (abs(j - i), b""), (len(data), b""), (0, data[j : j + 64])])
        data = data[:i] + new + data[i + old :]
    return data


def mutate_tar(data: bytes, rng: random.Random) -> bytes:
    """A .tar with changes, its headers with other types and the checksums that they should have."""
    data = bytearray(mutate(data, rng))
    for i in [i for i in range(0, len(data) - 511, 512) if data[i + 257 : i + 262] == b"ustar"]:
        data[i + 156] = rng.choice([data[i + 156], *b"0123456LKSxg"])
        data[i + 148 : i + 156] = b" " * 8
        data[i + 148 : i + 156] = b"%06o\0 " % sum(data[i : i + 512])
    return bytes(data)


def mutate_png(data: bytes, rng: random.Random) -> bytes:
    """A PNG with changes and the checksums that its chunks should have, so that they reach the decoder."""
    data, i, out = mutate(data, rng), 8, b"\x89PNG\r\n\x1a\n"
    while i + 8 <= len(data):
        end = i + 8 + int.from_bytes(data[i : i + 4], "big")
        out, i = out + data[i:end] + zlib.crc32(data[i + 4 : end]).to_bytes(4, "big"), end + 4
    return out


def damage(source: str, rng: random.Random) -> None:
    """Writes a damaged set."""
    pack = rng.choice([lambda data: data, gzip.compress, lambda data: mutate(gzip.compress(data), rng)])
    if source == "mnist":
        put("mnist", {name: idx(array) for name, array in mnist().items()})
        put("mnist", {name: pack(mutate(idx(array), rng)) for name, array in rng.sample([*mnist().items()], 1)})
    elif source == "cifar10":
        tar = gzip.decompress(tar_of(dict.fromkeys(BATCHES, bytes(3073))))
        put("cifar10", {ARCHIVE: pack(rng.choice([mutate, mutate_tar])(tar, rng))})
    else:
        make_images(Path("photos"), per_class=1)
        files = [(name, data) for name, data in ODD.items() for _ in range(2)]
        files = {
            f"{i}{n}": (mutate_png if n[-3:] == "png" and i % 2 else mutate)(x, rng) for i, (n, x) in enumerate(files)
        }
        zip_of(write("photos", files if source == "photos" else {}))
        write("", {"photos.zip": mutate(Path("photos.zip").read_bytes(), rng)})


@pytest.mark.parametrize("source", ["mnist", "cifar10", "photos", "photos.zip"])
@settings(
    max_examples=EXAMPLES or 30,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=HealthCheck,
)
@given(seed=st.integers(0, 2**64 - 1))
def test_whatever_a_file_holds_it_is_read_or_refused_in_one_line(source: str, seed: int) -> None:
    for path in Path().iterdir():
        path.unlink() if path.is_file() else shutil.rmtree(path)
    damage(source, random.Random(seed))
    with contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            prepare.main([source, "--image-size", "8", "--out", "out"])
        except SystemExit as end:
            assert end.code == 2
            assert err.getvalue().count("error: ") == 1
    assert {path.name for path in Path().iterdir()} <= {"data", "photos", "photos.zip", "out"}
