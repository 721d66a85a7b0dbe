"""What the papers claim, tried at a small scale: docs/results.md shows what came out.

    python prepare.py mnist --image-size 16                      data/mnist-16; without --data: glyphs of this size
    python benchmarks/claims.py dcgan --data data/mnist-16       DCGAN's guidelines left out one by one
    python benchmarks/claims.py wgan --data data/mnist-16        does the loss follow the images; a G without BatchNorm
    python benchmarks/claims.py wgan_gp --data data/mnist-16     the penalty against clipping: weights, gradients
    python benchmarks/claims.py stability --data data/mnist-16   four scripts with five architectures
    python benchmarks/claims.py vanilla --data data/mnist-16     the minimax loss against the non-saturating one
    python benchmarks/claims.py cgan --data data/mnist-16        is it the digit that was asked for

Each trains small variants through the scripts' own main, with its options, and prints means over the seeds with the
range in brackets. G's weights are not averaged (--ema 0), as in the papers. A run and its scores (scores.json) stay in
a folder of --out: a command that was interrupted goes on, and one that has finished draws its table and picture again
at once. Needs matplotlib.
"""

import contextlib
import csv
import functools
import importlib
import io
import itertools
import json
import math
import signal
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.image import imread
from PIL import Image
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import dcgan as dcgan_script
import evaluate

WIDTH = 32  # features of the convolutional networks at half the side; the scripts' is 64
Layers = list[nn.Module]
Edit = Callable[[Layers], Layers]

# ---------------------------------------------------------------------------------------------------------- variants


def no_batchnorm(layers: Layers) -> Layers:
    """BatchNorm's shift goes with it, so the convolutions get a bias."""
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and layer.bias is None:
            layer.bias = nn.Parameter(torch.zeros(layer.out_channels))
    return [layer for layer in layers if not isinstance(layer, nn.BatchNorm2d)]


def activation(old: type[nn.Module], new: Callable[[], nn.Module]) -> Edit:
    return lambda layers: [new() if isinstance(layer, old) else layer for layer in layers]


def resampled(layers: Layers) -> Layers:
    """Upsampling, or max pooling, beside convolutions of stride 1."""
    found = []
    for layer in layers:
        if not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) or layer.stride == (1, 1):
            found.append(layer)
            continue
        conv = nn.Conv2d(layer.in_channels, layer.out_channels, 3, padding=1, bias=layer.bias is not None)
        up = isinstance(layer, nn.ConvTranspose2d)
        found += [nn.Upsample(scale_factor=2), conv] if up else [conv, nn.MaxPool2d(2)]
    return found


def hidden_layer_in_g(layers: Layers) -> Layers:
    n = layers[0].in_channels
    return [nn.Flatten(), nn.Linear(n, n), nn.BatchNorm1d(n), nn.ReLU(), nn.Unflatten(1, (n, 1, 1)), *layers]


def hidden_layer_in_d(layers: Layers) -> Layers:
    n = layers[-1].in_channels
    return [*layers[:-1], nn.Flatten(), nn.Linear(16 * n, n), nn.LeakyReLU(0.2), nn.Linear(n, 1)]


def mlp(layers: Layers) -> Layers:
    """Four layers of 512 ReLUs (WGAN, section 4.3)."""
    n = layers[0].in_channels
    shape = nn.Sequential(*layers)(torch.zeros(2, n, 1, 1)).shape[1:]  # (C, S, S)
    hidden = [layer for i in (n, 512, 512, 512) for layer in (nn.Linear(i, 512), nn.ReLU())]
    return [nn.Flatten(), *hidden, nn.Linear(512, shape.numel()), nn.Tanh(), nn.Unflatten(1, shape)]


def momentum(build: Callable, args: Namespace) -> tuple:
    networks, optimizers = build(args)
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["betas"] = (0.9, 0.999)  # Adam's own default
    return networks, optimizers


