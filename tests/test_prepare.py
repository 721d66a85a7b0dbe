"""prepare.py: standard sets and their download, folders and zips of images, the folder of arrays, hostile files.

Damaged files are made at random, too: the suite tries a few, always the same; FUZZ=5000 pytest tests/test_prepare.py
tries 5,000 new ones a test. Whatever a reader gets, it works, or the program ends with exit code 2 and one line.
"""

import contextlib
import functools
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
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, make_images
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, features

import prepare

IMAGES, LABELS, TEST_IMAGES, TEST_LABELS = MNIST = [name.removesuffix(".gz") for name in [*prepare.SETS["mnist"]][2:]]
ARCHIVE = "cifar-10-binary.tar.gz"
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
PACKED = pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])


@pytest.fixture(autouse=True)
def bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A smaller bound, so that what runs into it does so fast, and no network."""
    monkeypatch.setattr(prepare, "LARGEST", 2**20)
    monkeypatch.setattr(prepare, "urlopen", Web())


class Web(dict):
    """Takes the place of urlopen: serves the pages that it holds, by URL; a page is bytes, a URL to go to, or fails."""

    def __init__(self) -> None:
        self.asked, self.sent = [], 0

    def __call__(self, request: object, timeout: float) -> io.BytesIO:
        self.asked.append(url := request.full_url)
        while isinstance(page := self.get(url, OSError("not found")), str):
            url = page
        if isinstance(page, Exception):
            raise page
        reply = io.BytesIO(page)
        reply.url, reply.length, reply.read1 = url, len(page), lambda n: (self.count(n), reply.read(n))[1]
        return reply

    def count(self, n: int) -> None:
        self.sent += n


def run(*args: object, size: int = 8, code: int = 0) -> Path:
    """Runs prepare.py on args, which should end with this code; returns where its output is to be."""
    argv = [*map(str, args), "--image-size", str(size), *([] if "--out" in args else ["--out", "out"])]
    try:
        assert prepare.main(argv) == code
    except SystemExit as end:
        assert end.code == code
    assert not list(Path().rglob(".*.part*"))
    return Path("out")


def load(*args: object, size: int = 8) -> tuple[np.ndarray, list[int] | None, list[str]]:
    """What prepare.py makes of args: images, labels (None if there are none), names of the classes."""
    shutil.rmtree("out", ignore_errors=True)
    out = run(*args, size=size)
    images = np.load(out / "images.npy", mmap_mode="c")
    assert (images.dtype, images.shape[2:], images.flags.c_contiguous) == (np.uint8, (size, size), True)
    assert images.shape[1] in (1, 3)
    assert (out / "images.npy").stat().st_size == 128 + images.size
    classes = (out / "classes.txt").read_text("utf-8").splitlines() if (out / "classes.txt").exists() else []
    if not (out / "labels.npy").exists():
        assert not classes
        return images, None, []
    labels = np.load(out / "labels.npy")
    assert (labels.dtype, labels.shape) == (np.int64, images.shape[:1])
    assert 0 <= labels.min() <= labels.max() < len(classes)
    return images, labels.tolist(), classes


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """refused(*args) asserts that prepare.py ends with the code and one line on stderr, and writes nothing."""

    def check(*args: object, code: int = 2, size: int = 8) -> str:
        before, _ = sorted(Path().rglob("*")), capsys.readouterr()
        run(*args, code=code, size=size)
        (line,) = [line.rpartition("\r")[2] for line in capsys.readouterr().err.split("\n") if "error:" in line]
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


def put(name: str, files: dict[str, bytes], home: str = "data/downloads") -> Path:
    for file, data in files.items():
        path = Path(home, name, file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return Path(home, name)


def cifar() -> tuple[np.ndarray, np.ndarray, dict[str, bytes]]:
    """Noise in the shape of CIFAR-10: images, labels, the last 4 of them to test, and the files, by name."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (24, 3, 32, 32), dtype=np.uint8), rng.integers(0, 10, 24, dtype=np.uint8)
    records = np.concatenate([labels[:, None], images.reshape(24, -1)], axis=1)
    return images, labels, {f: records[4 * i : 4 * i + 4].tobytes() for i, f in enumerate(prepare.CIFAR10_FILES)}


