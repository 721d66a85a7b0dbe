"""prepare.py: standard sets and their download, folders and zips of images, the folder of arrays, hostile files."""

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

IMAGES, LABELS, _, TEST_LABELS = MNIST = [name.removesuffix(".gz") for name in [*prepare.SETS["mnist"]][2:]]
ARCHIVE, BATCH = "cifar-10-binary.tar.gz", "data_batch_1.bin"
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
PACKED = pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
Refused, Capture = Callable[..., str], pytest.CaptureFixture[str]


class Web(dict):
    """Takes the place of urlopen. Holds for a URL the page (None: one without end), or the URL that it leads to."""

    asked: tuple[str, ...] = ()

    def __call__(self, request: object, timeout: float) -> io.BytesIO:
        self.asked += (url := request.full_url,)
        while isinstance(page := self[url], str):  # KeyError: there is no such page
            url = page
        reply = io.BytesIO(page)
        endless = lambda n: bytes(n) if reply.seek(1, os.SEEK_CUR) < 99 else pytest.fail("reads on and on")  # noqa: E731
        reply.url, reply.length, reply.read1 = url, len(page or b""), endless if page is None else reply.read
        return reply


@pytest.fixture(autouse=True)
def web(monkeypatch: pytest.MonkeyPatch) -> Web:
    """No network, but a web with a tiny mnist at the second of its two mirrors; and a bound that is soon reached."""
    pages = {f"{name}.gz": gzip.compress(data) for name, data in mnist().items()}
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in pages.items()}
    about = {"mirrors": "https://first/ https://good/", "classes": prepare.SETS["mnist"]["classes"], **sums}
    monkeypatch.setitem(prepare.SETS, "mnist", about)
    monkeypatch.setattr(prepare, "urlopen", Web({f"https://good/{name}": data for name, data in pages.items()}))
    monkeypatch.setattr(prepare, "LARGEST", 2**20)
    return prepare.urlopen


