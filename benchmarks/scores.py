"""The runs whose scores stand in README.md and docs/, and the tables that are made of them.

    python benchmarks/scores.py run best       trains and scores what results/best.jsonl lacks
    python benchmarks/scores.py run widths     the same for another of the SETS below
    python benchmarks/scores.py tables         puts the tables into their pages

`run` needs the folders of data that prepare.py makes, in --data. It trains in float32 unless the
options have --amp, on a CPU in as many threads as OMP_NUM_THREADS says. A run stays in a folder of
--out, and results/NAME.jsonl is written after each score: give an interrupted command again, and it
continues. Do not run two for the same NAME at once. A file is of one machine; to measure on
another, remove the file and the folder NAME in --out.

A line of results/NAME.jsonl is one score: script, data, options, step, seed, the seconds of
training (the script's column "seconds": neither its start nor the scoring), figures of evaluate.py
for 10,000 samples, the last row of metrics.csv, and where and when it was measured. (Files of
before 27 November 2026 lack that row.) Entries of a set that differ only in their step are scores
of one run: list them by rising step. `numerics` is a hash of the values that tests/golden.json has
for the script. If these have changed, the score is outdated: a test fails until `run` has measured
it again. A change of the data or of evaluate.py's classifier is not noticed. To measure a run
again, remove its line and its folder in --out. Lines without a script are about held-out images.

To add a table, write a function that yields the head and then the rows, put it into ALL_TABLES, and
<!-- benchmarks/scores.py FUNCTION --> into a line of a page: the table goes below. A table that
another benchmark has written by --record NAME (tables.py) has its NAME there.
"""

import argparse
import datetime
import json
import re
import statistics
import subprocess
import sys
from argparse import BooleanOptionalAction
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import tables
from kernels import OPERATOR_HEAD, SHARE_HEAD, operator_cells, share_cells
from speedrun import RACES, ROOT, load_record, numerics_of, read_metrics, records_of, train
from throughput import describe_machine, show, show_ratios

import evaluate

RESULTS = ROOT / "results"
PAGES = [ROOT / "README.md", *ROOT.glob("docs/*.md")]
SAMPLES = 10_000
FIGURES = {  # those of evaluate.py that are kept: how many digits, times what, unit
    "frechet": (1, 1, ""),
    "classes": (0, 1, ""),
    "rarest": (1, 100, " %"),
    "diversity": (2, 1, ""),
    "accuracy": (1, 100, " %"),
    "memorised": (1, 100, " %"),
}
POSITION_COLUMNS = ("step", "epoch", "seconds")  # of metrics.csv; the others are of the GAN


class Entry(NamedTuple):
    """Runs of one script. step: when to score, a multiple of --log-every (50)."""

    script: str
    data: str  # the name of a folder in --data
    options: str
    step: int
    seeds: int = 1

    def fields(self) -> dict:
        """What the scores of all seeds have in common."""
        found = self._asdict()
        del found["seeds"]
        return found


NARROW = "--width 32 --batch-size 32"
QUICK = "--batch-size 32 --lr 1e-3"
QUICKEST = {  # the settings of docs/speedrun.md, and steps
    "vanilla_gan": ("--batch-size 64 --lr 1e-3", 3000),
    "dcgan": (f"{NARROW} --lr 2e-3", 1000),
    "cgan": (f"{NARROW} --lr 2e-3", 1000),
    "wgan": (f"{NARROW} --lr 1e-3 --n-critic 2 --clip 0.05", 1000),
    "wgan_gp": (f"{NARROW} --lr 2e-3 --n-critic 1", 1000),
    "r3gan": (f"{NARROW} --lr 2e-3", 1000),
    "lsgan": (f"{NARROW} --lr 2e-3", 1000),
    "acgan": (f"{NARROW} --lr 2e-3", 1000),
    "fgan": (f"{NARROW} --lr 2e-3", 1000),
}


def quick_entries(name: str) -> list[Entry]:
    """All scripts on one set of data, which exists in 28 and in 32 pixels."""
    entries = []
    for script, (options, steps) in QUICKEST.items():
        size = 28 if script == "vanilla_gan" else 32
        entries.append(Entry(script, f"{name}-{size}", options, steps))
    return entries


