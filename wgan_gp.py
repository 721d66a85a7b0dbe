# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.10", "numpy", "pillow>=10.1", "tqdm"]
# ///
"""WGAN-GP, the Wasserstein GAN with a gradient penalty instead of clipped weights.

Ishaan Gulrajani, Faruk Ahmed, Martin Arjovsky, Vincent Dumoulin, Aaron Courville: Improved Training of Wasserstein
GANs, NeurIPS 2017, https://arxiv.org/abs/1704.00028

    the critic f maximizes  E[f(x)] - E[f(G(z))] - gp_weight E[(|grad f(x_hat)| - 1)^2]        G maximizes  E[f(G(z))]

    python wgan_gp.py --epochs 25 --cuda                      built-in digits, on a GPU (without --cuda: on the CPU)
    python wgan_gp.py --data data/mnist-32                    a folder of arrays, from: python prepare.py mnist
    python wgan_gp.py --resume                                go on with the newest run
    python wgan_gp.py --resume runs/wgan_gp-1 --generate 64   64 new images, into runs/wgan_gp-1/generated

Expect on two CPU cores, --data data/mnist-32 --lr 1e-3 --amp: 80 seconds an epoch, digits after the first, clean ones
after 6; by the defaults digits after 4 to 12.

Differs from the paper: the networks are DCGAN's, the critic's without normalization (the paper also uses ResNets, and
LayerNorm in the critic).
"""

import copy
import io
import json
import os
import shutil
import signal
import sys
import time
import warnings
from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn, optim
from tqdm import tqdm

try:
    import gan_kernels  # fused kernels, if installed: pip install -e . in the repository of this script
except ImportError:
    gan_kernels = None


