# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy", "pillow>=10.1", "tqdm"]
# ///
"""Converts a standard set, or your own images, to a folder of arrays that the scripts train on.

    python prepare.py mnist                        or fashion-mnist, cifar10; writes data/mnist-32
    python prepare.py photos --image-size 64       a folder of images; writes data/photos-64
    python prepare.py photos.zip --out data/mine   a .zip of images; writes data/mine
    python prepare.py photos --mirror              and the mirror image of each: twice as many

images.npy is uint8 (N, C, S, S). Where there are classes, labels.npy is int64 (N,) and classes.txt
has one name per line. The standard sets also have test_images.npy and test_labels.npy.

Your own images may be png, jpeg, webp or bmp. They are cropped to the central square, in RGB unless
all are grey. If every image is in a subfolder, the first-level subfolders are the classes. Nothing
is passed over in silence: the last lines count what was left out, and why.
"""

import gzip
import hashlib
import io
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

LARGEST = 2**28  # bytes: files that are larger when unpacked, or images when decoded, are not read
IMAGE_TYPES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp")
OUTPUTS = {"images.npy", "labels.npy", "classes.txt", "test_images.npy", "test_labels.npy"}
LITTER = {".DS_Store", "Thumbs.db", "desktop.ini"}  # what macOS and Windows leave in any folder
PARTS_OF_A_SET = {"train", "training", "test", "testing", "val", "valid", "validation"}
TURNS = {  # that EXIF's orientation asks for
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
SETS = {"mnist": MNIST, "fashion-mnist": FASHION_MNIST, "cifar10": CIFAR10}
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
}


def fetch(name: str, file: str, folder: Path) -> Path:
    """The path of a file in folder, gzipped or not. If it is not there, downloads it."""
    gzipped = folder / f"{file}.gz"
    for path in (folder / file, gzipped):
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
    files = ", ".join(f"{file}.gz" for file in SETS[name])
    sys.exit(f"Cannot download {name} ({'; '.join(problems)}). Put {files} into {folder}.")


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


def write_standard_set(name: str, folder: Path, size: int, out: Path) -> str:
    """Writes a standard set to out. Returns a summary of what there is besides the images."""
    arrays = read_cifar10(folder) if name == "cifar10" else read_mnist(name, folder)
    train_images, train_labels, test_images, test_labels = arrays
    parts = [("", train_images, train_labels), ("test_", test_images, test_labels)]
    for prefix, images, labels in parts:
        if images.shape[3] == 28 and size == 32:
            images = np.pad(images, [(0, 0), (0, 0), (2, 2), (2, 2)])  # a black border
        resized = np.empty((*images.shape[:2], size, size), np.uint8)
        for i, channel in np.ndindex(images.shape[:2]):
            image = Image.fromarray(images[i, channel])
            resized[i, channel] = np.asarray(image.resize((size, size)))
        np.save(out / f"{prefix}images.npy", resized)
        np.save(out / f"{prefix}labels.npy", labels.astype(np.int64))
    (out / "classes.txt").write_text(CLASSES[name].replace(" ", "\n") + "\n")
    return f"10 classes, {len(test_labels):,} test images"


class Source(NamedTuple):
    """The images of a folder or .zip, and what else is in it."""

    images: dict[str, Callable[[], BinaryIO]]  # path in the source, with /: how to open the file
    left_out: Counter  # reason: number


def list_folder(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path | OSError]:
    """All files in a folder, through links, too; an error for each folder that is not readable."""
    real = folder.resolve()
    if real in above:  # a link that leads back
        return
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        yield error
        return
    for entry in entries:
        if entry.is_dir():
            yield from list_folder(entry, (*above, real))
        else:
            yield entry


def plain_path(name: str) -> str:
    """The path of a file in a .zip, however it is spelled: C:\\a\\.\\b or a//c/../b is a/b."""
    parts = []
    for part in name.replace("\\", "/").split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in ("", ".") and not part.endswith(":"):  # C: is a drive
            parts.append(part)
    return "/".join(parts)


def find_images(root: Path | zipfile.ZipFile) -> Source:
    files = {}
    left_out = Counter()
    other_types = Counter()
    if isinstance(root, zipfile.ZipFile):
        for info in root.infolist():  # of a name that comes twice, the last counts, as in unzip
            if not info.is_dir():
                files[plain_path(info.filename)] = partial(root.open, info)
    else:
        for path in list_folder(root):
            if isinstance(path, OSError):
                left_out["folders not readable"] += 1
            else:
                files[path.relative_to(root).as_posix()] = partial(path.open, "rb")
    images = {}
    for name, open_file in sorted(files.items()):
        path = PurePosixPath(name)
        if not name.lower().endswith(IMAGE_TYPES):
            other_types[path.suffix or path.name] += 1
        elif any(part.startswith((".", "__MACOSX")) for part in path.parts):
            left_out["hidden"] += 1
        elif isinstance(root, Path) and not (root / name).is_file():
            left_out["not regular files"] += 1  # a link to nowhere, or a pipe, which would block
        else:
            images[name] = open_file
    if other_types:
        most_common = ", ".join(name for name, _ in other_types.most_common(3))
        left_out[f"of other types ({most_common})"] = other_types.total()
    return Source(images, left_out)


