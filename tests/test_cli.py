"""The command line: what is accepted, what is refused and how, what --help says, and that each script stands alone."""

import argparse
import ast
import functools
import json
import math
import os
import pickle
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SCRIPTS, TINY, call, load, make_images, run_script

SOURCES = {script: (ROOT / script).read_text() for script in SCRIPTS}
COMMON = ["--data", "--data-dir", "--image-size", "--epochs", "--steps", "--batch-size", "--latent-dim", "--lr"]
COMMON += ["--seed", "--log-every", "--cuda", "--amp", "--tensorboard", "--out", "--resume", "--generate", "--help"]
OWN = {
    "vanilla_gan.py": ["--d-steps", "--loss"],
    "dcgan.py": [],
    "cgan.py": ["--label"],
    "wgan.py": ["--n-critic", "--clip", "--kernels"],
    "wgan_gp.py": ["--n-critic", "--gp-weight", "--kernels"],
}
HUGE = "99999999999999999999999"
# Bad values of what counts something, from 1 on.
COUNT = ["0", "-0", "-1", "1.5", "1e3", "0x10", "²", "x", "nan", "inf", "", " ", str(2**63), HUGE]
POSITIVE = ["0", "-0.0", "9e-13", "1e-400", "-1", "x", "nan", "inf", "-inf", "1e19", "1e400", "1j", ""]
FLAG = ["=1"]  # a flag takes no value
NAME = [None]  # any text is fine, no text is not
CONV_SIZES = ["33", "0", "-8", "4", "24", "31.5", "x", "nan", "", HUGE]
BAD = {
    "--data": NAME,
    "--data-dir": NAME,
    "--epochs": COUNT,
    "--steps": COUNT,
    "--batch-size": ["1", *COUNT],
    "--latent-dim": COUNT,
    "--lr": POSITIVE,
    "--seed": ["-1", "0.5", "x", "nan", "inf", "", HUGE],
    "--log-every": COUNT,
    "--cuda": FLAG,
    "--no-cuda": FLAG,
    "--amp": FLAG,
    "--tensorboard": FLAG,
    "--no-tensorboard": FLAG,
    "--out": NAME,
    "--resume": ["nowhere"],
    "--generate": COUNT,
    "--image-size": CONV_SIZES,
    "--d-steps": COUNT,
    "--loss": ["wasserstein", "", None],
    "--label": [None],
    "--n-critic": COUNT,
    "--clip": POSITIVE,
    "--gp-weight": ["-1", "-1e-9", "x", "nan", "inf", ""],
    "--kernels": ["", "cuda", "ON", None],
    "--unknown": ["1"],
}
# The least that is accepted.
LEAST = {
    "--epochs": 1,
    "--steps": 1,
    "--batch-size": 2,
    "--latent-dim": 1,
    "--lr": 1e-12,
    "--seed": 0,
    "--log-every": 1,
    "--image-size": 8,
    "--d-steps": 1,
    "--n-critic": 1,
    "--clip": 1e-12,
    "--gp-weight": 0,
}
# With --resume, what may not differ from the run's arguments, as the fixture finished has them.
OTHER = {
    "--data": ["glyphs"],
    "--image-size": ["16"],
    "--batch-size": ["5"],
    "--latent-dim": ["5"],
    "--lr": ["0.5"],
    "--seed": ["1"],
    "--log-every": ["7"],
    "--amp": [],
    "--out": ["elsewhere"],
    "--d-steps": ["2"],
    "--loss": ["minimax"],
    "--n-critic": ["2"],
    "--clip": ["0.5"],
    "--gp-weight": ["0.5"],
}
EACH_SCRIPT = pytest.mark.parametrize("script", SCRIPTS)


class Captured(Exception):
    pass


def parser_of(script: str) -> argparse.ArgumentParser:
    """The script's parser, caught when it is about to parse."""

    def catch(self: argparse.ArgumentParser, *args: object, **options: object) -> None:
        raise Captured(self)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Captured) as caught:
        patch.setattr(argparse.ArgumentParser, "parse_known_args", catch)
        load(script).parse_args([])
    return caught.value.args[0]


PARSERS = {script: parser_of(script) for script in SCRIPTS}


def options_of(script: str) -> dict[str, argparse.Action]:
    return {name: action for action in PARSERS[script]._actions for name in action.option_strings}


