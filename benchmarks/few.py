"""How few images are enough? A GAN on 50, 200, 1,000 and 5,000 images, also mirrored.

    python prepare.py cifar10
    python benchmarks/few.py                           dcgan.py, eight runs
    python benchmarks/few.py r3gan --counts 200 1000   two sizes, another script

The images are the first ones of a shuffled CIFAR-10, as many of each class, and with --mirror their
mirror images. A run is the script's own main(), and its samples come from averaged weights, as
always. After each third of the steps evaluate.py's classifier compares samples with all training
images of CIFAR-10; those that G never saw count for as much as those that it was trained on.
`copies` is the Frechet distance of the training images, which a G that only copies them would have.
`memorised` counts near copies of training images among the samples, as evaluate.py does. The
picture in --out has ten samples of each run above the nearest training image of each.
docs/troubleshooting.md has the figures.

Runs are kept in --out: the same command again finishes them, or reads what they left. Take another
--out when you change the other options, a script, the data or evaluate.py.
"""

import argparse
import contextlib
import importlib
import json
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from speedrun import read_metrics
from tables import Table, add_record_option

import evaluate

SCRIPTS = ["dcgan", "lsgan", "wgan", "wgan_gp", "r3gan", "vanilla_gan"]


def choose(labels: np.ndarray, count: int) -> np.ndarray:
    """The indices of count images, always the same ones, of each class as many as of any other."""
    order = np.random.default_rng(0).permutation(len(labels))
    turns = np.empty(len(labels), int)  # an image's place among those of its class
    for label in np.unique(labels):
        members = order[labels[order] == label]
        turns[members] = np.arange(len(members))
    return np.lexsort((labels, turns))[:count]


def save_part(source: Path, count: int, mirror: bool, folder: Path) -> None:
    """Writes count images of a folder of arrays, and their mirror images, as such a folder."""
    images = np.load(source / "images.npy", mmap_mode="r")
    chosen = images[np.sort(choose(np.load(source / "labels.npy"), count))]
    if mirror:
        chosen = np.concatenate([chosen, chosen[..., ::-1]])
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "images.npy", chosen)


def train(name: str, data: Path, out: Path, steps: int, options: Namespace) -> evaluate.Run:
    """The run of a script after this many steps; what it has already done is not done again."""
    argv = ["--data", data, "--out", out, "--resume", "--steps", steps, "--lr", options.lr]
    argv += ["--batch-size", options.batch_size, "--cuda" if options.cuda else "--no-cuda"]
    if name != "vanilla_gan":  # it has no --width
        argv += ["--width", options.width]
    importlib.import_module(name).main([str(word) for word in argv])
    return evaluate.load_run(out, cuda=options.cuda)


def measure(name: str, data: Path, out: Path, options: Namespace, judge: evaluate.Judge) -> dict:
    """Trains in three parts and measures after each; returns what is kept beside the run."""
    results = out / "few.json"
    found = json.loads(results.read_text()) if results.exists() else {"frechet": []}
    for third in range(len(found["frechet"]) + 1, 4):
        run = train(name, data, out, options.steps * third // 3, options)
        samples = evaluate.draw_32(run, options.samples)
        found["frechet"].append(judge(samples)["frechet"])
        if third == 3:
            train_images = evaluate.to_32(torch.from_numpy(np.load(data / "images.npy")))
            found["copies"] = judge(train_images)["frechet"]
            found["memorised"] = evaluate.memorised(samples, train_images, run.args.device)
            last_row = read_metrics(out)[-1]
            column = list(last_row)[2]  # after step and epoch: D(x), pairs_right, ...
            found["column"] = [column, last_row[column]]
        results.write_text(json.dumps(found, indent=1) + "\n")
    return found


def neighbours(run: evaluate.Run, data: Path) -> Tensor:
    """Ten samples in [-1, 1] and the nearest training image of each (20, C, S, S)."""
    train_images = torch.from_numpy(np.load(data / "images.npy"))
    samples = evaluate.to_bytes(next(run.draw(10)))
    _, index = evaluate.nearest(samples, train_images, 1, run.args.device)
    return evaluate.to_floats(torch.cat([samples, train_images[index[:, 0]]]))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("few.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("script", nargs="?", default="dcgan", choices=SCRIPTS, help="(default: %(default)s)")
    add("--data", type=Path, default=Path("data/cifar10-32"), help="with labels (%(default)s)")
    add("--counts", type=int, nargs="+", default=[50, 200, 1000, 5000], help="images of the runs")
    mirror = "mirror images, too; with --no-mirror no runs have them (default: both kinds of runs)"
    add("--mirror", action=argparse.BooleanOptionalAction, help=mirror)
    add("--steps", type=int, default=3000, help="updates of G (%(default)s)")
    add("--batch-size", type=int, default=32, help="images in a batch (%(default)s)")
    add("--width", type=int, default=32, help="of the convolutional networks (%(default)s)")
    add("--lr", type=float, default=2e-4, help="learning rate (%(default)s)")
    add("--samples", type=int, default=5000, help="samples of each run (%(default)s)")
    has_gpu = torch.cuda.is_available()
    add("--cuda", action=argparse.BooleanOptionalAction, default=has_gpu, help="use a GPU")
    add("--out", type=Path, default=Path("runs/few"), help="for the runs (%(default)s)")
    add_record_option(parser)
    options = parser.parse_args(argv)
    images, labels = (
        torch.from_numpy(np.load(options.data / f"{x}.npy")) for x in ("images", "labels")
    )
    training = evaluate.ImageSet(images, labels)
    if not (options.data / "test_images.npy").exists():
        # so that `evaluate.py score` has the same classifier
        training, _, _ = evaluate.split(training)
    device = "cuda" if options.cuda else "cpu"
    judge = evaluate.Judge(training, int(labels.max()) + 1, device, reference=images)
    mirrors = [False, True] if options.mirror is None else [options.mirror]
    rows, tiles = [], []
    for count in options.counts:
        for mirror in mirrors:
            name = f"{count}-mirror" if mirror else str(count)
            data = options.out / "data" / name
            out = options.out / f"{options.script}-{name}"
            save_part(options.data, count, mirror, data)
            with contextlib.redirect_stdout(sys.stderr):  # standard output has the table only
                found = measure(options.script, data, out, options, judge)
                tiles.append(neighbours(evaluate.load_run(out, cuda=options.cuda), data))
            rows.append((f"{count:,}, mirrored" if mirror else f"{count:,}", found))
    thirds = [f"Frechet, {options.steps * third // 3:,} steps" for third in (1, 2, 3)]
    last_column, _ = rows[0][1]["column"]
    columns = dict.fromkeys([*thirds, "copies", "memorised (%)"], 1)  # and their digits
    columns[last_column] = 2
    table = Table(columns, "images")
    for name, found in rows:
        figures = [*found["frechet"], found["copies"], 100 * found["memorised"]]
        figures.append(found["column"][1])
        table.add(name, options.script, [dict(zip(columns, figures, strict=True))])
    table.record(options.record, parser.prog, argv, options.cuda)
    path = options.out / f"{options.script}.png"
    importlib.import_module(options.script).to_picture(torch.cat(tiles), columns=10).save(path)
    print(path)


if __name__ == "__main__":
    main()