def tar_of(files: dict[str, bytes], kinds: dict[str, bytes] | None = None, top: str = "cifar-10-batches-bin/") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", format=tarfile.GNU_FORMAT) as tar:
        for name in reversed(files):  # in no helpful order
            member = tarfile.TarInfo(top + name)
            member.type, member.linkname = (kinds or {}).get(name, tarfile.REGTYPE), "/etc/passwd"
            member.size = len(files[name])
            tar.addfile(member, io.BytesIO(files[name]))
    return out.getvalue()


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize("zipped", [True, False], ids=["gzipped", "plain"])
def test_idx_files_in_place_are_used_as_they_are(name: str, zipped: bool, capsys: pytest.CaptureFixture[str]) -> None:
    files = {f + ".gz" * zipped: gzip.compress(idx(a)) if zipped else idx(a) for f, a in mnist().items()}
    put(name, files, "elsewhere")
    images, labels, classes = load(name, "--downloads", "elsewhere", size=32)
    train, train_labels, test, test_labels = mnist().values()
    assert np.array_equal(images, np.pad(train[:, None], [(0, 0), (0, 0), (2, 2), (2, 2)]))  # a black border, no more
    assert labels == train_labels.tolist()
    assert np.array_equal(np.load("out/test_images.npy")[:, 0, 2:30, 2:30], test)
    assert np.load("out/test_labels.npy").tolist() == test_labels.tolist()
    assert classes == prepare.SETS[name]["classes"].split()
    said = capsys.readouterr().out.splitlines()
    assert said == ["out: 12 images, 1 x 32 x 32, 10 classes, 5 test images", "Train on it: python dcgan.py --data out"]
    assert np.array_equal(load(name, "--downloads", "elsewhere", size=28)[0][:, 0], train)
    assert "python vanilla_gan.py --data out" in capsys.readouterr().out  # the others need a power of two


