"""The five scripts are siblings: what has the same name is the same, byte for byte, and the diffs are lessons.

python tests/test_sync.py --fix wgan.py      copies what wgan.py shares with the others over theirs
"""

import ast
import difflib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ["vanilla_gan.py", "dcgan.py", "cgan.py", "wgan.py", "wgan_gp.py"]
DIFFERS = {"__doc__", "Generator", "Discriminator", "Critic", "add_options", "build", "train_step"}
BANNER = "# Plumbing:"


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
        elif isinstance(node, ast.Expr):
            name = "__doc__"
        elif isinstance(node, ast.Try):
            name = "optional imports"
        else:
            name = "__main__"
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


@pytest.mark.parametrize("script", SCRIPTS)
def test_same_named_blocks_are_identical(script: str) -> None:
    reference = {name: text for other in reversed(SCRIPTS) for name, text in blocks(SOURCES[other]).items()}
    found = blocks(SOURCES[script])
    different = [name for name in found if name not in DIFFERS and found[name] != reference[name]]
    assert not different, f"python tests/test_sync.py --fix SCRIPT copies one script's {different} over the others"


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_holds_the_whole_plumbing_and_nothing_else(script: str) -> None:
    assert plumbing(blocks(SOURCES[script])) == plumbing(blocks(SOURCES["dcgan.py"]))
    assert not DIFFERS & set(plumbing(blocks(SOURCES[script])))


@pytest.mark.parametrize("pair", [("dcgan", "cgan"), ("dcgan", "wgan"), ("wgan", "wgan_gp")], ids=" to ".join)
def test_a_diff_between_neighbours_is_a_lesson_of_at_most_80_lines(pair: tuple[str, str]) -> None:
    old, new = (SOURCES[f"{name}.py"].splitlines() for name in pair)
    changed = sum(line.startswith("+ ") for line in difflib.ndiff(old, new))
    assert 10 < changed <= 80


def test_fix_undoes_a_planted_drift() -> None:
    drifted = SOURCES["wgan.py"].replace("def fail(message: str", "def fail(text: str").replace("0.02)", "0.03)")
    assert drifted != SOURCES["wgan.py"]
    assert fixed(blocks(SOURCES["dcgan.py"]), blocks(drifted)) == SOURCES["wgan.py"]


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] != "--fix" or sys.argv[2] not in SCRIPTS:
        sys.exit(f"usage: python tests/test_sync.py --fix {'|'.join(SCRIPTS)}")
    for script in SCRIPTS:
        (ROOT / script).write_text(fixed(blocks(SOURCES[sys.argv[2]]), blocks(SOURCES[script])))
