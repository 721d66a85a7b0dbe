# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.10", "numpy", "pillow>=10.1", "tqdm", "matplotlib"]
# ///
"""Scores and pictures of trained runs.

    python evaluate.py score RUN...         classes, diversity, Frechet distance, memorisation, beside real images
    python evaluate.py parzen RUN           log-likelihood of the test images (Goodfellow et al. 2014, Table 1)
    python evaluate.py neighbours RUN       samples above their nearest training images, a picture
    python evaluate.py interpolate RUN      what lies between two samples, a picture
    python evaluate.py curves RUN...        metrics.csv as a plot (needs matplotlib)
    python evaluate.py fid RUN              the commands that compute FID, with torch-fidelity or clean-fid

A RUN is a folder that one of the scripts has written; they must lie beside this file, whose parts are theirs.
Samples are drawn by the average of G's weights. docs/evaluate.md says how each figure is made and how to read it.
"""

import contextlib
import csv
import hashlib
import importlib.util
import json
import math
import shlex
import shutil
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

SCRIPTS = ["vanilla_gan", "dcgan", "cgan", "wgan", "wgan_gp", "lsgan", "acgan", "fgan"]


def fail(message: str, code: int = 2) -> NoReturn:
    """Ends the program with one line: code 2 for bad usage or bad input, 1 for a disk or a memory that is full."""
    tqdm.write(f"evaluate.py: error: {' '.join(message.split())}", file=sys.stderr)  # not behind a progress bar
    raise SystemExit(code)


class Run(NamedTuple):
    """A trained run; script is the module that made it, args are its arguments."""

    folder: Path
    script: ModuleType
    args: Namespace
    checkpoint: dict
    device: str

    def load_images(self) -> tuple[Tensor, Tensor]:
        """All images that the run was trained on, uint8 (N, C, S, S), and their labels (N,)."""
        images, labels, classes = self.script.load_data(self.args)
        if (*images.shape[1:3], classes) != (self.args.channels, self.args.image_size, self.args.classes):
            fail(f"--data {self.args.data} has changed since {self.folder}: other sizes, channels or classes")
        return images, labels

    def load_data(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], str]:
        """The images of the run, images held out, and what those are: test images, if there are some, else a sixth."""
        images, labels = self.load_images()
        path = Path(self.args.data, "test_images.npy")
        if self.args.data == "glyphs" or not path.exists():
            step = max(6, math.ceil(len(images) / 10_000))
            held_out = torch.arange(len(images)) % step == 0
            name = f"one training image in {step}: the GAN has seen them, what they are compared with has not"
            return (images[~held_out], labels[~held_out]), (images[held_out], labels[held_out]), name
        try:
            test = np.load(path)  # without classes there are no labels, and nothing asks for them
            test_labels = np.load(path.with_name("test_labels.npy")) if self.args.classes else np.zeros(len(test))
            if test.dtype != np.uint8 or test.shape[1:] != images.shape[1:] or test_labels.shape != (len(test),):
                raise ValueError("they do not go with images.npy")
        except (OSError, ValueError, EOFError) as error:
            fail(f"the test images of {self.args.data}: {error}")
        held_out = torch.from_numpy(test), torch.from_numpy(test_labels.astype(np.int64))
        return (images, labels), held_out, f"the test images of {self.args.data}"

    def load_generator(self, trained: bool = True) -> nn.Module:
        """The averaged generator, in eval mode, without gradients; or one of the same kind before its training."""
        with contextlib.redirect_stdout(None):  # ours is for results
            networks, _ = self.script.load_networks(self.args, self.checkpoint if trained else {})
        torch.set_float32_matmul_precision("highest")  # what it sets is good for training, not for distances
        return networks["generator_ema"]

    def sample(self, generator: nn.Module, z: Tensor, labels: Tensor) -> Tensor:
        """Images (N, C, S, S) in [-1, 1], on the device, from z (N, latent_dim) and, in cgan only, labels (N,)."""
        return generator(*(x.to(self.device) for x in ([z, labels] if "label" in self.args else [z])))

    def draw(self, count: int, trained: bool = True) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of samples and the labels (n,) asked of cgan, all classes in turn."""
        generator, rng = self.load_generator(trained), torch.Generator().manual_seed(self.args.seed)
        labels = torch.arange(count) % max(1, len(self.args.classes))
        for part in tqdm(labels.split(100), f"samples of {self.folder}", unit="batch", leave=False):
            yield self.sample(generator, torch.randn(len(part), self.args.latent_dim, generator=rng), part), part


def load_run(folder: str, options: Namespace) -> Run:
    """Reads a run and imports the script that made it, a copy for us alone, whose errors come under our name."""
    try:
        checkpoint = torch.load(Path(folder, "checkpoint.pt"), map_location="cpu", weights_only=True)
        name, args = checkpoint["script"], Namespace(**checkpoint["args"])
        if name not in SCRIPTS:
            raise ValueError(f"{name} is none of {', '.join(SCRIPTS)}")
        if "generator_ema" not in checkpoint:
            raise ValueError(f"it has no average of G's weights, so it is of an older {name}.py")
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        script = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(script)
    except Exception as error:  # torch.load raises all kinds on a broken file
        fail(f"{folder} is no run: {type(error).__name__}: {str(error).partition('. ')[0]}")
    script.fail = fail
    args.out, args.kernels = folder, "off"  # nothing is trained here
    args.cuda, args.data = vars(options).get("cuda", False), vars(options).get("data") or args.data
    if args.cuda and not torch.cuda.is_available():
        fail("--cuda: PyTorch sees no GPU; without --cuda it runs on the CPU")
    return Run(Path(folder), script, args, checkpoint, "cuda" if args.cuda else "cpu")


def to_bytes(images: Tensor) -> Tensor:
    """Images in [-1, 1] as uint8, rounded as in the scripts' pictures."""
    return images.mul(127.5).add(128).clamp(0, 255).byte()


