# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.10", "numpy", "pillow>=10.1", "tqdm"]
# ///
# `uv run` installs these.
"""R3GAN: a GAN whose D compares pairs, with two gradient penalties.

Yiwen Huang, Aaron Gokaslan, Volodymyr Kuleshov, James Tompkin: The GAN is dead; long live the GAN!
A Modern GAN Baseline, NeurIPS 2024, https://arxiv.org/abs/2501.05441

    D minimizes  E[softplus(D(G(z)) - D(x))] + gamma/2 (R1 + R2)
    G minimizes  E[softplus(D(x) - D(G(z)))]    R1 = E[|grad_x D(x)|^2], R2 the same at G(z)

    python r3gan.py --epochs 25    trains on built-in digits, on a GPU if there is one
    torchrun --nproc-per-node 8 r3gan.py --out runs/big    trains on eight GPUs

--data data/mnist-32 trains on what `python prepare.py mnist` made; --resume continues the newest
run; --generate 64 draws 64 images from it.
On a CPU core --data data/mnist-32 --width 32 --batch-size 32 --lr 1e-3 draws digits in 2 minutes.

Differs from the paper: the layers are wgan_gp.py's, with BatchNorm in G and no residual blocks;
gamma, the learning rate and beta2 are constant; no augmentation.
"""

import copy
import itertools
import json
import math
import os
import sys
import time
from argparse import ArgumentParser, BooleanOptionalAction, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn, optim
from tqdm import tqdm

SCRIPT = "r3gan"  # runs/r3gan-1, runs/r3gan-2, ...


# Types of options. argparse turns a ValueError into a usage error.
def positive_int(text: str) -> int:
    if int(text) <= 0:
        raise ValueError
    return int(text)


def zero_to_one(text: str) -> float:
    if not 0 <= float(text) <= 1:
        raise ValueError
    return float(text)


def non_negative(text: str) -> float:
    if not 0 <= float(text) < math.inf:
        raise ValueError
    return float(text)


def add_options(parser: ArgumentParser) -> None:
    add = parser.add_argument
    add("--batch-size", type=positive_int, default=64, help="images, over all GPUs (64)")
    add("--lr", type=zero_to_one, default=2e-4, help="learning rate (2e-4)")
    add("--latent-dim", type=positive_int, default=100, help="length of z (100)")
    add("--width", type=positive_int, default=64, help="channels in D's first layer (64)")
    add("--gamma", type=non_negative, default=1, help="R1, R2 weigh gamma/2 (1)")
    # The run
    add("--data", default="digits", help="a folder from prepare.py (default: built-in digits)")
    add("--epochs", type=positive_int, help="in total (25 unless --steps is given)")
    add("--steps", type=positive_int, help="updates of G in total (no limit)")
    add("--out", help="folder of the run (default: the first free of runs/NAME-1, ...)")
    add("--resume", action="store_true", help="continue --out, or the newest run in runs/")
    add("--generate", type=positive_int, metavar="N", help="write N images of --out or the newest")
    add("--ema", type=zero_to_one, default=0.999, help="decay of G's average (0.999)")
    add("--seed", type=int, default=0, help="for weights, noise and image order (0)")
    add("--log-every", type=positive_int, default=50, help="steps between rows of metrics.csv (50)")
    add("--sample-every", type=positive_int, default=200, help="steps between pictures (200)")
    # The machine; each has a --no- form
    add("--cuda", action=BooleanOptionalAction, default=torch.cuda.is_available(), help="use a GPU")
    add("--graph", action=BooleanOptionalAction, default=True, help="use CUDA graphs on a GPU")
    add("--amp", action=BooleanOptionalAction, default=False, help="bfloat16; a CPU needs AVX-512")


