"""benchmarks/throughput.py, speedrun.py and toys.py on tiny tasks; claims.py has its own tests."""

import re
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import ROOT, load, make_data

pytest.importorskip("matplotlib")
sys.path.insert(0, str(ROOT / "benchmarks"))
import speedrun
import throughput
import toys


def test_throughput_compares_a_script_with_its_floor_and_the_textbook(capsys, monkeypatch) -> None:
    digits = load("dcgan.py").digits
    monkeypatch.setattr(load("dcgan.py"), "digits", lambda size: digits(256, size))
    monkeypatch.setattr(throughput, "CPU_TURN", 0.01)
    sizes = ["--image-size", "8", "--width", "2", "--seconds", "0.1", "--no-cuda"]
    throughput.main(["dcgan", *sizes])
    pattern = r"^\| dcgan.py \| 128 \| (\w+) \| [\d,]+ \| [\d.]+ \| [\d.]+ \| [\d.]+ \|$"
    rows = re.findall(pattern, capsys.readouterr().out, re.MULTILINE)
    assert rows == ["float32", "bfloat16"]
    assert load("dcgan.py").tqdm.__name__ == "tqdm"  # the script is itself again


def test_speedrun_trains_until_the_goal_is_reached_or_gives_up(capsys, monkeypatch) -> None:
    data = make_data(Path("data/mnist-32"))
    for name in ("images", "labels"):
        np.save(data / f"test_{name}.npy", np.load(data / f"{name}.npy")[::2])
    # After so short a training real figures would say nothing
    good = {"accuracy": 1.0, "diversity": 1.0, "rarest": 0.1}
    scores = [good | {"frechet": frechet} for frechet in (10.0, 40.0, 30.0)]
    monkeypatch.setattr(speedrun.evaluate.Judge, "__call__", Mock(side_effect=scores))
    race = speedrun.Race("--batch-size 4 --width 2", 1, 1, 2, frechet=12, accuracy=0.9)
    monkeypatch.setitem(speedrun.RACES, "cgan", race)
    speedrun.main(["cgan", "--final", "--seeds", "2", "--samples", "20", "--no-cuda"])
    out = capsys.readouterr().out
    stops = re.findall(r"^\| cgan \| (\d \| \d) \| \d+ \| [\d.]+ \| 10.0% \|", out, re.MULTILINE)
    assert stops == ["0 | 1", "1 | 1", "1 | 2"]
    assert re.search(r"\| \d+, inf \| inf \|$", out)


def test_speedrun_keeps_the_last_training_images_to_judge_by(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", count=50_010, channels=1, size=2)
    folder = speedrun.split(data, tmp_path / "split")
    for name in ("images", "labels"):
        array = np.load(data / f"{name}.npy")
        assert np.array_equal(np.load(folder / f"{name}.npy"), array[:50_000])
        assert np.array_equal(np.load(folder / f"test_{name}.npy"), array[50_000:])


def test_the_best_gaussian_by_kl_has_the_mixtures_moments_and_by_reverse_kl_is_at_a_mode() -> None:
    mean, std = toys.best_gaussian("kl")
    variance = toys.WIDE**2 + 4 * toys.CENTRE**2 * toys.LEFT * (1 - toys.LEFT)
    assert mean.tolist() == pytest.approx([toys.CENTRE * (1 - 2 * toys.LEFT), 0], abs=0.01)
    assert std.tolist() == pytest.approx([variance**0.5, toys.WIDE], abs=0.01)
    assert toys.best_gaussian("reverse-kl")[0][0] == pytest.approx(-toys.CENTRE, abs=0.02)


def test_toys_train_every_loss_and_count_the_modes(capsys) -> None:
    torch.manual_seed(0)
    points = toys.grid(5000)
    assert toys.count_modes(points) == 25
    assert toys.share_near(points) > 0.99
    assert toys.count_modes(torch.ones(100, 2)) == 1
    assert toys.share_near(torch.full((100, 2), 0.5)) == 0
    toys.main(["grid", "--steps", "2", "--seeds", "1", "--width", "4", "--batch-size", "8"])
    rows = re.findall(r"^\| ([\w, -]+) \| \d+ \| \d+ % \|$", capsys.readouterr().out, re.MULTILINE)
    assert rows == list(toys.LOSSES)
