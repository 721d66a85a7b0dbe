"""Data: built-in digits, the standard sets and their download, folders and zips of images, the order of an epoch.

All of it is plumbing, the same in all five scripts (test_sync.py): dcgan stands for all, cgan where classes count.
"""

import contextlib
import gzip
import hashlib
import os
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, call, make_images
from PIL import Image, ImageDraw, ImageFont, features
from torch import Tensor

import cgan
import dcgan

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def load_data(data: object, size: int = 8, **options: object) -> tuple[Tensor, Tensor, list[str]]:
    """What a run with --data DATA --image-size SIZE gets: images, labels, names of the classes."""
    script = options.pop("script", dcgan)
    args = {"data": data, "image_size": size, "batch_size": 2, **options}
    argv = [str(word) for name, value in args.items() for word in (f"--{name.replace('_', '-')}", value)]
    return script.load_data(script.parse_args(argv)[0])


# ------------------------------------------------------------------------------------------------------------ glyphs


@cache
def all_glyphs() -> tuple[np.ndarray, np.ndarray]:
    return dcgan.glyphs(28)


def test_glyphs_are_at_least_20_000_of_ten_classes() -> None:
    images, labels = all_glyphs()
    assert images.shape == (len(labels), 1, 28, 28)
    assert len(images) >= 20_000
    assert sorted(set(labels.tolist())) == list(range(10))
    assert np.bincount(labels).min() > 1_500
    found, found_labels, classes = load_data("glyphs", 8)
    assert found.shape == (len(images), 1, 8, 8)
    assert len(found_labels) == len(images)
    assert classes == [str(digit) for digit in range(10)]


@pytest.mark.parametrize("size", [28, 32, 64, 128])
def test_glyphs_are_white_strokes_on_black_at_any_size(size: int) -> None:
    images, labels = dcgan.glyphs(size, 200)
    assert images.dtype == np.uint8
    assert images.shape == (200, 1, size, size)
    assert labels.shape == (200,)
    assert np.median(images) < 50
    assert (images.max(axis=(1, 2, 3)) > 200).mean() > 0.95


def test_glyphs_are_ready_in_about_two_seconds() -> None:
    start = time.process_time()  # not the clock: other programs may be busy
    dcgan.glyphs(32)
    assert time.process_time() - start < 5


def test_a_glyph_is_the_digit_that_its_label_says() -> None:
    images, labels = (array[:2000] for array in all_glyphs())
    drawn = []
    for digit in range(10):
        image = Image.new("L", (28, 28))
        ImageDraw.Draw(image).text((14, 14), str(digit), 255, ImageFont.load_default(22), anchor="mm", stroke_width=1)
        drawn.append(np.asarray(image).ravel())
    likeness = np.corrcoef(np.stack(drawn), images.reshape(len(images), -1))[:10, 10:]
    assert (likeness.argmax(axis=0) == labels).mean() > 0.35  # under random pose; 0.1 by chance


def test_no_two_glyphs_are_the_same() -> None:
    assert len(np.unique(all_glyphs()[0][:2000], axis=0)) == 2000


def test_glyphs_are_the_same_for_a_seed_and_others_for_another() -> None:
    (images, labels), (again, labels_again), (other, other_labels) = (dcgan.glyphs(16, 500, s) for s in (3, 3, 4))
    assert np.array_equal(images, again)
    assert np.array_equal(labels, labels_again)
    assert not np.array_equal(images, other)
    assert not np.array_equal(labels, other_labels)


def test_glyphs_do_not_touch_the_global_random_state() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    dcgan.glyphs(8, 100)
    assert torch.equal(before, torch.get_rng_state())


# ----------------------------------------------------------------------------------------------------- standard sets


def idx(array: np.ndarray) -> bytes:
    """The array as an IDX file."""
    return b"".join(n.to_bytes(4, "big") for n in (0x800 + array.ndim, *array.shape)) + array.tobytes()


