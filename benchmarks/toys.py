"""The scripts' losses on points in the plane: which modes does G find, and which does it leave out?

    python benchmarks/toys.py grid       25 Gaussians in a square; every loss
    python benchmarks/toys.py mixture    two Gaussians and a G that can draw one; fgan.py's losses

Each loss is the train_step of its script, unchanged, with MLPs and with points as images of 1 x 1
pixel and two channels. All are trained by Adam with betas (0.5, 0.9), but wgan by RMSprop. The
learning rate is constant in the first half of the steps and then falls to zero. A critic has five
updates for each of G. Runs on the CPU. Prints a table and draws the first seed; docs/modes.md has
the command and the figures of the grid, docs/results.md those of the mixture. Needs matplotlib.
"""

import argparse
import importlib
import itertools
import math
import operator
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tables import Table, add_record_option

import fgan

Z = 2  # length of z
# The row of the table: script and options. Clip and weights of penalties suit points (WGAN-GP's own
# code has 0.1 for its toys). fgan, gan has the loss of vanilla_gan.
LOSSES = {
    "vanilla_gan": "vanilla_gan",
    "vanilla_gan, minimax": "vanilla_gan --loss minimax",
    "lsgan, binary": "lsgan --coding binary",
    "lsgan, pearson": "lsgan --coding pearson",
    "wgan": "wgan --clip 0.1",
    "wgan_gp": "wgan_gp --gp-weight 0.1",
    "r3gan": "r3gan --gamma 0.1",
    **{f"fgan, {name}": f"fgan --divergence {name}" for name in fgan.DIVERGENCES},
}


