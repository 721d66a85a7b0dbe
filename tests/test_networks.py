"""What stands above the banner, against the papers' formulas: networks, losses, the training step.

The step is computed twice: by train_step, and here from the same weights and the same noise.
"""

import copy
import math
from argparse import Namespace
from collections.abc import Callable, Iterator

import pytest
import torch
from conftest import EACH_SCRIPT, SCRIPTS, SEVERAL, load
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

CONVOLUTIONAL = [name for name in SCRIPTS if name != "vanilla_gan.py"]
CONDITIONAL = ["cgan.py", "acgan.py"]
CLASSES = ["a", "b", "c"]
LATENT_DIM = 20


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def arguments(name: str, *argv: object, channels: int = 1, size: int = 8) -> Namespace:
    args, _ = load(name).parse_args([*map(str, argv), "--no-cuda"])
    data = {"channels": channels, "image_size": size, "classes": CLASSES}
    return Namespace(**{**vars(args), **data})


def make(name: str, channels: int = 1, size: int = 8) -> tuple[nn.Module, nn.Module]:
    """A narrow generator and its discriminator or critic."""
    width = [] if name == "vanilla_gan.py" else ["--width", 4]
    argv = [*width, "--latent-dim", LATENT_DIM]
    networks, _ = load(name).build(arguments(name, *argv, channels=channels, size=size))
    return tuple(networks.values())


def one_hot(labels: Tensor) -> Tensor:
    return torch.eye(len(CLASSES))[labels]


def draw(name: str, generator: nn.Module, z: Tensor, y: Tensor) -> Tensor:
    return generator(z, y) if name in CONDITIONAL else generator(z)


def judge_of(name: str, judge: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The logits or scores; acgan's D returns those of the classes too."""
    if name == "cgan.py":
        return judge(x, y)
    if name == "acgan.py":
        return judge(x)[0]
    return judge(x)


# Networks

SIZES = [(name, size) for name in CONVOLUTIONAL for size in (8, 16, 32, 128)]
SIZES += [("vanilla_gan.py", 8), ("vanilla_gan.py", 28)]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("name", "size"), SIZES)
def test_images_are_within_one_and_each_is_judged(name: str, size: int, channels: int) -> None:
    generator, judge = make(name, channels, size)
    y = one_hot(torch.tensor([0, 2, 1]))
    images = draw(name, generator, torch.randn(3, LATENT_DIM), y)
    assert images.shape == (3, channels, size, size)
    assert judge_of(name, judge, images, y).shape == (3,)
    images = draw(name, generator.eval(), 1e12 * torch.randn(3, LATENT_DIM), y)
    assert -1 <= images.min() < -0.9  # all of the range, and no more of it
    assert 0.9 < images.max() <= 1


@EACH_SCRIPT
def test_what_networks_return_is_float32_under_autocast_so_that_losses_are(script: str) -> None:
    generator, judge = make(script)
    y = one_hot(torch.tensor([0, 2, 1]))
    with torch.autocast("cpu", torch.bfloat16):
        images = draw(script, generator, torch.randn(3, LATENT_DIM), y)
        logits = judge_of(script, judge, images, y)
    assert images.dtype == logits.dtype == torch.float32
    assert (images != images.bfloat16()).float().mean() < 0.5  # it was computed in bfloat16


@pytest.mark.parametrize(("size", "depth"), [(8, 2), (64, 5)])
@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_networks_keep_dcgans_guidelines_at_each_size(name: str, size: int, depth: int) -> None:
    generator, judge = make(name, size=size)
    g_layers = list(generator.layers)
    d_layers = list(judge.layers)
    up = [nn.ConvTranspose2d, nn.BatchNorm2d, nn.ReLU]  # no pooling, no linear layer
    down = [nn.Conv2d, nn.BatchNorm2d, nn.LeakyReLU]
    if name in ("wgan_gp.py", "r3gan.py"):  # the penalty is on each sample alone
        down.remove(nn.BatchNorm2d)
    g_types = (depth - 1) * up + [nn.ConvTranspose2d, nn.Tanh]
    d_types = [nn.Conv2d, nn.LeakyReLU, *(depth - 2) * down, nn.Conv2d]
    assert [type(layer) for layer in g_layers] == g_types
    assert [type(layer) for layer in d_layers] == d_types
    assert d_layers[1].negative_slope == d_layers[-2].negative_slope == 0.2
    ups = [layer for layer in g_layers if isinstance(layer, nn.ConvTranspose2d)]
    downs = [layer for layer in d_layers if isinstance(layer, nn.Conv2d)]
    assert ups[-1].in_channels == downs[0].out_channels == 4  # --width, next to the image
    assert ups[0].out_channels == downs[-1].in_channels == 4 * size // 8  # at 4x4
    assert {conv.stride for conv in ups[1:] + downs[:-1]} == {(2, 2)}


