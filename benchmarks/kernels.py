"""Times each operator of gan_kernels against PyTorch's own ways to do the same, side by side.

    python benchmarks/kernels.py                 on the CPU
    python benchmarks/kernels.py --cuda          on the GPU
    python benchmarks/kernels.py --json out.json

Every round runs all candidates once, in random order; a ratio is the median over rounds of (its time / ours in that
round), so that noise of the machine hits both. Above 1, ours is faster. "of copy" is the rate at which ours moves the
bytes that it has to move, as a share of the rate of tensor.copy_ on as many elements in the same rounds. Weights are
moved across the bound before each call, as training does; that is not timed. A second table tells what share of a
whole training step, all updates of the critic and one of G, the operators have; on the GPU all of it is replayed as
CUDA graphs, as in the scripts, so that the GPU is timed and not Python.
"""

import argparse
import contextlib
import functools
import gc
import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

import gan_kernels

sys.path.insert(0, str(Path(__file__).parents[1]))
import wgan
import wgan_gp

C = 0.01  # WGAN's bound
Candidate = Callable[[], object]


def interleaved(candidates: dict[str, Candidate], prepare: Candidate, cuda: bool, seconds: float) -> dict[str, list]:
    """Times each candidate once a round, prepare() before each, until the seconds are over; at least 5 rounds."""
    for candidate in candidates.values():
        for _ in range(3):  # warm up; torch.compile compiles
            prepare()
            candidate()
    times: dict[str, list] = {name: [] for name in candidates}
    start = time.monotonic()
    while time.monotonic() - start < seconds or len(next(iter(times.values()))) < 5:
        for name, candidate in random.sample(list(candidates.items()), len(candidates)):
            prepare()
            if cuda:
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                torch.cuda._sleep(1_000_000)  # the launches are queued meanwhile: the GPU is timed, not Python
                begin.record()
                candidate()
                end.record()
                torch.cuda.synchronize()
                times[name].append(begin.elapsed_time(end) / 1e3)
            else:
                begin = time.perf_counter()
                candidate()
                times[name].append(time.perf_counter() - begin)
    return times


def row(
    op: str,
    size: str,
    ours: Candidate,
    eager: dict[str, Candidate],
    compiled: dict[str, Candidate],
    copy: Candidate,
    passes: int,
    prepare: Candidate,
    args: argparse.Namespace,
) -> dict:
    """A row of the table. passes: how often ours reads or writes each element; copy does it twice."""

    def ratios(rivals: dict[str, Candidate]) -> dict[str, float]:
        """How much faster ours is than each rival. Run apart, so that no other's data lies in the caches."""
        times = interleaved({"ours": ours, **rivals}, prepare, args.cuda, args.seconds)
        microseconds.extend(t * 1e6 for t in times["ours"])
        return {
            name: statistics.median(a / b for a, b in zip(times[name], times["ours"], strict=True)) for name in rivals
        }

    microseconds: list[float] = []
    eager = ratios(eager)
    best = min(eager, key=eager.get)
    cells = {
        "operator": op,
        "size": size,
        "ours (us)": f"{statistics.median(microseconds):.1f}",
        "best eager": f"{eager[best]:.2f} ({best})",
        "torch.compile": f"{ratios(compiled)['compile']:.2f}" if compiled else "fails",
        "of copy": f"{ratios({'copy': copy})['copy'] * passes / 2:.0%}",
    }
    print("| " + " | ".join(cells.values()) + " |", flush=True)
    return cells