class Picture(NamedTuple):
    """An image file as it was read."""

    pixels: np.ndarray | None = None  # uint8 (3, size, size)
    problem: str = ""  # why there are no pixels
    transparent: bool = False
    highest: int = 0  # value of a pixel, if they have 16 bits


def orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # EXIF data are often broken, and nothing else in them matters
        return 1


def read_image(open_file: Callable[[], BinaryIO], size: int, background: str, bits: int) -> Picture:
    """The centre square, upright. bits: how many of 16 are used."""
    try:
        with open_file() as file:
            data = file.read(LARGEST)
        if len(data) == LARGEST:
            return Picture(problem=f"it has more than {LARGEST >> 20} MiB")
        image = Image.open(io.BytesIO(data), formats=["PNG", "JPEG", "WEBP", "BMP"])
        if "progressive" not in image.info:  # such a JPEG is held whole while it is decoded
            image.draft("RGB", (size, size))  # another is decoded at 1/2, 1/4 or 1/8 of its size
        if 4 * image.width * image.height > LARGEST:  # 4 bytes a pixel
            return Picture(problem=f"it has more than {LARGEST // 4:,} pixels")
        turn = TURNS.get(orientation(image))
        highest = 0
        if image.mode.startswith("I"):  # 16 bits: the upper 8 of those that are used remain
            values = np.asarray(image)
            highest = int(values.max())
            image = Image.fromarray((values >> (bits - 8)).clip(0, 255).astype(np.uint8))
        transparent = image.has_transparency_data
        if transparent:
            image = image.convert("RGBA")
            below = Image.new("RGBA", image.size, background)
            transparent = image.getextrema()[3][0] < 255
            image = Image.alpha_composite(below, image)
        image = image.convert("RGB")
        if turn is not None:
            image = image.transpose(turn)
        image = ImageOps.fit(image, (size, size))
        pixels = np.asarray(image).transpose(2, 0, 1)
        return Picture(pixels, transparent=transparent, highest=highest)
    except UnidentifiedImageError:
        return Picture(problem="its content is not png, jpeg, webp or bmp")
    except Exception as error:  # Pillow can raise almost any exception on a damaged file
        return Picture(problem=str(error) or type(error).__name__)


def read_images(files: Iterable, size: int, background: str, bits: int = 16) -> Iterator[Picture]:
    """Reads images in parallel. Threads are enough: Pillow releases Python's lock."""
    files = list(files)
    read = partial(read_image, size=size, background=background, bits=bits)
    with ThreadPool() as pool:
        for start in range(0, len(files), 256):  # at most 256 are in memory
            yield from pool.map(read, files[start : start + 256])


def class_names(names: list[str]) -> list[str]:
    """The first-level subfolder of each image. Empty if an image is in none."""
    # A .zip made on Windows may have been unpacked with backslashes in the names
    folders = [name.replace("\\", "/").split("/")[:-1] for name in names]
    # A folder that encloses everything is not a class
    while all(folders) and len({parts[0] for parts in folders}) == 1:
        folders = [parts[1:] for parts in folders]
    if not all(folders):
        loose = [name for name, parts in zip(names, folders, strict=True) if not parts]
        if len(loose) < len(names):
            print(f"No classes: {loose[0]!r} is in no subfolder, others are.")
        return []
    return [parts[0] for parts in folders]


def write_own_images(source: Path, size: int, background: str, out: Path) -> str:
    """Writes a folder or .zip of images to out. Returns a summary of the classes."""
    root = source if source.is_dir() else zipfile.ZipFile(source)
    images, left_out = find_images(root)
    pictures = read_images(images.values(), size, background)
    readable = []
    highest = {}  # value in each image of 16 bits, by its place
    transparent = 0
    # Their number, and whether all are grey, is known only when all have been read
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
        if left_out:
            print("Left out:", ", ".join(f"{n} {reason}" for reason, n in left_out.items()))
        if not readable:
            sys.exit(f"{source} holds no png, jpeg, webp or bmp image that can be read.")
        file.flush()
        pixels = np.memmap(file, np.uint8, "r+").reshape(-1, 3, size, size)
        bits = next(bits for bits in (8, 10, 12, 16) if max(highest.values(), default=0) < 2**bits)
        if highest and bits < 16:  # read again, now that it is known how many are used
            files = [images[readable[i]] for i in highest]
            again = read_images(files, size, background, bits)
            for i, picture in zip(highest, again, strict=True):
                pixels[i] = picture.pixels
        # Lossy files may have a shade of colour that nobody sees
        grey = all(np.ptp(image, axis=0).max() <= 3 for image in pixels)
        np.save(out / "images.npy", pixels[:, 1:2] if grey else pixels)
    if transparent:
        print(
            f"{transparent} transparent images now have a {background} background (--background)."
        )
    classes = class_names(readable)
    if not classes:
        return "no classes"
    unique, labels = np.unique(classes, return_inverse=True)
    np.save(out / "labels.npy", labels.astype(np.int64))
    (out / "classes.txt").write_text("\n".join(unique) + "\n", "utf-8", errors="replace")
    warn_of_classes(source, unique.tolist())
    return f"{len(unique)} classes"