ADAM = {"wgan_gp.py": (1e-4, (0.0, 0.9)), "r3gan.py": (2e-4, (0.0, 0.99))}


@EACH_SCRIPT
def test_settings_are_the_papers(script: str) -> None:
    """golden.json pins what they and the initial weights lead to."""
    args = arguments(script)
    _, optimizers = load(script).build(args)
    for optimizer in optimizers:
        (group,) = optimizer.param_groups
        if script == "wgan.py":
            assert isinstance(optimizer, torch.optim.RMSprop)
            assert (group["lr"], group["alpha"], group["momentum"]) == (5e-5, 0.99, 0)
        else:
            assert isinstance(optimizer, torch.optim.Adam)
            assert (group["lr"], group["betas"]) == ADAM.get(script, (2e-4, (0.5, 0.999)))
    assert args.batch_size == (64 if "wgan" in script or script == "r3gan.py" else 128)


def test_a_label_changes_the_image_and_the_logit_of_its_sample_alone() -> None:
    generator, discriminator = (network.eval() for network in make("cgan.py", size=16))
    y, other = one_hot(torch.tensor([[0, 1, 2], [0, 0, 1]]))
    for network, x in ((generator, torch.randn(3, 20)), (discriminator, torch.randn(3, 1, 16, 16))):
        moved = (network(x, y) - network(x, other)).abs().reshape(3, -1).amax(dim=1)
        assert moved[0] == 0
        assert moved[1:].min() > 1e-5


# The training step


@pytest.fixture
def take_step() -> Iterator[Callable[..., Namespace]]:
    """In float64, as is what the test computes from it."""
    torch.set_default_dtype(torch.float64)
    yield step_once
    torch.set_default_dtype(torch.float32)


def step_once(name: str, *argv: object, bias: float | None = None) -> Namespace:
    """Calls train_step, with one update of D, on six random images. Dropout is off.

    Returns the networks before and after it, its results, and the noise it drew, drawn again.
    """
    size = 8 if name == "vanilla_gan.py" else 16  # 16: BatchNorm in D too
    one_update = [SEVERAL[name], 1] if name in SEVERAL else []
    argv = ["--latent-dim", LATENT_DIM, *one_update, *argv]
    args = arguments(name, *argv, channels=2, size=size)
    networks, optimizers = load(name).build(args)
    for module in networks.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if bias is not None:  # of D's last layer
        nn.init.constant_(list(networks.parameters())[-1], bias)
    before = copy.deepcopy(networks)
    real = torch.rand(6, 2, size, size) * 2 - 1
    labels = torch.arange(6) % len(CLASSES)

    torch.manual_seed(1)
    with torch.no_grad():
        fake = draw(name, before["generator"], torch.randn(6, LATENT_DIM), one_hot(labels))
    epsilon = torch.rand(6, 1, 1, 1) if name == "wgan_gp.py" else torch.empty(0)
    z = torch.randn(6, LATENT_DIM)
    torch.manual_seed(1)
    metrics = load(name).train_step(networks, optimizers, args, real, labels)
    step = Namespace(name=name, before=before, after=networks, metrics=metrics)
    return Namespace(**vars(step), real=real, labels=labels, fake=fake, epsilon=epsilon, z=z)


