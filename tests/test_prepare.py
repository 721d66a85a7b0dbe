"""prepare.py: standard sets and their download, own images, the folder of arrays, hostile files."""

import gzip
import hashlib
import io
import os
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, call
from PIL import Image

import prepare

RED = (255, 0, 0)
GREYS = {"L": 120, "LA": (120, 255), "RGB": (120, 120, 120), "I;16": 120 * 257}

# Tiny standard sets; the last images of each are the test set
RNG = np.random.default_rng(0)
DIGITS = RNG.integers(1, 256, (17, 28, 28), dtype=np.uint8)
PHOTOS = RNG.integers(0, 256, (24, 3, 32, 32), dtype=np.uint8)
LABELS = np.arange(24, dtype=np.uint8) % 10


def idx(array: np.ndarray) -> bytes:
    return bytes(4 + 4 * array.ndim) + array.tobytes()  # a header that nobody reads


def mnist_files() -> dict[str, bytes]:
    arrays = [DIGITS[:12], LABELS[:12], DIGITS[12:], LABELS[12:17]]
    return {name: idx(array) for name, array in zip(prepare.MNIST, arrays, strict=True)}


def gzipped(files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{name}.gz": gzip.compress(data) for name, data in files.items()}


def write(folder: str | Path, files: dict[str, bytes]) -> None:
    for file, data in files.items():
        path = Path(folder, file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def make_images(folder: Path, classes=("cats", "dogs"), count: int = 8) -> Path:
    """Writes .png files, in a subfolder for each class, and returns the folder."""
    for name in classes:  # class "" is the folder itself
        write(folder / name, {f"{i}.png": encoded() for i in range(count)})
    return folder


def zip_of(folder: Path) -> Path:
    return Path(shutil.make_archive(str(folder), "zip", folder))


def encoded(kind="png", mode="RGB", colour=RED, side=8, **options: object) -> bytes:
    """An image file of one colour."""
    output = io.BytesIO()
    Image.new(mode, (side, side), colour).save(output, kind, **options)
    return output.getvalue()


def names_in(folder: str) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


def run(source: object, *options: object, size: int = 8) -> tuple[np.ndarray, list[int], list[str]]:
    """Prepares source in the folder out. Returns the images, labels and classes in it."""
    shutil.rmtree("out", ignore_errors=True)
    call("prepare.py", source, "--image-size", size, "--out", "out", *options)
    assert not list(Path().glob(".out*"))
    images = np.load("out/images.npy")
    assert (images.dtype, images.shape[2:]) == (np.uint8, (size, size))
    if not Path("out/classes.txt").exists():
        return images, [], []
    labels = np.load("out/labels.npy")
    classes = Path("out/classes.txt").read_text("utf-8").splitlines()
    assert labels.dtype == np.int64
    return images, labels.tolist(), classes


class Reply(io.BytesIO):
    length = None  # unknown, as of some servers


@pytest.fixture(autouse=True)
def pages(monkeypatch) -> dict[str, bytes]:
    """Takes the place of the network: the pages, which hold a tiny mnist at the second mirror."""
    pages = {f"https://second/{name}": data for name, data in gzipped(mnist_files()).items()}

    def urlopen(url: str, timeout: float) -> Reply:
        if url not in pages:
            raise OSError("no network")
        return Reply(pages[url])

    sums = [hashlib.sha256(data).hexdigest() for data in pages.values()]
    monkeypatch.setattr(prepare, "urlopen", urlopen)
    monkeypatch.setitem(prepare.SETS, "mnist", dict(zip(prepare.MNIST, sums, strict=True)))
    monkeypatch.setitem(prepare.MIRRORS, "mnist", ["https://first/", "https://second/"])
    return pages


@pytest.mark.parametrize(("name", "zipped"), [("mnist", True), ("fashion-mnist", False)])
def test_mnist_files_in_place_are_used_as_they_are(name: str, zipped: bool, capsys) -> None:
    files = gzipped(mnist_files()) if zipped else mnist_files()
    write(f"else/{name}", files)
    images, labels, classes = run(name, "--downloads", "else", size=32)
    black_border = np.pad(DIGITS, [(0, 0), (2, 2), (2, 2)])
    assert np.array_equal(images[:, 0], black_border[:12])
    assert np.array_equal(np.load("out/test_images.npy")[:, 0], black_border[12:])
    assert labels + np.load("out/test_labels.npy").tolist() == LABELS[:17].tolist()
    assert classes == prepare.CLASSES[name].split()
    assert "1 x 32 x 32, 10 classes, 5 test images" in capsys.readouterr().out


def test_cifar10_in_place_is_used_as_it_is() -> None:
    records = np.concatenate([LABELS[:, None], PHOTOS.reshape(24, -1)], axis=1)
    files = np.roll(records.reshape(6, -1), 1, axis=0)
    names = ["test_batch.bin", *(f"data_batch_{i}.bin" for i in range(1, 6))]
    path = Path("data/downloads/cifar10/cifar-10-binary.tar.gz")
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, file in zip(names, files, strict=True):
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = file.size
            tar.addfile(member, io.BytesIO(file.tobytes()))
    images, labels, classes = run("cifar10", size=32)
    assert np.array_equal(np.concatenate([images, np.load("out/test_images.npy")]), PHOTOS)
    assert labels + np.load("out/test_labels.npy").tolist() == LABELS.tolist()
    assert classes[:2] == ["airplane", "automobile"]
    assert run("cifar10", size=16)[0].shape == (20, 3, 16, 16)


@pytest.mark.parametrize("first", [None, b"<html>please log in</html>"], ids=["down", "wrong"])
def test_the_second_mirror_serves_when_the_first_fails(first, pages, capsys) -> None:
    names = sorted(gzipped(mnist_files()))
    if first:
        pages.update({f"https://first/{name}": first for name in names})
    assert np.array_equal(run("mnist", size=28)[0][:, 0], DIGITS[:12])
    assert names_in("data/downloads/mnist") == names
    said = capsys.readouterr()
    assert "https://second/train-images-idx3-ubyte.gz: " in said.err  # a bar
    assert "python vanilla_gan.py --data out" in said.out  # the others want powers of two
    pages.clear()  # each file is downloaded only once
    run("mnist")


def test_without_network_one_line_says_which_files_to_put_where(pages, refused) -> None:
    pages.clear()
    line = refused("prepare.py", "mnist", "--downloads", "data/here", code=1)
    assert "no network" in line
    assert line.endswith(f"Put {', '.join(gzipped(mnist_files()))} into {Path('data/here/mnist')}.")


def test_first_level_subfolders_are_the_classes() -> None:
    for i, name in enumerate(["zebras/1", "Große Hunde 2.png/1", "猫/grey/old/1"]):
        write("photos/main", {f"{name}.png": encoded(colour=(i, 0, 255))})
    images, labels, classes = run("photos")
    assert classes == ["Große Hunde 2.png", "zebras", "猫"]  # main is around all of them
    assert labels == [0, 1, 2]
    assert images[:, 0, 4, 4].tolist() == [1, 0, 2]


@pytest.mark.parametrize("folders", [["", "cats"], ["cats"]])
def test_an_image_outside_or_one_folder_means_no_classes(folders: list[str]) -> None:
    make_images(Path("photos/main"), folders, 4)
    assert run("photos")[2] == []


def test_a_zip_made_on_windows_has_classes() -> None:
    with zipfile.ZipFile("photos.zip", "w") as archive:
        archive.writestr("photos\\cats\\1.png", encoded())
        archive.writestr("photos\\dogs\\1.png", encoded())
    assert run("photos.zip")[1:] == ([0, 1], ["cats", "dogs"])


def test_links_in_a_circle_pipes_and_names_that_are_not_unicode_do_no_harm() -> None:
    make_images(Path("photos"), ["\udcff", "cats"])
    Path("photos/cats/again").symlink_to(Path("photos").resolve(), target_is_directory=True)
    Path("photos/cats/itself.png").symlink_to("itself.png")
    os.mkfifo("photos/cats/pipe.png")
    assert run("photos")[1:] == ([0] * 8 + [1] * 8, ["cats", "?"])


@pytest.mark.parametrize("mode", GREYS)
def test_images_are_rgb_unless_all_are_grey(mode: str) -> None:
    write("photos", {"1.png": encoded(mode=mode, colour=GREYS[mode])})
    assert np.array_equal(run("photos")[0], np.full((1, 1, 8, 8), 120))
    write("photos", {"2.png": encoded(colour=RED)})
    assert run("photos")[0][:, :, 0, 0].tolist() == [[120] * 3, [*RED]]


def test_the_centre_is_taken_antialiased_and_upright() -> None:
    pixels = np.zeros((128, 256, 3), np.uint8)
    pixels[:, :64] = RED  # outside the centre square
    pixels[:, 192:] = RED
    pixels[:, 64:128:2] = 255  # a striped left half, a black right half
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn it clockwise
    Path("photos").mkdir()
    turned = Image.fromarray(np.rot90(pixels).copy())
    turned.save("photos/1.jpg", exif=exif, quality=95)
    image = run("photos")[0][0].astype(int)
    assert abs(image[:, 1:-1, 1:3] - 127).max() < 20
    assert image[:, 1:-1, 5:-1].max() < 20


READABLE = {
    "a.JFIF": encoded("jpeg", quality=95, progressive=True),
    "a.BMP": encoded("bmp"),
    "a.webp": encoded("webp", lossless=True),
    "another format.png": encoded("jpeg", quality=95),
    "cmyk.jpg": encoded("jpeg", "CMYK", (0, 255, 255, 0), quality=95),
    "palette.png": encoded("png", "P", RED, transparency=bytes([9, 99])),
}
UNREADABLE = {
    "another format.png": encoded("gif"),
    "cut.jpg": encoded("jpeg")[:-40],
    "html.webp": b"<html>403 Forbidden</html>",
    "too large.png": encoded("png", "1", 0, side=8193),
}
IGNORED = ["notes.txt", "__MACOSX/cats/._0.png", ".thumbnails/0.png", "cats/._0.png"]


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
@pytest.mark.filterwarnings("ignore")  # Pillow's
def test_odd_images_are_read_and_others_left_out_and_named(packed: bool, capsys) -> None:
    write("photos/cats", READABLE)
    write("photos/mice", UNREADABLE)
    write("photos", dict.fromkeys(IGNORED, b""))
    make_images(Path("photos"), ["dogs"], 1)
    images, labels, classes = run(zip_of(Path("photos")) if packed else "photos")
    assert labels == [0] * len(READABLE) + [1]
    assert classes == ["cats", "dogs"]
    assert abs(images[:-1].astype(int) - np.array(RED)[:, None, None]).max() < 6
    said = capsys.readouterr().err
    assert all(f"Left out 'mice/{name}'" in said for name in UNREADABLE)
    assert said.count("Left out") == len(UNREADABLE)


def test_names_in_a_zip_lead_nowhere_and_bad_entries_are_left_out(capsys) -> None:
    with zipfile.ZipFile("odd.zip", "w") as archive:
        for name in ["../up/1.png", "/top/2.png", "b/3.png", "flipped.png"]:
            archive.writestr(name, encoded())
    data = bytearray(Path("odd.zip").read_bytes())
    data[data.index(b"flipped.png") + 50] ^= 1  # its checksum is wrong now
    Path("odd.zip").write_bytes(data)
    assert len(run("odd.zip")[0]) == 2  # "../up" counts as hidden
    assert "Left out 'flipped.png'" in capsys.readouterr().err
    assert names_in(".") == ["odd.zip", "out"]


def test_memory_grows_neither_with_the_set_nor_with_a_bomb(monkeypatch) -> None:
    monkeypatch.setattr(prepare, "LARGEST", 2**20)
    write("photos", {f"{i}.png": encoded() for i in range(1500)})
    write("photos", {"bomb.png": bytes(2**26)})
    photos = zip_of(Path("photos"))
    tracemalloc.start()
    call("prepare.py", photos, "--image-size", 64, "--out", "bombed")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert Path("bombed/images.npy").stat().st_size > 18_000_000
    assert peak < 12_000_000


def test_the_output_is_named_after_the_source(capsys) -> None:
    photos = make_images(Path("some/my photos"), [""])
    call("prepare.py", photos)
    call("prepare.py", zip_of(photos), "--force")
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == said[2:]
    assert said[0] == "data/my photos-32: 8 images, 3 x 32 x 32, no classes"
    assert said[1] == "Train on it: python dcgan.py --data 'data/my photos-32'"


def test_bad_input_is_refused_in_one_line(refused) -> None:
    write(".", {"empty/notes.txt": b"text", "empty/1.png": b"text", "text.zip": b"text"})
    for source in ["nothing", "text.zip"]:
        assert f"error: {source} is no folder, no .zip" in refused("prepare.py", source)
    for source in [Path("empty"), zip_of(Path("empty"))]:
        assert f"{source} holds no png" in refused("prepare.py", source, code=1)
    assert "--image-size" in refused("prepare.py", "empty", "--image-size", 7)
    write("data/downloads/mnist", {"train-images-idx3-ubyte.gz": b"text"})
    assert "train-images-idx3-ubyte.gz: " in refused("prepare.py", "mnist", code=1)


def test_only_force_replaces_and_only_a_folder_of_arrays(refused) -> None:
    write(".out.part", {"images.npy": b"left by a run that was killed"})
    before = run(make_images(Path("photos")))[0]
    write("empty", {"1.png": b""})
    assert "--force" in refused("prepare.py", "photos", "--out", "out")
    assert "can be read" in refused("prepare.py", "empty", "--force", "--out", "out", code=1)
    assert np.array_equal(np.load("out/images.npy"), before)
    make_images(Path("others"), [""], 3)
    call("prepare.py", "others", "--force", "--out", "out")
    assert names_in("out") == ["images.npy"]
    write("out", {"my notes": b"precious"})
    assert "--force" in refused("prepare.py", "others", "--force", "--out", "out")
    assert "--force" in refused("prepare.py", "others", "--force", "--out", "out/my notes")


def test_nothing_appears_when_the_disk_is_full() -> None:
    make_images(Path("photos"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            call("prepare.py", "photos", "--out", "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names_in(".") == ["photos"]


def test_an_interrupted_run_says_so_and_leaves_nothing() -> None:
    make_images(Path("photos"), count=1500)
    command = [sys.executable, str(ROOT / "prepare.py"), "photos", "--out", "out"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not Path(".out.part").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.endswith("Interrupted; no data set was written.\n")
    assert names_in(".") == ["photos"]