def compiled(candidate: Candidate) -> dict[str, Candidate]:
    """A candidate that uses torch.compile, if that works here."""
    try:
        candidate()
    except Exception as error:
        print(f"torch.compile: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
        return {}
    return {"compile": candidate}


def copying(numel: int, device: str) -> Candidate:
    source, target = torch.ones(2, numel, device=device)
    return lambda: target.copy_(source)


def bench_lists(shapes: list[torch.Size], size: str, device: str, args: argparse.Namespace) -> list[dict]:
    """clip_weights_ and rmsprop_clip_ on a list of parameters of these shapes."""
    saved = [(torch.randn(shape, device=device) * C).clamp(-1.5 * C, 1.5 * C) for shape in shapes]
    params = [torch.nn.Parameter(s.clone()) for s in saved]
    for p in params:
        p.grad = torch.randn_like(p)

    @torch.no_grad()
    def prepare() -> None:
        for p, s in zip(params, saved, strict=True):
            p.copy_(s)

    @torch.no_grad()
    def loop() -> None:
        for p in params:
            p.clamp_(-C, C)

    @torch.no_grad()
    def foreach() -> None:
        torch._foreach_clamp_min_(params, -C)
        torch._foreach_clamp_max_(params, C)

    size = f"{size}, {len(params)} tensors, {sum(p.numel() for p in params):,}"
    copy = copying(sum(p.numel() for p in params), device)
    ours, eager = lambda: gan_kernels.clip_weights_(params, C), {"loop": loop, "foreach": foreach}
    rows = [row("clip_weights_", size, ours, eager, compiled(torch.compile(loop)), copy, 2, prepare, args)]

    make = lambda **options: torch.optim.RMSprop(params, lr=5e-5, capturable=args.cuda, **options)  # noqa: E731
    plain, batched = make(foreach=False), make(foreach=True)

    def step_loop() -> None:
        plain.step()
        loop()

    def step_foreach() -> None:
        batched.step()
        foreach()

    ours = gan_kernels.RMSpropClip(params, C, lr=5e-5, capturable=args.cuda).step
    eager = {"RMSprop + loop": step_loop, "RMSprop foreach + foreach": step_foreach}
    fast = compiled(torch.compile(step_foreach))
    return [*rows, row("rmsprop_clip_", size, ours, eager, fast, copy, 5, prepare, args)]


def formula(grad: Tensor) -> Tensor:
    return (grad.flatten(1).norm(2, dim=1) - 1).square().mean()


def there_and_back(penalty: Callable[[Tensor], Tensor], grad: Tensor) -> Candidate:
    """Forward and backward."""
    return lambda: torch.autograd.grad(penalty(grad), grad)


def both(first: Candidate, second: Candidate) -> None:
    first()
    second()


def bench_penalty(shape: tuple[int, ...], device: str, args: argparse.Namespace) -> dict:
    """gradient_penalty, forward and backward."""
    grad = torch.randn(shape, device=device, requires_grad=True)
    size, copy = f"{'x'.join(map(str, shape))}, {grad.numel():,}", copying(grad.numel(), device)
    ours, eager = there_and_back(gan_kernels.gradient_penalty, grad), {"formula": there_and_back(formula, grad)}
    fast = compiled(there_and_back(torch.compile(formula), grad))
    return row("gradient_penalty", size, ours, eager, fast, copy, 3, lambda: None, args)


def graphed(candidate: Candidate, cuda: bool) -> Candidate:
    """On the GPU the candidate as a CUDA graph; it must have run before."""
    if not cuda:
        return candidate
    gc.collect()  # an old graph must not end while a new one is captured
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        candidate()
    return graph.replay


def bench_step(module: ModuleType, device: str, args: argparse.Namespace) -> dict:
    """A whole training step of a script at its defaults, with kernels and without, and what share of it they are."""
    steps, operators = {}, {}
    for name, kernels in (("kernels", "on"), ("formula", "off")):
        with contextlib.redirect_stdout(None):
            options, _ = module.parse_args(["--kernels", kernels, *(["--cuda"] if args.cuda else [])])
            options.channels, options.image_size = 1, 32
            networks, optimizers = module.load_networks(options, {})
        shape = (options.batch_size, 1, options.image_size, options.image_size)
        real = torch.rand(options.n_critic * shape[0], *shape[1:], device=device) * 2 - 1
        steps[name] = functools.partial(module.train_step, networks, optimizers, options, real, torch.empty(0))
        for _ in range(3):
            steps[name]()
        if module is wgan:
            step, clip = optimizers[1].step, functools.partial(wgan.clip_weights_, networks["critic"], C)
            operators[name] = step if options.fused else functools.partial(both, step, clip)
        else:
            grad = torch.randn(shape, device=device, requires_grad=True)
            operators[name] = there_and_back(gan_kernels.gradient_penalty if options.fused else formula, grad)
    if module is wgan:  # the optimizer and the clipping of the last turn, without kernels
        fast = compiled(torch.compile(operators["formula"]))
    else:
        fast = compiled(there_and_back(torch.compile(formula), grad))
    operators |= fast
    for operator in operators.values():
        operator()
    steps = {name: graphed(step, args.cuda) for name, step in steps.items()}
    operators = {name: graphed(operator, args.cuda) for name, operator in operators.items()}
    whole = interleaved(steps, lambda: None, args.cuda, 4 * args.seconds)
    part = interleaved(operators, lambda: None, args.cuda, args.seconds)
    share = {name: options.n_critic * statistics.median(part[name]) / statistics.median(whole[name]) for name in whole}
    ratio = lambda times, name: statistics.median(a / b for a, b in zip(times[name], times["kernels"], strict=True))  # noqa: E731
    cells = {
        "script": f"{module.__name__}.py",
        "step (ms)": f"{statistics.median(whole['kernels']) * 1e3:.1f}",
        "of it kernels": f"{share['kernels']:.2%}",
        "of it formula": f"{share['formula']:.2%}",
        "formula / kernels": f"{ratio(part, 'formula'):.2f}",
        "torch.compile / kernels": f"{ratio(part, 'compile'):.2f}" if fast else "fails",
        "step, formula / kernels": f"{ratio(whole, 'formula'):.3f}",
    }
    print("| " + " | ".join(cells.values()) + " |", flush=True)
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cuda", action="store_true", help="on the GPU")
    parser.add_argument("--seconds", type=float, default=5, help="for each comparison (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table to FILE too")
    args = parser.parse_args()
    device = "cuda" if args.cuda else "cpu"
    if problem := gan_kernels.why_not(device):
        sys.exit(f"gan_kernels does not run on {device}: {problem}")
    if args.cuda:
        torch.cuda.set_stream(torch.cuda.Stream())  # the default one cannot be captured
    torch.manual_seed(0)
    name = torch.cuda.get_device_name() if args.cuda else f"{platform.processor() or platform.machine()} CPU"
    print(f"torch {torch.__version__}, {name}, {torch.get_num_threads()} threads, float32\n")
    print("| operator | size | ours (us) | best eager | torch.compile | of copy |\n|---|---|---|---|---|---|")
    mlp = [torch.Size(shape) for shape in ([512, 784], [512], [256, 512], [256], [1, 256])]
    dcgan = [p.shape for p in wgan.Critic(3, 64).parameters()]
    rows = bench_lists(mlp, "MLP critic", device, args)
    rows += bench_lists(dcgan, "DCGAN critic", device, args)
    rows += bench_lists([torch.Size([2048, 2048])] * 24, "large", device, args)
    for shape in [(64, 1, 28, 28), (64, 3, 64, 64), (256, 3, 128, 128)]:
        rows.append(bench_penalty(shape, device, args))
    names = "script | step (ms) | of it kernels | of it formula | formula / kernels | torch.compile / kernels"
    print(f"\n| {names} | step, formula / kernels |\n|---|---|---|---|---|---|---|")
    rows += [bench_step(module, device, args) for module in (wgan, wgan_gp)]
    if args.json:
        args.json.write_text(json.dumps({"torch": torch.__version__, "device": name, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
