# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.10", "numpy", "pillow>=10.1", "tqdm", "matplotlib"]
# ///
"""Scores and pictures of trained runs.

    python evaluate.py score RUN...       classes, diversity, Frechet distance, beside real images
    python evaluate.py parzen RUN         log-likelihood of test images (Goodfellow et al. 2014)
    python evaluate.py neighbours RUN     a picture of samples and their nearest training images
    python evaluate.py interpolate RUN    a picture and a film of what lies between two samples
    python evaluate.py film RUN           the run's sample pictures as an animation
    python evaluate.py curves RUN...      metrics.csv as a plot (needs matplotlib)
    python evaluate.py fid RUN            FID, KID, precision, recall (needs torch-fidelity)

RUN is a folder written by one of the training scripts. Keep this file beside them: it imports the
script of a run to rebuild the networks. docs/evaluate.md explains how to read each figure.
"""

import csv
import hashlib
import importlib
import inspect
import math
import sys
from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

BANNER = "\n# ----------------------- Plumbing"  # only scripts have this line


def find_scripts() -> list[str]:
    """The names of the scripts beside this file, dcgan for dcgan.py."""
    files = sorted(Path(__file__).resolve().parent.glob("*.py"))
    return [file.stem for file in files if BANNER in file.read_text("utf-8")]


class Run(NamedTuple):
    """A trained run: its folder, the script that made it, its options and its weights."""

    folder: Path
    script: ModuleType
    args: Namespace
    checkpoint: dict

    def load_generator(self, trained: bool = True) -> nn.Module:
        """The averaged generator, in eval mode; if not trained, as it was before the first step."""
        networks, _ = self.script.make_networks(self.args, self.checkpoint if trained else {})
        return networks["generator_ema"]

    def labels(self, count: int) -> Tensor:
        """The labels of count samples (count,): each class in turn, all 0 without classes."""
        return torch.arange(count) % max(1, len(self.args.classes))

    def draw(self, count: int, trained: bool = True) -> Iterator[Tensor]:
        """Samples in [-1, 1], on the device, in batches of 100."""
        generator = self.load_generator(trained)
        random = torch.Generator().manual_seed(self.args.seed)
        batches = self.labels(count).to(self.args.device).split(100)
        for labels in tqdm(batches, f"samples of {self.folder}", leave=False):
            z = torch.randn(len(labels), self.args.latent_dim, generator=random)
            yield self.script.sample(generator, self.args, z.to(self.args.device), labels)


def load_run(folder: str | Path, data: str | None = None, cuda: bool = False) -> Run:
    """Loads a run without executing anything in its folder, so that a stranger's run is safe."""
    path = Path(folder, "checkpoint.pt")
    if not path.exists():
        sys.exit(f"{path} does not exist. Name the folder of a run.")
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    name = checkpoint.get("script")
    scripts = find_scripts()
    if name not in scripts:
        sys.exit(f"{folder} is a run of {name}, which is not one of {', '.join(scripts)}.")
    if "sample_every" not in checkpoint["args"]:  # the newest option
        sys.exit(f"{folder} was trained with an older version of {name}.py. Train it again.")
    args = Namespace(**checkpoint["args"])
    args.data = str(Path(data or args.data))  # data/mnist-32/ is data/mnist-32
    args.amp = False  # all figures are computed in float32
    args.cuda = cuda
    args.device = "cuda" if cuda else "cpu"
    return Run(Path(folder), importlib.import_module(name), args, checkpoint)


def to_bytes(images: Tensor) -> Tensor:
    """Images in [-1, 1] as uint8 on the CPU, rounded as in the scripts' pictures."""
    return images.add(1).mul(127.5).round().clamp(0, 255).byte().cpu()


def to_floats(images: Tensor) -> Tensor:
    """Images uint8 as float32 in [-1, 1]."""
    return images / 127.5 - 1


