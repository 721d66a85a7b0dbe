"""What the tests share: where the scripts are, how to run one, a tiny set of images."""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ["vanilla_gan.py", "dcgan.py", "cgan.py", "wgan.py", "wgan_gp.py"]
TINY = ["--image-size", "8", "--batch-size", "4", "--steps", "2", "--latent-dim", "4"]

sys.path.insert(0, str(ROOT))
torch.set_num_threads(min(2, torch.get_num_threads()))


def load(script: str) -> ModuleType:
    """The script, imported."""
    return importlib.import_module(script.removesuffix(".py"))


def call(script: str, *args: object) -> int:
    """The script's main, in this process, which spares the two seconds that importing torch takes."""
    return load(script).main([str(arg) for arg in args])


def run_script(
    script: str, *args: object, cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a script of ROOT (or, by its full path, a copy) to its end in another process, on one thread."""
    command = [sys.executable, str(ROOT / script), *map(str, args)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=240)


def make_images(
    folder: Path, classes: Sequence[str] = ("cats", "dogs"), per_class: int = 8, size: int = 8, mode: str = "RGB"
) -> Path:
    """Writes noise as .png, per_class in a subfolder for each class (class "" is the folder itself); returns folder."""
    rng = np.random.default_rng(0)
    shape = (size, size, 3) if mode == "RGB" else (size, size)
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(per_class):
            Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test starts in an empty folder of its own: data/ and runs/ are made there."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder of 16 colour images, 8 x 8, in two classes."""
    return make_images(tmp_path / "images")


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """finished(script) is a run of two steps, trained when first asked for. To read only: tests share it."""
    home = tmp_path_factory.mktemp("finished")
    data = make_images(home / "images")

    @cache
    def run(script: str) -> Path:
        out = home / script.removesuffix(".py")
        assert call(script, "--data", data, "--data-dir", home / "data", "--out", out, *TINY) == 0
        return out

    return run


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """refused(script, *args) asserts that main ends with exit code 2 and one line on stderr; returns that line."""

    def check(script: str, *args: object, code: int = 2) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            call(script, *args)
        lines = capsys.readouterr().err.split("\n")
        lines = [line for line in lines if line and ("\r" not in line or "error" in line)]  # no progress bars
        assert len(lines) == 1, lines
        assert lines[0].startswith(f"{script}: error: ")
        assert end.value.code == code
        return lines[0]

    return check