def sibling_entries() -> list[Entry]:
    """lsgan, acgan and fgan with all their losses, beside the scripts they differ from."""
    divergences = ["gan", "js", "kl", "pearson", "reverse-kl", "squared-hellinger"]
    fgan_options = [f"--divergence {divergence}" for divergence in divergences]
    sick = ["reverse-kl", "squared-hellinger"]  # with the paper's trick
    fgan_options += [f"--divergence {divergence} --loss exact" for divergence in sick]
    options_of = {
        "dcgan": [""],
        "lsgan": ["--coding binary", "--coding pearson"],
        "cgan": [""],
        "acgan": [""],
        "fgan": fgan_options,
    }
    entries = []
    for script, variants in options_of.items():
        steps = (1000, 3000) if script in ("dcgan", "lsgan") else (1000,)
        for variant in variants:
            options = f"{NARROW} --lr 2e-3 {variant}".rstrip()
            entries += [Entry(script, "mnist-32", options, step, seeds=3) for step in steps]
    return entries


SETS = {
    "best": [
        Entry("vanilla_gan", "mnist-28", "--lr 4e-4", 11_700),
        Entry("dcgan", "mnist-32", f"{NARROW} --lr 1e-3", 10_000),
        Entry("dcgan", "mnist-32", f"{NARROW} --lr 2e-3", 10_000),
        Entry("cgan", "mnist-32", f"{NARROW} --lr 1e-3", 10_000, seeds=3),
        Entry("wgan", "mnist-32", f"{NARROW} --lr 1e-3 --n-critic 2 --clip 0.05", 6000),
        Entry("wgan", "mnist-32", "--width 32 --lr 5e-4 --n-critic 2 --clip 0.05", 4700),
        Entry("wgan_gp", "mnist-32", f"{NARROW} --lr 2e-3 --n-critic 1", 4000, seeds=3),
        Entry("r3gan", "mnist-32", f"{NARROW} --lr 1e-3", 2000, seeds=3),
    ],
    "widths": [  # about five minutes of one core of an EPYC for each
        Entry("dcgan", "cifar10-32", f"--width 32 {QUICK}", 2750),
        Entry("dcgan", "cifar10-32", f"--width 64 {QUICK}", 1000),
        Entry("dcgan", "cifar10-32", f"--width 128 {QUICK}", 250),
        Entry("wgan_gp", "cifar10-32", f"--width 32 {QUICK} --n-critic 1", 2150),
        Entry("wgan_gp", "cifar10-32", f"--width 64 {QUICK} --n-critic 1", 800),
        Entry("wgan_gp", "cifar10-32", f"--width 128 {QUICK} --n-critic 1", 150),
        Entry("r3gan", "cifar10-32", f"--width 32 {QUICK}", 1550),
        Entry("r3gan", "cifar10-32", f"--width 64 {QUICK}", 600),
        Entry("r3gan", "cifar10-32", f"--width 128 {QUICK}", 150),
    ],
    "cifar10": [  # about eleven minutes of one core of an EPYC for each
        Entry("dcgan", "cifar10-32", f"--width 32 {QUICK}", 6000),
        Entry("wgan_gp", "cifar10-32", f"--width 32 {QUICK} --n-critic 1", 4500),
        Entry("r3gan", "cifar10-32", f"--width 32 {QUICK}", 3500),
    ],
    "healthy": [  # one run, at three steps
        Entry("dcgan", "mnist-32", f"{NARROW} --lr 1e-3", step) for step in (500, 1500, 3000)
    ],
    "quick": quick_entries("mnist") + quick_entries("fashion-mnist"),
    "averages": [  # the same without the average of G's weights
        entry._replace(options=f"{entry.options} --ema 0") for entry in quick_entries("mnist")
    ],
    "siblings": sibling_entries(),
    "gpu_mnist": [  # docs/results.md at the papers' width, and README.md's others
        Entry("vanilla_gan", "mnist-28", "--amp", 23_450),
        Entry("dcgan", "mnist-32", "--batch-size 64 --lr 1e-3 --amp", 4700),
        Entry("cgan", "mnist-32", "--batch-size 64 --lr 5e-4 --amp", 4700),
        Entry("wgan", "mnist-32", "--lr 5e-4 --n-critic 2 --clip 0.05 --amp", 4700),
        Entry("wgan_gp", "mnist-32", "--lr 1e-3 --amp", 1150),
        Entry("r3gan", "mnist-32", f"{NARROW} --lr 1e-3", 2000),
        Entry("lsgan", "mnist-32", f"{QUICK} --amp", 1200),
        Entry("acgan", "mnist-32", f"{QUICK} --amp", 1200),
        Entry("fgan", "mnist-32", f"{QUICK} --amp", 1200),
    ],
}


