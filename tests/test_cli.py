"""The command line: what is accepted, what is refused and how, what --help says, and that each script stands alone."""

import ast
import math
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, SCRIPTS, TINY, call, load, make_data
from PIL import Image
from test_training import start

SOURCES = {script: (ROOT / script).read_text() for script in SCRIPTS}
COMMON = ["--data", "--epochs", "--steps", "--batch-size", "--latent-dim", "--lr", "--ema", "--seed", "--log-every"]
COMMON += ["--cuda", "--graph", "--amp", "--out", "--resume", "--generate"]
OWN = {
    "vanilla_gan.py": ["--d-steps", "--loss"],
    "dcgan.py": [],
    "cgan.py": ["--label"],
    "wgan.py": ["--n-critic", "--clip", "--kernels"],
    "wgan_gp.py": ["--n-critic", "--gp-weight", "--kernels"],
    "lsgan.py": ["--coding"],
    "acgan.py": ["--label"],
    "fgan.py": ["--divergence", "--loss"],
}
COUNT = ["0", "-1", "1.5", "x", "nan", "", str(2**63)]  # bad values of what counts something, from 1 on
POSITIVE = ["0", "-1", "x", "nan", "inf", "1e400", ""]
BAD = dict.fromkeys(["--epochs", "--steps", "--batch-size", "--latent-dim", "--log-every", "--generate"], COUNT)
BAD |= {"--lr": POSITIVE, "--seed": ["-1", "0.5", "x", str(2**63)], "--ema": ["-0.1", "x", "nan", "inf"]}
BAD |= {"--d-steps": COUNT, "--n-critic": COUNT, "--clip": POSITIVE, "--gp-weight": ["-1", "x", "nan", "inf"]}
BAD |= {"--loss": ["wasserstein", ""], "--kernels": ["", "cuda", "ON"]}
BAD |= {"--coding": ["ternary", ""], "--divergence": ["KL", ""]}
BAD |= {"--cuda": ["1"], "--graph": ["1"], "--amp": ["1"], "--unknown": ["1"]}
EACH_SCRIPT = pytest.mark.parametrize("script", SCRIPTS)
Refused, Runs, Capsys, Patch = Callable[..., str], Callable[[str], Path], pytest.CaptureFixture[str], pytest.MonkeyPatch


def files() -> list[Path]:
    return sorted(Path().rglob("*"))


@EACH_SCRIPT
def test_help_shows_the_common_options_and_its_own_with_defaults(
    script: str, capsys: Capsys, monkeypatch: Patch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit, match="0"):
        call(script, "--help")
    usage, *entries = re.split(r"\n  (?:-h, )?(?=--)", capsys.readouterr().out)
    assert usage.startswith(f"usage: {script} ")
    entries = {re.match(r"--[a-z-]+", entry)[0]: entry for entry in entries}
    assert list(entries) == ["--help", *COMMON, *OWN[script]]
    for name, value in vars(load(script).parse_args([])[0]).items():
        entry = entries[f"--{name.replace('_', '-')}"]
        assert len(entry.split()) > 3
        assert type(value) is bool or value in (None, "glyphs") or name == "out" or f"({value})" in entry


def test_every_option_is_used_by_a_test() -> None:  # below the tables above
    tests = "".join(path.read_text().rpartition("EACH_SCRIPT =")[2] for path in (ROOT / "tests").glob("test_*.py"))
    assert [name for name in COMMON if f'"{name}' not in tests] == []
    assert [name for own in OWN.values() for name in own if f'"{name}' not in tests] == []


@EACH_SCRIPT
def test_each_option_of_the_networks_and_losses_changes_the_run(script: str, finished: Runs) -> None:
    own = {"vanilla_gan.py": ["--d-steps 2", "--loss minimax"], "wgan.py": ["--n-critic 2", "--clip 0.1"]}
    own["wgan_gp.py"] = ["--n-critic 2", "--gp-weight 1"]
    data = torch.load(finished(script) / "checkpoint.pt", weights_only=True)["args"]["data"]
    seen = [(finished(script) / "metrics.csv").read_text()]
    for i, option in enumerate(["--latent-dim 5", "--batch-size 5", "--seed 1", "--amp", *own.get(script, [])]):
        assert call(script, "--data", data, *TINY, "--log-every", 1, *option.split(), "--out", i) == 0
        seen.append(Path(str(i), "metrics.csv").read_text())
    assert len({tuple(row.rpartition(",")[0] for row in text.splitlines()) for text in seen}) == len(seen)