def write(folder: str, files: dict[str, bytes]) -> Path:
    for file, data in files.items():
        path = Path(folder, file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return Path(folder)


def load(*args: object, size: int = 8) -> tuple[np.ndarray, list[int] | None, list[str]]:
    """What prepare.py makes of args: images, labels (None if there are none), names of the classes."""
    shutil.rmtree("out", ignore_errors=True)
    assert prepare.main([*map(str, args), "--image-size", str(size), "--out", "out"]) == 0
    images = np.load("out/images.npy", mmap_mode="c")
    assert (images.dtype, images.shape[1] in (1, 3), images.shape[2:]) == (np.uint8, True, (size, size))
    assert (Path("out/images.npy").stat().st_size, [*Path().glob(".out*")]) == (128 + images.size, [])
    if not Path("out/classes.txt").exists():
        assert [path.name for path in Path("out").iterdir()] == ["images.npy"]
        return images, None, []
    labels, classes = np.load("out/labels.npy"), Path("out/classes.txt").read_text("utf-8").splitlines()
    assert (labels.dtype, labels.shape, set(labels)) == (np.int64, images.shape[:1], {*range(len(classes))})
    return images, labels.tolist(), classes


@pytest.fixture
def refused(capsys: Capture) -> Refused:
    """refused(*args) asserts that prepare.py ends with the code and one line and writes nothing. Returns the line."""

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


def idx(array: np.ndarray) -> bytes:
    """The array as an IDX file."""
    return b"".join(n.to_bytes(4, "big") for n in (0x800 + array.ndim, *array.shape)) + array.tobytes()


DIGITS = np.random.default_rng(0).integers(1, 256, (17, 28, 28), dtype=np.uint8)  # the last 5 are to test
PHOTOS = np.random.default_rng(0).integers(0, 256, (24, 3, 32, 32), dtype=np.uint8)  # the last 4 are to test
NUMBERS = np.arange(24, dtype=np.uint8) % 10


def mnist(images: np.ndarray = DIGITS) -> dict[str, bytes]:
    return dict(zip(MNIST, map(idx, (images[:12], NUMBERS[:12], images[12:], NUMBERS[12:17])), strict=True))


def cifar() -> dict[str, bytes]:
    records = np.concatenate([NUMBERS[:, None], PHOTOS.reshape(24, -1)], axis=1)
    return {file: records[4 * i : 4 * i + 4].tobytes() for i, file in enumerate(prepare.CIFAR10_FILES)}


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


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize("zipped", [True, False], ids=["gzipped", "plain"])
def test_idx_files_in_place_are_used_as_they_are(name: str, zipped: bool, capsys: Capture) -> None:
    write(f"else/{name}", {f + ".gz" * zipped: gzip.compress(x) if zipped else x for f, x in mnist().items()})
    images, labels, classes = load(name, "--downloads", "else", size=32)
    assert np.array_equal(images[:, 0], np.pad(DIGITS[:12], [(0, 0), (2, 2), (2, 2)]))  # a black border, no more
    assert np.array_equal(np.load("out/test_images.npy")[:, 0, 2:30, 2:30], DIGITS[12:])
    assert labels + np.load("out/test_labels.npy").tolist() == NUMBERS[:17].tolist()
    assert classes == prepare.SETS[name]["classes"].split()
    said = capsys.readouterr().out.splitlines()
    assert said == ["out: 12 images, 1 x 32 x 32, 10 classes, 5 test images", "Train on it: python dcgan.py --data out"]
    assert np.array_equal(load(name, "--downloads", "else", size=28)[0][:, 0], DIGITS[:12])
    assert "python vanilla_gan.py --data out" in capsys.readouterr().out  # the others need a power of two


def test_other_sizes_are_antialiased_resizes() -> None:
    stripes = np.zeros((17, 28, 28), np.uint8)
    stripes[:, :, ::2] = 255  # the finest there are: without antialiasing, some would vanish and some grow
    write("data/downloads/mnist", mnist(stripes))
    assert abs(load("mnist", size=16)[0][:, :, 2:-2].astype(int) - 127).max() < 40
    load("mnist", size=64)


@pytest.mark.parametrize("form", ["archive", "unpacked", "any/folder", "archive and a part unpacked"])
def test_cifar10_in_place_is_used_as_it_is(form: str) -> None:
    files = cifar() if "archive" not in form else {ARCHIVE: tar_of(cifar(), top="../../")}
    write(f"data/downloads/cifar10/{form}" if form == "any/folder" else "data/downloads/cifar10", files)
    write("data/downloads/cifar10", {BATCH: bytes(3073)} if "part" in form else {})
    before = sorted(Path().rglob("*"))
    images, labels, classes = load("cifar10", size=32)
    assert np.array_equal(np.concatenate([images, np.load("out/test_images.npy")]), PHOTOS)
    assert labels + np.load("out/test_labels.npy").tolist() == NUMBERS.tolist()
    assert classes[:2] == ["airplane", "automobile"]
    assert sorted(path for path in Path().rglob("*") if path.parts[0] != "out") == before  # nothing is unpacked
    assert load("cifar10", size=16)[0].shape == (20, 3, 16, 16)


TRAIN, ZEROS = mnist()[IMAGES], idx(np.zeros((1400, 28, 28), np.uint8))
BROKEN_IMAGES = [TRAIN[:-9], TRAIN + b"more", b"<html>403 Forbidden</html>", idx(NUMBERS[:12]), ZEROS[:16]]
BROKEN_IMAGES += [b"\0\0\x08\x03" + b"\xff" * 12, b"\x1f\x8b" + bytes(99), gzip.compress(TRAIN)[:-9]]
BROKEN_IMAGES += [gzip.compress(TRAIN)[:-8] + bytes(8), gzip.compress(ZEROS)]  # a wrong checksum; too much
BROKEN_LABELS = [idx(NUMBERS[:11]), idx(NUMBERS[:12])[:-1], idx(np.arange(12, dtype=np.uint8))]  # one lacks; 10, 11
BROKEN_ARCHIVES = [b"", tar_of(cifar())[:-999], tar_of({BATCH: bytes(3073)}), tar_of(dict.fromkeys(cifar(), b""))]
BROKEN_ARCHIVES += [tar_of(cifar() | {BATCH: data}) for data in (bytes(3072), b"\x0a" + bytes(3072), bytes(3073 * 500))]
BROKEN_ARCHIVES += [tar_of(cifar() | {BATCH: bytes(512)}, kind) for kind in (tarfile.SYMTYPE, tarfile.GNUTYPE_SPARSE)]


@pytest.mark.parametrize("file", [IMAGES, LABELS, TEST_LABELS, ARCHIVE])
def test_a_broken_set_is_refused(file: str, refused: Refused) -> None:
    name = "cifar10" if file == ARCHIVE else "mnist"
    for data in {IMAGES: BROKEN_IMAGES, ARCHIVE: BROKEN_ARCHIVES}.get(file, BROKEN_LABELS):
        write(f"data/downloads/{name}", mnist() | {file: data})
        assert f"error: {name}: " in refused(name), data[:40]


FIRST_MIRRORS = {
    "sends something else": lambda url, page: gzip.compress(b"please log in"),
    "is cut half way": lambda url, page: page[: len(page) // 2],
    "never ends": lambda url, page: None,
    "leads nowhere": lambda url, page: "https://nowhere/",
    "leads to the same file without https": lambda url, page: url.replace("https", "http"),
}


@pytest.mark.parametrize("first", FIRST_MIRRORS)
def test_the_second_mirror_serves_when_the_first(first: str, web: Web, capsys: Capture) -> None:
    web |= {url.replace("https", "http"): page for url, page in web.items()}
    web |= {url.replace("good", "first"): FIRST_MIRRORS[first](url, web[url]) for url in web if "https" in url}
    for _ in range(2):
        assert np.array_equal(load("mnist", size=28)[0][:, 0], DIGITS[:12])
        assert {path.name for path in Path("data/downloads/mnist").iterdir()} == {f"{name}.gz" for name in MNIST}
        assert "100%" in capsys.readouterr().err  # a progress bar
    assert [*web.asked] == [f"https://{m}/{name}.gz" for name in MNIST for m in ("first", "good")]  # only once


def test_only_missing_files_are_downloaded_or_named_if_there_is_no_network(web: Web, refused: Refused) -> None:
    write("else/mnist", {name: data for name, data in mnist().items() if name != LABELS})
    load("mnist", "--downloads", "else")
    assert web.asked == (f"https://first/{LABELS}.gz", f"https://good/{LABELS}.gz")
    web.clear()
    line = refused("mnist", "--downloads", "elsewhere")
    assert all(part in line for part in (*[f"{name}.gz" for name in MNIST], f"into {Path('elsewhere/mnist')}"))


def test_real_sets_have_two_https_mirrors_checksums_and_plain_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the tiny mnist
    for mirrors, classes, *sums in map(dict.values, prepare.SETS.values()):
        assert len([mirror for mirror in mirrors.split() if mirror[:8] == "https://" and mirror[-1] == "/"]) >= 2
        assert len({*prepare.class_names([f"{name}/1.png" for name in classes.split()])}) == 10
        assert {len(bytes.fromhex(value)) for value in sums} == {32}


def zip_of(folder: Path) -> Path:
    return Path(shutil.make_archive(str(folder), "zip", folder))


def encoded(kind: str = "png", mode: str = "RGB", colour: object = RED, **options: object) -> bytes:
    out, size = io.BytesIO(), options.pop("size", (8, 8))
    Image.new(mode, size, colour).save(out, kind, **options)
    return out.getvalue()


def png_of(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG that says it is so large, black and white, with this for pixels."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)), (b"IDAT", zlib.compress(data))]
    chunks = [(len(data), kind + data) for kind, data in [*chunks, (b"IEND", b"")]]
    return b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(f">I{n + 4}sI", n, x, zlib.crc32(x)) for n, x in chunks)


@PACKED
def test_first_level_subfolders_are_the_classes_if_each_image_lies_in_one_of_several(packed: bool) -> None:
    colours = {"zebras/1": RED, "Große Hunde 2.png/1": GREEN, "猫/grey/old/1": BLUE}
    write("photos/photos-main", {f"{name}.png": encoded(colour=colour) for name, colour in colours.items()})
    images, labels, classes = load(zip_of(Path("photos")) if packed else "photos")
    assert classes == ["Große Hunde 2.png", "zebras", "猫"]  # but not the folder that is around all of them
    assert (labels, images[:, :, 4, 4].tolist()) == ([0, 1, 2], [[*GREEN], [*RED], [*BLUE]])
    for folders in ([""], ["", "cats"], ["cats"]):
        shutil.rmtree("photos")
        make_images(Path("photos/photos-main"), folders, 4)
        assert load(zip_of(Path("photos")) if packed else "photos")[1] is None


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "I;16"])
def test_grey_images_have_one_channel_unless_another_is_in_colour(mode: str) -> None:
    grey = {"1": 255, "LA": (120, 255), "RGB": (120, 120, 120), "I;16": 120 * 257}.get(mode, 120)
    write("photos", {f"{i}.png": encoded(mode=mode, colour=grey) for i in range(4)})
    expected = np.full((4, 1, 8, 8), 255 if mode == "1" else 120)
    assert np.array_equal(load("photos")[0], expected)
    for at in (3, 0):
        write("photos", {f"{at}.png": encoded(colour=(9, 9, 10))})
        expected = np.repeat(expected[:, :1], 3, axis=1)
        expected[[3, at]] = np.array([9, 9, 10])[:, None, None]
        assert np.array_equal(load("photos")[0], expected)


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, -1), (8, 1)])
@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_the_centre_square_is_taken_shrunk_antialiased_and_upright(kind: str, orientation: int, turns: int) -> None:
    pixels, exif = np.zeros((128, 256, 3), np.uint8), Image.Exif()
    pixels[:, :64] = pixels[:, 192:] = RED  # to be cut off
    pixels[::2, 64:128:2] = pixels[1::2, 65:128:2] = 255  # the left half is grey from afar, the right half black
    exif[0x0112] = orientation
    Path("photos").mkdir()
    Image.fromarray(np.ascontiguousarray(np.rot90(pixels, -turns))).save("photos/1.png", kind, exif=exif, quality=95)
    image = load("photos")[0][0].astype(int)
    assert abs(image[:, 1:-1, 1:3] - 127).max() < 20
    assert image[:, 1:-1, 5:-1].max() < 20


