"""The scripts are siblings: what has the same name is the same, byte for byte, and the diffs are lessons.

python tests/test_sync.py --fix wgan.py      copies what wgan.py shares with the others over theirs
"""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ["vanilla_gan.py", "dcgan.py", "cgan.py", "wgan.py", "wgan_gp.py", "lsgan.py", "acgan.py", "fgan.py"]
DIFFERS = {"__doc__", "Generator", "Discriminator", "Critic", "add_options", "build", "train_step"}
BANNER = "Plumbing:"


def blocks(source: str) -> dict[str, str]:
    """The top-level blocks of a script by name, in order, each with the comments above it; imports are one block."""
    lines, found, end = source.splitlines(keepends=True), {}, 0
    for node in ast.parse(source).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            name = "imports"
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            name = node.name
        elif isinstance(node, ast.Assign):
            name = ast.unparse(node.targets[0])
        else:
            name = {ast.Expr: "__doc__", ast.Try: "optional imports", ast.If: "__main__"}[type(node)]
        found[name] = found.get(name, "") + "".join(lines[end : node.end_lineno])
        end = node.end_lineno
    return found


def plumbing(found: dict[str, str]) -> list[str]:
    """The names of the blocks below the banner."""
    names = list(found)
    return names[next(i for i, name in enumerate(names) if BANNER in found[name]) :]


def fixed(source: dict[str, str], target: dict[str, str]) -> str:
    """The target's blocks, with those it shares replaced by the source's and the source's whole plumbing."""
    above = [name for name in target if name not in plumbing(target)]
    texts = [source[name] if name in source and name not in DIFFERS else target[name] for name in above]
    return "".join(texts + [source[name] for name in plumbing(source)])


SOURCES = {script: (ROOT / script).read_text() for script in SCRIPTS}
EACH_SCRIPT = pytest.mark.parametrize("script", SCRIPTS)


@EACH_SCRIPT
def test_same_named_blocks_are_identical(script: str) -> None:
    reference = {name: text for other in reversed(SCRIPTS) for name, text in blocks(SOURCES[other]).items()}
    found = blocks(SOURCES[script])
    different = [name for name in found if name not in DIFFERS and found[name] != reference[name]]
    assert not different, f"python tests/test_sync.py --fix SCRIPT copies one script's {different} over the others"


@EACH_SCRIPT
def test_every_script_holds_the_whole_plumbing_and_nothing_else(script: str) -> None:
    assert plumbing(blocks(SOURCES[script])) == plumbing(blocks(SOURCES["dcgan.py"]))
    assert not DIFFERS & set(plumbing(blocks(SOURCES[script])))


@EACH_SCRIPT
def test_a_script_is_short_and_so_are_its_functions_and_lines(script: str) -> None:
    lines = SOURCES[script].splitlines()
    assert len(lines) <= (400 if script == "dcgan.py" else 430)
    assert len(lines) - next(i for i, line in enumerate(lines, start=1) if BANNER in line) <= 260
    assert [line for line in lines if len(line) > 120] == []
    functions = [node for node in ast.walk(ast.parse(SOURCES[script])) if isinstance(node, ast.FunctionDef)]
    assert [node.name for node in functions if node.end_lineno - node.lineno >= 90] == []


@pytest.mark.skipif(not shutil.which("diff"), reason="needs the program diff")
@pytest.mark.parametrize(
    ("old", "new", "most"),
    [
        *[("dcgan", "cgan", 35), ("dcgan", "wgan", 70), ("wgan", "wgan_gp", 45)],
        *[("dcgan", "lsgan", 20), ("cgan", "acgan", 40), ("dcgan", "fgan", 60)],
    ],
)
def test_a_diff_between_neighbours_is_a_short_lesson(old: str, new: str, most: int) -> None:
    diff = subprocess.run(["diff", f"{old}.py", f"{new}.py"], cwd=ROOT, capture_output=True, text=True).stdout
    for side in "<>":
        assert 10 < sum(line.startswith(side) for line in diff.splitlines()) <= most


def test_fix_undoes_a_planted_drift(tmp_path: Path) -> None:
    for script in SCRIPTS:
        (tmp_path / script).write_text(SOURCES[script])
    (tmp_path / "tests").mkdir()
    drifted = SOURCES["wgan.py"].replace("def fail(message: str", "def fail(text: str").replace("0.02)", "0.03)")
    (tmp_path / "wgan.py").write_text(drifted)
    fix = [sys.executable, shutil.copy(__file__, tmp_path / "tests"), "--fix"]
    assert subprocess.run([*fix, "nothing.py"], capture_output=True).returncode == 1
    assert (tmp_path / "wgan.py").read_text() == drifted != SOURCES["wgan.py"]
    subprocess.run([*fix, "dcgan.py"], check=True)
    assert {script: (tmp_path / script).read_text() for script in SCRIPTS} == SOURCES


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] != "--fix" or sys.argv[2] not in SCRIPTS:
        sys.exit(f"usage: python tests/test_sync.py --fix {'|'.join(SCRIPTS)}")
    for script in SCRIPTS:
        (ROOT / script).write_text(fixed(blocks(SOURCES[sys.argv[2]]), blocks(SOURCES[script])))
