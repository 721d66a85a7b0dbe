"""Damaged and hostile files: whatever a reader gets, it works, or the program ends with exit code 2 and one line.

Valid files are damaged at random (bytes changed, cut out, put in, taken from elsewhere), and checkpoints also in what
they hold. The suite tries a few, always the same; FUZZ=10000 pytest tests/test_fuzz.py tries 10,000 new ones a test.
"""

import contextlib
import functools
import gzip
import io
import math
import operator
import os
import random
import shutil
import zipfile
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, call, make_images
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_data import IMAGES, LABELS, cifar, cifar_tar, digits, idx

import cgan
import dcgan

EXAMPLES = int(os.environ.get("FUZZ", "0"))
SEED = st.integers(0, 2**64 - 1)
NUMBERS = [n.to_bytes(4, order) for n in (0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1) for order in ("big", "little")]


def fuzz(share: int = 1) -> Callable:
    """Runs a test on seeds: in the suite on few, always the same; with FUZZ=N on N new ones, on fewer if it is slow."""
    return lambda test: settings(
        max_examples=max(1, EXAMPLES // share) if EXAMPLES else max(10, 60 // share),
        derandomize=not EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )(given(seed=SEED)(test))


def mutate(data: bytes, rng: random.Random, words: Sequence[bytes] = ()) -> bytes:
    """The data with one to four changes; words are put in or over it, as are random bytes and numbers at bounds."""
    for _ in range(rng.randint(1, 4)):
        i, j = (int(len(data) * rng.choice([rng.random(), rng.random() / 20, 1 - rng.random() / 20])) for _ in "ij")
        new = rng.choice([rng.randbytes(rng.randint(1, 8)), rng.choice([*NUMBERS, *words])])
        kind = rng.choice(["over", "over", "bit", "in", "cut", "end", "copy"])
        if kind == "over":
            data = data[:i] + new + data[i + len(new) :]
        elif kind == "bit":
            data = data[:i] + bytes([data[i] ^ 1 << rng.randint(0, 7)]) + data[i + 1 :] if i < len(data) else data
        elif kind == "in":
            data = data[:i] + new + data[i:]
        elif kind == "cut":
            data = data[: min(i, j)] + data[max(i, j) :]
        elif kind == "end":
            data = data[:i]
        else:
            data = data[:i] + data[j : j + 64] + data[i:]
    return data


def ends_well(act: Callable[[], object], codes: tuple[int, ...] = (2,)) -> bool:
    """Whether act works; if it does not, asserts that it has ended the program with one line, as it should."""
    err = io.StringIO()
    try:
        with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
            act()
    except SystemExit as end:
        assert end.code in codes
        lines = [line for line in err.getvalue().split("\n") if line and ("\r" not in line or "error" in line)]
        lines = [line.rpartition("\r")[2] for line in lines]  # no progress bars
        assert sum(line.split(" ")[1] == "error:" for line in lines) == 1, lines
        assert all(line.split(" ")[0] in ("dcgan.py:", "cgan.py:", "warning:") for line in lines), lines
        return False
    return True


def load(data: str, size: int = 32) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    found = dcgan.load_data(Namespace(data=data, data_dir="data", image_size=size, batch_size=2))
    assert found[0].dtype == torch.uint8
    assert found[0].shape == (len(found[1]), found[0].shape[1], size, size)
    return found


@pytest.fixture(autouse=True)
def bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A smaller bound, so that what runs into it does so fast, and no network."""

    def offline(*_: object, **__: object) -> None:
        raise OSError("no network in the tests")

    for script in (dcgan, cgan):
        monkeypatch.setattr(script, "LARGEST", 2**20)
        monkeypatch.setattr(script, "urlopen", offline)


# --------------------------------------------------------------------------------------------------- standard data sets


@fuzz()
def test_damaged_idx_files(seed: int) -> None:
    rng = random.Random(seed)
    folder = Path("data/mnist")
    folder.mkdir(parents=True, exist_ok=True)
    damaged, inside, zipped = rng.choice([IMAGES, LABELS]), rng.random() < 0.5, rng.random() < 0.3
    for name, array in zip((IMAGES, LABELS), digits(), strict=True):
        data = mutate(idx(array), rng) if name == damaged and inside else idx(array)
        data = gzip.compress(data, 1, mtime=0) if zipped else data
        (folder / name).write_bytes(mutate(data, rng) if name == damaged and not inside else data)
    ends_well(lambda: load("mnist"))


@functools.cache
def cifar_files() -> dict[str, bytes]:
    return cifar()[2]


@fuzz()
def test_damaged_cifar10_records(seed: int) -> None:
    rng = random.Random(seed)
    folder = Path("data/cifar10")
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in cifar_files().items():
        (folder / name).write_bytes(mutate(data, rng) if rng.random() < 0.3 else data)
    ends_well(lambda: load("cifar10", rng.choice([8, 32])))


@functools.cache
def small_tar() -> bytes:
    """A .tar of CIFAR-10's layout with little in it, so that most of its bytes are headers."""
    return gzip.decompress(cifar_tar({f"data_batch_{i}.bin": bytes(3073) for i in range(1, 4)}))


TAR_WORDS = (
    b"1",
    b"2",
    b"5",
    b"S",
    b"L",
    b"K",
    b"x",
    b"g",
    b"../",
    b"/",
    b"\x80" + bytes(10) + b"\x7f",
    b"77777777777\0",
)


@fuzz()
def test_damaged_cifar10_archives(seed: int) -> None:
    rng = random.Random(seed)
    data = small_tar()
    if rng.random() < 0.7:  # before it is compressed
        data = bytearray(mutate(data, rng, TAR_WORDS))
        for start in range(0, len(data) - 511, 512) if rng.random() < 0.7 else ():
            header = data[start : start + 512]
            if header[257:262] == b"ustar":  # gets a new type and the checksum that it should have
                header[156] = rng.choice([header[156], *b"0123456LKSxg"])
                header[148:156] = b" " * 8
                header[148:156] = b"%06o\0 " % sum(header)
                data[start : start + 512] = header
        data = gzip.compress(data, 1, mtime=0)
    else:
        data = mutate(gzip.compress(data, 1, mtime=0), rng)
    Path("data/cifar10").mkdir(parents=True, exist_ok=True)
    Path("data/cifar10/cifar-10-binary.tar.gz").write_bytes(data)
    ends_well(lambda: load("cifar10"))
    assert [path.name for path in Path("data/cifar10").iterdir()] == ["cifar-10-binary.tar.gz"]


# --------------------------------------------------------------------------------------------------- folders and zips


@functools.cache
def pictures() -> list[tuple[str, bytes]]:
    """Valid images of all formats and of many kinds, and the endings of their names."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    found = []
    for mode in ("RGB", "L", "P", "1", "RGBA", "LA", "I;16"):
        options = {"transparency": 3} if mode == "P" else {}
        found.append(
            ("png", noise.convert("L").convert("I").convert(mode) if mode == "I;16" else noise.convert(mode), options)
        )
    found.append(("png", noise, {"save_all": True, "append_images": [noise.rotate(90)]}))
    found += [("jpg", noise.convert(mode), {"exif": exif}) for mode in ("RGB", "L", "CMYK")]
    found.append(("jpg", noise, {"progressive": True}))
    found += [("bmp", noise.convert(mode), {}) for mode in ("RGB", "L", "1")]
    found += [("webp", noise, {}), ("webp", noise, {"save_all": True, "append_images": [noise.rotate(90)]})]
    files = []
    for suffix, image, options in found:
        out = io.BytesIO()
        image.save(out, {"jpg": "jpeg"}.get(suffix, suffix), **options)
        files.append((suffix, out.getvalue()))
    return files


def png_with_checksums(data: bytes) -> bytes:
    """The PNG with the checksums that its chunks should have, so that damage reaches the decoder."""
    out, i = data[:8], 8
    while i + 8 <= len(data):
        end = i + 8 + int.from_bytes(data[i : i + 4], "big")
        out += data[i:end] + dcgan.zlib.crc32(data[i + 4 : end]).to_bytes(4, "big")
        i = end + 4
    return out


@fuzz(8)
def test_damaged_images(seed: int) -> None:
    rng = random.Random(seed)
    shutil.rmtree("data", ignore_errors=True)
    folder = make_images(Path("photos"), per_class=1)
    for i in range(16):
        suffix, data = rng.choice(pictures())
        data = mutate(data, rng)
        (folder / f"{i}.png").write_bytes(png_with_checksums(data) if suffix == "png" and i % 2 else data)
    found, _, classes = load("photos", 8)
    assert 2 <= len(found) <= 18
    assert classes == ([] if len(found) > 2 else ["cats", "dogs"])


@functools.cache
def small_zip(packed: bool) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as archive:
        for name in ("cats/1", "dogs/2", "birds/3"):
            archive.writestr(zipfile.ZipInfo(f"{name}.png"), pictures()[0][1])
    return out.getvalue()


ZIP_WORDS = (b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6", b"../", b"/", b"\x0c\0", b"\x0e\0")


@fuzz()
def test_damaged_zips(seed: int) -> None:
    rng = random.Random(seed)
    shutil.rmtree("data", ignore_errors=True)
    Path("photos.zip").write_bytes(mutate(small_zip(rng.random() < 0.5), rng, ZIP_WORDS))
    found: list[str] = []
    ends_well(lambda: found.extend(load("photos.zip", 8)[2]))
    assert not {"", ".", ".."} & set(found)
    assert not any("/" in name for name in found)
    assert {path.name for path in Path().iterdir()} <= {"photos.zip", "data"}


# ------------------------------------------------------------------------------------------------------- checkpoints


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of cgan with networks of a few weights, so that each try takes milliseconds."""
    home = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        for network in ("Generator", "Discriminator"):
            patch.setattr(cgan, network, functools.partial(getattr(cgan, network), width=1))
        argv = ["--data", make_images(home / "images"), "--data-dir", home / "data", "--out", home / "run", *TINY]
        assert call("cgan.py", *argv) == 0
        yield home / "run"


def resume(run: Path, checkpoint: bytes, *options: object, codes: tuple[int, ...] = (2,)) -> bool:
    shutil.rmtree("run", ignore_errors=True)
    Path("run").mkdir()
    Path("run/checkpoint.pt").write_bytes(checkpoint)
    try:
        return ends_well(lambda: call("cgan.py", "--resume", "run", "--data-dir", run.parent / "data", *options), codes)
    finally:
        assert [path.name for path in Path().iterdir()] == ["run"]  # nothing is written elsewhere, and no code runs


@fuzz(2)
def test_damaged_checkpoints(run: Path, seed: int) -> None:
    resume(run, mutate((run / "checkpoint.pt").read_bytes(), random.Random(seed)), "--generate", 1)


def zip_with(path: Path, **changes: bytes) -> bytes:
    """The checkpoint with other bytes in some of its records, and the checksums of the new ones."""
    out = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for info in old.infolist():
            new.writestr(info.filename, changes.get(Path(info.filename).name.replace(".", "_"), old.read(info)))
    return out.getvalue()


CODE = b"cposix\nmkdir\n(X\x04\0\0\0ranntR"
PICKLE_WORDS = (
    CODE,
    CODE + b"0",
    b"cos\nsystem\n",
    b"cbuiltins\neval\n",
    b"cbuiltins\ngetattr\n",
    b"R",
    b"b",
    b".",
    b"0",
    b"2",
)
PICKLE_WORDS += (
    b"h\0",
    b"j\xff\xff\xff\xff",
    b"J\xff\xff\xff\x7f",
    b"\x8a\x08" + b"\x7f" * 8,
    b"ctorch\nzeros\n",
    b"Q",
    b"}",
    b")",
)


@fuzz(2)
def test_damaged_pickles_in_checkpoints(run: Path, seed: int) -> None:
    with zipfile.ZipFile(run / "checkpoint.pt") as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("data.pkl")]
        data = mutate(archive.read(name), random.Random(seed), PICKLE_WORDS)
    resume(run, zip_with(run / "checkpoint.pt", data_pkl=data), "--generate", 1)