MORE = {"save_all": True, "append_images": [Image.new("RGB", (8, 8), BLUE)]}
ODD = {
    "a.JPEG": encoded("jpeg", quality=95, progressive=True),
    "a.BMP": encoded("bmp"),
    "named as another format.png": encoded("jpeg", quality=95),
    "animated.png": encoded("png", **MORE),
    "cmyk.jpg": encoded("jpeg", "CMYK", (0, 255, 255, 0), quality=95),
    "palette.png": encoded("png", "P", RED, transparency=bytes([9, 99])),
    "one pixel high.png": encoded("png", size=(999, 1)),
    "64 KB of exif.jpg": encoded("jpeg", exif=b"Exif\0\0" + bytes(65_000), quality=95),
    "broken exif.jpg": encoded("jpeg", exif=b"Exif\0\0II*\0\xff\xff", quality=95),
}
ODD |= {"animated.webp": encoded("webp", lossless=True, **MORE)} if features.check("webp") else {}
NO_IMAGES = ["notes.txt", "__MACOSX/cats/._0.png", ".thumbnails/0.png", "cats/._0.png"]
UNREADABLE = [encoded("gif"), encoded("jpeg")[:-40], b"", b"<html>403 Forbidden</html>", png_of(0, 0)]
UNREADABLE += [png_of(50_000, 50_000), png_of(2**31 - 1, 2**31 - 1), png_of(1024, 260, bytes(129 * 260))]  # too large
UNREADABLE += [png_of(8, 8, bytes(16)).replace(b"IDAT", b"IDAT\1")]  # a wrong checksum


