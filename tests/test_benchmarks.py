"""benchmarks/speedrun.py and toys.py on tiny tasks; claims.py has tests of its own."""

import importlib
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, make_data

sys.path.insert(0, str(ROOT / "benchmarks"))
Capsys, Patch = pytest.CaptureFixture[str], pytest.MonkeyPatch


def run(name: str, monkeypatch: Patch, *args: object) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, args)])
    importlib.import_module(name).main()


@pytest.mark.parametrize("frechet", [12.0, 8.0])
def test_speedrun_trains_and_scores_piece_by_piece_until_the_target_is_reached(
    frechet: float, capsys: Capsys, monkeypatch: Patch
) -> None:
    data, scores = make_data(Path("data/mnist-32"), size=8), iter([40.0, 10.0, 9.0, 9.0])
    for part in ("images", "labels"):
        np.save(data / f"test_{part}.npy", np.load(data / f"{part}.npy")[::2])
    speedrun, measure = importlib.import_module("speedrun"), importlib.import_module("speedrun").Judge.__call__

    def judge(self: object, *args: object) -> dict[str, float]:
        found = measure(self, *args)  # of a training so short they say nothing
        assert 0 <= found["accuracy"] <= 1 and 0 <= found["rarest"] <= 0.5 and found["frechet"] > 0
        return found | {"frechet": next(scores), "accuracy": 1.0, "diversity": 1.0, "rarest": 0.1}

    monkeypatch.setattr(speedrun.Judge, "__call__", judge)
    race = speedrun.Race("--batch-size 4 --latent-dim 4", first=1, every=1, most=3, frechet=frechet, accuracy=0.9)
    monkeypatch.setattr(speedrun, "RACES", {"cgan": race})
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run("speedrun", monkeypatch, "cgan", "--final", "--seeds", 1, "--samples", 20)
    out = capsys.readouterr().out
    steps = re.findall(r"^\| cgan \| 0 \| (\d) \| \d+ \| [\d.]+ \| 10.0% \| 1.00 \| 100.0% \|$", out, re.MULTILINE)
    assert steps == (["1", "2"] if frechet > 10 else ["1", "2", "3"])
    (seconds,) = re.findall(r"^\| cgan.py \| .* \| (\d+|inf) \|$", out, re.MULTILINE)
    assert (seconds == "inf") == (frechet < 9)


def test_speedrun_keeps_the_last_training_images_to_judge_by(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", count=50_010, channels=1, size=2)
    folder = importlib.import_module("speedrun").split(data, tmp_path / "split", final=False)
    images, labels = np.load(data / "images.npy"), np.load(data / "labels.npy")
    assert np.array_equal(np.load(folder / "images.npy"), images[:50_000])
    assert np.array_equal(np.load(folder / "test_images.npy"), images[50_000:])
    assert np.array_equal(np.load(folder / "test_labels.npy"), labels[50_000:])


def test_the_gaussian_that_is_nearest_by_kl_has_the_moments_of_the_mixture_and_by_reverse_kl_sits_on_a_mode() -> None:
    toys = importlib.import_module("toys")
    mean, std = toys.best_gaussian("kl")
    variance = toys.WIDE**2 + toys.CENTRE**2 * (1 - (1 - 2 * toys.LEFT) ** 2)
    torch.testing.assert_close(mean, torch.tensor([toys.CENTRE * (1 - 2 * toys.LEFT), 0.0]).double(), atol=0.01, rtol=0)
    torch.testing.assert_close(std, torch.tensor([math.sqrt(variance), toys.WIDE]).double(), atol=0.01, rtol=0)
    mean, std = toys.best_gaussian("reverse-kl")
    torch.testing.assert_close(mean, torch.tensor([-toys.CENTRE, 0.0]).double(), atol=0.02, rtol=0)


def test_toys_train_every_loss_and_count_the_modes(capsys: Capsys, monkeypatch: Patch) -> None:
    toys = importlib.import_module("toys")
    torch.manual_seed(0)
    modes, near = toys.found(toys.grid(5000))
    assert modes == 25 and near > 0.99
    assert toys.found(torch.tensor([[1.0, -2.0]]).expand(100, 2)) == (1, 1.0)
    assert toys.found(torch.full((100, 2), 0.5)) == (0, 0.0)
    run("toys", monkeypatch, "grid", "--steps", 2, "--seeds", 1, "--width", 4, "--batch-size", 8)
    rows = re.findall(r"^\| ([\w, -]+) \| \d+ \| \d+ % \|$", capsys.readouterr().out, re.MULTILINE)
    assert rows == list(toys.LOSSES)
    assert Path("runs/toys/toys-grid.png").exists()