@pytest.mark.parametrize("size", [16, 64])
def test_other_sizes_are_antialiased_resizes(size: int) -> None:
    stripes = np.zeros((3, 28, 28), np.uint8)
    stripes[0, :, ::2] = 255  # the finest there are: without antialiasing, some would vanish and some grow
    stripes[1] = 255
    stripes[2, :, 14:] = 255
    labels = np.arange(3, dtype=np.uint8)
    put("mnist", {file: idx(a) for file, a in zip(MNIST, (stripes, labels, stripes, labels), strict=True)})
    images = load("mnist", size=size)[0][:, 0].astype(int)
    assert np.unique(images[1]).tolist() == [255]
    assert (images[2, :, : size // 2 - 4] == 0).all()  # nothing wraps around at black or white
    assert (images[2, :, size // 2 + 4 :] == 255).all()
    assert size > 28 or abs(images[0, :, 2:-2] - 127).max() < 40


@pytest.mark.parametrize("form", ["tar.gz", "unpacked", "unpacked in its folder", "unpacked in part"])
def test_cifar10_in_place_is_used_as_it_is(form: str) -> None:
    images, labels, files = cifar()
    if form == "unpacked":
        put("cifar10", files)
    elif form == "unpacked in its folder":
        put("cifar10", {f"any/folder/{file}": data for file, data in files.items()})
    else:
        put("cifar10", {ARCHIVE: tar_of(files | {"batches.meta.txt": b"airplane\n"})})
    if form == "unpacked in part":
        put("cifar10", {"data_batch_1.bin": bytes(3073)})
    found, found_labels, classes = load("cifar10", size=32)
    assert np.array_equal(found, images[:20])
    assert found_labels == labels[:20].tolist()
    assert np.array_equal(np.load("out/test_images.npy"), images[20:])
    assert np.load("out/test_labels.npy").tolist() == labels[20:].tolist()
    assert classes[:2] == ["airplane", "automobile"]
    assert load("cifar10", size=16)[0].shape == (20, 3, 16, 16)


def zeros(*shape: int) -> bytes:
    return idx(np.zeros(shape, np.uint8))


TRAIN = idx(mnist()[IMAGES])
BROKEN_IDX = {
    "images cut": {IMAGES: TRAIN[:-9]},
    "images empty": {IMAGES: b""},
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
    "images not square": {IMAGES: zeros(12, 14, 28)},
    "sizes of 2**32 - 1": {IMAGES: b"\0\0\x08\x03" + b"\xff" * 12},
    "test labels cut": {TEST_LABELS: zeros(5)[:-1]},
    "test images of another size": {TEST_IMAGES: zeros(5, 32, 32)},
}


@pytest.mark.parametrize("damage", BROKEN_IDX)
def test_a_broken_idx_file_is_refused(damage: str, refused: Callable[..., str]) -> None:
    put("mnist", {file: idx(array) for file, array in mnist().items()} | BROKEN_IDX[damage])
    assert "mnist: " in refused("mnist")


BATCH, FILES = "data_batch_1.bin", cifar()[2]
BROKEN_TARS = {
    "cut": lambda: tar_of(FILES)[:-999],
    "empty": lambda: b"",
    "not tar": lambda: b"<html>403 Forbidden</html>",
    "batch cut": lambda: tar_of(FILES | {BATCH: bytes(3072)}),
    "label 10": lambda: tar_of(FILES | {BATCH: b"\x0a" + bytes(3072)}),
    "a batch lacks": lambda: tar_of({name: data for name, data in FILES.items() if name != BATCH}),
    "all batches empty": lambda: tar_of(dict.fromkeys(FILES, b"")),
    "a folder for a batch": lambda: tar_of(FILES | {BATCH: b""}, {BATCH: tarfile.DIRTYPE}),
    "a link to a file outside": lambda: tar_of(FILES | {BATCH: b""}, {BATCH: tarfile.SYMTYPE}),
    "a device": lambda: tar_of(FILES | {BATCH: b""}, {BATCH: tarfile.CHRTYPE}),
    "a batch with holes": lambda: tar_of(FILES | {BATCH: bytes(512)}, {BATCH: tarfile.GNUTYPE_SPARSE}),
    "unpacks to too much": lambda: tar_of(FILES | {BATCH: bytes(3073 * 500)}),
}


@pytest.mark.parametrize("damage", BROKEN_TARS)
def test_a_broken_cifar10_archive_is_refused(damage: str, refused: Callable[..., str]) -> None:
    put("cifar10", {ARCHIVE: BROKEN_TARS[damage]()})
    assert "cifar10: " in refused("cifar10")


def test_a_cifar10_archive_is_read_not_unpacked() -> None:
    put("cifar10", {ARCHIVE: tar_of(FILES, top="../../")})
    assert len(load("cifar10", size=32)[0]) == 20
    assert [path.name for path in Path().rglob("*.*") if path.suffix not in (".npy", ".txt")] == [ARCHIVE]


# ---------------------------------------------------------------------------------------------------------- download


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Web:
    """A web with a tiny mnist at the second of its two mirrors."""
    pages = {f"{name}.gz": gzip.compress(idx(array), mtime=0) for name, array in mnist().items()}
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in pages.items()}
    about = {"mirrors": "https://first/ https://good/", "classes": prepare.SETS["mnist"]["classes"], **sums}
    monkeypatch.setitem(prepare.SETS, "mnist", about)
    prepare.urlopen.update({f"https://good/{name}": data for name, data in pages.items()})
    return prepare.urlopen


def assert_mnist_arrives() -> None:
    assert np.array_equal(load("mnist", size=28)[0][:, 0], mnist()[IMAGES])
    assert sorted(path.name for path in Path("data/downloads/mnist").iterdir()) == sorted(f"{n}.gz" for n in MNIST)


FIRST_MIRRORS = {
    "has no such file": lambda page: OSError("HTTP Error 404"),
    "is down": lambda page: ConnectionRefusedError("refused"),
    "sends something else": lambda page: gzip.compress(b"please log in"),
    "sends nothing": lambda page: b"",
    "is cut half way": lambda page: page[: len(page) // 2],
    "leads to a page without https": lambda page: "http://unsafe/",
}


@pytest.mark.parametrize("first", FIRST_MIRRORS)
def test_the_second_mirror_serves_when_the_first(first: str, web: Web, capsys: pytest.CaptureFixture[str]) -> None:
    for url, page in list(web.items()):
        web[url.replace("good", "first")] = FIRST_MIRRORS[first](page)
    web["http://unsafe/"] = b"anything"
    assert_mnist_arrives()
    assert web.asked == [f"https://{mirror}/{name}.gz" for name in MNIST for mirror in ("first", "good")]
    assert "100%" in capsys.readouterr().err  # a progress bar
    web.asked.clear()
    assert_mnist_arrives()
    assert web.asked == []


def test_a_redirection_is_followed_but_not_from_https_to_http(web: Web, refused: Callable[..., str]) -> None:
    for name in MNIST:
        web[f"https://first/{name}.gz"] = f"https://good/{name}.gz"
    assert_mnist_arrives()
    assert len(web.asked) == 4
    shutil.rmtree("data")
    shutil.rmtree("out")
    for name in MNIST:  # the right files, but on the way anybody may read and change them
        web[f"http://good/{name}.gz"] = web[f"https://good/{name}.gz"]
        web[f"https://first/{name}.gz"] = web[f"https://good/{name}.gz"] = f"http://good/{name}.gz"
    assert "not https" in refused("mnist")
    assert not list(Path().rglob("*.gz*"))


def test_without_a_network_one_line_says_which_files_to_put_where(web: Web, refused: Callable[..., str]) -> None:
    web.clear()
    line = refused("mnist", "--downloads", "elsewhere")
    assert all(f"{name}.gz" in line for name in MNIST)
    assert str(Path("elsewhere/mnist")) in line


def test_only_the_missing_file_is_downloaded(web: Web) -> None:
    put("mnist", {name: idx(array) for name, array in mnist().items() if name != LABELS})
    assert len(load("mnist", size=32)[0]) == 12
    assert web.asked == [f"https://{mirror}/{LABELS}.gz" for mirror in ("first", "good")]


def test_what_is_larger_than_any_data_set_is_not_read_to_its_end(web: Web, refused: Callable[..., str]) -> None:
    web[f"https://good/{IMAGES}.gz"] = bytes(2**24)
    assert "cannot download" in refused("mnist")
    assert web.sent < 2**21


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(refused: Callable[..., str]) -> None:
    os.mkfifo(put("mnist", {"note": b""}) / IMAGES)
    assert "cannot download" in refused("mnist")
    os.mkfifo(make_images(Path("photos")) / "pipe.png")
    assert len(load("photos")[0]) == 16
    os.mkfifo("photos.zip")
    assert "none of mnist, fashion-mnist, cifar10" in refused("photos.zip")


def test_real_sets_have_two_https_mirrors_a_sha256_for_each_file_and_plain_names_of_classes() -> None:
    assert sorted(prepare.SETS) == ["cifar10", "fashion-mnist", "mnist"]
    for about in prepare.SETS.values():
        mirrors, classes, *sums = about.values()
        assert len(mirrors.split()) >= 2
        assert all(mirror.startswith("https://") and mirror.endswith("/") for mirror in mirrors.split())
        assert len(set(classes.split())) == 10
        assert prepare.class_names([f"{name}/1.png" for name in classes.split()]) == classes.split()
        assert all(len(bytes.fromhex(value)) == 32 for value in sums)


# --------------------------------------------------------------------------------------------------- folders and zips


def zip_of(folder: Path, top: str = "", packing: int = zipfile.ZIP_STORED) -> Path:
    """The folder as a .zip beside it, its content below the folder top."""
    with zipfile.ZipFile(folder.with_suffix(".zip"), "w", packing) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, Path(top, file.relative_to(folder)).as_posix())
    return folder.with_suffix(".zip")


def save(path: str, colour: object, size: tuple[int, int] = (8, 8), mode: str = "RGB", **options: object) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)


@PACKED
def test_first_level_subfolders_are_the_classes(packed: bool) -> None:
    for name, colour in (("zebras", RED), ("ants", GREEN), ("mice/grey/old", BLUE)):
        save(f"photos/{name}/1.png", colour)
        save(f"photos/{name}/2.png", colour)
    images, labels, classes = load(zip_of(Path("photos"), top="photos-main") if packed else "photos")
    assert classes == ["ants", "mice", "zebras"]  # but not the folder that is around all of them
    assert labels == [0, 0, 1, 1, 2, 2]
    assert images[::2, :, 4, 4].tolist() == [[*GREEN], [*BLUE], [*RED]]


@PACKED
@pytest.mark.parametrize("classes", [[""], ["", "cats"], ["cats"]], ids=str)
def test_there_are_no_classes_unless_each_image_lies_in_one_of_several(packed: bool, classes: list[str]) -> None:
    make_images(Path("photos"), classes, 4)
    images, labels, found = load(zip_of(Path("photos"), top="photos-main") if packed else "photos")
    assert (len(images), labels, found) == (4 * len(classes), None, [])


@pytest.mark.parametrize("name", ["a,b", "a\nb", " a", "a\\b", "a:b", "\x1b[1m", "\udcff"], ids=repr)
def test_a_class_without_a_plain_name_is_refused_before_anything_is_decoded(
    name: str, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_images(Path("photos"), ["dogs", name], 1)
    monkeypatch.delattr(prepare, "decode_all")
    assert repr(name) in refused("photos")


def test_names_of_classes_may_have_any_letters() -> None:
    assert load(make_images(Path("photos"), ["Große Hunde", "猫", "10.png"], 1))[2] == ["10.png", "Große Hunde", "猫"]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "I;16"])
def test_grey_images_have_one_channel_and_keep_their_grey(mode: str) -> None:
    grey = {"1": 255, "LA": (120, 255), "RGB": (120, 120, 120), "I;16": 120 * 257}.get(mode, 120)
    save("photos/1.png", grey, mode=mode)
    assert np.array_equal(load("photos")[0], np.full((1, 1, 8, 8), 255 if mode == "1" else 120))


@pytest.mark.parametrize("at", [0, 1, 7])
def test_one_colour_image_among_grey_ones_makes_three_channels(at: int) -> None:
    greys = make_images(Path("photos"), [""], 8, mode="L")
    expected = np.repeat(load(greys)[0], 3, axis=1)
    expected[at] = np.array([9, 9, 10])[:, None, None]
    save(f"photos/{at}.png", (9, 9, 10))
    assert np.array_equal(load(greys)[0], expected)


def test_the_centre_square_is_taken_shrunk_with_antialiasing_and_turned_upright() -> None:
    pixels = np.zeros((128, 256, 3), np.uint8)
    pixels[:, :64] = pixels[:, 192:] = RED  # to be cut off
    pixels[::2, 64:128:2] = pixels[1::2, 65:128:2] = 255  # the left half is grey from afar, the right half black
    exif = Image.Exif()
    for orientation in (1, 3, 6, 8):
        exif[0x0112] = orientation
        Path(f"photos{orientation}").mkdir()
        for name, image in (("a.jpg", pixels), ("b.png", pixels.transpose(1, 0, 2)[:, ::-1])):  # turned to the right
            Image.fromarray(image).save(f"photos{orientation}/{name}", exif=exif, quality=95)
        a, b = load(f"photos{orientation}")[0].astype(int).mean(axis=1)
        a, b = (np.rot90(x, {1: 0, 3: 2, 6: 1, 8: 3}[orientation]) for x in (a, np.rot90(b)))  # turned back
        for x in (a, b):
            assert abs(x[1:-1, 1:3] - 127).max() < 20
            assert x[1:-1, 5:-1].max() < 20


def encoded(mode: str = "RGB", kind: str = "jpeg", colour: object = RED, **options: object) -> bytes:
    out = io.BytesIO()
    Image.new(mode, options.pop("size", (8, 8)), colour).save(out, kind, **options)
    return out.getvalue()


def png_of(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG that says it is so large, black and white, with this for pixels."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
        for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b""))
    )