@PACKED
def test_odd_images_are_read_and_others_left_out_and_named(packed: bool, capsys: Capture) -> None:
    broken = {f"mice/\x1b[{i}m.png": data for i, data in enumerate(UNREADABLE)}
    odd = {f"cats/{name}": data for name, data in ODD.items()}
    photos = write("photos", odd | dict.fromkeys(NO_IMAGES, b"") | broken)
    make_images(photos, ["dogs"], 1)
    images, labels, classes = load(zip_of(photos) if packed else photos)
    assert (labels, classes) == ([0] * len(ODD) + [1], ["cats", "dogs"])
    assert abs(images[:-1].astype(int) - np.array(RED)[:, None, None]).max() < 6
    said = [line for line in capsys.readouterr().err.split("\n") if line and "\r" not in line]
    assert said == [f"warning: left out 9 unreadable images: {', '.join(map(repr, broken))}"]  # with \\x1b, harmless


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_links_in_a_circle_end_and_pipes_are_not_waited_for(refused: Refused) -> None:
    make_images(Path("photos"))
    Path("photos/cats/again").symlink_to(Path("photos").resolve(), target_is_directory=True)
    for link in ("loop", "photos/cats/itself.png"):
        Path(link).symlink_to(Path(link).name)
    for pipe in ("pipe", "photos/pipe.png"):
        os.mkfifo(pipe)
    assert len(load("photos")[0]) == 16
    assert all("none of mnist" in refused(source) for source in ("loop", "pipe"))


