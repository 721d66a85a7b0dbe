"""Training, resuming and generating through the command line, on the CPU; resumed runs are compared bit for bit."""

import csv
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from argparse import Namespace
from collections.abc import Callable
from functools import cache, partial
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, SCRIPTS, call, load, make_data
from PIL import Image, ImageSequence
from torch import Tensor

# 26 images in batches of 4 are 6 batches an epoch and 2 images left over; with two batches a step 3 steps an epoch.
SMALL = ["--batch-size", 4, "--latent-dim", 4, "--log-every", 4]
OWN = {"vanilla_gan.py": ["--d-steps", 2], "wgan.py": ["--n-critic", 2], "wgan_gp.py": ["--n-critic", 2]}
EPOCH = {script: 3 if script in OWN else 6 for script in SCRIPTS}  # in steps
SPLIT = {script: 5 if script in OWN else 7 for script in SCRIPTS}  # in the middle of an epoch and of a row
EACH_SCRIPT = pytest.mark.parametrize("script", SCRIPTS)
COLUMNS = ["D(x)", "D(G(z))", "d_loss", "g_loss"]  # of dcgan
WARM_UP = 20  # of the average: after so many steps its decay is a half
Runs, Patch = Callable[[str], Path], pytest.MonkeyPatch


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "tiny", 26, channels=1)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """For a script its run of three epochs that was never interrupted. To be read, not written."""
    return cache(lambda script: train(script, data, run=tmp_path_factory.mktemp("whole") / script[:-3]))


def options(script: str, data: Path) -> list[object]:
    return ["--data", data, *SMALL, *OWN.get(script, [])]


def train(script: str, data: Path, *argv: object, run: str | Path = "run") -> Path:
    """A new run on tiny images, three epochs unless argv says otherwise."""
    assert call(script, *options(script, data), "--epochs", 3, "--out", run, *argv) == 0
    return Path(run)


def read(run: Path) -> dict:
    return torch.load(run / "checkpoint.pt", weights_only=True)


def rows(run: Path) -> list[dict[str, str]]:
    """metrics.csv without the clock."""
    lines = (run / "metrics.csv").read_text().splitlines() if (run / "metrics.csv").exists() else []
    return [{name: row[name] for name in row if name != "seconds"} for row in csv.DictReader(lines)]


same = partial(torch.testing.assert_close, rtol=0, atol=0)  # of nested dicts and lists too


def assert_same_run(run: Path, expected: Path) -> None:
    """The same weights, optimizers, rows and pictures; only clocks, --epochs, --steps and folders may differ."""
    differ = ("script", "args", "metrics", "seconds")
    same(*({name: value for name, value in read(x).items() if name not in differ} for x in (run, expected)))
    assert rows(run) == rows(expected)
    files, others = ({path.relative_to(x) for path in x.rglob("*.*")} for x in (run, expected))
    assert files - {Path("checkpoint.part")} == others  # what a kill -9 may leave
    for path in others:
        assert path.suffix not in (".png", ".gif") or (run / path).read_bytes() == (expected / path).read_bytes()


def watch(script: str, monkeypatch: Patch, seen: Callable[..., object]) -> None:
    """Has seen(metrics, networks, optimizers, args, real, labels) called after each step; it may give other metrics."""
    original = load(script).train_step
    monkeypatch.setattr(load(script), "train_step", lambda *x: seen(metrics := original(*x), *x) or metrics)


def test_a_run_leaves_a_checkpoint_its_arguments_rows_pictures_and_a_film(whole: Runs) -> None:
    run = whole("dcgan.py")
    pictures = [f"samples/epoch-000{epoch}.png" for epoch in (1, 2, 3)]
    files = {path.relative_to(run).as_posix() for path in run.rglob("*.*")}
    assert files == {"checkpoint.pt", "config.json", "metrics.csv", "training.gif", *pictures}
    args = json.loads((run / "config.json").read_text())
    assert args == read(run)["args"]
    assert (args["epochs"], args["channels"], args["image_size"], args["classes"]) == (3, 1, 8, ["cats", "dogs"])
    assert (run / "metrics.csv").read_text().splitlines()[0] == ",".join(["step", "epoch", *COLUMNS, "seconds"])
    assert [(row["step"], row["epoch"]) for row in rows(run)] == [("4", "1"), ("8", "2"), ("12", "2"), ("16", "3")]
    with Image.open(run / "training.gif") as film:
        frames = [np.asarray(frame.convert("L"), np.int16) for frame in ImageSequence.Iterator(film)]
    for frame, picture in zip(frames, pictures, strict=True):  # one frame an epoch
        assert np.abs(frame - np.asarray(Image.open(run / picture), np.int16)).max() <= 2
    assert (frames[0] != frames[2]).any()


