"""The first 20 steps of each script, pinned: a change to training is seen here, and explained in CHANGELOG.md.

python tests/test_golden.py      writes golden.json anew, after a change that is meant to change them
"""

import csv
import json
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from conftest import SCRIPTS, call, make_data

GOLDEN = Path(__file__).with_name("golden.json")
TOLERANCE = 2e-5  # of the largest value in the column; metrics.csv has six digits


def first_steps(script: str, folder: Path, *argv: object) -> dict[str, list[float]]:
    """The columns of 20 steps on random colour images, at the defaults but for the sizes.

    In float64, so that no other processor or version of PyTorch rounds its way to other numbers.
    """
    small = ["--data", make_data(folder / "data", 80), "--batch-size", 8, "--log-every", 1, "--steps", 20]
    small += ["--kernels", "off"] if script.startswith("wgan") else []
    torch.set_default_dtype(torch.float64)
    try:
        assert call(script, "--out", folder / "run", *small, *argv) == 0
    finally:
        torch.set_default_dtype(torch.float32)
    with (folder / "run" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows] for name in rows[0] if name not in ("step", "epoch", "seconds")}


def difference(a: dict[str, list[float]], b: dict[str, list[float]]) -> float:
    """The largest difference of two columns, as a part of the largest value in the column."""
    assert list(a) == list(b)
    return max(max(abs(x - y) for x, y in zip(a[k], b[k], strict=True)) / max(map(abs, b[k])) for k in a)


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_first_steps_are_the_pinned_ones(script: str, tmp_path: Path) -> None:
    steps = first_steps(script, tmp_path)
    assert {len(column) for column in steps.values()} == {20}
    assert difference(steps, json.loads(GOLDEN.read_text())[script]) < TOLERANCE


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_learning_rate_higher_by_a_thousandth_is_seen(script: str, tmp_path: Path) -> None:
    lr = {"wgan.py": 5.005e-5, "wgan_gp.py": 1.001e-4}.get(script, 2.002e-4)
    steps = first_steps(script, tmp_path, "--lr", lr)
    assert difference(steps, json.loads(GOLDEN.read_text())[script]) > TOLERANCE


if __name__ == "__main__":
    found = {}
    for script in SCRIPTS:
        with tempfile.TemporaryDirectory() as folder:
            found[script] = first_steps(script, Path(folder))
    GOLDEN.write_text(json.dumps(found, indent=0))
    sys.exit(0)
