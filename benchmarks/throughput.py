"""How fast the scripts train: beside the bare arithmetic of their networks, and beside the textbook way.

    python benchmarks/throughput.py                          all scripts on the CPU, float32 and --amp
    python benchmarks/throughput.py --cuda --image-size 64   on the GPU, as CUDA graphs, in float32 step by step too
    python benchmarks/throughput.py dcgan wgan --seconds 60

The data are 20,000 glyphs in a folder of arrays. Three candidates take turns in one process, about a second each (on
the GPU 0.15), until the seconds are over; a ratio is the median over the turns, so that noise of the machine hits all.

    train      the script's own loop, everything included: data, metrics, averaged weights, samples and checkpoints
    floor      its networks and optimizers alone: forward, backward and update on one batch that stays where it is; on
               the GPU replayed as a CUDA graph
    textbook   what many repositories do: a DataLoader that decodes one PIL image at a time, contiguous memory, the
               default optimizer, float32, fakes with the generator's graph, .item() of each loss at each step
"""

import argparse
import contextlib
import functools
import gc
import importlib
import io
import json
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
SCRIPTS = ["vanilla_gan", "dcgan", "cgan", "wgan", "wgan_gp", "lsgan", "acgan", "fgan"]
Step = Callable[[], object]


class Done(Exception):
    """The seconds are over."""


def write_glyphs(module: ModuleType, size: int, folder: Path) -> Path:
    """The script's glyphs at this size, as a folder of arrays."""
    folder.mkdir()
    images, labels = module.glyphs(size=size)
    np.save(folder / "images.npy", images.numpy())
    np.save(folder / "labels.npy", labels.numpy())
    (folder / "classes.txt").write_text("\n".join("0123456789"))
    return folder


def options_of(module: ModuleType, argv: list[str]) -> Namespace:
    """The script's arguments, with what its loop takes from the data."""
    args, _ = module.parse_args(argv)
    images, _, args.classes = module.load_data(args)
    args.channels, args.image_size = images.shape[1:3]
    return args


def updates(args: Namespace) -> int:
    """Of the discriminator or critic in a step."""
    return getattr(args, "n_critic", getattr(args, "d_steps", 1))


def gan_loss(answer: Tensor | tuple[Tensor, Tensor], target: float, labels: list[Tensor]) -> Tensor:
    """Cross entropy of what D says, real (1) or fake (0), in lsgan and fgan too; acgan's D says the class as well."""
    logits, *classes = answer if isinstance(answer, tuple) else (answer,)
    loss = F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))
    return loss + sum(F.cross_entropy(x, labels[0]) for x in classes)


def told(module: ModuleType, labels: list[Tensor]) -> list[Tensor]:
    """What D is given beside the image."""
    return labels if module.__name__ == "cgan" else []


# ------------------------------------------------------------------------------------------------------------ the floor


def floor(module: ModuleType, args: Namespace) -> Step:
    """The arithmetic of a step and nothing else."""
    with contextlib.redirect_stdout(None):
        networks, (g_optimizer, d_optimizer) = module.load_networks(args, {})
    generator, judge, _ = networks.values()  # the third is the average of G
    device = next(generator.parameters()).device
    shape = (args.batch_size, 1, args.image_size, args.image_size)
    real = (torch.rand(shape, device=device) * 2 - 1).contiguous(memory_format=torch.channels_last)
    labels = [torch.randint(10, (args.batch_size,), device=device)] if "label" in args else []
    noise = functools.partial(torch.randn, args.batch_size, args.latent_dim, device=device)

    def judge_loss(fake: Tensor) -> Tensor:
        if module.__name__ == "wgan":
            return judge(fake).mean() - judge(real).mean()
        if module.__name__ == "wgan_gp":
            penalty = module.gradient_penalty(judge, real, fake, args.fused)
            return judge(fake).mean() - judge(real).mean() + args.gp_weight * penalty
        return sum(gan_loss(judge(x, *told(module, labels)), t, labels) for x, t in ((real, 1.0), (fake, 0.0)))

    @torch.autocast(device.type, torch.bfloat16, enabled=args.amp, cache_enabled=False)  # as the script's loop
    def step() -> Tensor:
        for _ in range(updates(args)):
            with torch.no_grad():
                fake = generator(noise(), *labels)
            d_optimizer.zero_grad()
            judge_loss(fake).backward()
            d_optimizer.step()
            if module.__name__ == "wgan" and not args.fused:
                module.clip_weights_(judge, args.clip)
        answer = judge(generator(noise(), *labels), *told(module, labels))
        wasserstein = module.__name__.startswith("wgan")
        loss = -answer.mean() if wasserstein else gan_loss(answer, 1.0, labels)
        g_optimizer.zero_grad()
        loss.backward(inputs=list(generator.parameters()))
        g_optimizer.step()
        return loss.detach()

    if not args.cuda:
        return step
    for _ in range(3):
        step()
    return insisting(module.capture)(step)