def to_32(images: Tensor) -> Tensor:
    """Images uint8 (N, C, S, S) as uint8 (N, C, 32, 32), so that runs of all sizes compare."""
    side = images.shape[-1]
    if side == 32:
        return images
    if side == 28:
        return F.pad(images, (2, 2, 2, 2))  # a black border, as prepare.py adds to MNIST
    parts = images.split(1000)  # bounds the memory
    return torch.cat([F.interpolate(x, (32, 32), mode="bilinear", antialias=True) for x in parts])


def draw_32(run: Run, count: int, trained: bool = True) -> Tensor:
    """Samples as uint8 (count, C, 32, 32), on the CPU."""
    return torch.cat([to_32(to_bytes(images)) for images in run.draw(count, trained)])


class ImageSet(NamedTuple):
    """Images uint8 (N, C, S, S) and their labels (N,)."""

    images: Tensor
    labels: Tensor


def load_training_data(run: Run) -> ImageSet:
    """All images that the run was trained on."""
    images, labels, classes = run.script.load_data(run.args.data)
    args = run.args
    found = [images.shape[1], images.shape[2], classes]
    expected = [args.channels, args.image_size, args.classes]
    if found != expected:
        sys.exit(f"{args.data} has other sizes, channels or classes than {run.folder} had.")
    return ImageSet(images, labels)


def split(train: ImageSet) -> tuple[ImageSet, ImageSet, str]:
    """As split_data, for data without test images."""
    step = max(6, math.ceil(len(train.images) / 10_000))  # a sixth, at most 10,000 images
    is_held_out = torch.arange(len(train.images)) % step == 0
    rest = ImageSet(train.images[~is_held_out], train.labels[~is_held_out])
    held_out = ImageSet(train.images[is_held_out], train.labels[is_held_out])
    text = f"one training image in {step}, which the GAN has seen and the classifier has not"
    return rest, held_out, text


def split_data(run: Run) -> tuple[ImageSet, ImageSet, str]:
    """Reference images, held-out images, and a description of the latter."""
    train = load_training_data(run)
    path = Path(run.args.data, "test_images.npy")
    if run.args.data != "digits" and path.exists():
        images = torch.from_numpy(np.load(path))
        labels = torch.zeros(len(images), dtype=torch.long)
        if run.args.classes:
            labels = torch.from_numpy(np.load(path.with_name("test_labels.npy")))
        return train, ImageSet(images, labels), f"the test images of {run.args.data}"
    return split(train)


def new_classifier(channels: int, classes: int) -> nn.Sequential:
    """Maps images (N, channels, 32, 32) to logits. All layers but the last give 128 features."""
    layers = []
    for before, after in ((channels, 32), (32, 64), (64, 128)):  # to 16x16, 8x8, 4x4
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)]
        layers += [nn.BatchNorm2d(after), nn.ReLU()]
    layers += [nn.Flatten(), nn.Linear(128 * 4 * 4, 128), nn.ReLU(), nn.Linear(128, classes)]
    return nn.Sequential(*layers)


