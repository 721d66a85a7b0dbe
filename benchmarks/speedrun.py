"""Time to quality, as a race: the seconds of training until the samples of a script reach a stated score.

    python benchmarks/speedrun.py                             all scripts, by the quick commands below, three seeds each
    python benchmarks/speedrun.py cgan --options "--lr 5e-4"  other settings; --options "" is the script's defaults
    python benchmarks/speedrun.py --final                     judged by the test images

Needs the folders mnist-28 and mnist-32 that prepare.py makes of MNIST, in --data. The first 50,000 training images
train, the other 10,000 judge; with --final all 60,000 train and the test images judge. So settings are not chosen by
what the last table is measured on.

Each run is the script itself, stopped and resumed (--steps, --resume), and scored at every stop by the functions of
evaluate.py: Frechet distance to the judging images, the share of the rarest digit, diversity, and for cgan.py how many
are the digit that was asked for. The seconds are the script's own (its column "seconds"): scoring is not in them, nor
are the few seconds in which a script starts.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import evaluate  # noqa: E402


class Race(NamedTuple):
    """Settings that are quick, the steps after which samples are scored, and where the race ends."""

    options: str
    first: int  # score, then at every further ones, at most until most
    every: int
    most: int
    frechet: float  # at most
    accuracy: float = 0.0  # at least; cgan.py


RACES = {
    "vanilla_gan": Race("--batch-size 64 --lr 1e-3", 3000, 500, 8000, frechet=60),
    "dcgan": Race("--batch-size 32 --lr 2e-3", 800, 200, 3000, frechet=20),
    "cgan": Race("--batch-size 32 --lr 1e-3", 1000, 100, 3000, frechet=5, accuracy=0.95),
    "wgan": Race("--batch-size 32 --lr 5e-4 --n-critic 2 --clip 0.05", 1200, 200, 4000, frechet=40),
    "wgan_gp": Race("--batch-size 32 --lr 1e-3", 600, 100, 1600, frechet=20),
}
DIVERSITY, RAREST = 0.95, 0.05  # at least, in every race


def split(data: Path, folder: Path, final: bool) -> Path:
    """The folder of arrays to train on, whose test images are the judging ones."""
    if final:
        return data
    folder.mkdir()
    for name in ("images", "labels"):
        array = np.load(data / f"{name}.npy", mmap_mode="r")
        np.save(folder / f"{name}.npy", array[:50_000])
        np.save(folder / f"test_{name}.npy", array[50_000:])
    shutil.copy(data / "classes.txt", folder)
    return folder


class Judge:
    """Scores runs against the test images of the data that they were trained on."""

    def __init__(self, run: evaluate.Run) -> None:
        (images, labels), (held_out, _), _ = run.load_data()
        self.device, self.classes = run.device, len(run.args.classes)
        self.classifier = evaluate.load_classifier(evaluate.to_32(images), labels, self.classes, self.device)
        held_out = evaluate.to_32(held_out)
        self.features, read = evaluate.classify(self.classifier, held_out)
        self.spread = evaluate.spread(held_out, read, self.classes)

    def __call__(self, run: evaluate.Run, samples: int) -> dict[str, float]:
        parts: list[tuple[Tensor, Tensor]] = [(evaluate.to_bytes(x).cpu(), y) for x, y in run.draw(samples)]
        images, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
        features, read = evaluate.classify(self.classifier, evaluate.to_32(images))
        spread = evaluate.spread(evaluate.to_32(images), read, self.classes) / self.spread
        return {
            "frechet": evaluate.frechet(features, self.features),
            "rarest": read.bincount(minlength=self.classes).min().item() / len(read),
            "diversity": spread[spread.isfinite()].mean().item(),
            "accuracy": (read == labels).double().mean().item() if "label" in run.args else 1.0,
        }


def row(*cells: object) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def drive(
    script: str, race: Race, seed: int, data: Path, out: Path, judges: dict[Path, Judge], args: Namespace
) -> float:
    """Runs a race and prints a row at each stop. Returns the seconds, inf if the most steps did not suffice."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, ROOT / f"{script}.py", "--data", data, "--out", out, "--resume", "--epochs", 10**6]
    command += ["--seed", seed, *race.options.split(), "--cuda" if args.cuda else "--amp", "--steps"]
    for steps in range(race.first, race.most + 1, race.every):
        subprocess.run([*map(str, command), str(steps)], check=True, capture_output=True)
        run = evaluate.load_run(str(out), Namespace(cuda=args.cuda))
        judges[data] = judge = judges.get(data) or Judge(run)
        found, seconds = judge(run, args.samples), run.checkpoint["seconds"]
        asked = f"{found['accuracy']:.1%}" if "label" in run.args else "-"
        cells = f"{found['frechet']:.2f}", f"{found['rarest']:.1%}", f"{found['diversity']:.2f}", asked
        row(script, seed, steps, f"{seconds:.0f}", *cells)
        close = found["frechet"] <= race.frechet and found["accuracy"] >= race.accuracy
        if close and found["diversity"] >= DIVERSITY and found["rarest"] >= RAREST:
            return seconds
    return float("inf")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("scripts", nargs="*", default=list(RACES), metavar="SCRIPT", help=f"{', '.join(RACES)} (all)")
    add("--data", type=Path, default=Path("data"), metavar="DIR", help="holds mnist-28 and mnist-32 (%(default)s)")
    add("--options", metavar="TEXT", help="options of the script, instead of the quick ones")
    add("--first", type=int, metavar="N", help="steps before the first score, instead of the script's")
    add("--every", type=int, metavar="N", help="steps between scores, instead of the script's")
    add("--most", type=int, metavar="N", help="steps after which a run is given up, instead of the script's")
    add("--seeds", type=int, default=3, metavar="N", help="number of runs (%(default)s)")
    add("--samples", type=int, default=10_000, metavar="N", help="number of samples to score (%(default)s)")
    add("--final", action="store_true", help="train on all training images, judge by the test images")
    add("--cuda", action="store_true", help="on the GPU, in float32 (on the CPU with --amp)")
    add("--out", type=Path, default=Path("runs/speedrun"), metavar="DIR", help="for the runs (%(default)s)")
    args = parser.parse_args()
    device = torch.cuda.get_device_name() if args.cuda else f"{torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, {device}; judged by {'test' if args.final else 'held-out training'} images\n")
    row("script", "seed", "step", "seconds", "Frechet", "rarest digit", "diversity", "as asked")
    row(*["---"] * 8)
    results, judges = {}, {}
    with tempfile.TemporaryDirectory() as home:
        for script in (Path(name).stem for name in args.scripts):
            changes = {name: getattr(args, name) for name in ("options", "first", "every", "most")}
            race = RACES[script]._replace(**{name: value for name, value in changes.items() if value is not None})
            name = "mnist-28" if script == "vanilla_gan" else "mnist-32"
            data = Path(home, name)
            data = data if data.exists() else split(args.data.resolve() / name, data, args.final)
            outs = [args.out.resolve() / f"{script}-{seed}" for seed in range(args.seeds)]
            times = [drive(script, race, seed, data, out, judges, args) for seed, out in enumerate(outs)]
            results[script] = race, times
    print()
    row("script", "options", "Frechet", "as asked", "seconds, each seed", "median")
    row(*["---"] * 6)
    for script, (race, times) in results.items():
        asked = f">= {race.accuracy:.0%}" if race.accuracy else "-"
        cells = [f"{script}.py", f"`{race.options}`", f"<= {race.frechet:g}", asked]
        row(*cells, ", ".join(f"{time:.0f}" for time in times), f"{statistics.median(times):.0f}")


if __name__ == "__main__":
    main()
