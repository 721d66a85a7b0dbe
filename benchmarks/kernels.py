"""Times each operator of gan_kernels against PyTorch's own ways to do the same.

    python benchmarks/kernels.py            on the CPU
    python benchmarks/kernels.py --cuda     on the GPU

In each round all candidates run once, in random order. A ratio is the median over the rounds of
"time of the other / time of ours", so that noise of the machine hits both; above 1, ours is faster.
"of copy" is the rate at which ours moves the bytes that it has to move, as a share of the rate of
tensor.copy_ on as many elements.

A second table tells what share of a whole training step of a script the operator has, at the
script's defaults.

On the GPU every candidate is a CUDA graph of ten calls, so that Python is not timed. --json FILE
keeps the seconds of each round.
"""

import functools
import gc
import importlib
import json
import platform
import random
import shlex
import statistics
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
try:
    import gan_kernels
except ImportError:
    gan_kernels = None  # the tables need none

OPERATOR_HEAD = ["operator", "size", "ours (us)", "best eager", "torch.compile", "of copy"]
SHARE_HEAD = ["script", "step (ms)", "our kernels", "PyTorch's operators"]
BOUND = 0.01  # of WGAN's weights
CALLS = 10  # in a CUDA graph
MOST_ROUNDS = 300  # a median needs no more, and --json keeps them all
Candidate = Callable[[], object]


def measure(candidate: Candidate, cuda: bool) -> float:
    """The seconds that the candidate takes. On the GPU it is a graph from as_graph."""
    if not cuda:
        start = time.perf_counter()
        candidate()
        return time.perf_counter() - start
    begin = torch.cuda.Event(enable_timing=True)
    end = torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(500_000)  # what follows is queued meanwhile, so Python is not timed
    begin.record()
    candidate()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3 / CALLS


def as_graph(candidate: Candidate) -> Candidate:
    """CALLS calls of the candidate as a CUDA graph."""
    gc.collect()  # an old graph must not end while a new one is captured
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        for _ in range(CALLS):
            candidate()
    return graph.replay


def interleave(candidates: dict[str, Candidate], args: Namespace) -> dict[str, list[float]]:
    """The seconds of each candidate in each round. There are at least 5, and at most
    MOST_ROUNDS, within args.seconds.

    They are rounded to nanoseconds.
    """
    for candidate in candidates.values():
        for _ in range(3):  # to warm up; torch.compile compiles
            candidate()
    if args.cuda:
        candidates = {name: as_graph(candidate) for name, candidate in candidates.items()}
    times = {name: [] for name in candidates}
    rounds = 0
    start = time.monotonic()
    while rounds < 5 or (rounds < MOST_ROUNDS and time.monotonic() - start < args.seconds):
        rounds += 1
        for name in random.sample(list(candidates), len(candidates)):
            times[name].append(round(measure(candidates[name], args.cuda), 9))
    return times


def ratio(times: dict[str, list[float]], name: str) -> float:
    pairs = zip(times[name], times["ours"], strict=True)
    return statistics.median(other / ours for other, ours in pairs)


def print_row(*cells: str) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


def operator_cells(row: dict) -> list[str]:
    """A row of the first table, from the seconds of each round."""
    times = row["seconds"]["ours and eager"]
    ratios = {name: ratio(times, name) for name in times if name != "ours"}
    best = min(ratios, key=ratios.get)
    compiled = "fails"
    if "ours and torch.compile" in row["seconds"]:
        compiled = f"{ratio(row['seconds']['ours and torch.compile'], 'compile'):.2f}"
    copy_ratio = ratio(row["seconds"]["ours and copy"], "copy")
    return [
        row["operator"],
        f"{row['size']}, {row['numel']:,}",
        f"{statistics.median(times['ours']) * 1e6:.1f}",
        f"{ratios[best]:.2f} ({best})",
        compiled,
        f"{copy_ratio * row['passes'] / 2:.0%}",  # copy_ makes 2 passes
    ]


def share_cells(row: dict) -> list[str]:
    """A row of the second table."""
    seconds = {name: statistics.median(values) for name, values in row["seconds"].items()}
    shares = [row["n_critic"] * seconds[name] / seconds["step"] for name in ("ours", "formula")]
    cells = [f"{seconds['step'] * 1e3:.1f}", *[f"{share:.2%}" for share in shares]]
    return [f"{row['script']}.py", *cells]


