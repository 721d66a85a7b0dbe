"""The programs in benchmarks/ on tiny tasks."""

import gc
import re
import sys
import weakref
from argparse import Namespace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import ROOT, call, load, make_data

pytest.importorskip("matplotlib")
sys.path.insert(0, str(ROOT / "benchmarks"))
import claims
import speedrun
import throughput
import toys

TINY = ["--data", "tiny", "--out", "out", "--batch-size", "4", "--seeds", "1"]
TINY += ["--samples", "20", "--steps", "8"]
PICTURES = {"vanilla": 0, "dcgan": 1, "cgan": 0, "wgan": 2, "wgan_gp": 2, "stability": 1}
ALL = claims.VARIANTS | claims.ARCHITECTURES


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


def test_the_networks_of_the_floor_live_as_long_as_its_graph(monkeypatch) -> None:
    """A graph holds the addresses of their memory, not the memory."""
    script = load("dcgan.py")
    args, _ = script.parse_args(["--no-cuda", "--width", "2"])
    args.channels, args.image_size, args.classes = 1, 8, ["0"]
    optimizer = weakref.WeakSet()
    make_networks = script.make_networks

    def make(*inputs: object) -> tuple:
        networks, optimizers = make_networks(*inputs)
        optimizer.add(optimizers[0])
        return networks, optimizers

    monkeypatch.setattr(script, "make_networks", make)
    monkeypatch.setattr(script, "record", lambda _: lambda: {})  # as on a GPU, this keeps nothing
    monkeypatch.setattr(throughput, "WARM_UP", 0)
    args.cuda = True
    floor = throughput.make_floor(script, args)
    gc.collect()
    assert len(optimizer) == 1
    del floor
    gc.collect()
    assert len(optimizer) == 0


def run_here(command: list[str], **_: object) -> None:
    """For subprocess.run: a script's command without another Python."""
    call(Path(command[1]).name, *command[2:])


def test_speedrun_trains_until_the_goal_is_reached_or_gives_up(capsys, monkeypatch) -> None:
    data = make_data(Path("data/mnist-32"))
    for name in ("images", "labels"):
        np.save(data / f"test_{name}.npy", np.load(data / f"{name}.npy")[::2])
    # After so short a training real figures would say nothing
    good = {"accuracy": 1.0, "diversity": 1.0, "rarest": 0.1}
    scores = [good | {"frechet": frechet} for frechet in (10.0, 40.0, 30.0)]
    monkeypatch.setattr(speedrun.evaluate.Judge, "__call__", Mock(side_effect=scores))
    monkeypatch.setattr(speedrun.subprocess, "run", run_here)
    race = speedrun.Race("--batch-size 4 --width 2", 1, 1, 2, frechet=12, accuracy=0.9)
    monkeypatch.setitem(speedrun.RACES, "cgan", race)
    speedrun.main(["cgan", "--final", "--seeds", "2", "--samples", "20", "--no-cuda"])
    out = capsys.readouterr().out
    stops = re.findall(r"^\| cgan \| (\d \| \d) \| \d+ \| [\d.]+ \| 10.0% \|", out, re.MULTILINE)
    assert stops == ["0 | 1", "1 | 1", "1 | 2"]
    assert re.search(r"\| \d+, inf \| inf \|$", out)


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


@pytest.mark.parametrize("command", PICTURES)
def test_each_command_continues_from_what_it_has(command: str, capsys, monkeypatch) -> None:
    make_data(Path("tiny"), channels=1)
    few = {kind: ALL[kind] for kind in ("as it is", "no BatchNorm in G", "MLP as G")}
    stable = {kind: ALL[kind] for kind in ("MLP as G", "no BatchNorm")}
    small = {"VARIANTS": few, "ARCHITECTURES": stable, "WIDTH": 2, "POINTS": (0.25, 0.5, 1)}
    for name, value in (small | {"FACTORS": (5,)}).items():
        monkeypatch.setattr(claims, name, value)
    claims.main([command, *TINY])
    first = capsys.readouterr().out
    assert "nan" not in first
    assert len(list(Path("out").glob("*.png"))) == PICTURES[command]
    monkeypatch.setattr(claims, "score", None)  # nothing is measured again
    claims.main([command, *TINY])
    assert capsys.readouterr().out == first


def test_variants_differ_from_each_other_and_leave_the_script_as_it_was() -> None:
    dcgan = load("dcgan.py")
    before = vars(dcgan).copy()
    args = Namespace(latent_dim=4, channels=1, image_size=16, width=8, lr=1e-3, cuda=False)
    kinds = {}
    for kind in ALL:
        torch.manual_seed(0)
        with claims.variant(dcgan, kind):
            networks, optimizers = dcgan.build(args)
        assert vars(dcgan) == before
        generator, discriminator = networks.values()
        images = generator(torch.randn(5, 4))
        kinds[str([networks, optimizers, images])] = kind
        assert (images.shape, discriminator(images).shape) == ((5, 1, 16, 16), (5,))
    assert list(kinds.values()) == list(ALL)