def layer_widths(image_size: int, width: int) -> list[int]:
    """Channels of each feature map, from S/2 x S/2 to 4x4: [64, 128, 256] for images of 32x32."""
    if image_size not in (8, 16, 32, 64, 128, 256, 512, 1024):
        sys.exit(f"The image size must be a power of two from 8 to 1024, not {image_size}.")
    layers = int(math.log2(image_size)) - 2  # 3 for 32x32: 16x16, 8x8 and 4x4
    return [width * 2**i for i in range(layers)]


class Generator(nn.Module):
    """Maps noise z (N, latent_dim) to images (N, channels, S, S) in [-1, 1]; S is image_size.

    Transposed convolutions, each but the last followed by BatchNorm and ReLU (DCGAN, section 3).
    """

    def __init__(self, latent_dim: int, channels: int, image_size: int, width: int = 64) -> None:
        super().__init__()
        widths = layer_widths(image_size, width)[::-1]
        layers = [nn.ConvTranspose2d(latent_dim, widths[0], 4, bias=False)]  # 1x1 to 4x4
        layers += [nn.BatchNorm2d(widths[0]), nn.ReLU(inplace=True)]
        for before, after in itertools.pairwise(widths):  # each doubles the side, up to S/2
            layers += [nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
        layers += [nn.ConvTranspose2d(widths[-1], channels, 4, stride=2, padding=1), nn.Tanh()]
        self.layers = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        images = self.layers(z[:, :, None, None])  # z as an image of one pixel
        return images.to(z.dtype)  # float32 again under --amp


class Discriminator(nn.Module):
    """Maps images (N, channels, S, S) to logits D(x), (N,). Only differences count.

    Strided convolutions, each but the last followed by LeakyReLU(0.2). No BatchNorm: the penalties
    are on the gradient of each logit at its own image.
    """

    def __init__(self, channels: int, image_size: int, width: int = 64) -> None:
        super().__init__()
        widths = layer_widths(image_size, width)
        layers = [nn.Conv2d(channels, widths[0], 4, stride=2, padding=1)]  # to S/2
        layers += [nn.LeakyReLU(0.2, inplace=True)]
        for before, after in itertools.pairwise(widths):  # each halves the side, down to 4x4
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1)]
            layers += [nn.LeakyReLU(0.2, inplace=True)]
        layers += [nn.Conv2d(widths[-1], 1, 4)]  # 4x4 to 1x1
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).flatten().to(x.dtype)  # (N, 1, 1, 1) to (N,)