VARIANTS: dict[str, tuple[Edit, Edit]] = {  # of G and of D
    "as it is": (list, list),
    "pooling": (resampled, resampled),
    "no BatchNorm in G": (no_batchnorm, list),
    "no BatchNorm in D": (list, no_batchnorm),
    "no BatchNorm": (no_batchnorm, no_batchnorm),
    "MLP as G": (mlp, list),
    "hidden layers": (hidden_layer_in_g, hidden_layer_in_d),
    "ReLU in D": (list, activation(nn.LeakyReLU, nn.ReLU)),
    "beta1 0.9": (list, list),
    "PyTorch's init": (list, list),
    "tanh in G": (activation(nn.ReLU, nn.Tanh), list),
    "LeakyReLU in G": (activation(nn.ReLU, lambda: nn.LeakyReLU(0.2)), list),
}
ARCHITECTURES: dict[str, tuple[Edit, Edit]] = {  # of Gulrajani et al. 2017, figure 2, those that fit small images
    **{kind: VARIANTS[kind] for kind in ("as it is", "no BatchNorm in G", "MLP as G", "no BatchNorm")},
    "tanh": (activation(nn.ReLU, nn.Tanh), activation(nn.LeakyReLU, nn.Tanh)),
}


def changed(kind: type[nn.Module], edit: Edit) -> type[nn.Module]:
    """The class of a convolutional network, narrower and with other layers."""

    class Changed(kind):
        def __init__(self, *sizes: int) -> None:
            super().__init__(*sizes, width=WIDTH)
            self.layers = nn.Sequential(*edit(list(self.layers)))

    return Changed


@contextlib.contextmanager
def variant(script: ModuleType, name: str) -> Iterator[None]:
    """The script with the networks of a variant. vanilla_gan has none."""
    other = "Critic" if hasattr(script, "Critic") else "Discriminator"
    edits = dict(zip(("Generator", other), (VARIANTS | ARCHITECTURES)[name], strict=True))
    changes = {}
    if script.__name__ != "vanilla_gan":
        changes = {kind: changed(getattr(script, kind), edit) for kind, edit in edits.items()}
    if name == "beta1 0.9":
        changes["build"] = functools.partial(momentum, script.build)
    if name == "PyTorch's init":
        changes["init_weights"] = lambda module: None
    with patch.multiple(script, **changes) if changes else contextlib.nullcontext():
        yield


# ------------------------------------------------------------------------------------------------- training, scoring


def glyphs(folder: Path) -> Path:
    """A folder of arrays: glyphs of 16 x 16."""
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = dcgan_script.glyphs(size=16)
    np.save(folder / "images.npy", images.numpy())
    np.save(folder / "labels.npy", labels.numpy())
    (folder / "classes.txt").write_text("\n".join("0123456789"))
    return folder


@functools.cache
def load_judge(data: str) -> tuple[evaluate.Judge, Tensor]:
    """What evaluate.py compares with, made of the first 10,000 images, and the last 2,000, real ones to judge."""
    images, labels, classes = dcgan_script.load_data(Namespace(data=data))
    if not classes:
        sys.exit(f"claims.py: error: --data {data} has no classes to judge by")
    return evaluate.Judge(images[:10_000], labels[:10_000], len(classes), "cpu"), evaluate.to_32(images[-2000:])


def figures(options: Namespace, images: Tensor, labels: Tensor | None = None) -> dict[str, float]:
    """evaluate.py's figures of images uint8 (N, C, 32, 32); with the labels (N,) asked for the accuracy too."""
    judge, _ = load_judge(options.data)
    features, read = evaluate.classify(judge.classifier, images)
    share = read.bincount(minlength=judge.classes) / len(read)
    diversity = (evaluate.spread(images, read, judge.classes) / judge.spread).nanmean().item()
    found = {"frechet": evaluate.frechet(features, judge.features), "diversity": diversity}
    found["classes"] = (share >= judge.share / 10).logical_and(share > 0).sum().item()
    return found | ({} if labels is None else {"accuracy": (read == labels).double().mean().item()})