class Generator(nn.Module):
    """Maps z (N, latent_dim) ~ N(0, 1) to images (N, channels, S, S) in [-1, 1].

    Transposed convolutions only, BatchNorm and ReLU after all but the last, then tanh (DCGAN, section 3).
    S = image_size is a power of two, 8 or more; ValueError if not.
    """

    def __init__(self, latent_dim: int, channels: int, image_size: int, width: int = 64) -> None:
        super().__init__()
        if image_size < 8 or image_size & (image_size - 1):
            raise ValueError(f"image_size must be a power of two, 8 or more, not {image_size}")
        features = width * image_size // 8  # at 4x4; every doubling of the side halves them: width at S/2
        layers = [nn.ConvTranspose2d(latent_dim, features, 4, bias=False)]  # (N, features, 4, 4)
        while features > width:
            layers += [nn.BatchNorm2d(features), nn.ReLU(inplace=True)]
            layers += [nn.ConvTranspose2d(features, features // 2, 4, stride=2, padding=1, bias=False)]
            features //= 2  # (N, features, side, side), side twice as long
        layers += [nn.BatchNorm2d(width), nn.ReLU(inplace=True)]  # (N, width, S/2, S/2)
        self.layers = nn.Sequential(*layers, nn.ConvTranspose2d(width, channels, 4, stride=2, padding=1), nn.Tanh())

    def forward(self, z: Tensor) -> Tensor:
        return self.layers(z[:, :, None, None]).to(z.dtype)  # under --amp the layers return bfloat16


class Critic(nn.Module):
    """Maps images (N, channels, S, S) in [-1, 1] to scores f(x) (N,), high for real ones; no sigmoid.

    Strided convolutions only, LeakyReLU(0.2) after all but the last. No BatchNorm: the penalty is on the gradient of
    each sample's score, and BatchNorm makes a score depend on the other samples (section 4).
    """

    def __init__(self, channels: int, image_size: int, width: int = 64) -> None:
        super().__init__()
        layers = [nn.Conv2d(channels, width, 4, stride=2, padding=1)]  # (N, width, S/2, S/2)
        layers += [nn.LeakyReLU(0.2, inplace=True)]
        features = width
        while features < width * image_size // 8:
            layers += [nn.Conv2d(features, features * 2, 4, stride=2, padding=1)]
            features *= 2  # (N, features, side, side), side half as long
            layers += [nn.LeakyReLU(0.2, inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(features, 1, 4))  # (N, features, 4, 4) to (N, 1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).flatten().to(x.dtype)


def init_weights(module: nn.Module) -> None:
    """Weights ~ N(0, 0.02) (DCGAN, section 4); BatchNorm's scale ~ N(1, 0.02), as in the authors' code."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0 if isinstance(module, nn.BatchNorm2d) else 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def add_options(parser: ArgumentParser) -> None:
    """The paper's settings (Algorithm 1)."""
    parser.set_defaults(batch_size=64, lr=1e-4)
    parser.add_argument("--n-critic", type=int, default=5, metavar="N", help="updates of f for one of G (%(default)s)")
    parser.add_argument("--gp-weight", type=float, default=10, metavar="X", help="of the penalty (%(default)s)")
    parser.add_argument("--kernels", choices=["auto", "on", "off"], default="auto", help="fused kernels (%(default)s)")


def use_kernels(args: Namespace) -> bool:
    """Whether gan_kernels computes what is written here as a formula, faster (--kernels). Prints which one, and why."""
    problem = gan_kernels.why_not("cuda" if args.cuda else "cpu") if gan_kernels else "gan_kernels is not installed"
    problem = "--kernels off" if args.kernels == "off" else problem
    if problem and args.kernels == "on":
        fail(f"--kernels on: {problem}")
    print(f"kernels: {f'formula in PyTorch ({problem})' if problem else 'gan_kernels'}")
    return not problem


def build(args: Namespace) -> tuple[nn.ModuleDict, list[optim.Optimizer]]:
    """The networks, initialized, and the optimizer of each."""
    generator = Generator(args.latent_dim, args.channels, args.image_size).apply(init_weights)
    critic = Critic(args.channels, args.image_size).apply(init_weights)
    networks = nn.ModuleDict({"generator": generator, "critic": critic})
    adam = {"lr": args.lr, "betas": (0.0, 0.9), "fused": True, "capturable": args.cuda}
    args.fused = use_kernels(args)
    return networks, [optim.Adam(network.parameters(), **adam) for network in networks.values()]


def gradient_penalty(critic: nn.Module, real: Tensor, fake: Tensor, fused: bool = False) -> Tensor:
    """E[(|grad f(x_hat)|_2 - 1)^2], x_hat on straight lines between real and fake (N, C, S, S) (section 4)."""
    epsilon = torch.rand(len(real), 1, 1, 1, device=real.device)  # one for each sample
    x_hat = (epsilon * real + (1 - epsilon) * fake).requires_grad_()
    (grad,) = torch.autograd.grad(critic(x_hat).sum(), x_hat, create_graph=True)  # (N, C, S, S), one for each sample
    if fused:  # the next line in one pass over memory
        return gan_kernels.gradient_penalty(grad)
    return (grad.flatten(1).norm(2, dim=1) - 1).square().mean()


def train_step(networks: nn.ModuleDict, optimizers: list, args: Namespace, real: Tensor, labels: Tensor) -> dict:
    """n_critic updates of f, on real images (N, C, S, S) in [-1, 1], then one of G. Returns 0-dim tensors, to log."""
    generator, critic = networks["generator"], networks["critic"]
    g_optimizer, c_optimizer = optimizers

    # (1) Update the critic: maximize f(x) - f(G(z)), which estimates the Wasserstein distance, less the penalty
    for batch in real.chunk(args.n_critic):  # (batch_size, C, S, S)
        z = torch.randn(len(batch), args.latent_dim, device=real.device)
        with torch.no_grad():  # the critic learns here, not G
            fake = generator(z)
        wasserstein = critic(batch).mean() - critic(fake).mean()
        penalty = gradient_penalty(critic, batch, fake, args.fused)
        c_loss = -wasserstein + args.gp_weight * penalty
        c_optimizer.zero_grad()
        c_loss.backward()
        c_optimizer.step()

    # (2) Update G: maximize f(G(z)), with fresh noise
    z = torch.randn(len(batch), args.latent_dim, device=real.device)
    g_loss = -critic(generator(z)).mean()
    g_optimizer.zero_grad()
    g_loss.backward(inputs=list(generator.parameters()))  # saves the gradients of the critic's weights
    g_optimizer.step()
    return {"wasserstein": wasserstein, "penalty": penalty, "g_loss": g_loss}


# ------------------------- Plumbing: the same in all scripts, nothing in it is about this GAN -------------------------

SCRIPT = Path(__file__).stem
# Set by torchrun: which process this is, which on this machine, of how many. Process 0 alone prints and writes.
RANK, LOCAL_RANK, WORLD_SIZE = (int(os.environ.get(*x)) for x in [("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1)])


def fail(message: str, code: int = 2) -> NoReturn:
    """Ends the program with one line: code 2 for bad usage or bad input, 1 for a training that failed."""
    if RANK == 0:
        tqdm.write(f"{SCRIPT}.py: error: {' '.join(message.split())}", file=sys.stderr)  # not behind a progress bar
    raise SystemExit(code)


def glyphs(count: int = 20_000, size: int = 32) -> tuple[Tensor, Tensor]:
    """Draws digits in random places, turns, sizes and strokes: images uint8 (count, 1, size, size), labels (count,)."""
    rng = np.random.default_rng(0)
    fonts = [ImageFont.load_default(points) for points in range(size * 5 // 8, size)]
    images, labels = np.empty((count, 1, size, size), np.uint8), rng.integers(10, size=count)
    for image, label in zip(images, labels, strict=True):
        canvas, (x, y) = Image.new("L", (size, size)), rng.normal(size / 2, size / 20, 2)
        font, stroke = fonts[rng.integers(len(fonts))], rng.integers(2)
        ImageDraw.Draw(canvas).text((x, y), str(label), 255, font, anchor="mm", stroke_width=stroke)
        image[0] = canvas.rotate(rng.normal(0, 10), Image.Resampling.BICUBIC)
    return torch.from_numpy(images), torch.from_numpy(labels)


def load_data(args: Namespace) -> tuple[Tensor, Tensor, list[str]]:
    """All images uint8 (N, C, S, S), their labels int64 (N,) and the names of the classes ([] if there are none)."""
    if args.data == "glyphs":
        return *glyphs(), [str(digit) for digit in range(10)]
    folder = Path(args.data)
    try:
        images = np.load(folder / "images.npy", mmap_mode="c")  # read from disk where it is used
        classes = (folder / "classes.txt").read_text("utf-8").splitlines() if (folder / "classes.txt").exists() else []
        labels = np.load(folder / "labels.npy").astype(np.int64) if classes else np.zeros(len(images), np.int64)
        count, channels, height, width = images.shape
        fits = images.dtype == np.uint8 and channels in (1, 3) and 0 < height == width and labels.shape == (count,)
        if not fits or labels.min() < 0 or labels.max() >= max(1, len(classes)) or ("label" in args and not classes):
            raise ValueError("images must be uint8 (N, 1 or 3, S, S), labels the class of each; cgan.py needs them")
    except (OSError, ValueError, TypeError, EOFError) as error:
        fail(f"--data {folder}: {error}; to make it: python prepare.py {folder.name.removesuffix('-32')}")
    return torch.from_numpy(images), torch.from_numpy(labels), classes


def to_picture(images: Tensor, columns: int = 1) -> Image.Image:
    """Tiles images (N, C, S, S), N a multiple of columns. [-1, 1] is black to white, always, so that frames compare."""
    pixels = images.mul(127.5).add(128).clamp(0, 255).byte().cpu()
    picture = torch.cat([torch.cat(list(row), dim=2) for row in pixels.split(columns)], dim=1)  # (C, height, width)
    return Image.fromarray(picture.permute(1, 2, 0).squeeze(2).numpy())


def generate(args: Namespace, checkpoint: dict) -> None:
    """Writes --generate images to RUN/generated, the same at every call; cgan: one folder for each class."""
    networks, _ = load_networks(args, checkpoint)
    device, folder = next(networks.parameters()).device, Path(args.out, "generated")
    names = [args.label] if vars(args).get("label") else args.classes or [""]
    if not set(names) <= {*args.classes, ""}:
        fail(f"--label {args.label} is none of {', '.join(args.classes)}")
    shutil.rmtree(folder, ignore_errors=True)
    for i in tqdm(range(args.generate), str(folder)):
        name, z = names[i % len(names)], torch.randn(1, args.latent_dim, device=device)
        labels = [torch.tensor([args.classes.index(name)], device=device)] if "label" in args else []
        path = folder / (Path(name).name if labels else "") / f"{i:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        to_picture(networks["generator_ema"](z, *labels)).save(path)


def average(tensors: list[Tensor]) -> None:
    """Makes each tensor its mean over all processes. Not DDP, through which a gradient penalty does not work."""
    if WORLD_SIZE > 1:
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        torch.distributed.all_reduce(flat)
        for tensor, mean in zip(tensors, flat.div_(WORLD_SIZE).split([x.numel() for x in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))


def load_networks(args: Namespace, checkpoint: dict) -> tuple[nn.ModuleDict, list[optim.Optimizer]]:
    """The networks, generator_ema among them, and the optimizers, on the device; new or as the checkpoint has them."""
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")  # TF32
    warnings.filterwarnings("ignore", "This instance was constructed with capturable")  # the steps before the capture
    torch.manual_seed(args.seed)
    try:
        networks, optimizers = build(args)
        networks["generator_ema"] = copy.deepcopy(networks["generator"]).eval().requires_grad_(False)
        networks = nn.SyncBatchNorm.convert_sync_batchnorm(networks) if args.cuda and WORLD_SIZE > 1 else networks
        networks.to("cuda" if args.cuda else "cpu", memory_format=torch.channels_last)  # fastest for convolutions
        for name, network in networks.items() if checkpoint else ():
            network.load_state_dict(checkpoint[name])
    except (KeyError, ValueError, RuntimeError) as error:  # an image size, a checkpoint of other networks
        fail(f"cannot build the networks{f' of {args.out}' if checkpoint else ''}: {error}")
    for k, optimizer in enumerate(optimizers):
        if checkpoint:  # has the state, the settings come from args
            optimizer.load_state_dict({**optimizer.state_dict(), "state": checkpoint["optimizers"][k]})
        optimizer.register_step_pre_hook(lambda o, *_: average([p.grad for p in o.param_groups[0]["params"]]))
    return networks, optimizers


def capture(step: Callable, *inputs: object) -> Callable[[], dict[str, Tensor]] | None:
    """Records step(*inputs) as a CUDA graph: its hundreds of launches, on the same memory each time, become one."""
    graph, generator = torch.cuda.CUDAGraph(), torch.cuda.default_generators[torch.cuda.current_device()]
    try:
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            metrics = step(*inputs)
    except RuntimeError as error:
        print(f"hint: no CUDA graph, so steps may take longer: {error.__context__ or error}")
        generator.graphsafe_set_state(generator.clone_state())  # until PyTorch 2.11 it would stay in capture mode
        return None
    return lambda: graph.replay() or metrics  # replay returns None


def train(args: Namespace, checkpoint: dict) -> int:
    """Trains until --epochs or --steps is reached, or SIGINT or SIGTERM comes. Returns the exit code."""
    images, labels, args.classes = load_data(args)
    args.channels, args.image_size = images.shape[1:3]
    images_per_step = args.batch_size * getattr(args, "n_critic", getattr(args, "d_steps", 1))
    steps_per_epoch = max(1, len(images) // images_per_step)  # the rest is left out, another one in each epoch
    networks, optimizers = load_networks(args, checkpoint)
    device = next(networks.parameters()).device
    if args.cuda and images.nbytes < torch.cuda.mem_get_info()[0] / 2:  # else each batch travels to the GPU
        images, labels = images.to(device), labels.to(device)
    rows = torch.arange(min(len(args.classes), 16) if "label" in args else 8).repeat_interleave(8)  # 8 images a row
    noise = [torch.randn(len(rows), args.latent_dim)] + ([rows] if "label" in args else [])
    state = {"script": SCRIPT, "step": 0, "noise": noise, "sums": torch.zeros(1), "metrics": "", "seconds": 0.0}
    state |= {**checkpoint, "args": vars(args)}
    step, last = state["step"], min(args.epochs * steps_per_epoch, args.steps or sys.maxsize)
    sums, began, run = state["sums"].to(device), time.monotonic() - state["seconds"], Path(args.out)
    averages, weights = (networks[name].state_dict().values() for name in ("generator_ema", "generator"))
    averages, weights = ([x for x in values if x.is_floating_point()] for values in (averages, weights))
    if RANK == 0:
        (run / "samples").mkdir(parents=True, exist_ok=True)
        (run / "config.json").write_text(json.dumps(vars(args), indent=2))
        (run / "metrics.csv").write_text(state["metrics"])  # rows after the checkpoint come again
    hint = " (hint: --cuda would use the GPU)" if torch.cuda.is_available() and not args.cuda else ""
    print(f"{run}: steps {step} to {last} with {len(images):,} images of {args.data} on {device}{hint}", flush=True)

    signals = set()  # that have come: the step under way is finished, then all is saved
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: signals.add(number))
    order, replay, stop, capture_at = None, None, torch.zeros(1), step + 3  # by then cuDNN has chosen its algorithms
    real = torch.empty(images_per_step // WORLD_SIZE, *images.shape[1:], device=device)
    real_labels = labels.new_empty(len(real), device=device)
    inputs = networks, optimizers, args, real, real_labels
    bar = tqdm(total=last, initial=step, unit="step", mininterval=1, disable=RANK > 0)
    with bar, torch.autocast(device.type, torch.bfloat16, enabled=args.amp, cache_enabled=False):
        while step < last and not stop:
            epoch, i = divmod(step, steps_per_epoch)
            if i == 0 or order is None:
                torch.manual_seed(hash((args.seed, epoch)))
                order = torch.randperm(len(images)).to(images.device)
            index = torch.arange(i * images_per_step + RANK, (i + 1) * images_per_step, WORLD_SIZE, device=order.device)
            index = order[index % len(order)]  # of the images for this process; few images come several times
            real.copy_(images[index].to(device)).div_(127.5).sub_(1)
            real_labels.copy_(labels[index])
            replay = capture(train_step, *inputs) if args.cuda and args.graph and step == capture_at else replay
            torch.manual_seed(hash((args.seed, step, RANK)))  # so that a resumed run draws what it would have drawn
            metrics = replay() if replay else train_step(*inputs)
            torch._foreach_lerp_(averages, weights, 1 - min(args.ema, (1 + step) / (20 + step)))
            sums = (sums if step % args.log_every else 0) + torch.stack(list(metrics.values())).detach()
            step += 1
            bar.update()
            stop.fill_(len(signals))
            average([stop])  # a signal may reach them between different steps
            row_due, save_due = step % args.log_every == 0, i + 1 == steps_per_epoch or step == last or stop
            if row_due or save_due:  # only here the host waits for the GPU
                average([sums])
                if not all(x.isfinite().all() for x in [sums, *networks.state_dict().values()]):
                    fail(f"losses or weights are not finite at step {step}; {run}/checkpoint.pt is from before", 1)
            if row_due and RANK == 0:
                means = [f"{mean:.6g}" for mean in (sums / args.log_every).tolist()]
                state["metrics"] = state["metrics"] or ",".join(["step", "epoch", *metrics, "seconds"]) + "\n"
                state["metrics"] += f"{step},{epoch + 1},{','.join(means)},{time.monotonic() - began:.1f}\n"
                (run / "metrics.csv").write_text(state["metrics"])
                bar.set_postfix(dict(zip(metrics, means, strict=True)), refresh=False)
            if save_due and RANK == 0:
                images_now = networks["generator_ema"](*(x.to(device) for x in state["noise"]))
                to_picture(images_now, 8).save(run / f"samples/epoch-{epoch + 1:04d}.png")
                state |= {name: network.state_dict() for name, network in networks.items()}
                state |= {"optimizers": [optimizer.state_dict()["state"] for optimizer in optimizers]}
                state |= {"step": step, "sums": sums, "seconds": time.monotonic() - began}
                with (run / "checkpoint.part").open("wb") as file:  # whatever happens, checkpoint.pt is a whole one
                    torch.save(state, buffer := io.BytesIO())  # to a file it reports a full disk as a RuntimeError
                    file.write(buffer.getbuffer())
                    file.flush()
                    os.fsync(file.fileno())
                (run / "checkpoint.part").replace(run / "checkpoint.pt")
                if step == last:
                    frames = map(Image.open, sorted((run / "samples").glob("epoch-*.png")))  # one after the other
                    next(frames).save(run / "training.gif", save_all=True, append_images=frames, duration=200, loop=0)
    print(f"step {step} of {last}; to go on (with more --epochs or --steps): python {SCRIPT}.py --resume {run}")
    return 128 + signals.pop() if signals else 0


def parse_args(argv: list[str] | None) -> tuple[Namespace, dict]:
    """The arguments and, with --resume, the checkpoint, which gives those that are not typed again."""
    parser = ArgumentParser(f"{SCRIPT}.py", description=__doc__.splitlines()[0])
    parser.error = fail
    add = parser.add_argument
    add("--data", default="glyphs", metavar="DIR", help="glyphs, built in (default), or a folder made by prepare.py")
    add("--epochs", type=int, default=25, metavar="N", help="in all, those before --resume included (%(default)s)")
    add("--steps", type=int, metavar="N", help="stop after N updates of G in all")
    add("--batch-size", type=int, metavar="N", help="images in a batch (%(default)s)")
    add("--latent-dim", type=int, default=100, metavar="N", help="numbers in z (%(default)s)")
    add("--lr", type=float, metavar="X", help="learning rate of both networks (%(default)s)")
    add("--ema", type=float, default=0.999, metavar="X", help="decay of the average of G's weights (%(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="of weights, noise and order of data (%(default)s)")
    add("--log-every", type=int, default=50, metavar="N", help="steps between rows of metrics.csv (%(default)s)")
    add("--cuda", action=BooleanOptionalAction, default=False, help="use the GPU")
    add("--graph", action=BooleanOptionalAction, default=True, help="with --cuda: replay each step as a CUDA graph")
    add("--amp", action=BooleanOptionalAction, default=False, help="networks in bfloat16, losses in float32")
    add("--out", metavar="DIR", help=f"the run's folder (runs/{SCRIPT}-K, K the next free number)")
    add("--resume", nargs="?", const="", metavar="RUN", help="go on with RUN, else the run in --out, else the newest")
    add("--generate", type=int, metavar="N", help="with --resume: write N images to RUN/generated and stop")
    add_options(parser)
    args, checkpoint = parser.parse_args(argv), {}
    newest = max(Path("runs").glob(f"{SCRIPT}-*/checkpoint.pt"), key=os.path.getmtime, default=Path("runs/*/none"))
    path = Path(args.resume or args.out or newest.parent, "checkpoint.pt")
    if args.resume != "" and args.out and Path(args.out, "checkpoint.pt").exists():
        fail(f"--out: {args.out} holds a run; --resume {args.out} goes on with it")
    if args.resume or (args.resume == "" and (path.exists() or not args.out)):  # else --out DIR --resume begins a run
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
            parser.set_defaults(**checkpoint["args"] | {"out": str(path.parent)})
            if checkpoint["script"] != SCRIPT:
                fail(f"--resume: {path} is of {checkpoint['script']}.py")
        except Exception as error:  # torch.load raises all kinds on a broken file
            fail(f"--resume: {path} is no run of {SCRIPT}.py: {type(error).__name__}: {str(error).partition('. ')[0]}")
        args = parser.parse_args(argv)
    for name, value in vars(args).items():
        if type(value) in (int, float) and not (0 if name in ("seed", "ema", "gp_weight") else 1e-12) <= value < 2**63:
            fail(f"--{name.replace('_', '-')} {value} is out of range")
    if args.generate and (not checkpoint or WORLD_SIZE > 1):
        fail("--generate needs --resume RUN and a single process")
    if args.batch_size % WORLD_SIZE or args.batch_size < 2 * WORLD_SIZE:
        fail(f"--batch-size {args.batch_size} is not 2 images or more, evenly, for each of {WORLD_SIZE} processes")
    if args.cuda and torch.cuda.device_count() <= LOCAL_RANK:
        fail("--cuda: PyTorch sees no GPU for this process; --no-cuda runs on the CPU")
    args.out = args.out or next(run for k in range(1, 10**6) if not Path(run := f"runs/{SCRIPT}-{k}").exists())
    return args, checkpoint


def main(argv: list[str] | None = None) -> int:
    sys.stdout = sys.stdout if RANK == 0 else Path(os.devnull).open("w")  # noqa: SIM115
    try:
        args, checkpoint = parse_args(argv)
        if args.cuda:
            torch.cuda.set_stream(torch.cuda.Stream(LOCAL_RANK))  # of this GPU; the default one cannot be captured
        if WORLD_SIZE > 1:
            torch.distributed.init_process_group()
            torch.distributed.broadcast_object_list(found := [args, checkpoint])  # process 0 names the run
            args, checkpoint = found
        return (generate if args.generate else train)(args, checkpoint) or 0
    except KeyboardInterrupt:
        fail("interrupted", 130)
    except (OSError, torch.OutOfMemoryError) as error:  # a full disk, a folder without permission
        fail(str(error), 1)


if __name__ == "__main__":
    sys.exit(main())
