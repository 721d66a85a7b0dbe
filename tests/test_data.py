"""Data: built-in digits, the standard sets and their download, folders and zips of images, the order of an epoch.

All of it is plumbing, the same in all five scripts (test_sync.py): dcgan stands for all, cgan where classes count.
"""

import gzip
import hashlib
import os
import shutil
import socket
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, call, make_images
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
}


@pytest.mark.parametrize("damage", BROKEN_IDX)
def test_a_broken_idx_file_is_refused(damage: str, refused: Callable[..., str]) -> None:
    put_idx(Path("data/mnist"), *digits(), zipped=False)
    BROKEN_IDX[damage](Path("data/mnist"))
    assert "--data mnist" in refused("dcgan.py", "--data", "mnist", *TINY)


@pytest.mark.parametrize("damage", ["tar cut", "batch cut", "not tar", "label 10"])
def test_a_broken_cifar10_file_is_refused(damage: str, refused: Callable[..., str]) -> None:
    _, _, files = cifar()
    if damage == "batch cut":
        files["data_batch_3.bin"] = files["data_batch_3.bin"][:-9]
    if damage == "label 10":
        files["data_batch_3.bin"] = b"\x0a" + files["data_batch_3.bin"][1:]
    tar = {"tar cut": cifar_tar(files)[:-999], "not tar": b"<html>403 Forbidden</html>"}.get(damage, cifar_tar(files))
    Path("data/cifar10").mkdir(parents=True)
    Path("data/cifar10/cifar-10-binary.tar.gz").write_bytes(tar)
    assert "--data cifar10" in refused("dcgan.py", "--data", "cifar10", *TINY)


# ---------------------------------------------------------------------------------------------------------- download


class Server(ThreadingHTTPServer):
    """Serves pages[path]; a page in cut loses its second half on the way. Notes every path that it is asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages: dict[str, bytes] = {}
        self.cut: set[str] = set()
        self.asked: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        body = self.server.pages.get(self.path, b"")
        self.send_response(200 if body else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if self.path in self.server.cut else body)

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