def test_rows_are_means_over_the_interval(data: Path, monkeypatch: Patch) -> None:
    seen: list[list[float]] = []
    watch("dcgan.py", monkeypatch, lambda metrics, *_: seen.append([metrics[name].item() for name in COLUMNS]))
    run = train("dcgan.py", data, "--lr", 0.01)
    found = [[float(row[name]) for name in COLUMNS] for row in rows(run)]
    np.testing.assert_allclose(found, np.reshape(seen[:16], (4, 4, 4)).mean(axis=1), rtol=1e-4, atol=1e-6)
    assert not np.allclose(found, seen[3::4], rtol=1e-3, atol=1e-5)  # not the last step's values


@pytest.mark.parametrize(("script", "count"), [("dcgan.py", 8), ("cgan.py", 2)])
def test_samples_are_the_averaged_generators_in_eval_mode(script: str, count: int, whole: Runs) -> None:
    """Eight images a row; cgan has a row for each class."""
    state = read(whole(script))
    generator = load(script).Generator(4, 1, *([2] if script == "cgan.py" else []), 8).eval()
    generator.load_state_dict(state["generator_ema"])
    labels = [torch.arange(2).repeat_interleave(8)] if script == "cgan.py" else []
    with torch.no_grad():
        images = generator(state["noise"][0], *labels).double()
    expected = images.reshape(count, 8, 8, 8).permute(0, 2, 1, 3).reshape(count * 8, 64)  # -1 is black, 1 is white
    picture = np.asarray(Image.open(whole(script) / "samples" / "epoch-0003.png"), np.int16)
    assert np.abs(picture - (expected.numpy() + 1) * 127.5).max() <= 1.01


@pytest.mark.parametrize("script", ["dcgan.py", "vanilla_gan.py", "wgan.py"])
def test_each_epoch_takes_its_batches_from_a_new_permutation(script: str, monkeypatch: Patch) -> None:
    """Images of one grey each, 9 i, tell by their first pixel which they are; so do their labels."""
    folder, seen = make_data(Path("numbers"), 26, channels=1, classes=[str(i) for i in range(26)]), []
    np.save(folder / "images.npy", np.arange(0, 26 * 9, 9, dtype=np.uint8).repeat(64).reshape(26, 1, 8, 8))

    def look(_: dict, __: object, ___: list, args: object, real: Tensor, labels: Tensor) -> None:
        numbers = ((real + 1) * 127.5 / 9).round().long()
        assert real.shape == (4 * OWN.get(script, ["", 1])[1], 1, 8, 8)
        assert numbers.flatten(1).unique(dim=1).flatten().tolist() == labels.tolist()
        seen.append(labels.tolist())

    watch(script, monkeypatch, look)
    train(script, folder, "--epochs", 4)
    epochs = np.reshape(seen, (4, 24)).tolist()
    assert all(len(set(epoch)) == 24 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert len({frozenset(epoch) for epoch in epochs}) > 1  # not the same two left out every time
    seen.clear()
    train(script, folder, "--epochs", 1, "--seed", 1, run="other")
    assert np.ravel(seen).tolist() != epochs[0]


def test_images_that_are_fewer_than_a_step_takes_come_several_times(monkeypatch: Patch) -> None:
    folder, seen = make_data(Path("few"), 3, classes=["0", "1", "2"]), []
    watch("wgan_gp.py", monkeypatch, lambda *x: seen.append(torch.bincount(x[-1]).tolist()))
    train("wgan_gp.py", folder)  # 8 a step
    assert [sorted(counts) for counts in seen] == [[2, 3, 3]] * 3


@EACH_SCRIPT
def test_run_split_by_steps_is_the_unsplit_run(script: str, data: Path, whole: Runs) -> None:
    run = train(script, data, "--steps", SPLIT[script])
    assert read(run)["step"] == SPLIT[script]
    assert SPLIT[script] % 4 and SPLIT[script] % EPOCH[script]
    assert call(script, "--resume", run, "--steps", SPLIT[script] + 1) == 0
    assert call(script, "--resume", run, "--steps", 99) == 0
    assert_same_run(run, whole(script))


def start(script: str | Path, *argv: object, out: str = "out.txt", before: str = "") -> BaseProcess:
    """The script as a process of its own, on one thread. What it prints goes to the file out, as soon as it lives."""
    code = f"import runpy, sys, torch; torch.set_num_threads(1); sys.stdout = sys.stderr = open({out!r}, 'w')\n"
    code += f"sys.argv = {[str(arg) for arg in [ROOT / script, *argv]]}\n{before}\n"
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["torch", "torch._dynamo", "numpy", "PIL.ImageDraw", "tqdm"])  # slow to import
    process = server.Process(target=exec, args=(code, {}), daemon=True)
    process.start()
    return process