def log_likelihood(x: Tensor, samples: Tensor, sigmas: list[float], chunk: int = 100) -> Tensor:
    """log p(x) (len(sigmas), N), where p is the mean of Gaussians N(sample, sigma^2 I), in blocks of chunk x M numbers.

    x (N, D) and samples (M, D) are float64, because |x|^2 - 2 x sample + |sample|^2 cancels.
    """
    (count, dims), norms, found = samples.shape, samples.square().sum(1), []
    for part in tqdm(x.split(chunk), "log-likelihood", unit="chunk", leave=False):
        squares = torch.addmm(norms, part, samples.T, alpha=-2).add_(part.square().sum(1, keepdim=True))  # (chunk, M)
        found.append(torch.stack([(squares * (-0.5 / sigma**2)).logsumexp(1) for sigma in sigmas]))
    constants = [math.log(count) + dims * math.log(sigma * math.sqrt(2 * math.pi)) for sigma in sigmas]
    return torch.cat(found, dim=1) - torch.tensor(constants, dtype=x.dtype, device=x.device)[:, None]


def parzen(options: Namespace) -> None:
    """Log-likelihood of the test images under Gaussians around samples (Goodfellow et al. 2014, Table 1).

    As in the authors' code (https://github.com/goodfeli/adversarial, parzen_ll.py) pixels count from 0 to 1, and sigma
    is the best for 1,000 images of the last sixth of the training set; but of 55 values, and our GAN has seen those.
    """
    run = load_run(options.run, options)
    (train, _), (test, _), name = run.load_data()
    last, side = len(train) * 5 // 6, run.args.image_size
    # 28x28 images that became 32x32 by a black border lose it again: the paper's have none.
    border = 2 if side == 32 and test.count_nonzero() == test[:, :, 2:-2, 2:-2].count_nonzero() else 0

    def vectors(images: Tensor) -> Tensor:
        """Images, uint8 or in [-1, 1], as float64 (N, D) in [0, 1], on the device."""
        x = images[:, :, border : side - border, border : side - border].flatten(1).to(run.device, torch.float64)
        return x / 255 if images.dtype == torch.uint8 else (x + 1) / 2

    valid, x = vectors(train[last:][:1000]), vectors(test)
    print(f"test        {name} ({len(x):,} x {x.shape[1]} pixels)")
    print(f"sigma       {options.sigma or f'the best of 55 for {len(valid):,} training images, from {last:,} on'}")
    names = ["training images", str(run.folder), "untrained"]
    width = max(map(len, names))
    print(f"{'samples':{width}}{'number':>9}{'sigma':>8}{'log-likelihood':>17}", flush=True)
    for name in names:
        if name == "training images":
            samples = vectors(train[:last][: options.samples])
        else:
            samples = torch.cat([vectors(images) for images, _ in run.draw(options.samples, name != "untrained")])
        sigmas = [options.sigma] if options.sigma else torch.logspace(-1, 0, 55).tolist()
        sigma = sigmas[int(log_likelihood(valid, samples, sigmas).mean(1).argmax())]
        ll = log_likelihood(x, samples, [sigma])[0]
        error = ll.std().item() / math.sqrt(len(ll))
        print(f"{name:{width}}{len(samples):9,}{sigma:8.3f}{ll.mean().item():10.1f} ± {error:.1f}", flush=True)