def load_scores(name: str) -> list[dict]:
    """The lines of results/NAME.jsonl."""
    file = RESULTS / f"{name}.jsonl"
    text = file.read_text("utf-8") if file.exists() else ""
    return [json.loads(line) for line in text.splitlines()]


def save_scores(name: str, scores: list[dict]) -> None:
    """Writes results/NAME.jsonl. Whoever interrupts it finds the old file."""
    file = RESULTS / f"{name}.jsonl"
    part = file.with_suffix(".part")
    part.write_text("".join(json.dumps(score) + "\n" for score in scores), "utf-8")
    part.replace(file)


def is_current(score: dict) -> bool:
    """Whether the script still computes what it did when it was scored."""
    return score["script"] is None or score["numerics"] == numerics_of(score["script"])


def find(scores: list[dict], **wanted: object) -> list[dict]:
    """The scores with these values."""
    return [score for score in scores if wanted.items() <= score.items()]


def missing(name: str) -> list[dict]:
    """What results/NAME.jsonl lacks: the fields of an Entry and a seed each."""
    current = [score for score in load_scores(name) if is_current(score)]
    wanted = []
    for entry in SETS[name]:
        wanted += [entry.fields() | {"seed": seed} for seed in range(entry.seeds)]
    return [fields for fields in wanted if not find(current, **fields)]


def training_seconds(metrics: list[dict[str, float]]) -> float:
    """The seconds of all pieces of a run. Where it was resumed, the column begins at 0 again.

    An interruption loses the seconds after its last row, and a piece of one row may be missed.
    """
    total = before = 0.0
    for row in metrics:
        if row["seconds"] < before:
            total += before
        before = row["seconds"]
    return round(total + before, 1)


class Scorer:
    """Judges images as `evaluate.py score` does, for runs on one set of data."""

    def __init__(self, run: evaluate.Run) -> None:
        training, held_out, _ = evaluate.split_data(run)
        self.device = run.args.device
        self.training_images = evaluate.to_32(training.images)
        self.judge = evaluate.Judge(training, len(run.args.classes), self.device)
        self.held_out = evaluate.to_32(held_out.images), held_out.labels

    def score(self, images: Tensor, labels: Tensor | None) -> dict[str, float]:
        """The FIGURES of images uint8 (N, C, 32, 32)."""
        found = self.judge(images, labels)
        found["memorised"] = evaluate.memorised(images, self.training_images, self.device)
        return {name: round(found[name], 4) for name in FIGURES if name in found}

    def score_run(self, run: evaluate.Run) -> dict[str, float]:
        labels = run.labels(SAMPLES) if run.script.CONDITIONAL else None
        return self.score(evaluate.draw_32(run, SAMPLES), labels)


def run_set(name: str, data: Path, out: Path, cuda: bool) -> None:
    """Trains and scores what results/NAME.jsonl lacks."""
    all_missing = missing(name)
    if not all_missing:
        print(f"results/{name}.jsonl is complete.")
        return
    place = {"machine": describe_machine(cuda), "torch": torch.__version__}
    for known in load_scores(name):
        if known["machine"] != place["machine"]:
            sys.exit(f"results/{name}.jsonl is of {known['machine']}. Remove it to measure here.")
    scorers = {}
    for number, fields in enumerate(all_missing, 1):
        script, data_name, words, step, seed = fields.values()
        print(f"{number} of {len(all_missing)}: {script}, {data_name}, {words}, seed {seed}")
        numerics = numerics_of(script)
        label = f"{script} {data_name} {words} {seed} {numerics}" + (" cuda" if cuda else "")
        folder = out.resolve() / name / re.sub(r"[^\w.]+", "-", label)
        words += " --cuda" if cuda else " --no-cuda"
        try:
            train(script, step, words, seed, data / data_name, folder)
        except subprocess.CalledProcessError as error:
            sys.exit(f"{script}.py failed: {error.stderr.decode().strip()[-300:]}")
        run = evaluate.load_run(folder, cuda=cuda)
        if run.checkpoint["step"] != step:
            sys.exit(f"{folder} has more steps than {step}. Remove it.")

        if data_name not in scorers:
            scorers[data_name] = Scorer(run)
        scorer = scorers[data_name]
        figures = scorer.score_run(run)
        scores = [known for known in load_scores(name) if not fields.items() <= known.items()]
        if not find(scores, script=None, data=data_name):
            real = scorer.score(*scorer.held_out)
            scores.append({"script": None, "data": data_name} | real | place)
        metrics = read_metrics(folder)
        score = fields | {"seconds": training_seconds(metrics)} | figures | place
        score |= {"date": str(datetime.date.today()), "numerics": numerics}
        score["metrics"] = {x: metrics[-1][x] for x in metrics[-1] if x not in POSITION_COLUMNS}
        save_scores(name, [*scores, score])