@EACH_SCRIPT
def test_process_killed_at_random_moments_and_stopped_by_a_signal_is_resumed_exactly(script: str, data: Path) -> None:
    """KILLS=40 pytest -k random_moments kills each script 40 times: at the start, in steps, while writing files."""
    rng, run, kills = random.Random(script), Path("run"), int(os.environ.get("KILLS", 2))
    argv = [*options(script, data), "--out", run, "--resume"]
    for kill in range(kills + 1):
        Path("out.txt").unlink(missing_ok=True)
        process, number = start(script, *argv, "--epochs", 100_000), signal.SIGKILL
        while not Path("out.txt").exists():
            time.sleep(0.01)
        process.join(rng.uniform(0, 0.5))
        if kill == kills:
            number, before = signal.SIGTERM if script == "cgan.py" else signal.SIGINT, len(rows(run))
            while len(rows(run)) <= before and process.is_alive():  # in the middle of training
                time.sleep(0.01)
        os.kill(process.pid, number)
        process.join(60)
        out = Path("out.txt").read_text()
        assert process.exitcode == {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}[number], out
    step = read(run)["step"]
    assert f"step {step} of" in out and f"python {script} --resume {run}\n" in out and "Traceback" not in out
    assert len(rows(run)) == step // 4  # saved where it stopped, not where the last epoch ended
    epochs = step // EPOCH[script] + 1
    assert call(script, *argv, "--epochs", epochs) == 0
    assert_same_run(run, train(script, data, "--epochs", epochs, run="expected"))


class Killed(BaseException):
    """What no code catches: the process is gone."""


