# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy", "pillow>=10.1", "tqdm"]
# ///
"""Converts a standard set, or your own images, into a folder of arrays that the scripts train on.

    python prepare.py mnist                        or fashion-mnist, cifar10; writes data/mnist-32
    python prepare.py stacked-mnist                random digits of MNIST as the three channels
    python prepare.py photos --image-size 64       a folder of images; writes data/photos-64
    python prepare.py photos.zip --out data/mine   a .zip of images; writes data/mine
    python prepare.py photos --mirror              adds each image's mirror image

images.npy is uint8 (N, C, S, S). Where there are classes, labels.npy is int64 (N,) and classes.txt
has one name per line. The standard sets also have test_images.npy and test_labels.npy. preview.png
shows some of the images.

Your own images may be png, jpeg, webp or bmp. They are cropped to the central square, in RGB unless
all are grey. If every image is in a subfolder, the first-level subfolders are the classes. Every
file that is left out is counted, with the reason.
"""

import gzip
import hashlib
import io
import math
import os
import re
import shlex
import shutil
import sys
import tarfile
import tempfile
import zipfile
import zlib
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple
from urllib.request import urlopen

import numpy as np
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError
from tqdm import tqdm

LARGEST = 2**28  # bytes of a file, unpacked, or of an image, decoded: larger ones are left out
IMAGE_TYPES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp")
OUTPUTS = {"images.npy", "labels.npy", "classes.txt", "test_images.npy", "test_labels.npy"}
OUTPUTS |= {"preview.png"}
LITTER = {".DS_Store", "Thumbs.db", "desktop.ini"}  # what macOS and Windows leave in any folder
TORCHVISION = {"MNIST": "mnist", "FashionMNIST": "fashion-mnist"}  # folder: set
STEPS = 3000  # of training on a small set
ENOUGH = 25_000  # images for the scripts' default options
SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation"}
TURNS = {  # what each EXIF orientation asks for
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# The files of the standard sets. Mirrors serve FILE.gz, which has this sha256.
MNIST = {
    "train-images-idx3-ubyte": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
FASHION_MNIST = {
    "train-images-idx3-ubyte": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "train-labels-idx1-ubyte": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "t10k-images-idx3-ubyte": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "t10k-labels-idx1-ubyte": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
}
CIFAR10 = {
    "cifar-10-binary.tar": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
}
SETS = {"mnist": MNIST, "fashion-mnist": FASHION_MNIST, "cifar10": CIFAR10, "stacked-mnist": MNIST}
MIRRORS = {
    "mnist": [
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ],
    "fashion-mnist": [
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
    ],
    "cifar10": ["https://www.cs.toronto.edu/~kriz/", "https://cave.cs.toronto.edu/kriz/"],
}
CLASSES = {
    "mnist": "0 1 2 3 4 5 6 7 8 9",
    "fashion-mnist": "t-shirt trouser pullover dress coat sandal shirt sneaker bag ankle-boot",
    "cifar10": "airplane automobile bird cat deer dog frog horse ship truck",
    "stacked-mnist": " ".join(f"{number:03}" for number in range(1000)),
}
STACKS = (128_000, 26_000)  # for training and for testing, as many as in VEEGAN and PacGAN


def fetch(name: str, file: str, folder: Path) -> Path:
    """The path of a file in folder or above it, gzipped or not. Downloads it if it is not there."""
    gzipped = folder / f"{file}.gz"
    above = folder.parent  # if --downloads names the folder itself
    for path in (folder / file, gzipped, above / file, above / f"{file}.gz"):
        if path.is_file():
            return path
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{file}.part"
    problems = []
    for mirror in MIRRORS[name]:
        url = f"{mirror}{file}.gz"
        try:
            with (
                urlopen(url, timeout=30) as reply,
                part.open("wb") as output,
                tqdm.wrapattr(output, "write", total=reply.length, desc=url) as output_with_bar,
            ):
                shutil.copyfileobj(reply, output_with_bar)
            if hashlib.sha256(part.read_bytes()).hexdigest() != SETS[name][file]:
                raise ValueError("wrong checksum")
            return part.replace(gzipped)
        except Exception as error:  # try the next mirror
            problems.append(f"{url}: {error}")
    files = ", ".join(f"{each}.gz" for each in SETS[name])
    place = f"Put {files} into {folder}, or name the folder that they are in with --downloads."
    sys.exit(f"Cannot download {name} ({'; '.join(problems)}). {place}")


def read_file(path: Path) -> bytes:
    """The content of a file, unpacked if it is gzipped."""
    open_file = gzip.open if path.suffix == ".gz" else open
    try:
        with open_file(path, "rb") as file:
            return file.read(LARGEST)
    except (OSError, EOFError, zlib.error) as error:
        sys.exit(f"Cannot read {path}: {error}.")


def read_mnist(name: str, folder: Path) -> list[np.ndarray]:
    """Images (N, 1, 28, 28), labels (N,), test images, test labels."""
    arrays = []
    for file in SETS[name]:
        data = np.frombuffer(read_file(fetch(name, file, folder)), np.uint8)
        if "images" in file:
            arrays.append(data[16:].reshape(-1, 1, 28, 28))  # after a header of 16 bytes
        else:
            arrays.append(data[8:])
    return arrays


def read_cifar10(folder: Path) -> list[np.ndarray]:
    """Images (N, 3, 32, 32), labels (N,), test images, test labels."""
    archive = read_file(fetch("cifar10", "cifar-10-binary.tar", folder))
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        names = sorted(name for name in tar.getnames() if name.endswith(".bin"))
        files = [tar.extractfile(name).read() for name in names]
    records = np.frombuffer(b"".join(files), np.uint8).reshape(-1, 3073)  # label, 3 * 1024 pixels
    labels = records[:, 0]
    images = records[:, 1:].reshape(-1, 3, 32, 32)
    train = len(records) // 6 * 5  # the last of the six files is the test set
    return [images[:train], labels[:train], images[train:], labels[train:]]


def stack(images: np.ndarray, labels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (count, 3, 28, 28), whose channels are three random digits, labelled 0 to 999."""
    # RandomState draws the same numbers in every version of NumPy
    chosen = np.random.RandomState(0).randint(len(images), size=(count, 3), dtype=np.int64)
    return images[chosen, 0], labels[chosen] @ [100, 10, 1]


def write_standard_set(name: str, folder: Path, size: int, out: Path) -> str:
    """Writes a standard set to out. Returns a summary of what there is besides the images."""
    if name == "stacked-mnist":
        digits = read_mnist("mnist", folder)
        train_images, train_labels = stack(*digits[:2], STACKS[0])
        test_images, test_labels = stack(*digits[2:], STACKS[1])
    else:
        arrays = read_cifar10(folder) if name == "cifar10" else read_mnist(name, folder)
        train_images, train_labels, test_images, test_labels = arrays
    parts = [("", train_images, train_labels), ("test_", test_images, test_labels)]
    for prefix, images, labels in parts:
        if images.shape[3] == 28 and size == 32:
            images = np.pad(images, [(0, 0), (0, 0), (2, 2), (2, 2)])  # a black border
        shape = (*images.shape[:2], size, size)
        file = out / f"{prefix}images.npy"
        resized = np.lib.format.open_memmap(file, "w+", np.uint8, shape)  # may exceed the memory
        for i, channel in np.ndindex(images.shape[:2]):
            image = Image.fromarray(images[i, channel])
            resized[i, channel] = np.asarray(image.resize((size, size)))
        resized.flush()
        np.save(out / f"{prefix}labels.npy", labels.astype(np.int64))
    classes = CLASSES[name].split()
    (out / "classes.txt").write_text("\n".join(classes) + "\n")
    return f"{len(classes):,} classes, {len(test_labels):,} test images"


def list_folder(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path | OSError]:
    """All files in a folder. Follows links; yields an error for a folder that is not readable."""
    real = folder.resolve()
    if real in above:  # a link to a folder that we are in
        return
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        yield error
        return
    for entry in entries:
        if os.path.isdir(entry):  # noqa: PTH112 - unlike Path.is_dir it never raises
            yield from list_folder(entry, (*above, real))
        else:
            yield entry


def plain_path(name: str) -> str:
    """The path of a file in a .zip, however it is spelled: C:\\a\\.\\b or a//c/../b is a/b."""
    parts = []
    for part in re.sub("^[A-Za-z]:", "", name.replace("\\", "/")).split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def find_images(root: Path | zipfile.ZipFile) -> tuple[dict[str, Callable], Counter]:
    """How to open each image, by its path in root, and how many files are left out for a reason."""
    files = {}
    left_out = Counter()
    if isinstance(root, zipfile.ZipFile):
        for info in root.infolist():
            if not info.is_dir():
                name = plain_path(info.filename)
                left_out["replaced by a later file of the same name"] += name in files
                files[name] = partial(root.open, info)  # as unzip would
    else:
        for path in list_folder(root):
            if isinstance(path, OSError):
                left_out["folder{s} not readable"] += 1
            else:
                files[path.relative_to(root).as_posix()] = partial(path.open, "rb")
    images = {}
    other_types = Counter()
    for name, open_file in sorted(files.items()):
        path = PurePosixPath(name)
        if not name.lower().endswith(IMAGE_TYPES):
            other_types[path.suffix or path.name] += 1
        elif any(part.startswith((".", "__MACOSX")) for part in path.parts):
            left_out["hidden"] += 1
        elif isinstance(root, Path) and not (root / name).is_file():
            left_out["dead link{s} or pipe{s}"] += 1  # reading a pipe would block
        elif path.name == "preview.png" and str(path.with_name("images.npy")) in files:
            left_out["preview{s} of prepared images"] += 1
        else:
            images[name] = open_file
    if other_types:
        most_common = ", ".join(repr(name)[1:-1] for name, _ in other_types.most_common(3))
        left_out[f"of other types ({most_common})"] = other_types.total()
    return images, left_out


class Picture(NamedTuple):
    """An image file as it was read."""

    pixels: np.ndarray | None = None  # uint8 (3, size, size)
    problem: str = ""  # why there are no pixels
    transparent: bool = False
    highest: int = 0  # the largest value in a 16-bit image, else 0


def orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # EXIF data are often broken, and nothing else in them matters
        return 1


def read_image(open_file: Callable[[], BinaryIO], size: int, background: str, bits: int) -> Picture:
    """The centre square, upright. bits: how many bits of a 16-bit image hold data."""
    try:
        with open_file() as file:
            data = file.read(LARGEST)
        if not data:
            return Picture(problem="it is empty")
        if len(data) == LARGEST:
            return Picture(problem=f"it has more than {LARGEST >> 20} MiB")
        image = Image.open(io.BytesIO(data), formats=["PNG", "JPEG", "WEBP", "BMP"])
        # draft() decodes a JPEG at 1/2, 1/4 or 1/8 of its size. A progressive one would still be
        # held whole in memory.
        if "progressive" not in image.info:
            image.draft("RGB", (size, size))
        if 4 * image.width * image.height > LARGEST:  # 4 bytes a pixel
            return Picture(problem=f"it has more than {LARGEST // 4:,} pixels")
        image.load()  # raises what is wrong with the pixels; getexif() could hide it
        turn = TURNS.get(orientation(image))
        highest = 0
        if image.mode.startswith("I"):  # 16 bits, of which the upper 8 that hold data remain
            values = np.asarray(image)
            highest = int(values.max())
            clear = image.info.get("transparency")  # the value of transparent pixels
            image = Image.fromarray((values >> (bits - 8)).clip(0, 255).astype(np.uint8))
            if clear is not None:
                image.putalpha(Image.fromarray((values != clear).astype(np.uint8) * 255))
        transparent = False
        if image.has_transparency_data:
            image = image.convert("RGBA")
            transparent = image.getextrema()[3][0] < 255  # the smallest alpha
            image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
        image = image.convert("RGB")
        if turn is not None:
            image = image.transpose(turn)
        image = ImageOps.fit(image, (size, size))
        pixels = np.asarray(image).transpose(2, 0, 1)
        return Picture(pixels, transparent=transparent, highest=highest)
    except UnidentifiedImageError:
        return Picture(problem="its content is not png, jpeg, webp or bmp")
    except Exception as error:  # Pillow can raise almost any exception on a damaged file
        text = str(error) or type(error).__name__
        return Picture(problem="it is encrypted" if "is encrypted" in text else text)


def read_images(files: Iterable, size: int, background: str, bits: int = 16) -> Iterator[Picture]:
    """Reads images in parallel. Threads are enough: Pillow releases Python's lock."""
    files = list(files)
    read = partial(read_image, size=size, background=background, bits=bits)
    with ThreadPool() as pool:
        for start in range(0, len(files), 256):  # at most 256 are in memory
            yield from pool.map(read, files[start : start + 256])


def plural(count: int, text: str) -> str:
    """3 images for 3 and image{s}."""
    return f"{count:,} {text}".replace("{s}", "" if count == 1 else "s")


def split_path(name: str) -> list[str]:
    # A .zip made on Windows may have been unpacked with backslashes in the names
    # In classes.txt a name is a line
    return name.replace("\\", "/").replace("\n", "\\n").split("/")


def class_names(names: list[str]) -> tuple[list[str], str]:
    """The first-level subfolder of each image, and the folder that these are in.

    There are no classes if an image is in no subfolder.
    """
    folders = [split_path(name)[:-1] for name in names]
    around = []
    # A folder that encloses everything is not a class
    while all(folders) and len({parts[0] for parts in folders}) == 1:
        around.append(folders[0][0])
        folders = [parts[1:] for parts in folders]
    loose = [name for name, parts in zip(names, folders, strict=True) if not parts]
    if loose:
        if len(loose) < len(names):
            print(f"No classes: {loose[0]!r} is beside the subfolders that other images are in.")
        return [], ""
    return [parts[0] for parts in folders], "/".join(around)


def write_own_images(source: Path, size: int, background: str, out: Path) -> str:
    """Writes a folder or .zip of images to out. Returns a summary of the classes."""
    root = source if source.is_dir() else zipfile.ZipFile(source)
    images, left_out = find_images(root)
    pictures = read_images(images.values(), size, background)
    readable = []
    highest = {}  # the largest value of each 16-bit image, by its place in the array
    transparent = 0
    # How many images there are, and whether all are grey, is known only at the end
    with tempfile.TemporaryFile(dir=out) as file:
        for name, picture in zip(images, tqdm(pictures, total=len(images)), strict=True):
            if picture.problem:
                tqdm.write(f"Left out {name!r}: {picture.problem}.", file=sys.stderr)
                left_out["unreadable"] += 1
                continue
            file.write(picture.pixels.tobytes())
            if picture.highest:
                highest[len(readable)] = picture.highest
            readable.append(name)
            transparent += picture.transparent
        reasons = [plural(count, reason) for reason, count in left_out.items() if count]
        if reasons:
            print("Left out:", ", ".join(reasons))
        if not readable:
            sys.exit(f"{source} holds no png, jpeg, webp or bmp image that can be read.")
        file.flush()
        pixels = np.memmap(file, np.uint8, "r+").reshape(-1, 3, size, size)
        if highest:
            # Cameras and scanners often use 10 or 12 of the 16 bits
            most = max(highest.values())
            bits = next(bits for bits in (8, 10, 12, 16) if most < 2**bits)
            files = [images[readable[i]] for i in highest]
            for i, picture in zip(highest, read_images(files, size, background, bits), strict=True):
                pixels[i] = picture.pixels
        # Lossy files may have a shade of colour that nobody sees
        grey = all(np.ptp(image, axis=0).max() <= 3 for image in pixels)
        np.save(out / "images.npy", pixels[:, 1:2] if grey else pixels)
    if transparent:
        print(f"Transparent images ({transparent}) have a {background} background (--background).")
    names, around = class_names(readable)
    if not names:
        return "no classes"
    classes = sorted(set(names))
    label = {name: i for i, name in enumerate(classes)}
    np.save(out / "labels.npy", np.array([label[name] for name in names], np.int64))
    (out / "classes.txt").write_text("\n".join(classes) + "\n", "utf-8", errors="replace")
    splits = [name for name in classes if name.lower() in SPLITS]
    if splits == classes:
        print(f"The classes are {' and '.join(classes)}. If these are splits of one set, take one:")
        train = max(splits, key=lambda name: name.lower().startswith("train"))
        print(f"  python prepare.py {shlex.quote(str(source / around / train))}")
    if source.is_file() and not "".join(classes).isascii():
        print("If names in classes.txt are garbled, unpack the .zip yourself and give the folder.")
    return f"{len(classes)} classes"


def add_mirrored(folder: Path) -> None:
    """Adds the mirror image of each training image."""
    images = np.load(folder / "images.npy", mmap_mode="r")
    count, *shape = images.shape
    part = folder / "part.npy"
    both = np.lib.format.open_memmap(part, "w+", np.uint8, (2 * count, *shape))
    both[:count] = images
    both[count:] = images[..., ::-1]
    both.flush()
    del images, both  # Windows cannot replace a file that is mapped
    part.replace(folder / "images.npy")
    if (folder / "labels.npy").exists():
        np.save(folder / "labels.npy", np.tile(np.load(folder / "labels.npy"), 2))


def save_preview(folder: Path) -> None:
    """preview.png: up to 64 training images, evenly spread, as they were prepared."""
    images = np.load(folder / "images.npy", mmap_mode="r")
    count, channels, size, _ = images.shape
    columns = 8 if size <= 256 else 4
    chosen = images[np.linspace(0, count - 1, columns**2).astype(int)]
    sheet = chosen.reshape(columns, columns, channels, size, size)  # row, column, C, y, x
    sheet = sheet.transpose(0, 3, 1, 4, 2).reshape(columns * size, columns * size, channels)
    Image.fromarray(sheet.squeeze(2) if channels == 1 else sheet).save(folder / "preview.png")


def training_command(out: Path, count: int, size: int) -> str:
    """The command that trains on a folder, with an estimate of what it takes.

    The defaults, 25 epochs of batches of 128, are for large sets. A small set gets smaller batches,
    and as many steps as dcgan.py needed for real photos (docs/usage.md).
    """
    options = f"--data {shlex.quote(str(out))}"
    images = 25 * count  # that the run takes in all
    if count < ENOUGH:
        batch_size = next((batch for batch in (64, 32, 16) if count >= 16 * batch), 16)
        while batch_size > count:
            batch_size //= 2
        options += f" --batch-size {batch_size} --steps {STEPS}"
        images = batch_size * STEPS
    layers = math.log2(size) - 2
    if not layers.is_integer():
        return f"python vanilla_gan.py {options}\nThe other scripts take powers of two, not {size}."
    # Measured at 32x32 on two cores of a Xeon. Each layer costs as much as pixels in the image
    minutes = math.ceil(images * 0.0023 * (size / 32) ** 2 * layers / 3 / 60)
    takes = plural(minutes, "minute{s} on two CPU cores; a GPU is far faster.")
    return f"python dcgan.py {options}\nThat takes about {takes}"


def torchvision_set(folder: Path) -> str | None:
    """The name of the standard set if this is torchvision's folder of its files, MNIST/raw."""
    folder = folder.absolute()
    name = TORCHVISION.get(folder.parent.name if folder.name == "raw" else folder.name)
    if name and all((folder / file).is_file() for file in SETS[name]):
        return name
    return None


def colour(text: str) -> str:
    ImageColor.getrgb(text)  # a ValueError if Pillow does not know it
    return text


def what_is_wrong(source: Path) -> str | None:
    """Why a source that is no standard set cannot be used. None if it can."""
    if source.is_dir():
        return None
    if not source.exists():
        return f"{source} does not exist, and is none of {', '.join(SETS)}"
    try:
        zipfile.ZipFile(source).close()
    except zipfile.BadZipFile:
        if source.name.lower().endswith(IMAGE_TYPES):
            return f"{source} is a single image. Name the folder that it is in"
        if source.suffix.lower() == ".zip":
            return f"{source} cannot be opened as a .zip. It may be damaged or incomplete"
        return f"{source} is neither a folder nor a .zip. Unpack other archives first"
    return None


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("source", help=f"{', '.join(SETS)}, a folder or a .zip of images")
    add("--image-size", type=int, default=32, metavar="S", help="8 to 1024 pixels (32)")
    add("--mirror", action="store_true", help="add each image's mirror image, for small sets")
    add("--background", type=colour, default="white", help="of transparent images (white)")
    add("--out", type=Path, metavar="DIR", help="folder to write (data/<name>-<S>)")
    add("--downloads", type=Path, default="data/downloads", metavar="DIR", help="(data/downloads)")
    add("--force", action="store_true", help="replace the folder")
    args = parser.parse_args(argv)
    Image.MAX_IMAGE_PIXELS = None  # Pillow's limit; ours is LARGEST
    source = Path(args.source)
    size = args.image_size
    if not args.source:
        parser.error("the source is empty: name a folder or a .zip")
    if not 8 <= size <= 1024:
        parser.error(f"--image-size must be from 8 to 1024, not {size}")
    if args.source in SETS:
        name = standard_set = args.source
        files = args.downloads / name.removeprefix("stacked-")
        if source.is_dir() and find_images(source)[0]:
            parser.error(f"{name} is a standard set, and a folder here: ./{name} means the folder")
    else:
        problem = what_is_wrong(source)
        if problem:
            parser.error(problem)
        standard_set = torchvision_set(source)
        files = source
        name = standard_set or (source.absolute().name if source.is_dir() else source.stem)
    out = args.out or Path("data", f"{name}-{size}")
    if out.is_symlink():
        out = out.resolve()
    if not out.name:
        parser.error("--out must name a folder")
    part = out.with_name(f".{out.name}.part")
    old = out.with_name(f".{out.name}.old")
    if old.exists() and not out.exists():  # killed between the two renames below
        old.rename(out)
    if out.is_file():
        parser.error(f"{out} is a file, not a folder")
    if out.exists():
        found = {file.name for file in out.iterdir()} - LITTER
        if found - OUTPUTS:
            other = min(found - OUTPUTS)
            parser.error(f"{out} holds {other!r}, which is not prepare.py's: --force will not help")
        if found and not args.force:
            parser.error(f"{out} exists. --force replaces it")
    try:
        shutil.rmtree(part, ignore_errors=True)  # a killed run may have left them
        shutil.rmtree(old, ignore_errors=True)
        part.mkdir(parents=True)
        if standard_set:
            details = write_standard_set(standard_set, files, size, part)
        else:
            details = write_own_images(source, size, args.background, part)
        if args.mirror:
            add_mirrored(part)
        save_preview(part)
        if out.exists():
            out.rename(old)
        part.rename(out)
    except KeyboardInterrupt:
        print("Interrupted; no data set was written.", file=sys.stderr)
        sys.exit(130)
    finally:
        if old.exists() and not out.exists():
            old.rename(out)
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    count, *shape = np.load(out / "images.npy", mmap_mode="r").shape
    print(f"{out}: {plural(count, 'image{s}')}, {' x '.join(map(str, shape))}, {details}")
    print(f"{out / 'preview.png'} shows some of them.")
    if count < 1000:
        hint = "" if args.mirror else " --mirror doubles their number."
        print(f"With fewer than about 1,000 images D memorizes them.{hint}")
    command = training_command(out, count, size)
    print(f"Train on it: {command}")
    if (out / "classes.txt").exists() and "dcgan.py" in command:
        print("It has classes: with cgan.py in place of dcgan.py you can ask for one.")


if __name__ == "__main__":
    main()