def compare(
    operator: str,
    size: str,
    numel: int,
    ours: Candidate,
    eager: dict[str, Candidate],
    compiled: Candidate,
    passes: int,
    args: Namespace,
) -> None:
    """Prints a row of the first table. passes: how often ours reads or writes each element."""
    # Each kind of rival has rounds of its own, so that no other's data lies in the caches
    seconds = {"ours and eager": interleave({"ours": ours, **eager}, args)}
    try:
        with_compile = interleave({"ours": ours, "compile": compiled}, args)
        seconds["ours and torch.compile"] = with_compile
    except Exception as error:  # there may be no compiler here
        print(f"torch.compile: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
    source, target = torch.ones(2, numel, device=args.device)
    copy = functools.partial(target.copy_, source)
    seconds["ours and copy"] = interleave({"ours": ours, "copy": copy}, args)
    row = {"operator": operator, "size": size, "numel": numel, "passes": passes}
    row["seconds"] = seconds
    args.rows.append(row)
    print_row(*operator_cells(row))


@torch.no_grad()
def clip_loop(params: list[Tensor]) -> None:
    for p in params:
        p.clamp_(-BOUND, BOUND)


@torch.no_grad()
def clip_foreach(params: list[Tensor]) -> None:
    torch._foreach_clamp_min_(params, -BOUND)
    torch._foreach_clamp_max_(params, BOUND)


def step_and_clip(optimizer: torch.optim.Optimizer, clip: Callable, params: list[Tensor]) -> None:
    optimizer.step()
    clip(params)


def compare_on_lists(size: str, shapes: list[torch.Size], args: Namespace) -> None:
    """clip_weights_ and rmsprop_clip_ on a list of parameters of these shapes."""
    params = [nn.Parameter(torch.randn(shape, device=args.device) * BOUND) for shape in shapes]
    for p in params:
        p.grad = torch.randn_like(p)

    size = f"{size}, {len(params)} tensors"
    numel = sum(p.numel() for p in params)
    ours = functools.partial(gan_kernels.clip_weights_, params, BOUND)
    loop = functools.partial(clip_loop, params)
    eager = {"loop": loop, "foreach": functools.partial(clip_foreach, params)}
    compare("clip_weights_", size, numel, ours, eager, torch.compile(loop), 2, args)

    options = {"lr": 5e-5, "capturable": args.cuda}
    ours = gan_kernels.RMSpropClip(params, clip=BOUND, **options).step
    loop_optimizer = torch.optim.RMSprop(params, foreach=False, **options)
    loop = functools.partial(step_and_clip, loop_optimizer, clip_loop, params)
    foreach_optimizer = torch.optim.RMSprop(params, foreach=True, **options)
    foreach = functools.partial(step_and_clip, foreach_optimizer, clip_foreach, params)
    eager = {"RMSprop + loop": loop, "RMSprop foreach + foreach": foreach}
    compare("rmsprop_clip_", size, numel, ours, eager, torch.compile(foreach), 5, args)


def formula(grad: Tensor) -> Tensor:
    return (grad.flatten(1).norm(2, dim=1) - 1).square().mean()


def there_and_back(penalty: Callable[[Tensor], Tensor], grad: Tensor) -> None:
    torch.autograd.grad(penalty(grad), grad)


def compare_on_batch(shape: tuple[int, ...], args: Namespace) -> None:
    """gradient_penalty, forward and backward."""
    grad = torch.randn(shape, device=args.device, requires_grad=True)
    ours = functools.partial(there_and_back, gan_kernels.gradient_penalty, grad)
    eager = {"formula": functools.partial(there_and_back, formula, grad)}
    compiled = functools.partial(there_and_back, torch.compile(formula), grad)
    size = "x".join(map(str, shape))
    compare("gradient_penalty", size, grad.numel(), ours, eager, compiled, 3, args)


def measure_share(script_name: str, args: Namespace) -> None:
    """Prints a row of the second table."""
    script = importlib.import_module(script_name)
    options, _ = script.parse_args(["--cuda" if args.cuda else "--no-cuda"])
    options.channels, options.image_size = 1, 32
    networks, optimizers = script.make_networks(options, {})
    real = torch.rand(script.images_per_step(options), 1, 32, 32, device=args.device) * 2 - 1
    step = functools.partial(script.train_step, networks, optimizers, options, real, torch.empty(0))
    if script_name == "wgan":
        weights = list(networks["critic"].parameters())
        ours = functools.partial(gan_kernels.clip_weights_, weights, BOUND)
        theirs = functools.partial(clip_loop, weights)
    else:
        grad = torch.randn(options.batch_size, 1, 32, 32, device=args.device, requires_grad=True)
        ours = functools.partial(there_and_back, gan_kernels.gradient_penalty, grad)
        theirs = functools.partial(there_and_back, formula, grad)
    candidates = {"step": step, "ours": ours, "formula": theirs}
    times = {}
    for name, candidate in candidates.items():
        times |= interleave({name: candidate}, args)
    row = {"script": script_name, "n_critic": options.n_critic, "seconds": times}
    args.rows.append(row)
    print_row(*share_cells(row))


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cuda", action="store_true", help="on the GPU")
    parser.add_argument("--seconds", type=float, default=5, help="per comparison (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keeps the seconds of each round")
    args = parser.parse_args()
    args.rows = []
    args.device = "cuda" if args.cuda else "cpu"
    if gan_kernels is None:
        sys.exit("gan_kernels has not been built: pip install -e .")
    if gan_kernels.why_not(args.device):
        sys.exit(f"gan_kernels does not run here: {gan_kernels.why_not(args.device)}")
    machine = f"{platform.processor() or platform.machine()} CPU"
    if args.cuda:
        machine = torch.cuda.get_device_name()
        torch.cuda.set_stream(torch.cuda.Stream())  # the default stream cannot be captured
        torch.backends.cudnn.benchmark = True  # as in the scripts
        torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    machine = f"torch {torch.__version__}, {machine}, {torch.get_num_threads()} threads"
    print(f"{machine}, float32\n")
    print_row(*OPERATOR_HEAD)
    print_row(*["---"] * len(OPERATOR_HEAD))
    mlp = [torch.Size(shape) for shape in ([512, 784], [512], [256, 512], [256], [1, 256])]
    dcgan = [p.shape for p in importlib.import_module("wgan").Critic(3, 64).parameters()]
    compare_on_lists("MLP critic", mlp, args)
    compare_on_lists("DCGAN critic", dcgan, args)
    compare_on_lists("large", [torch.Size([2048, 2048])] * 24, args)
    for shape in [(64, 1, 32, 32), (64, 3, 64, 64), (256, 3, 128, 128), (512, 3, 256, 256)]:
        compare_on_batch(shape, args)

    print()
    print_row(*SHARE_HEAD)
    print_row(*["---"] * len(SHARE_HEAD))
    measure_share("wgan", args)
    measure_share("wgan_gp", args)
    if args.json:
        command = shlex.join(["python", *sys.argv])
        record = {"command": command, "machine": machine, "rows": args.rows}
        args.json.write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