def new_classifier(channels: int, classes: int) -> nn.Sequential:
    """Maps images (N, channels, 32, 32) in [-1, 1] to features (N, 128) and these, by its last layer, to logits."""
    layers = []
    for i, o in ((channels, 32), (32, 64), (64, 128)):  # to 16x16, 8x8, 4x4
        layers += [nn.Conv2d(i, o, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(2048, 128), nn.ReLU(), nn.Linear(128, classes))


def load_classifier(images: Tensor, labels: Tensor, classes: int, device: str) -> nn.Sequential:
    """A classifier trained on images uint8 (N, C, 32, 32) and labels (N,), from data/cache, where it is put then."""
    key = hashlib.sha256(Path(__file__).read_bytes())
    for part in (*images.split(10_000), labels):
        key.update(part.contiguous().numpy())
    path, rng = Path("data/cache", f"classifier-{key.hexdigest()[:16]}.pt"), torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    classifier = new_classifier(images.shape[1], classes).to(device)
    with contextlib.suppress(Exception):  # torch.load raises all kinds on a broken file; it is made anew
        classifier.load_state_dict(torch.load(path, map_location=device, weights_only=True))
        return classifier.eval()
    optimizer, steps = torch.optim.Adam(classifier.parameters()), min(1500, 20 * math.ceil(len(images) / 128))
    for step in tqdm(range(steps), "training the classifier", unit="step", leave=False):
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 - step / steps)
        part = torch.randint(len(images), (128,), generator=rng)
        loss = F.cross_entropy(classifier(images[part].to(device) / 127.5 - 1), labels[part].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(classifier.state_dict(), path)
    return classifier.eval()


def to_32(images: Tensor) -> Tensor:
    """Images uint8 (N, C, S, S) as uint8 (N, C, 32, 32), so that runs of all sizes compare."""
    if images.shape[-1] == 28:
        return F.pad(images, (2, 2, 2, 2))  # as the convolutional scripts do with MNIST
    return images if images.shape[-1] == 32 else F.interpolate(images, (32, 32), mode="bilinear", antialias=True)


@torch.no_grad()
def classify(classifier: nn.Sequential, images: Tensor) -> tuple[Tensor, Tensor]:
    """Features, float64 (N, 128), of images uint8 (N, C, 32, 32), and the classes that are read (N,)."""
    device = next(classifier.parameters()).device
    features = torch.cat([classifier[:-1](part.to(device) / 127.5 - 1) for part in images.split(500)])
    return features.double().cpu(), classifier[-1](features).argmax(1).cpu()


def frechet(x: Tensor, y: Tensor) -> float:
    """Frechet distance of the Gaussians with the means and covariances of x (N, D) and y (M, D), float64.

    |m - n|^2 + Tr(A + B - 2 (A^1/2 B A^1/2)^1/2), the formula of FID (Heusel et al. 2017), here in other features.
    """
    a, b = x.T.cov(correction=0), y.T.cov(correction=0)
    values, vectors = torch.linalg.eigh(a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ b @ root).clamp(min=0).sqrt().sum()
    return ((x.mean(0) - y.mean(0)).square().sum() + a.trace() + b.trace() - 2 * cross).item()


def nearest(x: Tensor, train: Tensor, k: int, device: str, chunk: int = 2**22) -> tuple[Tensor, Tensor]:
    """Distances (N, k) and indices (N, k) of the k nearest of train (M, ...) to each of x (N, ...), all uint8.

    Euclidean, pixels count from 0 to 1. Takes train in chunks of so many pixels.
    """
    flat = x.flatten(1).to(device).float() / 255
    best, index = flat.new_full((len(x), k), math.inf), torch.zeros(len(x), k, dtype=torch.long, device=device)
    chunk = max(1, chunk // flat.shape[1])
    for start in tqdm(range(0, len(train), chunk), "neighbours", unit="chunk", leave=False):
        part = train[start : start + chunk].flatten(1).to(device).float() / 255
        squares = torch.addmm(part.square().sum(1), flat, part.T, alpha=-2)  # (N, chunk), |x|^2 left out
        near, where = squares.topk(min(k, len(part)), dim=1, largest=False)
        best, order = torch.cat([best, near], 1).topk(k, dim=1, largest=False)
        index = torch.cat([index, where + start], 1).gather(1, order)
    exact = [torch.linalg.vector_norm((x.float() - train[i].float()).flatten(1) / 255, dim=1) for i in index.cpu().T]
    return torch.stack(exact, 1), index.cpu()


def spread(images: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The mean distance of two images of the same class, for each class (classes,), from its first 500; NaN if < 2."""
    parts = (images[labels == k][:500].flatten(1).float() / 255 for k in range(classes))
    return torch.stack([F.pdist(part).mean() for part in parts])


class Judge:
    """What sets of images are compared with: a classifier, and what it makes of the training images."""

    def __init__(self, images: Tensor, labels: Tensor, classes: int, device: str) -> None:
        self.device, self.classes = device, classes
        self.train = torch.cat([to_32(part) for part in images.split(1000)])
        self.classifier = load_classifier(self.train, labels, classes, device)
        self.features, read = classify(self.classifier, self.train)
        self.share = read.bincount(minlength=self.classes) / len(read)
        self.spread = spread(self.train, read, self.classes)

    def __call__(self, images: Tensor, labels: Tensor | None) -> dict[str, float | None]:
        """The figures of images uint8 (N, C, 32, 32); with the labels (N,) that they should have also the accuracy."""
        features, read = classify(self.classifier, images)
        share = read.bincount(minlength=self.classes) / len(read)
        diversity = spread(images, read, self.classes) / self.spread
        diversity = diversity[diversity.isfinite()]  # of the classes that are there
        distance, _ = nearest(images, self.train, 2, self.device)
        return {
            "images": len(images),
            "classes": (share >= self.share / 10).logical_and(share > 0).sum().item(),
            "entropy": abs(share.xlogy(share).sum().item()) / math.log(max(2, self.classes)),
            "diversity": diversity.mean().item() if len(diversity) else None,
            "least diversity": diversity.min().item() if len(diversity) else None,
            "frechet": frechet(features, self.features),
            "memorised": (2 * distance[:, 0] <= distance[:, -1]).double().mean().item(),
            "accuracy": None if labels is None else (read == labels).double().mean().item(),
        }


FORMATS = {  # of the table's columns
    **{"images": ",.0f", "classes": ".0f", "entropy": ".3f", "diversity": ".2f", "least diversity": ".2f"},
    **{"frechet": ".2f", "memorised": ".2%", "accuracy": ".1%"},
}


def score(options: Namespace) -> None:
    """Classes, diversity, Frechet distance, memorisation, beside those of real images and an untrained generator."""
    runs = [load_run(folder, options) for folder in options.runs]
    first = runs[0].args
    for run in runs:
        if (run.args.data, run.args.channels, run.args.classes) != (first.data, first.channels, first.classes):
            fail(f"{run.folder} was trained on {run.args.data}, {runs[0].folder} on {first.data}: score them apart")
    if not first.classes:
        fail(f"score needs images with classes, and {first.data} has none; try neighbours, or fid")
    train, (held_out, labels), held_out_name = runs[0].load_data()
    judge = Judge(*train, len(first.classes), runs[0].device)
    rows = {"held-out": judge(to_32(held_out), labels)}
    sources = {str(run.folder): (run, True) for run in runs}
    sources |= {f"untrained {run.script.__name__}": (run, False) for run in runs}
    for name, (run, trained) in sources.items():
        parts = [(to_32(to_bytes(images).cpu()), labels) for images, labels in run.draw(options.samples, trained)]
        images, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        rows[name] = judge(images, labels if "label" in run.args else None)
    text = json.dumps({"data": first.data, "held_out": held_out_name, "rows": rows}, indent=2)
    if options.json == "-":
        print(text)
        return
    print(f"data        {first.data}, {len(train[0]):,} training images, {len(first.classes)} classes")
    print(f"held-out    {held_out_name}")
    width = max(map(len, rows))
    print(f"{'':{width}}", *(f"{name:>8}" for name in FORMATS), sep="  ")
    for name, row in rows.items():
        cells = ["-" if row[key] is None else f"{row[key]:{form}}" for key, form in FORMATS.items()]
        print(f"{name:{width}}", *(f"{c:>{max(8, len(key))}}" for key, c in zip(FORMATS, cells, strict=True)), sep="  ")
    if options.json:
        Path(options.json).write_text(text + "\n")


def neighbours(options: Namespace) -> None:
    """Sixteen samples, below each its three nearest training images, as RUN/neighbours.png."""
    run = load_run(options.run, options)
    images, _ = run.load_images()
    samples = to_bytes(next(run.draw(16))[0]).cpu()
    _, index = nearest(samples, images, 3, run.device)  # (16, 3)
    tiles = torch.cat([samples, *(images[i] for i in index.T)])  # row after row
    run.script.to_picture(tiles.float() / 127.5 - 1, columns=16).save(run.folder / "neighbours.png")
    print(f"{run.folder / 'neighbours.png'}: samples in the top row, below each its nearest training images")


def interpolate(options: Namespace) -> None:
    """What G makes of straight lines in z, as RUN/interpolate.png; cgan: of each class, then from class to class."""
    run = load_run(options.run, options)
    generator, conditional = run.load_generator(), "label" in run.args
    labels = torch.arange(min(len(run.args.classes), 16) if conditional else 8)  # one row each
    rng, way = torch.Generator().manual_seed(run.args.seed), torch.linspace(0, 1, 10)
    start, end = torch.randn(2, len(labels), run.args.latent_dim, generator=rng)
    columns = [run.sample(generator, start.lerp(end, t), labels) for t in way]
    tiles = torch.stack(columns, dim=1).flatten(0, 1)  # row after row
    if conditional:  # z stays; forward takes whole labels, its layers any mixture of two
        y = torch.eye(len(run.args.classes))[labels]
        inputs = [torch.cat([start, y.lerp(y.roll(-1, 0), t)], dim=1)[:, :, None, None] for t in way]
        columns = [generator.layers(x.to(run.device)) for x in inputs]
        tiles = torch.cat([tiles, torch.stack(columns, dim=1).flatten(0, 1)])
    run.script.to_picture(tiles, columns=10).save(run.folder / "interpolate.png")
    print(f"{run.folder / 'interpolate.png'}: in each row z goes straight; below, in cgan, from one class to the next")


def curves(options: Namespace) -> None:
    """The columns of metrics.csv over the steps, one panel each, as RUN/curves.png; several runs overlaid."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        fail(f"curves: {error}; pip install matplotlib")
    tables = {}  # of each run the columns
    for run in options.runs:
        try:
            rows = list(csv.DictReader(Path(run, "metrics.csv").read_text().splitlines()))
            columns = {name: [float(row[name]) for row in rows] for name in rows[0]}
            tables[run] = columns.pop("step"), {k: v for k, v in columns.items() if k not in ("epoch", "seconds")}
        except (OSError, ValueError, TypeError, LookupError) as error:
            fail(f"{run} has no metrics.csv with a row to draw: {type(error).__name__}: {error}")
    names = list(dict.fromkeys(name for _, columns in tables.values() for name in columns))
    if not names:
        fail(f"{', '.join(tables)}: metrics.csv has nothing to draw")
    figure = Figure(figsize=(8, 2.2 * len(names)))
    axes = figure.subplots(len(names), sharex=True, squeeze=False)
    for name, ax in zip(names, axes[:, 0], strict=True):
        for run, (steps, columns) in tables.items():
            ax.plot(steps, columns.get(name, [math.nan] * len(steps)), label=run, linewidth=1)
        ax.set_ylabel(name)
        ax.grid(alpha=0.3)
    axes[0, 0].legend(loc="lower right", bbox_to_anchor=(1, 1))
    axes[-1, 0].set_xlabel("updates of G")
    path = Path(options.out or Path(options.runs[0], "curves.png"))
    try:
        figure.savefig(path, dpi=100, bbox_inches="tight")
    except ValueError as error:
        fail(f"--out {path}: {error}")
    print(path)


def fid(options: Namespace) -> None:
    """Writes training images, as the GAN saw them, to RUN/real and prints the commands that compute FID."""
    run = load_run(options.run, options)
    images, _ = run.load_images()
    real, generated, count = run.folder / "real", run.folder / "generated", min(options.samples, len(images))
    shutil.rmtree(real, ignore_errors=True)
    real.mkdir()
    for i in tqdm(torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:count].tolist(), str(real)):
        run.script.to_picture(images[i : i + 1].float() / 127.5 - 1).save(real / f"{i:06d}.png")
    a, b, folder = (shlex.quote(str(path)) for path in (generated, real, run.folder))
    where, device = ("--gpu 0", "") if torch.cuda.is_available() else ("--cpu", ', device=device("cpu")')
    imports = "from sys import argv; from torch import device; from cleanfid.fid import compute_fid"
    print(f"python {run.script.__name__}.py --resume {folder} --generate {count}")
    print("# then with torch-fidelity (pip install torch-fidelity)")
    print(f"fidelity {where} --fid --samples-find-deep --input1 {a} --input2 {b}")
    print("# or with clean-fid (pip install clean-fid)")
    print(f"python -c '{imports}; print(compute_fid(*argv[1:]{device}))' {a} {b}")


def main(argv: list[str] | None = None) -> int:
    parser = ArgumentParser("evaluate.py", description=__doc__.splitlines()[0])
    parser.error = fail
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for function in (score, parzen, neighbours, interpolate, curves, fid):
        name, text = function.__name__, function.__doc__.splitlines()[0]
        command = commands.add_parser(name, help=text, description=text)
        command.error = fail
        command.set_defaults(function=function)
        add = command.add_argument
        many = name in ("score", "curves")
        add("runs" if many else "run", nargs="+" if many else None, metavar="RUN", help="folder of a run")
        if name in ("score", "parzen", "fid"):
            add("--samples", type=int, default=10_000, metavar="N", help="number of images (%(default)s)")
        if name in ("score", "parzen", "neighbours", "fid"):
            add("--data", metavar="DIR", help="where the data are now (where the run had them)")
        if name in ("score", "parzen", "neighbours", "interpolate"):
            add("--cuda", action="store_true", help="run on the GPU")
        if name == "score":
            add("--json", metavar="FILE", help="write the figures as JSON too; - is stdout, without the table")
        if name == "parzen":
            add("--sigma", type=float, metavar="X", help="width of the Gaussians (the best of 55)")
        if name == "curves":
            add("--out", metavar="FILE", help="the picture (curves.png in the first RUN)")
    options = parser.parse_args(argv)
    if not 2 <= vars(options).get("samples", 2) <= 1_000_000:
        fail(f"--samples {options.samples} is not between 2 and 1,000,000")
    if vars(options).get("sigma") is not None and not 1e-3 <= options.sigma <= 1e3:
        fail(f"--sigma {options.sigma} is not between 0.001 and 1000")
    try:
        options.function(options)
    except KeyboardInterrupt:
        fail("interrupted", 130)
    except (OSError, MemoryError, torch.OutOfMemoryError) as error:  # a full disk, a folder without permission
        fail(str(error).partition("\n")[0], 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
