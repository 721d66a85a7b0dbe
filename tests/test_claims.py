"""benchmarks/claims.py: its commands on a few images, its variants, its figures."""

import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from conftest import ROOT, load, make_data

pytest.importorskip("matplotlib")
sys.path.insert(0, str(ROOT / "benchmarks"))
import claims

TINY = ["--data", "tiny", "--out", "out", "--batch-size", "4", "--seeds", "1"]
TINY += ["--samples", "20", "--steps", "8"]
PICTURES = {"vanilla": 0, "dcgan": 1, "cgan": 0, "wgan": 2, "wgan_gp": 2, "stability": 1}
ALL = claims.VARIANTS | claims.ARCHITECTURES
USUAL = {"ConvTranspose2d": 2, "Conv2d": 2, "BatchNorm2d": 1, "ReLU": 1, "LeakyReLU": 1, "Tanh": 1}
LAYERS = {  # how many of a kind both networks have at 8 x 8, where it is not as usual
    "pooling": {"ConvTranspose2d": 1, "Conv2d": 3, "MaxPool2d": 1, "Upsample": 1},
    "no BatchNorm in G": {"BatchNorm2d": 0},
    "no BatchNorm": {"BatchNorm2d": 0},
    "MLP as G": {"BatchNorm2d": 0, "ConvTranspose2d": 0, "Linear": 5, "ReLU": 4},
    "hidden layers": {"Conv2d": 1, "LeakyReLU": 2, "Linear": 3, "ReLU": 2},
    "ReLU in D": {"LeakyReLU": 0, "ReLU": 2},
    "tanh in G": {"ReLU": 0, "Tanh": 2},
    "LeakyReLU in G": {"LeakyReLU": 2, "ReLU": 0},
    "tanh": {"LeakyReLU": 0, "ReLU": 0, "Tanh": 3},
}


@pytest.mark.parametrize("command", PICTURES)
def test_each_command_continues_from_what_it_has(command: str, capsys, monkeypatch) -> None:
    make_data(Path("tiny"), channels=1)
    claims.load_judge.cache_clear()  # of another test's images
    few = {kind: ALL[kind] for kind in ("as it is", "no BatchNorm in G", "MLP as G")}
    monkeypatch.setattr(claims, "VARIANTS", few)
    monkeypatch.setattr(claims, "POINTS", (0.25, 0.5, 1))
    monkeypatch.setattr(claims, "FACTORS", (5,))
    monkeypatch.setattr(claims, "WIDTH", 2)
    claims.main([command, *TINY])
    first = capsys.readouterr().out
    assert "nan" not in first
    assert len(list(Path("out").glob("*.png"))) == PICTURES[command]
    monkeypatch.setattr(claims, "score", None)  # nothing is measured again
    claims.main([command, *TINY])
    assert capsys.readouterr().out == first


@pytest.mark.parametrize("kind", ALL)
def test_a_variant_is_what_it_says(kind: str) -> None:
    dcgan = load("dcgan.py")
    before = vars(dcgan).copy()
    args = Namespace(latent_dim=4, channels=1, image_size=8, width=16, lr=1e-3, cuda=False)
    with claims.variant(dcgan, kind):
        networks, optimizers = dcgan.build(args)
    assert vars(dcgan) == before  # the script is itself again
    beta1 = 0.9 if kind == "beta1 0.9" else 0.5
    assert [x.param_groups[0]["betas"][0] for x in optimizers] == [beta1, beta1]
    names = [type(module).__name__ for module in networks.modules()]
    expected = USUAL | LAYERS.get(kind, {})
    assert {name: names.count(name) for name in expected} == expected
    generator, discriminator = networks.values()
    assert (discriminator.layers[0].weight.std() > 0.03) == (kind == "PyTorch's init")
    images = generator(torch.randn(5, 4))
    assert (images.shape, discriminator(images).shape) == ((5, 1, 8, 8), (5,))


def test_correlations_are_of_ranks_and_a_bound_has_two_ends() -> None:
    assert claims.spearman([1, 2, 3, 4], [2, 1, 4, 3]) == pytest.approx(0.6)  # 1 - 6 * 4 / (4 * 15)
    assert claims.share_at_bound(torch.tensor([0.01, -0.01, 0.00995, 0.005])) == 0.75


def test_a_training_that_breaks_counts_as_infinitely_far(monkeypatch) -> None:
    monkeypatch.setattr(load("dcgan.py"), "all_finite", lambda _: False)
    make_data(Path("tiny"), channels=1)
    options = Namespace(out="out", seeds=1, data="tiny", batch_size=4, steps=2)
    _, scores = claims.measure(options, "dcgan")
    assert scores == {2: [{"frechet": float("inf")}]}