def bad_uses(script: str) -> Iterator[list[str]]:
    """Command lines of one bad option each; the common ones in one script."""
    for name in [*OWN[script], *([*COMMON, "--unknown"] if script == "dcgan.py" else [])]:
        yield from ([f"{name}={value}"] for value in BAD.get(name, []))
        if name not in ("--cuda", "--graph", "--amp", "--resume", "--unknown"):
            yield [name]  # its value is missing


BAD_USES = [pytest.param(script, argv, id=f"{script} {argv[0]}") for script in SCRIPTS for argv in bad_uses(script)]


@pytest.mark.parametrize(("script", "argv"), [*BAD_USES, ("dcgan.py", ["word"]), ("dcgan.py", ["one\ntwo"])])
def test_a_bad_value_is_refused(script: str, argv: list[str], refused: Refused) -> None:
    assert argv[0].split("=")[0].split("\n")[0] in refused(script, *argv)  # says which option
    assert files() == []


def test_the_least_and_the_largest_values_train(data: Path) -> None:
    least = "--epochs 1 --steps 1 --batch-size 2 --latent-dim 1 --lr 1e-12 --seed 0 --ema 0 --log-every 1 --n-critic 1"
    assert call("wgan_gp.py", "--data", data, *least.split(), "--gp-weight", 0) == 0
    assert call("dcgan.py", "--data", data, *TINY, "--seed", 2**63 - 1, "--epochs", 2**63 - 1) == 0


@pytest.mark.parametrize(
    ("script", "name", "value"),
    [("dcgan.py", "--latent-dim", 10**15), ("vanilla_gan.py", "--batch-size", 1)],
)
def test_what_memory_or_batchnorm_cannot_do_is_one_line(
    script: str, name: str, value: int, data: Path, capsys: Capsys
) -> None:
    with pytest.raises(SystemExit, match=r"1|2"):
        call(script, "--data", data, *TINY, name, value)
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"{script}: error: ")


def test_a_missing_data_folder_is_refused_with_the_command_that_makes_it(refused: Refused) -> None:
    line = refused("dcgan.py", "--data", "data/mnist-32")
    assert "data/mnist-32" in line and line.endswith("python prepare.py mnist")
    assert files() == []


IMAGES = np.zeros((4, 1, 8, 8), np.uint8)
LABELS = np.array([0, 1, 1, 0])
BAD_DATA = {
    "float images": (IMAGES.astype(np.float32), LABELS),
    "two channels": (IMAGES.repeat(2, axis=1), LABELS),
    "not square": (IMAGES[..., :7], LABELS),
    "three axes": (IMAGES[0], LABELS),
    "no axis": (np.uint8(3), None),
    "no images": (IMAGES[:0], LABELS[:0]),
    "no pixels": (IMAGES[..., :0, :0], LABELS),
    "objects": (np.array([{}]), LABELS),
    "text": (b"not an array", LABELS),
    "an empty file": (b"", LABELS),
    "a label too many": (IMAGES, np.zeros(5, np.int64)),
    "a label of no class": (IMAGES, LABELS + 1),
    "a negative label": (IMAGES, -LABELS),
    "labels of text": (IMAGES, np.array(["cats"] * 4)),
    "classes without labels": (IMAGES, None),
}


@pytest.mark.parametrize("kind", BAD_DATA)
def test_bad_arrays_are_refused(kind: str, data: Path, refused: Refused) -> None:
    for name, array in zip(("images.npy", "labels.npy"), BAD_DATA[kind], strict=True):
        (data / name).unlink()
        if isinstance(array, bytes):
            (data / name).write_bytes(array)
        elif array is not None:
            np.save(data / name, array)
    if kind == "no axis":
        (data / "classes.txt").unlink()
    assert str(data) in refused("vanilla_gan.py", "--data", data, *TINY)
    assert not Path("runs").exists()


