"""The programs in benchmarks/ on tiny tasks."""

import gc
import json
import re
import subprocess
import sys
import weakref
from argparse import Namespace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import ROOT, SCRIPTS, call, load, make_data
from PIL import Image

pytest.importorskip("matplotlib")
sys.path.insert(0, str(ROOT / "benchmarks"))
import claims
import few
import kernels
import mistakes
import modes
import peers
import scores
import speedrun
import tables
import throughput
import toys

import evaluate

TINY = ["--data", "tiny", "--out", "out", "--batch-size", "4", "--seeds", "1"]
TINY += ["--samples", "20", "--steps", "8"]
PICTURES = {"vanilla": 0, "dcgan": 1, "cgan": 0, "wgan": 2, "wgan_gp": 2, "stability": 1}
ALL = claims.VARIANTS | claims.ARCHITECTURES


@pytest.fixture(autouse=True)
def records_go_to_an_empty_folder(monkeypatch) -> None:
    monkeypatch.setattr(tables, "FOLDER", Path("results"))


def assert_recorded(printed: str, command: str) -> None:
    """The file a_table has the rows that were printed, and how to measure them again."""
    found = tables.load_table("a_table")
    assert found["command"].startswith(f"python benchmarks/{command}")
    assert found["numerics"]
    assert all(scores.numerics_of(script) == x for script, x in found["numerics"].items())
    rows = scores.to_markdown(scores.recorded("a_table")).splitlines()
    assert len(rows) > 2
    assert [row for row in rows if row not in printed] == []


def test_throughput_compares_a_script_with_its_floor_and_the_textbook(capsys, monkeypatch) -> None:
    digits = load("dcgan.py").digits
    monkeypatch.setattr(load("dcgan.py"), "digits", lambda size: digits(256, size))
    monkeypatch.setattr(throughput, "CPU_TURN", 0.01)
    sizes = ["--image-size", "8", "--width", "2", "--seconds", "0.1", "--no-cuda"]
    sizes += ["--batch-size", "16", "--amp"]
    throughput.main(["dcgan", *sizes])
    pattern = r"^\| dcgan.py \| 16 \| (\w+) \| [\d,]+ \| [\d.]+ \| [\d.]+ \| [\d.]+ \|$"
    rows = re.findall(pattern, capsys.readouterr().out, re.MULTILINE)
    assert rows == ["float32", "bfloat16"]
    assert load("dcgan.py").tqdm.__name__ == "tqdm"  # the script is itself again


def test_the_networks_of_the_floor_live_as_long_as_its_graph(monkeypatch) -> None:
    """A graph holds the addresses of their memory, not the memory."""
    script = load("dcgan.py")
    args, _ = script.parse_args(["--no-cuda", "--width", "2"])
    args.channels, args.image_size, args.classes = 1, 8, ["0"]
    optimizer = weakref.WeakSet()
    make_networks = script.make_networks

    def make(*inputs: object) -> tuple:
        networks, optimizers = make_networks(*inputs)
        optimizer.add(optimizers[0])
        return networks, optimizers

    monkeypatch.setattr(script, "make_networks", make)
    monkeypatch.setattr(script, "record", lambda _: lambda: {})  # as on a GPU, this keeps nothing
    monkeypatch.setattr(throughput, "WARM_UP", 0)
    args.cuda = True
    floor = throughput.make_floor(script, args)
    gc.collect()
    assert len(optimizer) == 1
    del floor
    gc.collect()
    assert len(optimizer) == 0


def run_here(command: list[str], **_: object) -> None:
    """For subprocess.run: a script's command without another Python."""
    call(Path(command[1]).name, *command[2:])


