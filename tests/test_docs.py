"""The commands in README.md and docs/: they are valid, and a newcomer's run in order."""

import itertools
import re
import shlex
from argparse import ArgumentParser
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, SCRIPTS, TINY, call, load, make_data
from PIL import Image

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAM = r"(?:benchmarks/)?\w+\.py"


def split_words(line: str) -> list[str]:
    """The words of a command. A comment follows a #, a description two spaces or more."""
    return shlex.split(re.split(r"  +| #", line)[0])


@cache
def lines(page: Path) -> list[list[str]]:
    """The words of each command that stands on a line of its own."""
    text = re.sub(r" *\\\n *", " ", page.read_text("utf-8"))  # \ continues a line
    start = r"(?m)(?:^(?: {4})?|&& )(?:\S*python|torchrun .*?)"
    return [split_words(line) for line in re.findall(rf"{start} ({PROGRAM}[^&`\n]*)", text)]


@cache
def commands(page: Path) -> list[list[str]]:
    """The words of each command on a line of its own, and of each in `code` with options."""
    text = page.read_text("utf-8").replace("\n", " ")
    inline = re.findall(rf"`(?:python )?({PROGRAM} [^`]*)`", text)
    return [*lines(page), *map(split_words, inline)]


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
def test_the_scripts_take_the_values_of_their_options(page: Path) -> None:
    for program, *argv in commands(page):
        if program in SCRIPTS and "--help" not in argv:
            parser = ArgumentParser(exit_on_error=False)
            load(program).add_options(parser)
            parser.parse_args(argv)


def save_photos(folder: Path) -> None:
    folder.mkdir(parents=True)
    for i in range(6):
        Image.new("RGB", (20, 20 + i), (40 * i, 80, 120)).save(folder / f"{i}.png")


IN_ORDER = ["README", "usage", "troubleshooting", *(x.removesuffix(".py") for x in SCRIPTS)]


@pytest.mark.parametrize("name", IN_ORDER)
@pytest.mark.usefixtures("untrained_classifiers")
def test_the_commands_of_a_page_run_in_order_with_few_steps_on_tiny_data(name, monkeypatch) -> None:
    page = next(page for page in PAGES if page.stem == name)
    images = torch.zeros(64, 1, 8, 8, dtype=torch.uint8)
    for script in SCRIPTS:  # drawing the real digits takes seconds
        digits = partial(tuple, [images, torch.arange(64) % 10])
        monkeypatch.setattr(load(script), "digits", digits)
    for folder in ("photos/cats", "photos/dogs", "horses"):
        save_photos(Path(folder))
    Path("docs/images").mkdir(parents=True)
    for program, *argv in lines(page):
        if program.startswith("benchmarks/"):  # test_benchmarks.py
            continue
        if program in SCRIPTS and "--generate" in argv:
            call(program, *argv, "--generate", 8)
        elif program in SCRIPTS and "--resume" in argv and "--out" not in argv:
            call(program, *argv, "--steps", 3)
        elif program in SCRIPTS:
            width = [] if program == "vanilla_gan.py" else ["--width", 2]
            try:
                call(program, *argv, *TINY, *width)
            except SystemExit as end:  # the page on what goes wrong shows this, too
                assert name == "troubleshooting" and "not finite" in end.code, (program, argv)
        elif program == "prepare.py" and argv[0] in ("mnist", "cifar10", "stacked-mnist"):
            size = dict(itertools.pairwise(argv)).get("--image-size", 32)
            make_data(Path(f"data/{argv[0]}-{size}"), classes="0123456789")
        elif argv[0] == "score":
            call(program, *argv, "--samples", 20)
        elif "RUN" not in argv and "NAME|FOLDER|ZIP" not in argv:
            call(program, *argv)
    assert list(Path("runs").glob("*/checkpoint.pt"))


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