def init_weights(module: nn.Module) -> None:
    """N(0, 0.02) for convolutions (DCGAN, section 4), N(1, 0.02) for BatchNorm (DCGAN's code)."""
    if isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
    elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def init_discriminator(module: nn.Module) -> None:
    """He et al. 2015 (authors' code), as no BatchNorm rescales signals."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, a=0.2)
        nn.init.zeros_(module.bias)


def gradient_penalty(grad: Tensor, target: float = 1.0) -> Tensor:
    """The mean of (|g| - target)^2 over the gradients g of a batch (N, C, S, S)."""
    norms = grad.flatten(1).norm(2, dim=1)  # (N,)
    return (norms - target).square().mean()


try:
    from gan_kernels import gradient_penalty  # the same in one pass over memory: pip install -e .
except ImportError:
    pass


def build(args: Namespace) -> tuple[nn.ModuleDict, list[optim.Optimizer]]:
    """Networks and optimizers. train() adds channels, image_size and classes to args."""
    generator = Generator(args.latent_dim, args.channels, args.image_size, args.width)
    generator.apply(init_weights)
    discriminator = Discriminator(args.channels, args.image_size, args.width)
    discriminator.apply(init_discriminator)
    networks = nn.ModuleDict({"generator": generator, "discriminator": discriminator})
    # fused: one kernel updates all weights
    g_optimizer = optim.Adam(generator.parameters(), args.lr, betas=(0.0, 0.99), fused=True)
    d_optimizer = optim.Adam(discriminator.parameters(), args.lr, betas=(0.0, 0.99), fused=True)
    return networks, [g_optimizer, d_optimizer]


def train_step(
    networks: nn.ModuleDict, optimizers: list, args: Namespace, real: Tensor, labels: Tensor
) -> dict[str, Tensor]:
    """Updates D, then G, with real images (N, C, S, S) in [-1, 1]. Returns scalars for metrics.csv.

    labels (N,) are for conditional GANs. On a GPU, Python runs this only in the first few steps.
    Then recorded kernels are replayed: print() does nothing, Python numbers stay as recorded,
    and .item() fails while recording. Debug with --no-graph.
    """
    generator, discriminator = networks["generator"], networks["discriminator"]
    g_optimizer, d_optimizer = optimizers
    softplus = nn.functional.softplus  # log(1 + exp(.))

    # (1) Update D: minimize softplus(D(G(z)) - D(x)) + gamma/2 (R1 + R2)
    z = torch.randn(len(real), args.latent_dim, device=real.device)
    with torch.no_grad():  # this update must not reach G
        fake = generator(z)
    real = real.detach().requires_grad_()  # the penalties need these gradients
    fake.requires_grad_()
    real_logits = discriminator(real)
    fake_logits = discriminator(fake)
    total = real_logits.sum() + fake_logits.sum()  # a logit sees one image
    real_grad, fake_grad = torch.autograd.grad(total, [real, fake], create_graph=True)
    r1 = gradient_penalty(real_grad, target=0.0)
    r2 = gradient_penalty(fake_grad, target=0.0)
    d_loss = softplus(fake_logits - real_logits).mean() + args.gamma / 2 * (r1 + r2)
    pairs_right = (real_logits > fake_logits).float().mean()
    d_optimizer.zero_grad()
    d_loss.backward()
    d_optimizer.step()

    # (2) Update G: minimize softplus(D(x) - D(G(z))), with fresh noise
    z = torch.randn(len(real), args.latent_dim, device=real.device)
    fake_logits = discriminator(generator(z))
    with torch.no_grad():
        real_logits = discriminator(real)
    g_loss = softplus(real_logits - fake_logits).mean()
    g_optimizer.zero_grad()
    g_loss.backward(inputs=list(generator.parameters()))  # only for G, which is updated
    g_optimizer.step()

    return {"pairs_right": pairs_right, "r1": r1, "r2": r2, "g_loss": g_loss}


# Hooks for the plumbing, which all GANs share
CONDITIONAL = False  # whether the networks take labels


def images_per_step(args: Namespace) -> int:
    return args.batch_size  # GANs that update D several times multiply this


def sample(generator: nn.Module, args: Namespace, z: Tensor, labels: Tensor) -> Tensor:
    return generator(z)


def labels_to_generate(args: Namespace) -> list[int]:
    return [0]  # one label; sample() ignores it


# ----------------------- Plumbing, the same in all scripts: the GAN itself ends here ------------

# Resuming: image order depends only on (seed, epoch), noise only on (seed, step, process). So a
# repeated step gets the same images and noise, and no random state is saved.
#
# Several GPUs: torchrun starts a process for each. All have the same weights, each trains on its
# share of the batch, and gradients are averaged. Process 0 alone prints and saves.
#
# CUDA graph: a step launches hundreds of small kernels. They are recorded once, without running;
# graph.replay() then runs them all with one call, always on the same memory. It draws new random
# numbers each time, because PyTorch passes the current seed to the graph.

SAVE_EVERY = 60  # seconds between checkpoints
WARMUP_STEPS = 3  # before recording: cuDNN picks algorithms, optimizers make state
# torchrun sets these in each process
RANK = int(os.environ.get("RANK", 0))
LOCAL_RANK = int(os.environ.get("LOCAL_RANK", 0))  # the number of this process's GPU
WORLD_SIZE = int(os.environ.get("WORLD_SIZE", 1))


def digits(count: int = 20_000, size: int = 32) -> tuple[Tensor, Tensor]:
    """Digits of random position, size, stroke and angle, always the same."""
    rng = np.random.default_rng(0)
    smallest = size * 5 // 8
    fonts = [ImageFont.load_default(points) for points in range(smallest, size)]
    images = np.empty((count, 1, size, size), np.uint8)
    labels = rng.integers(10, size=count)
    for i in tqdm(range(count), "digits", leave=False):
        canvas = Image.new("L", (size, size))
        center = tuple(rng.normal(size / 2, size / 20, 2))
        font = fonts[rng.integers(len(fonts))]
        stroke = rng.integers(2)
        draw = ImageDraw.Draw(canvas)
        draw.text(center, str(labels[i]), "white", font, anchor="mm", stroke_width=stroke)
        canvas = canvas.rotate(rng.normal(0, 10), Image.Resampling.BICUBIC)
        images[i, 0] = np.asarray(canvas)
    return torch.from_numpy(images), torch.from_numpy(labels)


def load_data(name: str) -> tuple[Tensor, Tensor, list[str]]:
    """Images uint8 (N, C, S, S), labels int64 (N,), class names ([] if there are none)."""
    if name == "digits":
        images, labels = digits()
        return images, labels, list("0123456789")
    folder = Path(name)
    if not (folder / "images.npy").exists():
        sys.exit(f"{folder} has no images.npy. prepare.py makes such a folder.")
    # Mode c, copy-on-write: writable, as torch.from_numpy expects, but the file never changes
    images = np.load(folder / "images.npy", mmap_mode="c")
    is_square = images.ndim == 4 and images.shape[2] == images.shape[3]
    if not is_square or images.shape[1] not in (1, 3) or images.dtype != np.uint8:
        sys.exit(f"images.npy is {images.dtype} {images.shape}, not uint8 (N, 1 or 3, S, S).")
    labels = np.zeros(len(images), np.int64)
    classes = []
    if (folder / "classes.txt").exists():
        labels = np.load(folder / "labels.npy")
        classes = (folder / "classes.txt").read_text("utf-8-sig").splitlines()
        valid = np.isin(labels, range(len(classes)))
        if labels.shape != (len(images),) or not valid.all():
            sys.exit("labels.npy must hold one label for each image, from 0 to classes - 1.")
    elif CONDITIONAL:
        sys.exit(f"{folder} has no classes.txt. {SCRIPT} needs classes.")
    return torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)), classes


def to_picture(images: Tensor, columns: int = 1) -> Image.Image:
    """Tiles images (N, C, S, S) in [-1, 1], row by row. N must be a multiple of columns."""
    pixels = images.add(1).mul(127.5).round().clamp(0, 255).byte().cpu()
    _, channels, size, _ = images.shape
    grid = pixels.view(-1, columns, channels, size, size)  # row, column, C, y, x
    grid = grid.permute(0, 3, 1, 4, 2)  # row, y, column, x, C
    picture = grid.reshape(-1, columns * size, channels)  # (height, width, C)
    return Image.fromarray(picture.squeeze(2).numpy())  # (height, width) if grey


def draw_samples(generator: nn.Module, args: Namespace) -> Image.Image:
    """8 columns and 8 rows, or a row for each class (at most 16). The noise stays the same."""
    rows = 8
    if CONDITIONAL:
        rows = min(len(args.classes), 16)
    labels = torch.arange(rows, device=args.device).repeat_interleave(8)  # for conditional GANs
    rng = torch.Generator().manual_seed(args.seed)
    z = torch.randn(len(labels), args.latent_dim, generator=rng).to(args.device)
    return to_picture(sample(generator, args, z, labels), columns=8)


def generate(args: Namespace, checkpoint: dict) -> None:
    """Writes --generate images to OUT/generated, always the same."""
    networks, _ = make_networks(args, checkpoint)
    labels = labels_to_generate(args)
    for i in tqdm(range(args.generate)):
        label = labels[i % len(labels)]
        folder = Path(args.out, "generated")
        if CONDITIONAL:
            folder /= args.classes[label].replace("/", "_")
        folder.mkdir(parents=True, exist_ok=True)
        set_seed(args.seed, i)  # so that image i does not depend on N
        z = torch.randn(1, args.latent_dim).to(args.device)
        image = sample(networks["generator_ema"], args, z, torch.tensor([label]).to(args.device))
        to_picture(image).save(folder / f"{i:06d}.png")
    print(f"{args.generate} images in {args.out}/generated")


def average_gradients(optimizer: optim.Optimizer, _args: tuple, _kwargs: dict) -> None:
    """A hook before each optimizer.step(): averages the gradients over all processes."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            torch.distributed.all_reduce(parameter.grad)  # the sum
            parameter.grad /= WORLD_SIZE


