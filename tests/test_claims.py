"""benchmarks/claims.py: its commands on a few images, its variants, its figures."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from conftest import ROOT, load, make_images
from torch import nn

pytest.importorskip("matplotlib")
spec = importlib.util.spec_from_file_location("claims", ROOT / "benchmarks" / "claims.py")
claims = importlib.util.module_from_spec(spec)
spec.loader.exec_module(claims)

TINY = ["--image-size", "8", "--batch-size", "4", "--seeds", "1", "--samples", "20", "--steps", "8"]
PICTURES = {
    "vanilla": [],
    "dcgan": ["dcgan"],
    "cgan": ["cgan"],
    "wgan": ["wgan-loss", "wgan"],
    "wgan_gp": ["wgan_gp-weights", "wgan_gp"],
}


@pytest.fixture(autouse=True)
def no_training_of_classifiers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        claims.evaluate,
        "train_classifier",
        lambda images, labels, classes, device: claims.evaluate.Classifier(1, classes),
    )


def networks(script: str, kind: str) -> list[nn.Module]:
    module = load(script)
    with claims.variant(module, kind):
        other = module.Critic if hasattr(module, "Critic") else module.Discriminator
        return [module.Generator(4, 1, 8).apply(module.init_weights), other(1, 8).apply(module.init_weights)]


def count(network: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(layer, kind) for layer in network.modules())


@pytest.mark.parametrize("command", PICTURES)
def test_each_command_prints_its_table_and_goes_on_from_what_it_has(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_images(Path("images"), mode="L", per_class=10)
    typed = [command, "--data", "images", "--out", "out", *TINY]
    if command in ("dcgan", "wgan"):  # three variants stand for all
        kept = {kind: claims.VARIANTS[kind] for kind in ("as it is", "no BatchNorm in G", "MLP as G")}
        monkeypatch.setattr(claims, "VARIANTS", kept)
    monkeypatch.setattr(claims, "POINTS", (0.25, 0.5, 1))
    monkeypatch.setattr(claims, "FACTORS", (5,))
    assert claims.main(typed) == 0
    first = capsys.readouterr().out
    assert "| real images |" in first
    assert "nan" not in first
    assert all(Path("out", f"{name}.png").exists() for name in PICTURES[command])
    monkeypatch.setattr(claims, "score", None)  # nothing is measured anew
    assert claims.main(typed) == 0
    assert capsys.readouterr().out == first


def test_the_variants_leave_out_what_they_say() -> None:
    for script in ("dcgan.py", "wgan.py"):
        g, d = networks(script, "as it is")
        assert (count(g, nn.BatchNorm2d), count(d, nn.BatchNorm2d)) == (1, 0)  # at 8 x 8
        g, _ = networks(script, "no BatchNorm in G")
        assert count(g, nn.BatchNorm2d) == 0
        assert all(layer.bias is not None for layer in g.modules() if isinstance(layer, nn.ConvTranspose2d))
    g, _ = networks("dcgan.py", "MLP as G")
    assert count(g, nn.ConvTranspose2d) == 0 and count(g, nn.Linear) == 5
    g, d = networks("dcgan.py", "pooling")
    assert count(g, nn.Upsample) == 1 and count(d, nn.MaxPool2d) == 1
    g, d = networks("dcgan.py", "hidden layers")
    assert count(g, nn.Linear) == 1 and count(d, nn.Linear) == 2
    assert count(networks("dcgan.py", "LeakyReLU in G")[0], nn.ReLU) == 0
    assert count(networks("dcgan.py", "tanh in G")[0], nn.Tanh) == 2
    assert count(networks("dcgan.py", "ReLU in D")[1], nn.LeakyReLU) == 0
    std = [networks("dcgan.py", kind)[0].layers[0].weight.std().item() for kind in ("as it is", "PyTorch's init")]
    assert std[0] == pytest.approx(0.02, rel=0.1) and std[1] > 0.023


@pytest.mark.parametrize("kind", claims.VARIANTS)
def test_a_variant_has_the_same_input_and_output(kind: str) -> None:
    g, d = networks("dcgan.py", kind)
    images = g(torch.randn(5, 4))
    assert images.shape == (5, 1, 8, 8) and images.abs().max() <= 1
    assert d(images).shape == (5,)
    assert type(g).__name__ == "Generator"  # its name in the checkpoint


def test_the_script_is_itself_again_afterwards() -> None:
    dcgan = load("dcgan.py")
    before = vars(dcgan).copy()
    networks("dcgan.py", "beta1 0.9")
    assert vars(dcgan) == before


def test_momentum_reaches_the_optimizers() -> None:
    dcgan = load("dcgan.py")
    args = claims.Namespace(latent_dim=4, channels=1, image_size=8, lr=1e-3)
    with claims.variant(dcgan, "beta1 0.9"):
        _, optimizers = dcgan.build(args)
    assert [optimizer.param_groups[0]["betas"] for optimizer in optimizers] == [(0.9, 0.999)] * 2


def test_spearman_is_the_correlation_of_ranks() -> None:
    assert claims.spearman([1, 2, 3, 4], [1, 10, 100, 1000]) == pytest.approx(1)
    assert claims.spearman([4, 3, 2, 1], [1, 10, 100, 1000]) == pytest.approx(-1)
    assert claims.spearman([1, 2, 3, 4], [2, 1, 4, 3]) == pytest.approx(0.6)  # 1 - 6 * 4 / (4 * 15)


def test_the_share_at_the_bound_counts_both_ends() -> None:
    assert claims.share_at_bound(torch.tensor([0.01, -0.01, 0.00995, 0.005])) == pytest.approx(0.75)


def test_the_scores_are_kept_beside_the_run() -> None:
    make_images(Path("images"), mode="L", per_class=10)
    claims.main(["cgan", "--data", "images", "--out", "out", *TINY])
    scores = json.loads(next(Path("out").glob("*/scores.json")).read_text())
    assert list(scores) == ["2", "4", "8"]
    assert all(0 <= score["accuracy"] <= 1 for score in scores.values())


def test_runs_of_other_options_are_not_mixed() -> None:
    typed = ["cgan", "--data", "images", "--out", "out", *TINY]
    Path("out/cgan_as_it_is__8x3_0").mkdir(parents=True)
    Path("out/cgan_as_it_is__8x3_0/config.json").write_text('{"image_size": 8, "batch_size": 5}')
    with pytest.raises(SystemExit, match="other options"):
        claims.main(typed)


def test_a_training_that_breaks_counts_as_infinitely_far(monkeypatch: pytest.MonkeyPatch) -> None:
    make_images(Path("images"), mode="L", per_class=10)
    dcgan = load("dcgan.py")
    monkeypatch.setattr(dcgan, "main", lambda argv: dcgan.fail("not finite", 1))
    options = claims.Namespace(out="out", seeds=1, data="images", data_dir="data", image_size=8, batch_size=4, steps=8)
    Path("out/dcgan_as_it_is__8x1_0").mkdir(parents=True)
    _, rows = claims.measure(options, "dcgan")
    assert rows == [[{"frechet": float("inf")}]]