def digits(count: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Noise in the shape of MNIST."""
    rng = np.random.default_rng(0)
    return rng.integers(1, 256, (count, 28, 28), dtype=np.uint8), np.arange(count, dtype=np.uint8) % 10


def put_idx(folder: Path, images: np.ndarray, labels: np.ndarray, zipped: bool = True) -> None:
    folder.mkdir(parents=True)
    for name, array in ((IMAGES, images), (LABELS, labels)):
        (folder / f"{name}{'.gz' * zipped}").write_bytes(gzip.compress(idx(array)) if zipped else idx(array))


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize("zipped", [True, False], ids=["gzipped", "plain"])
def test_idx_files_in_place_are_used_as_they_are(name: str, zipped: bool) -> None:
    images, labels = digits()
    put_idx(Path("elsewhere", name), images, labels, zipped)
    found, found_labels, classes = load_data(name, 32, data_dir="elsewhere")
    assert found.dtype == torch.uint8
    assert found.shape == (12, 1, 32, 32)
    assert found_labels.tolist() == labels.tolist()
    assert classes == [str(digit) for digit in range(10)]


def test_28_becomes_32_by_two_black_pixels_on_each_side_and_nothing_else() -> None:
    images, labels = digits()
    put_idx(Path("data/mnist"), images, labels)
    expected = np.zeros((12, 1, 32, 32), np.uint8)
    expected[:, 0, 2:30, 2:30] = images
    assert np.array_equal(load_data("mnist", 32)[0].numpy(), expected)


@pytest.mark.parametrize("size", [16, 64])
def test_other_sizes_are_antialiased_resizes(size: int) -> None:
    stripes = np.zeros((3, 28, 28), np.uint8)
    stripes[0, :, ::2] = 255  # the finest there are: without antialiasing, some would vanish and some grow
    stripes[1] = 255
    stripes[2, :, 14:] = 255
    put_idx(Path("data/mnist"), stripes, np.arange(3, dtype=np.uint8))
    found = load_data("mnist", size)[0][:, 0].int()
    assert found.shape == (3, size, size)
    assert found[1].unique().tolist() == [255]
    assert (found[2, :, : size // 2 - 4] == 0).all()  # nothing wraps around at black or white
    assert (found[2, :, size // 2 + 4 :] == 255).all()
    if size < 28:
        assert (found[0, :, 2:-2] - 127).abs().max() < 40


def test_vanilla_gets_28_by_28_unchanged() -> None:
    images, labels = digits()
    put_idx(Path("data/mnist"), images, labels)
    found, _ = dcgan.standard_set("mnist", Path("data/mnist"), 28)
    assert np.array_equal(found[:, 0], images)


def cifar() -> tuple[np.ndarray, np.ndarray, dict[str, bytes]]:
    """Noise in the shape of CIFAR-10: images, labels and the files of the binary version, by name."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (20, 3, 32, 32), dtype=np.uint8), rng.integers(0, 10, 20, dtype=np.uint8)
    records = np.concatenate([labels[:, None], images.reshape(20, -1)], axis=1)
    files = {f"data_batch_{i + 1}.bin": records[4 * i : 4 * i + 4].tobytes() for i in range(5)}
    others = {"batches.meta.txt": b"airplane\n", "readme.html": b"data", "test_batch.bin": records[::-1].tobytes()}
    return images, labels, files | others


def cifar_tar(files: dict[str, bytes]) -> bytes:
    out = BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        folder = tarfile.TarInfo("cifar-10-batches-bin")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name in reversed(files):  # in no helpful order
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(files[name])
            tar.addfile(member, BytesIO(files[name]))
    return out.getvalue()


@pytest.mark.parametrize("form", ["tar.gz", "unpacked", "unpacked in its folder"])
def test_cifar10_in_place_is_used_as_it_is(form: str) -> None:
    images, labels, files = cifar()
    home = Path("data/cifar10", *(["cifar-10-batches-bin"] if form == "unpacked in its folder" else []))
    home.mkdir(parents=True)
    for name, data in ({"cifar-10-binary.tar.gz": cifar_tar(files)} if form == "tar.gz" else files).items():
        (home / name).write_bytes(data)
    found, found_labels, classes = load_data("cifar10", 32)
    assert np.array_equal(found.numpy(), images)
    assert found_labels.tolist() == labels.tolist()
    assert len(classes) == 10
    assert load_data("cifar10", 16)[0].shape == (20, 3, 16, 16)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


BROKEN_IDX: dict[str, Callable[[Path], object]] = {
    "images cut": lambda folder: cut(folder / IMAGES),
    "labels cut": lambda folder: cut(folder / LABELS),
    "images empty": lambda folder: (folder / IMAGES).write_bytes(b""),
    "not IDX": lambda folder: (folder / IMAGES).write_text("<html>403 Forbidden</html>"),
    "gzip cut": lambda folder: (folder / IMAGES).write_bytes(gzip.compress((folder / IMAGES).read_bytes())[:-9]),
    "labels for images": lambda folder: shutil.copy(folder / LABELS, folder / IMAGES),
    "fewer labels": lambda folder: (folder / LABELS).write_bytes(idx(np.zeros(11, np.uint8))),
    "label 10": lambda folder: (folder / LABELS).write_bytes(idx(np.arange(12, dtype=np.uint8))),
    "images and more": lambda folder: (folder / IMAGES).write_bytes((folder / IMAGES).read_bytes() + b"more"),
    "labels empty": lambda folder: (folder / LABELS).write_bytes(b""),
    "no images": lambda folder: [
        (folder / IMAGES).write_bytes(idx(np.zeros((0, 28, 28), np.uint8))),
        no_labels(folder),
    ],
    "images of no size": lambda folder: (folder / IMAGES).write_bytes(idx(np.zeros((12, 0, 0), np.uint8))),
    "images not square": lambda folder: (folder / IMAGES).write_bytes(idx(np.zeros((12, 14, 28), np.uint8))),
    "sizes of 2**32 - 1": lambda folder: (folder / IMAGES).write_bytes(b"\0\0\x08\x03" + b"\xff" * 12),
    "gzip and a wrong checksum": lambda folder: (folder / IMAGES).write_bytes(
        gzip.compress((folder / IMAGES).read_bytes())[:-8] + bytes(8)
    ),
    "gzip of gzip": lambda folder: (folder / IMAGES).write_bytes(gzip.compress(gzip.compress(bytes(99)))),
    "gzip that unpacks to too much": lambda folder: (folder / IMAGES).write_bytes(gzip.compress(idx(digits(1400)[0]))),
}


def no_labels(folder: Path) -> None:
    (folder / LABELS).write_bytes(idx(np.zeros(0, np.uint8)))


@pytest.mark.parametrize("damage", BROKEN_IDX)
def test_a_broken_idx_file_is_refused(
    damage: str, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dcgan, "LARGEST", 2**20)
    put_idx(Path("data/mnist"), *digits(), zipped=False)
    BROKEN_IDX[damage](Path("data/mnist"))
    assert "--data mnist" in refused("dcgan.py", "--data", "mnist", *TINY)


def tar_of(*members: tuple[str, bytes, bytes, str]) -> bytes:
    """A .tar.gz of members: name, type, content, link."""
    out = BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, kind, data, link in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = kind, link, len(data)
            tar.addfile(member, BytesIO(data))
    return out.getvalue()


BATCH = "data_batch_1.bin"
BROKEN_TARS = {
    "cut": lambda: cifar_tar(cifar()[2])[:-999],
    "empty": lambda: b"",
    "not tar": lambda: b"<html>403 Forbidden</html>",
    "batch cut": lambda: cifar_tar({BATCH: bytes(3072)}),
    "batch empty": lambda: cifar_tar({BATCH: b""}),
    "label 10": lambda: cifar_tar({BATCH: b"\x0a" + bytes(3072)}),
    "no batch": lambda: cifar_tar({"readme.html": b"data"}),
    "a folder for a batch": lambda: tar_of((BATCH, tarfile.DIRTYPE, b"", "")),
    "a link to itself": lambda: tar_of((BATCH, tarfile.SYMTYPE, b"", BATCH)),
    "a link to nothing": lambda: tar_of((BATCH, tarfile.LNKTYPE, b"", "nothing")),
    "a link to a file outside": lambda: tar_of((BATCH, tarfile.SYMTYPE, b"", "/etc/passwd")),
    "a device": lambda: tar_of((BATCH, tarfile.CHRTYPE, b"", "")),
    "a batch with holes": lambda: tar_of((BATCH, tarfile.GNUTYPE_SPARSE, bytes(512), "")),
    "unpacks to too much": lambda: cifar_tar({BATCH: bytes(3073 * 500)}),
}


@pytest.mark.parametrize("damage", BROKEN_TARS)
def test_a_broken_cifar10_file_is_refused(
    damage: str, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dcgan, "LARGEST", 2**20)
    Path("data/cifar10").mkdir(parents=True)
    Path("data/cifar10/cifar-10-binary.tar.gz").write_bytes(BROKEN_TARS[damage]())
    assert "--data cifar10" in refused("dcgan.py", "--data", "cifar10", *TINY)


def test_a_cifar10_archive_is_read_not_unpacked() -> None:
    Path("data/cifar10").mkdir(parents=True)
    members = [(f"{top}data_batch_{i}.bin", tarfile.REGTYPE, bytes(3073), "") for i, top in enumerate(["../", "/", ""])]
    Path("data/cifar10/cifar-10-binary.tar.gz").write_bytes(tar_of(*members))
    assert len(load_data("cifar10", 32)[0]) == 3
    assert [path.name for path in Path().rglob("*.*")] == ["cifar-10-binary.tar.gz"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(refused: Callable[..., str], server: "Server") -> None:
    server.pages.clear()
    Path("data/mnist").mkdir(parents=True)
    os.mkfifo(f"data/mnist/{IMAGES}")
    assert "cannot download" in refused("dcgan.py", "--data", "mnist", *TINY)
    make_images(Path("photos"))
    os.mkfifo("photos/pipe.png")
    assert len(load_data("photos")[0]) == 16


# ---------------------------------------------------------------------------------------------------------- download


class Server(ThreadingHTTPServer):
    """Serves pages[path]; a page in cut loses its second half on the way. Notes every path that it is asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages: dict[str, bytes] = {}
        self.cut: set[str] = set()
        self.asked: list[str] = []
        self.moved: dict[str, str] = {}
        self.sent = 0
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.path in self.server.moved:
            self.send_response(302)
            self.send_header("Location", self.server.moved[self.path])
            self.end_headers()
            return
        body = self.server.pages.get(self.path, b"")
        self.send_response(200 if body else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        body = body[: len(body) // 2] if self.path in self.server.cut else body
        with contextlib.suppress(ConnectionError):  # who has seen enough may hang up
            for i in range(0, len(body), 2**20):
                self.wfile.write(body[i : i + 2**20])
                self.server.sent = i

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server with a tiny mnist under /good/; the mirrors of mnist are /first/ and /good/."""
    monkeypatch.setenv("no_proxy", "*")
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        files = {
            f"{name}.gz": gzip.compress(idx(array)) for name, array in zip((IMAGES, LABELS), digits(), strict=True)
        }
        server.pages = {f"/good/{name}": data for name, data in files.items()}
        sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        set_mirrors(monkeypatch, "mnist", [f"{server.url}/first/", f"{server.url}/good/"], sums)
        yield server
        server.shutdown()


def set_mirrors(monkeypatch: pytest.MonkeyPatch, name: str, mirrors: list[str], sums: dict[str, str]) -> None:
    monkeypatch.setitem(dcgan.DATASETS, name, {"mirrors": " ".join(mirrors), **sums})


def listing(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).rglob("*"))


def assert_mnist_arrived() -> None:
    images, labels = digits()
    found, found_labels, _ = load_data("mnist", 32)
    assert np.array_equal(found[:, 0, 2:30, 2:30].numpy(), images)
    assert found_labels.tolist() == labels.tolist()
    assert listing("data/mnist") == [f"{IMAGES}.gz", f"{LABELS}.gz"]  # and nothing half done


def test_the_second_mirror_serves_when_the_first_has_no_such_file(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_mnist_arrived()
    assert server.asked == [f"/{mirror}/{name}.gz" for name in (IMAGES, LABELS) for mirror in ("first", "good")]
    assert "100%" in capsys.readouterr().err  # a progress bar


def test_the_second_mirror_serves_when_the_first_is_down(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, but nobody listens: refused
        down = f"http://127.0.0.1:{closed.getsockname()[1]}/"
        sums = {name: value for name, value in dcgan.DATASETS["mnist"].items() if name != "mirrors"}
        set_mirrors(monkeypatch, "mnist", [down, f"{server.url}/good/"], sums)
        assert_mnist_arrived()


def test_the_second_mirror_serves_when_the_first_sends_something_else(server: Server) -> None:
    server.pages |= {f"/first/{name}.gz": gzip.compress(b"please log in") for name in (IMAGES, LABELS)}
    assert_mnist_arrived()
    assert len(server.asked) == 4


def test_the_second_mirror_serves_when_the_first_is_cut_half_way(server: Server) -> None:
    server.pages |= {path.replace("good", "first"): data for path, data in server.pages.items()}
    server.cut = {path for path in server.pages if path.startswith("/first/")}
    assert_mnist_arrived()
    assert len(server.asked) == 4


def test_without_a_mirror_one_line_says_which_files_to_put_where(
    server: Server, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.pages = {f"/first/{IMAGES}.gz": b"x" * 99, f"/good/{IMAGES}.gz": b"y" * 99}
    server.cut = {f"/good/{IMAGES}.gz"}
    line = refused("dcgan.py", "--data", "mnist", "--data-dir", "elsewhere")
    assert f"{IMAGES}.gz" in line
    assert f"{LABELS}.gz" in line
    assert str(Path("elsewhere/mnist")) in line
    assert listing("elsewhere") in ([], ["mnist"])  # nothing that the next start would take for the file
    assert not Path("runs").exists()


def test_the_server_is_not_asked_for_files_that_are_there(server: Server) -> None:
    load_data("mnist", 32)
    server.asked.clear()
    assert_mnist_arrived()
    assert server.asked == []


def test_the_server_is_asked_for_the_missing_file_only(server: Server) -> None:
    Path("data/mnist").mkdir(parents=True)
    Path("data/mnist", IMAGES).write_bytes(idx(digits()[0]))  # not gzipped
    assert load_data("mnist", 32)[0].shape == (12, 1, 32, 32)
    assert server.asked == [f"/{mirror}/{LABELS}.gz" for mirror in ("first", "good")]


def test_what_is_larger_than_any_data_set_is_not_read_to_its_end(
    server: Server, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dcgan, "LARGEST", 2**20)
    server.pages = {f"/good/{IMAGES}.gz": bytes(2**26)}
    assert "cannot download" in refused("dcgan.py", "--data", "mnist", *TINY)
    assert server.sent < 2**25
    assert listing("data") == []


def test_a_redirection_is_followed_but_not_from_https_to_http(
    server: Server, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.moved = {path.replace("good", "first"): path for path in server.pages}
    assert_mnist_arrived()
    assert server.asked[:2] == [f"/first/{IMAGES}.gz", f"/good/{IMAGES}.gz"]
    shutil.rmtree("data")
    real = dcgan.urlopen
    monkeypatch.setattr(dcgan, "urlopen", lambda request, **options: real(server.url + request.selector, **options))
    sums = {name: value for name, value in dcgan.DATASETS["mnist"].items() if name != "mirrors"}
    set_mirrors(monkeypatch, "mnist", ["https://example.org/good/"], sums)  # which then answers from http://127.0.0.1
    assert "not https" in refused("dcgan.py", "--data", "mnist", *TINY)
    assert listing("data") == []


def test_cifar10_is_downloaded(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    images, _, files = cifar()
    tar = server.pages["/cifar-10-binary.tar.gz"] = cifar_tar(files)
    sums = {"cifar-10-binary.tar.gz": hashlib.sha256(tar).hexdigest()}
    set_mirrors(monkeypatch, "cifar10", [f"{server.url}/"], sums)
    assert np.array_equal(load_data("cifar10", 32)[0].numpy(), images)
    assert listing("data") == ["cifar-10-binary.tar.gz", "cifar10"]


def test_real_mirrors_are_https_with_a_sha256_for_each_file_and_two_mirrors() -> None:
    assert sorted(dcgan.DATASETS) == ["cifar10", "fashion-mnist", "mnist"]
    for about in dcgan.DATASETS.values():
        mirrors = about["mirrors"].split()
        assert len(mirrors) >= 2
        assert all(mirror.startswith("https://") and mirror.endswith("/") for mirror in mirrors)
        sums = [value for name, value in about.items() if name != "mirrors"]
        assert sums
        assert all(len(bytes.fromhex(value)) == 32 for value in sums)


# --------------------------------------------------------------------------------------------------- folders and zips


def zip_of(folder: Path, top: str = "") -> Path:
    """The folder as a .zip beside it, its content below the folder top."""
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, Path(top, file.relative_to(folder)).as_posix())
    return path


def save(path: Path, colour: object, size: tuple[int, int] = (8, 8), mode: str = "RGB", **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)


PACKED = pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])


@PACKED
def test_first_level_subfolders_are_the_classes(packed: bool) -> None:
    for name, colour in (("zebras", RED), ("ants", GREEN), ("mice/grey/old", BLUE)):
        save(Path("photos", name, "1.png"), colour)
        save(Path("photos", name, "2.png"), colour)
    images, labels, classes = load_data(zip_of(Path("photos")) if packed else Path("photos"))
    assert images.dtype == torch.uint8
    assert labels.dtype == torch.int64
    assert images.shape == (6, 3, 8, 8)
    assert sorted(classes) == ["ants", "mice", "zebras"]
    colours = {"ants": GREEN, "mice": BLUE, "zebras": RED}
    for image, label in zip(images, labels, strict=True):
        assert image[:, 4, 4].tolist() == list(colours[classes[label]])


@PACKED
def test_images_outside_subfolders_have_no_class(packed: bool, refused: Callable[..., str]) -> None:
    for classes in ([""], ["", "cats"]):
        shutil.rmtree("photos", ignore_errors=True)
        folder = make_images(Path("photos"), classes, per_class=4)
        data = zip_of(folder) if packed else folder
        images, _, found = load_data(data)
        assert len(images) == 4 * len(classes)
        assert found == []
        line = refused("cgan.py", "--data", data, "--batch-size", 2, "--image-size", 8)
        assert "class" in line


def test_a_lone_folder_around_all_others_in_a_zip_is_not_a_class() -> None:
    _, labels, classes = load_data(zip_of(make_images(Path("photos")), top="photos-main"))
    assert classes == ["cats", "dogs"]
    assert labels.bincount().tolist() == [8, 8]


@pytest.mark.parametrize("classes", [[""], ["", "cats"]], ids=["images only", "images and a folder"])
def test_a_lone_folder_around_images_without_classes_in_a_zip_is_not_a_class(classes: list[str]) -> None:
    assert load_data(zip_of(make_images(Path("photos"), classes), top="photos-main"))[2] == []


def test_cgan_takes_a_folder_with_classes(images: Path) -> None:
    _, labels, classes = load_data(images, script=cgan)
    assert classes == ["cats", "dogs"]
    assert labels.bincount().tolist() == [8, 8]


@PACKED
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp", ".bmp", ".PNG", ".JPG"])
def test_each_format_is_read(suffix: str, packed: bool) -> None:
    if suffix == ".webp" and not features.check("webp"):
        pytest.skip("this Pillow has no WebP")
    for i, colour in enumerate((RED, GREEN, BLUE)):
        save(Path("photos", f"{i}{suffix}"), colour, (24, 24))
    images, _, _ = load_data(zip_of(Path("photos")) if packed else Path("photos"))
    assert images.shape == (3, 3, 8, 8)
    expected = torch.tensor([RED, GREEN, BLUE])[:, :, None, None]
    assert (images.int() - expected).abs().max() < 6


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "I;16"])
def test_grey_images_have_one_channel_and_keep_their_grey(mode: str) -> None:
    grey = {"1": 255, "LA": (120, 255), "RGB": (120, 120, 120), "I;16": 120 * 257}.get(mode, 120)
    for i in range(3):
        save(Path("photos", f"{i}.png"), grey, mode=mode)
    images = load_data("photos")[0]
    assert images.shape == (3, 1, 8, 8)
    assert images.unique().tolist() == [255 if mode == "1" else 120]


def test_one_colour_image_among_grey_ones_makes_three_channels() -> None:
    save(Path("photos/1.png"), 120, mode="L")
    save(Path("photos/2.png"), (120, 120, 121))
    save(Path("photos/3.png"), 120, mode="L")
    images = load_data("photos")[0]
    assert images.shape == (3, 3, 8, 8)
    assert images[:, :, 0, 0].tolist() == [[120, 120, 120], [120, 120, 121], [120, 120, 120]]


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("wide", [True, False], ids=["wide", "tall"])
def test_the_centre_square_is_cut_out(suffix: str, wide: bool) -> None:
    pixels = np.full((128, 256, 3), RED, np.uint8)
    pixels[:, 64:192] = GREEN
    for i in range(2):
        Path("photos").mkdir(exist_ok=True)
        Image.fromarray(pixels if wide else pixels.transpose(1, 0, 2)).save(f"photos/{i}{suffix}", quality=95)
    images = load_data("photos")[0].int()
    inner = images[:, :, 1:-1, 1:-1]  # at the edge, resampling and JPEG mix in a little of what was cut off
    assert (inner - torch.tensor(GREEN)[:, None, None]).abs().max() < 6


def test_photos_are_shrunk_with_antialiasing() -> None:
    pixels = np.zeros((64, 64), np.uint8)
    pixels[::2, ::2] = pixels[1::2, 1::2] = 255
    Path("photos").mkdir()
    Image.fromarray(pixels).save("photos/1.png")
    Image.fromarray(pixels).save("photos/2.png")
    inner = load_data("photos")[0][:, :, 1:-1, 1:-1].int()
    assert (inner - 127).abs().max() < 12  # a pixel picked here and there would be black or white


@pytest.mark.parametrize(("orientation", "white"), [(1, "left"), (3, "right"), (6, "top"), (8, "bottom")])
def test_photos_are_turned_upright(orientation: int, white: str) -> None:
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:, :8] = 255  # as stored, the left half is white
    exif = Image.Exif()
    exif[0x0112] = orientation
    Path("photos").mkdir()
    for i in range(2):
        Image.fromarray(pixels).save(f"photos/{i}.jpg", exif=exif, quality=95)
    image = load_data("photos")[0][0].float().mean(dim=0)
    sides = {"left": image[:, :3], "right": image[:, -3:], "top": image[:3], "bottom": image[-3:]}
    assert max(sides, key=lambda side: sides[side].mean()) == white
    assert sides[white].min() > 240


