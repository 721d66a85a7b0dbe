"""In equal time: scripts of other repositories and ours train on MNIST, and one judge compares.

    git clone https://github.com/eriklindernoren/PyTorch-GAN ../PyTorch-GAN
    git clone https://github.com/pytorch/examples ../examples
    pip install torchvision
    python prepare.py mnist
    python benchmarks/peers.py          all, or some of the names that --help lists

Theirs run with their defaults, ours with the options below, on the CPU, until training has taken
--seconds (ours within some 2 %, but 50 steps at least), counted from the first update. Theirs are
executed as they are, in the folder that they expect, with what they print thrown away; they
download MNIST by themselves. Samples are drawn in each script's own way: theirs by G in training
mode, in batches of the size it was trained with, ours from averaged weights. The judge is that of
evaluate.py, against the test images of MNIST.

All of theirs but PyTorch-GAN's wgan_gp.py resize MNIST's 28x28 to 32x32 or 64x64, where ours pad
it. So their samples are resized back to 28x28 and padded, and compared with test images that went
the same way: both are blurred alike. The table of all scripts begins with the rows "real images",
which are training images resized in each of these ways.
"""

import argparse
import contextlib
import os
import random
import re
import shutil
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import optimizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import speedrun
from tables import Table, add_record_option

import evaluate
from dcgan import to_picture


class Peer(NamedTuple):
    """A script of another repository."""

    script: str  # below --clones
    options: str = ""
    generator: str = "generator"  # its variable
    size: int = 32  # of its images
    takes_labels: bool = False


GAN = "PyTorch-GAN/implementations"
MAIN = "examples/dcgan/main.py"
PEERS = {
    "PyTorch-GAN dcgan.py": Peer(f"{GAN}/dcgan/dcgan.py"),
    "PyTorch-GAN wgan_gp.py": Peer(f"{GAN}/wgan_gp/wgan_gp.py", size=28),
    "PyTorch-GAN cgan.py": Peer(f"{GAN}/cgan/cgan.py", takes_labels=True),
    "pytorch/examples dcgan": Peer(MAIN, "--dataset mnist --dataroot data", "netG", size=64),
}
OURS = {  # options; None: those of the newest record (docs/speedrun.md)
    "dcgan.py": "--batch-size 64",  # as theirs, at the paper's rate
    "dcgan.py, quick": None,
    "cgan.py, quick": None,
    "wgan_gp.py, quick": None,
}


COLUMNS = {"seconds": 0, "updates of G": 0, "frechet": 1, "classes": 0, "as asked (%)": 1}


class TimeIsUp(Exception):
    """Ends a peer's training."""


def run_peer(peer: Peer, folder: Path, seconds: float) -> tuple[float, int, dict]:
    """Executes the script for so long. Returns seconds, updates of G, and its variables."""
    path = folder / peer.script
    variables = {"__name__": "__main__", "__file__": str(path)}
    updates: dict[optimizer.Optimizer, int] = {}
    began = 0.0

    def after_update(which: optimizer.Optimizer, *_: object) -> None:
        nonlocal began
        began = began or time.monotonic()
        updates[which] = updates.get(which, 0) + 1
        if time.monotonic() - began > seconds:
            raise TimeIsUp

    hook = optimizer.register_optimizer_step_post_hook(after_update)
    here, argv = Path.cwd(), sys.argv
    try:
        os.chdir(path.parent)
        sys.argv = [path.name, *peer.options.split()]
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
            exec(compile(path.read_text(), path, "exec"), variables)
    except TimeIsUp:
        pass
    finally:
        os.chdir(here)
        sys.argv = argv
        hook.remove()
    trained = time.monotonic() - began
    weight = next(variables[peer.generator].parameters())
    for which, count in updates.items():
        if any(weight is other for other in which.param_groups[0]["params"]):
            return trained, count, variables
    raise RuntimeError(f"{path} never updated its generator.")


@torch.no_grad()
def draw_peer(peer: Peer, variables: dict, labels: Tensor) -> Tensor:
    """A sample uint8 (1, S, S) for each label, by G as training left it."""
    generator: nn.Module = variables[peer.generator]
    options: Namespace = variables["opt"]
    is_example = peer.generator == "netG"  # it names its options in its own way
    batch_size = options.batchSize if is_example else options.batch_size
    whole_batches = F.pad(labels, (0, -len(labels) % batch_size))
    parts = []
    for batch in whole_batches.split(batch_size):
        if peer.takes_labels:
            images = generator(torch.randn(len(batch), options.latent_dim), batch)
        elif is_example:
            z = torch.randn(len(batch), options.nz, 1, 1)  # as an image of one pixel
            images = generator(z)
        else:
            images = generator(torch.randn(len(batch), options.latent_dim))
        parts.append(evaluate.to_bytes(images))
    return torch.cat(parts)[: len(labels)]


