"""explore.py: the page draws what PyTorch draws, and holds all that it needs."""

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import EACH_SCRIPT, ROOT, TINY, call, make_data

import evaluate
import explore

NODE = shutil.which("node")
NEEDS_NODE = pytest.mark.skipif(NODE is None, reason="node, a JavaScript engine, is not installed")
MODEL = r'(?s)<script type="application/json" id="model">(.*?)</script>'
GENERATOR = r'(?s)<script id="generator">(.*?)</script>'
PROGRAM = """
const [model, inputs] = JSON.parse(require("fs").readFileSync(0));
unpack(model).then(() => {
  const images = inputs.map(([z, y]) => Array.from(generate(model, z, y)));
  const numbers = new Float32Array(images.flat());
  console.log(Buffer.from(numbers.buffer).toString("base64"));
});
"""


def lively(run: Path, out: Path) -> Path:
    """A copy of a run whose generator has large weights of all kinds, so that errors show."""
    random = torch.Generator().manual_seed(0)
    checkpoint = torch.load(run / "checkpoint.pt", weights_only=True)
    for name, tensor in checkpoint["generator_ema"].items():
        if "var" in name:
            tensor.uniform_(0.3, 3, generator=random)
        elif tensor.ndim > 1:
            inputs = tensor.shape[1] if tensor.ndim == 2 else 4 * tensor.shape[0]
            tensor.normal_(0, (2 / inputs) ** 0.5, generator=random)
        elif tensor.is_floating_point():
            tensor.normal_(0.3, 0.3, generator=random)
    out.mkdir()
    torch.save(checkpoint, out / "checkpoint.pt")
    return out


def drawn_by_node(page: str, run: evaluate.Run, z: torch.Tensor, labels: torch.Tensor):
    """What the page's own JavaScript draws, (N, C, S, S) in [-1, 1]."""
    model = json.loads(re.search(MODEL, page)[1])
    one_hot = torch.eye(len(model["classes"]))[labels] if model["classes"] else torch.zeros(64, 0)
    inputs = list(zip(z.tolist(), one_hot.tolist(), strict=True))
    source = re.search(GENERATOR, page)[1] + PROGRAM
    done = subprocess.run(
        [NODE, "-e", source],
        input=json.dumps([model, inputs]),
        capture_output=True,
        text=True,
        check=True,
    )
    numbers = np.frombuffer(base64.b64decode(done.stdout), np.float32).copy()
    size = run.args.image_size
    return torch.from_numpy(numbers).view(64, size, size, run.args.channels).permute(0, 3, 1, 2)


def check_page(folder: Path) -> None:
    run = evaluate.load_run(folder)
    page = explore.make_page(run)
    z = torch.randn(64, run.args.latent_dim, generator=torch.Generator().manual_seed(1))
    labels = run.labels(64)
    with torch.no_grad():
        expected = run.script.sample(run.load_generator(), run.args, z, labels)
    assert expected.std() > 0.15
    found = drawn_by_node(page, run, z, labels)
    assert (found - expected).abs().max() < 2 / 255


@NEEDS_NODE
@EACH_SCRIPT
def test_the_page_draws_what_the_generator_draws_to_a_grey_level(
    script, finished, tmp_path
) -> None:
    check_page(lively(finished(script), tmp_path / "lively"))


@NEEDS_NODE
@pytest.mark.parametrize(("script", "size"), [("cgan.py --width 8", 64), ("vanilla_gan.py", 28)])
def test_the_page_draws_grey_images_of_other_sizes(script, size, tmp_path) -> None:
    data = make_data(tmp_path / "data", channels=1, size=size)
    call(*script.split(), "--data", data, "--out", "run", *TINY)
    check_page(lively(Path("run"), tmp_path / "lively"))


def test_the_page_needs_no_other_file(finished, capsys) -> None:
    call("explore.py", finished("dcgan.py"), "--out", "page.html")
    page = Path("page.html").read_text("utf-8")
    assert not re.search(r"https?:|src=|<link|@import|url\(|fetch\(|XMLHttpRequest|import\(", page)
    assert "page.html: " in capsys.readouterr().out


def test_the_page_is_written_into_the_run(finished, tmp_path) -> None:
    run = lively(finished("wgan.py"), tmp_path / "run")
    call("explore.py", run)
    assert "wgan on data" in (run / "explore.html").read_text("utf-8")


def test_a_class_cannot_end_the_script_of_the_page(tmp_path) -> None:
    name = "</script><img onerror=alert(1)>"
    data = make_data(tmp_path / "data", classes=(name, "dogs"))
    call("cgan.py", "--data", data, "--out", "run", *TINY)
    page = explore.make_page(evaluate.load_run("run"))
    assert "<img" not in page
    assert json.loads(re.search(MODEL, page)[1])["classes"] == [name, "dogs"]


def test_classes_have_buttons_only_where_the_generator_knows_them(finished) -> None:
    for script in ("acgan.py", "dcgan.py"):
        page = explore.make_page(evaluate.load_run(finished(script)))
        classes = json.loads(re.search(MODEL, page)[1])["classes"]
        assert classes == (["cats", "dogs"] if script == "acgan.py" else [])


def test_the_main_axes_are_those_that_change_the_first_layer_most() -> None:
    weight = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    axes = explore.main_axes(explore.Layer(weight, torch.zeros(3), 1, 0), latent_dim=6).double()
    matrix = weight[:6].flatten(1).double()
    values = torch.linalg.eigvalsh(matrix @ matrix.T).flip(0)
    torch.testing.assert_close(axes @ axes.T, torch.eye(explore.AXES).double(), rtol=0, atol=1e-5)
    strengths = (axes @ matrix).square().sum(1)
    torch.testing.assert_close(strengths, values[: explore.AXES], rtol=1e-5, atol=0)


def test_a_layer_that_the_page_does_not_know_is_named() -> None:
    generator = torch.nn.Module()
    generator.layers = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1))
    with pytest.raises(SystemExit, match="Conv2d"):
        explore.fold_layers(generator)


def test_a_folder_without_a_run_is_one_clear_line(refused) -> None:
    assert "nothing/checkpoint.pt does not exist" in refused("explore.py", "nothing", code=1)


def test_the_page_without_a_generator_is_not_overwritten(finished, refused) -> None:
    run = finished("dcgan.py")
    assert "overwrite" in refused("explore.py", run, "--out", ROOT / "explore.html", code=1)
    assert ">null</script>" in (ROOT / "explore.html").read_text("utf-8")


@pytest.mark.parametrize("page", ["cgan-mnist", "r3gan-cifar10"])
def test_the_pages_in_docs_are_those_of_today(page) -> None:
    text = (ROOT / "docs" / "explore" / f"{page}.html").read_text("utf-8")
    assert len(text) < 3_000_000
    empty = re.sub(r"(id=\"model\">).*(</script>)", r"\1null\2", text)
    assert empty == (ROOT / "explore.html").read_text("utf-8")


def test_the_sources_stay_small() -> None:
    assert len((ROOT / "explore.py").read_bytes()) <= 9_000
    assert len((ROOT / "explore.html").read_bytes()) <= 14_000
