"""One run over several processes, as torchrun starts them, with Gloo on the CPU: the very run of one process."""

import contextlib
import csv
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SCRIPTS, make_images

NAMES = [script.removesuffix(".py") for script in SCRIPTS]
# 26 images in batches of 12: two an epoch, which 2 and 3 processes can share, and two images left over.
TINY = ["--image-size", "8", "--batch-size", "12", "--latent-dim", "4", "--log-every", "2", "--seed", "3"]
OWN = {"vanilla_gan": ["--d-steps", "2"], "wgan": ["--n-critic", "2"], "wgan_gp": ["--n-critic", "2"]}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """26 colour images, 8 x 8, in two classes."""
    return make_images(tmp_path_factory.mktemp("data") / "images", per_class=13)


class Group:
    """The processes of a run. What process K prints goes to the files K.out and K.err."""

    def __init__(self, name: str, count: int, *argv: object, dtype: str = "float32", before: str = "") -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [str(arg) for arg in [ROOT / f"{name}.py", *argv]]
        server = multiprocessing.get_context("forkserver")
        server.set_forkserver_preload(["torch", "torch._dynamo"])  # what takes long to import, once for all
        self.processes: list[BaseProcess] = []
        for rank in range(count):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
            place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
            code = f"import os, runpy, sys, torch; os.environ.update({ {k: str(v) for k, v in place.items()} })\n"
            code += f"sys.stdout, sys.stderr = open('{rank}.out', 'w'), open('{rank}.err', 'w')\n"
            code += (
                f"torch.set_num_threads(1); torch.set_default_dtype(torch.{dtype}); sys.argv = {command}\n{before}\n"
            )
            code += "runpy.run_path(sys.argv[0], run_name='__main__')"
            self.processes.append(server.Process(target=exec, args=(code, {}), daemon=True))
        for process in self.processes:
            process.start()

    def codes(self) -> list[int | None]:
        """Waits for the end. Returns the exit codes."""
        for process in self.processes:
            process.join(120)
        return [process.exitcode for process in self.processes]

    def wait_for_rows(self, run: Path, count: int) -> None:
        deadline = time.monotonic() + 120
        while len(rows(run)) < count:
            assert all(process.is_alive() for process in self.processes), errors()
            assert time.monotonic() < deadline, "no rows in two minutes"
            time.sleep(0.01)


@contextlib.contextmanager
def started(*args: object, **kwargs: str) -> Iterator[Group]:
    """A group that is still running, and is ended with the test, however that ends."""
    group = Group(*args, **kwargs)
    yield group
    for process in group.processes:
        process.kill()


def errors() -> list[str]:
    """What the processes print that is neither a progress bar nor empty, without the lines of Gloo itself."""
    lines = [line for path in sorted(Path().glob("*.err")) for line in re.split(r"[\r\n]+", path.read_text())]
    return [
        line for line in lines if line.strip() and "|" not in line and "[Gloo]" not in line and "/gloo/" not in line
    ]


def train(name: str, count: int, run: str, *argv: object, codes: list[int] | None = None, **kwargs: str) -> Path:
    group = Group(name, count, *TINY, *OWN.get(name, []), "--out", run, *argv, **kwargs)
    assert group.codes() == (codes or [0] * count), errors()
    return Path(run)


def resume(name: str, count: int, run: str, *argv: object, **kwargs: str) -> None:
    assert Group(name, count, "--resume", run, *argv, **kwargs).codes() == [0] * count, errors()


def rows(run: Path) -> list[list[str]]:
    """metrics.csv without the clock."""
    table = run / "metrics.csv"
    return [row[:-1] for row in csv.reader(table.open(newline=""))] if table.exists() else []


def load(run: Path) -> dict:
    return torch.load(run / "checkpoint.pt", weights_only=True)


