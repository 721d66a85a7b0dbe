"""benchmarks/claims.py: its commands on a few images, its variants, its figures."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from conftest import ROOT, load, make_data

pytest.importorskip("matplotlib")
spec = importlib.util.spec_from_file_location("claims", ROOT / "benchmarks" / "claims.py")
claims = importlib.util.module_from_spec(spec)
spec.loader.exec_module(claims)

TINY = ["--data", "tiny", "--out", "out", "--batch-size", "4", "--seeds", "1", "--samples", "20", "--steps", "8"]
PICTURES = {"vanilla": 0, "dcgan": 1, "cgan": 1, "wgan": 2, "wgan_gp": 2, "stability": 1}
ALL, NEW = claims.VARIANTS, claims.ARCHITECTURES
LAYERS = {  # how many of a kind G and D have at 8 x 8, where that is not as usual
    "pooling": {"Conv2d": (1, 2), "ConvTranspose2d": (1, 0), "MaxPool2d": (0, 1), "Upsample": (1, 0)},
    "no BatchNorm in G": {"BatchNorm2d": (0, 0)},
    "no BatchNorm": {"BatchNorm2d": (0, 0)},
    "MLP as G": {"BatchNorm2d": (0, 0), "ConvTranspose2d": (0, 0), "Linear": (5, 0), "ReLU": (4, 0)},
    "hidden layers": {"Conv2d": (0, 1), "LeakyReLU": (0, 2), "Linear": (1, 2), "ReLU": (2, 0)},
    "ReLU in D": {"LeakyReLU": (0, 0), "ReLU": (1, 1)},
    "tanh in G": {"ReLU": (0, 0), "Tanh": (2, 0)},
    "LeakyReLU in G": {"LeakyReLU": (1, 1), "ReLU": (0, 0)},
    "tanh": {"LeakyReLU": (0, 0), "ReLU": (0, 0), "Tanh": (2, 1)},
}
USUAL = {"ConvTranspose2d": (2, 0), "Conv2d": (0, 2), "BatchNorm2d": (1, 0), "ReLU": (1, 0), "LeakyReLU": (0, 1)}


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few images, a classifier that has not been trained, three variants that stand for all, few settings."""
    make_data(Path("tiny"), channels=1)
    claims.load_judge.cache_clear()  # of another test's images
    torch.manual_seed(0)
    classifier = claims.evaluate.new_classifier(1, 2).eval()
    monkeypatch.setattr(claims.evaluate, "load_classifier", lambda *_: classifier)
    monkeypatch.setattr(claims, "VARIANTS", {kind: ALL[kind] for kind in ("as it is", "no BatchNorm in G", "MLP as G")})
    monkeypatch.setattr(claims, "ARCHITECTURES", {kind: NEW[kind] for kind in ("as it is", "tanh")})
    monkeypatch.setattr(claims, "POINTS", (0.25, 0.5, 1))
    monkeypatch.setattr(claims, "FACTORS", (5,))


@pytest.mark.parametrize("command", PICTURES)
def test_each_command_goes_on_from_what_it_has(command: str, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    assert claims.main([command, *TINY]) == 0
    first = capsys.readouterr().out
    assert "| real images |" in first and "nan" not in first
    assert len([*Path("out").glob("*.png")]) == PICTURES[command]
    assert '"ema": 0.0' in next(Path("out").glob("*/config.json")).read_text()
    scores = json.loads(next(Path("out").glob("*_8x*/scores.json")).read_text())
    assert 0 <= scores["8"].get("accuracy", command != "cgan") <= 1
    monkeypatch.setattr(claims, "score", None)  # nothing is measured anew
    assert claims.main([command, *TINY]) == 0
    assert capsys.readouterr().out == first


@pytest.mark.parametrize("kind", ALL | NEW)
def test_a_variant_is_what_it_says_with_the_same_input_and_output(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "VARIANTS", ALL | NEW)
    dcgan = load("dcgan.py")
    before, args = vars(dcgan).copy(), claims.Namespace(latent_dim=4, channels=1, image_size=8, lr=1e-3, cuda=False)
    with claims.variant(dcgan, kind):
        networks, optimizers = dcgan.build(args)
    assert vars(dcgan) == before  # the script is itself again
    assert {optimizer.param_groups[0]["betas"][0] for optimizer in optimizers} == {0.9 if kind == "beta1 0.9" else 0.5}
    g, d = networks.values()
    for name, count in (USUAL | LAYERS.get(kind, {})).items():
        assert tuple(sum(type(x).__name__ == name for x in network.modules()) for network in (g, d)) == count
    assert (d.layers[0].weight.std() < 0.03) == (kind != "PyTorch's init")
    images = g(torch.randn(5, 4))
    assert images.shape == (5, 1, 8, 8) and images.abs().max() <= 1 and d(images).shape == (5,)


def test_correlations_are_of_ranks_and_a_bound_has_two_ends() -> None:
    assert claims.spearman([1, 2, 3, 4], [2, 1, 4, 3]) == pytest.approx(0.6)  # 1 - 6 * 4 / (4 * 15)
    assert claims.share_at_bound(torch.tensor([0.01, -0.01, 0.00995, 0.005])) == pytest.approx(0.75)


def test_runs_of_other_options_are_not_mixed() -> None:
    Path("out/cgan_as_it_is__8x3_0").mkdir(parents=True)
    Path("out/cgan_as_it_is__8x3_0/config.json").write_text('{"data": "tiny", "batch_size": 5}')
    with pytest.raises(SystemExit, match="other options"):
        claims.main(["cgan", *TINY])


def test_a_training_that_breaks_counts_as_infinitely_far(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load("dcgan.py"), "main", lambda argv: load("dcgan.py").fail("not finite", 1))
    options = claims.Namespace(out="out", seeds=1, data="tiny", batch_size=4, steps=8)
    Path("out/dcgan_as_it_is__8x1_0").mkdir(parents=True)
    assert claims.measure(options, "dcgan")[1] == [[{"frechet": float("inf")}]]