def files() -> list[Path]:
    return sorted(Path().rglob("*"))


@pytest.fixture
def no_training(finished: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """For what the command line itself must refuse: were it accepted, a long training would begin."""
    for script in SCRIPTS:
        finished(script)  # while it can be made
        monkeypatch.setattr(load(script), "train", lambda *_: pytest.fail("the command line was accepted"))


# --------------------------------------------------------------------------------------------------- options and help


@EACH_SCRIPT
def test_a_script_has_the_common_options_and_its_own(script: str) -> None:
    names = {name for name in options_of(script) if not name.startswith("--no-")} - {"-h"}
    assert names == {*COMMON, *OWN[script]}


@EACH_SCRIPT
def test_common_options_are_the_same_in_all_scripts(script: str) -> None:
    for name in COMMON:
        about, reference = (
            (a.option_strings, a.dest, a.nargs, a.const, a.metavar, a.choices, a.help.replace(s[:-3], "SCRIPT"))
            for s in (script, "dcgan.py")
            for a in [options_of(s)[name]]
        )
        if name == "--image-size":  # vanilla_gan takes any size, the others powers of two
            about, reference = (about[:4] + about[6:], reference[:4] + reference[6:])
        assert about == reference
        if name not in ("--image-size", "--batch-size", "--lr"):
            assert options_of(script)[name].default == options_of("dcgan.py")[name].default


@EACH_SCRIPT
def test_defaults_are_the_documented_ones(script: str) -> None:
    adam = {"batch_size": 128, "lr": 2e-4}
    own = {
        "vanilla_gan.py": {**adam, "lr": 1e-3, "image_size": 28, "d_steps": 1, "loss": "non-saturating"},
        "dcgan.py": {**adam, "image_size": 32},
        "cgan.py": {**adam, "image_size": 32, "label": None},
        "wgan.py": {"image_size": 32, "lr": 5e-5, "n_critic": 5, "clip": 0.01},
        "wgan_gp.py": {"image_size": 32, "lr": 1e-4, "n_critic": 5, "gp_weight": 10.0},
    }
    common = {"data": "glyphs", "data_dir": "data", "epochs": 25, "log_every": 50, "cuda": False, "amp": False}
    args = vars(load(script).parse_args([])[0])
    expected = {**common, **own[script], "resume": None, "out": None, "steps": None, "generate": None}
    assert {name: args[name] for name in expected} == expected


@EACH_SCRIPT
def test_help_lists_every_option_with_its_default(
    script: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit) as end:
        call(script, "--help")
    assert end.value.code == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith(f"usage: {script} ")
    entries = {block.split()[0].rstrip(","): " ".join(block.split()) for block in re.split(r"\n  (?=-)", out)[1:]}
    for action in PARSERS[script]._actions:
        entry = entries[action.option_strings[0]]
        assert all(name in entry for name in action.option_strings)
        assert len(action.help) > 5
        if action.default not in (None, False, argparse.SUPPRESS):
            assert f"({action.default})" in entry


@EACH_SCRIPT
def test_every_option_is_read_by_the_script(script: str) -> None:
    read = set()
    for node in ast.walk(ast.parse(SOURCES[script])):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and ast.unparse(node.value) == "args":
            read.add(node.attr)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "vars(args).get"):
            read |= {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
    assert {action.dest for action in PARSERS[script]._actions} - {"help"} - read == set()


# -------------------------------------------------------------------------------------------------- bad values, bounds


@EACH_SCRIPT
def test_the_tables_below_have_every_option(script: str) -> None:
    names = set(options_of(script)) - {"-h", "--help"}
    assert names <= set(BAD)
    numbers = {name for name in names if options_of(script)[name].type and name != "--generate"}
    assert numbers <= set(LEAST)
    may_change = ["--epochs", "--steps", "--cuda", "--no-cuda", "--data-dir", "--tensorboard", "--no-tensorboard"]
    may_change += ["--kernels"]
    assert names - {*may_change, "--resume", "--generate", "--label"} <= set(OTHER)


def bad_uses(script: str) -> Iterator[list[str]]:
    """Command lines of one bad option each."""
    for name, values in BAD.items():
        if name not in options_of(script) and name != "--unknown":
            continue
        if name == "--image-size" and script == "vanilla_gan.py":
            values = ["3", *COUNT]
        yield from ([name] if v is None else [name + v] if v == "=1" else [f"{name}={v}"] for v in values)
        if "--no-" not in name and values not in (FLAG, NAME) and None not in values and name != "--resume":
            yield [name]  # its value is missing


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(
    ("script", "argv"),
    [pytest.param(s, argv, id=f"{s} {' '.join(argv)}") for s in SCRIPTS for argv in bad_uses(s)],
)
def test_a_bad_value_is_refused_in_one_line(script: str, argv: list[str], refused: Callable[..., str]) -> None:
    line = refused(script, *argv)
    assert argv[0].split("=")[0] in line  # says which option
    assert files() == []


@EACH_SCRIPT
def test_the_least_values_are_accepted_and_train(script: str, images: Path) -> None:
    argv = [word for name, value in LEAST.items() if name in options_of(script) for word in (name, value)]
    assert call(script, "--data", images, *argv, *(["--image-size", 4] if script == "vanilla_gan.py" else [])) == 0
    assert list(Path("runs").glob("*/checkpoint.pt"))


def test_the_largest_seed_is_accepted(images: Path) -> None:
    assert call("dcgan.py", "--data", images, *TINY, "--seed", 2**63 - 1) == 0


@pytest.mark.usefixtures("no_training")
@EACH_SCRIPT
def test_a_word_that_belongs_to_no_option_is_refused(script: str, refused: Callable[..., str]) -> None:
    assert "mnist" in refused(script, "mnist")
    assert files() == []


def test_of_a_repeated_option_the_last_counts_and_all_are_checked(refused: Callable[..., str]) -> None:
    assert load("dcgan.py").parse_args(["--steps", "5", "--steps", "7"])[0].steps == 7
    assert "--steps" in refused("dcgan.py", "--steps", 0, "--steps", 7)


CONFLICTS = {
    "--generate without --resume": ["--generate", 4],
    "--generate and --out": ["--out", "new", "--generate", 4],
    "--resume and another --out": ["--resume", "RUN", "--out", "new"],
    "--resume and other --data": ["--resume", "RUN", "--data", "mnist"],
    "--generate and other --latent-dim": ["--resume", "RUN", "--generate", 4, "--latent-dim", 5],
    "--generate of none": ["--resume", "RUN", "--generate", 0],
}


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("conflict", CONFLICTS)
@EACH_SCRIPT
def test_options_that_contradict_each_other_are_refused(
    script: str, conflict: str, finished: Callable[[str], Path], refused: Callable[..., str]
) -> None:
    refused(script, *(str(finished(script)) if word == "RUN" else word for word in CONFLICTS[conflict]))
    assert files() == []


def test_an_error_stays_one_line_whatever_it_quotes(refused: Callable[..., str]) -> None:
    refused("dcgan.py", "one\ntwo")
    refused("dcgan.py", "--data", "one\ntwo")


@pytest.mark.parametrize("name", ["mnits", "photos.zip", "photos/holiday"])
@EACH_SCRIPT
def test_unknown_data_is_refused_with_the_names_that_are_known(
    script: str, name: str, refused: Callable[..., str]
) -> None:
    line = refused(script, "--data", name)
    assert all(word in line for word in (name, "glyphs", "mnist", "fashion-mnist", "cifar10", "folder", ".zip"))
    assert not Path("runs").exists()


def test_data_that_is_no_zip_is_refused(refused: Callable[..., str]) -> None:
    Path("photos.zip").write_text("not one")
    Path("empty.zip").write_bytes(b"")
    Path("photo.png").write_bytes((make_images(Path("photos")) / "cats" / "0.png").read_bytes())
    for name in ("photos.zip", "empty.zip", "photo.png"):
        assert name in refused("dcgan.py", "--data", name)


@EACH_SCRIPT
def test_a_batch_larger_than_the_data_set_is_refused(script: str, images: Path, refused: Callable[..., str]) -> None:
    argv = ["--data", images, "--image-size", 8, "--latent-dim", 4, "--epochs", 1]
    line = refused(script, *argv, "--batch-size", 17)
    assert "17" in line
    assert "16" in line
    assert not Path("runs").exists()
    assert call(script, *argv, "--batch-size", 16) == 0  # all of it is fine


def test_a_data_dir_that_is_a_file_is_refused(images: Path, refused: Callable[..., str]) -> None:
    Path("file").write_text("x")
    assert "file" in refused("dcgan.py", "--data", images, *TINY, "--data-dir", "file")
    assert "file" in refused("dcgan.py", "--data", "mnist", *TINY, "--data-dir", "file")


@pytest.mark.parametrize(
    ("script", "argv"),
    [
        ("dcgan.py", ["--latent-dim", 10**15]),
        ("vanilla_gan.py", ["--latent-dim", 10**15]),
        ("vanilla_gan.py", ["--data", "glyphs", "--image-size", 10**7]),
    ],
)
def test_what_does_not_fit_into_memory_is_one_line(
    script: str, argv: list[object], images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        call(script, "--data", images, *TINY, *argv)
    assert end.value.code in (1, 2)
    line = capsys.readouterr().err.split("\n")[-2]
    assert line.startswith(f"{script}: error: ")


@pytest.mark.usefixtures("no_training")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@EACH_SCRIPT
def test_cuda_without_a_gpu_is_refused(script: str, refused: Callable[..., str]) -> None:
    assert "GPU" in refused(script, "--cuda")
    assert files() == []
    load(script).parse_args(["--no-cuda"])


def test_tensorboard_where_it_is_not_installed_is_refused(
    images: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert "pip install tensorboard" in refused("dcgan.py", "--data", images, *TINY, "--tensorboard")
    assert not Path("runs").exists()


@pytest.mark.usefixtures("no_training")
@EACH_SCRIPT
def test_generate_without_resume_is_refused(script: str, refused: Callable[..., str]) -> None:
    assert "--resume" in refused(script, "--generate", 4)
    assert files() == []


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text here")
def test_a_name_that_cannot_be_printed_is_one_line() -> None:
    data = make_images(Path(os.fsdecode(b"\xff")))
    done = run_script("dcgan.py", "--data", data, *TINY, env={"PYTHONIOENCODING": "utf-8:strict"})
    assert done.returncode == 1
    assert re.fullmatch(r"dcgan\.py: error: .+ encode .+", done.stderr.splitlines()[-1])


def test_a_bad_option_ends_the_program_itself_with_2_and_one_line() -> None:
    done = run_script("dcgan.py", "--epochs", 0)
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r"dcgan\.py: error: .+\n", done.stderr)


# ------------------------------------------------------------------------------------------------------------- --out


@pytest.mark.usefixtures("no_training")
@EACH_SCRIPT
def test_out_that_holds_a_run_is_refused_and_left_alone(
    script: str, finished: Callable[[str], Path], refused: Callable[..., str]
) -> None:
    run = finished(script)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    line = refused(script, "--out", run)
    assert str(run) in line
    assert "--resume" in line
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


@pytest.mark.usefixtures("no_training")
def test_out_that_is_empty_is_this_folder_and_refused_if_that_holds_a_run(
    finished: Callable[[str], Path], refused: Callable[..., str]
) -> None:
    shutil.copy(finished("dcgan.py") / "checkpoint.pt", "checkpoint.pt")
    assert "--out" in refused("dcgan.py", "--out", "")


@pytest.mark.usefixtures("no_training")
def test_out_that_holds_a_run_of_another_script_is_refused(
    finished: Callable[[str], Path], refused: Callable[..., str]
) -> None:
    refused("dcgan.py", "--out", finished("wgan.py"))


def test_out_may_be_an_empty_folder_or_a_new_one_deep_down(images: Path) -> None:
    Path("empty").mkdir()
    for out in ("empty", "a/b/c"):
        assert call("dcgan.py", "--data", images, *TINY, "--out", out) == 0
        assert Path(out, "checkpoint.pt").exists()


@pytest.mark.parametrize("out", ["file", "file/run"])
def test_out_that_is_a_file_or_in_one_is_refused(out: str, images: Path, refused: Callable[..., str]) -> None:
    Path("file").write_text("mine")
    assert out in refused("dcgan.py", "--data", images, *TINY, "--out", out)
    assert Path("file").read_text() == "mine"


def test_runs_are_numbered(images: Path) -> None:
    for _ in range(2):
        assert call("dcgan.py", "--data", images, *TINY) == 0
    assert call("wgan.py", "--data", images, *TINY) == 0
    assert sorted(os.listdir("runs")) == ["dcgan-1", "dcgan-2", "wgan-1"]  # noqa: PTH208


# ---------------------------------------------------------------------------------------------------------- --resume


class Evil:
    """A pickle of it makes a folder when it is loaded."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, ("run-by-the-pickle",)


def write_cut(run: Path) -> None:
    data = (run / "checkpoint.pt").read_bytes()
    (run / "checkpoint.pt").write_bytes(data[: len(data) // 2])


def write_without(run: Path, name: str) -> None:
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    del state[name]
    torch.save(state, run / "checkpoint.pt")


def write_packed(run: Path) -> None:
    """As torch.save never does: a record of zeros packed like this unfolds to a thousand times its size."""
    with zipfile.ZipFile(run / "checkpoint.pt") as old, zipfile.ZipFile("packed", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    Path("packed").replace(run / "checkpoint.pt")


def write_flipped(run: Path) -> None:
    """One bit of one weight is another; torch.load alone would not notice."""
    state, data = torch.load(run / "checkpoint.pt", weights_only=True), bytearray((run / "checkpoint.pt").read_bytes())
    weights = next(value for value in state["generator"].values() if value.shape == (64,))
    data[data.index(weights.numpy().tobytes()) + 40] ^= 1
    (run / "checkpoint.pt").write_bytes(data)


def write_with(run: Path, change: Callable[[dict], object]) -> None:
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    change(state)
    torch.save(state, run / "checkpoint.pt")


def moments(state: dict) -> dict:
    """Of the first parameter of the generator, what Adam keeps."""
    return state["optimizers"][0]["state"][0]


# What a checkpoint could hold instead of what it should; the keys are the names of the tests.
WRONG: dict[str, Callable[[dict], object]] = {
    "step is text": lambda state: state.update(step="2"),
    "step is negative": lambda state: state.update(step=-1),
    "step of 10**30": lambda state: state.update(step=10**30),
    "epoch is a list": lambda state: state.update(epoch=[]),
    "seconds are nan": lambda state: state.update(seconds=math.nan),
    "sums are none": lambda state: state.update(sums=None),
    "sums of complex numbers": lambda state: state.update(sums=torch.zeros(4).cfloat()),
    "z of another size": lambda state: state.update(z=torch.zeros(64, 5)),
    "z is nan": lambda state: state["z"].fill_(math.nan),
    "labels out of range": lambda state: state.update(labels=torch.full((64,), 99)),
    "rng is short": lambda state: state.update(rng=torch.zeros(5).byte()),
    "arguments are a list": lambda state: state.update(args=[1]),
    "image size of 10**9": lambda state: state["args"].update(image_size=10**9),
    "batch size is text": lambda state: state["args"].update(batch_size="4"),
    "batch size of 1": lambda state: state["args"].update(batch_size=1),
    "learning rate is nan": lambda state: state["args"].update(lr=math.nan),
    "cuda is text": lambda state: state["args"].update(cuda="no"),
    "data is a number": lambda state: state["args"].update(data=5),
    "no classes": lambda state: state["args"].pop("classes"),
    "2**40 channels": lambda state: state["args"].update(channels=2**40),
    "another latent dim": lambda state: state["args"].update(latent_dim=5),
    "the network of another size": lambda state: state["generator"].update({"layers.0.weight": torch.zeros(1)}),
    "one optimizer": lambda state: state["optimizers"].pop(),
    "moments of another size": lambda state: moments(state).update(exp_avg=torch.zeros(())),
    "moments that share one number": lambda state: moments(state).update(
        exp_avg=torch.zeros(1).expand(moments(state)["exp_avg"].shape)
    ),
    "no second moment": lambda state: moments(state).pop("exp_avg_sq"),
    "steps for each number": lambda state: moments(state).update(step=moments(state)["exp_avg"]),
}
BROKEN_CHECKPOINTS: dict[str, Callable[[Path], object]] = {
    "missing": lambda run: (run / "checkpoint.pt").unlink(),
    "a folder": lambda run: ((run / "checkpoint.pt").unlink(), (run / "checkpoint.pt").mkdir()),
    "empty": lambda run: (run / "checkpoint.pt").write_bytes(b""),
    "cut": write_cut,
    "text": lambda run: (run / "checkpoint.pt").write_text("not a checkpoint"),
    "a list": lambda run: torch.save([1, 2], run / "checkpoint.pt"),
    "a tensor": lambda run: torch.save(torch.zeros(3), run / "checkpoint.pt"),
    "weights only": lambda run: torch.save({"weight": torch.zeros(3)}, run / "checkpoint.pt"),
    "without arguments": lambda run: write_without(run, "args"),
    "without a network": lambda run: write_without(run, "generator"),
    "packed": write_packed,
    "a bit flipped": write_flipped,
    **{kind: functools.partial(write_with, change=change) for kind, change in WRONG.items()},
    "code, as a pickle": lambda run: (run / "checkpoint.pt").write_bytes(
        pickle.dumps({"script": "dcgan", "x": Evil()})
    ),
    "code, as a checkpoint": lambda run: torch.save({"script": "dcgan", "args": Evil()}, run / "checkpoint.pt"),
}


@pytest.mark.parametrize("kind", BROKEN_CHECKPOINTS)
def test_a_broken_checkpoint_is_refused_and_no_code_in_it_runs(
    kind: str, finished: Callable[[str], Path], refused: Callable[..., str]
) -> None:
    shutil.copytree(finished("dcgan.py"), "run")
    BROKEN_CHECKPOINTS[kind](Path("run"))
    before = files()
    line = refused("dcgan.py", "--resume", "run", "--steps", 3)
    assert len(line) < 500
    assert files() == before


@pytest.mark.parametrize("name", ["..", "../up", "/top", "cats/dogs", ".", ""])
def test_a_class_in_a_checkpoint_that_leads_out_of_the_run_is_refused_and_deletes_nothing(
    name: str, finished: Callable[[str], Path], refused: Callable[..., str], tmp_path: Path
) -> None:
    shutil.copytree(finished("cgan.py"), "a/run")
    write_with(
        Path("a/run"), lambda state: state["args"].update(classes=[name.replace("/top", f"{tmp_path}/top"), "b"])
    )
    Path("a/run/generated").mkdir()
    Path("a/run/generated/mine.png").write_text("mine")
    before = files()
    refused("cgan.py", "--resume", "a/run", "--generate", 2)
    assert files() == before


def test_a_run_of_a_script_that_logged_other_columns_is_refused(
    finished: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished("dcgan.py"), "run")
    write_with(Path("run"), lambda state: state.update(sums=torch.zeros(7)))
    with pytest.raises(SystemExit, match="2"):
        call("dcgan.py", "--resume", "run", "--steps", 3)
    assert "\rdcgan.py: error: --resume: run logged 7 columns" in capsys.readouterr().err


def test_a_run_whose_table_is_damaged_goes_on(finished: Callable[[str], Path]) -> None:
    shutil.copytree(finished("dcgan.py"), "run")
    Path("run/metrics.csv").write_bytes(b"\xff\0x,1\nstep,epoch\n1,2\n\n,,\nnan,1\n9,9\n")
    assert call("dcgan.py", "--resume", "run", "--steps", 3) == 0
    assert Path("run/metrics.csv").read_bytes() == b"step,epoch\n1,2\n"


@EACH_SCRIPT
def test_resume_with_fewer_steps_or_epochs_than_are_done_changes_nothing(
    script: str, finished: Callable[[str], Path]
) -> None:
    shutil.copytree(finished(script), "run")
    for argv in (["--steps", 1], ["--epochs", 1, "--steps", 2]):
        assert call(script, "--resume", "run", *argv) == 0
        for path in Path("run").iterdir():
            if path.name != "checkpoint.pt":  # all that is needed
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert torch.load("run/checkpoint.pt", weights_only=True)["step"] == 2


@pytest.mark.usefixtures("no_training")
@EACH_SCRIPT
def test_resume_of_no_run_is_refused(script: str, tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "--resume" in refused(script, "--resume")  # there is no newest one
    assert "nowhere" in refused(script, "--resume", "nowhere")
    Path("empty").mkdir()
    assert "empty" in refused(script, "--resume", "empty")
    assert files() == [Path("empty")]


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(("script", "other"), [*zip(SCRIPTS, [*SCRIPTS[1:], SCRIPTS[0]], strict=True)])
def test_resume_of_another_scripts_run_is_refused(
    script: str, other: str, finished: Callable[[str], Path], refused: Callable[..., str]
) -> None:
    assert other in refused(script, "--resume", finished(other))


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize(("script", "name"), [(s, n) for s in SCRIPTS for n in OTHER if n in COMMON or n in OWN[s]])
def test_resume_with_another_argument_than_the_runs_is_refused(
    script: str, name: str, finished: Callable[[str], Path], refused: Callable[..., str]
) -> None:
    run = finished(script)
    before = (run / "checkpoint.pt").stat().st_mtime_ns
    assert name in refused(script, "--resume", run, "--steps", 3, name, *OTHER[name])
    assert (run / "checkpoint.pt").stat().st_mtime_ns == before


@EACH_SCRIPT
def test_resume_takes_what_may_change_and_repeated_arguments(script: str, finished: Callable[[str], Path]) -> None:
    shutil.copytree(finished(script), "run")
    config = json.loads(Path("run/config.json").read_text())
    repeated = ["--image-size", 8, "--batch-size", 4, "--latent-dim", 4, "--seed", 0, "--data", config["data"]]
    changed = ["--epochs", 30, "--steps", 3, "--data-dir", "elsewhere", "--no-cuda", "--no-tensorboard"]
    assert call(script, "--resume", "run", *changed, *repeated, "--out", "run") == 0
    state = torch.load("run/checkpoint.pt", weights_only=True)
    assert state["step"] == 3
    assert {name: state["args"][name] for name in ("epochs", "steps", "data_dir", "batch_size", "latent_dim")} == {
        "epochs": 30,
        "steps": 3,
        "data_dir": "elsewhere",
        "batch_size": 4,
        "latent_dim": 4,
    }
    assert list(Path("elsewhere").rglob("*.npy"))


@EACH_SCRIPT
def test_resume_needs_no_argument_but_the_run(script: str, finished: Callable[[str], Path]) -> None:
    shutil.copytree(finished(script), "run")
    args, checkpoint = load(script).parse_args(["--resume", "run"])
    assert checkpoint["step"] == 2
    for name, value in json.loads(Path("run/config.json").read_text()).items():
        if name != "out":  # the run may have been moved
            assert vars(args)[name] == value
    assert args.out == "run"


def test_resume_where_the_data_has_gone_is_refused(images: Path, refused: Callable[..., str]) -> None:
    assert call("dcgan.py", "--data", images, *TINY) == 0
    shutil.rmtree(images)
    assert str(images) in refused("dcgan.py", "--resume", "--steps", 3)


@pytest.mark.parametrize("change", ["fewer images", "other classes", "grey"])
def test_resume_where_the_data_has_changed_is_refused(change: str, images: Path, refused: Callable[..., str]) -> None:
    assert call("cgan.py", "--data", images, *TINY) == 0
    before = Path("runs/cgan-1/checkpoint.pt").read_bytes()
    if change == "fewer images":
        (images / "cats" / "0.png").unlink()
    elif change == "other classes":
        (images / "mice").mkdir()
        (images / "cats" / "0.png").rename(images / "mice" / "0.png")
    else:
        make_images(images, mode="L")
        for path in images.rglob("*.png"):
            os.utime(path, ns=(0, path.stat().st_mtime_ns + 2_000_000_000))
    refused("cgan.py", "--resume", "--steps", 3)
    assert Path("runs/cgan-1/checkpoint.pt").read_bytes() == before


# -------------------------------------------------------------------------------------------------- cgan and --label


def test_a_label_that_is_no_class_is_refused_and_deletes_nothing(
    finished: Callable[[str], Path], refused: Callable[..., str]
) -> None:
    shutil.copytree(finished("cgan.py"), "run")
    assert call("cgan.py", "--resume", "run", "--generate", 2) == 0
    before = files()
    for label in ("birds", "2", "-1", "0.5", ""):
        line = refused("cgan.py", "--resume", "run", "--generate", 2, f"--label={label}")
        assert "cats" in line  # says which there are
        assert "dogs" in line
    assert files() == before


@pytest.mark.usefixtures("no_training")
def test_a_label_without_generate_is_refused(finished: Callable[[str], Path], refused: Callable[..., str]) -> None:
    assert "--generate" in refused("cgan.py", "--label", "cats")
    assert "--generate" in refused("cgan.py", "--label", "0")
    assert "--generate" in refused("cgan.py", "--label", "cats", "--resume", finished("cgan.py"), "--steps", 3)


@pytest.mark.parametrize("label", ["dogs", "1"])
def test_a_label_is_a_name_or_a_number(label: str, finished: Callable[[str], Path]) -> None:
    shutil.copytree(finished("cgan.py"), "run")
    assert call("cgan.py", "--resume", "run", "--generate", 3, "--label", label) == 0
    assert [path.parent.name for path in Path("run/generated").rglob("*.png")] == ["dogs"] * 3


# ---------------------------------------------------------------------------------------------- a script stands alone


def pep_723(source: str) -> str:
    """The text of the script block, by the expression of PEP 723 itself."""
    expression = r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$"
    (match,) = [match for match in re.finditer(expression, source) if match["type"] == "script"]
    lines = match["content"].splitlines(keepends=True)
    return "".join(line[2:] if line.startswith("# ") else line[1:] for line in lines)


def value(toml: str, section: str, key: str) -> object:
    """A one-line value in a section ("": before any) of a TOML file."""
    if sys.version_info >= (3, 11):
        import tomllib

        table = tomllib.loads(toml)
        return (table[section] if section else table)[key]
    body = re.split(r"(?m)^\[", toml if not section else toml.split(f"[{section}]\n")[1])[0]
    return ast.literal_eval(re.search(rf"(?m)^{key} = (.*)$", body)[1])


@EACH_SCRIPT
def test_a_script_opens_with_a_pep_723_block_that_agrees_with_the_project(script: str) -> None:
    assert SOURCES[script].startswith("# /// script\n")
    block, project = pep_723(SOURCES[script]), (ROOT / "pyproject.toml").read_text()
    assert block == pep_723(SOURCES["dcgan.py"])
    for key in ("dependencies", "requires-python"):
        assert value(block, "", key) == value(project, "project", key)


@EACH_SCRIPT
def test_a_script_imports_its_dependencies_and_nothing_else(script: str) -> None:
    tree = ast.parse(SOURCES[script])
    optional = {id(inner) for node in ast.walk(tree) if isinstance(node, ast.Try) for inner in ast.walk(node)}
    names = set()
    for node in ast.walk(tree):
        if id(node) in optional:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("." * node.level + (node.module or "").split(".")[0])
    assert names - sys.stdlib_module_names == {"numpy", "torch", "PIL", "tqdm"}


def test_importing_the_scripts_prints_nothing_parses_nothing_and_changes_nothing(tmp_path: Path) -> None:
    code = f"""
import signal, sys, torch
sys.argv = ["script", "--no-such-option"]
sys.path.insert(0, {str(ROOT)!r})
sys.dont_write_bytecode = True
state = lambda: (torch.initial_seed(), torch.get_default_dtype(), torch.backends.cudnn.benchmark,
                 torch.get_float32_matmul_precision(), torch.get_num_threads(), signal.getsignal(signal.SIGINT))
before, random = state(), torch.get_rng_state()
import {", ".join(script[:-3] for script in SCRIPTS)}
assert state() == before
assert torch.equal(torch.get_rng_state(), random)
from dcgan import Generator, Discriminator
assert Discriminator(1, 32)(Generator(100, 1, 32)(torch.randn(2, 100))).shape == (2,)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert files() == []


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Each script, copied to an empty folder and training there; all five start at once, which saves time."""
    started = {}
    for script in SCRIPTS:
        folder = tmp_path_factory.mktemp("alone")
        command = [sys.executable, shutil.copy(ROOT / script, folder), *TINY, "--log-every", "1"]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started[script] = subprocess.Popen(command, cwd=folder, env=env, **pipes)
    yield started
    for process in started.values():
        process.kill()
        process.wait()


@EACH_SCRIPT
def test_a_script_alone_in_an_empty_folder_trains(script: str, alone: dict[str, subprocess.Popen[str]]) -> None:
    out, err = alone[script].communicate(timeout=240)
    assert alone[script].returncode == 0, err
    assert "Traceback" not in err
    run, folder = Path("runs", f"{script[:-3]}-1"), Path(alone[script].args[1]).parent
    assert f"python {script} --resume {run}" in out
    assert torch.load(folder / run / "checkpoint.pt", weights_only=True)["step"] == 2
    header, *rows = (folder / run / "metrics.csv").read_text().splitlines()
    assert header.startswith("step,")
    assert [row.split(",")[0] for row in rows] == ["1", "2"]
    assert all(math.isfinite(float(number)) for row in rows for number in row.split(","))
    assert {path.name for path in folder.iterdir()} <= {script, "runs", "data"}