def test_names_in_a_zip_lead_nowhere_and_bad_entries_are_left_out(capsys: Capture) -> None:
    names = ["../up/1.png", "/top/2.png", "a/../../3.png", "a//4.png", "b\\..\\5.png", "b/6.png"]
    with zipfile.ZipFile("odd.zip", "w") as archive:
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


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
def test_large_sets_and_bombs_take_little_memory() -> None:
    """In a process of its own with a bound of 16 MB: 96 MB of pixels and bombs of 128 MB and more, within 100 MB."""
    write("photos", {"bomb.png": png_of(50_000, 50_000, bytes(2**27))} | {f"{i}.png": encoded() for i in range(500)})
    zip_of(write("bomb", {"1.png": encoded(), "bomb.png": bytes(2**27)}))
    write("data/downloads/mnist", mnist() | {IMAGES: gzip.compress(TRAIN + bytes(2**27), 1)})
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import prepare; prepare.LARGEST = 2**24\n"
    code += "peak = lambda: int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) // 1024\n"
    code += "before = peak()\ntry:\n for x in 'photos', 'bomb.zip', 'mnist': prepare.main([x, '--image-size', '256'])\n"
    code += "except SystemExit: print(x, peak() - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    source, peak = done.stdout.splitlines()[-1].split()
    assert source == "mnist", done.stderr
    assert int(peak) < 100


def test_the_output_is_named_after_the_source_and_the_size(capsys: Capture) -> None:
    for source in (make_images(Path("some/my photos"), [""]), zip_of(Path("some/my photos"))):
        assert prepare.main([str(source)]) == 0
        said = capsys.readouterr().out.splitlines()
        assert said[0] == "data/my photos-32: 8 images, 3 x 32 x 32, no classes"
        assert said[1].endswith(" python dcgan.py --data 'data/my photos-32'")
        shutil.rmtree("data")


