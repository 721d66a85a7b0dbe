"""Mode collapse, counted: how many of the 1,000 numbers of Stacked MNIST does a GAN draw?

    python prepare.py mnist
    python prepare.py stacked-mnist
    python benchmarks/modes.py                         six scripts, three seeds each
    python benchmarks/modes.py dcgan --d-width 4       with a D that is narrower than G
    python benchmarks/modes.py wgan_gp --n-critic 5    with more updates of the critic

A run is the script's own main(), and its samples come from averaged weights, as always. The digit
classifier of evaluate.py reads the three channels of 26,000 samples. The table has the number of
modes, that is, of different three-digit numbers, and the Kullback-Leibler divergence of their
shares from 1/1000, as in VEEGAN (Srivastava et al. 2017) and PacGAN (Lin et al. 2018). Even 26,000
real images have a divergence of 0.02. docs/modes.md has the figures.

Runs are kept in --out: the same command again finishes them, or counts them again. Take another
--out when you change the other options, OPTIONS below, a script or the data.
"""

import argparse
import contextlib
import importlib
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tables import Table, add_record_option

import evaluate

# Settings for few steps, as in docs/. fgan.py is left out: its default loss is dcgan.py's.
OPTIONS = {
    "vanilla_gan": "--lr 1e-3",
    "dcgan": "--lr 1e-3",
    "lsgan": "--lr 1e-3",
    "wgan": "--lr 5e-4 --n-critic 2 --clip 0.05",
    "wgan_gp": "--lr 1e-3 --n-critic 1",
    "r3gan": "--lr 1e-3",
}


@contextlib.contextmanager
def with_d_width(script: ModuleType, width: int | None) -> Iterator[None]:
    """While it lasts, the script's D or critic has this width (None: --width, as G)."""
    if width is None:
        yield
        return
    name = "Critic" if hasattr(script, "Critic") else "Discriminator"
    judge = getattr(script, name)

    def make(channels: int, image_size: int, _width: int) -> torch.nn.Module:
        return judge(channels, image_size, width)

    with patch.object(script, name, make):
        yield


def read(classifier: torch.nn.Sequential, images: Tensor) -> Tensor:
    """The numbers (N,), 0 to 999, that images uint8 (N, 3, 32, 32) show."""
    digits = [evaluate.classify(classifier, images[:, i : i + 1])[1] for i in range(3)]
    return 100 * digits[0] + 10 * digits[1] + digits[2]


COLUMNS = {"modes, of 1,000": 0, "divergence": 3}  # and their digits


def count_modes(numbers: Tensor) -> dict[str, float]:
    """How many of the 1,000 numbers occur, and the divergence of their shares from 1/1000."""
    share = numbers.bincount(minlength=1000).double() / len(numbers)
    divergence = share.xlogy(1000 * share).sum().item()
    return {"modes, of 1,000": (share > 0).sum().item(), "divergence": divergence}


def draw_run(name: str, seed: int, options: Namespace) -> Tensor:
    """Trains a run, unless it is there, and returns its samples uint8 (N, 3, 32, 32)."""
    script = importlib.import_module(name)
    d_width = f"d{options.d_width}" if options.d_width else ""
    n_critic = f"c{options.n_critic}" if options.n_critic else ""
    out = options.out / "-".join(filter(None, [name, d_width, n_critic, str(seed)]))
    argv = [*OPTIONS[name].split(), "--data", options.data / "stacked-mnist-32", "--resume"]
    argv += ["--steps", options.steps, "--batch-size", options.batch_size, "--seed", seed]
    argv += ["--out", out, "--cuda" if options.cuda else "--no-cuda"]
    if name != "vanilla_gan":  # it has no --width
        argv += ["--width", options.width]
    if options.n_critic:
        argv += ["--n-critic", options.n_critic]
    table_only = contextlib.redirect_stdout(sys.stderr)
    with with_d_width(script, options.d_width), table_only:
        script.main([str(word) for word in argv])
        run = evaluate.load_run(out, cuda=options.cuda)
        return evaluate.draw_32(run, options.samples)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("modes.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("scripts", nargs="*", metavar="SCRIPT", help=f"{', '.join(OPTIONS)} (default: all)")
    add("--data", type=Path, default=Path("data"), help="the folder of both sets (%(default)s)")
    add("--seeds", type=int, default=3, help="runs of each script (%(default)s)")
    add("--steps", type=int, default=3000, help="updates of G (%(default)s)")
    add("--batch-size", type=int, default=32, help="images in a batch (%(default)s)")
    add("--width", type=int, default=32, help="of the convolutional networks (%(default)s)")
    add("--d-width", type=int, help="of D or the critic (as --width)")
    add("--n-critic", type=int, help="updates of the critic for each of G (as in OPTIONS)")
    add("--samples", type=int, default=26_000, help="samples of each run (%(default)s)")
    has_gpu = torch.cuda.is_available()
    add("--cuda", action=argparse.BooleanOptionalAction, default=has_gpu, help="use a GPU")
    add("--out", type=Path, default=Path("runs/modes"), help="for the runs (%(default)s)")
    add_record_option(parser)
    options = parser.parse_args(argv)
    names = [name.removesuffix(".py") for name in options.scripts] or list(OPTIONS)
    if not OPTIONS.keys() >= set(names):
        parser.error(f"the scripts are {', '.join(OPTIONS)}")
    if options.d_width and "vanilla_gan" in names:
        parser.error("vanilla_gan has no --width; name the other scripts")
    if options.n_critic and set(names) - {"wgan", "wgan_gp"}:
        parser.error("only wgan and wgan_gp have --n-critic; name them")
    mnist = options.data / "mnist-32"
    images, labels = (torch.from_numpy(np.load(mnist / f"{x}.npy")) for x in ("images", "labels"))
    device = "cuda" if options.cuda else "cpu"
    classifier = evaluate.load_classifier(images, labels, 10, device)
    stacked = options.data / "stacked-mnist-32"
    real = torch.from_numpy(np.load(stacked / "test_images.npy"))[: options.samples]
    truth = torch.from_numpy(np.load(stacked / "test_labels.npy"))[: options.samples]
    numbers = read(classifier, real)
    print(f"The classifier reads {(numbers == truth).double().mean():.1%} of real images right.")
    table = Table(COLUMNS, "samples of")
    table.add("real images", None, [count_modes(numbers)])
    for name in names:
        found = []
        for seed in range(options.seeds):
            samples = draw_run(name, seed, options)
            found.append(count_modes(read(classifier, samples)))
        width = f", D of width {options.d_width}" if options.d_width else ""
        updates = f", {options.n_critic} updates of the critic" if options.n_critic else ""
        table.add(f"{name}.py{width}{updates}", name, found)
    table.record(options.record, parser.prog, argv, options.cuda)


if __name__ == "__main__":
    main()