def make_networks(args: Namespace, checkpoint: dict) -> tuple[nn.ModuleDict, list[optim.Optimizer]]:
    """The networks on the device, generator_ema among them, and their optimizers."""
    torch.manual_seed(args.seed)  # the same weights in all processes
    networks, optimizers = build(args)
    average = copy.deepcopy(networks["generator"]).eval().requires_grad_(False)
    if args.amp:  # not for the average: samples are drawn in float32
        in_bfloat16 = torch.autocast(args.device, torch.bfloat16)  # a decorator
        for network in networks.values():
            network.forward = in_bfloat16(network.forward)
    networks["generator_ema"] = average
    if WORLD_SIZE > 1 and args.cuda:  # PyTorch has no SyncBatchNorm for CPUs
        networks = nn.SyncBatchNorm.convert_sync_batchnorm(networks)
    # Conversion and .to() keep the Parameter objects, so the optimizers stay valid
    networks.to(args.device, memory_format=torch.channels_last)
    for optimizer in optimizers:
        if WORLD_SIZE > 1:
            optimizer.register_step_pre_hook(average_gradients)
        optimizer.param_groups[0]["capturable"] = args.cuda  # a graph can count the steps
    if checkpoint:
        for name, network in networks.items():
            network.load_state_dict(checkpoint[name])
        for optimizer, state in zip(optimizers, checkpoint["optimizers"], strict=True):
            state["param_groups"] = optimizer.state_dict()["param_groups"]  # this run's lr
            optimizer.load_state_dict(state)
    return networks, optimizers


