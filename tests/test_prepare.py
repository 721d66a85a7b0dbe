"""prepare.py: standard sets and their download, own images, the folder of arrays, hostile files."""

import gzip
import hashlib
import io
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import tracemalloc
import zipfile
from collections.abc import Iterator
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
    downloads = "else" if zipped else f"else/{name}"  # the folder itself may be named, too
    images, labels, classes = run(name, "--downloads", downloads, size=32)
    black_border = np.pad(DIGITS, [(0, 0), (2, 2), (2, 2)])
    assert np.array_equal(images[:, 0], black_border[:12])
    assert np.array_equal(np.load("out/test_images.npy")[:, 0], black_border[12:])
    assert labels + np.load("out/test_labels.npy").tolist() == LABELS[:17].tolist()
    assert classes == prepare.CLASSES[name].split()
    assert "1 x 32 x 32, 10 classes, 5 test images" in capsys.readouterr().out


def test_stacked_mnist_has_three_random_digits_as_channels_always_the_same(monkeypatch) -> None:
    monkeypatch.setattr(prepare, "STACKS", (300, 40))
    images, labels, classes = run("stacked-mnist", size=28)
    train, test = images, np.load("out/test_images.npy")
    assert (train.shape, test.shape) == ((300, 3, 28, 28), (40, 3, 28, 28))
    assert classes == [f"{number:03}" for number in range(1000)]
    digit_of = {digit.tobytes(): label for digit, label in zip(DIGITS, LABELS[:17], strict=True)}
    for stacks, numbers, digits in (
        (train, labels, LABELS[:12]),
        (test, np.load("out/test_labels.npy"), LABELS[12:17]),
    ):
        read = [[digit_of[channel.tobytes()] for channel in stack] for stack in stacks]
        assert np.array_equal(numbers, [int("".join(map(str, number))) for number in read])
        assert {digit for number in read for digit in number} == set(digits)
    assert names_in("data/downloads") == ["mnist"]  # which prepare.py mnist uses, too
    again, _, _ = run("stacked-mnist", size=28)
    assert np.array_equal(train, again)


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
    files = ", ".join(gzipped(mnist_files()))
    assert f"Put {files} into {Path('data/here/mnist')}, or name" in line


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


