"""evaluate.py: its figures against closed forms and float64, its commands on a run of each script."""

import gzip
import json
import math
import re
import shutil
import sys
import tarfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SCRIPTS, TINY, call, make_images
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

import evaluate

COMMANDS = ["score", "parzen", "neighbours", "interpolate", "curves", "fid"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """On a busy machine two threads wait for each other longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run(finished: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """run(script) is a copy of the finished run, to write into."""

    def copy(script: str) -> Path:
        folder = tmp_path / script.removesuffix(".py")
        return folder if folder.exists() else Path(shutil.copytree(finished(script), folder))

    return copy


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there


def idx(array: np.ndarray) -> bytes:
    return b"".join(n.to_bytes(4, "big") for n in (0x800 + array.ndim, *array.shape)) + array.tobytes()


def put_mnist(folder: Path, parts: tuple[str, ...] = ("train", "t10k")) -> None:
    """A small mnist: of part p the images are noise, 60 to train, 20 to test."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, part in enumerate(parts):
        count = {"train": 60, "t10k": 20}[part]
        images = np.random.default_rng(seed).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.arange(count, dtype=np.uint8) % 10)))


def train(script: str, data: object, *options: object) -> Path:
    out = Path("run-of", script.removesuffix(".py")).resolve()
    assert call(script, "--data", data, "--out", out, *TINY, *options) == 0
    return out


def loaded(folder: Path) -> evaluate.Run:
    return evaluate.load_run(str(folder), Namespace(cuda=False, data_dir=None))


# ------------------------------------------------------------------------------------------------------------ parzen


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


def test_log_likelihood_of_one_sample_is_that_of_a_gaussian() -> None:
    x, sample = torch.rand(2, 5, dtype=torch.float64)
    gaussian = torch.distributions.Normal(sample, 0.3)
    found = evaluate.log_likelihood(x[None], sample[None], [0.3])
    assert found.item() == pytest.approx(gaussian.log_prob(x).sum().item(), abs=1e-10)


def test_log_likelihood_needs_no_more_memory_than_it_says() -> None:
    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, function: Callable, types: object, args: tuple = (), kwargs: dict | None = None):
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple | list) else [result]:
                if isinstance(tensor, torch.Tensor):
                    self.numbers = max(self.numbers, tensor.numel())
            return result

    x, samples = torch.rand(400, 3, dtype=torch.float64), torch.rand(900, 3, dtype=torch.float64)
    with Largest() as largest:
        evaluate.log_likelihood(x, samples, [0.2, 0.3], chunk=50)
    assert 50 * 900 <= largest.numbers < 2 * 50 * 900  # and not 400 x 900


def test_parzen_leaves_other_images_whole(capsys: pytest.CaptureFixture[str]) -> None:
    out = train("dcgan.py", make_images(Path("photos").resolve()), "--image-size", 32)
    assert call("evaluate.py", "parzen", out, "--samples", 2) == 0
    assert "(3 x 3072 pixels)" in capsys.readouterr().out


def test_parzen_takes_the_sigma_that_is_best_for_the_images_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    put_mnist(Path("data/mnist"))
    out = train("vanilla_gan.py", "mnist", "--image-size", 28)
    assert call("evaluate.py", "parzen", out, "--samples", 40) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("training images"))
    data = evaluate.load_data(loaded(out))
    samples, valid, test = (x.flatten(1).double() / 255 for x in (data.train[:40], data.train[50:], data.held_out))
    best = max(np.logspace(-1, 0, 55), key=lambda sigma: direct_log_likelihood(valid, samples, sigma).mean().item())
    assert float(row.split()[3]) == pytest.approx(best, abs=1e-3)
    assert float(row.split()[4]) == pytest.approx(direct_log_likelihood(test, samples, best).mean().item(), abs=0.06)


def test_parzen_cuts_the_border_that_28x28_images_were_given(capsys: pytest.CaptureFixture[str]) -> None:
    put_mnist(Path("data/mnist"))
    out = train("dcgan.py", "mnist", "--image-size", 32)
    assert call("evaluate.py", "parzen", out, "--samples", 10) == 0
    assert "the test images of mnist (20 x 784 pixels)" in capsys.readouterr().out


