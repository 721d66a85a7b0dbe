"""What the common mistakes look like: dcgan.py with one mistake at a time.

    python prepare.py mnist
    python benchmarks/mistakes.py                    all of them, some minutes each
    python benchmarks/mistakes.py "images in [0, 1]"

Each mistake is a change of a line or a few of dcgan.py's text, below, of the kind that people make
when they write a GAN of their own. The changed script trains by its own main(). The table has the
last row of metrics.csv and the scores of evaluate.py, the picture in --out eight samples of each.
docs/troubleshooting.md has the figures and the picture.

Runs are kept in --out: the same command again finishes them, or scores them again. Take another
--out when you change the other options, the script or the data.
"""

import argparse
import contextlib
import importlib.util
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from speedrun import read_metrics
from tables import Table, add_record_option

import dcgan
import evaluate

PASSES = """\
    real_logits = discriminator(real)
    fake_logits = discriminator(fake)
"""
MISTAKES = {  # name: texts of dcgan.py, each with what takes its place
    "none": {},
    "images in [0, 1]": {"real.div_(127.5).sub_(1)": "real.div_(255)"},
    "a sigmoid before a loss that takes logits": {
        "return self.layers(x).flatten()": "return self.layers(x).flatten().sigmoid()"
    },
    "G's gradients not cleared": {"    g_optimizer.zero_grad()\n": ""},
    "D's gradients not cleared after G's step": {
        "    d_optimizer.zero_grad()\n": "",
        "    d_optimizer.step()\n": "    d_optimizer.step()\n    d_optimizer.zero_grad()\n",
        "g_loss.backward(inputs=list(generator.parameters()))": "g_loss.backward()",
    },
    "fakes detached in G's step, too": {
        "logits = discriminator(generator(z))": "logits = discriminator(generator(z).detach())",
        "g_loss.backward(inputs=list(generator.parameters()))": "g_loss.backward()",
    },
    "D's weights not in its optimizer": {
        "d_optimizer = optim.Adam(discriminator": "d_optimizer = optim.Adam(generator"
    },
    "real and fake in one batch": {
        PASSES: "    logits = discriminator(torch.cat([real, fake]))\n"
        "    real_logits, fake_logits = logits.chunk(2)\n"
    },
    "the same noise at every step": {
        "z = torch.randn(len(real), args.latent_dim, device=real.device)": "z = torch.randn("
        "len(real), args.latent_dim, generator=torch.Generator().manual_seed(0)).to(real.device)"
    },
    "G trained on D's labels": {
        "g_loss = bce(logits, torch.ones_like": "g_loss = bce(logits, torch.zeros_like"
    },
    "Adam's default beta1": {"betas=(0.5, 0.999)": "betas=(0.9, 0.999)"},
    "PyTorch's default weights": {
        "    generator.apply(init_weights)\n": "",
        "    discriminator.apply(init_weights)\n": "",
    },
    "fakes not detached in D's step": {"with torch.no_grad():  # this": "if True:  # this"},
}

COLUMNS = {"D(x)": 2, "D(G(z))": 2, "d_loss": 2, "g_loss": 2, "frechet": 1, "diversity": 2}


def with_mistake(name: str, folder: Path) -> ModuleType:
    """dcgan.py with this mistake, as a module. Its text is kept in the folder."""
    source = Path(dcgan.__file__).read_text("utf-8")
    for old, new in MISTAKES[name].items():
        if old not in source:
            raise ValueError(f"dcgan.py has no {old!r} any more")
        source = source.replace(old, new)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "dcgan.py"
    path.write_text(source, "utf-8")
    spec = importlib.util.spec_from_file_location("dcgan_with_mistake", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def train(name: str, options: Namespace) -> evaluate.Run:
    """The run with this mistake; it is trained unless it is there."""
    folder = options.out / name.replace(" ", "-").translate({ord(c): None for c in "[],'"})
    argv = ["--data", options.data, "--width", options.width, "--batch-size", options.batch_size]
    argv += ["--lr", options.lr, "--steps", options.steps, "--seed", options.seed]
    argv += ["--no-graph"]  # so that a mistake need not be fit for recording
    argv += ["--out", folder / "run", "--resume", "--cuda" if options.cuda else "--no-cuda"]
    with_mistake(name, folder).main([str(word) for word in argv])
    return evaluate.load_run(folder / "run", cuda=options.cuda)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser("mistakes.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("names", nargs="*", metavar="MISTAKE", help=f"{'; '.join(MISTAKES)} (default: all)")
    add("--data", type=Path, default=Path("data/mnist-32"), help="with labels (%(default)s)")
    add("--steps", type=int, default=1000, help="updates of G (%(default)s)")
    add("--batch-size", type=int, default=32, help="images in a batch (%(default)s)")
    add("--width", type=int, default=32, help="of both networks (%(default)s)")
    add("--lr", type=float, default=1e-3, help="learning rate (%(default)s)")
    add("--seed", type=int, default=0, help="of the runs (%(default)s)")
    add("--samples", type=int, default=5000, help="samples of each run (%(default)s)")
    has_gpu = torch.cuda.is_available()
    add("--cuda", action=argparse.BooleanOptionalAction, default=has_gpu, help="use a GPU")
    add("--out", type=Path, default=Path("runs/mistakes"), help="for the runs (%(default)s)")
    add_record_option(parser)
    options = parser.parse_args(argv)
    names = options.names or list(MISTAKES)
    if unknown := set(names) - MISTAKES.keys():
        parser.error(f"{unknown.pop()!r} is not one of: {'; '.join(MISTAKES)}")
    table = Table(COLUMNS, "mistake")
    judge, tiles = None, []
    for name in names:
        with contextlib.redirect_stdout(sys.stderr):  # standard output has the table only
            run = train(name, options)
            if judge is None:
                training, _, _ = evaluate.split_data(run)
                judge = evaluate.Judge(training, len(run.args.classes), run.args.device)
            samples = evaluate.draw_32(run, options.samples)
        tiles.append(samples[-8:])  # the first ones are of a noise that one mistake trains on
        last_row = read_metrics(run.folder)[-1]
        figures = {key: last_row[key] for key in COLUMNS if key in last_row}
        number = list(MISTAKES).index(name) + 1
        table.add(f"{number}. {name}", "dcgan", [figures | judge(samples)])
    table.record(options.record, parser.prog, argv, options.cuda)
    path = options.out / "mistakes.png"
    dcgan.to_picture(evaluate.to_floats(torch.cat(tiles)), columns=8).save(path)
    print(path)


if __name__ == "__main__":
    main()
