# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy", "pillow>=10.1", "tqdm"]  # no torch: only training needs it
# ///
"""Turns a standard set, or your own images, into a folder of arrays that the scripts train on.

    python prepare.py mnist                          or fashion-mnist, cifar10: downloaded once, to data/mnist-32
    python prepare.py photos --image-size 64         a folder of png, jpeg, webp or bmp images, to data/photos-64
    python prepare.py photos.zip --out data/mine     the same in a .zip

images.npy is uint8 (N, C, S, S). Sets with classes have labels.npy, int64 (N,), and classes.txt, one name a line; some
have test_images.npy and test_labels.npy. Of your own images the centre square is taken, in RGB unless all are grey; if
each lies in a subfolder, the first-level subfolders are the classes.
"""

import contextlib
import gzip
import hashlib
import io
import math
import os
import shlex
import shutil
import sys
import tarfile
import warnings
import zipfile
import zlib
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import IO, NoReturn
from urllib.request import Request, urlopen

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

LARGEST = 2**28  # bytes of a file, unpacked, and of an image in memory: damaged or hostile ones end there
CIFAR10_FILES = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]  # in the archive
DAMAGE = (ValueError, EOFError, NotImplementedError, gzip.BadGzipFile, zlib.error, tarfile.TarError, zipfile.BadZipFile)
OUTPUT = {"images.npy", "labels.npy", "classes.txt", "test_images.npy", "test_labels.npy"}
SETS = {  # their mirrors, classes and files, with the sha256 of each: images, labels, then those of the test
    "mnist": {
        "mirrors": "https://ossci-datasets.s3.amazonaws.com/mnist/ https://storage.googleapis.com/cvdf-datasets/mnist/",
        "classes": "0 1 2 3 4 5 6 7 8 9",
        "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    },
    "fashion-mnist": {
        "mirrors": "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/ "
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
        "classes": "t-shirt trouser pullover dress coat sandal shirt sneaker bag ankle-boot",
        "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    },
    "cifar10": {
        "mirrors": "https://www.cs.toronto.edu/~kriz/ https://cave.cs.toronto.edu/kriz/",
        "classes": "airplane automobile bird cat deer dog frog horse ship truck",
        "cifar-10-binary.tar.gz": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    },
}


def fail(message: str, code: int = 2) -> NoReturn:
    """Ends the program with one line: code 2 for bad usage or bad input, 1 for output that cannot be written."""
    tqdm.write(f"prepare.py: error: {' '.join(message.split())}", file=sys.stderr)  # not behind a progress bar
    raise SystemExit(code)


def fetch(name: str, file: str, folder: Path) -> Path:
    """A file of a standard set: the one in folder, gzipped or not, else from the first mirror that serves it whole."""
    for path in (folder / file.removesuffix(".gz"), folder / file):
        if path.is_file():
            return path
    problems = []
    for mirror in SETS[name]["mirrors"].split():
        try:
            data, request = bytearray(), Request(mirror + file, headers={"User-Agent": "prepare.py"})
            with urlopen(request, timeout=30) as reply, tqdm(None, file, reply.length, unit="B", unit_scale=1) as bar:
                while len(data) <= LARGEST and (chunk := reply.read1(2**16)):
                    data += chunk
                    bar.update(len(chunk))
            if reply.url.startswith("https://") and hashlib.sha256(data).hexdigest() == SETS[name][file]:
                break
            problems.append(f"{reply.url} is not https, or not the file")
        except Exception as error:  # whatever it is, the next mirror may do better
            problems.append(f"{mirror}: {error}")
    else:
        fail(f"cannot download {name} ({'; '.join(problems)}); put {', '.join([*SETS[name]][2:])} into {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{file}.{os.getpid()}.part"
    try:
        part.write_bytes(data)
        return part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def read_file(path: Path) -> bytes:
    """A file's content, unpacked if it is gzipped, up to LARGEST bytes."""
    with path.open("rb") as file:
        return (gzip.open(file) if file.peek(2)[:2] == b"\x1f\x8b" else file).read(LARGEST)


def read_idx(path: Path, dims: int) -> np.ndarray:
    """Reads an IDX file of bytes with so many dimensions, gzipped or not. ValueError if it is anything else."""
    data = read_file(path)
    magic, *shape = (int.from_bytes(data[i : i + 4], "big") for i in range(0, 4 + 4 * dims, 4))
    if magic != 0x800 + dims or len(data) != 4 + 4 * dims + math.prod(shape):
        raise ValueError(f"{path} is not a whole IDX file")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dims).reshape(shape)


def read_cifar10(folder: Path) -> list[bytes]:
    """The contents of CIFAR10_FILES: unpacked anywhere below folder, else in the archive. ValueError if one lacks."""
    paths = {path.name: path for path in folder.rglob("*.bin") if path.is_file()}
    if paths.keys() >= {*CIFAR10_FILES}:
        return [read_file(paths[file]) for file in CIFAR10_FILES]
    archive = io.BytesIO(read_file(fetch("cifar10", "cifar-10-binary.tar.gz", folder)))
    with tarfile.open(fileobj=archive, mode="r:") as tar:  # nothing of it is unpacked on the disk
        members = {Path(member.name).name: member for member in tar if member.isreg() and not member.issparse()}
        if not members.keys() >= {*CIFAR10_FILES}:
            raise ValueError(f"its archive does not hold all of {', '.join(CIFAR10_FILES)}")
        return [tar.extractfile(members[file]).read() for file in CIFAR10_FILES]


def find_images(path: Path) -> tuple[list[str], Callable[[str], IO[bytes]]]:
    """The sorted names of the images in a folder or .zip, with / between their parts, and what opens one."""
    if path.is_dir():
        names = [file.relative_to(path).as_posix() for file in path.rglob("*.*") if file.is_file()]
        open_file = lambda name: (path / name).open("rb")  # noqa: E731
    else:
        archive = zipfile.ZipFile(path)
        names, open_file = archive.namelist(), archive.open
        if {info.compress_type for info in archive.infolist()} - {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            raise ValueError("its compression is not zip's usual one, deflate")  # of others, read(LARGEST) unpacks more
    names = {name for name in names if name.lower().endswith((".png", ".jpg", ".jpeg", ".webp", ".bmp"))}
    return sorted(n for n in names if not any(part.startswith((".", "__MACOSX")) for part in n.split("/"))), open_file


def class_names(names: list[str]) -> list[str]:
    """For each image its class, the first-level subfolder; [] if one is outside. ValueError if its name is odd."""
    folders = [[folder for folder in name.split("/")[:-1] if folder] for name in names]
    while all(folders) and len({parts[0] for parts in folders}) == 1:
        folders = [parts[1:] for parts in folders]  # one folder around all the others, as in many a zip, is no class
    classes = [parts[0] for parts in folders] if all(folders) else []
    if odd := [n for n in {*classes} if not n.isprintable() or n != n.strip() or {*n} & {*'\\,:*?"<>|'}]:
        raise ValueError(f"the subfolder {odd[0]!r} is a class and needs a name that any file can have; rename it")
    return classes


def decode(open_file: Callable[[str], IO[bytes]], size: int, name: str) -> np.ndarray | None:
    """An image's centre square as uint8 (C, size, size), C = 1 if it is grey, else 3. None if it cannot be read."""
    with contextlib.suppress(Exception), open_file(name) as file:  # Pillow's readers raise all kinds on a broken file
        image = Image.open(io.BytesIO(file.read(LARGEST)), formats=["PNG", "JPEG", "WEBP", "BMP"])
        if 4 * image.width * image.height > LARGEST:
            return None  # as it would take too much memory
        image.draft("RGB", (size, size))  # a large JPEG is decoded at 1/2, 1/4 or 1/8
        if image.mode.startswith("I"):  # 16 bits a pixel
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        ImageOps.exif_transpose(image, in_place=True)
        pixels = np.ascontiguousarray(np.asarray(ImageOps.fit(image.convert("RGB"), (size, size))).transpose(2, 0, 1))
        return pixels if (pixels != pixels[0]).any() else pixels[:1]
    return None


def decode_all(open_file: Callable[[str], IO[bytes]], size: int, names: list[str]) -> Iterator[np.ndarray | None]:
    """What decode() says of each image, in the order of their names."""
    block = 2**28 // (3 * size**2)  # of 256 MB: no more waits in memory, however slow the disk
    with ThreadPool() as pool, warnings.catch_warnings():  # threads do: Pillow decodes outside Python's lock
        warnings.simplefilter("ignore")  # Pillow's, on odd files that it can read
        for some in (names[start : start + block] for start in range(0, len(names), block)):
            yield from pool.imap(lambda name: decode(open_file, size, name), some, min(64, 1 + len(some) // 64))


def write_images(path: Path, images: Iterable[np.ndarray | None], size: int, total: int) -> list[int]:
    """Appends images uint8 (1 or 3, size, size) to a .npy, RGB if one is. Returns the numbers of all but the None."""
    written, channels, area = [], 1, size**2
    with path.open("w+b", 2**16) as file:  # a memory-mapped one would fill memory, and crash if the disk is full
        file.write(bytes(128))  # for the header, which numpy pads to so many bytes, whatever the shape
        for number, image in enumerate(tqdm(images, path.stem, total)):
            if image is None:
                continue
            if channels < len(image):  # the first in colour: the grey ones before it become RGB, the last one first
                for i in reversed(range(len(written))):
                    file.seek(128 + i * area)
                    plane = file.read(area)
                    file.seek(128 + 3 * i * area)
                    file.write(3 * plane)
                file.seek(0, os.SEEK_END)
                channels = 3
            file.write(image.tobytes() * (channels // len(image)))
            written.append(number)
        file.seek(0)
        shape = len(written), channels, size, size
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return written


@contextlib.contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A new folder, which takes the place of out at the end of the with block, or goes if that raises an exception."""
    prefix = f".{out.name}.part-"
    part, old = (out.with_name(prefix + os.urandom(4).hex()) for _ in range(2))
    out.parent.mkdir(parents=True, exist_ok=True)
    for left in [path for path in out.parent.iterdir() if path.name.startswith(prefix)]:  # by a run that was killed
        shutil.rmtree(left.rename(old), ignore_errors=True)  # if it still runs, it finds nothing, rather than half
    part.mkdir()
    try:
        yield part
        if out.exists():
            out.rename(old)
        part.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def prepare_standard_set(name: str, downloads: Path, size: int, folder: Path) -> str:
    """Writes a set of SETS into folder; returns what there is beside the images, in words."""
    if name == "cifar10":  # records of one byte of label and 3 x 32 x 32 of pixels
        side, (*train, test) = 32, read_cifar10(downloads / name)
        records = [np.frombuffer(data, np.uint8).reshape(-1, 3073) for data in (b"".join(train), test)]
        parts = [(part[:, 1:].reshape(-1, 3, 32, 32), part[:, 0]) for part in records]
    else:
        side, paths = 28, [fetch(name, file, downloads / name) for file in list(SETS[name])[2:]]
        parts = [(read_idx(paths[i], 3)[:, None], read_idx(paths[i + 1], 1)) for i in (0, 2)]
    for prefix, (images, labels) in zip(("", "test_"), parts, strict=True):
        if not 0 < len(images) == len(labels) or labels.max() > 9 or images.shape[2:] != (side, side):
            raise ValueError(f"not images of {side} x {side} pixels with a label of 0 to 9 for each")
        if (side, size) == (28, 32):
            images = np.pad(images, [(0, 0), (0, 0), (2, 2), (2, 2)])  # a black border, no resampling
        resized = (np.stack([Image.fromarray(plane).resize((size, size)) for plane in image]) for image in images)
        write_images(folder / f"{prefix}images.npy", resized, size, len(images))
        np.save(folder / f"{prefix}labels.npy", labels.astype(np.int64))
    (folder / "classes.txt").write_text(SETS[name]["classes"].replace(" ", "\n") + "\n")
    return f"10 classes, {len(labels):,} test images"


def prepare_images(path: Path, size: int, folder: Path) -> str:
    """Writes the images of a folder or .zip into folder; returns what there is beside the images, in words."""
    names, open_file = find_images(path)
    class_names(names)  # says now, not after hours, that one is not plain
    written = write_images(folder / "images.npy", decode_all(open_file, size, names), size, len(names))
    if not written:
        raise ValueError(f"no readable png, jpeg, webp or bmp image; expected {path}/[CLASS/]NAME.png")
    if bad := [names[i] for i in sorted({*range(len(names))}.difference(written))]:
        print(f"warning: left out {len(bad)} unreadable images: {str(bad[:10])[1:-1]}", file=sys.stderr)
    if classes := class_names([names[i] for i in written]):
        known, labels = np.unique(classes, return_inverse=True)
        np.save(folder / "labels.npy", labels.astype(np.int64))
        (folder / "classes.txt").write_text("\n".join([*known, ""]), "utf-8")
    return f"{len(set(classes)) or 'no'} classes"


def main(argv: list[str] | None = None) -> int:
    """Reads the arguments, prepares what they say and prints what is there now. Returns the exit code."""
    parser = ArgumentParser("prepare.py", description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.error = fail
    parser.add_argument("source", metavar="NAME|FOLDER|ZIP", help=f"{', '.join(SETS)}, a folder or a .zip of images")
    parser.add_argument("--image-size", type=int, default=32, metavar="S", help="side in pixels (%(default)s)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write (data/<name>-<S>)")
    parser.add_argument("--downloads", type=Path, default="data/downloads", metavar="DIR", help="(%(default)s)")
    parser.add_argument("--force", action="store_true", help="replace the folder if it is there")
    args = parser.parse_args(argv)
    size, path = args.image_size, Path(args.source)
    out = args.out or Path("data", f"{path.absolute().stem}-{size}")
    if not 8 <= size <= 1024:
        fail(f"--image-size {size} is not within 8 and 1024")
    try:
        if out.exists() and not (args.force and out.is_dir() and {file.name for file in out.iterdir()} <= OUTPUT):
            fail(f"{out} exists; --force replaces it if it is a folder of arrays and holds nothing else")
        if args.source not in SETS and not path.is_dir() and not (path.is_file() and zipfile.is_zipfile(path)):
            fail(f"{path} is none of {', '.join(SETS)}, and no folder or .zip of images")
        with whole_folder(Path(os.path.realpath(out))) as folder:
            if args.source in SETS:
                more = prepare_standard_set(args.source, args.downloads, size, folder)
            else:
                more = prepare_images(path, size, folder)
    except DAMAGE as error:
        fail(f"{args.source}: {error}")
    except OSError as error:
        fail(f"cannot write {out}: {error}", 1)
    except KeyboardInterrupt:
        fail("interrupted, nothing is written", 130)
    count, *shape = np.load(out / "images.npy", mmap_mode="r").shape
    print(f"{out}: {count:,} images, {' x '.join(map(str, shape))}, {more}")
    script = "vanilla_gan.py" if size & (size - 1) else "dcgan.py"  # which needs a power of two
    print(f"Train on it: python {script} --data {shlex.quote(str(out))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