def test_speedrun_trains_until_the_goal_and_writes_a_record(capsys, monkeypatch, tmp_path) -> None:
    data = make_data(Path("data/mnist-32"))
    for name in ("images", "labels"):
        np.save(data / f"test_{name}.npy", np.load(data / f"{name}.npy")[::2])
    # After so short a training real figures would say nothing
    good = {"accuracy": 1.0, "diversity": 1.0, "rarest": 0.1}
    frechets = [10.0, 40.0, 11.0, 12.0] + 6 * [40.0]
    judged = [good | {"frechet": frechet} for frechet in frechets]
    monkeypatch.setattr(speedrun.evaluate.Judge, "__call__", Mock(side_effect=judged))
    monkeypatch.setattr(speedrun, "subprocess", Mock(run=run_here))
    monkeypatch.setattr(speedrun, "RECORDS", tmp_path)
    monkeypatch.setattr(speedrun, "STEPS_TO_TIME", 4)
    measure = speedrun.Runner.step_seconds

    def measure_one_more(runner: speedrun.Runner, words: str) -> float:
        return measure(runner, words) + 1  # so short a run may take 0.0 seconds

    monkeypatch.setattr(speedrun.Runner, "step_seconds", measure_one_more)
    monkeypatch.setattr(speedrun, "SAMPLES", 20)
    monkeypatch.setitem(speedrun.RACES, "cgan", speedrun.Race(1, 1, 2, frechet=12, accuracy=0.9))
    first = {"script": "cgan", "change": "", "options": "--batch-size 4 --width 2", "date": ""}
    first |= {"amp": False, "machine": "", "before": None}
    row = {"seed": 0, "step": 10**6, "seconds": 1.0, "reached": True}  # on a faster machine
    speedrun.write_record(first, [row])
    speedrun.main(["cgan", "--final", "--no-cuda", "--record", "less of it"])
    out = capsys.readouterr().out
    stops = re.findall(r"^\| cgan \| (\d \| \d) \| \d+ \| [\d.]+ \| 10.0% \|", out, re.MULTILINE)
    assert stops == ["0 | 1", "1 | 1", "1 | 2", "2 | 1"]
    assert f"{tmp_path}/cgan-2.jsonl" in out
    about, ends = speedrun.load_record(tmp_path / "cgan-2.jsonl")
    assert about["numerics"] == speedrun.numerics_of("cgan")
    assert about["options"] == first["options"]
    assert [(end["seed"], end["step"], end["frechet"]) for end in ends] == [
        (0, 1, 10.0),
        (1, 2, 11.0),
        (2, 1, 12.0),
    ]
    speedrun.main(["cgan", "--final", "--no-cuda", "--record", "nothing"])
    out = capsys.readouterr().out
    assert "No record" in out
    assert re.search(r"\| inf, inf, inf \| inf \| [\d.]+ \|$", out)  # it gave up
    assert len(re.findall(r"\[cgan \d\]", scores.to_markdown(scores.speedrun()))) == 2


def test_scores_trains_and_scores_what_the_file_lacks(monkeypatch, tmp_path) -> None:
    make_data(Path("data/tiny-8"), channels=1)
    train = Mock(side_effect=run_here)
    monkeypatch.setattr(speedrun, "subprocess", Mock(run=train))
    monkeypatch.setattr(scores, "RESULTS", tmp_path)
    monkeypatch.setattr(scores, "SAMPLES", 20)
    options = "--width 2 --batch-size 4 --log-every 1"
    entries = [scores.Entry("cgan", "tiny-8", options, step, seeds=2) for step in (2, 3)]
    monkeypatch.setitem(scores.SETS, "widths", entries)
    scores.main(["run", "widths"])
    found = [score for score in scores.load_scores("widths") if score["script"]]
    assert [(score["step"], score["seed"]) for score in found] == [(2, 0), (2, 1), (3, 0), (3, 1)]
    assert len({score["frechet"] for score in found}) == 4
    assert all(list(score["metrics"]) == ["D(x)", "D(G(z))", "d_loss", "g_loss"] for score in found)
    assert found[0]["metrics"] != found[2]["metrics"]  # one run, at two steps
    rows = scores.to_markdown(scores.widths()).splitlines()[2:]
    assert [row.count(f"| cgan.py | `{options}` |") for row in rows] == [1, 1]

    # A score of other numerics is outdated and measured again
    found[3]["numerics"] = "of before"
    scores.save_scores("widths", found)
    with pytest.raises(SystemExit, match=r"not complete"):
        list(scores.widths())
    scores.main(["run", "widths"])
    again = scores.load_scores("widths")
    assert train.call_count == 4 + 1
    assert [score["script"] for score in again] == ["cgan", "cgan", "cgan", None, "cgan"]
    assert again[4] == found[3] | {"numerics": found[0]["numerics"]}

    scores.save_scores("widths", again[1:])
    train.side_effect = subprocess.CalledProcessError(1, "cgan.py", stderr=b"no images")
    with pytest.raises(SystemExit, match=r"cgan.py failed: no images"):
        scores.main(["run", "widths"])
    again[0]["machine"] = "another one"
    scores.save_scores("widths", again[:1])
    with pytest.raises(SystemExit, match=r"is of another one"):
        scores.main(["run", "widths"])