SPELLINGS = ["photos\\cats\\1.png", "photos/./dogs//2.png", "/photos/cats/x/../3.png"]
SPELLINGS += ["C:\\photos\\dogs\\4.png", "../photos/cats:/5.png", "photos\\cats\\1.png"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_any_spelling_of_a_path_in_a_zip_means_the_same_folder(capsys) -> None:
    with zipfile.ZipFile("photos.zip", "w") as archive:
        for i, spelling in enumerate(SPELLINGS):
            entry = zipfile.ZipInfo()
            entry.filename = spelling  # the constructor would change it
            archive.writestr(entry, encoded(colour=(i, 0, 255)))
    images, labels, classes = run("photos.zip")
    assert (labels, classes) == ([0, 0, 1, 2, 2], ["cats", "cats:", "dogs"])
    assert images[:, 0, 0, 0].tolist() == [5, 2, 4, 1, 3]  # of two with one name the last counts
    assert "Left out: 1 replaced by a later file of the same name" in capsys.readouterr().out


def test_links_are_followed_and_nothing_is_passed_over_in_silence(monkeypatch, capsys) -> None:
    make_images(Path("real"), ["\udcff", "cats", "closed"])
    Path("photos/more").mkdir(parents=True)
    for name in names_in("real"):
        Path("photos", name).symlink_to(Path("real", name).resolve(), target_is_directory=True)
    Path("photos/more/again").symlink_to(Path("photos").resolve(), target_is_directory=True)
    Path("photos/more/itself.png").symlink_to("itself.png")
    os.mkfifo("photos/more/pipe.png")
    write(
        "photos",
        {
            "images.npy": b"",
            "preview.png": encoded(),
            "a.gif": b"",
            "b.GIF": b"",
            "notes.txt": b"",
            "cats/.0.png": b"",
        },
    )
    list_files = Path.iterdir

    def iterdir(folder: Path) -> Iterator[Path]:
        if folder.name == "closed":
            raise PermissionError
        return list_files(folder)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert run("photos")[1:] == ([0] * 8 + [1] * 8, ["cats", "?"])
    expected = (
        "1 folder not readable, 1 hidden, 2 dead links or pipes, 1 preview of prepared images"
    )
    expected += ", 4 of other types"
    assert f"Left out: {expected} (.gif, .GIF, .npy)" in capsys.readouterr().out


def test_transparent_images_lie_on_white_or_another_colour(capsys) -> None:
    write("photos", {"1.png": encoded(mode="RGBA", colour=(9, 0, 0, 0)), "2.png": encoded()})
    assert run("photos")[0][:, :, 0, 0].tolist() == [[255] * 3, [*RED]]
    assert "Transparent images (1) have a white background" in capsys.readouterr().out
    assert run("photos", "--background", "blue")[0][0, :, 0, 0].tolist() == [0, 0, 255]


@pytest.mark.parametrize("highest", [0, 255, 4095, 65535])
def test_grey_images_of_16_bits_keep_the_bits_that_are_used(highest: int) -> None:
    images = [
        Image.fromarray(np.full((8, 8), value, np.uint16)) for value in (highest, highest // 2)
    ]
    Path("photos").mkdir()
    for i, image in enumerate(images):
        image.save(f"photos/{i}.png")
    brightest = 255 if highest else 0
    assert run("photos")[0][:, :, 0, 0].tolist() == [[brightest], [brightest // 2]]


def test_a_shade_of_colour_that_nobody_sees_is_grey() -> None:
    write("photos", {"1.png": encoded(colour=(120, 121, 119))})
    assert run("photos")[0].shape[1] == 1


def test_the_orientation_counts_though_other_exif_data_are_broken() -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4] = 255  # turned clockwise, the right half is white
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x011A] = 12345.0  # horizontal resolution, to become -1/0
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "jpeg", exif=exif, quality=95)
    data = file.getvalue().replace(b"\x01\x1a\0\5", b"\x01\x1a\0\x0a")  # a signed number
    minus_one_by_zero = data.replace(b"\0\0\x30\x39\0\0\0\1", b"\xff" * 4 + bytes(4))
    assert len({file.getvalue(), data, minus_one_by_zero}) == 3
    write("photos", {"1.jpg": minus_one_by_zero})
    image = run("photos")[0][0].astype(int)
    assert image[:, :, :3].max() < 20
    assert image[:, :, 5:].min() > 235


def test_mirror_images_are_added_with_their_labels() -> None:
    images, labels, _ = run(make_images(Path("photos"), count=2), "--mirror")
    write("photos", {"cats/3.png": b""})
    assert labels == [0, 0, 1, 1] * 2
    assert np.array_equal(images[4:], images[:4, :, :, ::-1])


def test_torchvisions_folder_of_a_standard_set_is_read_as_that_set(capsys) -> None:
    write("data/FashionMNIST/raw", mnist_files())
    assert run("data/FashionMNIST/raw", size=28)[2][0] == "t-shirt"


def test_likely_mistakes_with_classes_are_pointed_out(capsys) -> None:
    run(make_images(Path("my.photos/main"), ["train/cats", "Test/cats"], 1).parent)
    assert "python prepare.py my.photos/main/train\n" in capsys.readouterr().out
    run(make_images(Path("more"), ["", "cats", "dogs"], 1))
    assert "No classes: '0.png' is beside the subfolders" in capsys.readouterr().out
    run(zip_of(make_images(Path("other"), ["çats", "dogs"], 1)))
    assert "If names in classes.txt are garbled" in capsys.readouterr().out


def test_an_encrypted_zip_is_named_as_such(capsys, refused) -> None:
    photos = zip_of(make_images(Path("photos"), count=1))
    data = photos.read_bytes().replace(b"PK\1\2\x14\x03\x14\0\0", b"PK\1\2\x14\x03\x14\0\1")
    photos.write_bytes(data)
    refused("prepare.py", photos, code=1)
    assert "'cats/0.png': it is encrypted." in capsys.readouterr().err


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
    "72 megapixels.jpg": encoded("jpeg", side=8500),
}
UNREADABLE = {  # file and reason
    "another format.png": (encoded("gif"), "not png, jpeg, webp or bmp"),
    "cut.jpg": (encoded("jpeg")[:-40], "Truncated File Read"),
    "damaged.png": (encoded()[:45] + bytes(20) + encoded()[65:], "broken data|checksum|CRC"),
    "html.webp": (b"<html>403 Forbidden</html>", "not png, jpeg, webp or bmp"),
    "too large.png": (encoded("png", "1", 0, side=8193), "more than 67,108,864 pixels"),
}
IGNORED = ["notes.txt", "__MACOSX/cats/._0.png", ".thumbnails/0.png", "cats/._0.png"]


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
@pytest.mark.filterwarnings("ignore")  # Pillow's
def test_odd_images_are_read_and_others_left_out_and_named(packed: bool, capsys) -> None:
    write("photos/cats", READABLE)
    write("photos/mice", {name: data for name, (data, _) in UNREADABLE.items()})
    write("photos", dict.fromkeys(IGNORED, b""))
    make_images(Path("photos"), ["dogs"], 1)
    images, labels, classes = run(zip_of(Path("photos")) if packed else "photos")
    assert labels == [0] * len(READABLE) + [1]
    assert classes == ["cats", "dogs"]
    assert abs(images[:-1].astype(int) - np.array(RED)[:, None, None]).max() < 6
    said = capsys.readouterr()
    for name, (_, reason) in UNREADABLE.items():
        assert re.search(f"Left out 'mice/{name}': .*{reason}", said.err)
    assert said.err.count("Left out") == len(UNREADABLE)
    assert "Left out: 3 hidden, 1 of other types (.txt), 5 unreadable\n" in said.out