def score(script: ModuleType, folder: Path, options: Namespace) -> dict[str, float]:
    """The figures of --samples images, the last row of metrics.csv and sizes of gradients."""
    args, checkpoint = script.parse_args(["--resume", str(folder)])
    networks, _ = script.load_networks(args, checkpoint)
    generator, other, _ = networks.eval().values()  # the third is the average, here the same as G
    run = evaluate.Run(folder, script, args, checkpoint, "cpu")
    labels, rng = torch.arange(options.samples) % len(args.classes), torch.Generator().manual_seed(1)
    z = torch.randn(options.samples, args.latent_dim, generator=rng)
    with torch.no_grad():
        batches = zip(z.split(100), labels.split(100), strict=True)
        images = torch.cat([run.sample(generator, *batch) for batch in batches])
    found = figures(options, evaluate.to_32(evaluate.to_bytes(images)), labels if "label" in args else None)
    with (folder / "metrics.csv").open(newline="") as file:
        found |= {name: float(value) for name, value in list(csv.DictReader(file))[-1].items()}
    if hasattr(script, "Critic"):  # the norm to which the penalty pulls, and the weights
        real = script.load_data(args)[0][:100] / 127.5 - 1
        count = min(len(real), len(images))
        x = images[:count].lerp(real[:count], torch.rand(count, 1, 1, 1, generator=rng)).requires_grad_()
        (grad,) = torch.autograd.grad(other(x).sum(), x)
        found["gradient"] = grad.flatten(1).norm(dim=1).mean().item()
    elif script.__name__ == "vanilla_gan":  # of the whole of G, for both losses
        logits = other(generator(z[:100]))
        for name, loss in {"-log D": F.softplus(-logits).mean(), "log(1 - D)": -F.softplus(logits).mean()}.items():
            grads = torch.autograd.grad(loss, list(generator.parameters()), retain_graph=True)
            found[f"gradient of {name}"] = math.sqrt(sum(grad.square().sum().item() for grad in grads))
    return found


