"""How fast the scripts train, beside their bare training step and beside the textbook way.

    python benchmarks/throughput.py                          all scripts
    python benchmarks/throughput.py dcgan wgan --seconds 60 --width 32 --image-size 64
    python benchmarks/throughput.py cgan --width 32 --batch-size 32     as in docs/speedrun.md

Each script trains on the built-in digits in float32 and in bfloat16 (--amp; not on a CPU without
AVX-512, where it is slow), on a GPU as a CUDA graph and in float32 also without one. These take
turns in one process until the seconds are over:

    script      the script's own loop, with data, metrics, averaged weights, pictures, checkpoints
    floor       its train_step alone, on one batch that stays where it is; on a GPU as a CUDA graph
    textbook    only for dcgan: its networks as many repositories train them, in float32, with a
                DataLoader that decodes one PIL image at a time, contiguous memory, the default
                optimizer, fakes with the generator's graph and .item() of each loss at each step

A ratio is the median over the turns, so that noise of the machine hits all of them. --json FILE
keeps the seconds of each turn.
"""

import argparse
import contextlib
import gc
import importlib
import io
import itertools
import json
import os
import platform
import re
import shlex
import statistics
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import evaluate

Step = Callable[[], object]
RATIOS = [("script", "floor"), ("textbook", "script")]
CPU_TURN = 1.0  # seconds of a candidate's turn
GPU_TURN = 0.15
WARM_UP = 6  # steps before the first turn: algorithms are chosen, the graph is recorded


class SecondsAreOver(Exception):
    """Ends the script's loop."""


def parse_options(module: ModuleType, argv: list[str]) -> Namespace:
    """The script's options, with those that it takes from the data."""
    args, _ = module.parse_args(argv)
    images, _, args.classes = module.load_data(args.data)
    args.channels, args.image_size = images.shape[1:3]
    return args


def make_floor(module: ModuleType, args: Namespace) -> Step:
    networks, optimizers = module.make_networks(args, {})
    count = module.images_per_step(args)
    shape = (count, args.channels, args.image_size, args.image_size)
    real = torch.rand(shape, device=args.device) * 2 - 1
    labels = torch.randint(len(args.classes), (count,), device=args.device)

    step = partial(module.train_step, networks, optimizers, args, real, labels)
    if not args.cuda:
        return step
    for _ in range(WARM_UP):
        step()
    replay = module.record(step)
    replay.step = step  # keeps the networks: the graph works in their memory
    return replay


