# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.10", "numpy", "pillow>=10.1", "tqdm", "matplotlib"]
# ///
"""Scores and pictures of trained runs.

    python evaluate.py parzen RUN           log-likelihood of the test images (Goodfellow et al. 2014, Table 1)

A RUN is a folder that one of the five scripts, which lie beside this file, has written. docs/evaluate.md says how each
figure is made and how to read it.
"""

import contextlib
import importlib.util
import math
import shutil
import sys
import tarfile
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

SCRIPTS = ["vanilla_gan", "dcgan", "cgan", "wgan", "wgan_gp"]
TEST_FILES = {  # of each set the test images and labels, in the scripts' format, with their sha256
    "mnist": {
        "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    },
    "fashion-mnist": {
        "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    },
}


class Run(NamedTuple):
    """A trained run: its folder, the script that made it, as a module, its arguments and its checkpoint."""

    folder: str
    script: ModuleType
    args: Namespace
    checkpoint: dict


def fail(message: str, code: int = 2) -> NoReturn:
    """Ends the program with one line: code 2 for bad usage or bad input."""
    tqdm.write(f"evaluate.py: error: {' '.join(message.split())}", file=sys.stderr)  # not behind a progress bar
    raise SystemExit(code)


def load_run(folder: str, options: Namespace) -> Run:
    """Reads a run as `SCRIPT.py --resume RUN --generate 1` does, with that script's own code."""
    try:
        name = torch.load(Path(folder, "checkpoint.pt"), map_location="cpu", weights_only=True)["script"]
        if name not in SCRIPTS:
            raise ValueError(f"{name} is none of {', '.join(SCRIPTS)}")
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        script = importlib.util.module_from_spec(spec)  # a copy of our own, whose errors carry our name
        spec.loader.exec_module(script)
    except Exception as error:  # torch.load raises all kinds on a broken file
        fail(f"{folder} is no run: {type(error).__name__}: {str(error).partition('. ')[0]}")
    script.fail = fail
    typed = ["--resume", folder, "--generate", "1", "--cuda" if options.cuda else "--no-cuda"]
    typed += ["--data-dir", options.data_dir] if options.data_dir else []
    with contextlib.redirect_stdout(sys.stderr):  # what stdout shows is ours
        return Run(folder, script, *script.parse_args(typed))


def load_data(run: Run) -> tuple[Tensor, Tensor]:
    """The training images of a run, uint8 (N, C, S, S), and their labels (N,)."""
    images, labels, classes = run.script.load_data(run.args)
    if (images.shape[1], classes) != (run.args.channels, run.args.classes):
        fail(f"{run.args.data} is no longer what {run.folder} was trained on: other channels or classes")
    return images, labels


def load_test(run: Run, download: bool) -> tuple[Tensor, Tensor] | None:
    """The test images of a standard set, uint8 (N, C, S, S), and their labels (N,); None where there are none.

    The files are those in DATA_DIR/NAME; with download they are fetched if they are not there.
    """
    script, name, folder = run.script, run.args.data, Path(run.args.data_dir, run.args.data)
    with tempfile.TemporaryDirectory() as copy:  # under the names of the training files: read and resized as they are
        if name == "cifar10":
            tars = [path for path in folder.glob("cifar-10-binary.tar.gz") if not any(folder.rglob("data_batch_?.bin"))]
            for path in [*folder.rglob("test_batch.bin"), *tars][:1]:
                if path.suffix == ".bin":
                    shutil.copy(path, Path(copy, "data_batch_1.bin"))
                else:
                    with tarfile.open(path) as tar:
                        member = next(name for name in tar.getnames() if name.endswith("test_batch.bin"))
                        Path(copy, "data_batch_1.bin").write_bytes(tar.extractfile(member).read())
        for file in TEST_FILES.get(name, ()):
            script.DATASETS[name].update(TEST_FILES[name])
            if download or any((folder / f).exists() for f in (file, file.removesuffix(".gz"))):
                path = script.fetch(name, file, folder)
                shutil.copy(path, Path(copy, path.name.replace("t10k", "train")))
        if not any(Path(copy).iterdir()):
            return None
        images, labels = script.standard_set(name, Path(copy), run.args.image_size)
    return torch.from_numpy(images), torch.from_numpy(labels.astype("int64"))


@torch.no_grad()
def draw(run: Run, count: int, trained: bool = True) -> Iterator[tuple[Tensor, Tensor]]:
    """Images of G in eval mode, float32 (n, C, S, S) in [-1, 1] on the device, and the labels (n,) that cgan was asked for.

    They are those that --generate writes. With trained=False from the same networks as they were before training.
    """
    script, args = run.script, run.args
    (generator, _), _ = script.load_networks(args, run.checkpoint if trained else {})
    labels, rng = torch.arange(count) % max(1, len(args.classes)), torch.Generator().manual_seed(args.seed)
    name = f"{'samples' if trained else 'untrained'} of {run.folder}"
    for part in tqdm(torch.arange(count).split(100), name, unit="batch", leave=False):
        z = torch.randn(100, args.latent_dim, generator=rng)[: len(part)]
        yield script.sample(generator, z, labels[part], args), labels[part]


def log_likelihood(x: Tensor, samples: Tensor, sigmas: list[float], chunk: int = 250) -> Tensor:
    """log p(x) (len(sigmas), N) of x (N, D) under Gaussians of deviation sigma around samples (M, D), each of weight 1/M.

    Takes and returns float64: |x - y|^2 is computed as |x|^2 + |y|^2 - 2xy, which in float32 may lose what sigma
    = 0.1 then multiplies by 50. Needs memory for x and samples and for three blocks of chunk x M.
    """
    count, dims = samples.shape
    norms, found = samples.square().sum(1), []
    for part in tqdm(x.split(chunk), "log-likelihood", unit="chunk", leave=False):
        squares = torch.addmm(norms, part, samples.T, alpha=-2).add_(part.square().sum(1, keepdim=True))  # (chunk, M)
        found.append(torch.stack([(squares * (-0.5 / sigma**2)).logsumexp(1) for sigma in sigmas]))
    constants = [math.log(count) + dims * math.log(sigma * math.sqrt(2 * math.pi)) for sigma in sigmas]
    return torch.cat(found, dim=1) - torch.tensor(constants, dtype=x.dtype, device=x.device)[:, None]


def parzen(options: Namespace) -> None:
    """The log-likelihood of the test images under Gaussians around samples (Goodfellow et al. 2014, section 5).

    As in the authors' code (github.com/goodfeli/adversarial, parzen_ll.py): pixels in [0, 1]; sigma is the best of ten
    from 0.1 to 1 for 1,000 images of the last sixth of the training set (MNIST: from image 50,000 on).
    """
    run = load_run(options.run, options)
    test = load_test(run, download=True)
    images, _ = load_data(run)
    last = len(images) * 5 // 6
    if test is None:
        fail("the paper's Parzen estimate needs a test set")
    crop = 2 if run.args.data in TEST_FILES and run.args.image_size == 32 else 0  # the border that 28x28 images got
    device = "cuda" if run.args.cuda else "cpu"

    def vectors(images: Tensor) -> Tensor:
        """Images, uint8 or in [-1, 1], as float64 (N, D) in [0, 1]."""
        side = images.shape[-1] - crop
        x = images[:, :, crop:side, crop:side].flatten(1).to(device, torch.float64)
        return x / 255 if images.dtype == torch.uint8 else (x + 1) / 2

    valid, x = vectors(images[last : last + 1000]), vectors(test[0])
    print(f"{'samples':24}{'sigma':>8}{'log-likelihood':>16}")
    for name in ("training images", "run", "untrained"):
        if name == "training images":
            samples = vectors(images[:last][: options.samples])
        else:
            samples = torch.cat([vectors(part) for part, _ in draw(run, options.samples, name == "run")])
        sigmas = [options.sigma] if options.sigma else torch.logspace(-1, 0, 10).tolist()
        sigma = sigmas[log_likelihood(valid, samples, sigmas).mean(1).argmax()]
        ll = log_likelihood(x, samples, [sigma])[0]
        error = ll.std() / math.sqrt(len(ll))
        print(f"{name:24}{sigma:8.3f}{ll.mean():10.1f} ± {error:.1f}", flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = ArgumentParser("evaluate.py", description=__doc__.splitlines()[0])
    parser.error = fail
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(function, runs=None):
        sub = commands.add_parser(function.__name__, help=function.__doc__.splitlines()[0])
        sub.error = fail
        sub.set_defaults(function=function)
        sub.add_argument("run", metavar="RUN")
        sub.add_argument("--data-dir")
        sub.add_argument("--cuda", action="store_true")
        sub.add_argument("--samples", type=int, default=10_000)
        return sub

    command(parzen).add_argument("--sigma", type=float)
    options = parser.parse_args(argv)
    try:
        options.function(options)
    except KeyboardInterrupt:
        fail("interrupted", 130)
    return 0


if __name__ == "__main__":
    sys.exit(main())
