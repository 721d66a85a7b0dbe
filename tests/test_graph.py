"""What a CUDA graph asks of a training step: the same memory at every step, and no reading of values on the way.

Without a GPU this is as much of it as can be tested; with one, replayed runs are compared with runs step by step.
"""

import contextlib
import csv
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import SCRIPTS, call, load, make_images
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

NAMES = [script.removesuffix(".py") for script in SCRIPTS]
EACH_SCRIPT = pytest.mark.parametrize("name", NAMES)
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
SMALL = ["--image-size", "16", "--batch-size", "4", "--latent-dim", "8", "--log-every", "1"]
KERNELS = {"wgan": ["off", "on"], "wgan_gp": ["off", "on"]}
VARIANTS = [(name, kernels) for name in NAMES for kernels in KERNELS.get(name, [""])]


def arguments(name: str, kernels: str = "") -> Namespace:
    args, _ = load(f"{name}.py").parse_args([*SMALL, *(["--kernels", kernels] if kernels else [])])
    args.channels, args.classes = 1, ["cats", "dogs"]
    return args


class OnlyMeta(TorchDispatchMode):
    """Fails where an operator makes or takes a tensor with values. On a GPU that is a copy from or to the host."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = torch.utils._pytree.tree_leaves([args, kwargs, result])
        wrong = [x for x in tensors if isinstance(x, Tensor) and x.device.type != "meta"]
        assert not wrong, f"{function} takes or gives a tensor on {wrong[0].device}"
        return result


@pytest.mark.parametrize("name, kernels", VARIANTS, ids=" ".join)
def test_a_step_reads_no_value_and_uses_no_other_device_than_the_images(name: str, kernels: str) -> None:
    module, args = load(f"{name}.py"), arguments(name, kernels)
    networks = [network.to("meta") for network in module.build(args)[0]]
    optimizers = [torch.optim.SGD(network.parameters(), lr=0.1) for network in networks]
    if name == "wgan" and args.fused:
        optimizers[1] = module.gan_kernels.RMSpropClip(networks[1].parameters(), clip=0.1)
        optimizers[1].step()
        for p in networks[1].parameters():  # a step count lies on the GPU if it is capturable
            p.grad = torch.zeros_like(p)
        optimizers[1].step()
        for state in optimizers[1].state.values():
            state["step"] = state["step"].to("meta")
    batch = torch.zeros(4, 1, 16, 16, device="meta"), torch.zeros(4, dtype=torch.int64, device="meta")
    with OnlyMeta():
        metrics = module.train_step(networks, optimizers, [batch, batch], args)
    assert {value.shape for value in metrics.values()} == {()}


@EACH_SCRIPT
def test_the_meta_device_would_notice_a_value_that_is_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, args = load(f"{name}.py"), arguments(name, "off" if name in KERNELS else "")
    networks = [network.to("meta") for network in module.build(args)[0]]
    optimizers = [torch.optim.SGD(network.parameters(), lr=0.1) for network in networks]
    batch = torch.zeros(4, 1, 16, 16, device="meta"), torch.zeros(4, dtype=torch.int64, device="meta")
    backward = Tensor.backward
    peeks = {  # what is done to each loss, and the error that tells of it
        "": lambda loss: loss + 1,
        "on meta tensors": lambda loss: loss.item(),
        "a tensor on cpu": lambda loss: loss + torch.ones(1),
        "copy out of meta tensor": lambda loss: loss.cpu(),
    }
    for words, peek in peeks.items():
        monkeypatch.setattr(Tensor, "backward", lambda loss, peek=peek: (peek(loss), backward(loss)))
        noticed = pytest.raises((RuntimeError, AssertionError), match=words) if words else contextlib.nullcontext()
        with noticed, OnlyMeta():
            module.train_step(networks, optimizers, [batch, batch], args)


@EACH_SCRIPT
def test_every_step_finds_its_images_in_the_same_memory_and_scaled(
    name: str, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load(f"{name}.py")
    seen: list[list[Tensor]] = []
    places: list[list[int]] = []
    original = module.train_step

    def step(networks: list, optimizers: list, batches: list, args: Namespace) -> dict[str, Tensor]:
        places.append([tensor.data_ptr() for batch in batches for tensor in batch])
        seen.append([tensor.clone() for batch in batches for tensor in batch])
        return original(networks, optimizers, batches, args)

    monkeypatch.setattr(module, "train_step", step)
    call(f"{name}.py", "--data", images, "--epochs", 30, "--steps", 6, *SMALL)
    assert len(places) == 6
    assert all(place == places[0] for place in places)
    assert not torch.equal(seen[0][0], seen[1][0])
    args = arguments(name)
    args.data, args.data_dir = str(images), "data"
    pixels, labels, _ = module.load_data(args)
    per_step = len(seen[0]) // 2
    for i, tensors in enumerate(seen):
        for k in range(per_step):
            e, j = divmod(i * per_step + k, 4)  # 16 images are 4 batches an epoch
            index = module.epoch_order(16, 0, e)[4 * j : 4 * j + 4]
            assert torch.equal(tensors[2 * k], pixels[index].float() / 127.5 - 1)
            assert torch.equal(tensors[2 * k + 1], labels[index])
            assert tensors[2 * k].is_contiguous(memory_format=torch.channels_last)


@EACH_SCRIPT
def test_what_cannot_be_captured_goes_on_step_by_step_with_one_hint(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_graph() -> None:
        raise RuntimeError("not here\nbecause of that")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", no_graph)
    iteration = lambda: torch.ones(3)  # noqa: E731
    assert load(f"{name}.py").capture(iteration) is iteration
    assert capsys.readouterr().out == "hint: no CUDA graph, so steps may take longer: not here\n"


@EACH_SCRIPT
def test_a_run_of_a_gpu_goes_on_on_the_cpu(name: str, images: Path) -> None:
    run = Path("run")
    call(f"{name}.py", "--data", images, "--epochs", 30, "--steps", 2, "--out", run, *SMALL)
    checkpoint = torch.load(run / "checkpoint.pt", weights_only=True)
    for state in checkpoint["optimizers"]:  # as a GPU leaves it
        for group in state["param_groups"]:
            assert group["capturable"] is False
            group["capturable"] = True
    checkpoint["args"]["cuda"] = True
    torch.save(checkpoint, run / "checkpoint.pt")
    assert call(f"{name}.py", "--resume", run, "--steps", 4, "--no-cuda") == 0
    checkpoint = torch.load(run / "checkpoint.pt", weights_only=True)
    assert {group["capturable"] for state in checkpoint["optimizers"] for group in state["param_groups"]} == {False}


# ------------------------------------------------------------------------------------------------------- on a GPU only


def columns(run: str) -> list[list[float]]:
    with Path(run, "metrics.csv").open(newline="") as file:
        return [[float(value) for name, value in row.items() if name != "seconds"] for row in csv.DictReader(file)]


@NEEDS_GPU
@pytest.mark.parametrize("amp", [[], ["--amp"]], ids=["float32", "amp"])
@pytest.mark.parametrize("name, kernels", VARIANTS, ids=" ".join)
def test_replayed_steps_are_the_steps_one_by_one(
    name: str, kernels: str, amp: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_images(Path("images"), per_class=40, size=16)
    common = ["--data", data, "--cuda", "--epochs", 100, "--steps", 20, *SMALL, *amp]
    common += ["--kernels", kernels] if kernels else []
    call(f"{name}.py", *common, "--out", "graph")
    assert "no CUDA graph" not in capsys.readouterr().out
    monkeypatch.setattr(load(f"{name}.py"), "capture", lambda iteration: iteration)
    call(f"{name}.py", *common, "--out", "eager")
    graph, eager = columns("graph"), columns("eager")
    assert len(graph) == len(eager) == 20
    torch.testing.assert_close(torch.tensor(graph), torch.tensor(eager), rtol=2e-2, atol=2e-3)
    assert len({row[-1] for row in graph}) == 20  # a new column at each replay


@NEEDS_GPU
@EACH_SCRIPT
def test_a_run_goes_on_from_gpu_to_cpu_and_back(name: str, images: Path, finished: Callable[[str], Path]) -> None:
    common = ["--data", images, "--epochs", 100, *SMALL]
    call(f"{name}.py", *common, "--cuda", "--steps", 8, "--out", "run")
    call(f"{name}.py", "--resume", "run", "--steps", 12, "--no-cuda")
    call(f"{name}.py", "--resume", "run", "--steps", 20, "--cuda")
    assert [row[0] for row in columns("run")] == list(range(1, 21))
    assert torch.tensor(columns("run")).isfinite().all()


@NEEDS_GPU
@EACH_SCRIPT
def test_a_run_on_a_gpu_resumes_as_if_it_had_not_been_stopped(name: str, images: Path) -> None:
    common = ["--data", images, "--epochs", 100, *SMALL, "--cuda"]
    call(f"{name}.py", *common, "--steps", 14, "--out", "whole")
    call(f"{name}.py", *common, "--steps", 7, "--out", "split")
    call(f"{name}.py", "--resume", "split", "--steps", 14)
    torch.testing.assert_close(torch.tensor(columns("split")), torch.tensor(columns("whole")), rtol=2e-2, atol=2e-3)
