"""One run over several processes, as torchrun starts them, with Gloo on the CPU."""

import itertools
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import EACH_SCRIPT, ROOT, SEVERAL, call, load, make_data, start
from test_training import assert_same_run, options, read, rows, wait_for_rows
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

SMALL = ["--batch-size", 12, "--log-every", 2]


@pytest.fixture
def data() -> Path:
    """26 images in batches of 12, and two images left over. Each is a class of its own."""
    return make_data(Path("data"), 26, size=16, classes=[str(i) for i in range(26)])


def process(rank: int, port: int, watched: bool, script: str, *args: object) -> None:
    """For start: one of two processes."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    if watched:
        watch(load(script), rank)
    call(script, *args)


def watch(script: object, rank: int) -> None:
    """Saves each step's labels and seed and, around each update, gradients, mean and weights."""
    numbers = itertools.count()
    train_step = script.train_step
    mine = []

    def step(*inputs: object) -> dict[str, torch.Tensor]:
        torch.save([inputs[4].clone(), torch.initial_seed()], f"step-{next(numbers)}-{rank}")
        return train_step(*inputs)

    def before(optimizer: torch.optim.Optimizer, *_: object) -> None:
        mine[:] = [parameter.grad.clone() for parameter in optimizer.param_groups[0]["params"]]

    def after(optimizer: torch.optim.Optimizer, *_: object) -> None:
        parameters = optimizer.param_groups[0]["params"]
        mean = [parameter.grad for parameter in parameters]
        weights = [parameter.data for parameter in parameters]
        torch.save([mine, mean, weights], f"update-{next(numbers)}-{rank}")

    script.train_step = step
    register_optimizer_step_pre_hook(before)  # runs before the hook that averages
    register_optimizer_step_post_hook(after)


def train(script: str, data: Path, *args: object, watched: bool = False) -> list[int]:
    """Trains with two processes and returns their exit codes. Process K prints to K.txt."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    argv = [script, *options(script, data), *SMALL, *args]
    processes = [start(process, rank, port, watched, *argv, out=f"{rank}.txt") for rank in (0, 1)]
    for one in processes:
        one.join(100)
        one.kill()
    return [one.exitcode for one in processes]


@EACH_SCRIPT
def test_processes_share_a_batch_average_gradients_and_stay_equal(script: str, data: Path) -> None:
    codes = train(script, data, "--steps", 2, "--out", "run", watched=True)
    assert codes == [0, 0], Path("0.txt").read_text() + Path("1.txt").read_text()
    batches = 2 if script in SEVERAL else 1  # of a step
    steps = [torch.load(path) for path in Path().glob("step-*")]
    assert len({seed for _, seed in steps}) == 4  # of two steps: each process has its own noise
    shares = [torch.load(f"step-0-{rank}")[0].tolist() for rank in (0, 1)]
    assert [len(share) for share in shares] == [6 * batches] * 2
    assert len({*shares[0], *shares[1]}) == 12 * batches
    updates = sorted(Path().glob("update-*-0"))
    assert len(updates) == 2 * (batches + 1)
    for path in updates:
        mine, mean, weights = torch.load(path)
        other, same_mean, same_weights = torch.load(path.name[:-1] + "1")
        pairs = list(zip(mine, other, strict=True))
        assert any(not torch.equal(a, b) for a, b in pairs)
        torch.testing.assert_close(mean, [(a + b) / 2 for a, b in pairs])
        torch.testing.assert_close([mean, weights], [same_mean, same_weights], rtol=0, atol=0)
    assert "2 on cpu" in Path("0.txt").read_text()
    assert Path("1.txt").read_text() == ""  # process 0 alone prints
    assert [row["step"] for row in rows(Path("run"))] == ["2"]


def test_processes_resume_exactly_and_one_alone_goes_on(data: Path) -> None:
    assert train("dcgan.py", data, "--steps", 5, "--out", "whole") == [0, 0]
    assert train("dcgan.py", data, "--steps", 3, "--out", "run") == [0, 0]  # amid a row
    assert train("dcgan.py", data, "--steps", 5, "--resume", "--out", "run") == [0, 0]
    assert_same_run("run", Path("whole"))
    call("dcgan.py", "--resume", "--out", "run", "--steps", 6, "--no-cuda")  # alone, too
    assert [row["step"] for row in rows(Path("run"))] == ["2", "4", "6"]


def test_a_batch_that_cannot_be_shared_evenly_is_refused(data: Path) -> None:
    assert train("dcgan.py", data, "--batch-size", 5) == [1, 1]
    assert "--batch-size" in Path("0.txt").read_text().splitlines()[-1]
    assert not Path("runs").exists()


def test_torchrun_continues_a_run_when_a_process_is_killed(data: Path) -> None:
    source = (ROOT / "dcgan.py").read_text("utf-8")
    always = source.replace("SAVE_EVERY = 60", "SAVE_EVERY = 0")
    assert always != source
    Path("dcgan.py").write_text(always, "utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", 2, "--max-restarts", 1]
    command += ["dcgan.py", *options("dcgan.py", data), *SMALL]
    command += ["--steps", 40, "--out", "run", "--resume"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    with Path("out.txt").open("w") as out:
        torchrun = subprocess.Popen([*map(str, command)], stdout=out, stderr=out, env=env)
    try:
        children = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children")
        if not children.exists():
            pytest.skip("needs Linux's list of child processes")
        wait_for_rows(4, Path("run"), lambda: torchrun.poll() is None)
        os.kill(int(children.read_text().split()[-1]), signal.SIGKILL)
        assert torchrun.wait(120) == 0, Path("out.txt").read_text()
    finally:
        torchrun.kill()
    first, second = re.findall(r"Steps (\d+) to 40", Path("out.txt").read_text())
    assert int(second) > int(first) == 0
    assert [row["step"] for row in rows(Path("run"))] == [str(step) for step in range(2, 41, 2)]
    assert read("run")["step"] == 40