def test_bad_input_is_refused_and_help_shows_an_example_of_each_kind(refused: Refused, capsys: Capture) -> None:
    with zipfile.ZipFile(write("", {"text.zip": b"text"}) / "lzma.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("1.png", encoded())  # could unpack without a bound
    for args in ("", "nothing", "text.zip", "lzma.zip", "mnist --image-size 7", "mnist --nonsense"):
        refused(*args.split())
    for file in (".hidden", "notes.txt", "1.png"):
        assert "[CLASS/]NAME.png" in refused(write("photos", {file: b"text"}))
        assert "[CLASS/]NAME.png" in refused(zip_of(Path("photos")))
    for i, name in enumerate(["a,b", "a\nb", " a", "a\\b", "a:b", "\x1b[1m", "\udcff"]):
        assert repr(name) in refused(write(f"photos{i}", {"dogs/1.png": encoded(), f"{name}/1.png": encoded()}))
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
    assert prepare.main([str(make_images(Path("others"), [""], 3)), "--force", "--out", "link"]) == 0
    assert Path("link").is_symlink()
    assert {path.name: np.load(path).shape for path in Path("out").iterdir()} == {"images.npy": (3, 3, 32, 32)}
    write("out", {"my notes": b"precious"})
    assert all("nothing else" in refused("others", "--force", "--out", out) for out in ("out", "out/my notes"))


def test_what_cannot_be_written_is_exit_1(refused: Refused) -> None:
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    make_images(Path("photos"))
    assert "cannot write" in refused("photos", "--out", "photos/cats/0.png/x", code=1)
    Path("data/downloads/mnist").mkdir(parents=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))  # as if the disk were full
    try:
        assert all("cannot write" in refused(source, code=1) for source in ("photos", "mnist"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_or_killed_run_leaves_nothing_that_disturbs_the_next(how: int) -> None:
    make_images(Path("photos"))
    slow = f"import sys, time; sys.path.insert(0, {str(ROOT)!r}); import prepare\n"
    slow += "prepare.decode = lambda *args: time.sleep(9)\nsys.exit(prepare.main(['photos', '--out', 'out']))"
    process = subprocess.Popen([sys.executable, "-c", slow], stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list(Path().glob(".out.part-*/images.npy")):
        time.sleep(0.01)
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    assert not Path("out").exists()
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert err.endswith("prepare.py: error: interrupted, nothing is written\n")
        assert [path.name for path in Path().iterdir()] == ["photos"]
    assert len(load("photos")[0]) == 16  # and load() looks for what is left


EXAMPLES = int(os.environ.get("FUZZ", "0"))  # FUZZ=5000 pytest tests/test_prepare.py: others each time, so many a test
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


def damage(source: str, rng: random.Random) -> None:
    """Writes a damaged set: files of a standard set, a folder or a .zip of images."""
    if source == "photos.zip":
        write("", {source: mutate(zip_of(make_images(Path("photos"), per_class=1)).read_bytes(), rng)})
    elif source == "photos":
        write(source, {name: mutate(data, rng) for name, data in ODD.items()})
    else:
        tar = gzip.decompress(tar_of(dict.fromkeys(cifar(), bytes(3073))))
        files = {ARCHIVE: rng.choice([mutate, mutate_tar])(tar, rng)} if source == "cifar10" else mnist()
        name = rng.choice([*files])
        data = rng.choice([mutate(files[name], rng), gzip.compress(mutate(files[name], rng)), files[name]])
        write(f"data/downloads/{source}", files | {name: rng.choice([data, mutate(gzip.compress(data), rng)])})


@pytest.mark.parametrize("source", ["mnist", "cifar10", "photos", "photos.zip"])
@settings(max_examples=EXAMPLES or 30, derandomize=not EXAMPLES, deadline=None, suppress_health_check=HealthCheck)
@given(seed=st.integers(0, 2**64 - 1))
def test_whatever_a_file_holds_it_is_read_or_refused_in_one_line(source: str, seed: int) -> None:
    for path in Path().iterdir():
        path.unlink() if path.is_file() else shutil.rmtree(path)
    damage(source, random.Random(seed))
    with contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            prepare.main([source, "--image-size", "8", "--out", "out"])
        except SystemExit as end:
            assert (end.code, err.getvalue().count("error: ")) == (2, 1)
    assert {path.name for path in Path().iterdir()} <= {"data", "photos", "photos.zip", "out"}
