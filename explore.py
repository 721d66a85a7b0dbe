# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.10", "numpy", "pillow>=10.1", "tqdm"]
# ///
"""Writes a web page in which a trained generator draws: in any browser, even a phone's.

    python explore.py RUN                   writes RUN/explore.html; open it, or send it to someone
    python explore.py RUN --out FILE        writes FILE

RUN is a folder written by one of the training scripts. Keep this file beside them and beside
explore.html, the page without a generator. explore.py adds the run's averaged generator to it: the
layers as JSON, the weights as integers. docs/explore.md describes the page.
"""

import base64
import json
import sys
import zlib
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from evaluate import Run, load_run

PAGE = Path(__file__).resolve().with_name("explore.html")
LARGEST = 4095  # integer for a weight: 13 bits of 16, because small ones compress better
AXES = 4  # how many main axes get a slider


class Layer(NamedTuple):
    """A transposed convolution, then ReLU, or tanh after the last layer.

    A fully connected layer is one whose input is a single pixel. Its output is a pixel, too, or at
    the end the image.
    """

    weight: Tensor  # (inputs, outputs, kernel, kernel)
    bias: Tensor  # (outputs,), or (outputs, S, S) if each pixel has its own
    stride: int
    padding: int


def fold_layers(generator: nn.Module) -> list[Layer]:
    """The layers of a generator in eval mode, with BatchNorm folded into weights and biases."""
    folded = []
    for module in generator.layers:
        if isinstance(module, nn.ConvTranspose2d):
            bias = torch.zeros(module.out_channels) if module.bias is None else module.bias
            folded.append(Layer(module.weight, bias, module.stride[0], module.padding[0]))
        elif isinstance(module, nn.Linear) and module.bias is None:
            weight = module.weight.T[:, :, None, None]  # hidden: BatchNorm has the bias
            folded.append(Layer(weight, torch.zeros(module.out_features), 1, 0))
        elif isinstance(module, nn.Linear):
            weight = module.weight.T.unflatten(1, generator.shape)  # the last: makes the image
            folded.append(Layer(weight, module.bias.view(generator.shape), 1, 0))
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            # y = weight (x - mean) / sqrt(var + eps) + bias
            scale = module.weight / (module.running_var + module.eps).sqrt()
            layer = folded.pop()
            bias = scale * (layer.bias - module.running_mean) + module.bias
            folded.append(layer._replace(weight=layer.weight * scale[:, None, None], bias=bias))
        elif not isinstance(module, nn.ReLU | nn.Tanh):
            sys.exit(f"explore.html has no layer of the type {type(module).__name__}.")
    return folded


def main_axes(first: Layer, latent_dim: int) -> Tensor:
    """Unit vectors in z, (AXES, latent_dim), that change the first layer's result the most.

    They are its left singular vectors (Shen & Zhou 2021, https://arxiv.org/abs/2007.06600).
    """
    matrix = first.weight[:latent_dim].flatten(1)  # without the rows of one-hot labels
    vectors, _, _ = torch.linalg.svd(matrix, full_matrices=False)  # columns, the largest first
    return vectors.T[:AXES]


def rounded(numbers: Tensor) -> list:
    """The numbers as a list, to six significant digits."""
    return [float(f"{number:.6g}") for number in numbers.tolist()]


def pack(layers: list[Layer]) -> tuple[list[dict], str]:
    """What explore.html's unpack() reads: the layers without weights, and all weights as text."""
    described = []
    parts = []
    for layer in layers:
        inputs, outputs, kernel, _ = layer.weight.shape
        scale = layer.weight.abs().amax(dim=(0, 2, 3)) / LARGEST  # one for each output channel
        scale = scale.clamp(min=torch.finfo().tiny)  # avoids 0 / 0 in a channel of zeros
        integers = (layer.weight / scale[:, None, None]).round().short()
        # In the page the output channels of a pixel lie side by side
        parts.append(integers.permute(0, 2, 3, 1).flatten())
        bias = layer.bias
        if bias.ndim == 3:
            bias = bias.permute(1, 2, 0).flatten()
        described.append(
            {
                "inputs": inputs,
                "outputs": outputs,
                "kernel": kernel,
                "stride": layer.stride,
                "padding": layer.padding,
                "scale": rounded(scale),
                "bias": rounded(bias),
                "last": layer is layers[-1],
            }
        )
    pairs = torch.cat(parts).numpy().astype("<i2").view(np.uint8).reshape(-1, 2)
    low_then_high = pairs.T.tobytes()  # high bytes are alike, so they compress better together
    return described, base64.b64encode(zlib.compress(low_then_high, 9)).decode()


def describe(run: Run, layers: list[Layer]) -> tuple[str, str]:
    """The title of the page and the line below it."""
    title = f"{run.script.SCRIPT} on {Path(run.args.data).name}"
    count = sum(layer.weight.numel() for layer in layers)
    steps = run.checkpoint["step"]
    about = f"This page holds a generator of {count:,} weights, trained for {steps:,} steps. "
    return title, about + "It runs in your browser: nothing is downloaded or sent."


@torch.no_grad()
def make_page(run: Run) -> str:
    """explore.html with the generator of a run in it."""
    layers = fold_layers(run.load_generator())
    described, weights = pack(layers)
    title, about = describe(run, layers)
    model = {
        "title": title,
        "about": about,
        "script": run.script.SCRIPT,
        "channels": run.args.channels,
        "latentDim": run.args.latent_dim,
        "classes": run.args.classes if run.script.CONDITIONAL else [],
        "axes": [rounded(axis) for axis in main_axes(layers[0], run.args.latent_dim)],
        "layers": described,
        "weights": weights,
    }
    text = json.dumps(model, allow_nan=False)
    text = text.replace("<", "\\u003c")  # so that no class name can end the <script>
    before, after = PAGE.read_text("utf-8").split(">null</script>")
    return f"{before}>{text}</script>{after}"


def parse_args(argv: list[str] | None = None) -> Namespace:
    parser = ArgumentParser(description="A page in which the generator of a run draws.")
    parser.add_argument("run", metavar="RUN", help="a folder written by one of the scripts")
    parser.add_argument("--out", metavar="FILE", help="the page (default: RUN/explore.html)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    options = parse_args(argv)
    run = load_run(options.run)
    path = Path(options.out or run.folder / "explore.html")
    if path.resolve() == PAGE:
        sys.exit("--out would overwrite the page without a generator. Choose another file.")
    page = make_page(run).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(page)
    print(f"{path}: {len(page) / 1e6:.2f} MB. Open it in a browser.")


if __name__ == "__main__":
    main()
