"""All losses on points in the plane, side by side: which modes does G find, and which does it leave out.

    python benchmarks/toys.py grid       25 Gaussians in a square, G and D small MLPs: modes found, and the points
    python benchmarks/toys.py mixture    G can only draw one Gaussian, the data are two: f-GAN's divergences

Each loss is the training step of its script, unchanged: train_step is given small networks, and points as images of
1 x 1 pixel with two channels. Settings are the same for all but where the paper's loss asks for its own (RMSprop and
clipping in wgan, five updates of the critic). Prints a table over the seeds and draws seed 0; docs/results.md shows
both. Needs matplotlib.
"""

import argparse
import importlib
import itertools
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

Z = 2  # numbers in z
LOSSES = {  # the name in the table: script and options
    "vanilla_gan": ("vanilla_gan", ""),
    "vanilla_gan, minimax": ("vanilla_gan", "--loss minimax"),
    "lsgan, binary": ("lsgan", "--coding binary"),
    "lsgan, pearson": ("lsgan", "--coding pearson"),
    "wgan": ("wgan", "--clip 0.1 --kernels off"),
    "wgan_gp": ("wgan_gp", "--gp-weight 0.1 --kernels off"),
    **{f"fgan, {name}": ("fgan", f"--divergence {name}") for name in importlib.import_module("fgan").DIVERGENCES},
}


def mlp(inputs: int, outputs: int, width: int) -> list[nn.Module]:
    sizes = [inputs, width, width, width]
    hidden = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
    return [*hidden, nn.Linear(width, outputs)]


class Score(nn.Sequential):
    """D or the critic: points (N, 2, 1, 1) to numbers (N,)."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.Flatten(), *mlp(2, 1, width), nn.Flatten(0))


class Points(nn.Sequential):
    """G: z (N, 2) to points (N, 2, 1, 1), by an MLP, or, without a width, by a linear map: it draws one Gaussian."""

    def __init__(self, width: int | None) -> None:
        layers = mlp(Z, 2, width) if width else [nn.Linear(Z, 2)]
        super().__init__(*layers, nn.Unflatten(1, (2, 1, 1)))


def grid(count: int) -> Tensor:
    """25 Gaussians with centres at -2, -1, 0, 1, 2 in both directions and standard deviation 0.05."""
    centres = torch.cartesian_prod(torch.arange(-2.0, 3), torch.arange(-2.0, 3))
    return centres[torch.randint(25, (count,))] + 0.05 * torch.randn(count, 2)


LEFT, CENTRE, WIDE = 0.7, 1.5, 0.5


def mixture(count: int) -> Tensor:
    """Two Gaussians with centres at (-1.5, 0) and (1.5, 0) and standard deviation 0.5; of ten points seven are left."""
    sign = (torch.rand(count, 1) > LEFT) * 2.0 - 1
    return sign * torch.tensor([CENTRE, 0.0]) + WIDE * torch.randn(count, 2)


def train(loss: tuple[str, str], data: Callable[[int], Tensor], linear: bool, seed: int, options: Namespace) -> Tensor:
    """Trains G with a script's step and returns 10,000 of its points (10,000, 2)."""
    name, extra = loss
    script = importlib.import_module(name)
    args, _ = script.parse_args([*extra.split(), "--latent-dim", str(Z), "--batch-size", str(options.batch_size)])
    args.fused = False
    torch.manual_seed(seed)
    judge = "critic" if name.startswith("wgan") else "discriminator"
    networks = nn.ModuleDict({"generator": Points(None if linear else options.width), judge: Score(options.width)})
    adam = {"lr": options.lr, "betas": (0.5, 0.9)}
    if name == "wgan":
        optimizers = [torch.optim.RMSprop(network.parameters(), lr=options.lr) for network in networks.values()]
    else:
        optimizers = [torch.optim.Adam(network.parameters(), **adam) for network in networks.values()]
    count = options.batch_size * getattr(args, "n_critic", 1)
    for _ in range(options.steps):
        script.train_step(networks, optimizers, args, data(count)[:, :, None, None], torch.zeros(count))
    with torch.no_grad():
        return networks["generator"](torch.randn(10_000, Z)).flatten(1)


def found(points: Tensor) -> tuple[float, float]:
    """Of the 25 Gaussians, those that have a fifth of their share or more; and the share of points near one."""
    nearest = points.round().clamp(-2, 2)
    near = (points - nearest).norm(dim=1) < 0.2  # four standard deviations
    counts = ((nearest[near] + 2) @ torch.tensor([5.0, 1.0])).long().bincount(minlength=25)
    return (counts >= len(points) / 25 / 5).sum().item(), near.double().mean().item()


F = {  # f of each divergence, as a function of u = data / samples (f-GAN, table 1)
    "gan": lambda u: u * u.log() - (u + 1) * (u + 1).log(),
    "js": lambda u: u * u.log() - (u + 1) * ((u + 1) / 2).log(),
    "kl": lambda u: u * u.log(),
    "reverse-kl": lambda u: -u.log(),
    "pearson": lambda u: (u - 1).square(),
    "squared-hellinger": lambda u: (u.sqrt() - 1).square(),
}


