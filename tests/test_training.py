"""Training, resuming and generating through the command line, on the CPU; resumed runs are compared bit for bit."""

import contextlib
import csv
import errno
import importlib
import io
import itertools
import json
import multiprocessing
import os
import random
import re
import shlex
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import numpy as np
import pytest
import torch
from conftest import ROOT, SCRIPTS, make_images
from PIL import Image, ImageSequence
from torch import Tensor, nn

NAMES = [script.removesuffix(".py") for script in SCRIPTS]
MODULES: dict[str, ModuleType] = {name: importlib.import_module(name) for name in NAMES}
COLUMNS = {name: ["D(x)", "D(G(z))", "d_loss", "g_loss"] for name in ("vanilla_gan", "dcgan", "cgan")}
COLUMNS |= {"wgan": ["wasserstein", "g_loss"], "wgan_gp": ["wasserstein", "penalty", "g_loss"]}

# 22 images in batches of 4 are 5 batches an epoch and 2 images left over. Three of the scripts take two batches a step,
# so that their epochs end in the middle of one.
TINY = ["--image-size", "8", "--batch-size", "4", "--latent-dim", "4", "--log-every", "3"]
OWN = {"vanilla_gan": ["--d-steps", "2"], "wgan": ["--n-critic", "2"], "wgan_gp": ["--n-critic", "2"]}
STEPS = {name: 8 if name in OWN else 15 for name in NAMES}  # of 3 epochs
SPLITS = {name: 4 if name in OWN else 7 for name in NAMES}  # in the middle of an epoch and of a row of metrics.csv

for_each_script = pytest.mark.parametrize("name", NAMES)


@dataclass
class Result:
    """A run and what it printed."""

    run: Path
    code: int
    out: str
    err: str

    @property
    def checkpoint(self) -> dict:
        return torch.load(self.run / "checkpoint.pt", weights_only=True)

    @property
    def rows(self) -> list[dict[str, str]]:
        return read_rows(self.run)


def read_rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def call(name: str, *argv: object) -> tuple[int, str, str]:
    """A script's main in this process: exit code, stdout and stderr."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            code = MODULES[name].main([str(arg) for arg in argv])
        except SystemExit as stop:
            code = stop.code
    return code, out.getvalue(), err.getvalue()


def train(name: str, data: Path, *argv: object, run: str | Path = "run", code: int = 0) -> Result:
    """A new run on tiny images, three epochs unless argv says otherwise."""
    result = Result(
        Path(run), *call(name, "--data", data, "--epochs", 3, *TINY, *OWN.get(name, []), "--out", run, *argv)
    )
    assert result.code == code, result.err
    return result


def resume(name: str, run: str | Path, *argv: object, code: int = 0) -> Result:
    result = Result(Path(run), *call(name, "--resume", run, *argv))
    assert result.code == code, result.err
    return result


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The number of threads may change the last bits. The signal handlers are put back, should a test leave others."""
    threads, handlers = torch.get_num_threads(), {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """22 grey images, 8 x 8, in two classes."""
    return make_images(tmp_path_factory.mktemp("data") / "images", per_class=11, mode="L")


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Result]:
    """For a script its run of three epochs that was never interrupted. To be read, not written."""
    results: dict[str, Result] = {}

    def get(name: str) -> Result:
        if name not in results:
            folder = tmp_path_factory.mktemp(name)
            results[name] = train(name, data, "--data-dir", folder / "data", run=folder / "run")
        return results[name]

    return get


def assert_same(a: object, b: object, where: str = "checkpoint") -> None:
    """Equality of nested dicts and lists, of tensors bit for bit."""
    assert type(a) is type(b), where
    if isinstance(a, Tensor):
        assert a.dtype == b.dtype, where
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            assert_same(a[key], b[key], f"{where}[{key!r}]")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


def assert_same_run(run: Path, expected: Path) -> None:
    """The same weights, optimizers, random state, rows and pictures; only clocks, --epochs and folders may differ."""
    files = [{path.relative_to(folder) for path in folder.rglob("*.*")} for folder in (run, expected)]
    assert files[0] == files[1]
    a, b = (torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (run, expected))
    assert a["seconds"] > 0
    for state in (a, b):
        del state["seconds"], state["args"]
    assert len(a["optimizers"]) == 2
    assert_same(dict(sorted(a.items())), dict(sorted(b.items())))
    rows = [[{**row, "seconds": ""} for row in read_rows(folder)] for folder in (run, expected)]
    assert rows[0] == rows[1]
    for path in files[0]:
        if path.suffix in (".png", ".gif"):
            assert (run / path).read_bytes() == (expected / path).read_bytes(), path


def rebuild(name: str, checkpoint: dict) -> list[nn.Module]:
    """The two networks from a checkpoint, as someone would who has only the two classes."""
    args, module = checkpoint["args"], MODULES[name]
    shape = [args["channels"], *([len(args["classes"])] if name == "cgan" else []), args["image_size"]]
    judge = "critic" if name.startswith("wgan") else "discriminator"
    networks = [module.Generator(args["latent_dim"], *shape), getattr(module, judge.capitalize())(*shape)]
    for network, key in zip(networks, ["generator", judge], strict=True):
        network.load_state_dict(checkpoint[key])
    return networks


def error_of(result: Result, name: str) -> str:
    """The one line in which a failed run says why."""
    assert "Traceback" not in result.err + result.out
    (line,) = (line for line in re.split(r"[\r\n]+", result.err) if "error" in line)
    assert f"{name}.py: error: " in line
    return line