def insisting(capture: Callable) -> Callable:
    """A script's capture, but one that ends the program if there is no graph: the table would say what is not so."""

    def insist(step: Step, *inputs: object) -> Step:
        gc.collect()  # an old graph must not end while a new one is captured
        with contextlib.redirect_stdout(io.StringIO()) as out:
            replay = capture(step, *inputs)
        return replay or sys.exit(out.getvalue())

    return insist


# --------------------------------------------------------------------------------------------------------- the textbook


class Pictures(Dataset):
    """The glyphs as PNG files (in memory), each decoded when it is asked for."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.files, self.labels = [], labels.tolist()
        for image in images.numpy():
            file = io.BytesIO()
            Image.fromarray(image[0]).save(file, "PNG")
            self.files.append(file.getvalue())

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        image = np.array(Image.open(io.BytesIO(self.files[i])), dtype=np.float32)
        return torch.from_numpy(image)[None].div(127.5).sub(1), self.labels[i]


def forever(loader: DataLoader) -> Iterator[list[Tensor]]:
    while True:
        yield from loader


def textbook(module: ModuleType, args: Namespace, pictures: Pictures) -> Step:
    """A step as it stands in many repositories."""
    device = "cuda" if args.cuda else "cpu"
    with contextlib.redirect_stdout(None):
        networks, _ = module.build(Namespace(**{**vars(args), "kernels": "off"}))
    generator, judge = networks.to(device).values()  # contiguous
    if module.__name__ == "wgan":
        optimizer = functools.partial(torch.optim.RMSprop, lr=args.lr)
    else:
        betas = (0.0, 0.9) if module.__name__ == "wgan_gp" else (0.5, 0.999)
        optimizer = functools.partial(torch.optim.Adam, lr=args.lr, betas=betas)
    g_optimizer, d_optimizer = (optimizer(network.parameters()) for network in (generator, judge))
    batches = forever(DataLoader(pictures, args.batch_size, shuffle=True, drop_last=True))

    @torch.autocast(device, enabled=False)  # its turns come in the script's loop, which may be under --amp
    def step() -> float:
        for _ in range(updates(args)):
            real, label = (tensor.to(device) for tensor in next(batches))
            labels = [label] if "label" in args else []
            fake = generator(torch.randn(len(real), args.latent_dim, device=device), *labels)
            d_optimizer.zero_grad()
            if module.__name__.startswith("wgan"):
                d_loss = judge(fake.detach()).mean() - judge(real).mean()
                if module.__name__ == "wgan_gp":
                    d_loss = d_loss + args.gp_weight * module.gradient_penalty(judge, real, fake.detach())
            else:
                d_loss = gan_loss(judge(real, *told(module, labels)), 1.0, labels)
                d_loss = d_loss + gan_loss(judge(fake.detach(), *told(module, labels)), 0.0, labels)
            d_loss.backward()
            d_optimizer.step()
            if module.__name__ == "wgan":
                for p in judge.parameters():
                    p.data.clamp_(-args.clip, args.clip)
            d_loss.item()
        fake = generator(torch.randn(len(real), args.latent_dim, device=device), *labels)
        answer = judge(fake, *told(module, labels))
        g_loss = -answer.mean() if module.__name__.startswith("wgan") else gan_loss(answer, 1.0, labels)
        g_optimizer.zero_grad()
        g_loss.backward()
        g_optimizer.step()
        return g_loss.item()

    return step


# --------------------------------------------------------------------------------------------------------------- turns


def measure(module: ModuleType, argv: list[str], pictures: Pictures, seconds: float) -> dict[str, list]:
    """Seconds a step of each candidate, turn by turn. The rivals' turns come in the middle of the script's own loop."""
    args = options_of(module, argv)
    if args.cuda:
        torch.cuda.set_stream(torch.cuda.Stream())  # the default one cannot be captured
    rivals = {"floor": floor(module, args), "textbook": textbook(module, args, pictures)}
    for step in rivals.values():
        step()
        step()
    wait = torch.cuda.synchronize if args.cuda else lambda: None
    times: dict[str, list] = {name: [] for name in ("train", *rivals)}
    began, warm = time.monotonic(), 6  # steps before the first turn: algorithms are chosen, the graph is captured
    turn = {"steps": -warm, "start": time.perf_counter()}

    class Bar(module.tqdm):
        def update(self, n: int = 1) -> None:
            super().update(n)
            turn["steps"] += 1
            if turn["steps"] > 0 and time.perf_counter() - turn["start"] > (0.15 if args.cuda else 1):
                wait()
                times["train"].append((time.perf_counter() - turn["start"]) / turn["steps"])
                for name, step in rivals.items():
                    start = time.perf_counter()
                    for _ in range(turn["steps"]):
                        step()
                    wait()
                    times[name].append((time.perf_counter() - start) / turn["steps"])
                turn["steps"] = 0
                if time.monotonic() - began > seconds and len(times["train"]) > 4:
                    raise Done
            if turn["steps"] == 0:
                wait()
                turn["start"] = time.perf_counter()

    tqdm, capture = module.tqdm, module.capture
    with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w") as devnull:
        try:
            module.tqdm, module.capture = Bar, insisting(capture)
            with contextlib.suppress(Done), contextlib.redirect_stdout(devnull), contextlib.redirect_stderr(devnull):
                sys.exit(module.main([*argv, "--epochs", "1000000", "--out", f"{folder}/run"]))  # stopped by a signal
        finally:
            module.tqdm, module.capture = tqdm, capture
            signal.signal(signal.SIGINT, signal.default_int_handler)  # the loop has taken both
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scripts", nargs="*", default=SCRIPTS, metavar="SCRIPT", help=f"{', '.join(SCRIPTS)} (all)")
    parser.add_argument("--cuda", action="store_true", help="on the GPU")
    parser.add_argument("--image-size", type=int, metavar="S", default=32, help="side of the glyphs (%(default)s)")
    parser.add_argument("--seconds", type=float, default=30, help="for each row (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table to FILE too")
    bench = parser.parse_args()
    name = torch.cuda.get_device_name() if bench.cuda else f"{platform.processor() or platform.machine()} CPU"
    print(f"torch {torch.__version__}, {name}, {torch.get_num_threads()} threads\n")
    print("| script | size | batch | | images/s | ms a step | train / floor | textbook / train |")
    print("|---|---|---|---|---|---|---|---|")
    rows, home = [], tempfile.TemporaryDirectory()
    for script in bench.scripts:
        module = importlib.import_module(Path(script).stem)
        data = Path(home.name, str(bench.image_size))
        data = data if data.exists() else write_glyphs(module, bench.image_size, data)
        common = ["--data", str(data), *(["--cuda"] if bench.cuda else [])]
        args = options_of(module, common)
        pictures = Pictures(*module.load_data(args)[:2])
        for amp in ([], ["--amp"]):
            for graph in (True, False) if bench.cuda and not amp else (bench.cuda,):
                argv = [*common, *amp, *([] if graph else ["--no-graph"])]
                times = measure(module, argv, pictures, bench.seconds)
                seconds = statistics.median(times["train"])
                ratio = lambda a, b, t=times: statistics.median(x / y for x, y in zip(t[a], t[b], strict=True))  # noqa: E731
                cells = {
                    "script": f"{module.__name__}.py",
                    "size": str(args.image_size),
                    "batch": str(args.batch_size),
                    "": ("bfloat16" if amp else "float32") + (", graph" if graph else ", eager" if bench.cuda else ""),
                    "images/s": f"{updates(args) * args.batch_size / seconds:,.0f}",
                    "ms a step": f"{seconds * 1e3:.1f}",
                    "train / floor": f"{ratio('train', 'floor'):.3f}",
                    "textbook / train": f"{ratio('textbook', 'train'):.2f}",
                }
                print("| " + " | ".join(cells.values()) + " |", flush=True)
                rows.append(cells)
    if bench.json:
        bench.json.write_text(json.dumps({"torch": torch.__version__, "device": name, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
