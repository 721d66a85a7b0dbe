"""Training, resuming and generating, on the CPU. Resumed runs are compared bit for bit."""

import csv
import itertools
import json
import os
import random
import shlex
import shutil
import signal
import time
from argparse import Namespace
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SCRIPTS, SEVERAL, call, load, make_data, run_saving_always, start
from PIL import Image
from torch import Tensor, nn

# 26 images in batches of 4 are 6 batches an epoch, and 2 images are left over
SMALL = ["--batch-size", 4, "--latent-dim", 4, "--log-every", 4, "--sample-every", 5, "--no-cuda"]
STEPS = {script: 3 if script in SEVERAL else 6 for script in SCRIPTS}  # of an epoch
SPLIT = {script: 5 if script in SEVERAL else 7 for script in SCRIPTS}  # amid epoch and row


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "tiny", 26, channels=1, size=16)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """whole(script) is its run of three epochs that was never interrupted. Tests only read it."""
    home = tmp_path_factory.mktemp("whole")

    def run(script: str) -> Path:
        script, *amp = script.split()
        return train(script, data, *amp, run=home / f"{script}{amp}")

    return cache(run)


def options(script: str, data: Path) -> list[object]:
    argv = ["--data", data, *SMALL]
    if script != "vanilla_gan.py":
        argv += ["--width", 4]
    if script in SEVERAL:
        argv += [SEVERAL[script], 2]
    return argv


def train(script: str, data: Path, *args: object, run: str | Path = "run") -> Path:
    """A new run on tiny images, of three epochs unless args say otherwise."""
    call(script, *options(script, data), "--epochs", 3, "--out", run, *args)
    return Path(run)


def resume(script: str, *args: object, run: str | Path = "run") -> None:
    call(script, "--resume", "--out", run, "--no-cuda", *args)


def read(run: Path | str) -> dict:
    return torch.load(Path(run, "checkpoint.pt"), weights_only=True)


def rows(table: str | Path) -> list[dict[str, str]]:
    """Of the text of a metrics.csv, or of that of a run, without the clock."""
    if isinstance(table, Path):
        table = (table / "metrics.csv").read_text()
    found = list(csv.DictReader(table.splitlines()))
    for row in found:
        del row["seconds"]
    return found


def numbers(table: list[dict[str, str]]) -> list[list[float]]:
    return [[float(value) for value in row.values()] for row in table]


def same(found: object, expected: object) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def assert_same_run(run: Path | str, expected: Path) -> None:
    """The same weights, optimizers, rows and pictures; clocks, limits and folders may differ."""
    states = []
    for checkpoint in (read(run), read(expected)):
        checkpoint["metrics"] = numbers(rows(checkpoint["metrics"]))
        del checkpoint["args"], checkpoint["script"]
        states.append(checkpoint)
    same(*states)
    assert rows(Path(run)) == rows(expected)
    pictures = {path.name: path.read_bytes() for path in (expected / "samples").iterdir()}
    found = {path.name: path.read_bytes() for path in Path(run, "samples").iterdir()}
    assert pictures.items() <= found.items()  # a run in parts has a picture at the end of each


def watch(script: str, monkeypatch: pytest.MonkeyPatch, seen: Callable[..., None]) -> None:
    """Has seen(networks, optimizers, args, real, labels, metrics) called after each step."""
    train_step = load(script).train_step

    def watched(*inputs: object) -> dict[str, Tensor]:
        metrics = train_step(*inputs)
        seen(*inputs, metrics)
        return metrics

    monkeypatch.setattr(load(script), "train_step", watched)


def test_a_run_leaves_a_checkpoint_its_options_rows_and_pictures(whole) -> None:
    run = whole("dcgan.py")
    pictures = [f"samples/step-0000{step}.png" for step in ("05", "10", "15", "18")]
    files = {path.relative_to(run).as_posix() for path in run.rglob("*.*")}
    assert files == {"checkpoint.pt", "config.json", "metrics.csv", *pictures}
    args = read(run)["args"]
    assert json.loads((run / "config.json").read_text()) == args
    assert (args["epochs"], args["channels"], args["image_size"]) == (3, 1, 16)
    assert args["classes"] == ["cats", "dogs"]
    header = (run / "metrics.csv").read_text().splitlines()[0]
    assert header == "step,epoch,D(x),D(G(z)),d_loss,g_loss,seconds"
    found = [(row["step"], row["epoch"]) for row in rows(run)]
    assert found == [("4", "1"), ("8", "2"), ("12", "2"), ("16", "3"), ("18", "3")]
    assert len({(run / picture).read_bytes() for picture in pictures}) == 4


