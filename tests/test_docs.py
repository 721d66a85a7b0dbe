"""The commands in README.md and docs/: their programs, options and data exist."""

import itertools
import re
import shlex
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, TINY, call

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAM = r"(?:benchmarks/)?\w+\.py"


@cache
def commands(page: Path) -> list[list[str]]:
    """The words of each command that stands on a line of its own, or as `code` with options."""
    text = page.read_text("utf-8").replace("\\\n", " ")
    start = r"(?m)(?:^(?: {4})?|&& )(?:\S*python|torchrun .*?)"
    lines = re.findall(rf"{start} ({PROGRAM}[^&`\n]*)", text)
    lines += re.findall(rf"`(?:python )?({PROGRAM} [^`]*)`", text.replace("\n", " "))
    # A comment follows a #, a description two spaces or more
    return [shlex.split(re.split(r"  +| #", line)[0]) for line in lines]


def test_commands_are_found() -> None:
    assert ["dcgan.py", "--epochs", "25"] in commands(PAGES[0])
    assert sum(len(commands(page)) for page in PAGES) > 80


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_programs_and_options_of_the_commands_exist(page: Path) -> None:
    for program, *words in commands(page):
        source = (ROOT / program).read_text("utf-8")
        options = set(re.findall(r'"(--[\w-]+)"', source))
        options |= {option.replace("--", "--no-", 1) for option in options} | {"--help"}
        typed = {word.split("=")[0] for word in words if word.startswith("--")}
        assert typed <= options, (program, words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_data_of_the_commands_are_made_by_a_command_on_the_page_or_in_the_readme(page) -> None:
    made = {"data/mine", "digits"}  # docs/usage.md writes the first with numpy
    for program, *words in [*commands(page), *commands(PAGES[0])]:
        if program == "prepare.py" and words:
            options = dict(itertools.pairwise(words))
            size = options.get("--image-size", 32)
            made.add(
                options.get("--out", f"data/{Path(words[0]).name.removesuffix('.zip')}-{size}")
            )
    for program, *words in commands(page):
        data = dict(itertools.pairwise(words)).get("--data", "digits")
        assert data in made or program in ("evaluate.py", "benchmarks/speedrun.py"), (program, data)


@cache
def python_blocks() -> list[str]:
    """The Python code in docs/usage.md that uses a trained generator, in order."""
    text = (ROOT / "docs" / "usage.md").read_text("utf-8")
    section = text.split("\n## Copy a script")[1].split("\n## ")[0]
    return re.findall(r"(?s)```python\n(.*?)```", section)


def test_the_code_that_draws_from_a_checkpoint_runs(data) -> None:
    call("dcgan.py", "--data", data, "--out", "runs/dcgan-1", *TINY)
    names = {}
    exec(python_blocks()[0], names)
    assert names["images"].shape == (16, 3, 8, 8)


def test_the_code_that_exports_to_onnx_runs_and_the_file_draws_the_same(data) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    reference = pytest.importorskip("onnx.reference", reason="onnx is not installed")
    call("dcgan.py", "--data", data, "--out", "runs/dcgan-1", *TINY)
    names = {}
    exec(python_blocks()[0], names)
    exec(python_blocks()[2], names)
    z = names["z"][:3]  # fewer than were exported
    drawn = reference.ReferenceEvaluator("dcgan.onnx").run(None, {"z": z.numpy()})[0]
    expected = names["generator"](z).detach().numpy()
    np.testing.assert_allclose(drawn, expected, rtol=0, atol=1e-5)