class Linear(nn.Module):
    """nn.Linear for several networks at once, one for each seed: (N, inputs) to (N, outputs).

    The first N / seeds rows are the first network's, the next the second's.
    """

    def __init__(self, seeds: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = inputs**-0.5  # as in nn.Linear
        self.weight = nn.Parameter(torch.empty(seeds, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(seeds, 1, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        parts = x.unflatten(0, (len(self.weight), -1))  # (seeds, N / seeds, inputs)
        return torch.baddbmm(self.bias, parts, self.weight).flatten(0, 1)


def mlp(seeds: int, inputs: int, outputs: int, width: int) -> list[nn.Module]:
    layers = []
    for before, after in itertools.pairwise([inputs, width, width, width]):
        layers += [Linear(seeds, before, after), nn.ReLU()]
    return [*layers, Linear(seeds, width, outputs)]


def make_networks(judge: str, seeds: int, width: int, linear: bool) -> nn.ModuleDict:
    """G maps z (N, 2) to points (N, 2, 1, 1). D or the critic maps these to numbers (N,).

    A linear G draws one Gaussian.
    """
    layers = [Linear(seeds, Z, 2)] if linear else mlp(seeds, Z, 2, width)
    generator = nn.Sequential(*layers, nn.Unflatten(1, (2, 1, 1)))
    score = nn.Sequential(nn.Flatten(), *mlp(seeds, 2, 1, width), nn.Flatten(0))
    return nn.ModuleDict({"generator": generator, judge: score})


SIGMA = 0.05  # the standard deviation of each of the 25 Gaussians
LINE = torch.arange(-4.0, 5, 2)
CENTRES = torch.cartesian_prod(LINE, LINE)  # (25, 2)


def grid(count: int) -> Tensor:
    return CENTRES[torch.randint(25, (count,))] + SIGMA * torch.randn(count, 2)


# The mixture of two Gaussians
CENTRE = 1.5  # they lie around (-CENTRE, 0) and (CENTRE, 0)
LEFT = 0.7  # the share of the first
WIDE = 0.5  # the standard deviation of both


def mixture(count: int) -> Tensor:
    sign = (torch.rand(count, 1) > LEFT) * 2.0 - 1
    return sign * torch.tensor([CENTRE, 0.0]) + WIDE * torch.randn(count, 2)


def train(
    loss: str, data: Callable[[int], Tensor], linear: bool, count: int, options: Namespace
) -> Tensor:
    """Trains options.seeds pairs of networks at once. Returns points of each G (seeds, count, 2).

    The loss is the mean over all pairs, so each gradient is divided by their number. The steps of
    Adam and RMSprop do not depend on such a factor (but for their eps).
    """
    name, *extra = loss.split()
    script = importlib.import_module(name)
    seeds = options.seeds
    sizes = ["--latent-dim", str(Z), "--batch-size", str(seeds * options.batch_size), "--no-cuda"]
    args, _ = script.parse_args([*extra, *sizes])
    torch.manual_seed(0)
    judge = "critic" if name.startswith("wgan") else "discriminator"
    networks = make_networks(judge, seeds, options.width, linear)
    optimizers = []
    for network in networks.values():
        optimizer = torch.optim.Adam(network.parameters(), lr=options.lr, betas=(0.5, 0.9))
        if name == "wgan":
            optimizer = torch.optim.RMSprop(network.parameters(), lr=options.lr)
        optimizers.append(optimizer)
    points_per_step = script.images_per_step(args)
    labels = torch.zeros(points_per_step)  # no loss here uses them
    for step in range(options.steps):
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = options.lr * min(1, 2 - 2 * step / options.steps)
        real = data(points_per_step)[:, :, None, None]
        script.train_step(networks, optimizers, args, real, labels)
    with torch.no_grad():
        points = networks["generator"](torch.randn(seeds * count, Z))
    return points.view(seeds, count, 2)


GRID_COLUMNS = {"modes, of 25": 1, "good points (%)": 1, "divergence": 2}  # and their digits


def compare(points: Tensor) -> dict[str, float]:
    """The GRID_COLUMNS of points (N, 2), as in PacGAN (Lin et al. 2018).

    A point is good within three standard deviations of a centre, and modes are the centres with a
    good point. For the divergence of the centres' shares from 1/25, every point counts at the
    nearest one.
    """
    distances, nearest = torch.cdist(points, CENTRES).min(dim=1)
    is_good = distances < 3 * SIGMA
    share = nearest.bincount(minlength=25).double() / len(points)
    divergence = share.xlogy(25 * share).sum().item()
    modes = len(nearest[is_good].unique())
    good = 100 * is_good.double().mean().item()
    return {"modes, of 25": modes, "good points (%)": good, "divergence": divergence}


F = {  # f of each divergence, as a function of u = data / samples (f-GAN, table 1)
    "gan": lambda u: u * u.log() - (u + 1) * (u + 1).log(),
    "js": lambda u: u * u.log() - (u + 1) * ((u + 1) / 2).log(),
    "kl": lambda u: u * u.log(),
    "reverse-kl": lambda u: -u.log(),
    "pearson": lambda u: (u - 1).square(),
    "squared-hellinger": lambda u: (u.sqrt() - 1).square(),
}


def best_gaussian(name: str) -> tuple[Tensor, Tensor]:
    """Mean and standard deviations (2,) of the Gaussian nearest to the mixture.

    The divergence is a sum over a grid of points.
    """
    line = torch.linspace(-9, 9, 91, dtype=torch.float64)
    area = (line[1] - line[0]) ** 2
    x = torch.cartesian_prod(line, line)
    normal = torch.distributions.Normal
    wide, high = x.T
    left = normal(-CENTRE, WIDE).log_prob(wide) + math.log(LEFT)
    right = normal(CENTRE, WIDE).log_prob(wide) + math.log(1 - LEFT)
    data = torch.logaddexp(left, right)
    data += normal(0.0, WIDE).log_prob(high)

    def fit(start: float) -> tuple[float, Tensor, Tensor]:
        mean = torch.tensor([start, 0.0], dtype=torch.float64, requires_grad=True)
        log_std = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        parameters = [mean, log_std]
        lbfgs = torch.optim.LBFGS(parameters, max_iter=100, line_search_fn="strong_wolfe")

        def divergence() -> Tensor:
            samples = normal(mean, log_std.exp()).log_prob(x).sum(1)
            u = (data - samples).clamp(-80, 80).exp()
            value = (samples.exp() * F[name](u)).sum() * area
            lbfgs.zero_grad()
            value.backward()
            return value

        lbfgs.step(divergence)
        return divergence().item(), mean.detach(), log_std.detach().exp()

    # Two starts, because reverse-kl has a minimum at each side
    _, mean, std = min(fit(-1.0), fit(1.0), key=operator.itemgetter(0))
    return mean, std


def draw(panels: dict[str, Tensor], data: Tensor, path: Path, columns: int, half: float) -> None:
    """Writes a picture with a panel for each loss: its points on those of the data."""
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(1.9 * columns, 2.05 * rows))
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for ax, (name, points) in zip(axes, panels.items(), strict=False):
        ax.plot(*data[:2500].T, ".", markersize=1, color="0.8")
        ax.plot(*points[:2500].T, ".", markersize=1, color="tab:blue")
        ax.set_title(name, fontsize=8)
        ax.set(xlim=(-half, half), ylim=(-half, half), aspect="equal")
        ax.set(xticks=[], yticks=[])
    for ax in figure.axes[len(panels) :]:
        ax.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90, bbox_inches="tight")
    print(path)


def run_grid(options: Namespace) -> Table:
    table = Table(GRID_COLUMNS, "loss")
    panels = {}
    for name in options.losses:
        runs = train(LOSSES[name], grid, linear=False, count=2500, options=options)
        table.add(name, LOSSES[name].split()[0], [compare(points) for points in runs])
        panels[name] = runs[0]
    path = options.out / "toys-grid.png"
    draw(panels, grid(2500), path, columns=4, half=5.2)
    return table


def run_mixture(options: Namespace) -> Table:
    """Each divergence's row, and below it that of the Gaussian that is nearest."""
    table = Table({"mean": 2, "deviation along": 2, "deviation across": 2}, "divergence")

    def add(name: str, script: str | None, means: Tensor, deviations: Tensor) -> None:
        """Means (seeds, 2) and deviations (seeds, 2). All means lie on the line of both modes."""
        figures = torch.cat([means[:, :1], deviations], dim=1).tolist()
        table.add(name, script, [dict(zip(table.columns, found, strict=True)) for found in figures])

    panels = {}
    for name in F:
        loss = f"fgan --loss {options.loss} --divergence {name}"
        runs = train(loss, mixture, linear=True, count=10_000, options=options)
        add(name, "fgan", runs.mean(dim=1), runs.std(dim=1))
        mean, std = best_gaussian(name)
        add(f"{name}: the best", None, mean[None], std[None])
        panels[name] = runs[0]
    path = options.out / "toys-mixture.png"
    draw(panels, mixture(2500), path, columns=3, half=4.0)
    return table


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("toys.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    toys = {"grid": run_grid, "mixture": run_mixture}
    add("toy", choices=toys, help="25 Gaussians; or two, and a G that draws one")
    add("--losses", nargs="+", choices=LOSSES, default=LOSSES, metavar="LOSS", help="in grid (all)")
    add("--seeds", type=int, default=3, help="pairs of networks for each loss (%(default)s)")
    add("--steps", type=int, default=10_000, help="updates of G (%(default)s)")
    add("--batch-size", type=int, default=100, help="points in a batch (%(default)s)")
    add("--lr", type=float, default=1e-3, help="learning rate of both networks (%(default)s)")
    add("--width", type=int, default=128, help="of the hidden layers (%(default)s)")
    add(
        "--loss", choices=["trick", "exact"], default="exact", help="of G, in mixture (%(default)s)"
    )
    add("--out", type=Path, default=Path("runs/toys"), help="for the picture (%(default)s)")
    add_record_option(parser)
    options = parser.parse_args(argv)
    table = toys[options.toy](options)
    table.record(options.record, parser.prog, argv)


if __name__ == "__main__":
    main()