MORE = {"save_all": True, "append_images": [Image.new("RGB", (8, 8), BLUE)]}
ODD = {
    "a.jpg": lambda: encoded(quality=95),
    "a.JPEG": lambda: encoded(quality=95),
    "a.webp": lambda: encoded(kind="webp", lossless=True),
    "a.BMP": lambda: encoded(kind="bmp"),
    "named as another format.png": lambda: encoded(quality=95),
    "animated.png": lambda: encoded(kind="png", **MORE),
    "animated.webp": lambda: encoded(kind="webp", lossless=True, **MORE),
    "cmyk.jpg": lambda: encoded("CMYK", colour=(0, 255, 255, 0), quality=95),
    "palette.png": lambda: encoded("P", "png", 0, transparency=bytes([9, 99])).replace(b"PLTE\0\0\0", b"PLTE\xff\0\0"),
    "one pixel.png": lambda: encoded(kind="png", size=(1, 1)),
    "one pixel high.png": lambda: encoded(kind="png", size=(999, 1)),
    "64 KB of exif.jpg": lambda: encoded(exif=b"Exif\0\0" + bytes(65_000), quality=95),
    "broken exif.jpg": lambda: encoded(exif=b"Exif\0\0II*\0\xff\xff", quality=95),
}
BROKEN = {
    "empty": lambda: b"",
    "cut": lambda: encoded()[:-40],
    "50,000 x 50,000 pixels": lambda: png_of(50_000, 50_000),
    "2**31 - 1 pixels wide": lambda: png_of(2**31 - 1, 2**31 - 1),
    "no pixels": lambda: png_of(0, 0),
    "more pixels than the bound": lambda: png_of(1024, 260, bytes(129 * 260)),
    "another format": lambda: encoded(kind="gif"),
    "a wrong checksum": lambda: png_of(8, 8, bytes(16)).replace(b"IDAT", b"IDAT\1"),
}


