"""Time to quality, as a race: seconds of training until a script's samples reach a stated score.

    python benchmarks/speedrun.py                             all six races, three seeds each
    python benchmarks/speedrun.py cgan --options "--lr 5e-4"  other options of the script
    python benchmarks/speedrun.py cgan --final --options "--lr 5e-4" --record "half the rate"
    python benchmarks/scores.py tables                       puts the records into docs/speedrun.md

Needs the folders mnist-28 and mnist-32 that prepare.py makes of MNIST, in --data. The first 50,000
training images train and the other 10,000 judge. With --final all 60,000 train and the test images
judge, so that no setting is chosen by what a record is measured on.

Each run is the script itself, stopped and resumed (--steps, --resume) and scored at every stop as
by evaluate.py, but against the judging images. The seconds are the script's own (the column
"seconds"): they contain neither the scoring nor the start of the script. Without --options a script
runs with those of its newest record.

--record writes results/speedrun/SCRIPT-N.jsonl: a line that describes the record, then a line for
each score. Machines differ, so the seconds of the record before are estimated on this one: the
median of its steps times the median time of a step, measured with its options before each seed. A
record counts, and is written, only if its slowest seed is faster than that.
"""

import argparse
import csv
import datetime
import hashlib
import json
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
from throughput import describe_machine, has_fast_bfloat16, print_cells

import evaluate

ROOT = Path(evaluate.__file__).parent
RECORDS = ROOT / "results" / "speedrun"


class Race(NamedTuple):
    """The steps after which samples are scored, and the score that ends the race."""

    first: int  # the first score
    every: int  # steps from one score to the next
    most: int  # the last score
    frechet: float  # at most
    accuracy: float = 0.0  # at least, for cgan


RACES = {
    "vanilla_gan": Race(3000, 500, 8000, frechet=60),
    "dcgan": Race(1000, 100, 3000, frechet=20),
    "cgan": Race(1000, 100, 3000, frechet=5, accuracy=0.95),
    "wgan": Race(1000, 100, 4000, frechet=40),
    "wgan_gp": Race(500, 100, 3000, frechet=20),
    "r3gan": Race(700, 100, 3000, frechet=20),
}
DIVERSITY = 0.95  # at least, in every race
RAREST = 0.05  # the share of the rarest digit, at least
SAMPLES = 10_000
STEPS_TO_TIME = 50  # with the options of the record before; an even number


def records_of(script: str) -> list[Path]:
    """The files of a script's records, the oldest first."""
    files = RECORDS.glob(f"{script}-*.jsonl")
    return sorted(files, key=lambda file: int(file.stem.removeprefix(f"{script}-")))


def load_record(file: Path) -> tuple[dict, list[dict]]:
    """What describes a record, and the score that ended each seed's race."""
    about, *rows = map(json.loads, file.read_text("utf-8").splitlines())
    last = {row["seed"]: row for row in rows}
    return about, list(last.values())


def newest_record(script: str) -> dict:
    """What describes the newest record of a script."""
    about, _ = load_record(records_of(script)[-1])
    return about


def numerics_of(script: str) -> str:
    """A sum of the values that tests/golden.json has for a script: another one, other results."""
    golden = json.loads((ROOT / "tests" / "golden.json").read_text("utf-8"))
    return hashlib.sha256(json.dumps(golden[f"{script}.py"]).encode()).hexdigest()[:12]


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
    train = evaluate.ImageSet(images, labels)
    return evaluate.Judge(train, classes, "cuda" if cuda else "cpu", reference=test_images)


def is_reached(race: Race, found: dict[str, float]) -> bool:
    return (
        found["frechet"] <= race.frechet
        and found["diversity"] >= DIVERSITY
        and found["rarest"] >= RAREST
        and found.get("accuracy", 1.0) >= race.accuracy
    )


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The rows of a run's metrics.csv."""
    lines = (folder / "metrics.csv").read_text("utf-8").splitlines()
    return [{name: float(x) for name, x in row.items()} for row in csv.DictReader(lines)]


def train(script: str, steps: int, options: str, seed: int, data: Path, out: Path) -> float:
    """Trains up to so many steps in all. Returns the seconds that this piece took."""
    command = [sys.executable, ROOT / f"{script}.py", "--data", data, "--resume", "--out", out]
    command += ["--steps", steps, "--seed", seed, *options.split()]
    subprocess.run([str(word) for word in command], check=True, capture_output=True)
    return read_metrics(out)[-1]["seconds"]


