"""What the papers claim, tried at a small scale: docs/results.md shows what came out.

    python prepare.py mnist --image-size 16                     data/mnist-16 (default: digits)
    python benchmarks/claims.py dcgan --data data/mnist-16      its guidelines left out one by one
    python benchmarks/claims.py wgan --data data/mnist-16       does the loss follow the images
    python benchmarks/claims.py wgan_gp --data data/mnist-16    the penalty against clipping
    python benchmarks/claims.py stability --data data/mnist-16  four scripts, five architectures
    python benchmarks/claims.py vanilla --data data/mnist-16    minimax against non-saturating
    python benchmarks/claims.py cgan --data data/mnist-16       is it the digit that was asked for

Each trains small variants through the scripts' own main and prints means over the seeds, with the
range in brackets. G's weights are not averaged (--ema 0), as in the papers. A run and its scores
(scores.json) stay in a folder of --out: a command that was interrupted continues, and one that has
finished draws its table and picture again at once. Needs matplotlib. docs/results.md is made of
what --record claims_dcgan, claims_wgan and so on has written.
"""

import contextlib
import functools
import importlib
import io
import itertools
import json
import math
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.image import imread
from PIL import Image
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from speedrun import numerics_of, read_metrics
from tables import Table, add_record_option
from throughput import write_digits

import dcgan as dcgan_script
import evaluate

WIDTH = 32  # --width of the convolutional networks; the scripts' default is 64
Layers = list[nn.Module]
Edit = Callable[[Layers], Layers]


def no_batchnorm(layers: Layers) -> Layers:
    """BatchNorm's shift goes with it, so the convolutions get a bias."""
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and layer.bias is None:
            layer.bias = nn.Parameter(torch.zeros(layer.out_channels))
    return [layer for layer in layers if not isinstance(layer, nn.BatchNorm2d)]


def activation(old: type[nn.Module], new: Callable[[], nn.Module]) -> Edit:
    def edit(layers: Layers) -> Layers:
        return [new() if isinstance(layer, old) else layer for layer in layers]

    return edit


def resampled(layers: Layers) -> Layers:
    """Upsampling, or max pooling, with convolutions of stride 1."""
    found = []
    for layer in layers:
        if not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) or layer.stride == (1, 1):
            found.append(layer)
            continue
        has_bias = layer.bias is not None
        conv = nn.Conv2d(layer.in_channels, layer.out_channels, 3, padding=1, bias=has_bias)
        if isinstance(layer, nn.ConvTranspose2d):
            found += [nn.Upsample(scale_factor=2), conv]
        else:
            found += [conv, nn.MaxPool2d(2)]
    return found


def hidden_layer_in_g(layers: Layers) -> Layers:
    n = layers[0].in_channels
    hidden = [nn.Linear(n, n), nn.BatchNorm1d(n), nn.ReLU()]
    return [nn.Flatten(), *hidden, nn.Unflatten(1, (n, 1, 1)), *layers]


def hidden_layer_in_d(layers: Layers) -> Layers:
    n = layers[-1].in_channels
    hidden = [nn.Flatten(), nn.Linear(16 * n, n), nn.LeakyReLU(0.2)]
    return [*layers[:-1], *hidden, nn.Linear(n, 1)]


def mlp(layers: Layers) -> Layers:
    """Four layers of 512 ReLUs (WGAN, section 4.3)."""
    n = layers[0].in_channels
    shape = nn.Sequential(*layers)(torch.zeros(2, n, 1, 1)).shape[1:]  # (C, S, S)
    found = [nn.Flatten()]
    for inputs in (n, 512, 512, 512):
        found += [nn.Linear(inputs, 512), nn.ReLU()]
    return [*found, nn.Linear(512, shape.numel()), nn.Tanh(), nn.Unflatten(1, shape)]