def encode(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def decode(files: list[bytes]) -> Tensor:
    """A batch of images (N, 1, S, S) in [-1, 1] from PNG files, which are in memory."""
    images = [np.array(Image.open(io.BytesIO(file)), dtype=np.float32) for file in files]
    return torch.from_numpy(np.stack(images)).unsqueeze(1) / 127.5 - 1


def make_textbook(module: ModuleType, args: Namespace) -> Step:
    """A step of DCGAN as it stands in many repositories."""
    networks, _ = module.build(args)
    generator, discriminator = networks.to(args.device).values()
    g_optimizer = torch.optim.Adam(generator.parameters(), lr=args.lr, betas=(0.5, 0.999))
    d_optimizer = torch.optim.Adam(discriminator.parameters(), lr=args.lr, betas=(0.5, 0.999))
    images, _, _ = module.load_data(args.data)
    files = [encode(image) for image in images[:, 0].numpy()]
    loader = DataLoader(files, args.batch_size, shuffle=True, drop_last=True, collate_fn=decode)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    ones = torch.ones(args.batch_size, device=args.device)
    zeros = torch.zeros_like(ones)
    bce = F.binary_cross_entropy_with_logits

    def step() -> None:
        real = next(batches).to(args.device)
        fake = generator(torch.randn(len(real), args.latent_dim, device=args.device))
        d_optimizer.zero_grad()
        d_loss = bce(discriminator(real), ones) + bce(discriminator(fake.detach()), zeros)
        d_loss.backward()
        d_optimizer.step()
        d_loss.item()
        fake = generator(torch.randn(len(real), args.latent_dim, device=args.device))
        g_optimizer.zero_grad()
        g_loss = bce(discriminator(fake), ones)
        g_loss.backward()
        g_optimizer.step()
        g_loss.item()

    return step


def wait_for_gpu() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def seconds_a_step(step: Step, steps: int, limit: float) -> float:
    """Runs so many steps, or fewer if they take longer than the limit."""
    start = time.perf_counter()
    done = 0
    while done < steps and time.perf_counter() - start < limit:
        step()
        done += 1
    wait_for_gpu()
    return (time.perf_counter() - start) / done


def measure(module: ModuleType, argv: list[str], seconds: float) -> dict[str, list[float]]:
    """Seconds a step of each candidate, turn by turn. The others' turns interrupt the script."""
    gc.collect()  # frees old CUDA graphs now: it must not happen while a new one is recorded
    args = parse_options(module, argv)
    rivals = {"floor": make_floor(module, args)}
    if module.SCRIPT == "dcgan":
        rivals["textbook"] = make_textbook(module, args)
    turn = GPU_TURN if args.cuda else CPU_TURN
    for step in rivals.values():
        seconds_a_step(step, 2, turn)
    times: dict[str, list[float]] = {name: [] for name in ("script", *rivals)}
    over = time.monotonic() + seconds

    class Turns(module.tqdm):
        """The script's progress bar, which hands out its steps."""

        def __iter__(self) -> Iterator[int]:
            done = -WARM_UP
            for step in super().__iter__():
                if done == 0:
                    wait_for_gpu()
                    start = time.perf_counter()
                yield step
                done += 1
                if done <= 0 or time.perf_counter() - start < turn:
                    continue
                wait_for_gpu()
                times["script"].append((time.perf_counter() - start) / done)
                for name, rival in rivals.items():
                    times[name].append(seconds_a_step(rival, done, 3 * turn))
                done = 0
                if time.monotonic() > over and len(times["script"]) > 4:
                    raise SecondsAreOver

    with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w") as nowhere:
        silent = contextlib.ExitStack()
        silent.enter_context(contextlib.redirect_stdout(nowhere))
        silent.enter_context(contextlib.redirect_stderr(nowhere))
        with patch.object(module, "tqdm", Turns), silent, contextlib.suppress(SecondsAreOver):
            module.main([*argv, "--epochs", "1000000", "--out", f"{folder}/run"])
    return times


def describe_machine(cuda: bool) -> str:
    """For example "2 threads of AMD EPYC, AVX2", or the name of the GPU."""
    if cuda:
        return torch.cuda.get_device_name()
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")  # Linux, where platform knows no model
    if cpuinfo.exists():
        found = re.search(r"^model name\s*: (.+)", cpuinfo.read_text(), re.MULTILINE)
        model = found[1] if found else model
    threads = torch.get_num_threads()
    plural = "s" if threads > 1 else ""
    return f"{threads} thread{plural} of {model}, {torch.backends.cpu.get_cpu_capability()}"


def has_fast_bfloat16(cuda: bool) -> bool:
    """False where --amp is slower than float32: on CPUs without AVX-512."""
    return cuda or torch.backends.cpu.get_cpu_capability() == "AVX512"


def print_cells(*cells: object) -> None:
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def show(values: list[float], digits: int = 1) -> str:
    """The mean, and the range in brackets unless it is a point."""
    mean = f"{sum(values) / len(values):.{digits}f}"
    low = f"{min(values):.{digits}f}"
    high = f"{max(values):.{digits}f}"
    return mean if low == high else f"{mean} ({low} to {high})"


def show_ratios(times: dict[str, list[float]]) -> list[str]:
    """The medians of the RATIOS over the turns, or - where a candidate was not measured."""
    texts = []
    for above, below in RATIOS:
        ratios = [x / y for x, y in zip(times.get(above, []), times[below], strict=False)]
        texts.append(f"{statistics.median(ratios):.2f}" if ratios else "-")
    return texts


def print_row(module: ModuleType, name: str, argv: list[str], seconds: float) -> dict:
    """Measures a row and prints it. Returns the seconds a step of each turn."""
    args = parse_options(module, argv)
    times = measure(module, argv, seconds)
    step_seconds = statistics.median(times["script"])
    cells = [f"{step_seconds * 1e3:.2f}", *show_ratios(times)]
    images = module.images_per_step(args)
    images_per_second = f"{images / step_seconds:,.0f}"
    print_cells(f"{module.SCRIPT}.py", args.batch_size, name, images_per_second, *cells)
    rounded = {candidate: [round(x, 6) for x in values] for candidate, values in times.items()}
    row = {"script": module.SCRIPT, "batch": args.batch_size, "images": images, "row": name}
    return row | {"seconds": rounded}


def write_digits(module: ModuleType, size: int, folder: Path) -> None:
    """The built-in digits in this size, as a folder of arrays."""
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = module.digits(size=size)
    np.save(folder / "images.npy", images.numpy())
    np.save(folder / "labels.npy", labels.numpy())
    (folder / "classes.txt").write_text("\n".join("0123456789"))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("throughput.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    scripts = evaluate.find_scripts()
    add("scripts", nargs="*", default=scripts, metavar="SCRIPT", help=f"of {', '.join(scripts)}")
    has_gpu = torch.cuda.is_available()
    add("--cuda", action=argparse.BooleanOptionalAction, default=has_gpu, help="use a GPU")
    add("--image-size", type=int, default=32, help="side of the digits (%(default)s)")
    add("--width", type=int, default=64, help="of the convolutional networks (%(default)s)")
    add("--batch-size", type=int, help="images in a batch (default: the script's own)")
    add("--seconds", type=float, default=30, help="for each row (%(default)s)")
    is_fast = has_fast_bfloat16(has_gpu)
    add("--amp", action=argparse.BooleanOptionalAction, default=is_fast, help="also in bfloat16")
    add("--json", type=Path, metavar="FILE", help="keeps the seconds of each turn")
    bench = parser.parse_args(argv)
    rows = {"float32": [], "bfloat16": ["--amp"]}
    if bench.cuda:
        rows = {"float32": [], "float32, no graph": ["--no-graph"], "bfloat16": ["--amp"]}
        torch.cuda.set_stream(torch.cuda.Stream())  # the default stream cannot be recorded
        torch.backends.cudnn.benchmark = True  # as in the scripts
        torch.set_float32_matmul_precision("high")
    if not bench.amp:
        del rows["bfloat16"]
    machine = f"torch {torch.__version__}, {describe_machine(bench.cuda)}"
    print(f"{machine}, {bench.image_size} pixels, width {bench.width}\n")
    ratios = [" / ".join(names) for names in RATIOS]
    print_cells("script", "batch", "", "images/s", "ms a step", *ratios)
    print_cells(*["---"] * 7)
    record = {"command": shlex.join(["python", *sys.argv]), "machine": machine, "rows": []}
    with tempfile.TemporaryDirectory() as data:
        for script in bench.scripts:
            module = importlib.import_module(Path(script).stem)
            if not any(Path(data).iterdir()):
                write_digits(module, bench.image_size, Path(data))
            common = ["--data", data, "--cuda" if bench.cuda else "--no-cuda"]
            if module.SCRIPT != "vanilla_gan":
                common += ["--width", str(bench.width)]
            if bench.batch_size:
                common += ["--batch-size", str(bench.batch_size)]
            for name, extra in rows.items():
                row = print_row(module, name, [*common, *extra], bench.seconds)
                record["rows"].append(row)
                if bench.json:  # after each row, in case the next one fails
                    bench.json.write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
