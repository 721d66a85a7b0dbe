# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy", "pillow>=10.1", "tqdm"]
# ///
"""Converts a standard set, or your own images, to a folder of arrays that the scripts train on.

    python prepare.py mnist                        or fashion-mnist, cifar10; writes data/mnist-32
    python prepare.py photos --image-size 64       a folder of images; writes data/photos-64
    python prepare.py photos.zip --out data/mine   a .zip of images; writes data/mine

images.npy is uint8 (N, C, S, S). Where there are classes, labels.npy is int64 (N,) and classes.txt
has one name per line. The standard sets also have test_images.npy and test_labels.npy.

Your own images may be png, jpeg, webp or bmp. They are cropped to the central square, in RGB unless
all are grey. If every image is in a subfolder, the first-level subfolders are the classes.
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
from collections.abc import Iterator
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from urllib.request import urlopen

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

LARGEST = 2**28  # bytes: files that are larger when unpacked, or images when decoded, are not read
IMAGE_TYPES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp")
OUTPUTS = {"images.npy", "labels.npy", "classes.txt", "test_images.npy", "test_labels.npy"}

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


def find_images(root: Path | zipfile.Path) -> list[str]:
    """The names of all images in a folder or .zip that are not hidden."""
    if isinstance(root, zipfile.Path):
        names = root.root.namelist()  # root.root is the ZipFile
    else:
        names = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
    images = []
    for name in sorted(set(names)):  # a .zip may have a name twice
        hidden = any(part.startswith((".", "__MACOSX")) for part in Path(name).parts)
        if name.lower().endswith(IMAGE_TYPES) and not hidden:
            images.append(name)
    return images


def read_image(size: int, path: Path | zipfile.Path) -> np.ndarray | None:
    """The centre square, upright, uint8 (3, size, size). None if the file cannot be read."""
    try:
        with path.open("rb") as file:
            data = io.BytesIO(file.read(LARGEST))
        image = Image.open(data, formats=["PNG", "JPEG", "WEBP", "BMP"])
        if 4 * image.width * image.height > LARGEST:  # 4 bytes per pixel
            return None
        image.draft("RGB", (size, size))  # decodes a large JPEG at 1/2, 1/4 or 1/8 of its size
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I"):  # 16 bits per pixel: the upper 8 remain
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        image = ImageOps.fit(image.convert("RGB"), (size, size))
        return np.asarray(image).transpose(2, 0, 1)
    except Exception:  # Pillow can raise almost any exception on a damaged file
        return None


def read_images(paths: list, size: int) -> Iterator[np.ndarray | None]:
    """Reads images in parallel. Threads are enough: Pillow releases Python's lock."""
    with ThreadPool() as pool:
        for start in range(0, len(paths), 256):  # at most 256 are in memory
            batch = paths[start : start + 256]
            yield from pool.map(partial(read_image, size), batch)


def class_names(names: list[str]) -> list[str]:
    """The first-level subfolder of each image. Empty if an image is in none."""
    # A .zip made on Windows may have backslashes
    folders = [name.replace("\\", "/").split("/")[:-1] for name in names]
    # A folder that encloses everything is not a class
    while all(folders) and len({parts[0] for parts in folders}) == 1:
        folders = [parts[1:] for parts in folders]
    if not all(folders):
        return []
    return [parts[0] for parts in folders]


def write_own_images(source: Path, size: int, out: Path) -> str:
    """Writes a folder or .zip of images to out. Returns a summary of the classes."""
    root = source if source.is_dir() else zipfile.Path(source)
    names = find_images(root)
    images = tqdm(read_images([root / name for name in names], size), total=len(names))
    readable = []
    # Their number, and whether all are grey, is known only when all have been read
    with tempfile.TemporaryFile(dir=out) as file:
        for name, image in zip(names, images, strict=True):
            if image is None:
                tqdm.write(f"Left out {name!r}: it cannot be read.", file=sys.stderr)
            else:
                file.write(image.tobytes())
                readable.append(name)
        if not readable:
            sys.exit(f"{source} holds no png, jpeg, webp or bmp image that can be read.")
        file.flush()
        pixels = np.memmap(file, np.uint8, "r").reshape(-1, 3, size, size)
        grey = all((image == image[0]).all() for image in pixels)
        np.save(out / "images.npy", pixels[:, :1] if grey else pixels)
    classes = class_names(readable)
    if not classes:
        return "no classes"
    unique, labels = np.unique(classes, return_inverse=True)
    np.save(out / "labels.npy", labels.astype(np.int64))
    (out / "classes.txt").write_text("\n".join(unique) + "\n", "utf-8", errors="replace")
    return f"{len(unique)} classes"


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("source", help=f"{', '.join(SETS)}, a folder or a .zip of images")
    add("--image-size", type=int, default=32, metavar="S", help="side in pixels (32)")
    add("--out", type=Path, metavar="DIR", help="folder to write (data/<name>-<S>)")
    add("--downloads", type=Path, default="data/downloads", metavar="DIR", help="(data/downloads)")
    add("--force", action="store_true", help="replace the folder")
    args = parser.parse_args(argv)
    source = Path(args.source)
    size = args.image_size
    out = args.out or Path("data", f"{source.absolute().stem}-{size}")
    if not 8 <= size <= 1024:
        parser.error(f"--image-size must be from 8 to 1024, not {size}")
    if args.source not in SETS and not source.is_dir() and not zipfile.is_zipfile(source):
        parser.error(f"{source} is no folder, no .zip and none of {', '.join(SETS)}")
    if out.exists():
        others = {file.name for file in out.glob("*")} - OUTPUTS
        if others or not args.force or not out.is_dir():
            parser.error(f"{out} exists; --force replaces it if it holds nothing but such arrays")
    part = out.with_name(f".{out.name}.part")
    old = out.with_name(f".{out.name}.old")
    try:
        shutil.rmtree(part, ignore_errors=True)  # a killed run may have left it
        part.mkdir(parents=True)
        if args.source in SETS:
            details = write_standard_set(args.source, args.downloads / args.source, size, part)
        else:
            details = write_own_images(source, size, part)
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
    script = "dcgan.py" if size in (8, 16, 32, 64, 128, 256, 512, 1024) else "vanilla_gan.py"
    print(f"Train on it: python {script} --data {shlex.quote(str(out))}")


if __name__ == "__main__":
    main()