RELU_TO_TANH = activation(nn.ReLU, nn.Tanh)
RELU_TO_LEAKY = activation(nn.ReLU, functools.partial(nn.LeakyReLU, 0.2))
VARIANTS: dict[str, tuple[Edit, Edit]] = {  # of G and of D; list leaves the layers as they are
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
    "tanh in G": (RELU_TO_TANH, list),
    "LeakyReLU in G": (RELU_TO_LEAKY, list),
}
ARCHITECTURES = {  # those of Gulrajani et al. 2017, figure 2, that fit small images
    kind: VARIANTS[kind] for kind in ("as it is", "no BatchNorm in G", "MLP as G", "no BatchNorm")
}
ARCHITECTURES["tanh"] = (RELU_TO_TANH, activation(nn.LeakyReLU, nn.Tanh))


def changed(network: type[nn.Module], edit: Edit) -> type[nn.Module]:
    """The class of a convolutional network with other layers."""

    class Changed(network):
        def __init__(self, *sizes: int) -> None:
            super().__init__(*sizes)
            self.layers = nn.Sequential(*edit(list(self.layers)))

    return Changed


def no_init(module: nn.Module) -> None:
    """Leaves PyTorch's initialization."""


@contextlib.contextmanager
def variant(script: ModuleType, name: str) -> Iterator[None]:
    """The script with the networks of a variant."""
    build = script.build

    def build_with_momentum(args: Namespace) -> tuple:
        networks, optimizers = build(args)
        for optimizer in optimizers:
            optimizer.param_groups[0]["betas"] = (0.9, 0.999)  # Adam's own default
        return networks, optimizers

    other = "Critic" if hasattr(script, "Critic") else "Discriminator"
    changes = {}
    edits = (VARIANTS | ARCHITECTURES)[name]
    for network, edit in zip(("Generator", other), edits, strict=True):
        changes[network] = changed(getattr(script, network), edit)
    if name == "beta1 0.9":
        changes["build"] = build_with_momentum
    if name == "PyTorch's init":
        changes["init_weights"] = no_init
    with patch.multiple(script, **changes):
        yield


@functools.cache
def load_judge(data: str) -> tuple[evaluate.Judge, Tensor]:
    """Compares with the first 10,000 images. Also the last 2,000, real ones to judge."""
    images, labels, classes = dcgan_script.load_data(data)
    if not classes:
        sys.exit(f"{data} has no classes to judge by.")
    train = evaluate.ImageSet(images[:10_000], labels[:10_000])
    return evaluate.Judge(train, len(classes), "cpu"), evaluate.to_32(images[-2000:])


def critic_gradient(run: evaluate.Run, critic: nn.Module) -> float:
    """The mean norm that the penalty pulls to 1, at points between images and samples."""
    samples = next(run.draw(100))
    images, _, _ = run.script.load_data(run.args.data)
    real = evaluate.to_floats(images[: len(samples)])
    random = torch.Generator().manual_seed(1)
    epsilon = torch.rand(len(real), 1, 1, 1, generator=random)
    x = samples[: len(real)].lerp(real, epsilon)
    x.requires_grad_()
    (grad,) = torch.autograd.grad(critic(x).sum(), x)
    return grad.flatten(1).norm(dim=1).mean().item()


def generator_gradients(run: evaluate.Run, networks: nn.ModuleDict) -> dict[str, float]:
    """The norms of the gradients of all of G's weights, for both losses."""
    random = torch.Generator().manual_seed(1)
    z = torch.randn(100, run.args.latent_dim, generator=random)
    logits = networks["discriminator"](networks["generator"](z))
    losses = {
        "-log D": F.softplus(-logits).mean(),
        "log(1 - D)": -F.softplus(logits).mean(),
    }
    weights = list(networks["generator"].parameters())
    found = {}
    for name, loss in losses.items():
        grads = torch.autograd.grad(loss, weights, retain_graph=True)
        found[f"gradient of {name}"] = nn.utils.get_total_norm(grads).item()
    return found


def share_at_bound(weights: Tensor) -> float:
    """The share of weights within 1 % of the largest, where clipping leaves them."""
    sizes = weights.abs()
    return (sizes >= 0.99 * sizes.max()).double().mean().item()