def load_complete(name: str) -> list[dict]:
    """The lines of results/NAME.jsonl, if it has all scores of the set."""
    if missing(name):
        sys.exit(f"results/{name}.jsonl is not complete: python benchmarks/scores.py run {name}")
    return load_scores(name)


def scores_of(name: str) -> Iterator[tuple[Entry, list[dict]]]:
    """Each entry of a set with its scores, one for each seed."""
    scores = load_complete(name)
    for entry in SETS[name]:
        found = find(scores, **entry.fields())
        yield entry, [score for score in found if score["seed"] < entry.seeds]


def held_out(name: str, data: str) -> dict:
    """The figures of held-out images of a folder of data."""
    return find(load_complete(name), script=None, data=data)[0]


def cells(scores: list[dict], *columns: str) -> list[str]:
    """The mean of each figure, and its range in brackets; an empty cell where it does not exist."""
    texts = []
    for column in columns:
        digits, factor, unit = FIGURES[column]
        values = [factor * score[column] for score in scores if column in score]
        texts.append(show(values, digits) + unit if values else "")
    return texts


def best() -> Iterator[list]:
    columns = ["frechet", "rarest", "diversity", "accuracy"]
    head = ["script", "options", "seeds", "minutes", "Frechet", "rarest digit"]
    yield [*head, "diversity", "accuracy"]
    yield ["held-out images", "", "", "", *cells([held_out("best", "mnist-32")], *columns)]
    for entry, scores in scores_of("best"):
        options = f"`{entry.options} --steps {entry.step}`"
        minutes = statistics.median(score["seconds"] for score in scores) / 60
        figures = cells(scores, *columns)
        yield [f"{entry.script}.py", options, len(scores), f"{minutes:.0f}", *figures]


def samples() -> Iterator[list]:
    """A short table of the best options of each script."""
    columns = ["classes", "diversity", "frechet", "memorised", "accuracy"]
    yield ["", "classes", "diversity", "Frechet", "memorised", "accuracy"]
    yield ["held-out images", *cells([held_out("best", "mnist-32")], *columns)]

    def distance(scores: list[dict]) -> float:
        return statistics.mean(score["frechet"] for score in scores)

    best_of = {}
    for entry, scores in scores_of("best"):
        best_of[entry.script] = min(best_of.get(entry.script, scores), scores, key=distance)
    for script, scores in sorted(best_of.items(), key=lambda item: distance(item[1])):
        yield [script, *cells(scores, *columns)]


def widths() -> Iterator[list]:
    yield ["script", "options", "steps", "seconds", "Frechet", "rarest class", "diversity"]
    for entry, scores in scores_of("widths"):
        figures = cells(scores, "frechet", "rarest", "diversity")
        seconds = statistics.median(score["seconds"] for score in scores)
        options = f"`{entry.options}`"
        yield [f"{entry.script}.py", options, f"{entry.step:,}", f"{seconds:.0f}", *figures]


def cifar10() -> Iterator[list]:
    columns = ["frechet", "rarest", "diversity", "memorised"]
    yield [*["script", "options", "minutes", "Frechet", "rarest class", "diversity"], "memorised"]
    yield ["held-out images", "", "", *cells([held_out("cifar10", "cifar10-32")], *columns)]
    for entry, scores in scores_of("cifar10"):
        options = f"`{entry.options} --steps {entry.step}`"
        minutes = statistics.median(score["seconds"] for score in scores) / 60
        yield [f"{entry.script}.py", options, f"{minutes:.0f}", *cells(scores, *columns)]


def averages() -> Iterator[list]:
    """The distances of "quick" and of the same runs whose samples come from G itself."""
    yield ["script", "average of G's weights", "G itself"]
    pairs = [(entry, scores) for entry, scores in scores_of("quick") if "fashion" not in entry.data]
    quickest = {entry.script: scores for entry, scores in pairs}
    for entry, scores in scores_of("averages"):
        distances = [cells(found, "frechet")[0] for found in (quickest[entry.script], scores)]
        yield [f"{entry.script}.py", *distances]