def measure(
    options: Namespace, name: str, kind: str = "as it is", extra: str = "", points: tuple[float, ...] = (1,)
) -> tuple[list[Path], list[list[dict]]]:
    """Trains a variant of a script for --steps, for each seed; the run folders and the scores at these parts of it."""
    script, folders, rows = importlib.import_module(name), [], []
    for seed in range(options.seeds):
        folder = Path(options.out, f"{name} {kind} {extra} {options.steps}x{len(points)} {seed}".replace(" ", "_"))
        typed = ["--data", options.data, "--batch-size", str(options.batch_size), "--ema", "0", "--amp"]
        typed += ["--log-every", str(max(1, options.steps // 20))]
        typed += ["--seed", str(seed), "--out", str(folder), *extra.split()]
        if (config := folder / "config.json").exists():
            was = json.loads(config.read_text())
            if (was["data"], was["batch_size"]) != (options.data, options.batch_size):
                sys.exit(f"claims.py: error: {folder} was made with other options; give another --out")
        file, found = folder / "scores.json", {}
        if file.exists():
            found = json.loads(file.read_text())
        for step in (str(round(options.steps * point)) for point in points):
            if step in found:
                continue
            print(f"{folder.name}, {step} steps", file=sys.stderr, flush=True)
            if (folder / "checkpoint.pt").exists():
                typed = ["--resume", str(folder)]
            with variant(script, kind), contextlib.redirect_stdout(io.StringIO()):
                try:
                    code = script.main([*typed, "--steps", step])
                    code and sys.exit(code)
                    found[step] = score(script, folder, options)
                except SystemExit as end:
                    if end.code != 1:
                        raise
                    found[step] = {"frechet": math.inf}  # the training has broken: a loss is not finite
                finally:
                    signal.signal(signal.SIGINT, signal.default_int_handler)  # the script has taken both
                    signal.signal(signal.SIGTERM, signal.SIG_DFL)
            file.write_text(json.dumps(found, indent=1))
        folders.append(folder)
        rows.append([found[str(round(options.steps * point))] for point in points])
    return folders, rows


# ------------------------------------------------------------------------------------------------- tables, pictures


def show(values: list[float], digits: int = 1) -> str:
    """The mean and the range, unless that is a point."""
    mean, low, high = (f"{value:.{digits}f}" for value in (sum(values) / len(values), min(values), max(values)))
    return mean if low == high else f"{mean} ({low} to {high})"


def line(name: str, runs: Sequence[dict], columns: dict[str, int]) -> None:
    """A row of a table: of each column, with so many digits, the mean over the runs and the range."""
    cells = [
        show([run.get(column, math.nan) for run in runs], digits) if column in runs[0] else "-"
        for column, digits in columns.items()
    ]
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def head(options: Namespace, columns: dict[str, int]) -> None:
    """The first lines of a table, the figures of real images among them."""
    print(f"|  | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
    _, images = load_judge(options.data)
    line("real images", [figures(options, images)], columns)


def draw(path: Path, runs: dict[str, Path], columns: int = 4) -> None:
    """The last samples of each run, 4 rows of 8."""
    rows = math.ceil(len(runs) / columns)
    figure = Figure(figsize=(2.4 * columns, 1.5 * rows))
    for ax, (name, folder) in zip(figure.subplots(rows, columns, squeeze=False).flat, runs.items(), strict=False):
        picture = imread(max((folder / "samples").iterdir()))
        ax.imshow(picture[: len(picture) // 2], cmap="gray", vmin=0, vmax=1)
        ax.set_title(name, fontsize=8)
    for ax in figure.axes:
        ax.axis("off")
    figure.savefig(path, dpi=100, bbox_inches="tight")
    Image.open(path).convert("L").save(path)  # grey: half the size
    print(path)


def spearman(x: list[float], y: list[float]) -> float:
    """The correlation of the ranks: 1 if y always grows with x."""
    return torch.stack([torch.tensor(values).argsort().argsort().double() for values in (x, y)]).corrcoef()[0, 1].item()


def weights(folder: Path) -> Tensor:
    """All weights of a run's critic, flat, but for biases and BatchNorm."""
    critic = torch.load(folder / "checkpoint.pt", weights_only=True)["critic"]
    return torch.cat([weight.flatten() for weight in critic.values() if weight.ndim == 4])


def share_at_bound(weights: Tensor) -> float:
    """The share within 1% of the largest: where clipping leaves them, of the bound."""
    return (weights.abs() >= 0.99 * weights.abs().max()).double().mean().item()


# ------------------------------------------------------------------------------------------------------- experiments

COLUMNS = {"frechet": 1, "classes": 1, "diversity": 2}
POINTS = tuple(k / 10 for k in range(1, 11))  # of a run, at which its loss is set beside its images
FACTORS = (1, 5, 25)  # of the learning rate; runs are too short for smaller ones
RATES = {"dcgan": 1e-3, "lsgan": 1e-3, "wgan": 2.5e-4, "wgan_gp": 5e-4}  # five times the default of each
LOSSES = {"dcgan": "d_loss", "wgan": "wasserstein"}


def dcgan(options: Namespace) -> None:
    """The guidelines of Radford et al. 2015 (section 3) and the settings of section 4, left out one by one."""
    head(options, COLUMNS)
    pictures = {}
    for kind in VARIANTS:
        folders, rows = measure(options, "dcgan", kind, points=POINTS if kind == "as it is" else (1,))
        line(kind, [row[-1] for row in rows], COLUMNS)
        pictures[kind] = folders[0]
    draw(Path(options.out, "dcgan.png"), pictures)


def wgan(options: Namespace) -> None:
    """The loss follows the images (Arjovsky et al. 2017, figures 3, 4), and G needs no BatchNorm (figures 6, 7)."""
    columns = COLUMNS | {"correlation": 2}
    head(options, columns)
    figure, pictures = Figure(figsize=(8, 3)), {}
    for (name, column), ax in zip(LOSSES.items(), figure.subplots(1, 2), strict=True):
        extra = "--lr 2.5e-4" if name == "wgan" else ""  # five times the paper's: there are few steps
        for kind in ("as it is", "no BatchNorm in G", "MLP as G"):
            folders, rows = measure(options, name, kind, extra, POINTS if kind == "as it is" else (1,))
            pictures[f"{name}, {kind}"], last = folders[0], [row[-1] for row in rows]
            for row in rows if kind == "as it is" else ():
                losses, distances = ([point[key] for point in row] for key in (column, "frechet"))
                ax.plot(losses, distances, marker=".", linewidth=0.5)
                row[-1]["correlation"] = spearman(losses, distances)
            line(f"{name}, {kind}", last, columns)
        ax.set(title=f"{name}: ten points of each run", xlabel=column, ylabel="frechet", yscale="log")
    figure.savefig(Path(options.out, "wgan-loss.png"), dpi=100, bbox_inches="tight")
    draw(Path(options.out, "wgan.png"), pictures, columns=3)


def wgan_gp(options: Namespace) -> None:
    """The penalty against clipping (Gulrajani et al. 2017, figure 1): settings, weights, gradients."""
    columns = COLUMNS | {"gradient": 3, "at the bound": 3}
    head(options, columns)
    figure, cells, pictures = Figure(figsize=(8, 3)), {}, {}
    for name, lr in {"wgan": 5e-5, "wgan_gp": 1e-4}.items():
        for n_critic, factor in itertools.product((1, 5), FACTORS):
            extra = f"--lr {lr * factor:g} --n-critic {n_critic}"
            folders, rows = measure(options, name, extra=extra)
            shares = [{"at the bound": share_at_bound(weights(folder))} for folder in folders]
            rows = [row[-1] | share for row, share in zip(rows, shares, strict=True)]
            line(f"{name} {extra}", rows, columns)
            cells[name, extra] = sum(row["frechet"] for row in rows) / len(rows)
            pictures[f"{name} {extra}"] = folders[0]
            if (n_critic, factor) == (5, 5):
                figure.add_subplot(1, 2, 1 + (name == "wgan_gp")).hist(weights(folders[0]), bins=60)
                figure.axes[-1].set(title=f"{name}: weights of the critic", yticks=[])
    for name in ("wgan", "wgan_gp"):
        good = [frechet <= 2 * min(cells.values()) for (of, _), frechet in cells.items() if of == name]
        print(f"{name}: {sum(good)} of {len(good)} settings are within twice the best frechet of all")
    figure.savefig(Path(options.out, "wgan_gp-weights.png"), dpi=100, bbox_inches="tight")
    draw(Path(options.out, "wgan_gp.png"), pictures, columns=3)


def stability(options: Namespace) -> None:
    """Five architectures, nothing tuned to any of them (Gulrajani et al. 2017, figure 2)."""
    head(options, COLUMNS)
    pictures = {}
    for kind, factor in [*((kind, 1) for kind in ARCHITECTURES), ("MLP as G", 3)]:  # MLPs learn slowly
        longer = Namespace(**vars(options) | {"steps": factor * options.steps})
        for name, lr in RATES.items():
            folders, rows = measure(longer, name, kind, f"--lr {lr:g}")
            title = f"{name}, {kind}" + (f", {longer.steps} steps" if factor > 1 else "")
            line(title, [row[-1] for row in rows], COLUMNS)
            pictures[title] = folders[0]
    draw(Path(options.out, "stability.png"), pictures)


def vanilla(options: Namespace) -> None:
    """Early in training log(1 - D(G(z))) saturates (Goodfellow et al. 2014, section 3)."""
    columns = {"D(G(z))": 3, "gradient of log(1 - D)": 4, "gradient of -log D": 4} | COLUMNS
    head(options, columns)
    for loss in ("minimax", "non-saturating"):
        points = (1 / 8, 1 / 4, 1 / 2, 1)
        _, rows = measure(options, "vanilla_gan", extra=f"--loss {loss}", points=points)
        for point, scores in zip(points, zip(*rows, strict=True), strict=True):
            line(f"{loss}, {round(options.steps * point)} steps", scores, columns)


def cgan(options: Namespace) -> None:
    """Each class where it is asked for (Mirza & Osindero 2014, figure 2)."""
    columns = COLUMNS | {"accuracy": 3}
    head(options, columns)
    points = (1 / 4, 1 / 2, 1)
    folders, rows = measure(options, "cgan", points=points)
    for point, scores in zip(points, zip(*rows, strict=True), strict=True):
        line(f"{round(options.steps * point)} steps", scores, columns)
    draw(Path(options.out, "cgan.png"), {f"seed {k}": folder for k, folder in enumerate(folders)})


def main(argv: list[str] | None = None) -> int:
    parser = ArgumentParser("claims.py", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for function, steps in {vanilla: 400, dcgan: 500, cgan: 500, wgan: 500, wgan_gp: 300, stability: 1000}.items():
        text = function.__doc__.splitlines()[0]
        command = commands.add_parser(function.__name__, help=text, description=text)
        command.set_defaults(function=function)
        add = command.add_argument
        add("--data", help="a folder of arrays with classes (glyphs of 16 x 16)")
        add("--out", default="runs/claims", help="where the runs and the picture go (%(default)s)")
        add("--seeds", type=int, default=3, help="runs of each variant (%(default)s)")
        add("--steps", type=int, default=steps, help="updates of G (%(default)s)")
        add("--batch-size", type=int, default=64, help="images in a batch (%(default)s)")
        add("--samples", type=int, default=2000, help="generated images to judge (%(default)s)")
    options = parser.parse_args(argv)
    options.data = options.data or str(glyphs(Path(options.out, "glyphs-16")))
    options.function(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