@PACKED
def test_odd_images_are_read_without_a_word(packed: bool, capsys: pytest.CaptureFixture[str]) -> None:
    photos = make_images(Path("photos"), [""], 1)
    for name, write in ODD.items():
        if "webp" not in name or features.check("webp"):
            (photos / name).write_bytes(write())
    for name in ("__MACOSX/cats/._0.png", ".thumbnails/0.png", "cats/._0.png", "cats/notes.txt"):  # are no images
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).write_bytes(b"")
    images = load(zip_of(photos) if packed else photos)[0].astype(int)
    assert len(images) == len(list(photos.glob("*.*"))) - 1
    assert abs(images[1:] - np.array(RED)[:, None, None]).max() < 6
    assert all("\r" in line or not line for line in capsys.readouterr().err.split("\n"))  # only the progress bar


@PACKED
def test_what_cannot_be_read_is_left_out_and_named(packed: bool, capsys: pytest.CaptureFixture[str]) -> None:
    photos = make_images(Path("photos"), per_class=2)
    for name, write in BROKEN.items():
        (photos / "dogs" / f"{name.replace('*', 'x')}\x1b.png").write_bytes(write())
    (photos / "mice").mkdir()
    (photos / "mice" / "0.jpg").write_text("<html>403 Forbidden</html>")
    images, labels, classes = load(zip_of(photos, packing=zipfile.ZIP_DEFLATED) if packed else photos)
    assert (len(images), labels, classes) == (4, [0, 0, 1, 1], ["cats", "dogs"])
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("warning: left out 9 unreadable images: 'dogs/2xx31 - 1 pixels wide\\x1b.png', ")
    assert "'mice/0.jpg'" in line
    assert "\x1b" not in line  # names cannot write to the terminal