def quick() -> Iterator[list]:
    columns = ["frechet", "rarest", "accuracy"]
    rest = ["rarest class", "accuracy"]
    yield ["script", "options", "MNIST: Frechet", *rest, "Fashion-MNIST: Frechet", *rest]
    sets = [held_out("quick", f"{name}-32") for name in ("mnist", "fashion-mnist")]
    yield ["held-out images", "", *cells([sets[0]], *columns), *cells([sets[1]], *columns)]
    found = [(entry, *cells(scores, *columns)) for entry, scores in scores_of("quick")]
    count = len(QUICKEST)
    for (entry, *digits), (_, *clothes) in zip(found[:count], found[count:], strict=True):
        yield [f"{entry.script}.py", f"`{entry.options} --steps {entry.step}`", *digits, *clothes]


def siblings() -> Iterator[list]:
    columns = ["frechet", "diversity", "rarest", "accuracy"]
    yield ["script", "options", "steps", "Frechet", "diversity", "rarest digit", "accuracy"]
    yield ["held-out images", "", "", *cells([held_out("siblings", "mnist-32")], *columns)]
    for entry, scores in scores_of("siblings"):
        options = entry.options.removeprefix(f"{NARROW} --lr 2e-3").strip()
        options = options and f"`{options}`"
        yield [f"{entry.script}.py", options, f"{entry.step:,}", *cells(scores, *columns)]


def healthy() -> Iterator[list]:
    """What a run prints, the mean over 50 steps, and how good its samples are."""
    found = [(entry.step, score) for entry, (score,) in scores_of("healthy")]
    _, first = found[0]
    yield ["steps", *(f"`{name}`" for name in first["metrics"]), "Frechet distance"]
    for step, score in found:
        metrics = [f"{value:.2f}" for value in score["metrics"].values()]
        yield [f"{step:,}", *metrics, *cells([score], "frechet")]


def gpu_mnist() -> Iterator[list]:
    columns = ["frechet", "rarest", "diversity", "accuracy"]
    head = ["script", "options", "seconds", "Frechet", "rarest digit"]
    yield [*head, "diversity", "accuracy"]
    yield ["held-out images", "", "", *cells([held_out("gpu_mnist", "mnist-32")], *columns)]
    for entry, (score,) in scores_of("gpu_mnist"):
        options = f"`{entry.options} --steps {entry.step}`"
        yield [f"{entry.script}.py", options, score["seconds"], *cells([score], *columns)]


def speedrun() -> Iterator[list]:
    """The records of benchmarks/speedrun.py."""
    head = ["record", "date", "what changed", "options", "steps", "seconds", "the one before"]
    yield [*head, "machine"]
    for script in RACES:
        for number, file in enumerate(records_of(script), 1):
            about, ends = load_record(file)
            seconds = [end["seconds"] for end in ends]
            yield [
                f"[{script} {number}](../results/speedrun/{file.name})",
                about["date"],
                about["change"],
                f"`{about['options']}`",
                ", ".join(f"{end['step']:,}" for end in ends),
                f"**{statistics.median(seconds):.0f}** ({', '.join(f'{x:.0f}' for x in seconds)})",
                f"{about['before']:,.0f}" if about["before"] else "",
                about["machine"] + (", bfloat16" if about["amp"] else ""),
            ]


def two_cores() -> Iterator[list]:
    """The median steps of the records, times what a step takes on two idle cores."""
    yield ["script", "width 64", "width 32"]
    step_seconds = {}
    for width in (64, 32):
        for row in load_rows("epyc", f"batch32-width{width}.json"):
            if row["row"] == "float32":
                step_seconds[row["script"], width] = statistics.median(row["seconds"]["script"])
    for script in ("dcgan", "cgan", "r3gan"):
        cells_of = {64: "", 32: ""}
        for file in records_of(script):
            about, ends = load_record(file)
            words = about["options"].split()
            options = dict(zip(words[::2], words[1::2], strict=True))
            if options["--batch-size"] != "32":
                raise ValueError(f"{file}: the steps were timed with batches of 32")
            width = int(options.get("--width", 64))
            seconds = step_seconds[script, width]
            steps = statistics.median(end["step"] for end in ends)
            cells_of[width] = f"{steps:,} of {seconds * 1e3:.0f} ms: {steps * seconds:.0f} s"
        yield [f"{script}.py", *cells_of.values()]


