"""The command line: what is accepted, what is refused and how, and that a script stands alone."""

import pickle
import re
import shutil
import signal
import sys
import threading
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import EACH_SCRIPT, ROOT, SCRIPTS, TINY, call, load, make_data, run_file, start

COMMON = "--help --batch-size --lr --latent-dim --data --epochs --steps --out --resume --generate"
COMMON += " --ema --seed --log-every --sample-every --cuda --graph --amp"
OWN = {  # those with a value change a run by it
    "vanilla_gan.py": "--d-steps=2 --loss=minimax",
    "dcgan.py": "--width=8",
    "cgan.py": "--width=8 --label",
    "wgan.py": "--width=8 --n-critic=2 --clip=0.1",
    "wgan_gp.py": "--width=8 --n-critic=2 --gp-weight=1",
    "r3gan.py": "--width=8 --gamma=0",
    "lsgan.py": "--width=8 --coding=pearson",
    "acgan.py": "--width=8 --label",
    "fgan.py": "--width=8 --divergence=kl --loss=exact",
}
BAD = {
    "vanilla_gan.py": "--d-steps=0 --d-steps=1.5 --loss=wasserstein",
    "dcgan.py": "--batch-size=0 --batch-size=1.5 --latent-dim=0 --width=0 --epochs=0 --epochs=x "
    "--steps=-1 --generate=0 --log-every=0 --sample-every=0 --lr=-1 --lr=nan --lr=x --ema=1.5 "
    "--ema=-0.1 --seed=0.5 --amp=1 --unknown=1",
    "cgan.py": "--label",
    "wgan.py": "--clip=-1 --clip=x --n-critic=0 --kernels=on",
    "wgan_gp.py": "--gp-weight=x --gp-weight=-1 --n-critic=0",
    "r3gan.py": "--gamma=x --gamma=-1 --gamma=inf",
    "lsgan.py": "--coding=ternary",
    "fgan.py": "--divergence=KL --loss=minimax",
    "acgan.py": "--label" if torch.cuda.is_available() else "--label --cuda",
}


