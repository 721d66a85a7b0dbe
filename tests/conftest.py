"""What the tests share: where the scripts are, how to run one, tiny data, a finished tiny run."""

import importlib
import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Callable
from functools import cache
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
BANNER = "\n# ----------------------- Plumbing"
# The one list of scripts: whatever holds the banner
SCRIPTS = sorted(path.name for path in ROOT.glob("*.py") if BANNER in path.read_text("utf-8"))
EACH_SCRIPT = pytest.mark.parametrize("script", SCRIPTS)
SEVERAL = {"vanilla_gan.py": "--d-steps", "wgan.py": "--n-critic", "wgan_gp.py": "--n-critic"}
TINY = ["--batch-size", "4", "--steps", "2", "--latent-dim", "4", "--no-cuda"]

sys.path.insert(0, str(ROOT))
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores Ctrl-C
torch.set_num_threads(1)  # the number of threads may change the last bits


def load(script: str) -> ModuleType:
    return importlib.import_module(script.removesuffix(".py"))


def call(script: str, *args: object) -> None:
    """Runs a script's main in this process, which spares the two seconds of importing torch."""
    load(script).main([str(arg) for arg in args])


def start(target: Callable[..., None], *args: object, out: str = "out.txt") -> BaseProcess:
    """Calls target(*args) in a process of its own, in which no script has been imported yet.

    What it prints goes to the file out, which is there as soon as the process lives.
    """
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["torch", "torch._dynamo", "PIL.ImageDraw", "tqdm", "pytest"])
    process = server.Process(target=_child, args=(target, args, out), daemon=True)
    process.start()
    return process


def _child(target: Callable[..., None], args: tuple, out: str) -> None:
    with Path(out).open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    target(*args)


def run_saving_always(script: str, *args: object) -> None:
    """For start: the script's main, with a checkpoint after every step."""
    load(script).SAVE_EVERY = 0
    call(script, *args)


def run_file(path: Path, *args: object) -> None:
    """For start: what `python path args` does where gan_kernels is not installed."""
    sys.modules["gan_kernels"] = None
    sys.path.remove(str(ROOT))
    sys.argv = [str(path), *map(str, args)]
    runpy.run_path(str(path), run_name="__main__")


def make_data(folder, count=64, channels=3, size=8, classes=("cats", "dogs"), seed=0) -> Path:
    """Writes noise as a folder of arrays, the classes in turn, and returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    np.save(folder / "images.npy", rng.integers(0, 256, (count, channels, size, size), np.uint8))
    if classes:
        np.save(folder / "labels.npy", np.arange(count) % len(classes))
        (folder / "classes.txt").write_text("".join(f"{name}\n" for name in classes))
    return folder


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test starts in an empty folder of its own: runs/ is made there."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of 64 colour images, 8 x 8, in two classes."""
    return make_data(tmp_path / "data")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """finished(script) is a run of two steps, trained when first asked for. Tests only read it."""
    home = tmp_path_factory.mktemp("finished")
    data = make_data(home / "data")

    @cache
    def run(script: str) -> Path:
        out = home / script.removesuffix(".py")
        call(script, "--data", data, "--out", out, "--log-every", 1, *TINY)
        return out

    return run


@pytest.fixture
def untrained_classifiers(monkeypatch: pytest.MonkeyPatch) -> list[torch.nn.Module]:
    """evaluate.py's classifiers of images in colour stay random, as their training takes seconds.

    The list has those whose training was left out.
    """
    found = []

    def train(classifier: torch.nn.Module, *_: object) -> None:
        found.append(classifier)

    monkeypatch.setattr("evaluate.train_colour_classifier", train)
    return found


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """refused(script, *args, code=2): main must exit with that code and one line, its result."""

    def check(script: str, *args: object, code: int = 2) -> str:
        with pytest.raises(SystemExit) as end:
            call(script, *args)
        if code == 1:  # sys.exit(line): Python prints it
            line = end.value.code
        else:
            assert end.value.code == code
            line = capsys.readouterr().err.splitlines()[-1]
        assert line
        assert "\n" not in line
        return line

    return check
