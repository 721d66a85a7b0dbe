"""One run over several processes, as torchrun starts them, with Gloo on the CPU."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SCRIPTS, call, make_data
from test_training import read, rows, start

SMALL = ["--batch-size", 12, "--latent-dim", 4, "--log-every", 2, "--epochs", 100_000]
OWN = {"vanilla_gan.py": ["--d-steps", 2], "wgan.py": ["--n-critic", 2], "wgan_gp.py": ["--n-critic", 2]}
TABLE = Path("run/metrics.csv")

# Saves what each process sees: the labels of a step and, around each update, its gradients, their mean, the weights.
LOOK = """
import importlib, itertools, torch.optim.optimizer as optimizer
script, steps, updates = importlib.import_module(sys.argv[0].split('/')[-1][:-3]), itertools.count(), itertools.count()
train_step, rank = script.train_step, script.RANK
def step(*inputs):
    torch.save(inputs[4].clone(), f'labels-{next(steps)}-{rank}')
    return train_step(*inputs)
def before(o, *_):
    o.mine = [p.grad.clone() for p in o.param_groups[0]['params']]
def after(o, *_):
    parameters = o.param_groups[0]['params']
    torch.save([o.mine, [p.grad for p in parameters], [p.data for p in parameters]], f'update-{next(updates)}-{rank}')
script.train_step = step
optimizer.register_optimizer_step_pre_hook(before)
optimizer.register_optimizer_step_post_hook(after)
sys.exit(script.main())
"""


@pytest.fixture
def data() -> Path:
    """26 images in batches of 12: two an epoch and two images left over; each is a class of its own."""
    return make_data(Path("data"), 26, classes=[str(i) for i in range(26)])


def begin(script: str, count: int, *argv: object, before: str = "") -> list[BaseProcess]:
    """The processes of a run; what process K prints goes to K.out."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free.getsockname()[1]}
    places = [{k: str(v) for k, v in {**place, "RANK": rank, "LOCAL_RANK": rank}.items()} for rank in range(count)]
    codes = [f"import os; os.environ.update({place}); {before}" for place in places]
    return [start(script, *argv, out=f"{rank}.out", before=codes[rank]) for rank in range(count)]


def end(processes: list[BaseProcess]) -> list[int | None]:
    """Waits for them. Returns the exit codes."""
    for process in processes:
        process.join(120)
        process.kill()
    return [process.exitcode for process in processes]


def train(script: str, count: int, data: Path, *argv: object, before: str = "") -> None:
    argv = ["--data", data, *SMALL, *OWN.get(script, []), *argv]
    assert end(begin(script, count, *argv, before=before)) == [0] * count, Path("0.out").read_text()


@pytest.mark.parametrize("script", SCRIPTS)
def test_processes_share_the_batch_average_their_gradients_and_stay_equal(script: str, data: Path) -> None:
    train(script, 2, data, "--steps", 2, "--out", "run", before=LOOK)
    seen = [torch.load(path).tolist() for path in sorted(Path().glob("labels-*"))]
    repeats = 2 if script in OWN else 1  # batches of a step
    assert [len(labels) for labels in seen] == [6 * repeats] * 4
    assert len({*seen[0], *seen[1]}) == 12 * repeats
    updates = len(list(Path().glob("update-*-0")))
    assert updates == 2 * (repeats + 1)
    for i in range(updates):
        (mine, mean, weights), (other, same_mean, same_weights) = (torch.load(f"update-{i}-{rank}") for rank in (0, 1))
        assert any(not torch.equal(a, b) for a, b in zip(mine, other, strict=True))
        torch.testing.assert_close(mean, [(a + b) / 2 for a, b in zip(mine, other, strict=True)])
        torch.testing.assert_close([mean, weights], [same_mean, same_weights], rtol=0, atol=0)
    assert "steps 0 to 2 " in Path("0.out").read_text() and Path("1.out").read_text() == ""  # process 0 alone prints
    assert [row["step"] for row in rows(Path("run"))] == ["2"]


def test_a_run_goes_on_with_as_many_processes_as_if_it_had_not_stopped_and_with_one(data: Path) -> None:
    train("wgan_gp.py", 2, data, "--steps", 5, "--out", "whole")
    train("wgan_gp.py", 2, data, "--steps", 3, "--out", "run")  # in the middle of a row
    train("wgan_gp.py", 2, data, "--steps", 5, "--resume", "run")
    for name in ("generator", "critic", "generator_ema", "sums"):
        torch.testing.assert_close(read(Path("run"))[name], read(Path("whole"))[name], rtol=1e-4, atol=1e-6)
    assert call("wgan_gp.py", "--resume", "run", "--steps", 6) == 0
    assert [row["step"] for row in rows(Path("run"))] == ["2", "4", "6"]


@pytest.mark.parametrize("argv", [["--batch-size", 5], ["--resume", "run", "--generate", 4], ["--no-such-option"]])
def test_what_several_processes_cannot_do_is_one_line_of_process_0(argv: list[object], data: Path) -> None:
    assert call("dcgan.py", "--data", data, *SMALL, "--steps", 1, "--out", "run") == 0
    assert end(begin("dcgan.py", 2, "--data", data, *argv)) == [2, 2]
    assert re.fullmatch(r"dcgan\.py: error: .+\n", Path("0.out").read_text())
    assert Path("1.out").read_text() == ""
    assert not Path("runs").exists()


def wait_for_rows(count: int, out: str) -> None:
    deadline = time.monotonic() + 120
    while len(rows(Path("run"))) < count:
        assert time.monotonic() < deadline, Path(out).read_text()
        time.sleep(0.01)


def test_a_signal_to_one_process_stops_all_after_the_same_step(data: Path) -> None:
    processes = begin("dcgan.py", 2, "--data", data, *SMALL, "--out", "run")
    wait_for_rows(3, "0.out")
    os.kill(processes[1].pid, signal.SIGTERM)
    assert end(processes) == [0, 143]
    assert f"step {read(Path('run'))['step']} of" in Path("0.out").read_text()


def test_torchrun_starts_a_run_and_goes_on_with_it_when_a_process_is_killed(data: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        2,
        "--max-restarts",
        1,
    ]
    command += [ROOT / "dcgan.py", "--data", data, *SMALL, "--epochs", 30, "--out", "run", "--resume"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    with Path("out").open("w") as out:
        torchrun = subprocess.Popen([*map(str, command)], stdout=out, stderr=out, env=env)
    try:
        children = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children")
        if not children.exists():
            pytest.skip("needs Linux's list of child processes")
        wait_for_rows(4, "out")
        os.kill(int(children.read_text().split()[-1]), signal.SIGKILL)
        assert torchrun.wait(120) == 0, Path("out").read_text()
    finally:
        torchrun.kill()
    first, second = re.findall(r"steps (\d+) to 60", Path("out").read_text())
    assert int(second) > int(first) == 0
    assert [row["step"] for row in rows(Path("run"))] == [str(step) for step in range(2, 61, 2)]
    assert read(Path("run"))["step"] == 60