@pytest.mark.parametrize("moment", ["half written", "not yet renamed", "just renamed"])
def test_run_killed_while_the_checkpoint_is_written_is_resumed_exactly(
    moment: str, data: Path, whole: Runs, monkeypatch: Patch
) -> None:
    saves, replace = itertools.count(1), Path.replace

    def die(part: Path, target: Path) -> None:
        if next(saves) != 2:  # that of the second epoch
            return replace(part, target)
        if moment == "half written":
            os.truncate(part, part.stat().st_size // 2)
        elif moment == "just renamed":
            replace(part, target)
        raise Killed

    monkeypatch.setattr(Path, "replace", die)
    with pytest.raises(Killed):
        train("dcgan.py", data)
    monkeypatch.setattr(Path, "replace", replace)
    assert read(Path("run"))["step"] == (12 if moment == "just renamed" else 6)
    assert call("dcgan.py", "--resume", "run") == 0
    assert_same_run(Path("run"), whole("dcgan.py"))


@pytest.mark.parametrize("script", ["dcgan.py", "wgan_gp.py"])
def test_split_run_with_amp_is_the_unsplit_one_and_near_that_without(script: str, data: Path, whole: Runs) -> None:
    low = train(script, data, "--amp", run="low")
    split = train(script, data, "--amp", "--steps", SPLIT[script])
    assert call(script, "--resume", split, "--steps", 99) == 0
    assert_same_run(split, low)
    assert rows(low) != rows(whole(script))
    a, b = ([[float(value) for value in row.values()] for row in rows(run)] for run in (low, whole(script)))
    np.testing.assert_allclose(a, b, rtol=0.05, atol=0.05)
    assert {value.dtype for value in read(low)["generator"].values()} == {torch.float32, torch.int64}


def test_what_is_typed_on_resume_wins_and_takes_effect_the_rest_is_the_runs(data: Path, monkeypatch: Patch) -> None:
    rates = []
    watch("dcgan.py", monkeypatch, lambda _, __, optimizers, *rest: rates.append(optimizers[0].param_groups[0]["lr"]))
    run = train("dcgan.py", data, "--steps", 2, "--lr", 0.001)
    assert call("dcgan.py", "--resume", run, "--steps", 4) == 0
    assert call("dcgan.py", "--resume", run, "--steps", 6, "--lr", 0.5, "--log-every", 2) == 0
    assert rates == [0.001] * 4 + [0.5] * 2
    args = read(run)["args"]
    assert (args["lr"], args["steps"], args["log_every"], args["batch_size"], args["epochs"]) == (0.5, 6, 2, 4, 3)
    assert [row["step"] for row in rows(run)] == ["4", "6"]


def test_resume_without_a_value_takes_the_newest_run_of_this_script(data: Path, whole: Runs) -> None:
    for name, age in (("dcgan-1", 10), ("dcgan-2", 20), ("dcgan-10", 30), ("cgan-1", 0)):
        run = train(f"{name.partition('-')[0]}.py", data, "--steps", 7, run=f"runs/{name}")
        os.utime(run / "checkpoint.pt", (time.time() - age,) * 2)
    assert call("dcgan.py", "--resume", "--steps", 99) == 0
    assert_same_run(Path("runs/dcgan-1"), whole("dcgan.py"))
    assert read(Path("runs/dcgan-10"))["step"] == 7


def test_resume_into_another_folder_leaves_the_run_as_it_was(data: Path, whole: Runs) -> None:
    run = train("dcgan.py", data, "--steps", 7)
    before = {path: path.read_bytes() for path in run.rglob("*.*")}
    assert call("dcgan.py", "--resume", run, "--out", "new", "--steps", 99) == 0
    assert {path: path.read_bytes() for path in run.rglob("*.*")} == before
    same(read(Path("new"))["generator"], read(whole("dcgan.py"))["generator"])
    assert rows(Path("new")) == rows(whole("dcgan.py"))


def test_finished_run_goes_on_with_more_epochs_and_its_clock(data: Path, whole: Runs) -> None:
    run = train("dcgan.py", data, "--epochs", 2)
    torch.save({**read(run), "seconds": 1000.0}, run / "checkpoint.pt")
    before = (run / "checkpoint.pt").read_bytes()
    assert call("dcgan.py", "--resume", run) == 0
    assert (run / "checkpoint.pt").read_bytes() == before
    assert call("dcgan.py", "--resume", run, "--epochs", 3) == 0
    assert float((run / "metrics.csv").read_text().split(",")[-1]) >= 1000
    assert_same_run(run, whole("dcgan.py"))


@pytest.mark.parametrize("ema", [0, 0.3, 0.999])
def test_average_follows_its_formula_and_nothing_else(ema: float, data: Path, whole: Runs, monkeypatch: Patch) -> None:
    seen, means = [], []  # train updates the average after the step: here it is still that of the step before

    def look(_: dict, networks: torch.nn.ModuleDict, *__: object) -> None:
        for states, name in ((seen, "generator"), (means, "generator_ema")):
            states.append({k: v.double() for k, v in networks[name].state_dict().items() if v.is_floating_point()})

    watch("dcgan.py", monkeypatch, look)
    state, reference = read(train("dcgan.py", data, "--ema", ema)), read(whole("dcgan.py"))
    for key in ("generator", "discriminator", "optimizers", "sums"):
        same(state[key], reference[key])
    for name, mean in means[0].items():
        for step, weights in enumerate(seen):
            decay = min(ema, (1 + step) / (WARM_UP + step))
            mean = decay * mean + (1 - decay) * weights[name]
        torch.testing.assert_close(state["generator_ema"][name].double(), mean, rtol=1e-4, atol=1e-6)
        assert torch.equal(state["generator_ema"][name], state["generator"][name]) == (ema == 0)


@pytest.mark.parametrize("what", ["loss", "weight"])
def test_run_that_breaks_ends_in_one_line_and_goes_on_exactly_from_its_last_good_checkpoint(
    what: str, data: Path, whole: Runs, refused: Callable[..., str], monkeypatch: Patch
) -> None:
    """Breaks in the second epoch, at the loss (seen by the next row) or silently in G's weights."""
    steps = itertools.count(1)

    def broken(metrics: dict, networks: torch.nn.ModuleDict, *_: object) -> dict | None:
        if next(steps) != 7:
            return {name: value.nan_to_num(0.0) for name, value in metrics.items()}
        if what == "loss":
            return {name: value * float("nan") for name, value in metrics.items()}
        torch.nn.init.constant_(next(networks["generator"].parameters()), float("inf"))
        return None

    with monkeypatch.context() as patch:
        watch("dcgan.py", patch, broken)
        line = refused("dcgan.py", *options("dcgan.py", data), "--epochs", 3, "--out", "run", code=1)
    assert "not finite at step 8" in line and "run/checkpoint.pt" in line
    assert read(Path("run"))["step"] == 6
    assert call("dcgan.py", "--resume", "run") == 0
    assert_same_run(Path("run"), whole("dcgan.py"))


@pytest.mark.parametrize(("script", "size"), [("dcgan.py", 60_000), ("vanilla_gan.py", 10_000_000)])
def test_full_disk_ends_in_one_line_and_leaves_the_old_checkpoint_whole(
    script: str, size: int, data: Path, whole: Runs, refused: Callable[..., str], monkeypatch: Patch
) -> None:
    """From the second epoch on no file may grow beyond half a checkpoint."""
    resource = pytest.importorskip("resource")
    steps, (_, hard) = itertools.count(), resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(*_: object) -> None:
        if next(steps) == EPOCH[script]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    with monkeypatch.context() as patch:
        watch(script, patch, fill)
        try:
            refused(script, *options(script, data), "--epochs", 3, "--out", "run", code=1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert read(Path("run"))["step"] == EPOCH[script]
    assert call(script, "--resume", "run") == 0
    assert_same_run(Path("run"), whole(script))


def generated(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run / "generated")): path.read_bytes() for path in sorted(run.rglob("0*.png"))}


