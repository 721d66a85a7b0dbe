"""evaluate.py: its figures against closed forms, its commands on a run of each script."""

import math
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import EACH_SCRIPT, TINY, call, load, make_data
from PIL import Image, ImageSequence

import evaluate


@pytest.fixture
def run(finished, tmp_path: Path) -> Callable[[str], Path]:
    """run(script) is a copy of the finished run, to write into."""
    return lambda script: shutil.copytree(finished(script), tmp_path / script.removesuffix(".py"))


def add_test_images(data: Path, **options: object) -> Path:
    test = make_data(data / "test", 20, **options, seed=1)
    for name in ("images", "labels"):
        (test / f"{name}.npy").rename(data / f"test_{name}.npy")
    return data


def train(script: str, data: Path) -> Path:
    out = Path("run-of", script).resolve()
    call(script, "--data", data, "--out", out, *TINY)
    return out


def direct_log_likelihood(x: torch.Tensor, samples: torch.Tensor, sigma: float) -> torch.Tensor:
    squares = torch.cdist(x, samples, compute_mode="donot_use_mm_for_euclid_dist").square()
    constant = math.log(len(samples)) + x.shape[1] * math.log(sigma * math.sqrt(2 * math.pi))
    return (-squares / (2 * sigma**2)).logsumexp(1) - constant


def test_log_likelihood_is_the_formula() -> None:
    torch.manual_seed(0)
    x, samples = torch.rand(2, 130, 64, dtype=torch.float64)
    sigmas = [0.1, 0.2, 1.0]
    expected = torch.stack([direct_log_likelihood(x, samples, sigma) for sigma in sigmas])
    found = evaluate.log_likelihood(x, samples, sigmas)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)


