"""What the tests share: where the scripts are, how to run one, tiny data, a finished tiny run."""

import importlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ["vanilla_gan.py", "dcgan.py", "cgan.py", "wgan.py", "wgan_gp.py", "lsgan.py", "acgan.py", "fgan.py"]
TINY = ["--batch-size", "4", "--steps", "2", "--latent-dim", "4"]

sys.path.insert(0, str(ROOT))
torch.set_num_threads(1)  # the number of threads may change the last bits


def load(script: str):
    return importlib.import_module(script.removesuffix(".py"))


def call(script: str, *args: object) -> int:
    """The script's main, in this process, which spares the two seconds that importing torch takes."""
    return load(script).main([str(arg) for arg in args])


def run_script(script: str, *args: object, cwd: Path | None = None, env: dict[str, str] | None = None):
    """Runs a script of ROOT (or, by its full path, a copy) to its end in another process; its CompletedProcess."""
    env, command = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}, [sys.executable, ROOT / script, *args]
    return subprocess.run([*map(str, command)], cwd=cwd, env=env, capture_output=True, text=True, timeout=240)


def make_data(folder: Path, count=64, channels=3, size=8, classes=("cats", "dogs"), seed=0) -> Path:
    """Writes noise as a folder of arrays, such as the scripts train on, the classes in turn; returns folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    np.save(folder / "images.npy", rng.integers(0, 256, (count, channels, size, size), np.uint8))
    if classes:
        np.save(folder / "labels.npy", np.arange(count) % len(classes))
        (folder / "classes.txt").write_text("".join(f"{name}\n" for name in classes))
    return folder


def make_images(folder: Path, classes=("cats", "dogs"), per_class=8, size=8, mode="RGB") -> Path:
    """Writes noise as .png, per_class in a subfolder for each class (class "" is the folder itself); returns folder."""
    rng, shape = np.random.default_rng(0), (size, size, 3) if mode == "RGB" else (size, size)
    for path in (folder / name / f"{i}.png" for name in classes for i in range(per_class)):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(path)
    return folder


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test starts in an empty folder of its own: runs/ is made there. A script's signal handlers end with it."""
    monkeypatch.chdir(tmp_path)
    yield
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of 64 colour images, 8 x 8, in two classes."""
    return make_data(tmp_path / "data")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """finished(script) is a run of two steps, trained when first asked for. To read only: tests share it."""
    home = make_data(tmp_path_factory.mktemp("finished") / "data").parent

    @cache
    def run(script: str) -> Path:
        assert call(script, "--data", home / "data", "--out", home / script[:-3], "--log-every", 1, *TINY) == 0
        return home / script[:-3]

    return run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """refused(script, *args, code=2) asserts that main ends with that code and one line on stderr; returns the line."""

    def check(script: str, *args: object, code: int = 2) -> str:
        with pytest.raises(SystemExit) as end:
            call(script, *args)
        (line,) = (x for x in re.split(r"[\r\n]+", capsys.readouterr().err) if x.strip() and "|" not in x)  # no bars
        assert (end.value.code, line.startswith(f"{script}: error: ")) == (code, True), line
        return line

    return check