def load_weights(folder: Path) -> Tensor:
    """All weights of the convolutions of a run's critic, flat."""
    critic = torch.load(folder / "checkpoint.pt", weights_only=True)["critic"]
    return torch.cat([weight.flatten() for weight in critic.values() if weight.ndim == 4])


def score(folder: Path, options: Namespace) -> dict[str, float]:
    """The figures of --samples images, the last row of metrics.csv and sizes of gradients."""
    run = evaluate.load_run(str(folder))
    judge, _ = load_judge(options.data)
    labels = run.labels(options.samples) if run.script.CONDITIONAL else None
    found = judge(evaluate.draw_32(run, options.samples), labels)
    found |= read_metrics(folder)[-1]
    networks, _ = run.script.make_networks(run.args, run.checkpoint)
    networks.eval()
    if "critic" in networks:
        found["gradient"] = critic_gradient(run, networks["critic"])
        found["at the bound"] = share_at_bound(load_weights(folder))
    elif run.script.SCRIPT == "vanilla_gan":
        found |= generator_gradients(run, networks)
    return found


def train_and_score(kind: str, argv: list[str], folder: Path, options: Namespace) -> dict:
    """Trains a variant of the script argv[0], or continues its training."""
    script = importlib.import_module(argv[0])
    print(f"{folder.name}, {argv[-1]} steps", file=sys.stderr, flush=True)
    with variant(script, kind):
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                script.main([*argv[1:], "--resume", "--out", str(folder)])
        except SystemExit as end:
            if "not finite" not in str(end.code):
                raise
            return {"frechet": math.inf}  # the training has broken
        return score(folder, options)


