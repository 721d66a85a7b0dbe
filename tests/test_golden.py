"""The first 20 steps of each script, pinned: a change to training is seen here.

python tests/test_golden.py      writes golden.json anew, after a change that is meant to change it
"""

import csv
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SCRIPTS, call, make_data

GOLDEN = Path(__file__).with_name("golden.json")
TOLERANCE = 2e-5  # of the largest value in the column; metrics.csv has six digits


def first_steps(script: str, folder: Path, *args: object) -> dict[str, list[float]]:
    """The columns of 20 steps on random colour images, at the defaults but for the sizes.

    In float64, so that no other processor or version of PyTorch rounds its way to other numbers.
    """
    data = make_data(folder / "data", 80)
    small = ["--data", data, "--batch-size", 8, "--log-every", 1, "--steps", 20, "--no-cuda"]
    torch.set_default_dtype(torch.float64)
    try:
        call(script, "--out", folder / "run", *small, *args)
    finally:
        torch.set_default_dtype(torch.float32)
    with (folder / "run" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name not in ("step", "epoch", "seconds")]
    return {name: [float(row[name]) for row in rows] for name in names}


def difference(found: dict[str, list[float]], expected: dict[str, list[float]]) -> float:
    """The largest difference of two columns, as a part of the largest value in the column."""
    assert list(found) == list(expected)
    differences = []
    for name in expected:
        error = np.abs(np.subtract(found[name], expected[name]))
        differences.append(error.max() / np.abs(expected[name]).max())
    return max(differences)


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_first_steps_are_the_pinned_ones_and_a_change_is_seen(
    script: str, tmp_path: Path
) -> None:
    steps = first_steps(script, tmp_path)
    pinned = json.loads(GOLDEN.read_text())[script]
    assert {len(column) for column in steps.values()} == {20}
    assert difference(steps, pinned) < TOLERANCE
    lr = {"wgan.py": 5.005e-5, "wgan_gp.py": 1.001e-4}.get(script, 2.002e-4)
    steps = first_steps(script, tmp_path / "other", "--lr", lr)  # higher by a thousandth
    assert difference(steps, pinned) > TOLERANCE


def write(pinned: dict[str, dict[str, list[float]]]) -> None:
    """Writes golden.json with one line for each column."""
    scripts = []
    for script, columns in pinned.items():
        lines = [f"{json.dumps(name)}: {json.dumps(values)}" for name, values in columns.items()]
        scripts.append(f'"{script}": {{\n' + ",\n".join(lines) + "\n}")
    GOLDEN.write_text("{\n" + ",\n".join(scripts) + "\n}\n")


if __name__ == "__main__":
    found = {}
    for script in SCRIPTS:
        with tempfile.TemporaryDirectory() as folder:
            found[script] = first_steps(script, Path(folder))
    write(found)