def test_parzen_takes_a_given_sigma(run: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("evaluate.py", "parzen", run("dcgan.py"), "--samples", 4, "--sigma", 0.25) == 0
    rows = capsys.readouterr().out.splitlines()[-3:]
    assert [row.split()[-4] for row in rows] == ["0.250"] * 3


def test_parzen_says_which_test_files_to_put_where(no_network: None, refused: Callable[..., str]) -> None:
    put_mnist(Path("data/mnist"), ("train",))
    out = train("vanilla_gan.py", "mnist")
    line = refused("evaluate.py", "parzen", out)
    assert "t10k-images-idx3-ubyte.gz" in line
    assert str(Path("data/mnist")) in line


# -------------------------------------------------------------------------------------------------------------- data


def test_held_out_images_of_mnist_are_its_test_files() -> None:
    put_mnist(Path("data/mnist"))
    data = evaluate.load_data(loaded(train("vanilla_gan.py", "mnist", "--image-size", 28)))
    expected = np.random.default_rng(1).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    assert np.array_equal(data.held_out[:, 0].numpy(), expected)
    assert data.held_out_labels.tolist() == [i % 10 for i in range(20)]
    assert len(data.train) == 60


@pytest.mark.parametrize("packed", [True, False], ids=["in the archive", "unpacked"])
def test_held_out_images_of_cifar10_are_its_test_batch(packed: bool) -> None:
    folder = Path("data/cifar10/cifar-10-batches-bin")
    folder.mkdir(parents=True)
    records = np.random.default_rng(0).integers(0, 10, (30, 3073), dtype=np.uint8)
    (folder / "data_batch_1.bin").write_bytes(records[:20].tobytes())
    (folder / "test_batch.bin").write_bytes(records[20:].tobytes())
    if packed:
        with tarfile.open("data/cifar10/cifar-10-binary.tar.gz", "w:gz") as tar:
            tar.add(folder, folder.name)
        shutil.rmtree(folder)
    data = evaluate.load_data(loaded(train("dcgan.py", "cifar10", "--image-size", 32)))
    assert np.array_equal(data.held_out.flatten(1).numpy(), records[20:, 1:])
    assert data.held_out_labels.tolist() == records[20:, 0].tolist()


def test_without_test_files_a_sixth_of_the_images_is_held_out_and_kept_from_training() -> None:
    put_mnist(Path("data/mnist"), ("train",))
    data = evaluate.load_data(loaded(train("vanilla_gan.py", "mnist")))
    assert (len(data.train), len(data.held_out)) == (50, 10)
    distance, _ = evaluate.nearest(data.held_out, data.train, 1, "cpu")
    assert distance.min() > 0
    assert "one training image in 6" in data.held_out_name


@pytest.mark.parametrize("script", ["dcgan.py", "cgan.py"])
def test_samples_are_the_images_that_generate_writes(script: str, run: Callable) -> None:
    out = run(script)
    assert call(script, "--resume", out, "--generate", 105) == 0
    images = torch.cat([evaluate.to_bytes(images) for images, _ in evaluate.draw(loaded(out), 105)])
    for i, image in enumerate(images):
        (path,) = (out / "generated").rglob(f"{i:06d}.png")
        assert np.array_equal(np.asarray(Image.open(path)), image.permute(1, 2, 0).squeeze(2).numpy())


def test_an_untrained_generator_is_another_one_of_the_same_kind(run: Callable) -> None:
    parts = [next(evaluate.draw(loaded(run("wgan.py")), 4, trained))[0] for trained in (True, False)]
    assert parts[0].shape == parts[1].shape == (4, 3, 8, 8)
    assert not torch.equal(*parts)


# ------------------------------------------------------------------------------------------------------------- score


def with_moments(mean: torch.Tensor, root: torch.Tensor) -> torch.Tensor:
    """1,000 points with exactly this mean (D,) and covariance root root^T (D, D)."""
    x = torch.randn(1000, len(mean), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    q, _ = torch.linalg.qr(x - x.mean(0))  # orthonormal columns of mean zero
    return q * math.sqrt(1000) @ root.T + mean


def test_frechet_of_two_gaussians_is_the_closed_form() -> None:
    m, n, s, t = torch.rand(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = evaluate.frechet(with_moments(m, s.diag()), with_moments(n, t.diag()))
    assert found == pytest.approx(((m - n).square() + (s - t).square()).sum().item(), abs=1e-9)


def test_frechet_of_covariances_that_do_not_commute() -> None:
    a, b = torch.rand(2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    zero = torch.zeros(5, dtype=torch.float64)
    cross = np.sqrt(np.linalg.eigvals((a @ a.T @ b @ b.T).numpy()).real.clip(0)).sum()  # Tr (AB)^1/2
    expected = (a @ a.T).trace().item() + (b @ b.T).trace().item() - 2 * cross
    assert evaluate.frechet(with_moments(zero, a), with_moments(zero, b)) == pytest.approx(expected, abs=1e-8)


def test_nearest_finds_what_all_distances_in_float64_find() -> None:
    rng = torch.Generator().manual_seed(0)
    x, train = (torch.randint(256, (n, 1, 6, 6), dtype=torch.uint8, generator=rng) for n in (9, 50))
    distance, index = evaluate.nearest(x, train, 3, "cpu", chunk=36 * 7)  # seven images at a time
    expected = torch.cdist(x.flatten(1).double() / 255, train.flatten(1).double() / 255).topk(3, largest=False)
    assert torch.equal(index, expected.indices)
    assert torch.allclose(distance.double(), expected.values, atol=1e-5)


@pytest.fixture(scope="module")
def glyphs(tmp_path_factory: pytest.TempPathFactory) -> tuple[evaluate.Judge, evaluate.Data]:
    """600 of the built-in digits, every sixth held out, and a judge of them."""
    import dcgan

    images, labels = (torch.from_numpy(x) for x in dcgan.glyphs(32, 600))
    held_out = torch.arange(600) % 6 == 0
    data = evaluate.Data(images[~held_out], labels[~held_out], images[held_out], labels[held_out], "every sixth")
    args = Namespace(cuda=False, classes=[str(i) for i in range(10)], data_dir=str(tmp_path_factory.mktemp("data")))
    return evaluate.Judge(evaluate.Run(Path("none"), dcgan, args, {}), data), data


def test_held_out_images_score_as_real_ones_should(glyphs: tuple) -> None:
    judge, data = glyphs
    found = judge(data.held_out, data.held_out_labels)
    assert found["images"] == 100
    assert found["classes"] == 10
    assert found["accuracy"] > 0.8
    assert found["entropy"] > 0.95
    assert found["diversity"] == pytest.approx(1, abs=0.1)
    assert found["memorised"] < 0.1
    assert 0 < found["frechet"] < judge(data.held_out.flip(3), None)["frechet"] / 3


def test_training_images_given_as_samples_are_memorised(glyphs: tuple) -> None:
    judge, data = glyphs
    copies = data.train[:50].clone()
    copies[:, :, 0, 0] = 200  # one pixel changed
    assert judge(copies, None)["memorised"] == 1
    assert judge(torch.cat([copies, data.held_out[:50]]), None)["memorised"] == pytest.approx(0.5, abs=0.05)


def test_copies_of_images_that_are_there_twice_are_memorised_too(
    glyphs: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, data = glyphs
    monkeypatch.setattr(judge, "train", data.train[:50].repeat(2, 1, 1, 1))
    assert judge(data.train[:50], None)["memorised"] == 1


def test_a_class_drawn_once_in_a_while_does_not_count(glyphs: tuple) -> None:
    judge, data = glyphs
    of_class = [data.train[data.train_labels == label] for label in (3, 5)]
    images = torch.cat([of_class[0][:20].repeat(10, 1, 1, 1), of_class[1][:1]])
    _, read = evaluate.classify(judge.classifier, images)
    assert read[:200].unique().tolist() == [3]
    assert read[200] == 5
    assert judge(images, None)["classes"] == 1


def test_one_image_again_and_again_is_one_class_without_diversity(glyphs: tuple) -> None:
    judge, data = glyphs
    found = judge(data.held_out[:1].expand(20, -1, -1, -1), None)
    assert (found["classes"], found["entropy"], found["diversity"]) == (1, 0, 0)


def test_a_class_drawn_alike_is_seen_in_the_least_diversity(glyphs: tuple) -> None:
    judge, data = glyphs
    images = data.train.clone()
    images[data.train_labels == 3] = images[data.train_labels == 3][0].clone()
    found = judge(images, data.train_labels)
    assert found["least diversity"] < 0.5 < 0.85 < found["diversity"]


@pytest.mark.parametrize("size", [8, 28, 32, 64])
def test_images_of_every_size_are_judged_at_32x32(size: int) -> None:
    image = torch.arange(size, dtype=torch.uint8).expand(2, 3, size, size)
    found = evaluate.to_32(image)
    assert (found.shape, found.dtype) == ((2, 3, 32, 32), torch.uint8)
    if size == 28:
        assert torch.equal(found[..., 2:30, 2:30], image)
        assert found[..., :2, :].max() == 0


def test_score_trains_its_classifier_once(run: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    data = Path("own")
    (first, second) = (run("dcgan.py"), run("wgan.py"))
    assert call("evaluate.py", "score", first, "--samples", 8, "--data-dir", data, "--json", "-") == 0
    (path,) = (data / "cache").glob("classifier-*.pt")
    before, found = path.stat().st_mtime_ns, json.loads(capsys.readouterr().out)
    assert call("evaluate.py", "score", first, second, "--samples", 8, "--data-dir", data, "--json", "both.json") == 0
    assert [p.name for p in (data / "cache").glob("classifier-*.pt")] == [path.name]
    assert path.stat().st_mtime_ns == before
    both = json.loads(Path("both.json").read_text())
    assert list(both["rows"]) == ["held-out", str(first), str(second), "untrained dcgan", "untrained wgan"]
    assert both["rows"][str(first)] == found["rows"][str(first)]
    table = capsys.readouterr().out.splitlines()[-6:]
    assert [line.split("  ")[0] for line in table] == ["", *both["rows"]]
    assert len({len(line) for line in table}) == 1  # aligned


def test_a_broken_classifier_in_the_cache_is_trained_anew(run: Callable) -> None:
    out = run("dcgan.py")
    assert call("evaluate.py", "score", out, "--samples", 2, "--data-dir", "own") == 0
    (path,) = Path("own/cache").glob("classifier-*.pt")
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    assert call("evaluate.py", "score", out, "--samples", 2, "--data-dir", "own") == 0
    assert path.read_bytes() == whole


def test_accuracy_is_read_off_where_classes_were_asked_for(run: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("evaluate.py", "score", run("cgan.py"), run("dcgan.py"), "--samples", 8, "--json", "-") == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["accuracy"] is None for row in rows.values()] == [False, False, True, False, True]


# ---------------------------------------------------------------------------------------------------------- commands


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
    for name, size in {
        "neighbours": (16 * 8, 4 * 8),
        "interpolate": (10 * 8, 8 * (2 + 2 if script == "cgan.py" else 8)),
    }.items():
        picture = Image.open(out / f"{name}.png")
        assert picture.size == size
        assert np.asarray(picture).std() > 0
    assert np.asarray(Image.open(out / "curves.png")).std() > 0


def test_neighbours_shows_a_training_image_that_is_its_own_nearest(
    run: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = run("dcgan.py")
    images, _ = evaluate.load_images(loaded(out))
    copies = images.float() / 127.5 - 1  # sixteen
    monkeypatch.setattr(evaluate, "draw", lambda run, count: iter([(copies, None)]))
    assert call("evaluate.py", "neighbours", out) == 0
    rows = np.asarray(Image.open(out / "neighbours.png"))
    assert np.array_equal(rows[:8], rows[8:16])
    assert not np.array_equal(rows[:8], rows[16:24])


def test_interpolate_starts_and_ends_at_samples(run: Callable) -> None:
    out = run("vanilla_gan.py")
    assert call("evaluate.py", "interpolate", out) == 0
    loaded_run = loaded(out)
    z = torch.randn(2, 8, 4, generator=torch.Generator().manual_seed(loaded_run.args.seed))
    pixels = np.asarray(Image.open(out / "interpolate.png"))
    for column, end in ((0, z[0]), (9, z[1])):
        images = loaded_run.script.sample(evaluate.load_generator(loaded_run), end, None, loaded_run.args)
        expected = np.asarray(loaded_run.script.to_picture(images))
        assert np.abs(pixels[:, column * 8 : column * 8 + 8].astype(int) - expected).max() <= 1


def test_interpolate_of_cgan_goes_from_class_to_class(run: Callable) -> None:
    out = run("cgan.py")  # of two classes
    assert call("evaluate.py", "interpolate", out) == 0
    loaded_run = loaded(out)
    z = torch.randn(2, 2, 4, generator=torch.Generator().manual_seed(loaded_run.args.seed))[0]
    pixels = np.asarray(Image.open(out / "interpolate.png"))[16:]  # below the lines in z
    for column, labels in ((0, torch.tensor([0, 1])), (9, torch.tensor([1, 0]))):
        images = loaded_run.script.sample(evaluate.load_generator(loaded_run), z, labels, loaded_run.args)
        expected = np.asarray(loaded_run.script.to_picture(images))
        assert np.abs(pixels[:, column * 8 : column * 8 + 8].astype(int) - expected).max() <= 1


def test_curves_overlays_runs_of_different_columns(run: Callable) -> None:
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
    images, _ = evaluate.load_images(loaded(out))
    files = sorted((out / "real").iterdir())
    assert len(files) == 5
    for file in files:
        expected = images[int(file.stem)].permute(1, 2, 0).numpy()
        assert np.array_equal(np.asarray(Image.open(file)), expected)
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]
    assert lines[0] == f"python cgan.py --resume {out} --generate 5"
    assert [line.split()[0] for line in lines] == ["python", "fidelity", "python"]
    assert all(f"{out / 'generated'}" in line and f"{out / 'real'}" in line for line in lines[1:])


# ------------------------------------------------------------------------------------------------------------ errors

USAGE = {
    "no command": [],
    "another command": ["judge", "RUN"],
    "no run": ["score"],
    "an option that is none": ["parzen", "RUN", "--out", "x"],
    "one sample": ["score", "RUN", "--samples", "1"],
    "too many samples": ["score", "RUN", "--samples", "1000001"],
    "samples in words": ["parzen", "RUN", "--samples", "many"],
    "sigma 0": ["parzen", "RUN", "--sigma", "0"],
    "sigma nan": ["parzen", "RUN", "--sigma", "nan"],
    "several runs, one picture": ["curves", "RUN", "RUN"],
}


@pytest.mark.parametrize("name", USAGE)
def test_bad_usage_is_refused_in_one_line(name: str, run: Callable, refused: Callable[..., str]) -> None:
    refused("evaluate.py", *(run("dcgan.py") if word == "RUN" else word for word in USAGE[name]))


@pytest.mark.parametrize("command", ["score", "parzen", "neighbours", "interpolate", "fid"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "foreign"])
def test_a_folder_that_holds_no_run_is_refused(
    damage: str, command: str, run: Callable, refused: Callable[..., str]
) -> None:
    path = run("dcgan.py") / "checkpoint.pt"
    if damage == "foreign":
        torch.save({"script": "evaluate", "args": {}}, path)  # which is there
    else:
        path.write_bytes({"cut": path.read_bytes()[:1000]}.get(damage, b""))
    if damage == "missing":
        path.unlink()
    assert f"{path.parent} is no run" in refused("evaluate.py", command, path.parent)


def test_a_checkpoint_of_other_networks_is_refused(run: Callable, refused: Callable[..., str]) -> None:
    path = run("dcgan.py") / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    del state["generator"]["layers.0.weight"]
    torch.save(state, path)
    assert "does not fit" in refused("evaluate.py", "interpolate", path.parent)


def test_data_that_are_gone_or_have_changed_are_refused(refused: Callable[..., str]) -> None:
    images = make_images(Path("photos").resolve())
    out = train("dcgan.py", images)
    (images / "cats").rename(images / "birds")
    assert "has changed" in refused("evaluate.py", "score", out)
    shutil.rmtree(images)
    assert str(images) in refused("evaluate.py", "neighbours", out)


def test_score_without_classes_is_refused(refused: Callable[..., str]) -> None:
    images = make_images(Path("photos").resolve(), [""])
    out = train("dcgan.py", images)
    assert "needs images with classes" in refused("evaluate.py", "score", out)
    assert call("evaluate.py", "parzen", out, "--samples", 4) == 0  # which needs none


def test_runs_of_different_data_are_not_scored_together(run: Callable, refused: Callable[..., str]) -> None:
    other = train("dcgan.py", make_images(Path("photos").resolve()))
    assert "score them apart" in refused("evaluate.py", "score", run("dcgan.py"), other)


@pytest.mark.parametrize(
    "text", [None, "", "step,a\n", "step,a\n1,x\n", "a\n1\n", "step,a\n1\n", "step,a\n,\n", "step,epoch\n1,1\n"]
)
def test_curves_of_a_run_without_rows_are_refused(text: str | None, refused: Callable[..., str]) -> None:
    Path("run").mkdir()
    if text is not None:
        Path("run/metrics.csv").write_text(text)
    assert "metrics.csv" in refused("evaluate.py", "curves", "run")


def test_curves_into_a_file_of_no_known_kind_are_refused(refused: Callable[..., str]) -> None:
    Path("run").mkdir()
    Path("run/metrics.csv").write_text("step,a\n1,2\n")
    assert "--out curves.abc" in refused("evaluate.py", "curves", "run", "--out", "curves.abc")


def test_curves_without_matplotlib_say_so(
    run: Callable, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "pip install matplotlib" in refused("evaluate.py", "curves", run("dcgan.py"))


def test_a_broken_test_file_is_refused(refused: Callable[..., str]) -> None:
    put_mnist(Path("data/mnist"))
    out = train("vanilla_gan.py", "mnist")
    Path("data/mnist/t10k-images-idx3-ubyte.gz").write_bytes(b"not an image")
    assert "the test images of mnist" in refused("evaluate.py", "parzen", out)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_refused(run: Callable, refused: Callable[..., str]) -> None:
    assert "no GPU" in refused("evaluate.py", "score", run("dcgan.py"), "--cuda")


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [(KeyboardInterrupt(), 130, "interrupted"), (OSError(28, "No space left on device"), 1, "No space left")],
    ids=["interrupted", "disk full"],
)
def test_what_goes_wrong_on_the_way_is_one_line_too(
    error: BaseException,
    code: int,
    text: str,
    run: Callable,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    out = run("dcgan.py")
    monkeypatch.setattr(Image.Image, "save", fail)
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        call("evaluate.py", "neighbours", out)
    assert end.value.code == code
    lines = [line for line in re.split(r"[\r\n]", capsys.readouterr().err) if line.strip() and "/s]" not in line]
    assert len(lines) == 1  # the bars apart
    assert lines[0].startswith("evaluate.py: error: ")
    assert text in lines[0]


def test_scripts_keep_their_own_name_in_errors(run: Callable, refused: Callable[..., str]) -> None:
    refused("evaluate.py", "score", "nowhere")
    assert call("evaluate.py", "interpolate", run("dcgan.py")) == 0
    refused("dcgan.py", "--resume", "nowhere")
