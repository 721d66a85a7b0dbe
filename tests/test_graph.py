"""What a CUDA graph asks of a training step: the same memory at every step, and no reading of values on the way.

Without a GPU this is as much of it as can be tested; with one, replayed runs are compared with runs step by step.
"""

import contextlib
import csv
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import SCRIPTS, call, load, make_data
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

EACH_SCRIPT = pytest.mark.parametrize("script", SCRIPTS)
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
SMALL = ["--batch-size", "4", "--latent-dim", "8", "--log-every", "1"]
KERNELS = load("wgan.py").gan_kernels
NO_KERNELS = KERNELS.why_not("cpu") if KERNELS else "gan_kernels is not installed"
WITH_KERNELS = [
    pytest.param(script, "on", marks=pytest.mark.skipif(bool(NO_KERNELS), reason=f"no kernels: {NO_KERNELS}"))
    for script in ("wgan.py", "wgan_gp.py")
]
EACH_VARIANT = pytest.mark.parametrize(("script", "kernels"), [*((script, "off") for script in SCRIPTS), *WITH_KERNELS])


def options(script: str, kernels: str) -> list[str]:
    return [*SMALL, *(["--kernels", kernels] if script.startswith("wgan") else [])]


def meta_step(script: str, kernels: str) -> tuple[torch.nn.ModuleDict, list, Namespace, Tensor, Tensor]:
    """What train_step takes, on the meta device, where there are no values."""
    module, (args, _) = load(script), load(script).parse_args(options(script, kernels))
    args.channels, args.image_size, args.classes = 1, 16, ["cats", "dogs"]
    networks = module.build(args)[0].to("meta")
    optimizers = [torch.optim.SGD(network.parameters(), lr=0.1) for network in networks.values()]
    if script == "wgan.py" and args.fused:
        optimizers[1] = module.gan_kernels.RMSpropClip(networks["critic"].parameters(), clip=0.1)
        for p in networks["critic"].parameters():
            p.grad = torch.zeros_like(p)
        optimizers[1].step()
        for state in optimizers[1].state.values():  # a step count lies on the GPU if it is capturable
            state["step"] = state["step"].to("meta")
    count = 4 * getattr(args, "n_critic", 1)
    real = torch.zeros(count, 1, 16, 16, device="meta")
    return networks, optimizers, args, real, torch.zeros(count, dtype=torch.int64, device="meta")


class OnlyMeta(TorchDispatchMode):
    """Fails where an operator makes or takes a tensor with values. On a GPU that is a copy from or to the host."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = torch.utils._pytree.tree_leaves([args, kwargs, result])
        wrong = [x for x in tensors if isinstance(x, Tensor) and x.device.type != "meta"]
        assert not wrong, f"{function} takes or gives a tensor on {wrong[0].device}"
        return result


@EACH_VARIANT
def test_a_step_reads_no_value_and_uses_no_other_device_than_the_images(script: str, kernels: str) -> None:
    inputs = meta_step(script, kernels)
    with OnlyMeta():
        metrics = load(script).train_step(*inputs)
    assert {value.shape for value in metrics.values()} == {()}


def test_the_meta_device_would_notice_a_value_that_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, backward = meta_step("dcgan.py", "off"), Tensor.backward
    peeks = {  # what is done to each loss, and the error that tells of it
        "": lambda loss: loss + 1,
        "on meta tensors": lambda loss: loss.item(),
        "a tensor on cpu": lambda loss: loss + torch.ones(1),
        "copy out of meta tensor": lambda loss: loss.cpu(),
    }
    for words, peek in peeks.items():
        monkeypatch.setattr(
            Tensor, "backward", lambda loss, peek=peek, **options: (peek(loss), backward(loss, **options))
        )
        noticed = pytest.raises((RuntimeError, AssertionError), match=words) if words else contextlib.nullcontext()
        with noticed, OnlyMeta():
            load("dcgan.py").train_step(*inputs)


def test_every_step_finds_its_images_in_the_same_memory(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, places, seen = load("wgan.py"), set(), []
    original = module.train_step

    def step(networks: object, optimizers: list, args: Namespace, real: Tensor, labels: Tensor) -> dict[str, Tensor]:
        places.add((real.data_ptr(), labels.data_ptr()))
        seen.append(real.clone())
        return original(networks, optimizers, args, real, labels)

    monkeypatch.setattr(module, "train_step", step)
    call("wgan.py", "--data", data, "--epochs", 2, *SMALL)
    assert len(places) == 1 and len(seen) == 6 and not torch.equal(seen[0], seen[1])


class FakeGraph:
    """Counts replays instead of launching anything. Like torch's it hides the error of a step behind its own."""

    replays, states = 0, 0

    def replay(self) -> None:
        FakeGraph.replays += 1

    def clone_state(self) -> str:
        return "a new state"

    def graphsafe_set_state(self, state: str) -> None:
        FakeGraph.states += state == "a new state"

    @contextlib.contextmanager
    def capturing(self, stream: None) -> Iterator[None]:
        try:
            yield
        finally:
            if sys.exc_info()[1]:
                raise RuntimeError("the capture is invalid")


