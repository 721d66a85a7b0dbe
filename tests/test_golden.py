"""The first 20 steps of each script, pinned: a change to training is seen here.

python tests/test_golden.py      writes golden.json anew, after a change that is meant to change it
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from conftest import EACH_SCRIPT, SCRIPTS, call, make_data
from test_training import rows

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
    table = rows(folder / "run")
    _, _, *names = table[0]  # without step and epoch
    return {name: [float(row[name]) for row in table] for name in names}


def difference(found: dict[str, list[float]], expected: dict[str, list[float]]) -> float:
    """The largest difference of two columns, as a part of the largest value in the column."""
    assert list(found) == list(expected)
    pinned = np.array(list(expected.values()))
    error = np.abs(np.array(list(found.values())) - pinned).max(axis=1)
    return (error / np.abs(pinned).max(axis=1)).max()


@EACH_SCRIPT
def test_first_steps_are_the_pinned_ones_and_a_change_is_seen(script: str, tmp_path: Path) -> None:
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
    with tempfile.TemporaryDirectory() as folder:
        write({script: first_steps(script, Path(folder, script)) for script in SCRIPTS})