def float_tensors(network: nn.Module) -> list[Tensor]:
    """Its weights and BatchNorm statistics, not copies."""
    return [x for x in network.state_dict().values() if x.is_floating_point()]


def set_seed(*numbers: int) -> None:
    torch.manual_seed(hash(numbers))  # hash() salts strings, not integers


def record(run_step: Callable[[], dict]) -> Callable[[], dict]:
    """Records the kernels of a step without running them. Returns a function that does."""
    graph = torch.cuda.CUDAGraph()
    # The default stream cannot be recorded; main() has selected another
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        metrics = run_step()

    def replay() -> dict[str, Tensor]:
        graph.replay()
        return metrics  # the same tensors, with new values

    return replay


def make_run(args: Namespace) -> Path:
    """The folder for a new run: --out, or the first unused of runs/NAME-1, ..."""
    if args.out:
        run = Path(args.out)
        # Killed before its first checkpoint: start over
        if args.resume and (run / "samples").exists():
            return run
        run.mkdir(parents=True, exist_ok=True)
        if any(run.iterdir()):
            sys.exit(f"{run} is not empty. Choose a new folder, or --resume a run.")
        (run / "samples").mkdir()
        return run
    number = 1
    while True:
        run = Path(f"runs/{SCRIPT}-{number}")
        try:
            run.mkdir(parents=True)
            return run
        except FileExistsError:
            number += 1


def all_finite(networks: nn.ModuleDict) -> bool:
    """False if a weight is infinite or NaN."""
    weights = torch.cat([weight.flatten() for weight in networks.parameters()])
    return bool(weights.isfinite().all())  # the CPU waits for the GPU


