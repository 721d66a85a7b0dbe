# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.10", "numpy", "pillow>=10.1", "tqdm"]
# ///
"""DCGAN, the GAN of convolutions.

Alec Radford, Luke Metz, Soumith Chintala: Unsupervised Representation Learning with Deep Convolutional Generative
Adversarial Networks, ICLR 2016, https://arxiv.org/abs/1511.06434

    D maximizes  E[log D(x)] + E[log(1 - D(G(z)))]        G maximizes  E[log D(G(z))]

    python dcgan.py --epochs 25 --cuda                    built-in digits, on a GPU (without --cuda: on the CPU)
    python dcgan.py --data mnist                          or fashion-mnist, cifar10, a folder or .zip of images
    python dcgan.py --resume                              go on with the newest run
    python dcgan.py --resume runs/dcgan-1 --generate 64   64 new images, into runs/dcgan-1/generated

Expect on two CPU cores: a minute an epoch of the built-in digits, the first that can be recognised after 3 epochs.

Differs from the paper: z is normal, not uniform, as in the third author's Torch code, and so are the widths (64 in both
networks, 512 features at 4x4 for 64x64 images); the depth follows the image size.
"""

import contextlib
import functools
import gzip
import hashlib
import io
import itertools
import json
import math
import os
import shutil
import signal
import sys
import tarfile
import time
import warnings
import zipfile
import zlib
from argparse import ArgumentParser, ArgumentTypeError, BooleanOptionalAction, Namespace
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NoReturn
from urllib.request import Request, urlopen

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

Networks = list[nn.Module]  # the generator first
Optimizers = list[Optimizer]  # in the same order
Batches = list[tuple[Tensor, Tensor]]  # real images (N, C, S, S) in [-1, 1], labels (N,)


class Generator(nn.Module):
    """Maps z (N, latent_dim) ~ N(0, 1) to images (N, channels, S, S) in [-1, 1].

    Transposed convolutions only, BatchNorm and ReLU after all but the last, then tanh (DCGAN, section 3).
    S = image_size is a power of two, 8 or more; ValueError if not.
    """

    def __init__(self, latent_dim: int, channels: int, image_size: int, width: int = 64) -> None:
        super().__init__()
        if image_size < 8 or image_size & (image_size - 1):
            raise ValueError(f"image_size must be a power of two, 8 or more, not {image_size}")
        features = width * image_size // 8  # at 4x4; every doubling of the side halves them: width at S/2
        layers = [nn.ConvTranspose2d(latent_dim, features, 4, bias=False)]  # (N, features, 4, 4)
        while features > width:
            layers += [nn.BatchNorm2d(features), nn.ReLU(inplace=True)]
            layers += [nn.ConvTranspose2d(features, features // 2, 4, stride=2, padding=1, bias=False)]
            features //= 2  # (N, features, side, side), side twice as long
        layers += [nn.BatchNorm2d(width), nn.ReLU(inplace=True)]  # (N, width, S/2, S/2)
        layers += [nn.ConvTranspose2d(width, channels, 4, stride=2, padding=1), nn.Tanh()]  # (N, channels, S, S)
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z[:, :, None, None])


class Discriminator(nn.Module):
    """Maps images (N, channels, S, S) in [-1, 1] to logits (N,): D(x) = sigmoid(logit), how likely x is real.

    Strided convolutions only, LeakyReLU(0.2) after all but the last, BatchNorm after all but the first and the last
    (DCGAN, section 3). S = image_size is a power of two, 8 or more; ValueError if not.
    """

    def __init__(self, channels: int, image_size: int, width: int = 64) -> None:
        super().__init__()
        if image_size < 8 or image_size & (image_size - 1):
            raise ValueError(f"image_size must be a power of two, 8 or more, not {image_size}")
        layers = [nn.Conv2d(channels, width, 4, stride=2, padding=1)]  # (N, width, S/2, S/2)
        layers += [nn.LeakyReLU(0.2, inplace=True)]
        features = width
        while features < width * image_size // 8:
            layers += [nn.Conv2d(features, features * 2, 4, stride=2, padding=1, bias=False)]
            features *= 2  # (N, features, side, side), side half as long
            layers += [nn.BatchNorm2d(features), nn.LeakyReLU(0.2, inplace=True)]
        layers += [nn.Conv2d(features, 1, 4)]  # (N, features, 4, 4) -> (N, 1, 1, 1)
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).flatten()


def init_weights(module: nn.Module) -> None:
    """Weights ~ N(0, 0.02) (DCGAN, section 4); BatchNorm's scale ~ N(1, 0.02), as in the authors' code."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0 if isinstance(module, nn.BatchNorm2d) else 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def add_options(parser: ArgumentParser) -> None:
    """What only this script has, and its defaults: the paper's (section 4), but for the image size (64)."""
    parser.set_defaults(batch_size=128, lr=2e-4)
    sizes = [8, 16, 32, 64, 128, 256, 512]
    parser.add_argument("--image-size", type=int, choices=sizes, default=32, help="side in pixels (%(default)s)")


def build(args: Namespace) -> tuple[Networks, Optimizers]:
    """The networks, initialized, and their optimizers."""
    generator = Generator(args.latent_dim, args.channels, args.image_size).apply(init_weights)
    discriminator = Discriminator(args.channels, args.image_size).apply(init_weights)
    adam = functools.partial(torch.optim.Adam, lr=args.lr, betas=(0.5, 0.999), fused=True)
    return [generator, discriminator], [adam(generator.parameters()), adam(discriminator.parameters())]