def test_generated_images_are_the_averaged_generators_whatever_their_number(whole: Runs) -> None:
    run, seen = Path(shutil.copytree(whole("dcgan.py"), "run")), []
    for count in (5, 5, 2, 102):
        assert call("dcgan.py", "--resume", run, "--generate", count) == 0
        seen.append(generated(run))
        assert len(seen[-1]) == count  # nothing is left of a call before
    assert seen[0] == seen[1]
    assert seen[2].items() <= seen[0].items() <= seen[3].items()
    assert len(set(seen[3].values())) > 90
    torch.manual_seed(0)
    networks, _ = load("dcgan.py").build(Namespace(**read(run)["args"]))  # the noise is what the seed gives after it
    networks["generator"].load_state_dict(read(run)["generator_ema"])
    images = [networks["generator"].eval()(torch.randn(1, 4))[0, 0].detach().double().numpy() for _ in range(2)]
    for i, image in enumerate(images):
        picture = np.asarray(Image.open(run / "generated" / f"{i:06d}.png"), np.int16)
        assert np.abs(picture - (image + 1) * 127.5).max() <= 1.01


def test_cgan_generates_a_folder_for_each_class_in_turn_or_the_one_asked_for(whole: Runs) -> None:
    run = Path(shutil.copytree(whole("cgan.py"), "run"))
    assert call("cgan.py", "--resume", run, "--generate", 5) == 0
    in_turn = generated(run)
    assert list(in_turn) == [f"cats/00000{i}.png" for i in (0, 2, 4)] + [f"dogs/00000{i}.png" for i in (1, 3)]
    assert call("cgan.py", "--resume", run, "--generate", 4, "--label", "dogs") == 0
    assert list(generated(run)) == [f"dogs/00000{i}.png" for i in range(4)]
    assert generated(run)["dogs/000001.png"] == in_turn["dogs/000001.png"]  # image i has the noise i, in any class


def test_pictures_are_tiled_in_a_fixed_range_of_grey_or_colour() -> None:
    images = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0, 7.0])[:, None, None, None]
    picture = np.asarray(load("dcgan.py").to_picture(images, 3), np.int16)
    assert np.abs(picture - [[0, 64, 128], [191, 255, 255]]).max() <= 1
    assert load("dcgan.py").to_picture(images.expand(6, 3, 2, 2), 2).mode == "RGB"


def test_glyphs_are_the_same_at_every_call_and_their_labels_tell_them_apart() -> None:
    (images, labels), again = load("dcgan.py").glyphs(500), load("dcgan.py").glyphs(500)
    assert images.shape == (500, 1, 32, 32) and images.dtype == torch.uint8 and labels.dtype == torch.int64
    assert torch.equal(images, again[0]) and torch.equal(labels, again[1])
    assert len(images.flatten(1).unique(dim=0)) == 500
    means = torch.stack([images[:400][labels[:400] == digit].double().mean(dim=0) for digit in range(10)])
    nearest = (images[400:, None].double() - means).square().sum(dim=(2, 3, 4)).argmin(dim=1)
    assert (nearest == labels[400:]).double().mean() > 0.3  # by chance: 0.1
