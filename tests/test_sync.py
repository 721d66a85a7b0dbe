"""The scripts are siblings: what has the same name is the same, byte for byte, and diffs are short.

python tests/test_sync.py --fix wgan.py      copies what wgan.py shares with the others over theirs
"""

import ast
import io
import os
import re
import shutil
import subprocess
import sys
import tokenize
import zipfile

import pytest
from conftest import BANNER, EACH_SCRIPT, ROOT, SCRIPTS

# The budgets
SCRIPT_BYTES = 28_000
DCGAN_BYTES = 27_000
PLUMBING_BYTES = 17_200
TOKENS_PER_LINE = 10.5  # below the banner
LINES_PER_FUNCTION = 100
CHANGED_LINES = {  # on each side of a diff
    ("dcgan.py", "cgan.py"): 35,
    ("dcgan.py", "wgan.py"): 60,
    ("wgan.py", "wgan_gp.py"): 45,
    ("dcgan.py", "r3gan.py"): 65,
    ("dcgan.py", "lsgan.py"): 20,
    ("cgan.py", "acgan.py"): 40,
    ("dcgan.py", "fgan.py"): 60,
}

# What may differ although it has the same name. All of it stands above the banner.
DIFFERS = {"__doc__", "SCRIPT", "CONDITIONAL", "Generator", "Discriminator", "Critic"}
DIFFERS |= {"add_options", "images_per_step", "build", "sample", "labels_to_generate", "train_step"}
DIFFERS |= {"imports", "optional imports"}

SOURCES = {script: (ROOT / script).read_text("utf-8") for script in SCRIPTS}


def name_of(node: ast.stmt) -> str:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return node.name
    if isinstance(node, ast.Import | ast.ImportFrom):
        return "imports"
    if isinstance(node, ast.Assign):
        return ast.unparse(node.targets[0])
    return {ast.Expr: "__doc__", ast.Try: "optional imports", ast.If: "__main__"}[type(node)]


def blocks(source: str) -> dict[str, str]:
    """The top-level blocks of a script by name, in order, each with the comments above it."""
    lines = source.splitlines(keepends=True)
    found = {}
    end = 0
    for node in ast.parse(source).body:
        name = name_of(node)
        text = "".join(lines[end : node.end_lineno])
        found[name] = found.get(name, "") + text  # the imports are one block
        end = node.end_lineno
    return found


def plumbing(found: dict[str, str]) -> list[str]:
    """The names of the blocks below the banner, which itself belongs to the first of them."""
    names = list(found)
    first = [BANNER in text for text in found.values()].index(True)
    return names[first:]


def fixed(source: dict[str, str], target: dict[str, str]) -> str:
    """The target with its shared blocks and its whole plumbing replaced by the source's."""
    texts = []
    for name, text in target.items():
        if name in plumbing(target):
            continue
        shared = name in source and name not in DIFFERS
        texts.append(source[name] if shared else text)
    return "".join(texts + [source[name] for name in plumbing(source)])


def fix(script: str) -> None:
    for other in SCRIPTS:
        text = fixed(blocks(SOURCES[script]), blocks(SOURCES[other]))
        (ROOT / other).write_text(text, "utf-8")


def below_the_banner(script: str) -> str:
    return SOURCES[script][SOURCES[script].index(BANNER) :]


@EACH_SCRIPT
def test_same_named_blocks_are_identical(script: str) -> None:
    shared = {}
    for source in SOURCES.values():
        shared |= blocks(source)
    found = blocks(SOURCES[script])
    different = [name for name in found if name not in DIFFERS and found[name] != shared[name]]
    assert not different, "python tests/test_sync.py --fix copies one script's over the others'"


@EACH_SCRIPT
def test_every_script_holds_the_whole_plumbing_byte_for_byte(script: str) -> None:
    assert below_the_banner(script) == below_the_banner("dcgan.py")
    assert not DIFFERS & set(plumbing(blocks(SOURCES[script])))
    own = set(blocks(SOURCES[script])["imports"].splitlines())
    common = set(blocks(SOURCES["dcgan.py"])["imports"].splitlines())
    assert max(len(own - common), len(common - own)) <= 1


@EACH_SCRIPT
def test_a_script_keeps_to_its_budget_of_bytes(script: str) -> None:
    most = DCGAN_BYTES if script == "dcgan.py" else SCRIPT_BYTES
    assert len(SOURCES[script].encode()) <= most
    assert len(below_the_banner(script).encode()) <= PLUMBING_BYTES


@EACH_SCRIPT
def test_lines_and_functions_are_short_and_hold_one_idea(script: str) -> None:
    assert [line for line in SOURCES[script].splitlines() if len(line) > 100] == []
    for node in ast.walk(ast.parse(SOURCES[script])):
        assert not isinstance(node, ast.NamedExpr)  # a walrus
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < LINES_PER_FUNCTION, node.name


def test_plumbing_has_few_tokens_a_line() -> None:
    text = below_the_banner("dcgan.py")
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    count = sum(token.type != tokenize.COMMENT and token.string.strip() != "" for token in tokens)
    lines = sum(bool(line.strip()) for line in text.splitlines())
    assert count / lines <= TOKENS_PER_LINE


@pytest.mark.skipif(not shutil.which("diff"), reason="needs the program diff")
@pytest.mark.parametrize(("old", "new"), CHANGED_LINES)
def test_a_diff_between_neighbours_is_a_short_lesson(old: str, new: str) -> None:
    command = ["diff", ROOT / old, ROOT / new]
    lines = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    for side in "<>":
        changed = [line for line in lines if line.startswith(side)]
        assert 10 < len(changed) <= CHANGED_LINES[old, new]


def test_a_wheel_holds_every_script_and_the_package(tmp_path) -> None:
    built = shutil.ignore_patterns("_C*", "_build.json", "__pycache__")
    for folder in ("gan_kernels", "csrc"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=built)
    for file in ("pyproject.toml", "README.md", "LICENSE", *ROOT.glob("*.py")):
        shutil.copy(ROOT / file, tmp_path)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "."]
    # Without a compiler it takes seconds, and the wheel is made all the same
    env = {**os.environ, "CXX": "no-compiler", "USE_CUDA": "0", "PIP_NO_INDEX": "1"}
    subprocess.run(command, cwd=tmp_path, env=env, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {*SCRIPTS, "prepare.py", "evaluate.py", "gan_kernels/__init__.py"} <= names
    assert b'"error": null' not in zipfile.ZipFile(wheel).read("gan_kernels/_build.json")


def test_the_readme_lists_every_script() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    assert set(SCRIPTS) <= set(re.findall(r"\]\((\w+\.py)\)", readme))


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] != "--fix" or sys.argv[2] not in SCRIPTS:
        sys.exit(f"usage: python tests/test_sync.py --fix {'|'.join(SCRIPTS)}")
    fix(sys.argv[2])