def judged(step: Namespace, answer: Callable[..., Tensor] = judge_of) -> tuple[Tensor, ...]:
    """What D says of real and of fake, apart, and, after its update, of G's images of new noise."""
    y = one_hot(step.labels)
    _, before = step.before.values()
    _, after = step.after.values()
    images = draw(step.name, step.before["generator"], step.z, y)
    real = answer(step.name, before, step.real, y)
    fake = answer(step.name, before, step.fake, y)
    return real, fake, answer(step.name, after, images, y)


def close(found: Tensor, expected: Tensor, rtol: float = 1e-7, atol: float = 1e-9) -> None:
    torch.testing.assert_close(found.detach(), expected.detach(), rtol=rtol, atol=atol)


def assert_step(
    step: Namespace, d_loss: Tensor, g_loss: Tensor, columns: dict, **limits: float
) -> None:
    """The step reported these and left these losses' gradients.

    D's are still those of its own update: G's has added nothing to them.
    """
    columns = columns | {"d_loss": d_loss, "g_loss": g_loss}
    for name, value in step.metrics.items():
        close(value, columns[name], **limits)
    for network, loss in zip(step.before, (g_loss, d_loss), strict=True):
        old = list(step.before[network].parameters())
        new = list(step.after[network].parameters())
        gradients = torch.autograd.grad(loss, old, retain_graph=True)
        for parameter, gradient in zip(new, gradients, strict=True):
            close(parameter.grad, gradient, **{"rtol": 1e-5, **limits})


def log_sigmoid(logits: Tensor) -> Tensor:
    """Written out, which is exact enough in float64."""
    return -torch.log1p(torch.exp(-logits))


def averages(real: Tensor, fake: Tensor) -> dict[str, Tensor]:
    """Of D(x) and D(G(z)), from logits."""
    return {"D(x)": log_sigmoid(real).exp().mean(), "D(G(z))": log_sigmoid(fake).exp().mean()}


@pytest.mark.parametrize("bias", [None, 500.0], ids=["", "D is wrong and sure"])
@pytest.mark.parametrize("name", ["vanilla_gan.py", "dcgan.py", "cgan.py"])
def test_step_of_a_classifier_descends_cross_entropies(take_step, name: str, bias) -> None:
    """Where D takes everything for real, a sigmoid before the loss would leave no gradient."""
    step = take_step(name, bias=bias)
    real, fake, again = judged(step)
    d_loss = -log_sigmoid(real).mean() - log_sigmoid(-fake).mean()
    assert_step(step, d_loss, -log_sigmoid(again).mean(), averages(real, fake))


def test_step_of_vanilla_with_minimax_descends_its_loss(take_step) -> None:
    step = take_step("vanilla_gan.py", "--loss", "minimax")
    real, fake, again = judged(step)
    d_loss = -log_sigmoid(real).mean() - log_sigmoid(-fake).mean()
    assert_step(step, d_loss, log_sigmoid(-again).mean(), averages(real, fake))


@pytest.mark.parametrize(("coding", "a", "b", "c"), [("binary", 0, 1, 1), ("pearson", -1, 1, 0)])
def test_step_of_lsgan_descends_its_least_squares(take_step, coding: str, a, b, c) -> None:
    step = take_step("lsgan.py", "--coding", coding)
    real, fake, again = judged(step)
    d_loss = ((real - b) ** 2 + (fake - a) ** 2).mean() / 2
    columns = {"D(x)": real.mean(), "D(G(z))": fake.mean()}
    assert_step(step, d_loss, ((again - c) ** 2).mean() / 2, columns)


def test_step_of_acgan_adds_the_cross_entropy_of_the_class_to_both_losses(take_step) -> None:
    step = take_step("acgan.py")
    real, fake, again = judged(step)
    classes = judged(step, lambda _name, judge, x, _y: judge(x)[1])
    entropies = [-x.log_softmax(1)[torch.arange(6), step.labels].mean() for x in classes]
    right = [(x.argmax(1) == step.labels).float().mean() for x in classes]
    d_loss = -log_sigmoid(real).mean() - log_sigmoid(-fake).mean() + entropies[0] + entropies[1]
    g_loss = -log_sigmoid(again).mean() + entropies[2]
    columns = averages(real, fake) | {"class_real": right[0], "class_fake": right[1]}
    assert_step(step, d_loss, g_loss, columns)