class Runner:
    """Runs a script's races on one set of data, with one judge."""

    def __init__(self, script: str, data: Path, options: Namespace) -> None:
        self.script, self.data, self.options = script, data, options
        self.race = RACES[script]
        self.judge = make_judge(data, options.cuda)
        self.machine = "--cuda" if options.cuda else "--no-cuda"
        if options.amp:
            self.machine += " --amp"

    def step_seconds(self, words: str) -> float:
        """The time of a step with other options, by a short run."""
        with tempfile.TemporaryDirectory() as home:
            out = Path(home, "run")
            half = STEPS_TO_TIME // 2  # the first half is slower
            options = f"{words} {self.machine} --log-every {half}"
            train(self.script, STEPS_TO_TIME, options, 0, self.data, out)
            first, last = read_metrics(out)
            return (last["seconds"] - first["seconds"]) / half

    def drive(self, words: str, seed: int) -> list[dict]:
        """Runs a race and prints a row at each stop. Returns the rows."""
        out = self.options.out.resolve() / f"{self.script}-{seed}"
        shutil.rmtree(out, ignore_errors=True)
        seconds = 0.0
        rows = []
        for steps in range(self.race.first, self.race.most + 1, self.race.every):
            seconds += train(self.script, steps, f"{words} {self.machine}", seed, self.data, out)
            run = evaluate.load_run(str(out), cuda=self.options.cuda)
            labels = run.labels(self.options.samples) if run.script.CONDITIONAL else None
            found = self.judge(evaluate.draw_32(run, self.options.samples), labels)
            row = {"seed": seed, "step": steps, "seconds": round(seconds, 1)}
            for name in ("frechet", "rarest", "diversity", "accuracy"):
                if name in found:
                    row[name] = round(found[name], 4)
            row["reached"] = is_reached(self.race, found)
            rows.append(row)
            print_cells(
                self.script,
                seed,
                steps,
                f"{seconds:.0f}",
                f"{found['frechet']:.2f}",
                f"{found['rarest']:.1%}",
                f"{found['diversity']:.2f}",
                f"{found['accuracy']:.1%}" if "accuracy" in found else "-",
            )
            if row["reached"]:
                break
        return rows


def race_seconds(rows: list[dict]) -> float:
    """Seconds to the target, or inf if it was not reached."""
    return rows[-1]["seconds"] if rows[-1]["reached"] else float("inf")


def write_record(about: dict, rows: list[dict]) -> Path:
    script = about["script"]
    number = len(records_of(script)) + 1
    RECORDS.mkdir(parents=True, exist_ok=True)
    file = RECORDS / f"{script}-{number}.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in [about, *rows]), "utf-8")
    return file


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("speedrun.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("scripts", nargs="*", default=list(RACES), metavar="SCRIPT", help=f"of {', '.join(RACES)}")
    add("--data", type=Path, default=Path("data"), help="has mnist-28 and mnist-32 (%(default)s)")
    add("--options", help="options of the script (default: those of its newest record)")
    add("--seeds", type=int, default=3, help="number of runs (%(default)s)")
    add("--samples", type=int, default=SAMPLES, help="number of samples to score (%(default)s)")
    add("--final", action="store_true", help="train on all training images, judge by test images")
    add("--record", metavar="WHAT", help="write a record, with this text for what changed")
    has_gpu = torch.cuda.is_available()
    add("--cuda", action=BooleanOptionalAction, default=has_gpu, help="use a GPU")
    is_fast = not has_gpu and has_fast_bfloat16(cuda=False)
    add("--amp", action=BooleanOptionalAction, default=is_fast, help="bfloat16 (with AVX-512: yes)")
    add("--out", type=Path, default=Path("runs/speedrun"), help="for the runs (%(default)s)")
    options = parser.parse_args(argv)
    if options.record and (options.seeds, options.samples) != (3, SAMPLES):
        parser.error(f"a record needs three seeds and {SAMPLES} samples")
    if options.record and not options.final:
        parser.error("a record needs --final")
    judges = "test" if options.final else "held-out training"
    machine = describe_machine(options.cuda)
    print(f"torch {torch.__version__}, {machine}; judged by {judges} images\n")
    print_cells("script", "seed", "step", "seconds", "Frechet", "rarest", "diversity", "as asked")
    print_cells(*["---"] * 8)
    lines = []
    with tempfile.TemporaryDirectory() as home:
        for script in options.scripts:
            data = options.data.resolve() / ("mnist-28" if script == "vanilla_gan" else "mnist-32")
            if not options.final:
                data = split(data, Path(home, script))
            runner = Runner(script, data, options)
            files = records_of(script)
            if files:
                before, ends = load_record(files[-1])
            elif not options.options:
                parser.error(f"{script} has no record: it needs --options")
            words = options.options or before["options"]
            races, step_times = [], []
            for seed in range(options.seeds):
                if options.record and files:
                    step_times.append(runner.step_seconds(before["options"]))
                races.append(runner.drive(words, seed))
            seconds = [race_seconds(rows) for rows in races]
            line = [f"{script}.py", f"`{words}`", ", ".join(f"{x:.0f}" for x in seconds)]
            line.append(f"{statistics.median(seconds):.0f}")
            if options.record:
                goal = float("inf")
                if files:
                    steps_before = statistics.median(end["step"] for end in ends)
                    goal = round(steps_before * statistics.median(step_times), 1)
                about = {"script": script, "date": str(datetime.date.today())}
                about |= {"change": options.record, "options": words, "amp": options.amp}
                about |= {"machine": machine, "torch": torch.__version__}
                about |= {"numerics": numerics_of(script), "before": goal if files else None}
                line.append(goal)
                if max(seconds) < goal:
                    print(write_record(about, [row for rows in races for row in rows]))
                else:
                    print(f"No record: {script}'s slowest seed is not faster than the one before.")
            lines.append(line)
    print()
    print_cells("script", "options", "seconds, each seed", "median", "the record before, here")
    print_cells(*["---"] * 5)
    for line in lines:
        print_cells(*line)


if __name__ == "__main__":
    main()