# What a run leaves behind


@for_each_script
def test_run_folder_has_what_it_should_and_nothing_else(name: str, trained: Callable[[str], Result]) -> None:
    result = trained(name)
    assert {path.relative_to(result.run).as_posix() for path in result.run.rglob("*") if path.is_file()} == {
        "checkpoint.pt",
        "config.json",
        "metrics.csv",
        "samples/epoch-0001.png",
        "samples/epoch-0002.png",
        "samples/epoch-0003.png",
        "training.gif",
    }


@for_each_script
def test_start_prints_script_data_device_networks_and_folder(name: str, trained: Callable[[str], Result]) -> None:
    result = trained(name)
    lines = [line for line in result.out.splitlines() if not line.startswith("hint:")]  # that there is a GPU
    if "kernels" in result.checkpoint["args"]:
        assert lines.pop(2).startswith("kernels  ")
    title, shown, device, networks, folder = lines[:5]
    assert name in title
    assert MODULES[name].__doc__.splitlines()[0] in title
    assert result.checkpoint["args"]["data"] in shown
    assert "22 images" in shown
    assert "1 x 8 x 8" in shown
    assert "CPU" in device
    for network in rebuild(name, result.checkpoint):
        count = sum(parameter.numel() for parameter in network.parameters())
        assert f"{type(network).__name__} {count:,}" in networks
    assert str(result.run) in folder
    assert str(STEPS[name]) in folder


@for_each_script
def test_config_holds_the_arguments(name: str, trained: Callable[[str], Result]) -> None:
    result = trained(name)
    config = json.loads((result.run / "config.json").read_text())
    typed = {"epochs": 3, "image_size": 8, "batch_size": 4, "latent_dim": 4, "log_every": 3, "seed": 0, "steps": None}
    own = {OWN[name][0][2:].replace("-", "_"): int(OWN[name][1])} if name in OWN else {}
    typed |= {"classes": ["cats", "dogs"], "channels": 1, "images": 22, **own}
    assert typed.items() <= {key: value for key, value in config.items() if key in typed}.items()
    assert config == result.checkpoint["args"]


@for_each_script
def test_metrics_have_one_row_every_log_every_steps(name: str, trained: Callable[[str], Result]) -> None:
    result, batches = trained(name), 2 if name in OWN else 1
    lines = (result.run / "metrics.csv").read_text().splitlines()
    assert lines[0] == ",".join(["step", "epoch", *COLUMNS[name], "seconds"])
    steps = [int(row["step"]) for row in result.rows]
    assert steps == list(range(3, STEPS[name] + 1, 3))
    assert [int(row["epoch"]) for row in result.rows] == [(step - 1) * batches // 5 + 1 for step in steps]
    clock = [float(row["seconds"]) for row in result.rows]
    assert clock[0] > 0
    assert clock == sorted(clock)
    values = [float(row[column]) for row in result.rows for column in COLUMNS[name]]
    assert np.isfinite(values).all()


@for_each_script
def test_metrics_are_means_over_the_interval(name: str, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, float]] = []
    original = MODULES[name].train_step

    def step(*args: object) -> dict[str, Tensor]:
        metrics = original(*args)
        seen.append({column: value.item() for column, value in metrics.items()})
        return metrics

    monkeypatch.setattr(MODULES[name], "train_step", step)
    result = train(name, data, "--lr", "0.01")
    assert len(seen) == STEPS[name]
    rows = [[float(row[column]) for column in COLUMNS[name]] for row in result.rows]
    values = [[metrics[column] for column in COLUMNS[name]] for metrics in seen]
    means = [np.mean(values[i : i + 3], axis=0) for i in range(0, 3 * len(rows), 3)]
    np.testing.assert_allclose(rows, means, rtol=1e-4, atol=1e-6)
    assert not np.allclose(rows, values[2::3][: len(rows)], rtol=1e-3, atol=1e-5)  # not the last step's values


@for_each_script
def test_training_gif_is_the_samples_in_order(name: str, trained: Callable[[str], Result]) -> None:
    run = trained(name).run
    with Image.open(run / "training.gif") as movie:
        frames = [np.asarray(frame.convert("L"), np.int16) for frame in ImageSequence.Iterator(movie)]
    pictures = [np.asarray(Image.open(path), np.int16) for path in sorted((run / "samples").iterdir())]
    assert len(frames) == len(pictures) == 3
    for frame, picture in zip(frames, pictures, strict=True):
        assert np.abs(frame - picture).max() <= 2
    assert any((a != b).any() for a, b in itertools.pairwise(pictures))


@for_each_script
def test_checkpoint_holds_tensors_and_plain_values(name: str, trained: Callable[[str], Result]) -> None:
    def walk(value: object) -> Iterator[object]:
        yield value
        if isinstance(value, dict):
            for key, item in value.items():
                assert isinstance(key, str | int)
                yield from walk(item)
        elif isinstance(value, list | tuple):
            for item in value:
                yield from walk(item)

    checkpoint = trained(name).checkpoint  # read with weights_only=True
    plain = (Tensor, dict, list, tuple, str, int, float, bool, type(None))
    assert {type(value).__name__ for value in walk(checkpoint) if not isinstance(value, plain)} == set()
    assert checkpoint["step"] == STEPS[name]
    assert checkpoint["epoch"] == 3
    assert checkpoint["script"] == name
    assert checkpoint["z"].shape[1] == 4