def test_cgan_refuses_data_without_classes(refused: Refused) -> None:
    data = make_data(Path("plain"), classes=())
    assert "labels" in refused("cgan.py", "--data", data, *TINY)
    assert call("dcgan.py", "--data", data, *TINY) == 0  # the others need none


@pytest.mark.parametrize("script", SCRIPTS[1:])
@pytest.mark.parametrize("size", [4, 12, 28])
def test_an_image_size_that_is_no_power_of_two_from_8_on_is_refused(script: str, size: int, refused: Refused) -> None:
    data = make_data(Path("odd"), 4, size=size)
    assert f"image_size must be a power of two, 8 or more, not {size}" in refused(script, "--data", data, *TINY)
    assert not Path("runs").exists()
    assert call("vanilla_gan.py", "--data", data, *TINY) == 0  # which takes any


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu_is_refused_and_an_idle_gpu_hinted_at(
    data: Path, refused: Refused, monkeypatch: Patch, capsys: Capsys
) -> None:
    assert "GPU" in refused("dcgan.py", "--data", data, "--cuda")
    assert not Path("runs").exists()
    assert call("dcgan.py", "--data", data, *TINY, "--no-cuda") == 0
    assert "hint" not in capsys.readouterr().out
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert call("dcgan.py", "--data", data, *TINY) == 0
    assert "hint: --cuda" in capsys.readouterr().out


@pytest.mark.parametrize("script", ["wgan.py", "wgan_gp.py"])
def test_kernels_on_without_them_is_refused_auto_says_why_not(
    script: str, data: Path, refused: Refused, monkeypatch: Patch, capsys: Capsys
) -> None:
    monkeypatch.setattr(load(script), "gan_kernels", None)
    assert "gan_kernels is not installed" in refused(script, "--data", data, *TINY, "--kernels", "on")
    for kernels, reason in (("auto", "gan_kernels is not installed"), ("off", "--kernels off")):
        assert call(script, "--data", data, *TINY, "--kernels", kernels) == 0
        assert f"kernels: formula in PyTorch ({reason})\n" in capsys.readouterr().out


def test_runs_are_numbered_and_out_may_be_new_or_empty(data: Path, refused: Refused) -> None:
    Path("empty").mkdir()
    Path("file").write_text("mine")
    for out in ([], [], ["--out", "empty"], ["--out", "a/b"]):
        assert call("dcgan.py", "--data", data, *TINY, *out) == 0
    found = sorted(str(path.parent) for path in Path().rglob("checkpoint.pt"))
    assert found == ["a/b", "empty", "runs/dcgan-1", "runs/dcgan-2"]
    assert "file" in refused("dcgan.py", "--data", data, *TINY, "--out", "file", code=1)
    assert Path("file").read_text() == "mine"


def test_out_that_holds_a_run_is_refused_and_left_alone(finished: Runs, refused: Refused) -> None:
    run = finished("dcgan.py")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    for script in ("dcgan.py", "wgan.py"):
        line = refused(script, "--out", run)
        assert str(run) in line and "--resume" in line
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_generate_without_a_run_and_resume_of_none_are_refused(finished: Runs, refused: Refused) -> None:
    Path("empty").mkdir()
    assert "--resume" in refused("dcgan.py", "--generate", 4)
    assert "--resume" in refused("dcgan.py", "--resume")  # there is no newest one
    for folder in ("nowhere", "empty"):
        assert folder in refused("dcgan.py", "--resume", folder)
    assert "wgan.py" in refused("dcgan.py", "--resume", finished("wgan.py"))
    assert files() == [Path("empty")]