def train_step(networks: Networks, optimizers: Optimizers, batches: Batches, args: Namespace) -> dict[str, Tensor]:
    """One update of D for each batch (here: one), then one of G. Returns the columns to log, 0-dim tensors."""
    generator, discriminator = networks
    g_optimizer, d_optimizer = optimizers
    bce = F.binary_cross_entropy_with_logits

    # (1) Update D: maximize log D(x) + log(1 - D(G(z)))
    for real, _ in batches:
        z = torch.randn(len(real), args.latent_dim, device=real.device)
        with torch.no_grad():  # D learns here, not G
            fake = generator(z)
        real_logits = discriminator(real)  # real and fake apart: BatchNorm must not mix their statistics
        fake_logits = discriminator(fake)
        d_loss = bce(real_logits, torch.ones_like(real_logits)) + bce(fake_logits, torch.zeros_like(fake_logits))
        d_optimizer.zero_grad()
        d_loss.backward()
        d_optimizer.step()

    # (2) Update G: maximize log D(G(z)), with fresh noise
    discriminator.requires_grad_(False)  # saves the gradients of D's weights
    z = torch.randn(len(real), args.latent_dim, device=real.device)
    logits = discriminator(generator(z))
    g_loss = bce(logits, torch.ones_like(logits))
    g_optimizer.zero_grad()
    g_loss.backward()
    g_optimizer.step()
    discriminator.requires_grad_(True)

    d_real, d_fake = real_logits.sigmoid().mean(), fake_logits.sigmoid().mean()
    return {"D(x)": d_real, "D(G(z))": d_fake, "d_loss": d_loss, "g_loss": g_loss}


# ----------------------------------------------------------------------------------------------------------------------
# Plumbing: data, pictures, checkpoints, command line, loop. The same in all five scripts, nothing about this GAN.
# ----------------------------------------------------------------------------------------------------------------------

