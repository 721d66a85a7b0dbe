"""Time to quality, as a race: seconds of training until a script's samples reach a stated score.

    python benchmarks/speedrun.py                             all five races, three seeds each
    python benchmarks/speedrun.py cgan --options "--lr 5e-4"  other options of the script
    python benchmarks/speedrun.py --final                     judged by the test images

Needs the folders mnist-28 and mnist-32 that prepare.py makes of MNIST, in --data. The first 50,000
training images train and the other 10,000 judge. With --final all 60,000 train and the test images
judge, so that no setting is chosen by what the last table is measured on.

Each run is the script itself, stopped and resumed (--steps, --resume) and scored at every stop as
by evaluate.py, but against the judging images. The seconds are the script's own (the column
"seconds"): they contain neither the scoring nor the start of the script.
"""

import argparse
import csv
import shutil
import statistics
import subprocess
import sys
import tempfile
from argparse import BooleanOptionalAction, Namespace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from throughput import print_cells

import evaluate

ROOT = Path(evaluate.__file__).parent


class Race(NamedTuple):
    """Quick options, the steps after which samples are scored, and the score that ends the race."""

    options: str
    first: int  # the first score
    every: int  # steps from one score to the next
    most: int  # the last score
    frechet: float  # at most
    accuracy: float = 0.0  # at least, for cgan


RACES = {
    "vanilla_gan": Race("--batch-size 64 --lr 1e-3", 3000, 500, 8000, frechet=60),
    "dcgan": Race("--batch-size 32 --lr 2e-3", 800, 200, 3000, frechet=20),
    "cgan": Race("--batch-size 32 --lr 1e-3", 1000, 100, 3000, frechet=5, accuracy=0.95),
    "wgan": Race("--batch-size 32 --lr 5e-4 --n-critic 2 --clip 0.05", 1200, 200, 4000, frechet=40),
    "wgan_gp": Race("--batch-size 32 --lr 1e-3", 600, 100, 1600, frechet=20),
}
DIVERSITY = 0.95  # at least, in every race
RAREST = 0.05  # the share of the rarest digit, at least


def split(data: Path, folder: Path) -> Path:
    """Writes a folder of arrays whose test images are the last training images of data."""
    folder.mkdir()
    for name in ("images", "labels"):
        array = np.load(data / f"{name}.npy", mmap_mode="r")
        np.save(folder / f"{name}.npy", array[:50_000])
        np.save(folder / f"test_{name}.npy", array[50_000:])
    shutil.copy(data / "classes.txt", folder)
    return folder


def make_judge(data: Path, cuda: bool) -> evaluate.Judge:
    """Compares samples with the test images of the data."""
    images, labels, test_images = (
        torch.from_numpy(np.load(data / f"{name}.npy"))
        for name in ("images", "labels", "test_images")
    )
    classes = len((data / "classes.txt").read_text().splitlines())
    train = evaluate.Part(images, labels)
    return evaluate.Judge(train, classes, "cuda" if cuda else "cpu", reference=test_images)


def is_reached(race: Race, found: dict[str, float]) -> bool:
    return (
        found["frechet"] <= race.frechet
        and found["diversity"] >= DIVERSITY
        and found["rarest"] >= RAREST
        and found.get("accuracy", 1.0) >= race.accuracy
    )


def train(script: str, steps: int, options: str, seed: int, data: Path, out: Path) -> float:
    """Trains up to so many steps in all. Returns the seconds that this piece took."""
    command = [sys.executable, ROOT / f"{script}.py", "--data", data, "--resume", "--out", out]
    command += ["--steps", steps, "--seed", seed, *options.split()]
    subprocess.run([str(word) for word in command], check=True, capture_output=True)
    *_, last_row = csv.DictReader((out / "metrics.csv").read_text().splitlines())
    return float(last_row["seconds"])


def drive(
    script: str, race: Race, seed: int, data: Path, judge: evaluate.Judge, options: Namespace
) -> float:
    """Runs a race and prints a row at each stop. Returns the seconds, or inf if it is given up."""
    out = options.out.resolve() / f"{script}-{seed}"
    shutil.rmtree(out, ignore_errors=True)
    machine = "--cuda" if options.cuda else "--no-cuda --amp"
    seconds = 0.0
    for steps in range(race.first, race.most + 1, race.every):
        seconds += train(script, steps, f"{race.options} {machine}", seed, data, out)
        run = evaluate.load_run(str(out), cuda=options.cuda)
        labels = run.labels(options.samples) if run.script.CONDITIONAL else None
        found = judge(evaluate.draw_32(run, options.samples), labels)
        print_cells(
            script,
            seed,
            steps,
            f"{seconds:.0f}",
            f"{found['frechet']:.2f}",
            f"{found['rarest']:.1%}",
            f"{found['diversity']:.2f}",
            f"{found['accuracy']:.1%}" if "accuracy" in found else "-",
        )
        if is_reached(race, found):
            return seconds
    return float("inf")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("speedrun.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("scripts", nargs="*", default=list(RACES), metavar="SCRIPT", help=f"of {', '.join(RACES)}")
    add("--data", type=Path, default=Path("data"), help="has mnist-28 and mnist-32 (%(default)s)")
    add("--options", help="options of the script, instead of the quick ones")
    add("--seeds", type=int, default=3, help="number of runs (%(default)s)")
    add("--samples", type=int, default=10_000, help="number of samples to score (%(default)s)")
    add("--final", action="store_true", help="train on all training images, judge by test images")
    has_gpu = torch.cuda.is_available()
    add("--cuda", action=BooleanOptionalAction, default=has_gpu, help="use a GPU, without --amp")
    add("--out", type=Path, default=Path("runs/speedrun"), help="for the runs (%(default)s)")
    options = parser.parse_args(argv)
    device = f"{torch.get_num_threads()} threads"
    if options.cuda:
        device = torch.cuda.get_device_name()
    judges = "test" if options.final else "held-out training"
    print(f"torch {torch.__version__}, {device}; judged by {judges} images\n")
    print_cells("script", "seed", "step", "seconds", "Frechet", "rarest", "diversity", "as asked")
    print_cells(*["---"] * 8)
    lines = []
    with tempfile.TemporaryDirectory() as home:
        for script in options.scripts:
            race = RACES[script]
            if options.options is not None:
                race = race._replace(options=options.options)
            data = options.data.resolve() / ("mnist-28" if script == "vanilla_gan" else "mnist-32")
            if not options.final:
                data = split(data, Path(home, script))
            judge = make_judge(data, options.cuda)
            seeds = range(options.seeds)
            times = [drive(script, race, seed, data, judge, options) for seed in seeds]
            goal = f"<= {race.frechet:g}"
            accuracy = f">= {race.accuracy:.0%}" if race.accuracy else "-"
            line = [f"{script}.py", f"`{race.options}`", goal, accuracy]
            line += [", ".join(f"{time:.0f}" for time in times), f"{statistics.median(times):.0f}"]
            lines.append(line)
    print()
    print_cells("script", "options", "Frechet", "as asked", "seconds, each seed", "median")
    print_cells(*["---"] * 6)
    for line in lines:
        print_cells(*line)


if __name__ == "__main__":
    main()