def best_gaussian(name: str) -> tuple[Tensor, Tensor]:
    """Mean and standard deviations (2,) of the Gaussian that is nearest to the mixture, by integration on a grid."""
    line = torch.linspace(-9, 9, 181, dtype=torch.float64)
    x = torch.cartesian_prod(line, line)
    normal = torch.distributions.Normal
    sides = torch.stack([normal(c, WIDE).log_prob(x[:, 0]) for c in (-CENTRE, CENTRE)])
    weights = torch.tensor([[LEFT], [1 - LEFT]]).double().log()
    data = (sides + weights).logsumexp(0) + normal(0.0, WIDE).log_prob(x[:, 1])
    results = []
    for start in (-1.0, 0.0, 1.0):  # several, because reverse-kl has a minimum at each side
        mean, log_std = torch.tensor([start, 0.0]).double(), torch.zeros(2).double()
        optimizer = torch.optim.Adam([mean.requires_grad_(), log_std.requires_grad_()], lr=0.02)
        for _ in range(800):
            samples = normal(mean, log_std.exp()).log_prob(x).sum(1)
            u = (data - samples).clamp(-80, 80).exp()
            divergence = (samples.exp() * F[name](u)).sum() * (line[1] - line[0]) ** 2
            optimizer.zero_grad()
            divergence.backward()
            optimizer.step()
        results.append((divergence.item(), mean.detach(), log_std.detach().exp()))
    return min(results, key=lambda result: result[0])[1:]


def draw(panels: dict[str, Tensor], data: Tensor, path: Path, columns: int, half: float) -> None:
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(1.9 * columns, 2.05 * rows))
    for ax, (name, points) in zip(figure.subplots(rows, columns, squeeze=False).flat, panels.items(), strict=False):
        ax.plot(*data[:2500].T, ".", markersize=1, color="0.8")
        ax.plot(*points[:2500].T, ".", markersize=1, color="tab:blue")
        ax.set(title=name, xlim=(-half, half), ylim=(-half, half), aspect="equal", xticks=[], yticks=[])
        ax.title.set_fontsize(8)
    for ax in figure.axes[len(panels) :]:
        ax.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90, bbox_inches="tight")
    print(path)


def show(values: list[float], digits: int) -> str:
    """The mean, and the range in brackets."""
    mean, low, high = (f"{value:.{digits}f}" for value in (sum(values) / len(values), min(values), max(values)))
    return mean if low == high else f"{mean} ({low} to {high})"


def run_grid(options: Namespace) -> None:
    print("| loss | Gaussians found, of 25 | points near one |\n|---|---|---|")
    panels = {}
    for name, loss in LOSSES.items():
        runs = [train(loss, grid, False, seed, options) for seed in range(options.seeds)]
        modes, near = zip(*map(found, runs), strict=True)
        print(f"| {name} | {show(modes, 0)} | {show([100 * x for x in near], 0)} % |", flush=True)
        panels[name] = runs[0]
    draw(panels, grid(2500), options.out / "toys-grid.png", 4, 2.6)


def run_mixture(options: Namespace) -> None:
    print("| divergence | mean | standard deviations | the best Gaussian: mean | standard deviations |")
    print("|---|---|---|---|---|")
    panels = {}
    for name in F:
        loss = ("fgan", f"--loss {options.loss} --divergence {name}")
        runs = [train(loss, mixture, True, seed, options) for seed in range(options.seeds)]
        panels[name], (mean, std) = runs[0], best_gaussian(name)
        means, wide, high = zip(*((x[:, 0].mean().item(), *x.std(0).tolist()) for x in runs), strict=True)
        cells = f"{show(means, 2)} | {show(wide, 2)}, {show(high, 2)} | {mean[0]:.2f} | {std[0]:.2f}, {std[1]:.2f}"
        print(f"| {name} | {cells} |", flush=True)
    draw(panels, mixture(2500), options.out / "toys-mixture.png", 3, 4.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("toy", choices=["grid", "mixture"], help="25 Gaussians and a flexible G; or two, and a G that draws one")
    add("--seeds", type=int, default=3, metavar="N", help="runs of each loss (%(default)s)")
    add("--steps", type=int, default=5000, metavar="N", help="updates of G (%(default)s)")
    add("--batch-size", type=int, default=256, metavar="N", help="points in a batch (%(default)s)")
    add("--lr", type=float, default=1e-3, metavar="X", help="learning rate of both networks (%(default)s)")
    add("--width", type=int, default=128, metavar="N", help="of the hidden layers (%(default)s)")
    add("--loss", choices=["trick", "exact"], default="exact", help="mixture: what G is trained on (%(default)s)")
    add("--out", type=Path, default=Path("runs/toys"), metavar="DIR", help="for the picture (%(default)s)")
    options = parser.parse_args()
    {"grid": run_grid, "mixture": run_mixture}[options.toy](options)


if __name__ == "__main__":
    main()