@for_each_script
def test_networks_are_rebuilt_from_a_checkpoint_and_draw_its_last_samples(
    name: str, trained: Callable[[str], Result]
) -> None:
    result = trained(name)
    checkpoint = result.checkpoint
    generator, judge = (network.eval() for network in rebuild(name, checkpoint))
    labels = [torch.arange(len(checkpoint["z"])) // 8] if name == "cgan" else []  # one class in each row of eight
    with torch.no_grad():
        images = generator(checkpoint["z"], *labels)
        assert judge(images, *labels).isfinite().all()
    picture = np.asarray(Image.open(result.run / "samples" / "epoch-0003.png"), np.int16)
    rows = len(checkpoint["z"]) // 8
    assert rows == (2 if name == "cgan" else 8)
    assert picture.shape == (rows * 8, 8 * 8)
    expected = images.reshape(rows, 8, 8, 8).permute(0, 2, 1, 3).reshape(rows * 8, 64)  # of fixed range: -1 is black
    assert np.abs(picture - (expected.double().numpy() + 1) * 127.5).max() <= 1.01


@for_each_script
def test_default_folder_is_the_next_free_number(name: str, data: Path) -> None:
    argv = ["--data", data, "--steps", 1, *TINY]
    Path("runs", f"{name}-2").mkdir(parents=True)
    assert [call(name, *argv)[0] for _ in range(2)] == [0, 0]
    assert sorted(str(path.parent) for path in Path().rglob("checkpoint.pt")) == [f"runs/{name}-1", f"runs/{name}-3"]


@for_each_script
def test_each_option_of_its_own_changes_the_run(name: str, data: Path, trained: Callable[[str], Result]) -> None:
    own = {
        "vanilla_gan": ["--d-steps 3", "--loss minimax"],
        "wgan": ["--n-critic 3", "--clip 0.02"],
        "wgan_gp": ["--n-critic 3", "--gp-weight 1"],
    }
    for i, options in enumerate([*own.get(name, []), "--lr 0.003", "--latent-dim 5", "--batch-size 5", "--amp"]):
        result = train(name, data, "--steps", 3, *shlex.split(options), run=f"run-{i}")
        assert {**result.rows[0], "seconds": ""} != {**trained(name).rows[0], "seconds": ""}, options


@for_each_script
def test_image_size_is_that_of_networks_and_samples(name: str, data: Path) -> None:
    size = 10 if name == "vanilla_gan" else 16
    result = train(name, data, "--image-size", size, "--steps", 1)
    generator, judge = (network.eval() for network in rebuild(name, result.checkpoint))
    labels = [torch.tensor([0, 1])] if name == "cgan" else []
    images = generator(torch.randn(2, 4), *labels)
    assert images.shape == (2, 1, size, size)
    assert judge(images, *labels).shape == (2,)
    with Image.open(result.run / "samples" / "epoch-0001.png") as picture:
        assert picture.width == 8 * size
    assert f"22 images, 1 x {size} x {size}" in result.out


# Seeds


@for_each_script
def test_same_seed_gives_the_same_run_and_another_seed_another(
    name: str, data: Path, trained: Callable[[str], Result]
) -> None:
    assert_same_run(train(name, data, run="again").run, trained(name).run)
    result, first = train(name, data, "--seed", 1, run="other"), trained(name)
    for network, old in zip(rebuild(name, result.checkpoint), rebuild(name, first.checkpoint), strict=True):
        for a, b in zip(network.parameters(), old.parameters(), strict=True):
            assert a.dim() == 1 or not torch.equal(a, b)
    assert not torch.equal(result.checkpoint["z"], first.checkpoint["z"])
    assert result.rows[0][COLUMNS[name][0]] != first.rows[0][COLUMNS[name][0]]


def test_what_happened_before_in_the_process_does_not_matter(data: Path, trained: Callable[[str], Result]) -> None:
    torch.manual_seed(123)
    np.random.seed(123)
    assert_same_run(train("dcgan", data).run, trained("dcgan").run)


# The order of the data


def numbered_images(folder: Path, count: int) -> Path:
    """Images of one grey each, 10 i, by which a batch tells what it holds."""
    folder.mkdir()
    for i in range(count):
        Image.new("L", (8, 8), 10 * i).save(folder / f"{i:02d}.png")
    return folder


def watch_batches(name: str, monkeypatch: pytest.MonkeyPatch) -> list[list[list[int]]]:
    """Fills a list with the numbers of the images in each batch of each step."""
    seen: list[list[list[int]]] = []
    original = MODULES[name].train_step

    def step(networks: object, optimizers: object, batches: list[tuple[Tensor, Tensor]], args: object) -> object:
        for real, _ in batches:
            assert real.dtype == torch.float32
            assert real.abs().max() <= 1
        seen.append([((real[:, 0, 0, 0] + 1) * 12.75).round().long().tolist() for real, _ in batches])
        return original(networks, optimizers, batches, args)

    monkeypatch.setattr(MODULES[name], "train_step", step)
    return seen


@pytest.mark.parametrize("name", ["dcgan", "wgan", "vanilla_gan"])
def test_an_epoch_sees_each_image_at_most_once_in_an_order_of_its_own(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch_batches(name, monkeypatch)
    train(name, numbered_images(Path("numbers"), 22), "--epochs", 4)
    assert len(seen) == (10 if name in OWN else 20)
    batches = [batch for step in seen for batch in step]
    epochs = [list(itertools.chain(*batches[i : i + 5])) for i in range(0, 20, 5)]
    assert all(len(set(epoch)) == 20 and set(epoch) <= set(range(22)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert sorted(epochs[0]) != epochs[0]
    assert len({frozenset(epoch) for epoch in epochs}) > 1  # not the same two left out every time
    seen.clear()
    train(name, Path("numbers"), "--epochs", 1, "--seed", 1, run="other")
    assert seen[0][0] != batches[0]


@pytest.mark.parametrize("name", ["wgan", "wgan_gp"])
def test_critic_updates_of_more_than_an_epoch_cover_the_data_in_order(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = numbered_images(Path("numbers"), 10)  # 2 batches an epoch; 5 epochs are 2 steps of 5 batches
    seen = watch_batches(name, monkeypatch)
    result = train(name, folder, "--n-critic", 5, "--epochs", 5, "--log-every", 1)
    assert [len(step) for step in seen] == [5, 5]
    assert result.checkpoint["step"] == 2
    batches = [batch for step in seen for batch in step]
    for i in range(0, 10, 2):
        assert len({*batches[i], *batches[i + 1]}) == 8
    assert len({tuple(batch) for batch in batches}) > 5
    assert [row["step"] for row in result.rows] == ["1", "2"]

    whole, seen[:] = list(seen), []
    train(name, folder, "--n-critic", 5, "--epochs", 5, "--log-every", 1, "--steps", 1, run="split")
    resume(name, "split", "--steps", 2)
    assert seen == whole
    assert_same_run(Path("split"), result.run)


@pytest.mark.parametrize("name", ["dcgan", "vanilla_gan", "wgan_gp"])
def test_epochs_count_passes_over_the_data(name: str, trained: Callable[[str], Result]) -> None:
    assert (
        trained(name).checkpoint["step"] == {"dcgan": 3 * 5, "vanilla_gan": 8, "wgan_gp": 8}[name]
    )  # 8 = ceil(15 / 2)


# Resuming is exact


@for_each_script
def test_run_split_by_steps_is_the_unsplit_run(name: str, data: Path, trained: Callable[[str], Result]) -> None:
    first = train(name, data, "--steps", SPLITS[name])
    assert first.checkpoint["step"] == SPLITS[name]
    assert SPLITS[name] % 3 and SPLITS[name] * (2 if name in OWN else 1) % 5  # mid row, mid epoch
    resume(name, "run", "--steps", SPLITS[name] + 1)
    resume(name, "run", "--steps", STEPS[name])
    assert_same_run(first.run, trained(name).run)


@for_each_script
def test_run_resumed_by_its_printed_command_after_a_signal_is_the_uninterrupted_run(
    name: str, data: Path, trained: Callable[[str], Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = MODULES[name].train_step
    step = interrupt_in_step(name, monkeypatch, SPLITS[name], signal.SIGINT)
    result = train(name, data, code=130)
    assert len(step) == result.checkpoint["step"] == SPLITS[name]  # the step is finished, not begun again
    monkeypatch.setattr(MODULES[name], "train_step", original)
    command = re.search(rf"python {name}\.py (--resume .*)", result.out)
    assert command, result.out
    assert call(name, *shlex.split(command[1]))[0] == 0
    assert_same_run(result.run, trained(name).run)


def interrupt_in_step(name: str, monkeypatch: pytest.MonkeyPatch, at: int, *numbers: int) -> list[int]:
    """Makes signals arrive in the middle of a step. Fills the list it returns with the steps that were taken."""
    taken: list[int] = []
    original = MODULES[name].train_step

    def step(*args: object) -> dict[str, Tensor]:
        taken.append(len(taken) + 1)
        for number in numbers if len(taken) == at else ():
            signal.raise_signal(number)
        return original(*args)

    monkeypatch.setattr(MODULES[name], "train_step", step)
    return taken


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_while_a_checkpoint_is_written_leaves_it_whole(
    number: int, code: int, data: Path, trained: Callable[[str], Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    saves, fsync = itertools.count(), os.fsync

    def interrupted(file: int) -> None:
        fsync(file)
        if next(saves) == 2:  # config.json, the checkpoint of step 0, that of epoch 1
            signal.raise_signal(number)

    monkeypatch.setattr(os, "fsync", interrupted)
    result = train("dcgan", data, code=code)
    monkeypatch.setattr(os, "fsync", fsync)
    assert result.checkpoint["step"] == 6  # one more than was being written: the signal ends the step that follows
    resume("dcgan", "run")
    assert_same_run(result.run, trained("dcgan").run)


def test_second_signal_ends_the_program_at_once(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_in_step("dcgan", monkeypatch, 7, signal.SIGINT, signal.SIGINT)
    assert train("dcgan", data, code=130).checkpoint["step"] == 5  # of epoch 1, saved before


def test_signal_handlers_are_put_back(data: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    train("dcgan", data, "--steps", 1)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


class Killed(BaseException):
    """What no code catches: the process is gone."""


@pytest.mark.parametrize("at", range(1, 11))
def test_run_killed_at_any_write_of_a_file_is_resumed_exactly(
    at: int, data: Path, trained: Callable[[str], Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before and after each rename of a written file; a new run is five of them: its config and four checkpoints."""
    moments = itertools.count(1)

    def die() -> None:
        if next(moments) == at:
            raise Killed

    replace = Path.replace

    def replace_or_die(self: Path, target: Path) -> Path:
        die()
        result = replace(self, target)
        die()
        return result

    monkeypatch.setattr(Path, "replace", replace_or_die)
    with pytest.raises(Killed):
        train("dcgan", data)
    monkeypatch.setattr(Path, "replace", replace)
    if Path("run/checkpoint.pt").exists():
        resume("dcgan", "run")
    else:
        assert at <= 3
        train("dcgan", data)  # the folder holds no run yet, so the same command takes it
    Path("run/checkpoint.pt.part").unlink(missing_ok=True)
    assert_same_run(Path("run"), trained("dcgan").run)


@pytest.mark.parametrize("steps, torn", [(7, "9,2,0.4,0.5,1.3,0.7,0.01\n12,3,0."), (7, "1"), (2, "step,epo")])
def test_rows_later_than_the_checkpoint_and_torn_ones_are_dropped_and_written_again(
    steps: int, torn: str, data: Path, trained: Callable[[str], Result]
) -> None:
    first = train("dcgan", data, "--steps", steps)
    with (first.run / "metrics.csv").open("a") as file:
        file.write(torn)  # as a kill -9 leaves it
    resume("dcgan", "run", "--steps", 15)
    assert_same_run(first.run, trained("dcgan").run)


def test_clock_goes_on_where_the_run_was_left(data: Path) -> None:
    checkpoint = train("dcgan", data, "--steps", 4).checkpoint
    assert 0 < checkpoint["seconds"] < 100
    torch.save({**checkpoint, "seconds": 1000.0}, "run/checkpoint.pt")
    result = resume("dcgan", "run", "--steps", 6)
    assert [float(row["seconds"]) > 1000 for row in result.rows] == [False, True]
    assert result.checkpoint["seconds"] > 1000


def start(name: str, data: Path, *argv: object) -> BaseProcess:
    """The script as a process of its own, in a long run on one thread. What it prints goes to the file out.txt."""
    argv = argv or ["--data", data, *TINY, *OWN.get(name, []), "--epochs", 100_000]
    command = [str(arg) for arg in [ROOT / f"{name}.py", *argv]]
    code = "import runpy, sys, torch; torch.set_num_threads(1); sys.stdout = sys.stderr = open('out.txt', 'w'); "
    code += f"sys.argv = {command}; runpy.run_path(sys.argv[0], run_name='__main__')"
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["torch", "torch._dynamo"])  # what takes long to import, once for all
    process = server.Process(target=exec, args=(code,), daemon=True)
    process.start()
    return process


def wait_for_rows(process: BaseProcess, run: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while not (run / "metrics.csv").exists() or len(read_rows(run)) < count:
        assert process.is_alive(), Path("out.txt").read_text()
        assert time.monotonic() < deadline, "no rows in two minutes"
        time.sleep(0.01)


def finish_and_compare(name: str, run: Path, data: Path) -> None:
    """Resumes an interrupted run for another epoch and compares it with a run of so many that was not interrupted."""
    epochs = torch.load(run / "checkpoint.pt", weights_only=True)["epoch"] + 1
    resume(name, run, "--epochs", epochs)
    (run / "checkpoint.pt.part").unlink(missing_ok=True)  # of a kill -9
    assert_same_run(run, train(name, data, "--epochs", epochs, run="expected").run)


SIGNALS = [(name, signal.SIGINT, 130) for name in NAMES] + [("wgan_gp", signal.SIGTERM, 143)]


@pytest.mark.parametrize("name, number, code", SIGNALS, ids=[f"{name}-{number.name}" for name, number, _ in SIGNALS])
def test_process_interrupted_by_a_signal_saves_and_is_resumed_exactly(
    name: str, number: int, code: int, data: Path
) -> None:
    run = Path(f"runs/{name}-1")
    process = start(name, data)
    wait_for_rows(process, run, 2)
    os.kill(process.pid, number)
    process.join(60)
    out = Path("out.txt").read_text()
    assert process.exitcode == code, out
    assert "Traceback" not in out
    command = re.search(rf"python {name}\.py (--resume .*)", out)
    assert command, out
    saved = torch.load(run / "checkpoint.pt", weights_only=True)
    assert shlex.split(command[1])[:2] == ["--resume", str(run)]
    assert f"step {saved['step']} " in out
    assert len(read_rows(run)) == saved["step"] // 3  # saved where it stopped, not where the last epoch ended
    finish_and_compare(name, run, data)


@for_each_script
def test_process_killed_again_and_again_at_random_moments_ends_in_the_uninterrupted_run(name: str, data: Path) -> None:
    """KILLS=40 pytest -k again_and_again kills each script 40 times: at the start, in steps, while writing files."""
    rng, kills, codes = random.Random(name), int(os.environ.get("KILLS", 2)), []
    argv, run, epochs = ["--data", data, *TINY, *OWN.get(name, []), "--out", "run"], Path("run"), 10 * kills
    ends = {
        signal.SIGKILL: {-9},
        signal.SIGTERM: {-15, 143},
        signal.SIGINT: {1, 130},
    }  # before and after train() has begun
    halves = 0
    while len(codes) < kills:
        again = ["--resume", "run"] if (run / "checkpoint.pt").exists() else argv
        Path("out.txt").unlink(missing_ok=True)
        process = start(name, data, *again, "--epochs", epochs)
        while not Path("out.txt").exists():  # before that, multiprocessing itself ignores SIGINT
            assert process.exitcode is None
            time.sleep(0.01)
        process.join(rng.uniform(0, 1.5))
        if process.is_alive():
            codes.append(rng.choice(list(ends)))
            os.kill(process.pid, codes[-1])
            process.join(60)
        if process.exitcode == 0:  # it was faster: a longer run
            epochs += 20
        else:
            assert process.exitcode in ends[codes[-1]], Path("out.txt").read_text()
        halves += (run / "checkpoint.pt.part").exists()
        (run / "checkpoint.pt.part").unlink(missing_ok=True)
        assert process.exitcode in (-9, -15, 1) or "Traceback" not in Path("out.txt").read_text()  # 1: in an import
    print(f"{name}: {kills} kills, {halves} while the checkpoint was written, {epochs} epochs")
    if not (run / "checkpoint.pt").exists():
        train(name, data, "--steps", 1)
    epochs = max(epochs, torch.load(run / "checkpoint.pt", weights_only=True)["epoch"])
    resume(name, run, "--epochs", epochs)
    assert_same_run(run, train(name, data, "--epochs", epochs, run="expected").run)


def test_resume_without_a_value_takes_the_newest_run_of_this_script(
    data: Path, trained: Callable[[str], Result]
) -> None:
    for name, age in (("dcgan-1", 10), ("dcgan-2", 20), ("dcgan-10", 30), ("cgan-1", 0)):
        result = train(name.partition("-")[0], data, "--steps", 7, run=f"runs/{name}")
        os.utime(result.run / "checkpoint.pt", (time.time() - age,) * 2)
    code, out, _ = call("dcgan", "--resume", "--steps", 15)
    assert code == 0
    assert "runs/dcgan-1," in out
    assert_same_run(Path("runs/dcgan-1"), trained("dcgan").run)
    assert torch.load("runs/dcgan-10/checkpoint.pt", weights_only=True)["step"] == 7


@pytest.mark.parametrize("name", ["dcgan", "wgan_gp"])
def test_split_run_in_bfloat16_is_the_unsplit_run_in_bfloat16(
    name: str, data: Path, trained: Callable[[str], Result]
) -> None:
    whole = train(name, data, "--amp", run="whole")
    split = train(name, data, "--amp", "--steps", SPLITS[name], run="split")
    resume(name, "split", "--steps", STEPS[name])
    assert_same_run(split.run, whole.run)
    assert whole.rows != trained(name).rows
    for column in COLUMNS[name]:
        low, full = (np.array([float(row[column]) for row in rows]) for rows in (whole.rows, trained(name).rows))
        np.testing.assert_allclose(low, full, rtol=0.05, atol=0.05)
    for network in rebuild(name, whole.checkpoint):
        assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


def test_split_run_on_colour_images_with_batchnorm_in_both_networks_is_the_unsplit_run() -> None:
    data = make_images(Path("colour"), per_class=6, size=32)
    argv = ["--image-size", 32, "--epochs", 2]  # 3 steps an epoch
    whole = train("dcgan", data, *argv, run="whole")
    split = train("dcgan", data, *argv, "--steps", 2, run="split")
    resume("dcgan", "split", "--steps", 5)
    resume("dcgan", "split", "--steps", 6)
    assert whole.checkpoint["args"]["channels"] == 3
    assert any("running_mean" in key for key in whole.checkpoint["discriminator"])
    assert_same_run(split.run, whole.run)


def test_finished_run_says_so_and_goes_on_with_more_epochs(data: Path, trained: Callable[[str], Result]) -> None:
    first = train("dcgan", data, "--epochs", 2)
    before = (first.run / "checkpoint.pt").read_bytes(), (first.run / "metrics.csv").read_bytes()
    done = resume("dcgan", "run")
    assert "10 of 10" in done.out
    assert f"--resume {first.run} --epochs" in done.out
    assert before == ((first.run / "checkpoint.pt").read_bytes(), (first.run / "metrics.csv").read_bytes())
    more = resume("dcgan", "run", "--epochs", 3)
    assert "15 of 15" in more.out
    assert_same_run(more.run, trained("dcgan").run)


def test_run_stopped_by_steps_says_how_to_go_on(data: Path) -> None:
    result = train("dcgan", data, "--steps", 7)
    command = re.search(r"python dcgan\.py (--resume .*)", result.out)
    assert command
    assert call("dcgan", *shlex.split(command[1]))[0] == 0
    assert result.checkpoint["step"] > 7


def test_run_can_be_moved_and_resumed_from_another_folder(
    data: Path, trained: Callable[[str], Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    train("dcgan", Path(os.path.relpath(data)), "--steps", 7)
    Path("elsewhere").mkdir()
    Path("run").rename("elsewhere/moved")
    monkeypatch.chdir("elsewhere")
    resume("dcgan", "moved", "--steps", 15)
    assert_same_run(Path("moved"), trained("dcgan").run)


def test_run_goes_on_without_network_and_without_decoding_again(
    data: Path, trained: Callable[[str], Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> NoReturn:
        raise AssertionError("no network, no decoding")

    train("dcgan", data, "--steps", 7)
    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("PIL.ImageOps.fit", refuse)
    resume("dcgan", "run", "--steps", 15)
    assert_same_run(Path("run"), trained("dcgan").run)


# Generating


@for_each_script
def test_generated_images_are_the_same_at_every_call_and_do_not_depend_on_their_number(
    name: str, trained: Callable[[str], Result]
) -> None:
    run = Path(shutil.copytree(trained(name).run, "run"))
    before = (run / "checkpoint.pt").read_bytes()
    seen = []
    for count in (5, 5, 2, 102, 5):
        resume(name, run, "--generate", count)
        seen.append({path.relative_to(run): path.read_bytes() for path in sorted((run / "generated").rglob("*.png"))})
        assert len(seen[-1]) == count  # nothing is left of a call before
    assert seen[0] == seen[1] == seen[4]
    assert seen[2].items() <= seen[0].items() <= seen[3].items()
    assert len(set(seen[3].values())) > 90
    assert (run / "checkpoint.pt").read_bytes() == before
    for path in seen[0]:
        with Image.open(run / path) as image:
            assert image.size == (8, 8)
            assert image.mode == "L"


def test_generated_images_are_those_of_the_generator_in_eval_mode(trained: Callable[[str], Result]) -> None:
    run = Path(shutil.copytree(trained("dcgan").run, "run"))
    resume("dcgan", run, "--generate", 3)
    checkpoint = torch.load(run / "checkpoint.pt", weights_only=True)
    generator = rebuild("dcgan", checkpoint)[0].eval()
    with torch.no_grad():
        images = generator(torch.randn(100, 4, generator=torch.Generator().manual_seed(0)))[:3]
    for image, path in zip(images, sorted((run / "generated").iterdir()), strict=True):
        assert np.abs(np.asarray(Image.open(path), np.int16) - (image[0].double().numpy() + 1) * 127.5).max() <= 1.01


def test_cgan_generates_one_folder_for_each_class_in_turn(trained: Callable[[str], Result]) -> None:
    run = Path(shutil.copytree(trained("cgan").run, "run"))
    resume("cgan", run, "--generate", 5)
    paths = sorted(path.relative_to(run / "generated") for path in (run / "generated").rglob("*.png"))
    assert [(path.parent.name, int(path.stem)) for path in paths] == [
        ("cats", 0),
        ("cats", 2),
        ("cats", 4),
        ("dogs", 1),
        ("dogs", 3),
    ]


@pytest.mark.parametrize("label, folder", [("dogs", "dogs"), ("1", "dogs"), ("cats", "cats"), ("0", "cats")])
def test_cgan_generates_only_the_class_that_is_asked_for(
    label: str, folder: str, trained: Callable[[str], Result]
) -> None:
    run = Path(shutil.copytree(trained("cgan").run, "run"))
    resume("cgan", run, "--generate", 4)
    in_turn = {path.stem: path.read_bytes() for path in (run / "generated" / folder).iterdir()}
    resume("cgan", run, "--generate", 4, "--label", label)
    assert [path.name for path in (run / "generated").iterdir()] == [folder]
    images = {path.stem: path.read_bytes() for path in (run / "generated" / folder).iterdir()}
    assert len(images) == 4
    assert in_turn.items() < images.items()  # image i has the noise i, whatever its class


def test_images_that_cgan_generates_are_a_data_set_with_its_classes(trained: Callable[[str], Result]) -> None:
    run = Path(shutil.copytree(trained("cgan").run, "run"))
    resume("cgan", run, "--generate", 20)
    again = train("cgan", run / "generated", "--epochs", 1, run="again")
    assert again.checkpoint["args"]["classes"] == ["cats", "dogs"]
    assert again.checkpoint["args"]["images"] == 20


def test_colour_run_generates_colour_images() -> None:
    run = train("wgan", make_images(Path("colour"), per_class=4), "--steps", 1).run
    resume("wgan", run, "--generate", 2)
    for path in (run / "generated").iterdir():
        with Image.open(path) as image:
            assert image.mode == "RGB"


# The sample grid


@for_each_script
def test_drawing_the_samples_changes_no_buffer_and_two_draws_are_equal(name: str) -> None:
    module = MODULES[name]
    args, _ = module.parse_args(["--image-size", "16", "--latent-dim", "4"])
    args.channels, args.classes = 1, ["a", "b"]
    (generator, _), _ = module.build(args)
    z, labels = torch.randn(6, 4), torch.arange(6) % 2
    with torch.no_grad():
        generator(z + 1, *([labels] if name == "cgan" else []))  # moves the running statistics off their start
    buffers = {key: value.clone() for key, value in generator.named_buffers()}
    assert any("running_mean" in key for key in buffers)
    rng = torch.get_rng_state()
    first, second = (module.sample(generator, z, labels, args) for _ in range(2))
    assert first.shape == (6, 1, 16, 16)
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(value, buffers[key]) for key, value in generator.named_buffers())
    assert generator.training
    torch.testing.assert_close(module.sample(generator, z[:1], labels[:1], args), first[:1])  # alone, as in its batch
    assert not first.requires_grad


def test_fixed_noise_stays_fixed_through_a_run_and_its_resumption(data: Path) -> None:
    noise = [train("dcgan", data, "--steps", 1).checkpoint["z"]]
    noise += [resume("dcgan", "run", "--steps", steps).checkpoint["z"] for steps in (2, 15)]
    assert torch.equal(noise[0], noise[1])
    assert torch.equal(noise[0], noise[2])


@pytest.mark.parametrize("value, grey", [(-1.0, 0), (-0.5, 64), (0.0, 128), (0.5, 191), (1.0, 255)])
def test_pictures_have_a_fixed_range(value: float, grey: int) -> None:
    """The grey of a value does not depend on what else is in the picture."""
    for rest in (value, -1.0, 1.0):
        images = torch.full((2, 1, 4, 4), rest)
        images[0] = value
        picture = np.asarray(MODULES["dcgan"].to_picture(images, 2), np.int16)
        assert picture.shape == (4, 8)
        assert np.abs(picture[:, :4] - grey).max() <= 1


# A training that fails


@pytest.mark.parametrize("name", ["vanilla_gan", "dcgan", "cgan", "wgan_gp"])  # wgan's clipped critic stays finite
def test_diverging_run_ends_with_one_line_and_keeps_its_last_good_checkpoint(name: str, data: Path) -> None:
    result = train(name, data, "--lr", "1e15", "--log-every", 1, "--epochs", 50, code=1)
    message = error_of(result, name)
    assert "finite" in message
    assert str(result.run / "checkpoint.pt") in message
    for network in rebuild(name, result.checkpoint):
        assert all(parameter.isfinite().all() for parameter in network.parameters())


def test_error_of_a_failed_run_stands_on_a_line_of_its_own(data: Path) -> None:
    result = train("dcgan", data, "--lr", "1e15", "--log-every", 1, "--epochs", 50, code=1)
    assert error_of(result, "dcgan").startswith("dcgan.py: error: ")  # not behind the progress bar


@for_each_script
@pytest.mark.parametrize("what", ["loss", "weight"])
def test_run_that_breaks_late_goes_on_exactly_from_its_last_good_checkpoint(
    what: str, name: str, data: Path, trained: Callable[[str], Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks in a step in the second epoch, at the loss (seen by the log) or silently in G's weights (by the save)."""
    steps = itertools.count(1)
    original = MODULES[name].train_step

    def step(networks: list[nn.Module], *args: object) -> dict[str, Tensor]:
        metrics = original(networks, *args)
        if next(steps) == SPLITS[name]:
            if what == "loss":
                return {column: value * float("nan") for column, value in metrics.items()}
            with torch.no_grad():
                list(networks[0].parameters())[-1][0] = float("inf")
        return {column: value.nan_to_num(0.0) for column, value in metrics.items()}

    monkeypatch.setattr(MODULES[name], "train_step", step)
    result = train(name, data, code=1)
    assert "finite" in error_of(result, name)
    assert result.checkpoint["step"] == (3 if name in OWN else 5)  # the end of the first epoch
    monkeypatch.setattr(MODULES[name], "train_step", original)
    resume(name, "run")
    assert_same_run(result.run, trained(name).run)


def fail_after_first_checkpoint(monkeypatch: pytest.MonkeyPatch, target: object, attribute: str) -> None:
    """Makes a function fail as on a full disk, once a run has its first checkpoint."""
    original = getattr(target, attribute)

    def full(*args: object, **kwargs: object) -> object:
        if Path("run/checkpoint.pt").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*args, **kwargs)

    monkeypatch.setattr(target, attribute, full)


@pytest.mark.parametrize("target, attribute", [(os, "fsync"), (torch, "save"), (Image.Image, "save")])
def test_full_disk_ends_with_one_line_and_leaves_the_old_checkpoint_whole(
    target: object, attribute: str, data: Path, trained: Callable[[str], Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    train("dcgan", data, "--steps", 1, run="first")  # so that the images are decoded
    with monkeypatch.context() as patch:
        fail_after_first_checkpoint(patch, target, attribute)
        result = train("dcgan", data, code=1)
    assert "No space left" in error_of(result, "dcgan")
    assert result.checkpoint["step"] == 0
    resume("dcgan", "run")
    assert_same_run(result.run, trained("dcgan").run)


@pytest.mark.parametrize("size", [20_000, 60_000, 95_000])  # of the about 100,000 bytes of a checkpoint
def test_checkpoint_that_is_cut_short_ends_with_one_line_and_leaves_the_old_one_whole(
    size: int, data: Path, trained: Callable[[str], Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real failure in the midst of torch.save: from the first step on no file may grow beyond a size."""
    resource = pytest.importorskip("resource")
    original, (_, hard) = MODULES["dcgan"].train_step, resource.getrlimit(resource.RLIMIT_FSIZE)

    def step(*args: object) -> dict[str, Tensor]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        return original(*args)

    monkeypatch.setattr(MODULES["dcgan"], "train_step", step)
    try:
        result = train("dcgan", data, code=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    monkeypatch.setattr(MODULES["dcgan"], "train_step", original)
    assert "File too large" in error_of(result, "dcgan")
    assert result.checkpoint["step"] == 0
    resume("dcgan", "run")
    assert_same_run(result.run, trained("dcgan").run)


# TensorBoard


def test_tensorboard_gets_every_row_and_the_samples(data: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = train("wgan_gp", data, "--tensorboard", "--steps", 4)
    resume("wgan_gp", "run", "--steps", 8)  # has --tensorboard from the run
    events = EventAccumulator(str(result.run)).Reload()
    rows = read_rows(result.run)
    assert sorted(events.Tags()["scalars"]) == sorted(COLUMNS["wgan_gp"])
    for column in COLUMNS["wgan_gp"]:
        logged = [(event.step, event.value) for event in events.Scalars(column)]
        assert [step for step, _ in logged] == [int(row["step"]) for row in rows] == [3, 6]
        assert [value for _, value in logged] == pytest.approx([float(row[column]) for row in rows], rel=1e-4)
    assert events.Tags()["images"] == ["samples"]


def test_tensorboard_changes_nothing_else(data: Path, trained: Callable[[str], Result]) -> None:
    pytest.importorskip("tensorboard")
    result = train("dcgan", data, "--tensorboard")
    events = list(result.run.glob("events.out.tfevents.*"))
    assert events
    for path in events:
        path.unlink()
    assert_same_run(result.run, trained("dcgan").run)


def test_tensorboard_that_is_not_installed_is_one_line_before_any_work(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [module for module in sys.modules if module.startswith(("tensorboard", "torch.utils.tensorboard"))]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    result = train("dcgan", data, "--tensorboard", code=2)
    assert result.err.startswith("dcgan.py: error: --tensorboard")
    assert "pip install tensorboard" in result.err
    assert result.err.count("\n") == 1
    assert not result.run.exists()