def warn_of_classes(source: Path, classes: list[str]) -> None:
    """Says what may be wrong with the names of the classes."""
    if all(name.lower() in PARTS_OF_A_SET for name in classes):
        print(f"The classes are {' and '.join(classes)}. If these are parts of a set, take one:")
        print(f"  python prepare.py {shlex.quote(str(source.with_suffix('') / classes[-1]))}")
    if source.is_file() and not "".join(classes).isascii():
        print("If names in classes.txt are garbled, unpack the .zip yourself and give the folder.")


def add_mirrored(folder: Path) -> None:
    """Adds the mirror image of each training image."""
    images = np.load(folder / "images.npy", mmap_mode="r")
    count, *shape = images.shape
    part = folder / "part.npy"
    both = np.lib.format.open_memmap(part, "w+", np.uint8, (2 * count, *shape))
    both[:count] = images
    both[count:] = images[..., ::-1]
    both.flush()
    part.replace(folder / "images.npy")
    if (folder / "labels.npy").exists():
        np.save(folder / "labels.npy", np.tile(np.load(folder / "labels.npy"), 2))


def name_of_set(folder: Path) -> str | None:
    """The standard set whose files are in a folder, such as torchvision's MNIST/raw."""
    for name in ("cifar10", "fashion-mnist" if "fashion" in str(folder).lower() else "mnist"):
        if all(
            (folder / file).is_file() or (folder / f"{file}.gz").is_file() for file in SETS[name]
        ):
            return name
    return None


def image_size(text: str) -> int:
    if not 8 <= int(text) <= 1024:
        raise ValueError
    return int(text)


def colour(text: str) -> str:
    ImageColor.getrgb(text)  # a ValueError if Pillow does not know it
    return text


def what_is_wrong(source: Path) -> str:
    """Why a source that is no standard set, no folder and no readable .zip cannot be taken."""
    if not source.exists():
        return f"{source} does not exist, and is none of {', '.join(SETS)}"
    if source.suffix.lower() == ".zip":
        return f"{source} is damaged or incomplete: it is no .zip that can be opened"
    return f"{source} is no folder and no .zip. Unpack an archive of another kind first"


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("source", help=f"{', '.join(SETS)}, a folder or a .zip of images")
    add("--image-size", type=image_size, default=32, metavar="S", help="8 to 1024 pixels (32)")
    add("--mirror", action="store_true", help="add the mirror image of each, for small sets")
    add("--background", type=colour, default="white", help="of transparent images (white)")
    add("--out", type=Path, metavar="DIR", help="folder to write (data/<name>-<S>)")
    add("--downloads", type=Path, default="data/downloads", metavar="DIR", help="(data/downloads)")
    add("--force", action="store_true", help="replace the folder")
    args = parser.parse_args(argv)
    source = Path(args.source)
    set_name = args.source if args.source in SETS else None
    files = args.downloads / args.source
    if set_name and any(find_images(source).images if source.is_dir() else []):
        parser.error(f"{source} is a standard set and a folder here; ./{source} is the folder")
    if source.is_dir() and not set_name:
        set_name = name_of_set(source)
        files = source
    if not set_name and not source.is_dir() and not zipfile.is_zipfile(source):
        parser.error(what_is_wrong(source))
    name = set_name or source.absolute().name
    if source.is_file():
        name = source.stem
    out = args.out or Path("data", f"{name}-{args.image_size}")
    if out.exists():
        others = {file.name for file in out.glob("*")} - OUTPUTS - LITTER
        if others or not args.force or not out.is_dir():
            parser.error(f"{out} exists; --force replaces it if it holds nothing but such arrays")
    part = out.with_name(f".{out.name}.part")
    old = out.with_name(f".{out.name}.old")
    try:
        shutil.rmtree(part, ignore_errors=True)  # a killed run may have left it
        part.mkdir(parents=True)
        if set_name:
            details = write_standard_set(set_name, files, args.image_size, part)
        else:
            details = write_own_images(source, args.image_size, args.background, part)
        if args.mirror:
            add_mirrored(part)
        if out.exists():
            out.rename(old)
        part.rename(out)
    except KeyboardInterrupt:
        print("Interrupted; no data set was written.", file=sys.stderr)
        sys.exit(130)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    count, *shape = np.load(out / "images.npy", mmap_mode="r").shape
    print(f"{out}: {count:,} images, {' x '.join(map(str, shape))}, {details}")
    if count < 1000:
        print("Below about 1,000 images, D learns them by heart. --mirror doubles their number.")
    powers = (8, 16, 32, 64, 128, 256, 512, 1024)
    script = "dcgan.py" if args.image_size in powers else "vanilla_gan.py"
    print(f"Train on it: python {script} --data {shlex.quote(str(out))}")


if __name__ == "__main__":
    main()