def test_the_seconds_of_a_run_are_those_of_all_its_pieces(tmp_path) -> None:
    rows = ["step,seconds", "50,2.0", "100,4.0", "150,1.5", "200,3.0", "250,0.5"]
    (tmp_path / "metrics.csv").write_text("\n".join(rows) + "\n")
    assert scores.training_seconds(scores.read_metrics(tmp_path)) == 4.0 + 3.0 + 0.5


def test_tables_are_what_the_files_hold_and_the_files_are_of_todays_scripts(monkeypatch) -> None:
    monkeypatch.setattr(tables, "FOLDER", scores.RESULTS / "tables")
    pages = {page: page.read_text("utf-8") for page in scores.PAGES}
    for page, text in pages.items():
        assert scores.with_tables(text) == text, page
    for table in scores.TABLES:
        assert any(f"scores.py {table} -->" in text for text in pages.values()), table
    for name in scores.SETS:
        assert all(scores.is_current(score) for score in scores.load_scores(name)), name
        assert scores.missing(name) == [], name
    for script in speedrun.RACES:
        assert speedrun.newest_record(script)["numerics"] == speedrun.numerics_of(script)
    files = list(tables.FOLDER.glob("*.json"))
    assert files
    for file in files:
        for script, numerics in tables.load_table(file.stem)["numerics"].items():
            assert numerics == scores.numerics_of(script), (file, script)


def test_a_table_has_a_name_that_a_page_can_hold(capsys) -> None:
    with pytest.raises(SystemExit, match="2"):
        toys.main(["grid", "--record", "my table"])
    assert "'my table' has other characters" in capsys.readouterr().err


def test_a_table_that_nobody_has_measured_is_named() -> None:
    with pytest.raises(SystemExit, match=r"no table nothing, nor results/tables/nothing\.json"):
        scores.with_tables("<!-- benchmarks/scores.py nothing -->\n")


def test_kernels_times_every_operator(monkeypatch, capsys) -> None:
    pytest.importorskip("gan_kernels")
    monkeypatch.setattr(torch, "compile", lambda function: function)  # it takes long
    args = Namespace(device="cpu", cuda=False, seconds=0, rows=[])
    kernels.compare_on_lists("tiny", [torch.Size([3]), torch.Size([2, 2])], args)
    kernels.compare_on_batch((4, 1, 2, 2), args)
    operators = ["clip_weights_", "rmsprop_clip_", "gradient_penalty"]
    assert [row["operator"] for row in args.rows] == operators
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [row.split(" | ")[0] for row in rows] == [f"| {name}" for name in operators]
    for row in args.rows:
        assert all(len(times) == 5 for kind in row["seconds"].values() for times in kind.values())


PEER = """
import argparse, torch
parser = argparse.ArgumentParser()
parser.add_argument("--batch_size", type=int, default=4)
parser.add_argument("--latent_dim", type=int, default=3)
opt = parser.parse_args()
labelled = torch.nn.Embedding(10, 3)
linear = torch.nn.Linear(3, 32 * 32)
class G(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.labels, self.linear = labelled, linear
    def forward(self, z, labels):
        return self.linear(z * self.labels(labels)).tanh().view(-1, 1, 32, 32)
generator = G()
others = torch.nn.Linear(1, 1)
g_optimizer = torch.optim.SGD(generator.parameters(), 0.1)
d_optimizer = torch.optim.SGD(others.parameters(), 0.1)
while True:
    for optimizer in (d_optimizer, d_optimizer, g_optimizer):
        optimizer.step()
        print("a line")
"""