@pytest.mark.parametrize(
    ("name", "weight"), [("wgan.py", 0), ("wgan_gp.py", 0), ("wgan_gp.py", 3.5)]
)
def test_step_of_a_critic_descends_the_wasserstein_loss(take_step, name: str, weight) -> None:
    """The penalty is on one random point between each real and fake image."""
    step = take_step(name, *(["--gp-weight", weight] if name == "wgan_gp.py" else []))
    real, fake, again = judged(step)
    columns = {"wasserstein": real.mean() - fake.mean()}
    c_loss = -columns["wasserstein"]
    if name == "wgan_gp.py":
        x_hat = (step.epsilon * step.real + (1 - step.epsilon) * step.fake).requires_grad_()
        scores = step.before["critic"](x_hat)
        (slope,) = torch.autograd.grad(scores.sum(), x_hat, create_graph=True)
        columns["penalty"] = ((slope.square().sum(dim=(1, 2, 3)).sqrt() - 1) ** 2).mean()
        c_loss = c_loss + weight * columns["penalty"]
    assert_step(step, c_loss, -again.mean(), columns)


@pytest.mark.parametrize("gamma", [0, 1, 2.5])
def test_step_of_r3gan_compares_pairs_and_penalizes_both_slopes(take_step, gamma: float) -> None:
    """Pairs are a real image and a fake of the same place in the batch."""
    step = take_step("r3gan.py", "--gamma", gamma)
    step.real.requires_grad_()
    step.fake.requires_grad_()
    real, fake, again = judged(step)
    slopes = torch.autograd.grad(real.sum() + fake.sum(), [step.real, step.fake], create_graph=True)
    r1, r2 = (slope.square().sum(dim=(1, 2, 3)).mean() for slope in slopes)
    d_loss = -log_sigmoid(real - fake).mean() + gamma / 2 * (r1 + r2)
    updated = step.after["discriminator"]
    g_loss = -log_sigmoid(again - updated(step.real)).mean()
    columns = {"r1": r1, "r2": r2, "pairs_right": (real > fake).float().mean()}
    assert_step(step, d_loss, g_loss, columns, rtol=1e-12, atol=1e-12)


@EACH_SCRIPT
def test_step_updates_d_once_for_each_batch_and_then_g_once(script: str) -> None:
    batches = 3 if script in SEVERAL else 1
    argv = [SEVERAL[script], batches] if script in SEVERAL else []
    args = arguments(script, "--latent-dim", 4, *argv)
    networks, optimizers = load(script).build(args)
    graphs = []
    networks["generator"].register_forward_hook(
        lambda _module, _inputs, images: graphs.append(images.requires_grad)
    )
    real = torch.rand(5 * batches, 1, 8, 8)
    load(script).train_step(networks, optimizers, args, real, torch.zeros(len(real)).long())
    g_states, d_states = (optimizer.state.values() for optimizer in optimizers)
    assert {int(state["step"]) for state in g_states} == {1}
    assert {int(state["step"]) for state in d_states} == {batches}
    assert graphs == [False] * batches + [True]  # D's fakes carry no graph of G
    assert all(parameter.requires_grad for parameter in networks.parameters())


@pytest.mark.parametrize("norm", [0.0, 0.25, 1.0, 4.0])
def test_penalty_and_its_gradient_are_the_closed_forms(norm: float) -> None:
    """Where the gradient is zero its norm has no derivative; it must not be NaN."""
    grad = torch.randn(3, 2, 5, 7, dtype=torch.float64)
    grad = grad * norm / grad.flatten(1).norm(dim=1).view(3, 1, 1, 1)
    grad.requires_grad_()
    penalty = load("wgan_gp.py").gradient_penalty(grad)
    close(penalty, torch.tensor((norm - 1) ** 2).double())
    (found,) = torch.autograd.grad(penalty, grad)
    close(found, 2 / 3 * (norm - 1) * grad / norm if norm else torch.zeros_like(grad))