def test_names_in_a_zip_lead_nowhere_and_bad_entries_are_left_out(capsys) -> None:
    with zipfile.ZipFile("odd.zip", "w") as archive:
        for name in ["../up/1.png", "/top/2.png", "b/3.png", "flipped.png"]:
            archive.writestr(name, encoded())
    data = bytearray(Path("odd.zip").read_bytes())
    data[data.index(b"flipped.png") + 50] ^= 1  # its checksum is wrong now
    Path("odd.zip").write_bytes(data)
    assert len(run("odd.zip")[0]) == 3
    assert "Left out 'flipped.png': Bad CRC-32" in capsys.readouterr().err
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
    photos = make_images(Path("some/my photos.v1"), [""])
    call("prepare.py", photos)
    call("prepare.py", zip_of(photos), "--force")
    said = capsys.readouterr().out.splitlines()
    assert said[:5] == said[5:]
    assert said[0] == "data/my photos.v1-32: 8 images, 3 x 32 x 32, no classes"
    assert said[1] == f"{Path('data/my photos.v1-32/preview.png')} shows some of them."
    assert said[2].startswith("With fewer than about 1,000 images D memorizes them")
    command = "python dcgan.py --data 'data/my photos.v1-32' --batch-size 8 --steps 3000"
    assert said[3] == f"Train on it: {command}"
    assert said[4].startswith("That takes about 1 minute on")
    sheet = Image.open("data/my photos.v1-32/preview.png")
    assert (sheet.size, sheet.getpixel((255, 255))) == ((256, 256), RED)


def test_who_has_classes_is_told_of_cgan(capsys) -> None:
    photos = make_images(Path("photos"), ["cats", "dogs"])
    call("prepare.py", photos)
    assert "with cgan.py in place of dcgan.py" in capsys.readouterr().out.splitlines()[-1]
    call("prepare.py", photos, "--image-size", 28)  # which cgan.py cannot have
    assert "cgan.py" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("count", "size", "expected"),
    [
        (
            60,
            64,
            "python dcgan.py --data out --batch-size 16 --steps 3000\nThat takes about 10 min",
        ),
        (
            600,
            32,
            "python dcgan.py --data out --batch-size 32 --steps 3000\nThat takes about 4 min",
        ),
        (
            5000,
            32,
            "python dcgan.py --data out --batch-size 64 --steps 3000\nThat takes about 8 min",
        ),
        (60_000, 32, "python dcgan.py --data out\nThat takes about 58 minutes on two CPU cores"),
        (
            600,
            28,
            "python vanilla_gan.py --data out --batch-size 32 --steps 3000\nThe other scripts",
        ),
    ],
)
def test_the_command_fits_the_number_of_images(count: int, size: int, expected: str) -> None:
    assert prepare.training_command(Path("out"), count, size).startswith(expected)


def test_bad_input_is_refused_in_one_line(refused) -> None:
    write(".", {"empty/notes.txt": b"text", "empty/1.png": b"text", "text.zip": b"text"})
    write(".", {"a.tar.gz": b"text", "mnist/1.png": b"text", "one.png": b""})
    assert "the source is empty" in refused("prepare.py", "")
    assert "one.png is a single image" in refused("prepare.py", "one.png")
    assert "is a file" in refused("prepare.py", "empty", "--out", "one.png", "--force")
    assert "nothing does not exist, and is none of mnist" in refused("prepare.py", "nothing")
    assert "text.zip cannot be opened as a .zip" in refused("prepare.py", "text.zip")
    assert "nor a .zip. Unpack other archives" in refused("prepare.py", "a.tar.gz")
    assert "./mnist means the folder" in refused("prepare.py", "mnist")
    assert "--out must name" in refused("prepare.py", "empty", "--out", ".", "--force")
    assert "--background" in refused("prepare.py", "empty", "--background", "whit")
    for source in [Path("empty"), zip_of(Path("empty"))]:
        assert f"{source} holds no png" in refused("prepare.py", source, code=1)
    assert "--image-size" in refused("prepare.py", "empty", "--image-size", 7)
    Path("mnist/1.png").unlink()
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
    write("out", {".DS_Store": b""})
    call("prepare.py", "others", "--force", "--out", "out")
    assert names_in("out") == ["images.npy", "preview.png"]
    write("out", {"my notes": b"precious"})
    assert "--force" in refused("prepare.py", "others", "--force", "--out", "out")
    assert "is a file" in refused("prepare.py", "others", "--force", "--out", "out/my notes")


def test_what_a_killed_run_had_set_aside_is_put_back(monkeypatch) -> None:
    before = run(make_images(Path("photos")))[0]
    rename = Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        if path.name == ".out.part":
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="130"):
        patch.setattr(Path, "rename", interrupted)
        call("prepare.py", make_images(Path("others"), [""]), "--force", "--out", "out")
    assert np.array_equal(np.load("out/images.npy"), before)
    Path("out").rename(".out.old")  # as kill -9 would leave it
    with pytest.raises(SystemExit, match="2"):
        call("prepare.py", "others", "--out", "out")
    assert np.array_equal(np.load("out/images.npy"), before)


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