class Evil:
    """A pickle of it makes a folder when it is loaded."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, ("run-by-the-pickle",)


BROKEN: dict[str, object] = {
    "empty": b"",
    "text": b"not a checkpoint",
    "code, as a pickle": pickle.dumps({"script": "dcgan", "args": Evil()}),
    "code, as a checkpoint": lambda state: {**state, "args": Evil()},
    "a list": lambda state: [1, 2],
    "weights only": lambda state: state["generator"],
    "an old one, without the average": lambda state: {name: state[name] for name in state if name != "generator_ema"},
    "no arguments": lambda state: {name: state[name] for name in state if name != "args"},
    "another network": lambda state: {**state, "args": {**state["args"], "latent_dim": 9}},
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_checkpoint_is_refused_and_no_code_in_it_runs(kind: str, finished: Runs, refused: Refused) -> None:
    path = Path(shutil.copytree(finished("dcgan.py"), "run")) / "checkpoint.pt"
    if isinstance(BROKEN[kind], bytes):
        path.write_bytes(BROKEN[kind])
    else:
        torch.save(BROKEN[kind](torch.load(path, weights_only=True)), path)
    before = [(path, path.stat().st_mtime_ns) for path in files()]
    assert len(refused("dcgan.py", "--resume", "run", "--steps", 3)) < 1000
    assert [(path, path.stat().st_mtime_ns) for path in files()] == before


def test_a_label_that_is_no_class_is_refused_and_deletes_nothing(finished: Runs, refused: Refused) -> None:
    shutil.copytree(finished("cgan.py"), "run")
    assert call("cgan.py", "--resume", "run", "--generate", 2, "--label", "dogs") == 0
    before = files()
    assert "cats, dogs" in refused("cgan.py", "--resume", "run", "--generate", 2, "--label", "birds")
    assert files() == before


def test_hostile_names_of_classes_stay_inside_the_run(tmp_path: Path) -> None:
    names = ["..", "../../up", f"{tmp_path}/top", ".", "a/b", "b"]
    data = make_data(Path("data"), classes=names)
    assert call("cgan.py", "--data", data, *TINY, "--out", "run") == 0
    before = set(files())
    assert call("cgan.py", "--resume", "run", "--generate", 12) == 0
    new = {path for path in files() if path not in before and path.is_file()}
    assert len(new) == 12 and all(path.parts[0] == "run" for path in new)
    assert all(Image.open(path).mode == "RGB" for path in new)


@EACH_SCRIPT
def test_a_script_opens_with_a_pep_723_block_that_agrees_with_the_project(script: str) -> None:
    block = re.match(r"# /// script\n(# .*\n)+# ///\n", SOURCES[script])[0]
    project = (ROOT / "pyproject.toml").read_text()
    for key in ("dependencies", "requires-python"):
        assert re.search(rf"(?m)^# ({key} = .*)$", block)[1] in project.splitlines()


@EACH_SCRIPT
def test_a_script_imports_its_dependencies_and_nothing_else(script: str) -> None:
    tree = ast.parse(SOURCES[script])
    imports = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
    names = {name.split(".")[0] for n in imports for name in [getattr(n, "module", None) or n.names[0].name]}
    assert names - sys.stdlib_module_names == {"numpy", "torch", "PIL", "tqdm"}
    inner = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom) and n not in imports]
    assert [ast.unparse(n) for n in inner] == (["import gan_kernels"] if script.startswith("wgan") else [])


def test_importing_the_scripts_prints_nothing_parses_nothing_and_changes_nothing() -> None:
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


@EACH_SCRIPT
def test_a_script_alone_in_an_empty_folder_trains_without_the_kernels(script: str, tmp_path: Path) -> None:
    data = "glyphs" if script == "dcgan.py" else make_data(tmp_path / "data")
    shutil.copy(ROOT / script, tmp_path)
    before = "sys.path = [x for x in sys.path if 'site-packages' in x or 'lib' in x]; "
    before += "sys.modules |= dict.fromkeys(['gan_kernels', 'matplotlib', 'tensorboard', 'scipy'])"
    process = start(tmp_path / script, "--data", data, *TINY, "--log-every", 1, before=before)
    process.join(120)
    out = Path("out.txt").read_text()
    assert process.exitcode == 0 and "Traceback" not in out, out
    run = Path("runs", f"{script[:-3]}-1")
    assert f"python {script} --resume {run}\n" in out and f"images of {data} on cpu" in out
    rows = (run / "metrics.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == ["1", "2"]
    assert all(math.isfinite(float(number)) for row in rows for number in row.split(","))
    assert {path.name for path in tmp_path.iterdir()} - {"data"} == {script, "runs", "out.txt"}