def test_a_peer_is_stopped_in_time_and_its_own_updates_and_samples_count(capsys, tmp_path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "gan.py").write_text(PEER)
    peer = peers.Peer("theirs/gan.py", "--batch_size 8", takes_labels=True)
    here = Path.cwd()
    seconds, updates, variables = peers.run_peer(peer, tmp_path, 0.2)
    assert 0.2 <= seconds < 2
    assert updates > 1
    assert (Path.cwd(), capsys.readouterr().out) == (here, "")
    samples = peers.draw_peer(peer, variables, torch.arange(20) % 10)
    assert (samples.shape, samples.dtype) == ((20, 1, 32, 32), torch.uint8)
    optimizer = variables["g_optimizer"]
    optimizer.step()  # no longer timed


def test_images_that_go_by_way_of_another_size_come_back_blurred_but_in_place() -> None:
    images = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    images[0, 0, 10:20, 12:16] = 255
    assert torch.equal(peers.by_way_of(images, 28), images)
    for size in (32, 64):
        back = peers.by_way_of(images, size)
        assert not torch.equal(back, images)
        assert (back.float() - images.float()).abs().mean() < 4


def test_toys_train_every_loss_and_count_the_modes(capsys) -> None:
    torch.manual_seed(0)
    found = [toys.compare(toys.grid(5000)), toys.compare(torch.full((100, 2), 2.0))]
    found.append(toys.compare(torch.ones(100, 2)))
    modes, good, divergences = zip(*(figures.values() for figures in found), strict=True)
    assert modes == (25, 1, 0)
    within_three_sigma = 100 * (1 - np.exp(-4.5))  # in the plane
    assert good == (pytest.approx(within_three_sigma, abs=0.5), 100, 0)
    assert divergences[0] < 0.01
    assert divergences[1] == pytest.approx(np.log(25))
    tiny = ["--steps", "2", "--seeds", "2", "--width", "4", "--batch-size", "8"]
    toys.main(["grid", *tiny, "--record", "a_table"])
    printed = capsys.readouterr().out
    pattern = r"^\| ([\w, -]+) (?:\| [\d.]+(?: \([^|]+\))? ){3}\|$"
    assert re.findall(pattern, printed, re.MULTILINE) == list(toys.LOSSES)
    assert_recorded(printed, "toys.py grid --steps 2")


def test_the_gaussian_nearest_to_the_mixture_by_kl_has_its_moments(capsys, monkeypatch) -> None:
    monkeypatch.setattr(toys, "F", {"kl": toys.F["kl"]})
    toys.main(["mixture", "--steps", "1", "--seeds", "2", "--record", "a_table"])
    printed = capsys.readouterr().out
    assert_recorded(printed, "toys.py mixture --steps 1")
    mean = (1 - 2 * toys.LEFT) * toys.CENTRE
    deviation = (toys.WIDE**2 + toys.CENTRE**2 - mean**2) ** 0.5
    assert f"| kl: the best | {mean:.2f} | {deviation:.2f} | {toys.WIDE:.2f} |" in printed


def test_networks_of_several_seeds_are_trained_as_if_each_were_alone() -> None:
    torch.manual_seed(0)
    together = toys.make_networks("discriminator", 3, 4, False)["discriminator"]
    points = torch.randn(3 * 5, 2, 1, 1)
    together(points).square().mean().backward()
    for seed in range(3):
        weights = [parameter[seed] for parameter in together.parameters()]
        alone = toys.make_networks("discriminator", 1, 4, False)["discriminator"]
        for parameter, weight in zip(alone.parameters(), weights, strict=True):
            parameter.data[0] = weight
        alone(points[5 * seed : 5 * seed + 5]).square().mean().backward()
        for parameter, other in zip(together.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(3 * parameter.grad[seed], other.grad[0])


def test_modes_are_the_numbers_that_are_read_and_uniform_ones_diverge_by_nothing() -> None:
    classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1024, 10))
    torch.nn.init.zeros_(classifier[1].weight)
    classifier[1].weight.data[:, :10] = torch.eye(10)  # reads the place of the white pixel
    images = torch.zeros(1000, 3, 32, 32, dtype=torch.uint8)
    for number in range(1000):
        for channel, digit in enumerate(f"{number:03}"):
            images[number, channel, 0, int(digit)] = 255
    numbers = modes.read(classifier, images)
    assert numbers.tolist() == list(range(1000))
    assert list(modes.count_modes(numbers).values()) == [1000, pytest.approx(0)]
    half = modes.count_modes(numbers[:500].repeat(7))
    assert list(half.values()) == [500, pytest.approx(np.log(2))]