def train_classifier(classifier: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Trains on images uint8 (N, C, 32, 32) for up to 20 epochs."""
    device = next(classifier.parameters()).device
    random = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(classifier.parameters())
    steps = min(1500, 20 * math.ceil(len(images) / 128))
    for step in tqdm(range(steps), "training the classifier", leave=False):
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 - step / steps)
        index = torch.randint(len(images), (128,), generator=random)
        logits = classifier(to_floats(images[index].to(device)))
        loss = F.cross_entropy(logits, labels[index].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def new_colour_classifier(channels: int, classes: int) -> nn.Sequential:
    """As new_classifier, for images in colour, because photos need more layers than digits do.

    The layers are those of airbench94 (Jordan 2024, https://arxiv.org/abs/2404.00498), at half its
    width.
    """
    before = 2 * channels * 2 * 2  # both signs of as many filters as a patch of 2x2 has values
    layers = [nn.Conv2d(channels, before, 2), nn.GELU()]  # to 31x31; see whiten
    for after in (32, 128, 128):  # to 15x15, 7x7, 3x3
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.MaxPool2d(2)]
        layers += [nn.BatchNorm2d(after, momentum=0.4), nn.GELU()]
        layers += [nn.Conv2d(after, after, 3, padding=1, bias=False)]
        layers += [nn.BatchNorm2d(after, momentum=0.4), nn.GELU()]
        before = after
    layers += [nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(128, classes, bias=False)]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)  # faster on a CPU


def whiten(conv: nn.Conv2d, images: Tensor) -> None:
    """Sets the filters to the principal components of patches, with both signs, and freezes them.

    They are scaled so that all outputs are about equally large. images: uint8 (N, C, 32, 32).
    """
    chosen = images[:: len(images) // 5000 + 1]  # enough, and of all classes if they are sorted
    patches = F.unfold(to_floats(chosen), conv.kernel_size)  # (N, D, positions)
    patches = patches.transpose(1, 2).flatten(0, 1)  # (N positions, D)
    eigenvalues, eigenvectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    filters = eigenvectors / (eigenvalues + 5e-4).sqrt()  # a column is a filter
    filters = filters.T.view(-1, *conv.weight[0].shape)
    conv.weight.data.copy_(torch.cat([filters, -filters]))
    conv.bias.data.zero_()
    conv.requires_grad_(False)


def train_colour_classifier(classifier: nn.Sequential, images: Tensor, labels: Tensor) -> None:
    """Trains on images uint8 (N, C, 32, 32) for 20 epochs, or 10 if there are over 10,000 images.

    The recipe is that of airbench94, simplified: without lookahead, and all images of a batch are
    shifted alike.
    """
    device = next(classifier.parameters()).device
    random = torch.Generator().manual_seed(0)
    whiten(classifier[0], images)
    for layer in classifier[1:]:
        if isinstance(layer, nn.BatchNorm2d):
            layer.weight.requires_grad_(False)
        elif isinstance(layer, nn.Conv2d):
            nn.init.dirac_(layer.weight.data[: layer.in_channels])  # passes its input on
    trained = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    weights = [parameter for parameter in trained if parameter.ndim > 1]
    biases = [parameter for parameter in trained if parameter.ndim == 1]  # of BatchNorm
    groups = [
        {"params": weights, "weight_decay": 1.3e-3},
        {"params": biases, "weight_decay": 1.3e-3 / 64},  # as strong, with 64 times the rate
    ]
    optimizer = torch.optim.SGD(groups, lr=0, momentum=0.85, nesterov=True)
    epochs = 10 if len(images) > 10_000 else 20
    order = torch.cat([torch.randperm(len(images), generator=random) for _ in range(epochs)])
    batches = order.split(128)
    for step, index in enumerate(tqdm(batches, "training the classifier", leave=False)):
        progress = (step + 0.5) / len(batches)
        lr = 0.25 * min(4 * progress, (1 - progress) / 0.75)  # rises for a quarter of the steps
        optimizer.param_groups[0]["lr"] = lr
        optimizer.param_groups[1]["lr"] = 64 * lr
        x = to_floats(images[index].to(device))
        is_mirrored = torch.rand(len(x), 1, 1, 1, generator=random) < 0.5
        x = torch.where(is_mirrored.to(device), x.flip(3), x)
        top, left = torch.randint(5, (2,), generator=random).tolist()
        x = F.pad(x, (2, 2, 2, 2), "reflect")[:, :, top : top + 32, left : left + 32]
        logits = classifier(x) / 9  # airbench94's scale: at first they are too large
        loss = F.cross_entropy(logits, labels[index].to(device), label_smoothing=0.2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def load_classifier(images: Tensor, labels: Tensor, classes: int, device: str) -> nn.Sequential:
    """The classifier of images uint8 (N, C, 32, 32). It is trained once and kept in data/cache."""
    if images.shape[1] == 3:
        new, train = new_colour_classifier, train_colour_classifier
        code = (new, train, whiten)
    else:
        new, train = new_classifier, train_classifier
        code = (new, train)
    key = hashlib.sha256(str(classes).encode())
    for function in code:
        key.update(inspect.getsource(function).encode())
    for tensor in (images, labels):
        key.update(tensor.contiguous().numpy())
    path = Path("data/cache", f"classifier-{key.hexdigest()[:16]}.pt")
    torch.manual_seed(0)
    classifier = new(images.shape[1], classes).to(device)
    if path.exists():
        classifier.load_state_dict(torch.load(path, map_location=device, weights_only=True))
        return classifier.eval()
    train(classifier, images, labels)
    unfinished = path.with_suffix(".part")  # an interrupted save leaves no broken .pt
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(classifier.state_dict(), unfinished)
        unfinished.replace(path)
    except (OSError, RuntimeError) as error:  # where nothing can be written, it is not kept
        print(f"The classifier is not kept for the next time: {error}", file=sys.stderr)
    return classifier.eval()


@torch.no_grad()
def classify(classifier: nn.Sequential, images: Tensor) -> tuple[Tensor, Tensor]:
    """Features float64 (N, 128) and classes (N,) of images uint8 (N, C, 32, 32)."""
    device = next(classifier.parameters()).device
    all_features = []
    for batch in images.split(500):
        x = to_floats(batch.to(device))
        features = classifier[:-1](x)
        if images.shape[1] == 3:  # as in training, a mirror image is as good
            features = (features + classifier[:-1](x.flip(3))) / 2
        all_features.append(features)
    features = torch.cat(all_features)
    classes = classifier[-1](features).argmax(1)
    return features.double().cpu(), classes.cpu()


def frechet(x: Tensor, y: Tensor) -> float:
    """Frechet distance of x (N, D) and y (M, D), float64, each taken as a Gaussian.

    |m - n|^2 + Tr(A + B - 2 (A^1/2 B A^1/2)^1/2), where m and n are the means, A and B the
    covariances: the formula of FID (Heusel et al. 2017), here with other features.
    """
    a = x.T.cov(correction=0)
    b = y.T.cov(correction=0)
    values, vectors = torch.linalg.eigh(a)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    # The trace of a root is the sum of the roots of the eigenvalues
    cross = torch.linalg.eigvalsh(root @ b @ root).clamp(min=0).sqrt().sum()
    squared_distance = (x.mean(0) - y.mean(0)).square().sum()
    return (squared_distance + a.trace() + b.trace() - 2 * cross).item()


def nearest(
    x: Tensor, train: Tensor, k: int, device: str, max_values: int = 2**22
) -> tuple[Tensor, Tensor]:
    """Distances (N, k) and indices (N, k) of the k images of train that are nearest to each of x.

    All are uint8, of one size. The distance is Euclidean, with pixels from 0 to 1. train is
    processed in pieces of at most max_values numbers, but at least one image.
    """
    flat = x.flatten(1).to(device).float() / 255
    best = torch.full((len(x), k), math.inf, device=device)
    index = torch.zeros(len(x), k, dtype=torch.long, device=device)
    step = max(1, max_values // flat.shape[1])
    for start in tqdm(range(0, len(train), step), "neighbours", leave=False):
        piece = train[start : start + step].flatten(1).to(device).float() / 255
        # |piece|^2 - 2 flat piece: the squared distance but for |flat|^2, which changes no order
        squares = torch.addmm(piece.square().sum(1), flat, piece.T, alpha=-2)  # (N, step)
        found, place = squares.topk(min(k, len(piece)), dim=1, largest=False)
        # Merge with the best of the pieces before
        best, order = torch.cat([best, found], dim=1).topk(k, dim=1, largest=False)
        index = torch.cat([index, place + start], dim=1).gather(1, order)
    index = index.cpu()
    distances = []  # exact ones, as the differences above lose digits
    for column in index.T:
        difference = (x.float() - train[column].float()) / 255
        distances.append(difference.flatten(1).norm(dim=1))
    return torch.stack(distances, dim=1), index


def memorised(images: Tensor, train: Tensor, device: str) -> float:
    """The share of images whose nearest neighbour is at most half as far as the second nearest."""
    distances, _ = nearest(images, train, 2, device)
    return (2 * distances[:, 0] <= distances[:, 1]).double().mean().item()


def spread(images: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The mean distance between two images of each class; NaN if there are fewer than two."""
    means = []
    for label in range(classes):
        members = images[labels == label][:500]
        means.append(F.pdist(members.flatten(1).float() / 255).mean())
    return torch.stack(means)


class Judge:
    """Compares images with a reference, by default the training images, as a classifier sees them.

    The classifier is trained on the training images.
    """

    def __init__(
        self, train: ImageSet, classes: int, device: str, reference: Tensor | None = None
    ) -> None:
        images = to_32(train.images)
        reference = images if reference is None else to_32(reference)
        self.classes = classes
        self.classifier = load_classifier(images, train.labels, classes, device)
        self.features, predicted = classify(self.classifier, reference)
        self.share = predicted.bincount(minlength=classes) / len(predicted)
        self.spread = spread(reference, predicted, classes)

    def __call__(self, images: Tensor, labels: Tensor | None = None) -> dict[str, float]:
        """Figures of images uint8 (N, C, 32, 32); the accuracy only if labels are given."""
        features, predicted = classify(self.classifier, images)
        share = predicted.bincount(minlength=self.classes) / len(predicted)
        is_drawn = (share > 0) & (share >= self.share / 10)  # a tenth of the reference's share
        entropy = share.xlogy(share).sum().abs().item()
        # NaN for classes that are not drawn
        diversity = spread(images, predicted, self.classes) / self.spread
        figures = {
            "images": len(images),
            "classes": is_drawn.sum().item(),
            "rarest": share.min().item(),
            "entropy": entropy / math.log(max(2, self.classes)),
            "diversity": diversity.nanmean().item(),
            "least diversity": diversity.nan_to_num(math.inf).min().item(),
            "frechet": frechet(features, self.features),
        }
        if labels is not None:
            figures["accuracy"] = (predicted == labels).double().mean().item()
        return figures


COLUMNS = {  # column name: number format
    "images": ",.0f",
    "classes": ".0f",
    "entropy": ".3f",
    "diversity": ".2f",
    "least diversity": ".2f",
    "frechet": ".2f",
    "memorised": ".2%",
    "accuracy": ".1%",
}


def compute_scores(
    runs: list[Run], train: ImageSet, held_out: ImageSet, count: int
) -> dict[str, dict]:
    """The rows of the table: held-out images, the runs, their generators before training."""
    sets = {"held-out": (to_32(held_out.images), held_out.labels)}
    for trained in (True, False):
        for run in runs:
            name = str(run.folder) if trained else f"untrained {run.script.__name__}"
            labels = run.labels(count) if run.script.CONDITIONAL else None
            sets[name] = (draw_32(run, count, trained), labels)
    classes = len(runs[0].args.classes)
    judge = Judge(train, classes, runs[0].args.device) if classes else None
    train_images = to_32(train.images)
    rows = {}
    for name, (images, labels) in sets.items():
        rows[name] = judge(images, labels) if judge else {"images": len(images)}
        rows[name]["memorised"] = memorised(images, train_images, runs[0].args.device)
    return rows


def print_table(rows: dict[str, dict]) -> None:
    """Prints a line for each row, with its figures under their names."""
    width = max(len(name) for name in rows)
    columns = {c: text for c, text in COLUMNS.items() if any(c in row for row in rows.values())}
    print(" " * width, *columns, sep="   ")
    for name, row in rows.items():
        line = name.ljust(width)
        for column, number_format in columns.items():
            text = f"{row[column]:{number_format}}" if column in row else "-"
            line += "   " + text.rjust(len(column))
        print(line)


def score(options: Namespace) -> None:
    """Classes, diversity, Frechet distance and memorisation of runs, beside real images."""
    runs = [load_run(folder, options.data, options.cuda) for folder in options.runs]
    data = runs[0].args.data
    for run in runs:
        same_data = Path(run.args.data).resolve() == Path(data).resolve()
        if not same_data or run.args.classes != runs[0].args.classes:
            sys.exit(
                f"{run.folder} and {runs[0].folder} have different data. Score them separately."
            )
    train, held_out, held_out_text = split_data(runs[0])
    if len(train.images) < 10 or len(held_out.images) < 2:
        sys.exit(f"score needs at least a dozen images, and {data} has too few.")
    print(f"data        {data}, {len(train.images):,} training images")
    print(f"held-out    {held_out_text}")
    if not runs[0].args.classes:
        print("no classes  only copies can be counted; neighbours and preview.png show the rest")
    print_table(compute_scores(runs, train, held_out, options.samples))
    if data == "digits":
        print("Many built-in digits are nearly alike: real ones look memorised, too.")


def log_likelihood(x: Tensor, samples: Tensor, sigmas: list[float]) -> Tensor:
    """log p(x) (len(sigmas), N), where p is the mean of the Gaussians N(sample, sigma^2 I).

    x (N, D) and samples (M, D) are float64, because |x|^2 - 2 x sample + |sample|^2 loses digits.
    """
    count, dims = samples.shape
    norms = samples.square().sum(1)
    found = []
    for batch in tqdm(x.split(100), "log-likelihood", leave=False):
        squares = torch.addmm(norms, batch, samples.T, alpha=-2)  # (100, M)
        squares += batch.square().sum(1, keepdim=True)
        found.append(torch.stack([(squares * (-0.5 / s**2)).logsumexp(1) for s in sigmas]))
    factors = x.new_tensor(sigmas) * math.sqrt(2 * math.pi)
    log_norms = math.log(count) + dims * factors.log()  # (len(sigmas),)
    return torch.cat(found, dim=1) - log_norms[:, None]


def parzen(options: Namespace) -> None:
    """Log-likelihood of test images under Gaussians around samples (Goodfellow et al. 2014).

    As in the authors' code (https://github.com/goodfeli/adversarial, parzen_ll.py), sigma is the
    best for 1,000 images of the last sixth of the training set.
    """
    run = load_run(options.run, options.data, options.cuda)
    train, test, test_text = split_data(run)
    # The paper's MNIST is 28x28. Where prepare.py has added a black border, it is cut off again.
    border = 0
    inner = test.images[:, :, 2:-2, 2:-2]
    if run.args.image_size == 32 and inner.count_nonzero() == test.images.count_nonzero():
        border = 2
    inside = slice(border, run.args.image_size - border)

    def to_vectors(images: Tensor) -> Tensor:
        """Images uint8 or in [-1, 1] as float64 (N, D) in [0, 1], on the device."""
        vectors = images[:, :, inside, inside].flatten(1).to(run.args.device, torch.float64)
        return vectors / 255 if images.dtype == torch.uint8 else (vectors + 1) / 2

    begin = len(train.images) * 5 // 6
    valid = to_vectors(train.images[begin : begin + 1000])
    x = to_vectors(test.images)
    sigmas = torch.logspace(-1, 0, 55).tolist()
    print(f"test        {test_text} ({len(x):,} x {x.shape[1]} pixels)")
    print(f"sigma       the best of 55 for {len(valid):,} training images from number {begin:,} on")
    names = ["training images", str(run.folder), "untrained"]
    width = max(len(name) for name in names)
    print(f"{'samples':{width}}{'number':>9}{'sigma':>8}{'log-likelihood':>17}", flush=True)
    for name in names:
        if name == "training images":
            samples = to_vectors(train.images[: min(begin, options.samples)])
        else:
            batches = run.draw(options.samples, trained=name != "untrained")
            samples = torch.cat([to_vectors(images) for images in batches])
        best = log_likelihood(valid, samples, sigmas).mean(1).argmax()
        sigma = sigmas[best]
        found = log_likelihood(x, samples, [sigma])[0]
        error = found.std().item() / math.sqrt(len(found))
        figures = f"{len(samples):9,}{sigma:8.3f}{found.mean().item():10.1f} +- {error:.1f}"
        print(f"{name:{width}}{figures}", flush=True)


def neighbours(options: Namespace) -> None:
    """Sixteen samples, each above its three nearest training images, as RUN/neighbours.png."""
    run = load_run(options.run, options.data, options.cuda)
    images = load_training_data(run).images
    samples = to_bytes(next(run.draw(16)))
    _, index = nearest(samples, images, 3, run.args.device)
    tiles = torch.cat([samples, images[index.T.flatten()]])  # four rows of 16
    path = run.folder / "neighbours.png"
    run.script.to_picture(to_floats(tiles), columns=16).save(path)
    print(path)


def interpolate(options: Namespace) -> None:
    """What G makes of straight lines in z, and between classes, as RUN/interpolate.png and .gif."""
    run = load_run(options.run, cuda=options.cuda)
    args = run.args
    generator = run.load_generator()
    rows = min(len(args.classes), 16) if run.script.CONDITIONAL else 8
    labels = torch.arange(rows, device=args.device)
    random = torch.Generator().manual_seed(args.seed)
    start, end = torch.randn(2, rows, args.latent_dim, generator=random).to(args.device)
    way = torch.linspace(0, 1, 10).tolist()
    columns = [run.script.sample(generator, args, start.lerp(end, t), labels) for t in way]
    tiles = torch.stack(columns, dim=1).flatten(0, 1)
    if run.script.CONDITIONAL:  # in the lower half z stays and the class changes
        here = torch.eye(len(args.classes), device=args.device)[labels]
        there = here.roll(-1, dims=0)
        columns = [generator(start, here.lerp(there, t)) for t in way]
        tiles = torch.cat([tiles, torch.stack(columns, dim=1).flatten(0, 1)])
    path = run.folder / "interpolate.png"
    run.script.to_picture(tiles, columns=10).save(path)
    print(path)
    frames = []
    for t in torch.linspace(0, 1, 30).tolist():
        samples = run.script.sample(generator, args, start.lerp(end, t), labels)
        frames.append(run.script.to_picture(samples, columns=len(samples)))
    frames += frames[::-1]  # there and back
    path = path.with_suffix(".gif")
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=60, loop=0)
    print(path)


def step_of(path: Path) -> int:
    """200 for step-000200.png."""
    return int(path.stem.removeprefix("step-"))


def load_frame(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        picture.thumbnail((1024, 1024))  # a GIF holds all its frames in memory
        return picture.copy()


def film(options: Namespace) -> None:
    """The pictures in RUN/samples as an animation of up to 100 frames, as RUN/training.gif."""
    folder = Path(options.run, "samples")
    files = sorted(folder.glob("step-*.png"), key=step_of)
    if not files:
        sys.exit(f"{folder} has no pictures step-*.png.")
    count = min(100, len(files))
    chosen = [files[round(i)] for i in np.linspace(0, len(files) - 1, count)]
    frames = map(load_frame, chosen)  # one file at a time is open
    path = Path(options.run, "training.gif")
    next(frames).save(path, save_all=True, append_images=frames, duration=200, loop=0)
    print(path)


def curves(options: Namespace) -> None:
    """The columns of metrics.csv over the steps, runs overlaid, as curves.png in the first RUN."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        sys.exit("curves needs matplotlib: pip install matplotlib")
    tables = {}
    columns = {}  # of all runs, in order
    for run in options.runs:
        path = Path(run, "metrics.csv")
        if not path.exists():
            sys.exit(f"{path} does not exist.")
        tables[run] = list(csv.DictReader(path.read_text().splitlines()))
        columns |= tables[run][0]
    names = [name for name in columns if name not in ("step", "epoch", "seconds")]
    figure = Figure(figsize=(8, 2.2 * len(names)))
    panels = figure.subplots(len(names), sharex=True, squeeze=False)[:, 0]
    for name, panel in zip(names, panels, strict=True):
        for run, rows in tables.items():
            steps = [int(row["step"]) for row in rows]
            values = [float(row.get(name, math.nan)) for row in rows]
            panel.plot(steps, values, label=run, linewidth=1)
        panel.set_ylabel(name)
    panels[0].legend(loc="lower right", bbox_to_anchor=(1, 1))
    panels[-1].set_xlabel("updates of G")
    path = Path(options.out or Path(options.runs[0], "curves.png"))
    figure.savefig(path, dpi=100, bbox_inches="tight")
    print(path)


class Pictures(Dataset):
    """Images uint8 (N, C, S, S), one at a time and in three channels, as torch-fidelity asks."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor:
        return self.images[i].expand(3, -1, -1)


def fid(options: Namespace) -> None:
    """FID, KID, Inception score, precision and recall, by torch-fidelity."""
    run = load_run(options.run, options.data, options.cuda)
    try:
        from torch_fidelity import calculate_metrics
    except ImportError as error:
        sys.exit(f"fid needs torch-fidelity: pip install torch-fidelity ({error})")
    if options.against == "test":
        _, (real, _), text = split_data(run)
    else:
        real, text = load_training_data(run).images, "the training images"
    count = min(options.samples, len(real))
    # Files may be in the order of their classes
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(0))
    real = real[order[:count]]
    samples = torch.cat([to_bytes(images) for images in run.draw(count)])
    print(f"real        {count:,} of {text}")
    print(f"samples     {count:,} of {run.folder}", flush=True)
    found = calculate_metrics(
        input1=Pictures(samples),
        input2=Pictures(real),
        cuda=options.cuda,
        **{"fid": True, "kid": True, "isc": True, "prc": True},
        kid_subset_size=min(1000, count),
        feature_extractor="inception-v3-compat",  # else precision and recall need another network
        feature_layer_prc="2048",
        feature_extractor_weights_path=options.weights,
        save_cpu_ram=True,  # no processes to load what is in memory
        cache=False,
    )
    kid, kid_error, inception, inception_error = (
        found[f"{name}_{part}"]
        for name in ("kernel_inception_distance", "inception_score")
        for part in ("mean", "std")
    )
    print(f"FID         {found['frechet_inception_distance']:.2f}")
    print(f"KID         {kid:.5f} +- {kid_error:.5f}")
    print(f"IS          {inception:.2f} +- {inception_error:.2f}")
    print(f"precision   {found['precision']:.3f}")
    print(f"recall      {found['recall']:.3f}")


def sample_count(text: str) -> int:
    if not 2 <= int(text) <= 1_000_000:
        raise ValueError  # argparse reports it in one line
    return int(text)


def parse_args(argv: list[str] | None) -> Namespace:
    parser = ArgumentParser("evaluate.py", description="Scores and pictures of trained runs.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for function in (score, parzen, neighbours, interpolate, film, curves, fid):
        name = function.__name__
        text = function.__doc__.splitlines()[0]
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(function=function, cuda=False)
        add = command.add_argument
        if name in ("score", "curves"):
            add("runs", nargs="+", metavar="RUN")
        else:
            add("run", metavar="RUN")
        if name in ("score", "parzen", "fid"):
            add("--samples", type=sample_count, default=10_000, help="(default: 10,000)")
        if name in ("score", "parzen", "neighbours", "fid"):
            add("--data", help="where the data are now (default: where they were in training)")
        if name == "fid":
            choices = ("test", "train")
            add("--against", choices=choices, default="test", help="real images (default: test)")
            add("--weights", metavar="FILE", help="Inception's, where they cannot be downloaded")
        if name in ("score", "parzen", "neighbours", "interpolate", "fid"):
            has_gpu = torch.cuda.is_available()
            add("--cuda", action=BooleanOptionalAction, default=has_gpu, help="use a GPU")
        if name == "curves":
            add("--out", metavar="FILE", help="the picture (default: curves.png in the first RUN)")
    options = parser.parse_args(argv)
    if options.cuda and not torch.cuda.is_available():
        parser.error("--cuda: PyTorch sees no GPU")
    return options


def main(argv: list[str] | None = None) -> None:
    options = parse_args(argv)
    try:
        options.function(options)
    except KeyboardInterrupt:
        sys.exit(130)
    except RuntimeError as error:
        if "allocate" not in str(error):  # PyTorch's word, on a CPU and on a GPU
            raise
        sys.exit(f"Out of memory. Fewer --samples need less. ({str(error).splitlines()[0]})")


if __name__ == "__main__":
    main()