def measure(
    options: Namespace, name: str, kind: str = "as it is", extra: str = "", points: tuple = (1,)
) -> tuple[Path, dict[int, list[dict]]]:
    """Trains a variant for --steps, with each seed, and scores it at these parts of the steps.

    Returns the run of seed 0, and for each number of steps the scores of all seeds.
    """
    argv = [name, "--data", options.data, "--batch-size", str(options.batch_size), "--ema", "0"]
    argv += ["--no-cuda", "--no-amp", "--log-every", str(max(1, options.steps // 20))]
    argv += extra.split()
    if name != "vanilla_gan":
        argv += ["--width", str(WIDTH)]
    all_steps = [round(options.steps * point) for point in points]
    scores = {steps: [] for steps in all_steps}
    folders = []
    data = Path(options.data).name
    for seed in range(options.seeds):
        size = f"{options.batch_size}x{options.steps}"
        label = f"{name} {kind} {extra} {data} {size} {len(points)} points {seed}"
        label += f" {numerics_of(name)} {options.samples} samples"
        folder = Path(options.out, label.replace(" ", "_"))
        folders.append(folder)
        file = folder / "scores.json"
        found = json.loads(file.read_text()) if file.exists() else {}
        for steps in all_steps:
            if str(steps) not in found:
                typed = [*argv, "--seed", str(seed), "--steps", str(steps)]
                found[str(steps)] = train_and_score(kind, typed, folder, options)
                file.write_text(json.dumps(found, indent=1))
            scores[steps].append(found[str(steps)])
    return folders[0], scores


def begin_table(options: Namespace, columns: dict[str, int]) -> Table:
    """With its first row, of real images, which shows what the judge's figures mean."""
    table = Table(columns)
    judge, images = load_judge(options.data)
    table.add("real images", None, [judge(images)])
    return table


def draw(path: Path, runs: dict[str, Path], columns: int = 4) -> None:
    """The last samples of each run, 4 rows of 8."""
    rows = math.ceil(len(runs) / columns)
    figure = Figure(figsize=(2.4 * columns, 1.5 * rows))
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for panel, (name, folder) in zip(panels, runs.items(), strict=False):
        picture = imread(max((folder / "samples").iterdir(), key=evaluate.step_of))
        panel.imshow(picture[: len(picture) // 2], cmap="gray", vmin=0, vmax=1)
        panel.set_title(name, fontsize=8)
    for panel in figure.axes:
        panel.axis("off")
    figure.savefig(path, dpi=100, bbox_inches="tight")
    Image.open(path).convert("L").save(path)  # grey: half the size
    print(path)


def spearman(x: list[float], y: list[float]) -> float:
    """The correlation of the ranks: 1 if y always grows with x."""
    ranks = torch.tensor([x, y]).argsort(dim=1).argsort(dim=1)
    return ranks.double().corrcoef()[0, 1].item()


COLUMNS = {"frechet": 1, "classes": 1, "diversity": 2}  # and their digits
POINTS = tuple(k / 10 for k in range(1, 11))  # where a run's loss is set beside its images
FACTORS = (1, 5, 25)  # of the learning rate; runs are too short for smaller ones
RATES = {"dcgan": 1e-3, "lsgan": 1e-3, "wgan": 2.5e-4, "wgan_gp": 5e-4}  # five times the default
LOSSES = {"dcgan": "d_loss", "wgan": "wasserstein"}


def dcgan(options: Namespace) -> Table:
    """The guidelines and settings of Radford et al. 2015 (sections 3, 4) left out one by one."""
    table = begin_table(options, COLUMNS)
    pictures = {}
    for kind in VARIANTS:
        points = POINTS if kind == "as it is" else (1,)  # the command wgan shares these runs
        pictures[kind], scores = measure(options, "dcgan", kind, points=points)
        table.add(kind, "dcgan", scores[options.steps])
    draw(Path(options.out, "dcgan.png"), pictures)
    return table


def wgan(options: Namespace) -> Table:
    """The loss follows the images, and G needs no BatchNorm (Arjovsky et al. 2017, figures 3-7)."""
    columns = COLUMNS | {"correlation": 2}
    table = begin_table(options, columns)
    figure = Figure(figsize=(8, 3))
    pictures = {}
    panels = figure.subplots(1, 2)
    for (name, loss), panel in zip(LOSSES.items(), panels, strict=True):
        extra = "--lr 2.5e-4" if name == "wgan" else ""  # five times the paper's: few steps
        for kind in ("as it is", "no BatchNorm in G", "MLP as G"):
            title = f"{name}, {kind}"
            points = POINTS if kind == "as it is" else (1,)
            pictures[title], scores = measure(options, name, kind, extra, points)
            last = scores[options.steps]
            if kind == "as it is":
                for seed, found in enumerate(last):
                    if found["frechet"] == math.inf:  # the training has broken
                        continue
                    losses = [seeds[seed][loss] for seeds in scores.values()]
                    distances = [seeds[seed]["frechet"] for seeds in scores.values()]
                    panel.plot(losses, distances, marker=".", linewidth=0.5)
                    found["correlation"] = spearman(losses, distances)
            table.add(title, name, last)
        title = f"{name}: ten points of each run"
        panel.set(title=title, xlabel=loss, ylabel="frechet", yscale="log")
    figure.savefig(Path(options.out, "wgan-loss.png"), dpi=100, bbox_inches="tight")
    draw(Path(options.out, "wgan.png"), pictures, columns=3)
    return table


def wgan_gp(options: Namespace) -> Table:
    """The penalty against clipping (Gulrajani et al. 2017, figure 1): settings, weights."""
    columns = COLUMNS | {"gradient": 3, "at the bound": 3}
    table = begin_table(options, columns)
    figure = Figure(figsize=(8, 3))
    panels = figure.subplots(1, 2)
    distances = {"wgan": [], "wgan_gp": []}  # of each setting
    pictures = {}
    defaults = {"wgan": 5e-5, "wgan_gp": 1e-4}
    for panel, (name, lr) in zip(panels, defaults.items(), strict=True):
        for n_critic, factor in itertools.product((1, 5), FACTORS):
            extra = f"--lr {lr * factor:g} --n-critic {n_critic}"
            folder, scores = measure(options, name, extra=extra)
            last = scores[options.steps]
            table.add(f"{name} {extra}", name, last)
            distances[name].append(sum(found["frechet"] for found in last) / len(last))
            pictures[f"{name} {extra}"] = folder
            if (n_critic, factor) == (5, 5):
                panel.hist(load_weights(folder), bins=60)
                panel.set(title=f"{name}: weights of the critic", yticks=[])
    best = min(distances["wgan"] + distances["wgan_gp"])
    for name, found in distances.items():
        good = sum(distance <= 2 * best for distance in found)
        print(f"{name}: {good} of {len(found)} settings are within twice the best frechet of all")
    figure.savefig(Path(options.out, "wgan_gp-weights.png"), dpi=100, bbox_inches="tight")
    draw(Path(options.out, "wgan_gp.png"), pictures, columns=3)
    return table


def stability(options: Namespace) -> Table:
    """Five architectures, nothing tuned to any of them (Gulrajani et al. 2017, figure 2)."""
    table = begin_table(options, COLUMNS)
    pictures = {}
    longer = Namespace(**vars(options) | {"steps": 3 * options.steps})
    for kind, (name, lr) in itertools.product(ARCHITECTURES, RATES.items()):
        trained = kind
        if kind == "no BatchNorm" and name == "wgan_gp":  # whose critic has none
            trained = "no BatchNorm in G"
        if kind == "MLP as G":  # MLPs learn slowly
            folder, scores = measure(longer, name, trained, f"--lr {lr:g}", (1 / 3, 1))
        else:
            folder, scores = measure(options, name, trained, f"--lr {lr:g}")
        for steps, found in scores.items():
            table.add(f"{name}, {kind}, {steps} steps", name, found)
        pictures[f"{name}, {kind}"] = folder
    draw(Path(options.out, "stability.png"), pictures)
    return table


def vanilla(options: Namespace) -> Table:
    """Early in training log(1 - D(G(z))) saturates (Goodfellow et al. 2014, section 3)."""
    columns = {"D(G(z))": 3, "gradient of log(1 - D)": 4, "gradient of -log D": 4} | COLUMNS
    table = begin_table(options, columns)
    points = (1 / 8, 1 / 4, 1 / 2, 1)
    for loss in ("minimax", "non-saturating"):
        _, scores = measure(options, "vanilla_gan", extra=f"--loss {loss}", points=points)
        for steps, found in scores.items():
            table.add(f"{loss}, {steps} steps", "vanilla_gan", found)
    return table


def cgan(options: Namespace) -> Table:
    """Each class where it is asked for (Mirza & Osindero 2014, figure 2)."""
    columns = COLUMNS | {"accuracy": 3}
    table = begin_table(options, columns)
    _, scores = measure(options, "cgan", points=(1 / 4, 1 / 2, 1))
    for steps, found in scores.items():
        table.add(f"{steps} steps", "cgan", found)
    return table


STEPS = {vanilla: 400, dcgan: 500, cgan: 500, wgan: 500, wgan_gp: 300, stability: 1000}


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser("claims.py", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for function, steps in STEPS.items():
        text = function.__doc__.splitlines()[0]
        command = commands.add_parser(function.__name__, help=text, description=text)
        command.set_defaults(function=function)
        add = command.add_argument
        add("--data", help="a folder of arrays with classes (built-in digits, 16 x 16)")
        add("--out", default="runs/claims", help="where the runs and the picture go (%(default)s)")
        add("--seeds", type=int, default=3, help="runs of each variant (%(default)s)")
        add("--steps", type=int, default=steps, help="updates of G (%(default)s)")
        add("--batch-size", type=int, default=64, help="images in a batch (%(default)s)")
        add("--samples", type=int, default=2000, help="generated images to judge (%(default)s)")
        add_record_option(command)
    options = parser.parse_args(argv)
    if options.record and not options.data:
        parser.error("a record needs --data")
    if not options.data:
        options.data = str(Path(options.out, "digits-16"))
        write_digits(dcgan_script, 16, Path(options.data))
    table = options.function(options)
    table.record(options.record, parser.prog, argv)


if __name__ == "__main__":
    main()