def test_wgan_clips_all_weights_and_no_statistics_after_the_critics_step(take_step) -> None:
    """RMSprop's first step is 10 lr: a clip before it would leave much larger weights."""
    step = take_step("wgan.py", "--clip", 0.003, "--lr", 0.1)
    clip = torch.tensor(0.003)
    for parameter in step.after["critic"].parameters():
        assert parameter.abs().max() <= clip
    largest = [p.abs().max() for p in step.after["critic"].parameters()]
    assert largest.count(clip) > len(largest) / 2
    assert max(p.abs().max() for p in step.after["generator"].parameters()) > 0.5
    assert max(b.max() for name, b in step.after["critic"].named_buffers() if "var" in name) > 0.1


# f-GAN: the divergences of P = N(0, 1) and Q = N(1, 1.5^2), by sums over a fine grid

GRID = torch.linspace(-30, 30, 60_001, dtype=torch.float64)
P = Normal(torch.tensor(0.0).double(), torch.tensor(1.0).double())
Q = Normal(torch.tensor(1.0).double(), torch.tensor(1.5).double())
LOG_RATIO = P.log_prob(GRID) - Q.log_prob(GRID)
# The integral of sqrt(p q)
OVERLAP = math.sqrt(2 * 1.5 / (1 + 1.5**2)) * math.exp(-1 / (4 * (1 + 1.5**2)))


def expectation(distribution: Normal, values: Tensor) -> Tensor:
    return (distribution.log_prob(GRID).exp() * values).sum() * (GRID[1] - GRID[0])


def jensen_shannon() -> Tensor:
    middle = torch.logaddexp(P.log_prob(GRID), Q.log_prob(GRID)) - math.log(2)
    to_middle = [expectation(side, side.log_prob(GRID) - middle) for side in (P, Q)]
    return (to_middle[0] + to_middle[1]) / 2


# The divergence, and the v at which g_f(v) is the best T, which is f'(p/q)
RATIO = LOG_RATIO.exp()
BEST = {
    "gan": (2 * jensen_shannon() - math.log(4), LOG_RATIO),
    "js": (2 * jensen_shannon(), LOG_RATIO),
    "kl": (kl_divergence(P, Q), 1 + LOG_RATIO),
    "reverse-kl": (kl_divergence(Q, P), LOG_RATIO),
    "pearson": (expectation(Q, (RATIO - 1) ** 2), 2 * (RATIO - 1)),
    "squared-hellinger": (torch.tensor(2 - 2 * OVERLAP).double(), LOG_RATIO / 2),
}


@pytest.mark.parametrize("name", BEST)
def test_fgan_estimates_the_divergence_of_two_gaussians_with_the_best_t_alone(name: str) -> None:
    activation, conjugate = load("fgan.py").DIVERGENCES[name]
    divergence, best = BEST[name]
    best = best.clamp(-30, 30)

    def estimate(v: Tensor) -> Tensor:
        t = activation(v.clamp(-30, 30))
        return expectation(P, t) - expectation(Q, conjugate(t))

    close(estimate(best), divergence, rtol=1e-5, atol=1e-6)
    others = [best + 0.1, best - 0.1, 0.9 * best, 1.1 * best]
    others += [best + 0.1 * GRID.sin(), best.roll(300)]
    gaps = [divergence - estimate(other) for other in others]
    assert min(gaps) > 1e-4
    assert BEST.keys() == load("fgan.py").DIVERGENCES.keys()


@pytest.mark.parametrize("loss", ["trick", "exact"])
@pytest.mark.parametrize("name", BEST)
def test_step_of_fgan_moves_d_up_and_g_down_its_estimate(take_step, name: str, loss: str) -> None:
    step = take_step("fgan.py", "--divergence", name, "--loss", loss)
    activation, conjugate = load("fgan.py").DIVERGENCES[name]
    real, fake, again = (activation(v) for v in judged(step))
    estimate = real.mean() - conjugate(fake).mean()
    g_loss = -again.mean() if loss == "trick" else -conjugate(again).mean()
    columns = {"T(x)": real.mean(), "T(G(z))": fake.mean(), "divergence": estimate}
    assert_step(step, -estimate, g_loss, columns)