def test_modes_trains_each_script_once_and_other_critics_on_request(capsys) -> None:
    make_data(Path("data/mnist-32"), channels=1, size=32, classes=list("0123456789"))
    stacked = make_data(Path("data/stacked-mnist-32"), size=32)
    for name in ("images", "labels"):
        np.save(stacked / f"test_{name}.npy", np.load(stacked / f"{name}.npy"))
    tiny = ["--seeds", "1", "--steps", "1", "--batch-size", "2", "--width", "4", "--samples", "20"]
    modes.main([*tiny, "--record", "a_table"])
    first = capsys.readouterr().out
    assert_recorded(first, "modes.py --seeds 1")
    rows = re.findall(r"^\| ([\w .]+) \| \d+ \| [\d.]+ \|$", first, re.MULTILINE)
    assert rows == ["real images", *(f"{name}.py" for name in modes.OPTIONS)]
    unlabelled = {name for name in SCRIPTS if not load(name).CONDITIONAL}
    assert {f"{name}.py" for name in modes.OPTIONS} == unlabelled - {"fgan.py"}
    checkpoints = [path.stat().st_mtime_ns for path in Path("runs").rglob("checkpoint.pt")]
    modes.main(tiny)
    assert capsys.readouterr().out == first
    assert checkpoints == [path.stat().st_mtime_ns for path in Path("runs").rglob("checkpoint.pt")]
    modes.main(["r3gan", "--d-width", "2", *tiny])
    run = torch.load("runs/modes/r3gan-d2-0/checkpoint.pt")
    assert run["discriminator"]["layers.0.weight"].shape[0] == 2
    modes.main(["wgan_gp", "--n-critic", "3", *tiny])
    assert json.loads(Path("runs/modes/wgan_gp-c3-0/config.json").read_text())["n_critic"] == 3
    printed = capsys.readouterr().out
    assert "| r3gan.py, D of width 2 |" in printed
    assert "| wgan_gp.py, 3 updates of the critic |" in printed


@pytest.mark.parametrize(
    "name, option, reason",
    [
        ("dcgan", "--n-critic", "only wgan and wgan_gp have --n-critic"),
        ("vanilla_gan", "--d-width", "vanilla_gan has no --width"),
    ],
)
def test_modes_refuses_an_option_that_a_script_lacks(capsys, name, option, reason) -> None:
    with pytest.raises(SystemExit):
        modes.main([name, option, "5"])
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("command", PICTURES)
def test_each_command_continues_from_what_it_has(command: str, capsys, monkeypatch) -> None:
    make_data(Path("tiny"), channels=1)
    few = {kind: ALL[kind] for kind in ("as it is", "no BatchNorm in G", "MLP as G")}
    stable = {kind: ALL[kind] for kind in ("MLP as G", "no BatchNorm")}
    small = {"VARIANTS": few, "ARCHITECTURES": stable, "WIDTH": 2, "POINTS": (0.25, 0.5, 1)}
    two = {name: claims.RATES[name] for name in ("lsgan", "wgan_gp")}
    for name, value in (small | {"FACTORS": (5,), "RATES": two}).items():
        monkeypatch.setattr(claims, name, value)
    claims.main([command, *TINY, "--record", "a_table"])
    first = capsys.readouterr().out
    assert "nan" not in first
    assert len(list(Path("out").glob("*.png"))) == PICTURES[command]
    assert_recorded(first, f"claims.py {command} --data tiny")
    monkeypatch.setattr(claims, "score", None)  # nothing is measured again
    claims.main([command, *TINY])
    assert capsys.readouterr().out == first


def test_variants_differ_from_each_other_and_leave_the_script_as_it_was() -> None:
    dcgan = load("dcgan.py")
    before = vars(dcgan).copy()
    args = Namespace(latent_dim=4, channels=1, image_size=16, width=8, lr=1e-3, cuda=False)
    kinds = {}
    for kind in ALL:
        torch.manual_seed(0)
        with claims.variant(dcgan, kind):
            networks, optimizers = dcgan.build(args)
        assert vars(dcgan) == before
        generator, discriminator = networks.values()
        images = generator(torch.randn(5, 4))
        kinds[str([networks, optimizers, images])] = kind
        assert (images.shape, discriminator(images).shape) == ((5, 1, 16, 16), (5,))
    assert list(kinds.values()) == list(ALL)