@pytest.mark.parametrize("content", ["nothing", "no image", "a broken image"])
@PACKED
def test_a_set_without_a_readable_image_is_refused(content: str, packed: bool, refused: Callable[..., str]) -> None:
    Path("photos").mkdir()
    if content != "nothing":
        Path("photos", "notes.txt" if content == "no image" else "1.png").write_text("text")
    assert "[CLASS/]NAME.png" in refused(zip_of(Path("photos")) if packed else "photos")


def test_links_in_a_circle_end(refused: Callable[..., str]) -> None:
    make_images(Path("photos"))
    Path("photos/cats/again").symlink_to(Path("photos").resolve(), target_is_directory=True)
    Path("photos/cats/itself.png").symlink_to("itself.png")
    Path("loop").symlink_to("loop")
    assert len(load("photos")[0]) == 16
    shutil.rmtree("out")
    assert "loop is none of mnist" in refused("loop")


def test_names_in_a_zip_lead_nowhere_and_entries_that_cannot_be_read_are_left_out(
    capsys: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    photo = encoded(kind="png")
    with warnings.catch_warnings(), zipfile.ZipFile("odd.zip", "w") as archive:
        warnings.simplefilter("ignore")  # of the name that comes twice
        for name in ("../up/1.png", "/top/2.png", "a/../../3.png", "a//4.png", "b\\..\\5.png", "b/6.png", "b/6.png"):
            archive.writestr(name, photo)
        archive.writestr("bomb.png", bytes(2**26), zipfile.ZIP_DEFLATED)
        archive.writestr("flipped.png", encoded(kind="png", colour=BLUE))
        archive.writestr("locked.png", photo)
    data = bytearray(Path("odd.zip").read_bytes())
    data[data.rindex(b"locked.png") - 38] |= 1  # says that it is encrypted
    data[data.index(b"flipped.png") + 50] ^= 1  # its checksum is wrong now
    Path("odd.zip").write_bytes(data)
    assert len(load("odd.zip")[0]) == 4
    assert sorted(str(path) for path in Path().iterdir()) == ["odd.zip", "out"]
    assert "3 unreadable images: 'bomb.png', 'flipped.png', 'locked.png'" in capsys.readouterr().err.splitlines()[-1]
    with zipfile.ZipFile("lzma.zip", "w", zipfile.ZIP_LZMA) as archive:  # could unpack without a bound
        archive.writestr("1.png", photo)
    shutil.rmtree("out")
    assert "compression" in refused("lzma.zip")


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
def test_bombs_and_large_sets_take_little_memory() -> None:
    """In a process of its own, with a bound of 16 MB: bombs of 128 MB and more, and 96 MB of pixels, within 100 MB."""
    for i in range(500):
        save(f"photos/{i}.png", i % 256, mode="L")
    Path("photos/bomb.png").write_bytes(png_of(50_000, 50_000, bytes(6251 * 1000)))
    with zipfile.ZipFile("bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write("photos/0.png")
        archive.writestr("bomb.png", bytes(2**27))
    put("mnist", {file: gzip.compress(idx(array) + bytes(2**27)) for file, array in mnist().items()})
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import prepare
prepare.LARGEST = 2**24
peak = lambda: int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
before = peak()
for source, size in (("photos", "256"), ("photos", "8"), ("bomb.zip", "8"), ("mnist", "8")):
    try:
        prepare.main([source, "--image-size", size])
    except SystemExit as end:
        assert (source, end.code) == ("mnist", 2)
print((peak() - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) < 100


# ------------------------------------------------------------------------------------------------------- the output


def test_help_shows_an_example_of_each_kind(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        prepare.main(["--help"])
    said = capsys.readouterr().out
    assert all(f"python prepare.py {source}" in said for source in ("mnist", "photos --image-size", "photos.zip --out"))


def test_the_output_is_in_data_and_named_after_the_source_and_the_size(capsys: pytest.CaptureFixture[str]) -> None:
    photos = make_images(Path("some/my photos"), [""])
    for source in (photos, zip_of(photos)):
        assert prepare.main([str(source)]) == 0
        assert np.load("data/my photos-32/images.npy").shape == (8, 3, 32, 32)
        said = capsys.readouterr().out
        assert said.startswith("data/my photos-32: 8 images, 3 x 32 x 32, no classes\n")
        assert said.endswith("python dcgan.py --data 'data/my photos-32'\n")
        shutil.rmtree("data")


@pytest.mark.parametrize(
    "args", [[], ["nothing"], ["nothing.zip"], ["text.zip"], ["photos", "--image-size", "7"], ["photos", "--nonsense"]]
)
def test_bad_usage_is_refused(args: list[str], refused: Callable[..., str]) -> None:
    make_images(Path("photos"))
    Path("text.zip").write_text("text")
    assert refused(*args, size=7 if "7" in args else 8)


def test_an_existing_output_is_replaced_with_force_only_and_only_when_the_new_one_is_ready(
    refused: Callable[..., str],
) -> None:
    before = load(make_images(Path("photos")))[0].copy()
    Path("link").symlink_to("out")
    Path("empty").mkdir()
    assert "--force" in refused("photos")
    assert "readable" in refused("empty", "--force")
    assert np.array_equal(np.load("out/images.npy"), before)
    make_images(Path("others"), ["a", "b", "c"], 1)
    run("others", "--force", "--out", "link")
    assert np.load("link/images.npy").shape == (3, 3, 8, 8)
    assert Path("link").is_symlink()
    Path("out/my notes").write_text("precious")
    Path("file").write_text("precious")
    assert "nothing else" in refused("others", "--force")
    assert "nothing else" in refused("others", "--force", "--out", "file")


def test_output_that_cannot_be_written_is_exit_1(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    put("mnist", {name: idx(array) for name, array in mnist().items()}, "put")
    make_images(Path("photos"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))  # as if the disk were full
    try:
        assert "cannot write out: " in refused("photos", size=32, code=1)
        assert "cannot write out: " in refused("mnist", "--downloads", "put", size=32, code=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "cannot write photos/cats/0.png/x" in refused("photos", "--out", "photos/cats/0.png/x", code=1)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_or_killed_run_leaves_nothing_that_disturbs_the_next(how: int) -> None:
    make_images(Path("photos"))
    slow = f"import sys, time; sys.path.insert(0, {str(ROOT)!r}); import prepare; real = prepare.decode\n"
    slow += "prepare.decode = lambda *args: (time.sleep(0.2), real(*args))[1]\n"
    slow += "sys.exit(prepare.main(['photos', '--image-size', '8', '--out', 'out']))"
    process = subprocess.Popen([sys.executable, "-c", slow], stderr=subprocess.PIPE, text=True)
    while not list(Path().glob(".out.part-*/images.npy")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    assert not Path("out").exists()
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert err.endswith("prepare.py: error: interrupted, nothing is written\n")
        assert [path.name for path in Path().iterdir()] == ["photos"]
    assert len(load("photos")[0]) == 16  # and run() has looked for what is left


# ------------------------------------------------------------------------------------------- files damaged at random

EXAMPLES = int(os.environ.get("FUZZ", "0"))
WORDS = [n.to_bytes(4, order) for n in (0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1) for order in ("big", "little")]
WORDS += [b"1", b"2", b"5", b"S", b"L", b"K", b"x", b"g", b"../", b"/", b"\x80" + bytes(10) + b"\x7f", b"77777777777\0"]
WORDS += [b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6", b"\x0c\0", b"\x0e\0"]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """The data with one to four changes: bytes changed, cut out, put in, taken from elsewhere."""
    for _ in range(rng.randint(1, 4)):
        i, j = (int(len(data) * rng.choice([rng.random(), rng.random() / 20, 1 - rng.random() / 20])) for _ in "ij")
        new = rng.choice([rng.randbytes(rng.randint(1, 8)), rng.choice(WORDS)])
        kind = rng.choice(["over", "over", "bit", "in", "cut", "end", "copy"])
        if kind == "bit":
            new = bytes([data[i] ^ 1 << rng.randint(0, 7)]) if i < len(data) else b""
        cut = {"over": len(new), "bit": len(new), "cut": abs(j - i), "end": len(data)}.get(kind, 0)
        data = data[:i] + {"cut": b"", "end": b"", "copy": data[j : j + 64]}.get(kind, new) + data[i + cut :]
    return data


def damaged_idx(rng: random.Random) -> str:
    files = {name: idx(array) for name, array in mnist().items()}
    name = rng.choice(MNIST)
    files[name] = rng.choice([lambda x: x, lambda x: gzip.compress(x, 1)])(mutate(files[name], rng))
    files[name] = files[name] if rng.random() < 0.7 else mutate(gzip.compress(files[name], 1), rng)
    put("mnist", files)
    return "mnist"


def damaged_cifar10(rng: random.Random) -> str:
    data = bytearray(gzip.decompress(small_tar()))
    if rng.random() < 0.7:  # before it is compressed
        data = bytearray(mutate(bytes(data), rng))
        for start in range(0, len(data) - 511, 512) if rng.random() < 0.7 else ():
            header = data[start : start + 512]
            if header[257:262] == b"ustar":  # gets a new type and the checksum that it should have
                header[156] = rng.choice([header[156], *b"0123456LKSxg"])
                header[148:156] = b" " * 8
                header[148:156] = b"%06o\0 " % sum(header)
                data[start : start + 512] = header
        put("cifar10", {ARCHIVE: gzip.compress(data, 1)})
    else:
        put("cifar10", {ARCHIVE: mutate(gzip.compress(data, 1), rng)})
    return "cifar10"


@functools.cache
def small_tar() -> bytes:
    return tar_of(dict.fromkeys(prepare.CIFAR10_FILES, bytes(3073)))


def damaged_images(rng: random.Random) -> str:
    shutil.rmtree("photos", ignore_errors=True)
    photos = make_images(Path("photos"), per_class=1)
    for i in range(8):
        name, write = rng.choice(list(ODD.items()))
        data = mutate(write(), rng)
        if data[1:4] == b"PNG" and i % 2:  # gets the checksums that it should have
            out, k = data[:8], 8
            while k + 8 <= len(data):
                end = k + 8 + int.from_bytes(data[k : k + 4], "big")
                out, k = out + data[k:end] + zlib.crc32(data[k + 4 : end]).to_bytes(4, "big"), end + 4
            data = out
        (photos / f"{i}{name}").write_bytes(data)
    return "photos"


def damaged_zip(rng: random.Random) -> str:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", rng.choice([zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])) as archive:
        for name in ("cats/1", "dogs/2", "birds/3"):
            archive.writestr(zipfile.ZipInfo(f"{name}.png"), encoded(kind="png"))
    Path("photos.zip").write_bytes(mutate(out.getvalue(), rng))
    return "photos.zip"


@pytest.mark.parametrize("damaged", [damaged_idx, damaged_cifar10, damaged_images, damaged_zip])
@settings(
    max_examples=EXAMPLES or 40,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(seed=st.integers(0, 2**64 - 1))
def test_damaged_files(damaged: Callable[[random.Random], str], seed: int) -> None:
    source, err = damaged(random.Random(seed)), io.StringIO()
    with contextlib.redirect_stderr(err):
        try:
            _, _, classes = load(source)
            assert not any(set(name) & {*"/\\\0\n"} or name in ("", ".", "..") for name in classes)
        except SystemExit as end:
            assert end.code == 2
            assert err.getvalue().count("error: ") == 1
    assert {path.name for path in Path().iterdir()} <= {"data", "photos", "photos.zip", "out"}