def files(folder: Path = Path()) -> dict[Path, int]:
    """Everything in the folder, with the time of its last change."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@EACH_SCRIPT
def test_help_shows_all_options(script: str, capsys) -> None:
    with pytest.raises(SystemExit, match="0"):
        call(script, "--help")
    help_text = capsys.readouterr().out
    assert f"    python {script} --epochs 25    trains on built-in digits" in help_text
    found = re.findall(r"(?m)^  (?:-h, )?(--[a-z-]+)", help_text)
    own = [option.partition("=")[0] for option in OWN[script].split()]
    assert sorted(found) == sorted(COMMON.split() + own)


@EACH_SCRIPT
def test_each_option_of_the_gan_changes_the_run(script: str, data: Path) -> None:
    options = ["--log-every=1", "--latent-dim=5", "--batch-size=5", "--lr=0.01", "--seed=1"]
    options += ["--amp", *(option for option in OWN[script].split() if "=" in option)]
    tables = set()
    for option in options:
        width = [] if script == "vanilla_gan.py" else ["--width", 4]
        out = Path(option)
        call(script, "--data", data, *TINY, *width, "--log-every=1", option, "--out", f"./{out}")
        rows = (out / "metrics.csv").read_text().splitlines()
        tables.add(tuple(row.rpartition(",")[0] for row in rows))  # without the clock
    assert len(tables) == len(options)


@pytest.mark.parametrize("script", BAD)
def test_a_bad_value_is_refused(script: str, refused) -> None:
    for option in BAD[script].split():
        assert option.partition("=")[0] in refused(script, option)
    assert not files()


IMAGES = np.zeros((4, 1, 8, 8), np.uint8)
LABELS = np.array([0, 1, 1, 0])
BAD_DATA = {
    "float images": (IMAGES.astype(np.float32), LABELS, "float32"),
    "two channels": (IMAGES.repeat(2, axis=1), LABELS, "(4, 2, 8, 8)"),
    "not square": (IMAGES[..., :7], LABELS, "(4, 1, 8, 7)"),
    "three axes": (IMAGES[0], LABELS, "(1, 8, 8)"),
    "fewer images than a step takes": (IMAGES[:3], LABELS[:3], "4 of 3 images"),
    "a label too many": (IMAGES, np.zeros(5, np.int64), "labels.npy"),
    "a label of no class": (IMAGES, LABELS + 1, "labels.npy"),
    "a negative label": (IMAGES, -LABELS, "labels.npy"),
    "labels between the integers": (IMAGES, LABELS / 2, "labels.npy"),
}


@pytest.mark.parametrize("kind", BAD_DATA)
def test_bad_arrays_are_refused(kind: str, data: Path, refused) -> None:
    images, labels, words = BAD_DATA[kind]
    np.save(data / "images.npy", images)
    np.save(data / "labels.npy", labels)
    assert words in refused("dcgan.py", "--data", data, *TINY, code=1)
    assert not Path("runs").exists()


def test_data_that_are_not_there_are_refused(refused) -> None:
    assert "data/mnist-32" in refused("dcgan.py", "--data", "data/mnist-32", code=1)
    assert not Path("runs").exists()


def test_cgan_needs_classes_that_may_begin_with_a_byte_order_mark(data: Path, refused) -> None:
    (data / "classes.txt").write_text("cats\ndogs\n", "utf-8-sig")  # as Windows' Notepad does
    call("cgan.py", "--data", data, *TINY, "--out", "run")
    call("cgan.py", "--out", "run", "--generate", 1, "--label", "cats", "--no-cuda")
    (data / "classes.txt").unlink()
    assert "classes" in refused("cgan.py", "--data", data, *TINY, code=1)
    call("dcgan.py", "--data", data, *TINY)


def test_an_image_size_that_is_no_power_of_two_from_8_on_is_refused(refused) -> None:
    for size in (4, 28):
        data = make_data(Path(f"data-{size}"), 4, size=size)
        assert str(size) in refused("dcgan.py", "--data", data, *TINY, code=1)
        assert not Path("runs").exists()
        call("vanilla_gan.py", "--data", data, *TINY, "--out", f"run-{size}")  # which takes any


def test_runs_are_numbered_and_out_may_be_new_or_empty(data: Path) -> None:
    Path("empty").mkdir()
    for out in ([], [], ["--out", "empty"], ["--out", "a/b"]):
        call("dcgan.py", "--data", data, *TINY, *out)
    found = sorted(str(path.parent) for path in Path().rglob("checkpoint.pt"))
    assert found == ["a/b", "empty", "runs/dcgan-1", "runs/dcgan-2"]


def test_out_that_is_not_empty_is_refused_and_left_alone(data: Path, refused) -> None:
    call("dcgan.py", "--data", data, *TINY, "--out", "run")
    Path("mine").mkdir()
    Path("mine", "config.json").write_text("mine")
    before = files()
    for script in ("dcgan.py", "wgan.py"):
        for folder in ("run", "mine"):
            assert folder in refused(script, "--data", data, *TINY, "--out", folder, code=1)
    assert "mine" in refused("dcgan.py", "--data", data, *TINY, "--out", "mine", "--resume", code=1)
    assert files() == before


def test_what_is_no_run_of_the_script_is_refused(finished, refused) -> None:
    before = files(finished("wgan.py"))
    for command in (["--resume"], ["--generate", 2]):
        assert "wgan" in refused("dcgan.py", *command, "--out", finished("wgan.py"), code=1)
        assert "runs" in refused("dcgan.py", *command, code=1)
    assert files(finished("wgan.py")) == before
    assert "nowhere" in refused("dcgan.py", "--generate", 4, "--out", "nowhere", code=1)
    assert not files()


@pytest.mark.parametrize(("images", "batch"), [(64, 5), (80, 4), (65, 4)])
def test_other_batches_do_not_continue_a_run(images: int, batch: int, data: Path, refused) -> None:
    """65 images make as many steps in an epoch as 64, in another order."""
    call("dcgan.py", "--data", data, *TINY, "--out", "run")
    before = files(Path("run"))
    make_data(data, images)
    resume = ["--resume", "--out", "run", "--steps", 4, "--no-cuda", "--batch-size", batch]
    assert "--batch-size" in refused("dcgan.py", *resume, code=1)
    assert files(Path("run")) == before


@pytest.mark.parametrize("out", [None, "run"])
def test_runs_started_at_once_do_not_share_a_folder(out: str | None) -> None:
    args = Namespace(out=out, resume=False)

    def make_run(_: int) -> Path | None:
        try:
            return load("dcgan.py").make_run(args)
        except (SystemExit, FileExistsError):
            return None

    with ThreadPoolExecutor(8) as pool:
        made = [run for run in pool.map(make_run, range(50)) if run]
    assert len(set(made)) == len(made) == (1 if out else 50)


class Evil:
    def __reduce__(self) -> tuple:
        return Path("made-by-the-pickle").mkdir, ()


def test_no_code_in_a_checkpoint_runs() -> None:
    Path("run").mkdir()
    torch.save({"args": Evil()}, "run/checkpoint.pt")
    with pytest.raises(pickle.UnpicklingError):
        call("dcgan.py", "--resume", "--out", "run")
    assert not Path("made-by-the-pickle").exists()


def test_hostile_names_of_classes_stay_inside_the_run(tmp_path: Path) -> None:
    names = ["..", "../../up", f"{tmp_path}/top", ".", "a/b", "b"]
    data = make_data(Path("data"), classes=names)
    call("cgan.py", "--data", data, *TINY, "--out", "run")
    before = set(files())
    call("cgan.py", "--out", "run", "--generate", 12, "--no-cuda")
    new = [path for path in set(files()) - before if path.is_file()]
    assert len(new) == 12
    assert {path.parts[0] for path in new} == {"run"}


@EACH_SCRIPT
def test_a_script_declares_what_it_imports(script: str) -> None:
    source = (ROOT / script).read_text("utf-8")
    block = re.match(r"# /// script\n(# .*\n)+# ///\n", source)[0]
    project = (ROOT / "pyproject.toml").read_text("utf-8").splitlines()
    for key in ("dependencies", "requires-python"):
        assert re.search(rf"(?m)^# ({key} = .*)$", block)[1] in project
    names = set(re.findall(r"(?m)^ *(?:import|from(?= \S+ import)) (\w+)", source))
    names -= sys.stdlib_module_names | {"gan_kernels"}
    assert names == {"numpy", "torch", "PIL", "tqdm"}


def import_all() -> None:
    """Importing the scripts parses no arguments and changes nothing."""
    sys.argv = ["script", "--no-such-option"]
    random = torch.get_rng_state()
    before = (signal.getsignal(signal.SIGINT), torch.get_float32_matmul_precision())
    for script in SCRIPTS:
        load(script)
    assert torch.equal(torch.get_rng_state(), random)
    assert (signal.getsignal(signal.SIGINT), torch.get_float32_matmul_precision()) == before
    from dcgan import Discriminator, Generator

    assert Discriminator(1, 32)(Generator(100, 1, 32)(torch.randn(2, 100))).shape == (2,)


def test_importing_has_no_side_effect() -> None:
    process = start(import_all)
    process.join(100)
    assert (process.exitcode, Path("out.txt").read_text()) == (0, "")
    assert set(files()) == {Path("out.txt")}


@EACH_SCRIPT
def test_a_script_alone_in_a_folder_trains_without_the_kernels(script: str, data: Path) -> None:
    copy = Path(shutil.copy(ROOT / script, "."))
    process = start(run_file, copy, "--data", data, *TINY, "--log-every", 1)
    process.join(100)
    assert process.exitcode == 0, Path("out.txt").read_text()
    rows = Path("runs", f"{copy.stem}-1", "metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["step", "1", "2"]
    assert {path.name for path in Path().iterdir()} == {script, "data", "out.txt", "runs"}


def test_the_plain_command_trains_on_the_built_in_digits() -> None:
    process = start(run_file, ROOT / "dcgan.py", *TINY, "--width", 2)
    process.join(100)
    assert process.exitcode == 0, Path("out.txt").read_text()
    output = Path("out.txt").read_text()
    assert "20,000 images, 5000 steps an epoch\nSteps 0 to 2 on cpu" in output
    assert f"pictures in {Path('runs/dcgan-1/samples')}\n" in output
    assert Path("runs/dcgan-1/checkpoint.pt").exists()


@EACH_SCRIPT
def test_in_a_notebook_scripts_train_in_threads_and_change_nothing(script: str, data: Path) -> None:
    source = (ROOT / script).read_text("utf-8")
    cell = {"__name__": "notebook"}  # without a __file__
    exec(compile(source, "<cell>", "exec", optimize=2), cell)  # as python -OO does: no docstrings
    before = (*map(signal.getsignal, (signal.SIGINT, signal.SIGTERM)), sys.stdout)
    argv = ["--data", str(data), *TINY, "--out", "run"]
    thread = threading.Thread(target=cell["main"], args=[argv])
    thread.start()
    thread.join()
    assert Path("run", "checkpoint.pt").exists()
    cell["main"]([*argv, "--resume", "--steps", "3"])
    assert torch.load("run/checkpoint.pt", weights_only=True)["step"] == 3
    assert (*map(signal.getsignal, (signal.SIGINT, signal.SIGTERM)), sys.stdout) == before