def save_checkpoint(run: Path, networks: nn.ModuleDict, optimizers: list, progress: dict) -> None:
    state = {name: network.state_dict() for name, network in networks.items()}
    state["optimizers"] = [optimizer.state_dict() for optimizer in optimizers]
    part = run / "checkpoint.part"
    torch.save(state | progress, part)
    part.replace(run / "checkpoint.pt")  # atomic: a kill leaves the old or the new


def train(args: Namespace, checkpoint: dict) -> None:
    """Trains, and writes metrics, pictures and checkpoints."""
    images, labels, args.classes = load_data(args.data)
    _, args.channels, args.image_size, _ = images.shape
    step_size = images_per_step(args)  # over all processes
    if step_size > len(images):
        sys.exit(f"A step takes {step_size} of {len(images)} images: lower --batch-size.")
    if args.batch_size % WORLD_SIZE:
        sys.exit(f"--batch-size must be a multiple of the {WORLD_SIZE} processes.")
    data_sizes = [len(images), step_size]  # which images a step gets depends on both
    if checkpoint and checkpoint.get("data_sizes") != data_sizes:
        sys.exit(f"{args.out} was started with another number of images or --batch-size.")
    networks, optimizers = make_networks(args, checkpoint)
    if args.cuda and images.nbytes < torch.cuda.mem_get_info()[0] / 2:  # half of what is free
        images, labels = images.to(args.device), labels.to(args.device)

    # Every batch lies at the same address, as the CUDA graph needs
    real = torch.empty(step_size // WORLD_SIZE, *images.shape[1:], device=args.device)
    real_labels = torch.empty(len(real), dtype=torch.long, device=args.device)

    run_step = partial(train_step, networks, optimizers, args, real, real_labels)

    steps_per_epoch = len(images) // step_size  # the last, partial batch is dropped
    first_step = checkpoint.get("step", 0)
    last_step = min((args.epochs or math.inf) * steps_per_epoch, args.steps or math.inf)
    csv_text = checkpoint.get("metrics", "")
    # Metrics not yet in a row; it may span a restart
    unlogged = [x.to(args.device) for x in checkpoint.get("unlogged", [])]
    averages = float_tensors(networks["generator_ema"])
    weights = float_tensors(networks["generator"])
    began = time.monotonic()
    last_save = -math.inf  # the first checkpoint follows the first step

    if RANK == 0:
        if not checkpoint:
            args.out = str(make_run(args))
        run = Path(args.out)
        print(f"{len(images):,} images, {steps_per_epoch} steps an epoch")
        print(f"Steps {first_step} to {last_step} on {args.device}, pictures in {run}/samples")
        if first_step >= last_step:
            print("This run is done. More --steps or --epochs extend it.")
            return
        (run / "samples").mkdir(exist_ok=True)
        (run / "config.json").write_text(json.dumps(vars(args), indent=2))
    bar = tqdm(range(first_step, last_step), SCRIPT, disable=RANK > 0)
    for step in bar:
        epoch, batch = divmod(step, steps_per_epoch)
        if batch == 0 or step == first_step:
            set_seed(args.seed, epoch)
            order = torch.randperm(len(images)).to(images.device)
        index = order[batch * step_size : (batch + 1) * step_size]
        index = index[RANK::WORLD_SIZE]  # the share of this process
        real.copy_(images[index].to(args.device))  # as bytes
        real.div_(127.5).sub_(1)  # to [-1, 1]
        real_labels.copy_(labels[index])
        if args.cuda and args.graph and step == first_step + WARMUP_STEPS:
            run_step = record(run_step)
        set_seed(args.seed, step, RANK)
        metrics = run_step()
        decay = min(args.ema, (1 + step) / (20 + step))  # warm-up: 0.05 at step 0
        # average = decay * average + (1 - decay) * weight, in one launch
        torch._foreach_lerp_(averages, weights, 1 - decay)
        if RANK > 0:
            continue

        done = step + 1
        # Copies: the next replay overwrites metrics
        unlogged.append(torch.stack(list(metrics.values())).detach())
        row_due = done % args.log_every == 0 or done == last_step
        save_due = time.monotonic() - last_save > SAVE_EVERY or done == last_step
        if (row_due or save_due) and not all_finite(networks):
            sys.exit(f"Weights are not finite at step {done}. Try a lower --lr.")
        if row_due:
            means = torch.stack(unlogged).mean(0).tolist()
            columns = {name: f"{mean:.6g}" for name, mean in zip(metrics, means, strict=True)}
            bar.set_postfix(columns)
            if not csv_text:
                csv_text = f"step,epoch,{','.join(columns)},seconds\n"
            seconds = time.monotonic() - began
            row = f"{done},{epoch + 1},{','.join(columns.values())},{seconds:.1f}\n"
            (run / "metrics.csv").write_text(csv_text + row)
            if done % args.log_every == 0:  # a resumed run completes a shorter row
                csv_text += row
                unlogged.clear()
        if done % args.sample_every == 0 or done == last_step:
            picture = draw_samples(networks["generator_ema"], args)
            picture.save(run / f"samples/step-{done:06d}.png")
        if save_due:
            last_save = time.monotonic()
            progress = {"script": SCRIPT, "args": vars(args), "data_sizes": data_sizes}
            progress |= {"step": done, "metrics": csv_text, "unlogged": unlogged}
            save_checkpoint(run, networks, optimizers, progress)
            if step == first_step:
                bar.write(f'To resume: python {SCRIPT}.py --resume --out "{run}"')


def find_checkpoint(args: Namespace) -> Path:
    """The checkpoint of --out, or of the newest run."""
    if args.out:
        return Path(args.out, "checkpoint.pt")
    paths = sorted(Path("runs").glob(f"{SCRIPT}-*/checkpoint.pt"), key=os.path.getmtime)
    if not paths:
        sys.exit(f"There is no {SCRIPT} run in runs/.")
    return paths[-1]


def parse_args(argv: list[str] | None = None) -> tuple[Namespace, dict]:
    """The options, and the checkpoint to continue from ({} for a new run)."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add_options(parser)
    args = parser.parse_args(argv)
    checkpoint = {}
    if args.resume or args.generate:
        path = find_checkpoint(args)
        if path.exists():
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        elif args.generate:
            sys.exit(f"There is no {path}.")
    if checkpoint:
        if checkpoint["script"] != SCRIPT:
            sys.exit(f"{path} was written by {checkpoint['script']}.py.")
        saved = checkpoint["args"] | {"out": str(path.parent)}
        del saved["cuda"]  # this machine may be another one
        if args.epochs or args.steps:  # a new limit replaces both old ones
            saved |= {"epochs": None, "steps": None}
        # Parse again on top of the saved options: only typed ones override them
        args = parser.parse_args(argv, Namespace(**saved))
    if not args.epochs and not args.steps:
        args.epochs = 25
    if args.cuda and LOCAL_RANK not in range(torch.cuda.device_count()):
        parser.error("--cuda needs one GPU for each process")
    args.device = "cuda" if args.cuda else "cpu"
    return args, checkpoint


def main(argv: list[str] | None = None) -> None:
    args, checkpoint = parse_args(argv)
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")  # allow TF32
    if args.cuda:
        torch.cuda.set_device(LOCAL_RANK)
        torch.cuda.set_stream(torch.cuda.Stream())  # for record()
    if WORLD_SIZE > 1:
        torch.distributed.init_process_group("nccl" if args.cuda else "gloo")
    try:
        if args.generate:
            generate(args, checkpoint)
        else:
            train(args, checkpoint)
    except KeyboardInterrupt:
        sys.exit(130)
    if WORLD_SIZE > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