def test_few_chooses_as_many_of_each_class_and_the_smaller_sets_are_in_the_larger() -> None:
    labels = np.random.default_rng(1).permutation(np.arange(100) % 4)
    small, large = few.choose(labels, 8), few.choose(labels, 40)
    assert np.bincount(labels[large]).tolist() == [10] * 4
    assert np.bincount(labels[small]).tolist() == [2] * 4
    assert set(small) < set(large)


@pytest.mark.usefixtures("untrained_classifiers")
@pytest.mark.parametrize("script", ["dcgan", "r3gan"])
def test_few_trains_on_parts_of_the_data_and_continues_what_it_has(
    script, capsys, monkeypatch
) -> None:
    source = make_data(Path("source"))
    tiny = ["--steps", "3", "--batch-size", "4", "--width", "2", "--samples", "20", "--no-cuda"]
    asked = []

    def train(*args: object) -> evaluate.Run:
        run = train_now(*args)
        asked.append(run.checkpoint["step"])
        if asked == [1, 2]:
            raise KeyboardInterrupt
        return run

    train_now = few.train
    monkeypatch.setattr(few, "train", train)
    with pytest.raises(KeyboardInterrupt):
        few.main([script, "--data", "source", "--counts", "6", "10", *tiny])
    few.main([script, "--data", "source", "--counts", "6", "10", *tiny, "--record", "a_table"])
    assert asked == [1, 2, 2, 3] + 3 * [1, 2, 3]
    table = capsys.readouterr().out
    assert_recorded(table, f"few.py {script} --data source")
    rows = re.findall(r"^\| ([\w, ]+) (?:\| [\d.]+ ){6}\|$", table, re.MULTILINE)
    assert rows == ["6", "6, mirrored", "10", "10, mirrored"]
    images, part = (np.load(folder / "images.npy") for folder in (source, Path("runs/few/data/6")))
    whole = {image.tobytes() for image in images}
    assert len({image.tobytes() for image in part} & whole) == 6
    both = np.load("runs/few/data/6-mirror/images.npy")
    np.testing.assert_array_equal(both, np.concatenate([part, part[..., ::-1]]))
    with Image.open(f"runs/few/{script}.png") as picture:
        assert picture.size == (10 * 8, 4 * 2 * 8)
    monkeypatch.setattr(few, "train", None)  # fails if it is called
    few.main([script, "--data", "source", "--counts", "6", "10", *tiny])
    assert capsys.readouterr().out == table


@pytest.mark.usefixtures("untrained_classifiers")
def test_each_mistake_is_one_and_only_the_fakes_that_are_not_detached_change_nothing(
    capsys,
) -> None:
    make_data(Path("data/mnist-32"))
    tiny = ["--steps", "2", "--batch-size", "4", "--width", "2", "--samples", "20", "--no-cuda"]
    mistakes.main([*tiny, "--record", "a_table"])
    table = capsys.readouterr().out
    assert_recorded(table, "mistakes.py --steps 2")
    rows = re.findall(r"^\| \d+\. ([^|]+) (?:\| -?[\d.]+ ){6}\|$", table, re.MULTILINE)
    assert rows == list(mistakes.MISTAKES)
    page = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    assert re.findall(r"^\| \d+\. ([^|]+) (?:\| [\d.]+ ){6}\|$", page, re.MULTILINE) == rows
    weights = {}
    for path in Path("runs/mistakes").glob("*/run/checkpoint.pt"):
        state = torch.load(path, weights_only=True)["generator"]
        weights[path.parts[2]] = torch.cat([x.flatten() for x in state.values()])
    assert len(weights) == len(mistakes.MISTAKES)
    right = weights.pop("none")
    same = [name for name, found in weights.items() if torch.equal(found, right)]
    assert same == ["fakes-not-detached-in-Ds-step"]
    with Image.open("runs/mistakes/mistakes.png") as picture:
        assert picture.size == (8 * 32, len(rows) * 32)