def resize(images: Tensor, size: int) -> Tensor:
    """Images uint8 (N, 1, S, S) resized with antialiasing, as torchvision does."""
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True)


def by_way_of(images: Tensor, size: int) -> Tensor:
    """Padded images uint8 (N, 1, 32, 32), resized from 28x28 to another size and back."""
    return evaluate.to_32(resize(resize(images[..., 2:-2, 2:-2], size), 28))


def file_name(name: str) -> str:
    """For example dcgan-quick of "dcgan.py, quick"."""
    return re.sub(r"\W+", "-", name.replace(".py", ""))


def run_ours(
    name: str, script: str, words: str, options: Namespace
) -> tuple[float, int, Tensor, Tensor | None]:
    """Trains for so long. Returns seconds, updates of G, samples and the labels asked for."""
    out = options.out.resolve() / file_name(name)
    shutil.rmtree(out, ignore_errors=True)
    data = options.data.resolve() / "mnist-32"
    steps, trained = 50, 0.0
    while True:  # in pieces, as --steps is what can be asked for
        trained += speedrun.train(script, steps, f"{words} --no-cuda", 0, data, out)
        more = int((options.seconds - trained) / trained * steps)
        if more < 0.02 * steps:
            break
        steps += int(0.9 * more)  # the next steps may be slower
    run = evaluate.load_run(str(out), cuda=False)
    labels = run.labels(options.samples) if run.script.CONDITIONAL else None
    return trained, steps, evaluate.draw_32(run, options.samples), labels


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("peers.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # some of theirs would use a GPU
    names = [*PEERS, *OURS]
    add("names", nargs="*", metavar="NAME", help=f"of {'; '.join(names)}")
    add("--seconds", type=float, default=240, help="of training (%(default)g)")
    add("--samples", type=int, default=10_000, help="samples to judge (%(default)s)")
    add("--data", type=Path, default=Path("data"), help="has mnist-32 (%(default)s)")
    add("--clones", type=Path, default=Path(".."), help="folder of the clones (%(default)s)")
    add("--out", type=Path, default=Path("runs/peers"), help="runs and pictures (%(default)s)")
    add_record_option(parser)
    options = parser.parse_args(argv)
    if not set(names).issuperset(options.names):
        parser.error(f"the names are {'; '.join(names)}")
    folder = options.data / "mnist-32"
    images, labels, test_images = (
        torch.from_numpy(np.load(folder / f"{name}.npy"))
        for name in ("images", "labels", "test_images")
    )
    train = evaluate.ImageSet(images, labels)
    judges = {
        size: evaluate.Judge(train, 10, "cpu", reference=by_way_of(test_images, size))
        for size in (28, 32, 64)
    }
    options.out.mkdir(parents=True, exist_ok=True)
    table = Table(COLUMNS)
    if not options.names:
        for size, judge in judges.items():
            found = judge(by_way_of(images[: options.samples], size))
            table.add(f"real images by way of {size}x{size}", None, [found])
    for name in options.names or names:
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        size = 28
        row, script = name, None
        if name in PEERS:
            peer = PEERS[name]
            size = peer.size
            seconds, updates, variables = run_peer(peer, options.clones.resolve(), options.seconds)
            asked = torch.arange(options.samples) % 10
            samples = evaluate.to_32(resize(draw_peer(peer, variables, asked), 28))
            if not peer.takes_labels:
                asked = None
        else:
            script = name.split(".py")[0]
            words = OURS[name] or speedrun.newest_record(script)["options"]
            row = f"ours: {script}.py {words}"
            seconds, updates, samples, asked = run_ours(name, script, words, options)
        found = {"seconds": seconds, "updates of G": updates} | judges[size](samples, asked)
        if "accuracy" in found:
            found["as asked (%)"] = 100 * found["accuracy"]
        table.add(row, script, [found])
        grid = evaluate.to_floats(samples[:64])
        to_picture(grid, columns=8).save(options.out / f"{file_name(name)}.png")
    table.record(options.record, parser.prog, argv)


if __name__ == "__main__":
    main()