def places(value: object, path: tuple = ()) -> Iterator[tuple]:
    """The paths to all that a checkpoint holds."""
    if path:
        yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*path, key))


VALUES = [
    None,
    True,
    0,
    1,
    -1,
    7,
    2**31,
    2**63,
    10**30,
    0.0,
    1.5,
    -1.0,
    math.nan,
    math.inf,
    b"x",
    (),
    {},
    {"a": 1},
    {0: {}},
]
VALUES += [
    "",
    "x",
    "1",
    "nan",
    "--cuda",
    "\0",
    "../../../x",
    "/x",
    [],
    [1],
    ["a", "b"],
    ["..", "b"],
    ["/x", "b"],
    ["a/b", "c"],
]
VALUES += [
    torch.zeros(0),
    torch.zeros(1),
    torch.zeros(3),
    torch.full((1,), math.nan),
    torch.tensor(5),
    torch.tensor(1.5),
]
VALUES += [
    torch.zeros(16, 4),
    torch.zeros(16, 4).cfloat(),
    torch.full((16,), 0),
    torch.full((16,), 9),
    torch.rand(3).to_sparse(),
]
VALUES += [
    torch.zeros(5056).byte(),
    torch.zeros(2, device="meta"),
    torch.zeros(1).expand(2**40),
    torch.zeros(1).expand(16, 4),
]
ACTS = [["--generate", 2], ["--generate", 2, "--label", "1"], ["--steps", 3], ["--steps", 3]]


@fuzz(10)
def test_checkpoints_that_hold_something_else(run: Path, seed: int) -> None:
    rng = random.Random(seed)
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    found = list(places(state))
    *path, last = rng.choice([path for path in found if len(path) <= rng.randint(1, 5)])
    parent = functools.reduce(operator.getitem, path, state)
    kind = rng.choice(["value", "value", "value", "delete", "rename", "other"])
    if kind == "value":
        parent[last] = rng.choice(VALUES)
    elif kind == "other":  # what stands elsewhere in the checkpoint
        parent[last] = functools.reduce(operator.getitem, rng.choice(found), state)
    else:
        old = parent.pop(last)
        if kind == "rename" and isinstance(parent, dict):
            parent[f"{last}x"] = old
    out = io.BytesIO()
    torch.save(state, out)
    resume(run, out.getvalue(), *rng.choice(ACTS), codes=(1, 2))
