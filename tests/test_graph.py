"""What a CUDA graph asks of a training step: the same memory each time, and no value that is read.

Without a GPU this is as much as can be tested. With one, replayed steps are compared with others.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import EACH_SCRIPT, call, load, make_data
from test_training import numbers, rows, watch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

SMALL = ["--batch-size", "4", "--latent-dim", "8", "--log-every", "1"]
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


class OnlyMeta(TorchDispatchMode):
    """Fails where an operator takes or makes a tensor with values.

    On a GPU that would be a copy from or to the host.
    """

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in torch.utils._pytree.tree_leaves([args, kwargs, result]):
            on_meta = not isinstance(x, Tensor) or x.device.type == "meta"
            assert on_meta, f"{function} takes or gives a tensor on {x.device}"
        return result


@EACH_SCRIPT
def test_a_step_reads_no_value_and_uses_no_other_device_than_the_images(script: str) -> None:
    args, _ = load(script).parse_args([*SMALL, "--no-cuda"])
    args.channels, args.image_size, args.classes = 1, 16, ["cats", "dogs"]
    networks = load(script).build(args)[0].to("meta")
    optimizers = [torch.optim.SGD(network.parameters(), lr=0.1) for network in networks.values()]
    count = load(script).images_per_step(args)
    real = torch.zeros(count, 1, 16, 16, device="meta")
    labels = torch.zeros(count, dtype=torch.long, device="meta")
    with OnlyMeta():
        metrics = load(script).train_step(networks, optimizers, args, real, labels)
    assert {value.shape for value in metrics.values()} == {()}


def test_every_step_finds_its_images_in_the_same_memory(data: Path, monkeypatch) -> None:
    seen = []
    watch("wgan.py", monkeypatch, lambda *inputs: seen.append(inputs[3:5]))
    call("wgan.py", "--data", data, "--steps", 6, *SMALL, "--no-cuda")
    assert len(seen) == 6
    assert len({(real.data_ptr(), labels.data_ptr()) for real, labels in seen}) == 1


def columns(run: str) -> Tensor:
    return torch.tensor(numbers(rows(Path(run))))


@NEEDS_GPU
@pytest.mark.parametrize("amp", [[], ["--amp"]], ids=["float32", "amp"])
@EACH_SCRIPT
def test_replayed_and_resumed_steps_are_the_steps_one_by_one(script: str, amp: list[str]) -> None:
    data = make_data(Path("data"), 80, size=16)
    common = ["--data", data, "--cuda", *SMALL, *amp]
    for steps in (9, 20):
        call(script, *common, "--steps", steps, "--out", "graph", "--resume")
    call(script, *common, "--steps", 20, "--out", "eager", "--no-graph")
    assert columns("graph")[:, 0].tolist() == list(range(1, 21))
    torch.testing.assert_close(columns("graph"), columns("eager"), rtol=2e-2, atol=2e-3)
    assert len(columns("graph")[:, -1].unique()) == 20  # new values at each replay
    call(script, "--resume", "--out", "graph", "--steps", 22, "--no-cuda")


@NEEDS_GPU
@EACH_SCRIPT
def test_no_step_waits_for_the_gpu(script: str, monkeypatch) -> None:
    """From the first replay until the row of the last step, in which the CPU must wait."""
    data = make_data(Path("data"), 1000, size=16)
    watched = []

    class Bar(load(script).tqdm):
        def __iter__(self) -> Iterator[int]:
            for step in super().__iter__():
                if 4 <= step < 19:
                    watched.append(step)
                    torch.cuda.set_sync_debug_mode("error")
                else:
                    torch.cuda.set_sync_debug_mode("default")
                yield step

    monkeypatch.setattr(load(script), "tqdm", Bar)
    try:
        args = [*SMALL, "--log-every", 1000, "--steps", 20]
        call(script, "--data", data, "--cuda", *args)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(watched) == 15