def test_rows_are_means_since_the_last_one(data: Path, monkeypatch) -> None:
    seen = []
    watch("dcgan.py", monkeypatch, lambda *x: seen.append([v.item() for v in x[-1].values()]))
    run = train("dcgan.py", data, "--lr", 0.01)
    found = [row[2:] for row in numbers(rows(run))]
    means = [np.mean(part, axis=0) for part in (seen[:4], seen[4:8], seen[8:12], seen[12:16])]
    np.testing.assert_allclose(found, [*means, np.mean(seen[16:], axis=0)], rtol=1e-4)
    assert not np.allclose(found[:4], seen[3:16:4], rtol=1e-3)  # not the last step's values


def draw(script: str, run: Path, z: Tensor, labels: Tensor) -> np.ndarray:
    """The pixels (N, S, S) of the run's averaged generator, in eval mode; -1 is black, 1 white."""
    state = read(run)
    args = Namespace(**state["args"])
    networks, _ = load(script).build(args)
    networks["generator"].load_state_dict(state["generator_ema"])
    with torch.no_grad():
        images = load(script).sample(networks["generator"].eval(), args, z, labels)
    return (images[:, 0].numpy() + 1) * 127.5


@pytest.mark.parametrize(("script", "count"), [("dcgan.py", 8), ("cgan.py", 2)])
def test_samples_are_the_averaged_generators(script: str, count: int, whole) -> None:
    """8 rows of 8, or one for each class."""
    z = torch.randn(count * 8, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(count).repeat_interleave(8)
    images = draw(script, whole(script), z, labels)
    tiles = images.reshape(count, 8, 16, 16).transpose(0, 2, 1, 3).reshape(count * 16, 128)
    picture = np.asarray(Image.open(whole(script) / "samples" / "step-000018.png"), np.int16)
    assert np.abs(picture - tiles).max() <= 1


@pytest.mark.parametrize("script", ["dcgan.py", "vanilla_gan.py"])
def test_each_epoch_takes_its_batches_from_a_new_permutation(script: str, monkeypatch) -> None:
    """Images of one grey each tell by their pixels which they are, and so do their labels."""
    folder = make_data(Path("numbers"), 26, classes=[str(i) for i in range(26)])
    greys = np.arange(0, 26 * 9, 9, dtype=np.uint8)
    np.save(folder / "images.npy", greys.repeat(64).reshape(26, 1, 8, 8))
    seen = []

    def look(*inputs: object) -> None:
        real, labels = inputs[3:5]
        which = ((real + 1) * 127.5 / 9).round().long()
        assert real.shape == (8 if script in SEVERAL else 4, 1, 8, 8)
        assert which.flatten(1).unique(dim=1).flatten().tolist() == labels.tolist()
        seen.extend(labels.tolist())

    watch(script, monkeypatch, look)
    train(script, folder, "--epochs", 4)
    epochs = [seen[i : i + 24] for i in (0, 24, 48, 72)]
    assert [len(set(epoch)) for epoch in epochs] == [24] * 4
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert len({frozenset(epoch) for epoch in epochs}) > 1  # not the same two are left out
    train(script, folder, "--epochs", 1, "--seed", 1, run="other")
    assert seen[96:] != epochs[0]


@pytest.mark.parametrize("script", [*SCRIPTS, "dcgan.py --amp", "wgan_gp.py --amp"])
def test_a_run_split_by_steps_is_the_unsplit_run(script: str, data: Path, whole) -> None:
    expected = whole(script)
    script, *amp = script.split()
    assert SPLIT[script] % 4 != 0 != SPLIT[script] % STEPS[script]
    run = train(script, data, "--steps", SPLIT[script], *amp)
    assert [row["step"] for row in rows(run)] == ["4", str(SPLIT[script])]  # one of its own
    run = run.rename("moved")
    resume(script, "--steps", SPLIT[script] + 1, run=run)
    resume(script, "--epochs", 3, run=run)
    assert_same_run(run, expected)
    if amp:  # near the run without, and with weights as there
        np.testing.assert_allclose(numbers(rows(run)), numbers(rows(whole(script))), 0.05, 0.05)
        assert {x.dtype for x in read(run)["generator"].values()} == {torch.float32, torch.int64}


def wait_for_rows(count: int, run: Path, is_alive: Callable[[], bool]) -> None:
    while not (run / "metrics.csv").exists() or len(rows(run)) < count:
        assert is_alive(), Path("out.txt").read_text()
        time.sleep(0.01)


@pytest.mark.parametrize("script", SCRIPTS if "KILLS" in os.environ else SCRIPTS[::3])
def test_a_process_killed_at_random_moments_is_resumed_exactly(script: str, data: Path) -> None:
    """KILLS=40 pytest -k random_moments kills each script 40 times, also while it writes files."""
    run = Path("run")
    argv = [script, *options(script, data), "--out", run, "--resume", "--epochs", 100_000]
    moments = random.Random(script)
    for _ in range(int(os.environ.get("KILLS", 1))):
        Path("out.txt").unlink(missing_ok=True)
        process = start(run_saving_always, *argv)
        while not Path("out.txt").exists():
            time.sleep(0.01)
        process.join(moments.uniform(0.1, 1.5))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, Path("out.txt").read_text()
    before = len(rows(run)) if (run / "metrics.csv").exists() else 0
    ctrl_c = script not in SEVERAL
    process = start(call if ctrl_c else run_saving_always, *argv)
    wait_for_rows(before + 2, run, process.is_alive)
    os.kill(process.pid, signal.SIGINT if ctrl_c else signal.SIGTERM)
    process.join(60)
    out = Path("out.txt").read_text()
    assert process.exitcode == (130 if ctrl_c else -signal.SIGTERM), out
    assert not ctrl_c or "Traceback" not in out
    last = read(run)["step"] + 3
    resume(script, "--steps", last)
    expected = train(script, data, "--epochs", 100_000, "--steps", last, run="expected")
    assert_same_run(run, expected)


def test_a_checkpoint_is_written_once_a_minute(data: Path, monkeypatch) -> None:
    """By a clock on which a step takes 25 seconds."""
    clock = [1000.0]
    saved = []

    def tick(*_: object) -> None:
        clock[0] += 25

    watch("dcgan.py", monkeypatch, tick)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(load("dcgan.py"), "save_checkpoint", lambda *x: saved.append(x[-1]["step"]))
    train("dcgan.py", data)
    assert load("dcgan.py").SAVE_EVERY == 60
    assert saved == [1, 4, 7, 10, 13, 16, 18]


def test_what_is_typed_wins_over_the_runs(data: Path, monkeypatch) -> None:
    rates = []
    watch("dcgan.py", monkeypatch, lambda *x: rates.append(x[1][0].param_groups[0]["lr"]))
    run = train("dcgan.py", data, "--steps", 2, "--lr", 0.001)
    resume("dcgan.py", "--steps", 4)
    resume("dcgan.py", "--steps", 6, "--lr", 0.5, "--log-every", 2)
    assert rates == [0.001] * 4 + [0.5] * 2
    assert [row["step"] for row in rows(run)] == ["4", "6"]
    state = read(run)
    assert (state["args"]["lr"], state["args"]["batch_size"]) == (0.5, 4)
    state["args"]["cuda"] = True
    torch.save(state, run / "checkpoint.pt")
    args, _ = load("dcgan.py").parse_args(["--resume", "--out", "run"])
    assert args.cuda == torch.cuda.is_available()  # the machine may be another one


def test_a_typed_end_replaces_both_old_ones_and_steps_alone_have_no_epochs(data: Path) -> None:
    train("dcgan.py", data, "--epochs", 2, "--steps", 7)
    assert read("run")["step"] == 7
    for end, step in ((["--epochs", 3], 18), (["--steps", 20], 20), ([], 20)):
        resume("dcgan.py", *end)
        assert read("run")["step"] == step
    few = make_data(Path("few"), 4)
    call("dcgan.py", *options("dcgan.py", few), "--steps", 30, "--out", "long")
    assert read("long")["step"] == 30  # although 25 epochs end at 25


@pytest.mark.parametrize("end", [[], ["--steps", 5], ["--epochs", 1]])
def test_a_run_that_is_done_says_so_and_stays_as_it_is(end, data: Path, capsys) -> None:
    run = train("dcgan.py", data, "--steps", 7)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    capsys.readouterr()
    resume("dcgan.py", *end)  # without an error, so that a cluster does not start it again
    assert capsys.readouterr().out.endswith(
        "This run is done. More --steps or --epochs extend it.\n"
    )
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_resume_takes_the_newest_run_or_begins_one_in_out(data: Path, whole) -> None:
    for name, age in (("dcgan-1", 10), ("dcgan-2", 20), ("dcgan-10", 30), ("cgan-1", 0)):
        run = train(f"{name.split('-')[0]}.py", data, "--steps", 7, run=f"runs/{name}")
        moment = time.time() - age
        os.utime(run / "checkpoint.pt", (moment, moment))
        os.utime(run, (moment, moment))
    call("dcgan.py", "--resume", "--no-cuda", "--epochs", 3)
    assert_same_run("runs/dcgan-1", whole("dcgan.py"))
    assert read("runs/dcgan-10")["step"] == read("runs/cgan-1")["step"] == 7
    train("dcgan.py", data, "--resume", run="new")
    assert_same_run("new", whole("dcgan.py"))


def test_ctrl_c_leaves_a_command_that_continues(data: Path, whole, capsys, monkeypatch) -> None:
    def interrupt(*inputs: object) -> None:
        if inputs[1][0].state_dict()["state"][0]["step"] == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        watch("dcgan.py", patch, interrupt)
        with pytest.raises(SystemExit, match="130"):
            train("dcgan.py", data, run="my run")
    command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert command[-4:] == ["dcgan.py", "--resume", "--out", "my run"]
    resume("dcgan.py", run="my run")  # its options are known
    assert_same_run("my run", whole("dcgan.py"))


@pytest.mark.parametrize("ema", [0, 0.3, 0.999])
def test_the_average_follows_its_formula_and_nothing_else_follows_it(
    ema: float, data: Path, whole, monkeypatch
) -> None:
    weights = []
    means = []  # train updates the average after the step: here it is still the one before

    def look(networks: nn.ModuleDict, *_: object) -> None:
        for states, name in ((weights, "generator"), (means, "generator_ema")):
            state = networks[name].state_dict()
            states.append({k: v.double() for k, v in state.items() if v.is_floating_point()})

    watch("dcgan.py", monkeypatch, look)
    state = read(train("dcgan.py", data, "--ema", ema))
    reference = read(whole("dcgan.py"))
    for key in ("generator", "discriminator", "optimizers"):
        same(state[key], reference[key])
    for name, mean in means[0].items():
        for step, weight in enumerate(weights):
            decay = min(ema, (1 + step) / (20 + step))  # lower at first
            mean = decay * mean + (1 - decay) * weight[name]
        average = state["generator_ema"][name]
        torch.testing.assert_close(average.double(), mean, rtol=1e-4, atol=1e-6)
        assert torch.equal(average, state["generator"][name]) == (ema == 0)


@pytest.mark.parametrize("save_every", [0, 60])
def test_weights_that_are_not_finite_end_the_run_and_are_never_saved(
    save_every: int, data: Path, whole, refused, monkeypatch
) -> None:
    """They are noticed by the next row or checkpoint."""
    run = train("dcgan.py", data, "--steps", 5)
    steps = itertools.count(6)

    def break_a_weight(networks: nn.ModuleDict, *_: object) -> None:
        if next(steps) == 6:
            nn.init.constant_(next(networks["generator"].parameters()), float("inf"))

    with monkeypatch.context() as patch:
        watch("dcgan.py", patch, break_a_weight)
        patch.setattr(load("dcgan.py"), "SAVE_EVERY", save_every)
        args = ["--resume", "--out", "run", "--no-cuda", "--epochs", 3]
        assert "not finite" in refused("dcgan.py", *args, code=1)
    assert next(steps) <= 9  # the next row is that of step 8
    assert read(run)["step"] == 5
    resume("dcgan.py", "--epochs", 3)
    assert_same_run(run, whole("dcgan.py"))


@pytest.mark.parametrize("script", ["dcgan.py", "vanilla_gan.py"])
def test_a_full_disk_leaves_the_old_checkpoint(script: str, data: Path, whole, monkeypatch) -> None:
    """After an epoch no file may grow beyond half a checkpoint."""
    resource = pytest.importorskip("resource")
    size = (whole(script) / "checkpoint.pt").stat().st_size // 2
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    steps = itertools.count(1)

    def fill(*_: object) -> None:
        if next(steps) > STEPS[script]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    with monkeypatch.context() as patch:
        watch(script, patch, fill)
        patch.setattr(load(script), "SAVE_EVERY", 0)
        try:
            with pytest.raises((OSError, RuntimeError)):  # Python's or PyTorch's own
                train(script, data)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert read("run")["step"] == STEPS[script]
    resume(script)
    assert_same_run("run", whole(script))


def generated(run: Path) -> dict[str, bytes]:
    home = run / "generated"
    return {path.relative_to(home).as_posix(): path.read_bytes() for path in home.rglob("*.png")}


def test_generated_images_are_the_same_whatever_their_number(whole, capsys) -> None:
    """The options of the networks need not be typed again."""
    seen = []
    for count in (5, 2, 102, 5):
        run = Path(shutil.copytree(whole("dcgan.py"), f"run-{len(seen)}"))
        call("dcgan.py", "--generate", count, "--out", run, "--no-cuda")
        seen.append(generated(run))
        assert len(seen[-1]) == count
        assert capsys.readouterr().out.endswith(f"{count} images in {run}/generated\n")
    assert seen[1].items() <= seen[0].items() <= seen[2].items()
    assert seen[0] == seen[3]
    assert len(set(seen[2].values())) > 90
    state = read(run)
    for tensor in state["generator"].values():
        tensor.zero_()  # the average alone draws
    torch.save(state, run / "checkpoint.pt")
    call("dcgan.py", "--generate", 5, "--out", run, "--no-cuda")
    assert generated(run) == seen[0]
    for i in range(2):
        load("dcgan.py").set_seed(0, i)
        image = draw("dcgan.py", run, torch.randn(1, 4), torch.zeros(1).long())[0]
        picture = np.asarray(Image.open(run / "generated" / f"{i:06d}.png"), np.int16)
        assert np.abs(picture - image).max() <= 1


def test_cgan_generates_each_class_in_turn_or_the_one_asked_for(whole, refused) -> None:
    run = Path(shutil.copytree(whole("cgan.py"), "run"))
    argv = ["cgan.py", "--out", run, "--no-cuda", "--generate"]
    call(*argv, 3)
    in_turn = generated(run)
    assert sorted(in_turn) == ["cats/000000.png", "cats/000002.png", "dogs/000001.png"]
    assert "cats, dogs" in refused(*argv, 2, "--label", "birds", code=1)
    assert generated(run) == in_turn
    shutil.rmtree(run / "generated")
    call(*argv, 2, "--label", "dogs")
    dogs = generated(run)
    assert sorted(dogs) == ["dogs/000000.png", "dogs/000001.png"]
    assert dogs["dogs/000001.png"] == in_turn["dogs/000001.png"]  # image i has the noise i


def test_pictures_are_tiled_row_by_row_and_black_is_minus_one() -> None:
    images = 3 * torch.rand(6, 3, 4, 4) - 1.5  # what is beyond [-1, 1] becomes black or white
    pixels = (images.clamp(-1, 1) + 1).mul(127.5).permute(0, 2, 3, 1).numpy()
    expected = np.vstack([np.hstack(pixels[:3]), np.hstack(pixels[3:])])
    picture = np.asarray(load("dcgan.py").to_picture(images, columns=3), np.float32)
    assert np.abs(picture - expected).max() < 0.51


def test_digits_are_the_same_at_every_call_and_no_two_are_alike() -> None:
    images, labels = load("dcgan.py").digits(500)
    again = load("dcgan.py").digits(500)
    assert images.shape == (500, 1, 32, 32)
    assert (images.dtype, labels.dtype) == (torch.uint8, torch.int64)
    same((images, labels), again)
    assert len(images.flatten(1).unique(dim=0)) == 500