SCRIPT = Path(__file__).stem
# What torchrun says: which of how many processes this is, in all and on this machine.
RANK, LOCAL_RANK = (int(os.environ.get(name, 0)) for name in ("RANK", "LOCAL_RANK"))
WORLD_SIZE, LOCAL_WORLD_SIZE = (int(os.environ.get(name, 1)) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
LARGEST = 2**28  # bytes of a file of data, unpacked, and of an image in memory: damaged or hostile ones end there
DATASETS = {  # of each set the mirrors, the files and their sha256
    "mnist": {
        "mirrors": "https://ossci-datasets.s3.amazonaws.com/mnist/ https://storage.googleapis.com/cvdf-datasets/mnist/",
        "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    },
    "fashion-mnist": {
        "mirrors": "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/ "
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
        "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    },
    "cifar10": {
        "mirrors": "https://www.cs.toronto.edu/~kriz/ https://cave.cs.toronto.edu/kriz/",
        "cifar-10-binary.tar.gz": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    },
}


def fail(message: str, code: int = 2) -> NoReturn:
    """Ends the program with one line: code 2 for bad usage or bad input, 1 for a training that failed."""
    tqdm.write(f"{SCRIPT}.py: error: {' '.join(message.split())}", file=sys.stderr)  # not behind a progress bar
    raise SystemExit(code)


def glyphs(size: int, count: int = 20_000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draws digits under random pose, size and stroke: images uint8 (count, 1, size, size), labels (count,)."""
    font = ImageFont.load_default(112)
    templates = torch.empty(10, 3, size, size)  # each digit in three strokes
    for digit, stroke in itertools.product(range(10), range(3)):
        image = Image.new("L", (128, 128))
        ImageDraw.Draw(image).text((64, 64), str(digit), 255, font, anchor="mm", stroke_width=3 * stroke)
        templates[digit, stroke] = torch.from_numpy(np.array(image.resize((size, size), Image.Resampling.LANCZOS)))
    rng = torch.Generator().manual_seed(seed)
    labels, strokes = (torch.randint(n, (count,), generator=rng) for n in (10, 3))
    turn, shear, shrink, dx, dy = torch.rand(5, count, generator=rng) * 2 - 1
    cos, sin, shrink = (turn / 4).cos(), (turn / 4).sin(), 1.15 + shrink / 4
    pose = torch.stack([cos * shrink, (shear / 5 - sin) * shrink, dx / 5, sin * shrink, cos * shrink, dy / 5], dim=1)
    images = torch.empty(count, 1, size, size, dtype=torch.uint8)
    for part in torch.arange(count).split(1000):
        grid = F.affine_grid(pose[part].view(-1, 2, 3), [len(part), 1, size, size], align_corners=False)
        images[part] = F.grid_sample(templates[labels[part], strokes[part], None], grid, align_corners=False).byte()
    return images.numpy(), labels.numpy()


def fetch(name: str, file: str, folder: Path) -> Path:
    """A file of a standard set: the one in folder, gzipped or not, else from the first mirror that serves it whole."""
    for path in (folder / file.removesuffix(".gz"), folder / file):
        if path.is_file():
            return path
    problems = []
    for mirror in DATASETS[name]["mirrors"].split():
        try:
            data, request = bytearray(), Request(mirror + file, headers={"User-Agent": SCRIPT})
            with urlopen(request, timeout=30) as reply, tqdm(None, file, reply.length, unit="B", unit_scale=1) as bar:
                while len(data) <= LARGEST and (chunk := reply.read1(2**16)):
                    data += chunk
                    bar.update(len(chunk))
            if reply.url[:6] != mirror[:6] or hashlib.sha256(data).hexdigest() != DATASETS[name][file]:
                raise ValueError(f"{reply.url} is not https, or not the file")
            folder.mkdir(parents=True, exist_ok=True)
            replace_file(path, data)
            return path
        except Exception as error:  # whatever it is, the next mirror may do better
            problems.append(f"{mirror}: {error}")
    files = " and ".join(list(DATASETS[name])[1:])
    fail(f"cannot download {name} ({'; '.join(problems)}); you can put {files} into {folder} yourself")


def read_file(path: Path) -> bytes:
    """A file's content, unpacked if it is gzipped, up to LARGEST bytes."""
    with path.open("rb") as file:
        return (gzip.open(file) if file.peek(2)[:2] == b"\x1f\x8b" else file).read(LARGEST)


def read_idx(path: Path, dims: int) -> np.ndarray:
    """Reads an IDX file of bytes with so many dimensions, gzipped or not. ValueError if it is anything else."""
    data = bytearray(read_file(path))
    magic, *shape = (int.from_bytes(data[i : i + 4], "big") for i in range(0, 4 + 4 * dims, 4))
    if magic != 0x800 + dims or len(data) != 4 + 4 * dims + math.prod(shape):
        raise ValueError(f"{path} is not a whole IDX file")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dims).reshape(shape)


def standard_set(name: str, folder: Path, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads a set of DATASETS, downloaded unless it is in folder: images uint8 (N, C, size, size), labels (N,)."""
    if name == "cifar10":  # records of one byte of label and 3 x 32 x 32 of pixels
        files = [read_file(path) for path in sorted(folder.rglob("data_batch_?.bin")) if path.is_file()]
        if not files:
            data = io.BytesIO(read_file(fetch(name, "cifar-10-binary.tar.gz", folder)))
            with tarfile.open(fileobj=data, mode="r:") as tar:
                members = {m.name: m for m in tar if "data_batch" in m.name and m.isreg() and not m.issparse()}
                files = [tar.extractfile(member).read() for _, member in sorted(members.items())]
        if any(len(file) % 3073 for file in files):
            raise ValueError("a data_batch file is not whole")
        records = np.frombuffer(bytearray().join(files), np.uint8).reshape(-1, 3073)
        images, labels = records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0]
    else:
        images = read_idx(fetch(name, "train-images-idx3-ubyte.gz", folder), 3)[:, None]
        labels = read_idx(fetch(name, "train-labels-idx1-ubyte.gz", folder), 1)
    if not 0 < len(images) == len(labels) or labels.max() > 9 or images.shape[2:] not in ((28, 28), (32, 32)):
        raise ValueError("not images of 28 x 28 or 32 x 32 pixels with a label of 0 to 9 for each")
    if images.shape[-1] == 28 and size == 32:
        images = np.pad(images, [(0, 0), (0, 0), (2, 2), (2, 2)])  # a black border, no resampling
    elif images.shape[-1] != size:
        images = F.interpolate(torch.tensor(images), (size, size), mode="bicubic", antialias=True).numpy()
    return images, labels


def image_folder(path: Path, size: int, cache_dir: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Decodes a folder or .zip of images once, into a memory-mapped cache that later runs open at once.

    Returns images uint8 (N, C, size, size), grey if all are; for each the number (N,) of its first-level subfolder,
    its class; the names of the classes ([] if an image lies outside). Unreadable files are left out with a warning, and
    so are those of more than LARGEST bytes or LARGEST / 4 pixels: a thread takes at most 6 LARGEST, 1.5 GiB.
    """
    if path.is_dir():
        stamps = {p.relative_to(path).as_posix(): p.stat().st_mtime_ns for p in path.rglob("*.*") if p.is_file()}
        open_file = lambda name: (path / name).open("rb")  # noqa: E731
    else:
        archive = zipfile.ZipFile(path)
        stamps, open_file = {info.filename: info.CRC for info in archive.infolist()}, archive.open
        if any(info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for info in archive.infolist()):
            raise ValueError("its compression is not zip's usual one, deflate")  # of others, read(LARGEST) unpacks more
    names = [n for n in sorted(stamps) if n.lower().endswith((".png", ".jpg", ".jpeg", ".webp", ".bmp"))]
    names = [n for n in names if not any(part.startswith((".", "__MACOSX")) for part in n.split("/"))]
    key = hashlib.sha256(repr([path, size, [(name, stamps[name]) for name in names]]).encode()).hexdigest()[:16]
    cache = cache_dir / f"{path.stem}-{size}-{key}"

    def decode(name: str) -> np.ndarray | None:
        """An image as uint8 (3, size, size): upright, the centre square, antialiased. None if it cannot be read."""
        try:
            with open_file(name) as file:
                data = io.BytesIO(file.read(LARGEST))
            with Image.open(data, formats=["PNG", "JPEG", "WEBP", "BMP"]) as image:
                if 4 * image.width * image.height > LARGEST:
                    return None
                image.draft("RGB", (size, size))  # a large JPEG is decoded at 1/2, 1/4 or 1/8
                if image.mode.startswith("I"):  # 16 bits a pixel
                    image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
                image = ImageOps.fit(ImageOps.exif_transpose(image).convert("RGB"), (size, size))
                return np.asarray(image).transpose(2, 0, 1)
        except Exception:  # Pillow's readers raise all kinds on a broken file
            return None

    if not cache.exists():
        part, good, bad, channels = Path(f"{cache}.{os.getpid()}.part"), [], [], 1
        part.mkdir(parents=True, exist_ok=True)
        pixels = np.lib.format.open_memmap(part / "images.npy", "w+", np.uint8, (max(len(names), 1), 3, size, size))
        with ThreadPool() as pool, warnings.catch_warnings():  # threads do: Pillow decodes outside Python's lock
            warnings.simplefilter("ignore")  # Pillow's, on odd files that it can read
            for name, image in zip(names, tqdm(pool.imap(decode, names, 64), "decoding", len(names)), strict=True):
                (bad if image is None else good).append(name)
                if image is not None:
                    pixels[len(good) - 1] = image
                    channels = 3 if (image != image[0]).any() else channels
        (part / "index.json").write_text(json.dumps([good, bad, channels]))
        try:
            part.rename(cache)
        except OSError:  # another process was faster; if it is anything else, the next line says so
            shutil.rmtree(part)
    try:
        good, bad, channels = json.loads((cache / "index.json").read_text())
        images = np.load(cache / "images.npy", mmap_mode="c")[: len(good), :channels]
    except (ValueError, EOFError):
        raise ValueError(f"its cache is damaged; delete {cache}") from None
    if bad and RANK == 0:
        print(f"warning: left out {len(bad)} unreadable images: {str(bad[:10])[1:-1]}", file=sys.stderr)
    if not good:
        raise ValueError(f"no readable png, jpeg, webp or bmp image; expected {path}/[CLASS/]NAME.png")
    folders = [[folder for folder in name.split("/")[:-1] if folder] for name in good]
    while all(folders) and len({f[0] for f in folders}) == 1:
        folders = [f[1:] for f in folders]  # one folder around all the others, as in many a zip, is no class
    labelled = all(folders)
    classes, labels = np.unique([f[0] if labelled else "" for f in folders], return_inverse=True)
    return images, labels, classes.tolist() if labelled else []


def load_data(args: Namespace) -> tuple[Tensor, Tensor, list[str]]:
    """All images uint8 (N, C, S, S), their labels int64 (N,) and the names of the classes ([] if there are none)."""
    classes = [str(digit) for digit in range(10)]
    try:
        if args.data == "glyphs":
            images, labels = glyphs(args.image_size)
        elif args.data in DATASETS:
            images, labels = standard_set(args.data, Path(args.data_dir, args.data), args.image_size)
        else:
            images, labels, classes = image_folder(Path(args.data), args.image_size, Path(args.data_dir, "cache"))
    except (ValueError, OSError, EOFError, NotImplementedError, tarfile.TarError, zipfile.BadZipFile, zlib.error) as e:
        fail(f"--data {args.data}: {e} (known: glyphs, {', '.join(DATASETS)}, or a folder or .zip of images)")
    if args.batch_size > len(images):
        fail(f"--batch-size {args.batch_size} is more than the {len(images)} images of {args.data}")
    if "label" in args and not classes:
        fail(f"--data {args.data} has no classes to condition on; expected one subfolder for each")
    return torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)), classes


def join_processes() -> None:
    """Connects the processes that torchrun has started: NCCL between GPUs, Gloo between CPUs.

    torchrun keeps its store, through which they find each other, when it starts them again after one has failed, and
    with it the addresses of dead ones. So they first agree on who is there now: each under a word of its own.
    """
    store, _, _ = next(rendezvous("env://"))
    store.set(f"process {RANK}", os.urandom(8).hex())
    while True:
        present = b" ".join(store.get(f"process {rank}") for rank in range(WORLD_SIZE)).decode()
        store.set(f"{present} {RANK}", "")
        with contextlib.suppress(dist.DistStoreError):  # until nobody takes a dead process for a living one
            store.wait([f"{present} {rank}" for rank in range(WORLD_SIZE)], timedelta(seconds=1))
            break
    store, day = dist.PrefixStore(present, store), timedelta(days=1)  # decoding images may take long
    dist.init_process_group(store=store, rank=RANK, world_size=WORLD_SIZE, timeout=day)


def average(tensors: list[Tensor]) -> None:
    """Averages tensors over all processes, in place, by one all-reduce of a flat buffer. They wait for one another."""
    if WORLD_SIZE > 1:
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, mean in zip(tensors, flat.div_(WORLD_SIZE).split([x.numel() for x in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))


class Average(torch.autograd.Function):
    """average() of one tensor, for a term of the loss: its gradient is averaged as well."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        average([x := x.clone()])
        return x

    backward = staticmethod(lambda ctx, grad: Average.forward(ctx, grad))


class SplitBatch(TorchFunctionMode):
    """Makes a step over several processes, each with its rows of the batch, the step of one process with all rows.

    Noise and dropout are drawn for the whole batch in each process, which takes its own rows, and BatchNorm takes its
    statistics over all of them. So a run does not depend on the number of processes, but for rounding.
    """

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if function in (torch.randn, torch.rand):  # of (rows, ...)
            return function(WORLD_SIZE * args[0], *args[1:], **kwargs).chunk(WORLD_SIZE)[RANK]
        if function is F.dropout:  # of x (rows, ...)
            ones = torch.cat([torch.ones_like(args[0])] * WORLD_SIZE)
            return args[0] * function(ones, *args[1:], **kwargs).chunk(WORLD_SIZE)[RANK]
        if function is F.batch_norm and kwargs["training"]:  # of x (rows, C) or (rows, C, S, S)
            x, dims = args[0].to(args[1].dtype), [0, 2, 3][: args[0].ndim - 1]
            mean = Average.apply(x.mean(dims, keepdim=True))
            var = Average.apply((x - mean).square().mean(dims, keepdim=True))
            n = WORLD_SIZE * x.numel() / x.shape[1]
            for running, value in zip(args[1:], (mean, var * (n / (n - 1))), strict=True):
                running.lerp_(value.detach().flatten(), kwargs["momentum"])
            scale, shift = (kwargs[name].view_as(mean) for name in ("weight", "bias"))
            return ((x - mean) * (var + kwargs["eps"]).rsqrt() * scale + shift).to(args[0].dtype)
        return function(*args, **kwargs)


@functools.lru_cache(maxsize=2)
def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """The order of an epoch, a permutation (count,) that depends on nothing else: a resumed run finds it again."""
    return torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(count))


def to_picture(images: Tensor, columns: int = 1) -> Image.Image:
    """Tiles images (N, C, S, S), N a multiple of columns. [-1, 1] is black to white, always, so that frames compare."""
    pixels = images.mul(127.5).add(128).clamp(0, 255).byte().cpu()
    rows = [torch.cat(list(row), dim=2) for row in pixels.split(columns)]  # (C, S, columns * S) each
    pixels = torch.cat(rows, dim=1).permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def replace_file(path: Path, data: bytes) -> None:
    """Writes a file so that at any moment, whatever happens, path holds the old one or the new one, whole."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def at_least(low: float) -> Callable[[str], float]:
    """An argparse type: a finite number of low's type, not below it."""

    def number(text: str) -> float:
        if not low <= (value := type(low)(text)) < 2**63:
            raise ArgumentTypeError(f"{text} is not {low} or more")
        return value

    return number


def read_checkpoint(path: Path, parser: ArgumentParser) -> dict:
    """A checkpoint of this script, checked: whatever the file holds, no code in it runs. Exceptions of all kinds."""
    with zipfile.ZipFile(path) as file:  # torch.load looks at no checksum, and unpacks what torch.save never packs
        if any(info.compress_type for info in file.infolist()) or file.testzip():
            raise ValueError("the file is damaged")
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state["script"] != SCRIPT:
        raise ValueError(f"it is a run of {state['script']}.py")
    args, z, labels, sums = (state[name] for name in ("args", "z", "labels", "sums"))
    known = vars(parser.parse_args([]))
    typed = {name: value for name, value in args.items() if name in known and type(value) in (int, float, str)}
    known = vars(parser.parse_args([f"--{name.replace('_', '-')}={value}" for name, value in typed.items()]))
    numbers = [state["step"], state["epoch"], state["seconds"], args["images"]]
    if not (
        all(type(args[name]) is type(known[name]) for name in known.keys() & args.keys())
        and ([*map(type, numbers)] == [int, int, float, int] and all(0 <= x < 2**63 for x in numbers))
        and (args["channels"] in (1, 3) and type(args["classes"]) is list)
        and all(x == Path(x).name and x not in ("", "..") and "\0" not in x for x in args["classes"])  # become folders
        and (labels.dtype == torch.int64 and labels.ndim == 1 and len(labels) in range(8, 129, 8))
        and (labels.min() >= 0 and labels.max() < (len(args["classes"]) if "label" in known else 8))
        and (
            z.dtype == torch.get_default_dtype() and z.shape == (len(labels), args["latent_dim"]) and z.isfinite().all()
        )
        and (sums.dtype == z.dtype and sums.ndim == 1)
    ):
        raise ValueError("it holds other things than a checkpoint")
    torch.Generator().set_state(state["rng"])  # raises if it is none
    return state


def parse_args(argv: list[str] | None) -> tuple[Namespace, dict]:
    """The arguments and, with --resume, the checkpoint, whose arguments they are but for the few that may change."""
    parser = ArgumentParser(f"{SCRIPT}.py", description=__doc__.splitlines()[0])
    parser.error = fail
    add, sets = parser.add_argument, f"glyphs, {', '.join(DATASETS)}, a folder or a .zip of images"
    add("--data", default="glyphs", metavar="NAME|PATH", help=f"{sets} (%(default)s)")
    add("--data-dir", default="data", metavar="DIR", help="where downloads and decoded images are kept (%(default)s)")
    add("--epochs", type=at_least(1), default=25, metavar="N", help="in all, resumed ones included (%(default)s)")
    add("--steps", type=at_least(1), metavar="N", help="stop after N updates of G in all")
    add("--batch-size", type=at_least(2), metavar="N", help="images in a batch (%(default)s)")
    add("--latent-dim", type=at_least(1), default=100, metavar="N", help="numbers in z (%(default)s)")
    add("--lr", type=at_least(1e-12), metavar="X", help="learning rate of both networks (%(default)s)")
    add("--seed", type=at_least(0), default=0, metavar="N", help="of weights, noise and order of data (%(default)s)")
    add("--log-every", type=at_least(1), default=50, metavar="N", help="steps a row of metrics.csv (%(default)s)")
    add("--cuda", action=BooleanOptionalAction, default=False, help="run on the GPU")
    add("--amp", action="store_true", help="networks in bfloat16, losses in float32")
    add("--tensorboard", action=BooleanOptionalAction, default=False, help="log to TensorBoard too")
    add("--out", metavar="DIR", help=f"folder of the run (runs/{SCRIPT}-K, K the next free number)")
    add("--resume", nargs="?", const="", metavar="RUN", help="go on with RUN; with no value, the newest in runs/")
    add("--generate", type=at_least(1), metavar="N", help="with --resume: write N images to RUN/generated and stop")
    add_options(parser)
    args, checkpoint = parser.parse_args(argv), {}
    if args.data not in ("glyphs", *DATASETS):
        args.data = os.path.realpath(args.data)  # the run can be resumed from another folder
    if (args.generate and args.resume is None) or (vars(args).get("label") is not None and not args.generate):
        fail("--generate needs --resume RUN, and --label needs --generate")
    runs = sorted(Path("runs").glob(f"{SCRIPT}-*/checkpoint.pt"), key=lambda path: path.stat().st_mtime)
    if args.resume == "" and not runs and "TORCHELASTIC_RUN_ID" in os.environ:
        args.resume = None  # the first start of a command that torchrun starts again when a process fails
    if args.resume is not None:
        path = Path(args.resume, "checkpoint.pt") if args.resume or not runs else runs[-1]
        try:
            checkpoint = read_checkpoint(path, parser)
            kept = {**checkpoint["args"], "out": str(path.parent)}
        except Exception as error:  # torch.load raises all kinds on a broken file
            fail(f"--resume: {path} is no run of {SCRIPT}.py: {type(error).__name__}: {str(error).partition('. ')[0]}")
        typed = vars(parser.parse_args(argv, Namespace(**dict.fromkeys(vars(args)))))  # None: not typed
        given = {name: vars(args)[name] for name in typed if typed[name] is not None}
        for name in given.keys() & kept.keys() - {"epochs", "steps", "cuda", "data_dir", "tensorboard", "kernels"}:
            if given[name] != kept[name]:
                fail(f"--{name.replace('_', '-')} {given[name]}: {path.parent} was started with {kept[name]}")
        args = Namespace(**{**vars(args), **kept, **given})
    elif args.out is not None and Path(args.out, "checkpoint.pt").exists():
        fail(f"--out: {args.out} holds a run; --resume {args.out} goes on with it")
    if args.batch_size % WORLD_SIZE or args.batch_size < 2 * WORLD_SIZE:
        fail(f"--batch-size {args.batch_size} is not split evenly by {WORLD_SIZE} processes, 2 images or more for each")
    if args.cuda and torch.cuda.device_count() < LOCAL_WORLD_SIZE:
        fail(
            f"--cuda: PyTorch sees {torch.cuda.device_count() or 'no'} GPU here, for {LOCAL_WORLD_SIZE} processes; "
            "leave it out, or resume with --no-cuda, to run on the CPU"
        )
    if not args.cuda and torch.cuda.is_available():
        print("hint: this machine has a GPU; --cuda runs on it")
    return args, checkpoint


def load_networks(args: Namespace, checkpoint: dict) -> tuple[Networks, Optimizers]:
    """Networks and optimizers on the device, new or as the checkpoint has them."""
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")  # TF32
    torch.manual_seed(args.seed + checkpoint.get("step", 0))
    if args.cuda:
        torch.cuda.set_device(LOCAL_RANK)
        torch.cuda.set_stream(torch.cuda.Stream())  # what runs on the default stream cannot be captured
    networks, optimizers = build(args)
    device = "cuda" if args.cuda else "cpu"
    for network in networks:
        network.to(device, memory_format=torch.channels_last)  # the layout in which convolutions are fastest
        if args.amp:  # bfloat16 inside the networks; losses, penalties and the weights themselves stay float32
            forward = torch.autocast(device, torch.bfloat16)(network.forward)
            network.forward = lambda *inputs, forward=forward: forward(*inputs).float()
    try:
        for network in networks if checkpoint else ():
            network.load_state_dict(checkpoint[type(network).__name__.lower()])
        states = checkpoint["optimizers"] if checkpoint else [optimizer.state_dict() for optimizer in optimizers]
        for optimizer, state in zip(optimizers, states, strict=True):
            groups = optimizer.state_dict()["param_groups"]
            for group, saved in zip(groups, state["param_groups"], strict=True):
                group["lr"] = float(saved["lr"])  # it may have been lowered
                group["capturable"] = args.cuda  # counts its steps on the GPU, as a CUDA graph needs it
            optimizer.load_state_dict({"state": state["state"], "param_groups": groups})
            names = {name for values in optimizer.state.values() for name in values}
            kind = lambda x: (x.dtype, x.shape, x.stride())  # noqa: E731
            for p, values in optimizer.state.items():  # a fused step looks at no shape: it would write beyond the end
                fit = {"step": [(torch.float32, (), ()), (p.dtype, (), ())]}
                if any(kind(values[name]) not in fit.get(name, [kind(p)]) for name in names):
                    raise ValueError("an optimizer's state does not fit its parameter")
    except Exception as error:  # a checkpoint of other code raises all kinds
        fail(f"--resume: {args.out}/checkpoint.pt does not fit this {SCRIPT}.py: {error}")
    for optimizer in optimizers:  # not by DistributedDataParallel, through which a gradient penalty does not work
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        optimizer.register_step_pre_hook(lambda *_, parameters=parameters: average([p.grad for p in parameters]))
    return networks, optimizers


def capture(iteration: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The iteration as a CUDA graph: what it launches on the GPU is recorded once, here, and then replayed by one call.

    Launching costs the host a few microseconds an operation, a step has hundreds, and small networks compute faster
    than that. A replay repeats the very launches on the same memory: the iteration must take its input from tensors
    that stay where they are, leave its results in such, and never wait for the GPU. Random numbers go on as without.
    """
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            values = iteration()
    except RuntimeError as error:
        print(f"hint: no CUDA graph, so steps may take longer: {str(error).partition(chr(10))[0]}")
        return iteration

    def replay() -> Tensor:
        graph.replay()
        return values

    return replay


@torch.no_grad()
def sample(generator: nn.Module, z: Tensor, labels: Tensor, args: Namespace) -> Tensor:
    """Images (N, C, S, S) in eval mode, in which none depends on its batch. The labels (N,) count in cgan only."""
    device = next(generator.parameters()).device
    images = generator.eval()(*(x.to(device) for x in ([z, labels] if "label" in args else [z])))
    generator.train()
    return images


def generate(args: Namespace, checkpoint: dict) -> int:
    """Writes --generate images to the run's folder, the same at every call; cgan: one folder for each class."""
    labels = torch.arange(args.generate) % max(1, len(args.classes))
    if vars(args).get("label") is not None:
        if args.label not in (known := args.classes + [str(i) for i in range(len(args.classes))]):
            fail(f"--label {args.label} is none of {', '.join(args.classes)}")
        labels.fill_(known.index(args.label) % len(args.classes))
    (generator, _), _ = load_networks(args, checkpoint)
    folder, rng = Path(args.out, "generated"), torch.Generator().manual_seed(args.seed)
    shutil.rmtree(folder, ignore_errors=True)
    for part in tqdm(torch.arange(args.generate).split(100), f"images in {folder}", unit="batch"):
        z = torch.randn(100, args.latent_dim, generator=rng)[: len(part)]
        for i, image in zip(part.tolist(), sample(generator, z, labels[part], args), strict=True):
            path = folder / (args.classes[labels[i]] if "label" in args else "") / f"{i:06d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            to_picture(image[None]).save(path)
    return 0


def train(args: Namespace, checkpoint: dict) -> int:
    """Trains until --epochs or --steps is reached, or SIGINT or SIGTERM comes. Returns the exit code."""
    if args.tensorboard:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            fail(f"--tensorboard: {error}; pip install tensorboard")
    if args.out is None:
        args.out = next(str(p) for k in itertools.count(1) if not (p := Path("runs", f"{SCRIPT}-{k}")).exists())
    for turn in range(3 if WORLD_SIZE > 1 else 1):  # what process 0, and then the first of each other machine, has
        if turn == (RANK > 0) + (LOCAL_RANK > 0):  # downloaded and decoded is there for the others
            images, labels, classes = load_data(args)
        average([torch.zeros(1)])
    for name, value in {"images": len(images), "channels": images.shape[1], "classes": classes}.items():
        if vars(args).setdefault(name, value) != value:
            fail(f"--data {args.data}: {name} {value}, but {args.out} was started with {vars(args)[name]}")
    print(f"{SCRIPT:12}{__doc__.splitlines()[0]}")
    print(f"data        {args.data}: {len(images):,} images, {' x '.join(map(str, images.shape[1:]))}")
    networks, optimizers = load_networks(args, checkpoint)
    device = torch.device("cuda" if args.cuda else "cpu")
    if args.cuda and images.nbytes < torch.cuda.mem_get_info()[0] / 2:  # else each batch travels to the GPU
        images, labels = images.to(device), labels.to(device)
    batches_per_epoch = len(images) // args.batch_size  # the last short batch is dropped
    rows = args.batch_size // WORLD_SIZE  # of each batch, for this process
    batches_per_step = getattr(args, "n_critic", getattr(args, "d_steps", 1))
    shape = (batches_per_step * rows, *images.shape[1:])  # of all real images of a step
    real = torch.empty(shape, device=device, memory_format=torch.channels_last)
    real_labels = labels.new_empty(len(real), device=device)
    batches = list(zip(real.split(rows), real_labels.split(rows), strict=True))
    names: list[str] = []

    def iteration() -> Tensor:
        """One training step on what real and real_labels hold. Returns the columns (len(names),)."""
        real.div_(127.5).sub_(1)
        with SplitBatch() if WORLD_SIZE > 1 else contextlib.nullcontext():
            metrics = train_step(networks, optimizers, batches, args)
        names[:] = metrics
        return torch.stack(list(metrics.values())).detach()

    last = min(math.ceil(args.epochs * batches_per_epoch / batches_per_step), args.steps or math.inf)

    grid = torch.arange(min(len(args.classes), 16) if "label" in args else 8).repeat_interleave(8)  # labels, 8 a row
    state = {"step": 0, "seconds": 0.0, "sums": torch.zeros(1), "labels": grid}
    state = checkpoint or {**state, "z": torch.randn(len(grid), args.latent_dim)}
    step, sums, start = state["step"], state["sums"].to(device), time.monotonic() - state["seconds"]
    if checkpoint:
        torch.set_rng_state(state["rng"])
        if args.cuda and state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"])
    run, table = Path(args.out), Path(args.out, "metrics.csv")
    config = {name: value for name, value in vars(args).items() if name not in ("resume", "generate", "label")}
    try:
        if RANK == 0:
            (run / "samples").mkdir(parents=True, exist_ok=True)
            replace_file(run / "config.json", json.dumps(config, indent=2).encode())
    except OSError as error:
        fail(f"--out: {error}")
    if RANK == 0 and table.exists():  # drop what was written after the checkpoint: it comes again
        lines = [line for line in table.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        lines = [line for line in lines if (n := line.split(b",")[0]) == b"step" or (n.isdigit() and int(n) <= step)]
        replace_file(table, b"".join(lines))
    writer = SummaryWriter(run, purge_step=step + 1) if args.tensorboard and RANK == 0 else None
    sizes = [f"{type(network).__name__} {sum(p.numel() for p in network.parameters()):,}" for network in networks]
    name = torch.cuda.get_device_name() if args.cuda else f"CPU, {torch.get_num_threads()} threads"
    print(f"device      {f'{WORLD_SIZE} x ' * (WORLD_SIZE > 1)}{name}{', bfloat16' if args.amp else ''}")
    print(f"networks    {' + '.join(sizes)} parameters")
    print(f"run         {run}, steps {step} to {last}", flush=True)

    def log() -> None:
        """Writes a row of means to metrics.csv."""
        average([sums])
        if RANK:
            return
        means = dict(zip(names, (sums / args.log_every).tolist(), strict=True))
        if not all(map(math.isfinite, means.values())):
            fail(f"not finite at step {step}: {means}; {run / 'checkpoint.pt'} is the last good state", 1)
        values = [f"{value:.6g}" for value in [*means.values(), time.monotonic() - start]]
        with table.open("a") as file:
            if file.tell() == 0:
                print("step", "epoch", *means, "seconds", sep=",", file=file)
            print(step, epoch, *values, sep=",", file=file)
        for name, value in means.items() if writer else ():
            writer.add_scalar(name, value, step)
        bar.set_postfix(means, refresh=False)

    def save() -> None:
        """Writes the samples and the checkpoint, unless the run has broken."""
        average([sums])
        if RANK:
            return
        if not all(x.isfinite().all() for x in [sums, *(x for n in networks for x in n.state_dict().values())]):
            fail(f"weights or losses not finite at step {step}; {run / 'checkpoint.pt'} is the last good state", 1)
        picture = to_picture(sample(networks[0], state["z"], state["labels"], args), 8)
        picture.save(run / "samples" / f"epoch-{epoch:04d}.png")
        if writer:
            writer.add_image("samples", np.atleast_3d(picture), step, dataformats="HWC")
        cuda_rng = torch.cuda.get_rng_state() if args.cuda else None
        state.update(script=SCRIPT, args=config, step=step, epoch=epoch, seconds=time.monotonic() - start)
        state.update(sums=sums.cpu(), rng=torch.get_rng_state(), cuda_rng=cuda_rng)
        state.update({type(network).__name__.lower(): network.state_dict() for network in networks})
        state["optimizers"] = [optimizer.state_dict() for optimizer in optimizers]
        buffer = io.BytesIO()
        torch.save(state, buffer)
        replace_file(run / "checkpoint.pt", buffer.getvalue())

    signals: list[int] = []

    def stop(number: int, _: object) -> None:
        """Ends the loop after the current step; the second time, the program at once."""
        if signals:
            sys.exit(128 + number)
        signals.append(number)

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    halt = torch.zeros(1)  # above 0 once a signal has come or a loss is not finite
    epoch, capture_at = state.get("epoch", 1), step + 3 if args.cuda else 0  # by then cuDNN has chosen its algorithms
    if not checkpoint:
        save()  # so that a run can be resumed from its first moment on
    interval = 0.1 if sys.stderr.isatty() else 10
    with tqdm(total=last, initial=step, unit="step", mininterval=interval, disable=RANK > 0) as bar:
        while step < last and not halt:
            first, step = step * batches_per_step, step + 1
            epoch, index = first // batches_per_epoch + 1, []
            for number in range(first, first + batches_per_step):
                e, i = divmod(number, batches_per_epoch)
                index.append(epoch_order(len(images), args.seed, e)[i * args.batch_size + RANK * rows :][:rows])
            index = torch.cat(index).to(images.device)
            real.copy_(images[index])
            real_labels.copy_(labels[index])
            values = iteration()
            if len(sums) not in (1, len(values)):
                fail(f"--resume: {run} logged {len(sums)} columns, this {SCRIPT}.py logs {len(values)}")
            sums = sums + values
            if step == capture_at:
                iteration = capture(iteration)
            bar.update()
            bar.set_description(f"epoch {epoch}/{args.epochs}", refresh=False)
            broken = not args.cuda and not sums.isfinite().all()  # a GPU would have to be waited for: see log()
            halt.fill_(len(signals) + broken)
            average([halt])  # a signal may reach the processes between different steps
            if step % args.log_every == 0:  # the only place where the host waits for the GPU
                log()
                sums = torch.zeros_like(sums)
            if first + batches_per_step >= epoch * batches_per_epoch or step == last or halt:
                save()
                average([halt])  # nobody goes on, or ends well, unless process 0 has written it
    frames = sorted((run / "samples").glob("epoch-*.png"), key=lambda path: (len(path.name), path.name))
    rest = (Image.open(path) for path in frames[1:])
    if frames and RANK == 0:  # or only the checkpoint of a finished run was kept
        Image.open(frames[0]).save(run / "training.gif", save_all=True, append_images=rest, duration=200, loop=0)
    again = f"python {SCRIPT}.py --resume {run}"
    more = "" if step < last else f" --steps {2 * step}" if last == args.steps else f" --epochs {2 * epoch}"
    print(f"stopped at step {step} of {last}; to go on: {again}{more}")
    print(f"samples in {run / 'training.gif'}; for more: {again} --generate 64")
    return 128 + signals[0] if signals else 0


def main(argv: list[str] | None = None) -> int:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        if WORLD_SIZE > 1:
            join_processes()
            sys.stdout = sys.stdout if RANK == 0 else open(os.devnull, "w")  # noqa: PTH123, SIM115
        box = [parse_args(argv) if RANK == 0 else None]
        if WORLD_SIZE > 1:
            dist.broadcast_object_list(box)  # the others need neither the command line's files nor the checkpoint
        args, checkpoint = box[0]
        if args.generate:
            return generate(args, checkpoint) if RANK == 0 else 0
        return train(args, checkpoint)
    except KeyboardInterrupt:  # before the first step or while generating
        fail("interrupted", 130)
    except (OSError, MemoryError, RuntimeError, UnicodeEncodeError) as error:  # disk full, out of memory, odd names
        if WORLD_SIZE > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error)):
            message = "another process of this run has ended; --resume goes on from its last checkpoint"
            sys.exit(1) if RANK else fail(message, 1)
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        fail(str(error).partition("\n")[0], 1)
    finally:
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()
        for number, handler in handlers.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
