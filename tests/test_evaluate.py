"""evaluate.py: its figures against closed forms and float64, its commands on a run of each script."""

import json
import math
import shutil
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SCRIPTS, TINY, call, load, make_data
from PIL import Image

import evaluate

COMMANDS = ["score", "parzen", "neighbours", "interpolate", "curves", "fid"]


@pytest.fixture
def run(finished: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """run(script) is a copy of the finished run, to write into."""

    def copy(script: str) -> Path:
        folder = tmp_path / script[:-3]
        return folder if folder.exists() else Path(shutil.copytree(finished(script), folder))

    return copy


def put_test_images(folder: Path, count: int = 20, **options: object) -> Path:
    """make_data's folder, with test images of another seed."""
    make_data(folder, **options)
    test = make_data(folder / "test", count, **options, seed=1)
    for name in ("images", "labels"):
        (test / f"{name}.npy").rename(folder / f"test_{name}.npy")
    return folder


def train(script: str, data: Path, *options: object) -> Path:
    out = Path("run-of", script[:-3]).resolve()
    assert call(script, "--data", data, "--out", out, *TINY, *options) == 0
    return out


def loaded(folder: Path) -> evaluate.Run:
    return evaluate.load_run(str(folder), Namespace())


def direct_log_likelihood(x: torch.Tensor, samples: torch.Tensor, sigma: float) -> torch.Tensor:
    """The formula as it is written, in float64."""
    squares = (x[:, None] - samples[None]).square().sum(2)
    constant = math.log(len(samples)) + x.shape[1] * math.log(sigma * math.sqrt(2 * math.pi))
    return (-squares / (2 * sigma**2)).logsumexp(1) - constant


@pytest.mark.parametrize("sigma", [0.1, 0.2, 1.0])
def test_log_likelihood_is_the_formula(sigma: float) -> None:
    x, samples = torch.rand(2, 30, 784, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = evaluate.log_likelihood(x, samples, [0.5, sigma], chunk=7)
    assert found.shape == (2, 30)
    assert torch.allclose(found[1], direct_log_likelihood(x, samples, sigma), rtol=0, atol=1e-8)


def test_parzen_takes_the_sigma_that_is_best_for_the_images_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    out = train("vanilla_gan.py", put_test_images(Path("data").resolve(), count=60))
    assert call("evaluate.py", "parzen", out, "--samples", 40) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("training images"))
    (train_images, _), (held_out, _), _ = loaded(out).load_data()
    samples, valid, test = (x.flatten(1).double() / 255 for x in (train_images[:40], train_images[50:], held_out))
    best = max(np.logspace(-1, 0, 55), key=lambda sigma: direct_log_likelihood(valid, samples, sigma).mean().item())
    assert float(row.split()[3]) == pytest.approx(best, abs=1e-3)
    assert float(row.split()[4]) == pytest.approx(direct_log_likelihood(test, samples, best).mean().item(), abs=0.06)


@pytest.mark.parametrize("padded", [True, False])
def test_parzen_cuts_a_black_border_and_takes_a_sigma(padded: bool, capsys: pytest.CaptureFixture[str]) -> None:
    data = put_test_images(Path("data").resolve(), channels=1, size=28 if padded else 32)
    for path in data.glob("*images.npy") if padded else ():
        np.save(path, np.pad(np.load(path), [(0, 0), (0, 0), (2, 2), (2, 2)]))
    out = train("dcgan.py", data)
    capsys.readouterr()
    assert call("evaluate.py", "parzen", out, "--samples", 10, "--sigma", 0.25) == 0
    test, _, _, *rows = capsys.readouterr().out.splitlines()
    assert f"{data} (20 x {784 if padded else 1024} pixels)" in test
    assert [row.split()[-4] for row in rows] == ["0.250"] * 3


def test_held_out_images_are_the_test_images_of_the_data() -> None:
    data = put_test_images(Path("data").resolve())
    train_part, held_out, name = loaded(train("dcgan.py", data)).load_data()
    for part, prefix in ((train_part, ""), (held_out, "test_")):
        assert np.array_equal(part[0], np.load(data / f"{prefix}images.npy"))
        assert np.array_equal(part[1], np.load(data / f"{prefix}labels.npy"))
    assert name == f"the test images of {data}"


def test_without_test_images_a_sixth_of_the_images_is_held_out_and_kept_from_training(run: Callable) -> None:
    (train_images, train_labels), (held_out, labels), name = loaded(run("dcgan.py")).load_data()
    assert (len(train_images), len(held_out)) == (len(train_labels), len(labels)) == (53, 11)
    distance, _ = evaluate.nearest(held_out, train_images, 1, "cpu")
    assert distance.min() > 0
    assert "one training image in 6" in name


@pytest.mark.parametrize("script", ["dcgan.py", "cgan.py"])
def test_samples_are_drawn_by_the_averaged_generator(script: str, run: Callable) -> None:
    found = loaded(run(script))
    networks, _ = found.script.load_networks(found.args, found.checkpoint)
    z = torch.randn(70, found.args.latent_dim, generator=torch.Generator().manual_seed(found.args.seed))
    inputs = [z, torch.arange(70) % 2] if script == "cgan.py" else [z]
    images = torch.cat([images for images, _ in found.draw(70)])
    assert torch.equal(images, networks["generator_ema"](*inputs))
    for other in (networks["generator"].eval()(*inputs), next(found.draw(70, trained=False))[0]):
        assert images.shape == other.shape and not torch.allclose(images, other)


def test_frechet_is_the_closed_form() -> None:
    rng = torch.Generator().manual_seed(2)
    m, n, a, b = torch.rand(4, 5, 5, dtype=torch.float64, generator=rng)
    x, y = (torch.randn(1000, 5, dtype=torch.float64, generator=rng) for _ in range(2))
    x, y = (torch.linalg.qr(z - z.mean(0))[0] * math.sqrt(1000) for z in (x, y))  # of covariance 1
    cross = np.sqrt(np.linalg.eigvals((a @ a.T @ b @ b.T).numpy()).real.clip(0)).sum()  # Tr (AB)^1/2
    expected = (m[0] - n[0]).square().sum() + (a @ a.T).trace() + (b @ b.T).trace() - 2 * cross
    assert evaluate.frechet(x @ a.T + m[0], y @ b.T + n[0]) == pytest.approx(expected.item(), abs=1e-8)


def test_nearest_finds_what_all_distances_in_float64_find() -> None:
    rng = torch.Generator().manual_seed(0)
    x, train = (torch.randint(256, (n, 1, 6, 6), dtype=torch.uint8, generator=rng) for n in (9, 50))
    distance, index = evaluate.nearest(x, train, 3, "cpu", chunk=36 * 7)  # seven images at a time
    expected = torch.cdist(x.flatten(1).double() / 255, train.flatten(1).double() / 255).topk(3, largest=False)
    assert torch.equal(index, expected.indices)
    assert torch.allclose(distance.double(), expected.values, atol=1e-5)


@pytest.fixture(scope="module")
def glyphs(tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """A judge of 700 of the built-in digits, these with their labels, and 100 held out, with theirs."""
    images, labels = load("dcgan.py").glyphs(800)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("glyphs"))  # data/cache is made there
        judge = evaluate.Judge(images[:700], labels[:700], 10, "cpu")
    return judge, images[:700], labels[:700], images[700:], labels[700:]


def test_held_out_images_score_as_real_ones_should(glyphs: tuple) -> None:
    judge, _, _, held_out, labels = glyphs
    found = judge(held_out, labels)
    assert (found["images"], found["classes"]) == (100, 10)
    assert found["accuracy"] > 0.8 and found["entropy"] > 0.95 and found["memorised"] < 0.1
    assert found["diversity"] == pytest.approx(1, abs=0.1)
    assert 0 < found["frechet"] < judge(held_out.flip(3), None)["frechet"] / 3


def test_training_images_given_as_samples_are_memorised(glyphs: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    judge, images, _, held_out, _ = glyphs
    copies = images[:50].clone()
    copies[:, :, 0, 0] = 200  # one pixel changed
    assert judge(copies, None)["memorised"] > 0.95
    assert judge(torch.cat([copies, held_out[:50]]), None)["memorised"] == pytest.approx(0.5, abs=0.05)
    monkeypatch.setattr(judge, "train", images[:50].repeat(2, 1, 1, 1))  # each is there twice
    assert judge(images[:50], None)["memorised"] == 1


def test_a_class_drawn_once_in_a_while_does_not_count(glyphs: tuple) -> None:
    judge, images, labels, _, _ = glyphs
    drawn = torch.cat([images[labels == 3][:20].repeat(10, 1, 1, 1), images[labels == 5][:1]])
    _, read = evaluate.classify(judge.classifier, drawn)
    assert (read[:200].unique().tolist(), read[200]) == ([3], 5)
    assert judge(drawn, None)["classes"] == 1


def test_a_class_drawn_alike_is_seen_in_the_diversity(glyphs: tuple) -> None:
    judge, images, labels, _, _ = glyphs
    found = judge(images[:1].expand(20, -1, -1, -1), None)  # one image again and again
    assert (found["classes"], found["entropy"], found["diversity"]) == (1, 0, 0)
    drawn = images.clone()
    drawn[labels == 3] = images[labels == 3][0]
    found = judge(drawn, labels)
    assert found["least diversity"] < 0.5 < 0.85 < found["diversity"]


def test_images_of_every_size_are_judged_at_32x32() -> None:
    for size in (8, 28, 32, 64):
        image = torch.arange(size, dtype=torch.uint8).expand(2, 3, size, size)
        found = evaluate.to_32(image)
        assert (found.shape, found.dtype) == ((2, 3, 32, 32), torch.uint8)
        if size == 28:  # gets a black border
            assert torch.equal(found[..., 2:30, 2:30], image) and found.sum() == image.sum()


def test_score_trains_its_classifier_once(run: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = run("wgan.py"), run("cgan.py")
    capsys.readouterr()
    assert call("evaluate.py", "score", first, "--samples", 8, "--json", "-") == 0
    (path,) = Path("data/cache").iterdir()
    before, whole, found = path.stat().st_mtime_ns, path.read_bytes(), json.loads(capsys.readouterr().out)
    assert call("evaluate.py", "score", first, second, "--samples", 8, "--json", "both.json") == 0
    assert [p.stat().st_mtime_ns for p in Path("data/cache").iterdir()] == [before]
    rows = json.loads(Path("both.json").read_text())["rows"]
    assert list(rows) == ["held-out", str(first), str(second), "untrained wgan", "untrained cgan"]
    assert rows[str(first)] == found["rows"][str(first)]
    assert [row["accuracy"] is None for row in rows.values()] == [False, True, False, True, False]  # of no class asked
    table = capsys.readouterr().out.splitlines()[-6:]
    assert [line.split("  ")[0] for line in table] == ["", *rows]
    assert len({len(line) for line in table}) == 1  # aligned
    path.write_bytes(whole[:100])
    assert call("evaluate.py", "score", first, "--samples", 8) == 0  # a broken one is trained anew
    assert torch.load(path, weights_only=True).keys() == evaluate.new_classifier(3, 2).state_dict().keys()


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_command_takes_a_run_of_every_script(
    script: str, run: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run(script)
    (out / "metrics.csv").write_text("step,epoch,a,b,seconds\n1,1,0.5,nan,2\n2,1,0.7,1,3\n")  # two steps made no row
    for command in COMMANDS:
        samples = ["--samples", 6] if command in ("score", "parzen", "fid") else []
        assert call("evaluate.py", command, out, *samples) == 0
        assert "error" not in capsys.readouterr().err
    rows = 2 + 2 if script in ("cgan.py", "acgan.py") else 8
    sizes = {"neighbours": (16 * 8, 4 * 8), "interpolate": (10 * 8, rows * 8)}
    for name in ("neighbours", "interpolate", "curves"):
        picture = Image.open(out / f"{name}.png")
        assert picture.size == sizes.get(name, picture.size)
        assert np.asarray(picture).std() > 0


def test_a_training_image_is_its_own_neighbour(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    out = run("dcgan.py")
    copies = loaded(out).load_images()[0][:16].float() / 127.5 - 1
    monkeypatch.setattr(evaluate.Run, "draw", lambda *_: iter([(copies, None)]))
    assert call("evaluate.py", "neighbours", out) == 0
    rows = np.asarray(Image.open(out / "neighbours.png"))
    assert np.array_equal(rows[:8], rows[8:16])
    assert not np.array_equal(rows[:8], rows[16:24])


@pytest.mark.parametrize("script", ["vanilla_gan.py", "cgan.py"])
def test_interpolate_starts_and_ends_at_samples(script: str, run: Callable) -> None:
    out = run(script)
    assert call("evaluate.py", "interpolate", out) == 0
    found, rows = loaded(out), 2 if script == "cgan.py" else 8  # of two classes
    z = torch.randn(2, rows, 4, generator=torch.Generator().manual_seed(found.args.seed))
    y = torch.arange(2).repeat(rows // 2)
    pixels = np.asarray(Image.open(out / "interpolate.png")).astype(int)
    ends = [(0, 0, z[0], y), (0, 9, z[1], y)]  # top, column
    ends += [(16, 0, z[0], y), (16, 9, z[0], 1 - y)] if script == "cgan.py" else []  # below, from class to class
    for top, column, noise, labels in ends:
        expected = np.asarray(found.script.to_picture(found.sample(found.load_generator(), noise, labels)))
        assert np.abs(pixels[top : top + rows * 8, column * 8 : column * 8 + 8] - expected).max() <= 1


def test_curves_overlays_runs_of_different_columns() -> None:
    for name, header in (("one", "step,epoch,d_loss,seconds"), ("two", "step,epoch,wasserstein,seconds")):
        Path(name).mkdir()
        Path(name, "metrics.csv").write_text(f"{header}\n50,1,0.5,2\n100,1,0.4,3\n")
    assert call("evaluate.py", "curves", "one", "two", "--out", "both.png") == 0
    assert call("evaluate.py", "curves", "one") == 0
    both, one = (Image.open(path).size for path in ("both.png", "one/curves.png"))
    assert both[1] > 1.5 * one[1]  # two panels


def test_fid_writes_the_images_as_the_gan_saw_them(run: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    out = run("cgan.py")
    assert call("evaluate.py", "fid", out, "--samples", 5) == 0
    images, _ = loaded(out).load_images()
    files = sorted((out / "real").iterdir())
    assert len(files) == 5
    for file in files:
        assert np.array_equal(np.asarray(Image.open(file)), images[int(file.stem)].permute(1, 2, 0))
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("#")][-3:]
    assert lines[0] == f"python cgan.py --resume {out} --generate 5"
    assert [line.split()[0] for line in lines] == ["python", "fidelity", "python"]
    assert all(f"{out / 'generated'}" in line and f"{out / 'real'}" in line for line in lines[1:])


OPTIONS = ["--samples 1", "--samples 1000001", "--samples x", "--sigma 0", "--sigma nan", "--out x"]


@pytest.mark.parametrize("words", ["", "judge run", "score", *(f"parzen run {option}" for option in OPTIONS)])
def test_bad_usage_is_refused_in_one_line(words: str, refused: Callable[..., str]) -> None:
    assert "no run" not in refused("evaluate.py", *words.split())


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "foreign", "of the old format"])
def test_a_folder_that_holds_no_run_is_refused(damage: str, run: Callable, refused: Callable[..., str]) -> None:
    path = run("dcgan.py") / "checkpoint.pt"
    if damage == "missing":
        path.unlink()
    elif damage in ("empty", "cut"):
        path.write_bytes(path.read_bytes()[: 1000 * (damage == "cut")])
    else:
        torch.save({"script": "evaluate" if damage == "foreign" else "dcgan", "args": {}}, path)  # both are there
    for command in COMMANDS if damage == "missing" else ["score"]:
        if command != "curves":
            assert f"{path.parent} is no run" in refused("evaluate.py", command, path.parent)
    refused("dcgan.py", "--resume", path.parent)  # in whose errors its own name stays


def test_a_checkpoint_of_other_networks_is_refused(run: Callable, refused: Callable[..., str]) -> None:
    path = run("dcgan.py") / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    del state["generator_ema"]["layers.0.weight"]
    torch.save(state, path)
    assert "cannot build the networks" in refused("evaluate.py", "interpolate", path.parent)


def test_data_that_are_gone_or_have_changed_are_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    data = put_test_images(tmp_path / "data")
    out = train("dcgan.py", data)
    data = data.rename(tmp_path / "moved")
    assert f"--data {tmp_path / 'data'}" in refused("evaluate.py", "neighbours", out)
    assert call("evaluate.py", "neighbours", out, "--data", data) == 0
    (data / "test_labels.npy").write_bytes(b"not an array")
    assert "the test images of" in refused("evaluate.py", "score", out, "--data", data)
    (data / "classes.txt").write_text("cats\nbirds\n")
    assert "has changed" in refused("evaluate.py", "score", out, "--data", data)


def test_what_cannot_be_scored_is_refused(run: Callable, refused: Callable[..., str]) -> None:
    out = train("dcgan.py", make_data(Path("data").resolve(), classes=()))
    assert "score them apart" in refused("evaluate.py", "score", run("dcgan.py"), out)
    assert "needs images with classes" in refused("evaluate.py", "score", out)
    assert call("evaluate.py", "parzen", out, "--samples", 4) == 0  # which needs none


@pytest.mark.parametrize("text", ["", "step,a\n", "step,a\n1,x\n", "a\n1\n", "step,a\n1\n", "step,epoch\n1,1\n"])
def test_curves_of_a_run_without_rows_are_refused(text: str, refused: Callable[..., str]) -> None:
    assert "metrics.csv" in refused("evaluate.py", "curves", ".")
    Path("metrics.csv").write_text(text)
    assert "metrics.csv" in refused("evaluate.py", "curves", ".")


def test_curves_that_cannot_be_drawn_say_so(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    Path("metrics.csv").write_text("step,a\n1,2\n")
    assert "--out curves.abc" in refused("evaluate.py", "curves", ".", "--out", "curves.abc")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "pip install matplotlib" in refused("evaluate.py", "curves", ".")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_refused(run: Callable, refused: Callable[..., str]) -> None:
    assert "no GPU" in refused("evaluate.py", "score", run("dcgan.py"), "--cuda")


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (OSError(28, "No space left"), 1)])
def test_what_goes_wrong_on_the_way_is_one_line_too(
    error: BaseException, code: int, run: Callable, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    out = run("dcgan.py")
    monkeypatch.setattr(Image.Image, "save", fail)
    line = refused("evaluate.py", "neighbours", out, code=code)
    assert ("interrupted" if code == 130 else "No space left") in line