def test_parzen_takes_the_sigma_that_is_best_for_the_images_it_names(data: Path, capsys) -> None:
    call("evaluate.py", "parzen", train("dcgan.py", add_test_images(data)), "--samples", 40)
    out = capsys.readouterr().out
    assert out.isascii()  # some terminals take nothing else
    (row,) = [line.split() for line in out.splitlines() if line.startswith("training images")]
    images = torch.from_numpy(np.load(data / "images.npy")).flatten(1).double() / 255
    test = torch.from_numpy(np.load(data / "test_images.npy")).flatten(1).double() / 255
    samples, valid = images[:40], images[64 * 5 // 6 :]
    sigmas = np.logspace(-1, 0, 55)
    best = max(sigmas, key=lambda sigma: direct_log_likelihood(valid, samples, sigma).mean())
    expected = direct_log_likelihood(test, samples, best).mean().item()
    assert float(row[3]) == pytest.approx(best, abs=1e-3)
    assert float(row[4]) == pytest.approx(expected, abs=0.06)


@pytest.mark.parametrize("border", [0, 2])
def test_parzen_cuts_off_a_black_border(border: int, tmp_path: Path, capsys) -> None:
    size = 32 - 2 * border
    data = make_data(tmp_path / "data", channels=1, size=size)
    for path in add_test_images(data, channels=1, size=size).glob("*images.npy"):
        np.save(path, np.pad(np.load(path), [(0, 0), (0, 0), (border, border), (border, border)]))
    call("evaluate.py", "parzen", train("dcgan.py", data), "--samples", 10)
    assert f"(20 x {size**2} pixels)" in capsys.readouterr().out


def test_held_out_are_the_test_images_or_else_a_sixth(data: Path, finished) -> None:
    out = train("dcgan.py", add_test_images(data))
    found, held_out, text = evaluate.split_data(evaluate.load_run(out))
    assert np.array_equal(found.images, np.load(data / "images.npy"))
    assert np.array_equal(held_out.images, np.load(data / "test_images.npy"))
    assert np.array_equal(held_out.labels, np.load(data / "test_labels.npy"))
    assert text == f"the test images of {data}"
    found, held_out, text = evaluate.split_data(evaluate.load_run(finished("dcgan.py")))
    assert [len(part) for part in (*found, *held_out)] == [53, 53, 11, 11]
    distances, _ = evaluate.nearest(held_out.images, found.images, 1, "cpu")
    assert distances.min() > 0
    assert "one training image in 6" in text


@pytest.mark.parametrize("script", ["dcgan.py", "cgan.py"])
def test_samples_are_drawn_by_the_averaged_generator(script: str, finished) -> None:
    found = evaluate.load_run(finished(script))
    networks, _ = found.script.make_networks(found.args, found.checkpoint)
    z = torch.randn(70, 4, generator=torch.Generator().manual_seed(found.args.seed))
    labels = torch.arange(70) % 2
    averaged = found.script.sample(networks["generator_ema"], found.args, z, labels)
    last = found.script.sample(networks["generator"].eval(), found.args, z, labels)
    (images,) = found.draw(70)
    (untrained,) = found.draw(70, trained=False)
    assert torch.equal(images, averaged)
    assert not torch.allclose(images, last)
    assert not torch.allclose(images, untrained)


def test_frechet_is_the_closed_form() -> None:
    torch.manual_seed(2)
    x, y = torch.randn(2, 1000, 5, dtype=torch.float64) @ torch.rand(2, 5, 5, dtype=torch.float64)
    x += 0.5
    a, b = x.T.cov(correction=0), y.T.cov(correction=0)
    cross = np.sqrt(np.linalg.eigvals((a @ b).numpy()).real).sum()  # Tr (AB)^1/2
    expected = (x.mean(0) - y.mean(0)).square().sum() + a.trace() + b.trace() - 2 * cross
    assert evaluate.frechet(x, y) == pytest.approx(expected.item(), abs=1e-8)


def test_nearest_finds_what_all_distances_in_float64_find() -> None:
    torch.manual_seed(0)
    x = torch.randint(256, (9, 1, 6, 6), dtype=torch.uint8)
    images = torch.randint(256, (50, 1, 6, 6), dtype=torch.uint8)
    distances, index = evaluate.nearest(x, images, 3, "cpu", max_values=7 * 6 * 6)
    all_distances = torch.cdist(x.flatten(1).double() / 255, images.flatten(1).double() / 255)
    expected = all_distances.topk(3, largest=False)
    assert torch.equal(index, expected.indices)
    torch.testing.assert_close(distances.double(), expected.values, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def digits() -> evaluate.ImageSet:
    return evaluate.ImageSet(*load("dcgan.py").digits(800))


@pytest.fixture(scope="module")
def judge(digits, tmp_path_factory) -> evaluate.Judge:
    """Compares with the first 700 digits; the others are held out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("judge"))  # data/cache is made there
        torch.set_num_threads(2)  # it takes long
        judge = evaluate.Judge(
            evaluate.ImageSet(digits.images[:700], digits.labels[:700]), 10, "cpu"
        )
        torch.set_num_threads(1)  # as conftest.py has it
        return judge


def test_held_out_images_score_as_real_ones_should(judge, digits, monkeypatch) -> None:
    held_out = digits.images[700:]
    found = judge(held_out, digits.labels[700:])
    assert (found["images"], found["classes"]) == (100, 10)
    assert found["accuracy"] > 0.8
    assert found["entropy"] > 0.95
    assert 0 < found["rarest"] <= 0.1
    assert found["diversity"] == pytest.approx(1, abs=0.1)
    assert 0 < found["frechet"] < judge(held_out.flip(3))["frechet"] / 3
    monkeypatch.setattr(evaluate, "load_classifier", lambda *_: judge.classifier)
    found = evaluate.Judge(digits, 10, "cpu", reference=held_out)(held_out)
    assert (found["frechet"], found["diversity"]) == (pytest.approx(0, abs=1e-3), 1)


def stripes(count: int, seed: int) -> evaluate.ImageSet:
    """Images (count, 3, 32, 32) of vertical (class 0) and horizontal stripes, randomly coloured."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    periods, phases = torch.rand(2, count, 1, 1, 1, generator=random)
    waves = (torch.arange(32) / (2 + periods) + 7 * phases).sin()  # (count, 1, 1, 32)
    waves = torch.where(labels.view(-1, 1, 1, 1) == 1, waves.mT, waves)  # mT: (count, 1, 32, 1)
    images = waves.expand(-1, 3, 32, 32) * torch.randn(count, 3, 1, 1, generator=random)
    return evaluate.ImageSet(evaluate.to_bytes(images.clamp(-1, 1)), labels)


def test_the_classifier_of_images_in_colour_learns_and_takes_mirror_images_for_equal() -> None:
    few, more = stripes(40, seed=0), stripes(40, seed=1)
    classifier = evaluate.load_classifier(*few, 2, "cpu")
    features, predicted = evaluate.classify(classifier, more.images)
    assert features.shape == (40, 128)
    assert (predicted == more.labels).double().mean() > 0.9
    mirrored, _ = evaluate.classify(classifier, more.images.flip(3))
    assert torch.equal(mirrored, features)


def test_a_classifier_is_kept_for_its_images_and_its_number_of_classes() -> None:
    few = stripes(4, seed=0)
    weights = evaluate.load_classifier(*few, 2, "cpu").state_dict()
    evaluate.load_classifier(few.images.flip(0), few.labels, 2, "cpu")
    evaluate.load_classifier(*few, 3, "cpu")
    before = {path: path.stat().st_mtime_ns for path in Path("data/cache").iterdir()}
    assert len(before) == 3
    again = evaluate.load_classifier(*few, 2, "cpu").state_dict()
    assert all(torch.equal(again[name], weights[name]) for name in weights)
    assert {path: path.stat().st_mtime_ns for path in Path("data/cache").iterdir()} == before


def test_whitened_patches_have_equal_second_moments() -> None:
    images = stripes(30, seed=0).images
    images = (images * torch.rand(images.shape, generator=torch.Generator().manual_seed(0))).byte()
    conv = torch.nn.Conv2d(3, 24, 2)
    evaluate.whiten(conv, images)
    assert not any(parameter.requires_grad for parameter in conv.parameters())
    outputs = conv(evaluate.to_floats(images)).transpose(0, 1).flatten(1)  # (24, N)
    moments = outputs @ outputs.T / outputs.shape[1]
    eye = torch.eye(12)
    expected = torch.cat([torch.cat([eye, -eye], 1), torch.cat([-eye, eye], 1)])  # both signs
    torch.testing.assert_close(moments, expected, rtol=0, atol=0.05)


def test_copies_of_training_images_are_memorised(digits) -> None:
    images = digits.images[:700]
    copies = images[:50].clone()
    copies[:, :, 0, 0] = 200  # one pixel changed
    both = torch.cat([copies, digits.images[700:750]])
    assert evaluate.memorised(copies, images, "cpu") > 0.95
    assert evaluate.memorised(both, images, "cpu") == pytest.approx(0.5, abs=0.05)
    assert evaluate.memorised(copies, copies.repeat(2, 1, 1, 1), "cpu") == 1


def test_a_class_drawn_rarely_or_alike_is_seen(judge, digits) -> None:
    three = digits.images[digits.labels == 3][:1].expand(200, -1, -1, -1)
    five = digits.images[digits.labels == 5][:1]
    found = judge(torch.cat([three, five]))
    assert (found["classes"], found["rarest"], found["diversity"]) == (1, 0, 0)
    drawn = digits.images[:700].clone()
    drawn[digits.labels[:700] == 3] = three[0]
    assert judge(drawn)["least diversity"] < 0.5


def test_images_of_every_size_are_judged_at_32x32() -> None:
    for size in (8, 28, 32, 64):
        found = evaluate.to_32(torch.full((2, 3, size, size), 7, dtype=torch.uint8))
        assert (found.shape, found.dtype) == ((2, 3, 32, 32), torch.uint8)
        assert (found[..., 2:30, 2:30] == 7).all()
        assert (found == 7).all() == (size != 28)  # which gets a black border


def test_score_trains_its_classifier_once(run, capsys, untrained_classifiers) -> None:
    first, second = run("wgan.py"), run("cgan.py")
    call("evaluate.py", "score", first, "--samples", 8)
    alone = capsys.readouterr().out.splitlines()[-2]
    assert len(list(Path("data/cache").iterdir())) == 1
    call("evaluate.py", "score", first, second, "--samples", 8)
    assert len(untrained_classifiers) == 1
    rows = capsys.readouterr().out.splitlines()[-5:]
    names = [row.split("  ")[0] for row in rows]
    assert names == ["held-out", str(first), str(second), "untrained wgan", "untrained cgan"]
    assert rows[1].split() == alone.split()
    assert rows[1].endswith(" -")  # wgan was asked for no class
    assert rows[2].endswith("%")


@EACH_SCRIPT
@pytest.mark.usefixtures("untrained_classifiers")
def test_every_command_takes_a_run_of_every_script(script: str, finished, run) -> None:
    pytest.importorskip("matplotlib")
    out = run(script)
    cache = finished(script).with_name("cache")  # all have the same classifier
    cache.mkdir(exist_ok=True)
    Path("data").mkdir()
    Path("data/cache").symlink_to(cache)
    for command in ("score", "parzen"):
        call("evaluate.py", command, out, "--samples", 6)
    for command in ("neighbours", "interpolate", "film", "curves"):
        call("evaluate.py", command, out)
    rows = 2 + 2 if load(script).CONDITIONAL else 8
    assert Image.open(out / "neighbours.png").size == (16 * 8, 4 * 8)
    assert Image.open(out / "interpolate.png").size == (10 * 8, rows * 8)
    for name in ("neighbours.png", "interpolate.png", "training.gif", "curves.png"):
        assert np.asarray(Image.open(out / name)).std() > 0


def test_a_training_image_is_its_own_neighbour(run, monkeypatch) -> None:
    out = run("dcgan.py")
    images = evaluate.load_training_data(evaluate.load_run(out)).images[:16]
    monkeypatch.setattr(evaluate.Run, "draw", lambda *_: iter([evaluate.to_floats(images)]))
    call("evaluate.py", "neighbours", out)
    samples, first, second, _ = np.asarray(Image.open(out / "neighbours.png")).reshape(4, -1)
    assert np.array_equal(samples, first)
    assert not np.array_equal(samples, second)


@pytest.mark.parametrize("script", ["vanilla_gan.py", "cgan.py", "acgan.py"])
def test_interpolate_starts_and_ends_at_samples(script: str, run) -> None:
    out = run(script)
    call("evaluate.py", "interpolate", out)
    found = evaluate.load_run(out)
    rows = 2 if found.script.CONDITIONAL else 8
    start, end = torch.randn(2, rows, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(rows)
    ends = [(0, 0, start, labels), (0, 9, end, labels)]  # row, column
    if found.script.CONDITIONAL:  # below, from class to class
        ends += [(2, 0, start, labels), (2, 9, start, labels.flip(0))]
    pixels = np.asarray(Image.open(out / "interpolate.png")).astype(int)
    for row, column, z, y in ends:
        images = found.script.sample(found.load_generator(), found.args, z, y)
        part = pixels[row * 8 : (row + rows) * 8, column * 8 : column * 8 + 8]
        assert np.abs(part - np.asarray(found.script.to_picture(images))).max() <= 1
    film = [
        np.asarray(f.convert("RGB"))
        for f in ImageSequence.Iterator(Image.open(out / "interpolate.gif"))
    ]
    assert film[0].shape == (8, rows * 8, 3)
    assert np.array_equal(film[1], film[-2])  # there and back
    assert not np.array_equal(film[0], film[len(film) // 2])


@pytest.mark.parametrize("count", [1, 3, 250])
def test_film_shows_at_most_100_pictures_in_the_order_of_steps(count: int) -> None:
    Path("samples").mkdir()
    for i in range(count):
        step = 999_900 + 50 * i  # seven digits from the third on
        Image.new("L", (4, 4), i).save(f"samples/step-{step:06d}.png")
    call("evaluate.py", "film", ".")
    frames = ImageSequence.Iterator(Image.open("training.gif"))
    shades = [frame.convert("L").getpixel((0, 0)) for frame in frames]
    assert len(shades) == min(count, 100)
    assert shades == sorted(shades)
    assert (shades[0], shades[-1]) == (0, count - 1)


def test_curves_overlays_runs_of_different_columns() -> None:
    pytest.importorskip("matplotlib")
    for name, column in (("one", "d_loss"), ("two", "wasserstein")):
        Path(name).mkdir()
        Path(name, "metrics.csv").write_text(f"step,epoch,{column},seconds\n50,1,0.5,2\n")
    call("evaluate.py", "curves", "one", "two", "--out", "both.png")
    call("evaluate.py", "curves", "one")
    assert Image.open("both.png").height > 1.5 * Image.open("one/curves.png").height


def test_fid_gives_torch_fidelity_samples_and_as_many_real_images(run, capsys, monkeypatch) -> None:
    given = {}

    def calculate_metrics(**options: object) -> dict[str, float]:
        given.update(options)
        kid, inception = "kernel_inception_distance", "inception_score"
        names = ["frechet_inception_distance", f"{kid}_mean", f"{kid}_std", f"{inception}_mean"]
        names += [f"{inception}_std", "precision", "recall"]
        return {name: i + 0.5 for i, name in enumerate(names)}

    stand_in = SimpleNamespace(calculate_metrics=calculate_metrics)
    monkeypatch.setitem(sys.modules, "torch_fidelity", stand_in)
    out = run("cgan.py")
    loaded = evaluate.load_run(out)
    images = evaluate.load_training_data(loaded).images
    _, held_out, _ = evaluate.split_data(loaded)
    samples = torch.cat([evaluate.to_bytes(x) for x in loaded.draw(7)])
    for against, real in (("test", held_out.images), ("train", images)):
        call("evaluate.py", "fid", out, "--samples", 7, "--against", against, "--weights", "w.pt")
        first, second = (torch.stack([*given[key]]) for key in ("input1", "input2"))
        assert torch.equal(first, samples)
        rows = {x.numpy().tobytes() for x in real}
        assert len({x.numpy().tobytes() for x in second} & rows) == len(second) == 7
        assert given["feature_extractor_weights_path"] == "w.pt"
        words = re.findall(r"^(\w+) +([\d.]+)", capsys.readouterr().out, re.MULTILINE)[-5:]
        expected = ["FID 0.50", "KID 1.50000", "IS 3.50", "precision 5.500", "recall 6.500"]
        assert [" ".join(pair) for pair in words] == expected


def test_fid_names_what_has_to_be_installed(refused, finished, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    assert "pip install torch-fidelity" in refused(
        "evaluate.py", "fid", finished("dcgan.py"), code=1
    )


def test_fid_by_torch_fidelity_is_zero_for_the_same_images(run, capsys, monkeypatch) -> None:
    """With weights that the test makes, of the right shapes: Inception's must be downloaded."""
    inception = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    network = inception.FeatureExtractorInceptionV3
    torch.manual_seed(0)
    torch.save({}, "none.pt")
    with monkeypatch.context() as patch:
        patch.setattr(network, "load_state_dict", lambda *_: None)
        stand_in = network("stand-in", ["2048"], "none.pt")
    for weight in stand_in.parameters():
        if weight.ndim > 1:
            torch.nn.init.kaiming_normal_(weight)  # so that features do not vanish
    torch.save(stand_in.state_dict(), "weights.pt")
    out = run("dcgan.py")
    _, held_out, _ = evaluate.split_data(evaluate.load_run(out))
    distances = []
    for samples in (held_out.images, held_out.images.flip(2)):
        monkeypatch.setattr(evaluate.Run, "draw", lambda *_, x=samples: [evaluate.to_floats(x)])
        call("evaluate.py", "fid", out, "--weights", "weights.pt")
        distances += re.findall(r"^FID +(-?[\d.]+)", capsys.readouterr().out, re.MULTILINE)
    same, other = map(float, distances)
    assert abs(same) < 0.01 < other


def test_bad_usage_is_refused(refused, monkeypatch) -> None:
    for words in ("", "judge run", "score", "parzen run --samples 1", "fid run --out x"):
        assert "error: " in refused("evaluate.py", *words.split())
    for command in ("score", "parzen", "neighbours", "interpolate", "film", "curves", "fid"):
        assert "nowhere" in refused("evaluate.py", command, "nowhere", code=1)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "pip install matplotlib" in refused("evaluate.py", "curves", ".", code=1)
    if not torch.cuda.is_available():
        assert "no GPU" in refused("evaluate.py", "score", "run", "--cuda")


def test_a_run_of_an_unknown_script_or_an_older_version_is_refused(run, refused) -> None:
    out = run("dcgan.py")
    checkpoint = torch.load(out / "checkpoint.pt", weights_only=True)
    for name in ("stranger", "evaluate"):
        Path(out, f"{name}.py").write_text("raise AssertionError")  # is not executed
        torch.save(checkpoint | {"script": name}, out / "checkpoint.pt")
        assert f"a run of {name}" in refused("evaluate.py", "score", out, code=1)
    del checkpoint["args"]["sample_every"]
    torch.save(checkpoint, out / "checkpoint.pt")
    assert "older version of dcgan.py" in refused("evaluate.py", "score", out, code=1)


def test_data_that_do_not_fit_are_refused(data: Path, run, refused, capsys) -> None:
    out = train("dcgan.py", data)
    moved = data.rename("moved")
    assert str(data) in refused("evaluate.py", "neighbours", out, code=1)
    call("evaluate.py", "neighbours", out, "--data", moved)
    assert "separately" in refused("evaluate.py", "score", run("dcgan.py"), out, code=1)
    (moved / "classes.txt").unlink()
    assert "other sizes" in refused("evaluate.py", "parzen", out, "--data", moved, code=1)
    out = train("lsgan.py", moved)
    call("evaluate.py", "parzen", out, "--samples", 4)
    capsys.readouterr()
    call("evaluate.py", "score", out, "--samples", 4)  # what can be said without classes
    lines = capsys.readouterr().out.splitlines()
    assert "no classes" in lines[2]
    assert lines[3].split() == ["images", "memorised"]
    assert lines[5].split() == [str(out), "4", "0.00%"]


def test_a_set_of_a_few_images_is_too_small_to_score(refused) -> None:
    out = train("dcgan.py", make_data(Path("few"), 5))
    assert "at least a dozen images" in refused("evaluate.py", "score", out, code=1)
    call("evaluate.py", "parzen", out, "--samples", 4)


@pytest.mark.usefixtures("untrained_classifiers")
def test_one_folder_in_two_spellings_is_one_set_and_an_unwritable_cache_no_obstacle(
    data: Path, capsys
) -> None:
    runs = [train("dcgan.py", data), train("lsgan.py", f"{data.parent}/./{data.name}/")]
    Path("data/cache").write_text("no folder")
    call("evaluate.py", "score", *runs, "--samples", 4)
    said = capsys.readouterr()
    assert "run-of/lsgan.py" in said.out
    assert "is not kept for the next time: " in said.err


@pytest.mark.parametrize("message", ["CUDA out of memory. Tried to allocate 1 GiB", "other"])
def test_only_a_lack_of_memory_is_told_in_a_line(message: str, monkeypatch) -> None:
    monkeypatch.setattr(evaluate, "load_run", Mock(side_effect=RuntimeError(message)))
    expected = RuntimeError if message == "other" else SystemExit
    with pytest.raises(expected, match=r"other|Fewer --samples"):
        call("evaluate.py", "parzen", "run")


def test_ctrl_c_ends_with_130(monkeypatch) -> None:
    monkeypatch.setattr(evaluate, "load_run", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(SystemExit, match="130"):
        call("evaluate.py", "score", "run")