@pytest.mark.parametrize("works", [True, False])
def test_what_is_captured_is_replayed_and_what_cannot_be_goes_on_step_by_step(
    works: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def step(x: Tensor) -> dict[str, Tensor]:
        if not works:
            raise RuntimeError("not here")
        return {"loss": x + 1}

    for name, value in {"current_stream": lambda: None, "current_device": lambda: 0, "CUDAGraph": FakeGraph}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.cuda, "graph", FakeGraph.capturing)
    monkeypatch.setattr(torch.cuda, "default_generators", (FakeGraph(),))
    monkeypatch.setattr(FakeGraph, "replays", 0)
    monkeypatch.setattr(FakeGraph, "states", 0)
    replay = load("dcgan.py").capture(step, torch.zeros(()))
    if works:
        assert replay() == replay() == {"loss": torch.ones(())}
    else:
        assert replay is None
    assert (FakeGraph.replays, FakeGraph.states) == ((2, 0) if works else (0, 1))
    assert ("hint: no CUDA graph, so steps may take longer: not here" in capsys.readouterr().out) == (not works)


def columns(run: str) -> Tensor:
    with Path(run, "metrics.csv").open(newline="") as file:
        rows = [[float(value) for name, value in row.items() if name != "seconds"] for row in csv.DictReader(file)]
    return torch.tensor(rows)


@NEEDS_GPU
@pytest.mark.parametrize("amp", [[], ["--amp"]], ids=["float32", "amp"])
@EACH_VARIANT
def test_replayed_and_resumed_steps_are_the_steps_one_by_one(
    script: str, kernels: str, amp: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_data(Path("data"), 80, size=16)
    common = ["--data", data, "--cuda", "--epochs", 100, *options(script, kernels), *amp]
    for steps in (9, 20):
        call(script, *common, "--steps", steps, "--out", "graph", "--resume")
    assert "no CUDA graph" not in capsys.readouterr().out
    call(script, *common, "--steps", 20, "--out", "eager", "--no-graph")
    assert columns("graph")[:, 0].tolist() == list(range(1, 21))
    torch.testing.assert_close(columns("graph"), columns("eager"), rtol=2e-2, atol=2e-3)
    assert len(columns("graph")[:, -1].unique()) == 20  # a new column at each replay
    assert call(script, "--resume", "graph", "--steps", 22, "--no-cuda") == 0


@NEEDS_GPU
@pytest.mark.parametrize("where", ["critic", "generator"])
def test_a_step_that_cannot_be_captured_goes_on_without_a_graph(
    where: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, backward = make_data(Path("data"), 80, size=16), Tensor.backward
    common = ["--data", data, "--cuda", "--steps", 20, "--kernels", "off", *SMALL]

    def peeking(loss: Tensor, **inputs) -> None:
        if where == "critic" or inputs:  # the generator's backward names them
            loss.item()
        backward(loss, **inputs)

    call("wgan_gp.py", *common, "--out", "eager", "--no-graph")
    assert "hint" not in capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "backward", peeking)
        call("wgan_gp.py", *common, "--out", "peeking")
    assert "hint: no CUDA graph" in capsys.readouterr().out
    torch.testing.assert_close(columns("peeking"), columns("eager"), rtol=2e-2, atol=2e-3)
    call("wgan_gp.py", *common, "--out", "after")  # in the same process a graph can be captured again
    assert "hint" not in capsys.readouterr().out


@NEEDS_GPU
@EACH_VARIANT
def test_no_step_waits_for_the_gpu(script: str, kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data, module, steps = make_data(Path("data"), 1000, size=16), load(script), []
    original = module.capture

    def capture(*inputs: object) -> Callable:
        replay = original(*inputs)
        torch.cuda.set_sync_debug_mode("error")
        return lambda: steps.append("replayed") or replay()

    class Bar(module.tqdm):
        def update(self, n: int = 1) -> None:
            if len(steps) == 5:  # the last step writes a checkpoint
                torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(module, "capture", capture)
    monkeypatch.setattr(module, "tqdm", Bar)
    try:
        args = [*options(script, kernels), "--log-every", 1000, "--steps", 20]
        assert call(script, "--data", data, "--cuda", *args) == 0
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(steps) == 17