def recorded(name: str) -> Iterator[list]:
    """A table that a benchmark has written with --record NAME."""
    found = tables.load_table(name)
    yield [found["head"], *found["columns"]]
    for row in found["rows"]:
        yield [row["name"], *tables.to_cells(row["runs"], found["columns"])]


def load_rows(*path: str) -> list[dict]:
    """What benchmarks/throughput.py or kernels.py --json FILE has measured."""
    return json.loads(RESULTS.joinpath(*path).read_text("utf-8"))["rows"]


def throughput_epyc() -> Iterator[list]:
    yield ["script", "batch", "images/s", "ms a step", "step / floor", "textbook / step"]
    for row in load_rows("epyc", "throughput.json"):
        times = row["seconds"]
        seconds = statistics.median(times["script"])
        speeds = [f"{row['images'] / seconds:,.0f}", f"{seconds * 1e3:.0f}"]
        yield [f"{row['script']}.py", row["batch"], *speeds, *show_ratios(times)]


def throughput_h200() -> Iterator[list]:
    yield [
        *["script", "pixels", "width", "batch", "ms a step", "`--amp`", "`--no-graph`"],
        *["step / floor", "textbook / step"],
    ]
    for size, width, name in [(32, 64, "32"), (32, 128, "32-128"), (64, 64, "64")]:
        measured = {}
        for row in load_rows("h200", f"throughput-{name}.json"):
            measured.setdefault((row["script"], row["batch"]), {})[row["row"]] = row["seconds"]
        for (script, batch), rows in measured.items():
            steps = {row: statistics.median(times["script"]) for row, times in rows.items()}
            kinds = ("float32", "bfloat16", "float32, no graph")
            milliseconds = [f"{steps[kind] * 1e3:.2f}" if kind in steps else "" for kind in kinds]
            ratios = show_ratios(rows["float32"])
            width_cell = "" if script == "vanilla_gan" else width
            yield [f"{script}.py", size, width_cell, batch, *milliseconds, *ratios]


def kernels(folder: str) -> Iterator[list]:
    yield OPERATOR_HEAD
    rows = load_rows(folder, "kernels.json")
    yield from [operator_cells(row) for row in rows if "operator" in row]


def share(folder: str) -> Iterator[list]:
    yield SHARE_HEAD
    rows = load_rows(folder, "kernels.json")
    yield from [share_cells(row) for row in rows if "script" in row]


ALL_TABLES = (
    *[best, samples, cifar10, widths, quick, averages, siblings, healthy],
    *[gpu_mnist, speedrun],
    *[two_cores, throughput_epyc, throughput_h200],
)
TABLES = {table.__name__: table for table in ALL_TABLES}
for folder in ("epyc", "h100"):
    TABLES[f"kernels_{folder}"] = partial(kernels, folder)
    TABLES[f"share_{folder}"] = partial(share, folder)
for file in tables.FOLDER.glob("*.json"):
    if file.stem in TABLES:
        raise ValueError(f"{file} has the name of another table")
    TABLES[file.stem] = partial(recorded, file.stem)


def to_markdown(rows: Iterator[list]) -> str:
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "".join("| " + " | ".join(map(str, line)) + " |\n" for line in lines)


def with_tables(text: str) -> str:
    """The text of a page with new tables."""

    def with_table(found: re.Match) -> str:
        line, name = found[1], found[2]
        if name not in TABLES:
            sys.exit(f"There is no table {name}, nor results/tables/{name}.json.")
        return line + to_markdown(TABLES[name]())

    return re.sub(r"(<!-- benchmarks/scores\.py (\S+) -->\n)(\|.*\n)*", with_table, text)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("scores.py", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("run", help="train and score what a file lacks")
    add = command.add_argument
    add("name", choices=SETS, help="of the file in results/")
    add("--data", type=Path, default=Path("data"), help="the folders of data (%(default)s)")
    add("--out", type=Path, default=Path("runs/scores"), help="for the runs (%(default)s)")
    add("--cuda", action=BooleanOptionalAction, default=False, help="use a GPU")
    commands.add_parser("tables", help="put the tables into their pages")
    options = parser.parse_args(argv)
    if options.command == "run":
        run_set(options.name, options.data.resolve(), options.out, options.cuda)
        return
    new = {page: with_tables(page.read_text("utf-8")) for page in PAGES}  # or none is written
    for page, text in new.items():
        if text != page.read_text("utf-8"):
            page.write_text(text, "utf-8")
            print(page)


if __name__ == "__main__":
    main()