def assert_same_to_rounding(run: Path, expected: Path, tolerance: float) -> None:
    """Weights, optimizers, half summed columns, rows. Random states and fixed noise to the bit, and no file more."""
    a, b = load(run), load(expected)
    assert torch.equal(a["rng"], b["rng"])
    assert torch.equal(a["z"], b["z"])
    assert (a["step"], a["epoch"]) == (b["step"], b["epoch"])
    networks = [key for key in ("generator", "discriminator", "critic") if key in a]
    assert len(networks) == 2
    for key in networks:
        torch.testing.assert_close(a[key], b[key], rtol=tolerance, atol=tolerance)
    for mine, its in zip(a["optimizers"], b["optimizers"], strict=True):
        torch.testing.assert_close(mine["state"], its["state"], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(a["sums"], b["sums"], rtol=tolerance, atol=tolerance)
    assert len(rows(run)) == len(rows(expected)) > 1
    for row, other in zip(rows(run)[1:], rows(expected)[1:], strict=True):
        assert list(map(float, row)) == pytest.approx(list(map(float, other)), rel=max(tolerance, 1e-5), abs=1e-5)
    assert {p.relative_to(run) for p in run.rglob("*")} == {p.relative_to(expected) for p in expected.rglob("*")}


@pytest.mark.parametrize("name", NAMES)
def test_two_and_three_processes_end_in_the_weights_of_one(name: str, data: Path) -> None:
    """In float64, where rounding leaves no room for anything else: noise, dropout, BatchNorm, gradients, columns."""
    kwargs, argv = {"dtype": "float64"}, ["--data", data, "--steps", 2]
    one = train(name, 1, "one", *argv, **kwargs)
    first = train(name, 1, "first", *argv[:2], "--steps", 1, **kwargs)
    moved = [(load(one)["generator"][k] - v).abs().max() for k, v in load(first)["generator"].items() if "weight" in k]
    assert min(moved) > 1e-5  # the weights that are compared have learned
    for count in (2, 3):
        assert_same_to_rounding(train(name, count, f"{count}", *argv, **kwargs), one, 1e-9)


def test_float32_and_bfloat16_agree_within_their_rounding(data: Path) -> None:
    for argv, tolerance in ([], 1e-3), (["--amp"], 0.1):
        one, two = (train("wgan", n, f"{n}{len(argv)}", "--data", data, "--steps", 4, *argv) for n in (1, 2))
        a, b = ([list(map(float, row)) for row in rows(run)[1:]] for run in (one, two))
        assert len(a) == 2
        assert a == [pytest.approx(row, rel=tolerance, abs=tolerance / 10) for row in b]


def test_a_run_goes_on_with_another_number_of_processes(data: Path) -> None:
    one = train("wgan_gp", 1, "one", "--data", data, "--steps", 7, dtype="float64")
    run = train("wgan_gp", 2, "run", "--data", data, "--steps", 3, dtype="float64")  # in the middle of a row
    resume("wgan_gp", 3, "run", "--steps", 5, dtype="float64")
    resume("wgan_gp", 1, "run", "--steps", 7, dtype="float64")
    assert_same_to_rounding(run, one, 1e-9)


def test_a_run_of_two_split_in_pieces_is_the_unsplit_run_to_the_bit(data: Path) -> None:
    whole = train("wgan_gp", 2, "whole", "--data", data, "--steps", 5)
    run = train("wgan_gp", 2, "run", "--data", data, "--steps", 3)
    resume("wgan_gp", 2, "run", "--steps", 5)
    assert_same_to_rounding(run, whole, 0)
    assert rows(run) == rows(whole)


def test_only_process_0_prints(data: Path) -> None:
    train("dcgan", 2, "run", "--data", data, "--steps", 2)
    assert "2 x CPU" in Path("0.out").read_text()
    assert "step/s" in Path("0.err").read_text()
    assert Path("1.out").read_text() == Path("1.err").read_text() == ""


def test_a_folder_of_images_is_decoded_by_process_0_alone() -> None:
    data = make_images(Path("images"), per_class=13)
    (data / "cats" / "broken.png").write_bytes(b"broken")
    count = "from PIL import Image\nreal = Image.open\n"
    count += "def opened(*args, **kwargs):\n    print(1, file=open(os.environ['RANK'] + '.opened', 'a'))\n"
    count += "    return real(*args, **kwargs)\nImage.open = opened"
    train("cgan", 3, "run", "--data", data, "--steps", 1, before=count)
    assert len(Path("0.opened").read_text().split()) >= 27
    assert not Path("1.opened").exists()
    assert not Path("2.opened").exists()
    (line,) = errors()
    assert line == "warning: left out 1 unreadable images: 'cats/broken.png'"


def test_generating_is_done_by_process_0_alone(data: Path) -> None:
    train("cgan", 2, "run", "--data", data, "--steps", 1)
    resume("cgan", 2, "run", "--generate", 4)
    assert len(list(Path("run/generated").rglob("*.png"))) == 4
    assert Path("1.out").read_text() == Path("1.err").read_text() == ""


BAD = {
    "a batch that the processes cannot share": (5, ["--batch-size", 12]),
    "a batch of one image for each": (12, ["--batch-size", 12]),
    "an option that does not exist": (2, ["--no-such-option"]),
    "data that is not there": (2, ["--data", "nowhere"]),
    "a GPU that is not there": (2, ["--cuda"]),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_no_folder(case: str, data: Path) -> None:
    count, argv = BAD[case]
    if "--cuda" in argv and torch.cuda.device_count() >= 2:
        pytest.skip("there are two GPUs")
    codes = Group("dcgan", count, "--data", data, *TINY, *argv).codes()
    assert codes[0] == 2
    assert all(code in (1, 2) for code in codes)
    (line,) = errors()
    assert line.startswith("dcgan.py: error: ")
    assert not Path("runs").exists()


@pytest.mark.parametrize("victim", [0, 1])
def test_when_a_process_is_killed_all_end_and_the_run_can_go_on(victim: int, data: Path) -> None:
    argv = ["--data", data, *TINY, "--epochs", 100_000, "--out", "run"]
    with started("dcgan", 3, *argv) as group:
        group.wait_for_rows(Path("run"), 4)
        group.processes[victim].kill()
        codes = group.codes()
    assert codes == [-signal.SIGKILL if rank == victim else 1 for rank in range(3)]
    if victim:
        (line,) = errors()
        assert (
            line == "dcgan.py: error: another process of this run has ended; --resume goes on from its last checkpoint"
        )
    else:
        assert errors() == []  # torchrun says which one was killed
    epochs = load(Path("run"))["epoch"] + 1
    resume("dcgan", 3, "run", "--epochs", epochs)
    Path("run/checkpoint.pt.part").unlink(missing_ok=True)
    assert_same_to_rounding(Path("run"), train("dcgan", 3, "whole", "--data", data, "--epochs", epochs), 0)


def test_a_signal_to_one_process_stops_all_after_the_same_step(data: Path) -> None:
    argv = ["--data", data, *TINY, "--epochs", 100_000, "--out", "run"]
    with started("dcgan", 2, *argv) as group:
        group.wait_for_rows(Path("run"), 3)
        os.kill(group.processes[1].pid, signal.SIGTERM)
        assert group.codes() == [0, 143], errors()
    step = load(Path("run"))["step"]
    assert f"stopped at step {step} of" in Path("0.out").read_text()
    assert_same_to_rounding(Path("run"), train("dcgan", 2, "whole", "--data", data, "--steps", step), 0)


def test_a_loss_that_is_not_finite_ends_all_with_one_line(data: Path) -> None:
    train("wgan_gp", 2, "run", "--data", data, "--lr", 1e15, codes=[1, 1])
    (line,) = errors()
    assert re.match(r"wgan_gp.py: error: .*not finite at step \d+.*run/checkpoint.pt is the last good state", line)
    assert load(Path("run"))["step"] == 0


def test_torchrun_starts_a_run_and_goes_on_with_it_when_a_process_is_killed(data: Path) -> None:
    argv = ["--data", data, *TINY, "--epochs", 30]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", 2, "--max-restarts", 1]
    command += [ROOT / "dcgan.py", *argv, "--resume"]
    with Path("torchrun.err").open("w") as err:
        torchrun = subprocess.Popen([str(arg) for arg in command], stdout=subprocess.PIPE, stderr=err, text=True)
    try:
        deadline = time.monotonic() + 120
        while len(rows(Path("runs/dcgan-1"))) < 4:  # the first start: there is no run yet to go on with
            assert time.monotonic() < deadline, Path("torchrun.err").read_text()
            time.sleep(0.01)
        children = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children")
        if not children.exists():
            pytest.skip("needs Linux's list of child processes")
        os.kill(int(children.read_text().split()[-1]), signal.SIGKILL)
        out, _ = torchrun.communicate(timeout=120)
    finally:
        torchrun.kill()
    assert torchrun.returncode == 0, Path("torchrun.err").read_text()
    starts = re.findall(r"steps (\d+) to 60", out)
    assert len(starts) == 2
    assert int(starts[1]) > int(starts[0]) == 0
    Path("runs/dcgan-1/checkpoint.pt.part").unlink(missing_ok=True)
    assert_same_to_rounding(Path("runs/dcgan-1"), train("dcgan", 2, "whole", *argv), 0)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("name", NAMES)
def test_two_gpus_end_in_the_weights_of_one(name: str, data: Path) -> None:
    one, two = (train(name, n, f"{n}", "--data", data, "--steps", 6, "--cuda") for n in (1, 2))
    a, b = ([list(map(float, row)) for row in rows(run)[1:]] for run in (one, two))
    assert a == [pytest.approx(row, rel=0.02, abs=0.02) for row in b]
    assert "hint" not in Path("0.out").read_text()  # the graph is captured, all-reduces included