@PACKED
def test_an_unreadable_file_is_left_out_and_named(packed: bool, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_images(Path("photos"), per_class=3)
    broken = (folder / "cats" / "0.png").read_bytes()[:60]
    (folder / "cats" / "half.png").write_bytes(broken)
    (folder / "cats" / "empty.webp").write_bytes(b"")
    (folder / "dogs" / "page.jpg").write_text("<html>403 Forbidden</html>")
    data = zip_of(folder) if packed else folder
    for _ in range(2):  # decoded, and from the cache
        images, labels, _ = load_data(data)
        assert images.shape == (6, 3, 8, 8)
        assert labels.bincount().tolist() == [3, 3]
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
        assert all(name in line for name in ("half.png", "empty.webp", "page.jpg"))
        assert "0.png" not in line


def png_of(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG that says it is so large, black and white, with this for pixels."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(data)),
        (b"IEND", b""),
    ]
    parts = [
        len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big") for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def jpeg(**options: object) -> bytes:
    out = BytesIO()
    Image.new("RGB", (8, 8), RED).save(out, "jpeg", **options)
    return out.getvalue()


BROKEN_IMAGES = {
    "empty": lambda: b"",
    "text": lambda: b"not an image",
    "cut": lambda: jpeg()[:-40],
    "50,000 x 50,000 pixels": lambda: png_of(50_000, 50_000),
    "2**31 - 1 pixels wide": lambda: png_of(2**31 - 1, 2**31 - 1),
    "no pixels": lambda: png_of(0, 0),
    "more pixels than the bound": lambda: png_of(1024, 260, bytes(129 * 260)),
    "another format": lambda: b"GIF89a" + bytes(99),
    "a wrong checksum": lambda: png_of(8, 8, bytes(16)).replace(b"IDAT", b"IDAT\1"),
}


@PACKED
@pytest.mark.parametrize("damage", BROKEN_IMAGES)
def test_a_broken_image_is_left_out_and_named(
    damage: str, packed: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dcgan, "LARGEST", 2**20)
    folder = make_images(Path("photos"), per_class=2)
    (folder / "cats" / "broken.png").write_bytes(BROKEN_IMAGES[damage]())
    assert len(load_data(zip_of(folder) if packed else folder)[0]) == 4
    *_, line = capsys.readouterr().err.splitlines()
    assert line == "warning: left out 1 unreadable images: 'cats/broken.png'"


def odd(name: str, mode: str = "RGB", colour: object = RED, **options: object) -> None:
    save(Path("photos", name), colour, mode=mode, **options)


ODD_IMAGES: dict[str, tuple[Callable[[], object], tuple[int, int, int]]] = {
    "animated png": (lambda: odd("a.png", save_all=True, append_images=[Image.new("RGB", (8, 8), BLUE)]), RED),
    "animated webp": (
        lambda: odd("a.webp", save_all=True, append_images=[Image.new("RGB", (8, 8), BLUE)], lossless=True),
        RED,
    ),
    "CMYK jpeg": (lambda: odd("a.jpg", "CMYK", (0, 255, 255, 0), quality=95), RED),
    "16-bit grey png": (lambda: odd("a.png", "I;16", 120 * 257), (120, 120, 120)),
    "palette": (lambda: Image.new("RGB", (8, 8), RED).quantize(4).save("photos/a.png"), RED),
    "palette, transparent": (
        lambda: Image.new("RGB", (8, 8), RED).quantize(4).save("photos/a.png", transparency=bytes([9, 99])),
        RED,
    ),
    "one pixel": (lambda: odd("a.png", size=(1, 1)), RED),
    "one pixel high": (lambda: odd("a.png", size=(999, 1)), RED),
    "64 KB of EXIF": (
        lambda: Path("photos/a.jpg").write_bytes(jpeg(exif=b"Exif\0\0" + bytes(65_000), quality=95)),
        RED,
    ),
    "broken EXIF": (lambda: Path("photos/a.jpg").write_bytes(jpeg(exif=b"Exif\0\0II*\0\xff\xff", quality=95)), RED),
    "named as another format": (lambda: Path("photos/a.png").write_bytes(jpeg(quality=95)), RED),
}


@pytest.mark.parametrize("kind", ODD_IMAGES)
def test_an_odd_image_is_read_without_a_word(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    make_images(Path("photos"), ["b"])
    write, colour = ODD_IMAGES[kind]
    write()
    image = load_data("photos")[0][0].int()
    assert (image - torch.tensor(colour)[:, None, None]).abs().max() < 6
    assert all("\r" in line or not line for line in capsys.readouterr().err.split("\n"))  # only the progress bar


def test_a_file_that_goes_or_cannot_be_opened_is_left_out_and_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_images(Path("photos"), per_class=2)
    real, errors = Path.open, {"cats/0.png": FileNotFoundError, "dogs/1.png": PermissionError}

    def fails(path: Path, *args: object, **options: object) -> object:
        if error := errors.get("/".join(path.parts[-2:])):
            raise error
        return real(path, *args, **options)

    monkeypatch.setattr(Path, "open", fails)
    assert load_data("photos")[1].tolist() == [0, 1]
    assert "left out 2 unreadable images: 'cats/0.png', 'dogs/1.png'" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_the_right_to_read_it_is_left_out_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    make_images(Path("photos"), per_class=2)
    Path("photos/cats/0.png").chmod(0)
    assert len(load_data("photos")[0]) == 3
    assert "'cats/0.png'" in capsys.readouterr().err


def test_links_in_a_circle_end() -> None:
    make_images(Path("photos"))
    Path("photos/cats/again").symlink_to(Path("photos").resolve(), target_is_directory=True)
    Path("photos/cats/itself.png").symlink_to("itself.png")
    Path("photos/dogs/nowhere.png").symlink_to("nowhere")
    assert len(load_data("photos")[0]) == 16


def test_a_link_to_itself_as_data_is_refused(refused: Callable[..., str]) -> None:
    Path("loop").symlink_to("loop")
    assert "loop" in refused("dcgan.py", "--data", "loop", *TINY)


def test_names_in_a_zip_lead_nowhere() -> None:
    data = (make_images(Path("photos"), per_class=1) / "cats" / "0.png").read_bytes()
    names = ["../up/1.png", "/top/2.png", "cats/../../3.png", "cats//4.png", "dogs\\..\\5.png", "dogs/6.png", "./7.png"]
    with warnings.catch_warnings(), zipfile.ZipFile("odd.zip", "w") as archive:
        warnings.simplefilter("ignore")  # of the name that comes twice
        for name in [*names, "dogs/6.png"]:
            archive.writestr(name, data)
    before = sorted(Path().rglob("*"))
    images, _, classes = load_data("odd.zip")
    assert sorted(path for path in Path().rglob("*") if path.parts[0] != "data") == before
    assert len(images) == 4
    assert classes == []  # 5.png lies outside
    with zipfile.ZipFile("odder.zip", "w") as archive:
        for name in ("/top/2.png", "cats//4.png", "//b/c/5.png"):
            archive.writestr(name, data)
    assert load_data("odder.zip")[2] == ["b", "cats", "top"]


def rewritten(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))


def test_an_entry_of_a_zip_that_cannot_be_read_is_left_out_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    photos = make_images(Path("photos"), per_class=2)
    with zipfile.ZipFile("photos.zip", "w") as archive:
        for path in sorted(photos.rglob("*.png")):
            archive.write(path)
        archive.writestr("photos/cats/bomb.png", bytes(2**26), zipfile.ZIP_DEFLATED)
        archive.writestr("photos/dogs/locked.png", b"x")
    data = bytearray(Path("photos.zip").read_bytes())
    data[data.rindex(b"photos/dogs/locked.png") - 38] |= 1  # says that it is encrypted
    pixels = (photos / "cats" / "0.png").read_bytes()
    data[data.index(pixels) + len(pixels) // 2] ^= 1  # its checksum is wrong now
    Path("photos.zip").write_bytes(data)
    assert len(load_data("photos.zip")[0]) == 3
    line = capsys.readouterr().err.splitlines()[-1]
    assert all(f"photos/{name}.png" in line for name in ("cats/0", "cats/bomb", "dogs/locked"))


@pytest.mark.parametrize("method", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_a_zip_that_could_unpack_without_a_bound_is_refused(method: int, refused: Callable[..., str]) -> None:
    with zipfile.ZipFile("photos.zip", "w", method) as archive:
        archive.write(make_images(Path("photos")) / "cats" / "0.png")
    assert "compression" in refused("dcgan.py", "--data", "photos.zip", *TINY)


def test_names_of_broken_files_cannot_write_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    (make_images(Path("photos")) / "cats" / "\x1b]0;title\nwarning.png").write_bytes(b"")
    load_data("photos")
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="counts memory as Linux does")
def test_bombs_take_no_more_memory_than_the_bound() -> None:
    """In a process of its own: a huge PNG, a zip and an IDX file of 128 MB, all within 100 if the bound is 16."""
    Path("photos").mkdir()
    make_images(Path("photos"), ["", ""])
    Path("photos/bomb.png").write_bytes(png_of(50_000, 50_000, bytes(6251 * 1000)))
    with zipfile.ZipFile("bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write("photos/0.png")
        archive.writestr("bomb.png", bytes(2**27))
    packer = zlib.compressobj(1, wbits=31)
    Path("data/mnist").mkdir(parents=True)
    with Path(f"data/mnist/{IMAGES}.gz").open("wb") as file:
        for block in [idx(digits(12)[0])] + [bytes(2**20)] * 128:
            file.write(packer.compress(block))
        file.write(packer.flush())
    Path(f"data/mnist/{LABELS}").write_bytes(idx(digits()[1]))
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import dcgan
from argparse import Namespace
from pathlib import Path
dcgan.LARGEST = 2**24
peak = lambda: int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
before = peak()
for data in ("photos", "bomb.zip", "mnist"):
    try:
        dcgan.load_data(Namespace(data=data, data_dir="data", image_size=8, batch_size=1))
    except SystemExit as end:
        assert (data, end.code) == ("mnist", 2)
print((peak() - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100


@pytest.mark.parametrize("content", ["nothing", "no image", "broken images"])
@PACKED
def test_a_set_without_a_readable_image_is_refused(
    content: str, packed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("photos").mkdir()
    if content == "no image":
        Path("photos/notes.txt").write_text("notes")
    if content == "broken images":
        Path("photos/1.png").write_text("broken")
    with pytest.raises(SystemExit) as end:
        call("dcgan.py", "--data", zip_of(Path("photos")) if packed else "photos")
    assert end.value.code == 2
    *before, line = capsys.readouterr().err.splitlines()
    assert line.startswith("dcgan.py: error: --data ")
    assert not any("error" in other or "Traceback" in other for other in before)


@PACKED
def test_hidden_files_and_what_a_mac_adds_are_ignored(packed: bool, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_images(Path("photos"), per_class=2)
    (folder / "__MACOSX" / "cats").mkdir(parents=True)
    (folder / ".thumbnails").mkdir()
    for name in ("cats/._0.png", "__MACOSX/cats/._0.png", "__MACOSX/0.png", ".thumbnails/0.png", ".DS_Store"):
        (folder / name).write_bytes((folder / "dogs" / "0.png").read_bytes())
    images, labels, classes = load_data(zip_of(folder) if packed else folder)
    assert classes == ["cats", "dogs"]
    assert labels.tolist() == [0, 0, 1, 1]
    assert len(images) == 4
    assert "warning" not in capsys.readouterr().err


def test_a_hidden_folder_above_the_images_hides_nothing() -> None:
    assert len(load_data(make_images(Path(".cache/photos")))[0]) == 16


def test_a_folder_named_like_an_image_is_no_image(capsys: pytest.CaptureFixture[str]) -> None:
    assert load_data(make_images(Path("photos"), ["cat.png", "dog.png"]))[2] == ["cat.png", "dog.png"]
    assert "warning" not in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------- cache of the pixels


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Counts the images that Pillow opens: it has one entry for each."""
    calls, real = [], Image.open

    def spy(*args: object, **options: object) -> Image.Image:
        calls.append(args)
        return real(*args, **options)

    monkeypatch.setattr(Image, "open", spy)
    return calls


@PACKED
def test_a_second_start_decodes_nothing(packed: bool, opened: list[object]) -> None:
    folder = make_images(Path("photos"), per_class=3)
    data = zip_of(folder) if packed else folder
    first = load_data(data)
    assert len(opened) == 6
    opened.clear()
    again = load_data(data)
    assert opened == []
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert first[2] == again[2]


def touch(path: Path) -> None:
    """Gives a file another time of change, whatever the resolution of the file system's clock."""
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 2_000_000_000))


@pytest.mark.parametrize("change", ["added", "removed", "renamed", "rewritten", "moved to another class"])
@PACKED
def test_a_changed_set_is_decoded_anew(change: str, packed: bool) -> None:
    folder = make_images(Path("photos"), per_class=3)
    first, labels, _ = load_data(zip_of(folder) if packed else folder)
    if change == "added":
        save(folder / "dogs" / "9.png", WHITE)
    elif change == "removed":
        (folder / "dogs" / "1.png").unlink()
    elif change == "renamed":
        (folder / "dogs" / "0.png").rename(folder / "dogs" / "9.png")
    elif change == "rewritten":
        save(folder / "dogs" / "1.png", WHITE)
        touch(folder / "dogs" / "1.png")
    else:
        (folder / "dogs" / "1.png").rename(folder / "cats" / "9.png")
    now, labels_now, _ = load_data(zip_of(folder) if packed else folder)
    counts = {"added": [3, 4], "removed": [3, 2], "moved to another class": [4, 2]}.get(change, [3, 3])
    assert labels_now.bincount().tolist() == counts
    assert now.shape != first.shape or not torch.equal(now, first) or not torch.equal(labels, labels_now)
    assert (now == 255).flatten(1).all(dim=1).any() == (change in ("added", "rewritten"))


def test_another_size_has_a_cache_of_its_own(images: Path) -> None:
    assert load_data(images, 8)[0].shape == (16, 3, 8, 8)
    assert load_data(images, 16)[0].shape == (16, 3, 16, 16)
    assert load_data(images, 8)[0].shape == (16, 3, 8, 8)


def test_folders_that_differ_only_in_their_pixels_do_not_share_a_cache() -> None:
    for home, colour in (("a", RED), ("b", BLUE)):
        for name in ("1.png", "2.png"):
            save(Path(home, "photos", name), colour)
            os.utime(Path(home, "photos", name), (0, 0))  # as from an archive without times
    assert load_data("a/photos")[0][0, :, 0, 0].tolist() == list(RED)
    assert load_data("b/photos")[0][0, :, 0, 0].tolist() == list(BLUE)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of mapped files")
def test_the_cache_is_mapped_not_read_into_memory(images: Path) -> None:
    tensor = load_data(images)[0]
    home = Path("data").resolve()
    ranges = [line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines() if str(home) in line]
    bounds = [[int(end, 16) for end in text.split("-")] for text in ranges]
    assert any(low <= tensor.data_ptr() < high for low, high in bounds)
    assert list(home.rglob("*.npy"))


def test_writing_to_the_tensor_leaves_the_cache_as_it_was(images: Path) -> None:
    first = load_data(images)[0]
    before = first.clone()
    first.zero_()
    assert torch.equal(load_data(images)[0], before)


def test_what_a_killed_start_left_does_no_harm(images: Path) -> None:
    before = load_data(images)[0].clone()
    (done,) = Path("data/cache").iterdir()
    for name in (f"{done.name}.{os.getpid()}.part", f"{done.name}.part"):  # in a container, the number comes again
        (done.parent / name).mkdir()
        (done.parent / name / "images.npy").write_bytes(b"half")
    shutil.rmtree(done)
    assert torch.equal(load_data(images)[0], before)


@pytest.mark.parametrize("damage", ["images.npy cut", "images.npy empty", "index.json cut", "index.json of text"])
def test_a_damaged_cache_is_refused_in_a_line_that_says_what_to_delete(
    damage: str, images: Path, refused: Callable[..., str]
) -> None:
    load_data(images)
    (cache,) = Path("data/cache").iterdir()
    path = cache / damage.split()[0]
    path.write_bytes({"cut": path.read_bytes()[:-9], "empty": b"", "text": b"text"}[damage.split()[-1]])
    assert f"delete {cache}" in refused("dcgan.py", "--data", images, *TINY)


def test_of_two_processes_that_decode_the_same_both_go_on(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, once = np.lib.format.open_memmap, []

    def meanwhile(*args: object, **options: object) -> object:
        if not once:
            once.append(1)
            with monkeypatch.context() as patch:
                patch.setattr(os, "getpid", lambda: 1)
                load_data(images)
        return real(*args, **options)

    monkeypatch.setattr(np.lib.format, "open_memmap", meanwhile)
    assert len(load_data(images)[0]) == 16
    assert len(list(Path("data/cache").iterdir())) == 1


def test_data_dir_is_where_the_cache_lives(images: Path) -> None:
    load_data(images, data_dir="elsewhere")
    assert list(Path("elsewhere").rglob("*.npy"))
    assert not Path("data").exists()


# -------------------------------------------------------------------------------------------------- order of an epoch


def test_the_order_of_an_epoch_is_a_permutation() -> None:
    assert sorted(dcgan.epoch_order(1000, 0, 0).tolist()) == list(range(1000))
    assert dcgan.epoch_order(1000, 0, 0).tolist() != list(range(1000))


def test_the_order_of_an_epoch_depends_on_seed_and_epoch_only() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        getattr(dcgan.epoch_order, "cache_clear", lambda: None)()
        return dcgan.epoch_order(50, seed, epoch).tolist()

    first = order(3, 7)
    torch.manual_seed(9)
    np.random.seed(9)
    torch.rand(5)
    assert order(3, 7) == first
    others = [order(seed, epoch) for seed in range(5) for epoch in range(10) if (seed, epoch) != (3, 7)]
    assert first not in others
    assert len({tuple(other) for other in others}) == len(others)
