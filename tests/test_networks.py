"""The part of each script above the banner: networks, losses and the training step, against the papers' formulas."""

import copy
from argparse import Namespace
from dataclasses import dataclass, field

import pytest
import torch
from conftest import SCRIPTS, load
from torch import Tensor, nn

NAMES = [script.removesuffix(".py") for script in SCRIPTS]
CONV = ["dcgan", "cgan", "wgan", "wgan_gp", "lsgan", "acgan", "fgan"]
LOGITS = ["vanilla_gan", "dcgan", "cgan"]  # the scripts whose D is a classifier of real and fake, and nothing else
CONDITIONAL = ["cgan", "acgan"]
MODULES = {name: load(name) for name in NAMES}
CLASSES = ["a", "b", "c"]
SEVERAL = {"vanilla_gan": "--d-steps", "wgan": "--n-critic", "wgan_gp": "--n-critic"}  # updates of D in a step

for_each_script = pytest.mark.parametrize("name", NAMES)
for_each_conv = pytest.mark.parametrize("name", CONV)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def make(name: str, channels: int = 1, size: int = 8, latent_dim: int = 5) -> tuple[nn.Module, nn.Module]:
    """A generator and a discriminator or critic, narrow ones where the width can be chosen."""
    module, classes = MODULES[name], [len(CLASSES)] if name in CONDITIONAL else []
    width = {} if name == "vanilla_gan" else {"width": 4}
    judge = getattr(module, "Critic" if name.startswith("wgan") else "Discriminator")
    shape = [channels, *classes, size]
    return module.Generator(latent_dim, *shape, **width), judge(*shape, **width)


def condition(name: str, count: int) -> list[Tensor]:
    """What G takes beside z: the labels in the conditional scripts, nothing elsewhere."""
    return [torch.arange(count) % len(CLASSES)] if name in CONDITIONAL else []


def logits_of(name: str, judge: nn.Module, x: Tensor) -> Tensor:
    """What D says about real or fake; cgan's is told the labels, acgan's answers with those of the classes too."""
    answer = judge(x, *(condition(name, len(x)) if name == "cgan" else []))
    return answer[0] if name == "acgan" else answer


def arguments(name: str, *argv: object, channels: int = 1, size: int = 8) -> Namespace:
    off = ["--kernels", "off"] if name.startswith("wgan") else []  # the formula; test_kernels.py compares
    args, _ = MODULES[name].parse_args([*map(str, argv), *off])
    return Namespace(**{**vars(args), "channels": channels, "image_size": size, "classes": CLASSES})


# Networks

SHAPES = [(name, size) for name in CONV for size in (8, 16, 32, 128)] + [("vanilla_gan", 8), ("vanilla_gan", 28)]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name, size", SHAPES)
def test_generators_give_images_within_one_and_judges_one_number_for_each(name: str, size: int, channels: int) -> None:
    generator, judge = make(name, channels, size)
    for count in (2, 3):
        images = generator(torch.randn(count, 5), *condition(name, count))
        assert images.shape == (count, channels, size, size)
        assert logits_of(name, judge, images).shape == (count,)
    images = generator.eval()(1e4 * torch.randn(8, 5), *condition(name, 8))
    assert -1 <= images.min() < -0.9  # all of the range, and no more of it
    assert 0.9 < images.max() <= 1


@for_each_script
def test_what_networks_return_is_float32_under_autocast_so_that_losses_are(name: str) -> None:
    generator, judge = make(name)
    with torch.autocast("cpu", torch.bfloat16):
        images = generator(torch.randn(4, 5), *condition(name, 4))
        assert images.dtype == logits_of(name, judge, images).dtype == torch.float32
    assert (images != images.bfloat16()).float().mean() < 0.5  # but it was computed in bfloat16


@pytest.mark.parametrize("size, depth", [(8, 2), (64, 5)])
@for_each_conv
def test_networks_keep_dcgans_guidelines_and_their_depth_follows_the_size(name: str, size: int, depth: int) -> None:
    generator, judge = make(name, size=size)
    g_layers, d_layers = ([m for m in network.modules() if not list(m.children())] for network in (generator, judge))
    up = [nn.ConvTranspose2d, nn.BatchNorm2d, nn.ReLU]  # no pooling, no linear layer
    assert [type(layer) for layer in g_layers] == (depth - 1) * up + [nn.ConvTranspose2d, nn.Tanh]
    down = [nn.Conv2d, *([] if name == "wgan_gp" else [nn.BatchNorm2d]), nn.LeakyReLU]
    assert [type(layer) for layer in d_layers] == [nn.Conv2d, nn.LeakyReLU, *(depth - 2) * down, nn.Conv2d]
    assert all(layer.negative_slope == 0.2 for layer in d_layers if isinstance(layer, nn.LeakyReLU))
    ups, downs = [m for m in g_layers if isinstance(m, up[0])], [m for m in d_layers if isinstance(m, nn.Conv2d)]
    assert ups[0].out_channels == downs[-1].in_channels == 4 * size // 8  # at 4x4
    assert all(conv.stride == (2, 2) for conv in ups[1:] + downs[:-1])


@for_each_conv
def test_initial_weights_are_normal_with_deviation_002(name: str) -> None:
    networks, _ = MODULES[name].build(arguments(name, "--latent-dim", 64, size=32))
    for module in networks.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            weights, count = module.weight / 0.02, module.weight.numel()
            assert abs(weights.mean()) < 5 / count**0.5 > abs(weights.std() - 1)
            assert abs((weights.abs() > 1).double().mean() - 0.3173) < 5 / count**0.5  # of a uniform: 0.42
            assert module.bias is None or not module.bias.any()
        elif isinstance(module, nn.BatchNorm2d):
            scale = (module.weight - 1) / 0.02
            assert scale.abs().max() < 5 and abs(scale.std() - 1) < 0.4
            assert not module.bias.any()


@for_each_script
def test_optimizers_and_settings_are_the_papers(name: str) -> None:
    args = arguments(name)
    networks, optimizers = MODULES[name].build(args)
    assert list(networks) == ["generator", "critic" if name.startswith("wgan") else "discriminator"]
    for network, optimizer in zip(networks.values(), optimizers, strict=True):
        (group,) = optimizer.param_groups
        assert [id(p) for p in group["params"]] == [id(p) for p in network.parameters()]
        if name == "wgan":
            assert isinstance(optimizer, torch.optim.RMSprop)
            assert (group["lr"], group["alpha"], group["momentum"], group["centered"]) == (5e-5, 0.99, 0, False)
        else:
            assert isinstance(optimizer, torch.optim.Adam)
            assert group["lr"] == (1e-4 if name == "wgan_gp" else 2e-4)
            assert group["betas"] == ((0.0, 0.9) if name == "wgan_gp" else (0.5, 0.999))
        assert not group["weight_decay"]
    assert args.batch_size == (64 if name.startswith("wgan") else 128)
    own = {"wgan": {"n_critic": 5, "clip": 0.01}, "wgan_gp": {"n_critic": 5, "gp_weight": 10}}
    assert own.get(name, {}).items() <= vars(args).items()


# CGAN: the label reaches both networks


def test_a_label_changes_the_image_and_the_logit_of_its_sample_alone() -> None:
    generator, discriminator = (network.eval() for network in make("cgan", size=16))
    z, images = torch.randn(3, 5), torch.randn(3, 1, 16, 16)
    labels, other = torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1])
    for network, x in ((generator, z), (discriminator, images)):
        moved = (network(x, labels) - network(x, other)).abs().flatten(1 if x is z else 0).reshape(3, -1).amax(dim=1)
        assert moved[0] == 0
        assert moved[1:].min() > 1e-5


# WGAN-GP: the penalty


def pair(*shape: int) -> tuple[Tensor, Tensor]:
    return torch.randn(*shape, dtype=torch.float64), torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("norm", [0.0, 0.25, 1.0, 4.0])
def test_penalty_of_a_linear_critic_is_its_closed_form(norm: float) -> None:
    """f(x) = <w, x>: the gradient is w everywhere. At w = 0 there is none of the norm; it must not be NaN."""
    weight = torch.randn(2, 5, 7, dtype=torch.float64)
    weight = nn.Parameter(weight * norm / weight.norm())
    penalty = MODULES["wgan_gp"].gradient_penalty(lambda x: (x * weight).flatten(1).sum(dim=1), *pair(3, 2, 5, 7))
    torch.testing.assert_close(penalty, torch.tensor((norm - 1) ** 2, dtype=torch.float64))
    (grad,) = torch.autograd.grad(penalty, weight)
    torch.testing.assert_close(grad, 2 * (norm - 1) * weight.detach() / norm if norm else torch.zeros_like(weight))


def test_penalty_draws_one_epsilon_in_0_1_for_each_sample_anew_at_every_call() -> None:
    (real, fake), seen = pair(2000, 3, 4, 5), []

    def critic(x: Tensor) -> Tensor:
        seen.append(x.detach().clone())
        return x.sum(dim=(1, 2, 3))

    for _ in range(2):
        MODULES["wgan_gp"].gradient_penalty(critic, real, fake)
    assert not torch.equal(*seen)
    on_line = ((seen[0] - fake) * (real - fake)).flatten(1).sum(1) / (real - fake).square().flatten(1).sum(1)
    line = on_line.view(-1, 1, 1, 1)
    torch.testing.assert_close(seen[0], line * real + (1 - line) * fake)  # every pixel at the same fraction
    assert 0 <= on_line.min() < 0.01
    assert 0.99 < on_line.max() <= 1
    assert len(on_line.unique()) > 1900
    quarters = on_line.sort().values[[500, 1000, 1500]]
    torch.testing.assert_close(quarters, torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64), atol=0.06, rtol=0)


# WGAN: the clip


def test_clip_clamps_all_parameters_and_no_buffer() -> None:
    _, critic = make("wgan", size=16)
    buffers = {name: buffer.fill_(5).clone() for name, buffer in critic.named_buffers()}
    before = {name: nn.init.normal_(parameter, std=0.02).clone() for name, parameter in critic.named_parameters()}
    assert any("running_var" in name for name in buffers)
    MODULES["wgan"].clip_weights_(critic, 0.01)
    for name, parameter in critic.named_parameters():
        assert torch.equal(parameter, before[name].clamp(-0.01, 0.01))
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in critic.named_buffers())


def test_wgan_critic_is_within_the_clip_after_every_one_of_its_steps() -> None:
    step, clip = take_step("wgan", "--clip", 0.003, "--lr", 0.1, batches=3), torch.tensor(0.003).item()
    bounds = step.largest_at_forward  # the critic scores real and fake once for each batch, then once for G
    assert bounds[0] == bounds[1] > clip
    assert all(bound <= clip for bound in bounds[2:])
    sizes = torch.cat([parameter.detach().flatten().abs() for parameter in step.networks["critic"].parameters()])
    assert sizes.max() == clip  # RMSprop's first step is 10 lr = 1: a clip before it would leave much larger ones
    assert (sizes == clip).double().mean() > 0.1


# The training step


@dataclass
class Step:
    """One call of train_step and what could be seen from outside while it ran."""

    networks: nn.ModuleDict
    before: nn.ModuleDict  # a copy
    batches: list[Tensor]
    labels: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)  # "G" and "D", the updates in order
    noise: list[Tensor] = field(default_factory=list)  # what G was given
    seen: list[Tensor] = field(default_factory=list)  # what D was given
    labels_seen: list[Tensor] = field(default_factory=list)  # by both
    seen_grad: list[bool] = field(default_factory=list)  # whether a gradient flows back through it
    logits: list[Tensor] = field(default_factory=list)  # what D answered
    classes: list[Tensor] = field(default_factory=list)  # and, in acgan, on the class
    largest_at_forward: list[float] = field(default_factory=list)  # its largest weight at that time
    grads: list[list[list[Tensor | None]]] = field(default_factory=list)  # of G and of D, before each update

    def judged(self) -> list[int]:
        """The first call of D for each batch (wgan_gp calls it a third time, for the penalty; the last is for G)."""
        return list(range(0, len(self.seen) - 1, (len(self.seen) - 1) // len(self.batches)))


def take_step(name: str, *argv: object, batches: int = 1, count: int = 6, bias: float | None = None) -> Step:
    """Builds a script's networks, without dropout, calls train_step once on random images and records it."""
    size = 8 if name == "vanilla_gan" else 16  # 16: BatchNorm in D too
    argv = ("--latent-dim", 20, *argv, *([SEVERAL[name], batches] if name in SEVERAL else []))
    args = arguments(name, *argv, channels=2, size=size)
    networks, optimizers = MODULES[name].build(args)
    generator, judge = networks.values()
    for module in networks.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if bias is not None:
        nn.init.constant_([*judge.parameters()][-1], bias)
    real, labels = torch.rand(batches * count, 2, size, size) * 2 - 1, torch.arange(batches * count) % len(CLASSES)
    step = Step(networks, copy.deepcopy(networks), list(real.split(count)), labels)

    def g_called(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        step.noise.append(inputs[0].clone())
        step.labels_seen += inputs[1:]

    def d_called(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        step.seen.append(inputs[0].detach().clone())
        step.seen_grad.append(inputs[0].requires_grad)
        step.labels_seen += inputs[1:]
        step.largest_at_forward.append(max(p.abs().max().item() for p in judge.parameters()))

    def d_answered(_: nn.Module, __: tuple[Tensor, ...], output: Tensor | tuple[Tensor, Tensor]) -> None:
        if isinstance(output, tuple):
            output, classes = output
            step.classes.append(classes)
        if output.requires_grad:
            output.retain_grad()
        step.logits.append(output)

    def updated(optimizer: torch.optim.Optimizer, *_: object) -> None:
        step.events.append("GD"[optimizers.index(optimizer)])
        both = [list(network.parameters()) for network in (generator, judge)]
        step.grads.append([[None if p.grad is None else p.grad.clone() for p in parameters] for parameters in both])

    generator.register_forward_pre_hook(g_called)
    judge.register_forward_pre_hook(d_called)
    judge.register_forward_hook(d_answered)
    for optimizer in optimizers:
        optimizer.register_step_pre_hook(updated)
    step.metrics = MODULES[name].train_step(networks, optimizers, args, real, labels)
    return step


def log_sigmoid(logits: Tensor) -> Tensor:
    """log(sigmoid(x)) in float64, written out."""
    return -torch.log1p(torch.exp(-logits.detach().double()))


def close(found: Tensor, expected: Tensor, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    torch.testing.assert_close(found.detach().double(), expected.detach().double(), rtol=rtol, atol=atol)


@for_each_script
def test_step_updates_d_once_for_each_batch_of_whatever_size_and_then_g_once(name: str) -> None:
    for batches, count in ((1, 2), (3, 5)) if name in SEVERAL else ((1, 2), (1, 5)):
        step = take_step(name, batches=batches, count=count)
        assert step.events == ["D"] * batches + ["G"]
        assert {len(x) for x in step.noise + step.seen + step.logits} == {count}
        for before, after in zip(step.before.values(), step.networks.values(), strict=True):
            changed = [not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True)]
            assert sum(changed) > len(changed) / 2  # a bias before BatchNorm has no gradient


@for_each_script
def test_step_gives_g_no_gradient_while_d_learns_nor_d_one_while_g_learns(name: str) -> None:
    step = take_step(name, batches=2 if name in SEVERAL else 1)
    (g_grads, d_grads), (g_last, d_last) = step.grads[-2:]
    assert all(grad is None for grad in g_grads)
    assert all(grad is not None and grad.isfinite().all() for grad in g_last)
    assert all(torch.equal(a, b) for a, b in zip(d_grads, d_last, strict=True))  # as D's own update left them
    assert all(parameter.requires_grad for parameter in step.networks.parameters())


@for_each_script
def test_step_shows_d_real_and_fake_apart_and_builds_no_graph_of_g_for_it(name: str) -> None:
    step = take_step(name, batches=2 if name in SEVERAL else 1)
    for real, i in zip(step.batches, step.judged(), strict=True):
        assert torch.equal(step.seen[i], real)
        assert not torch.equal(step.seen[i + 1], real)
        assert step.seen_grad[i : i + 2] == [False, False]
    assert step.seen_grad[-1]


@for_each_script
def test_step_draws_fresh_normal_noise_for_each_update(name: str) -> None:
    step = take_step(name, batches=3 if name in SEVERAL else 1, count=50)
    assert len({tuple(z.flatten().tolist()) for z in step.noise}) == len(step.noise) == len(step.events)
    for z in step.noise:
        assert z.shape == (50, 20)
        assert abs(z.mean()) < 0.15
        assert abs(z.std() - 1) < 0.1


def test_step_of_cgan_uses_the_labels_of_the_batch_everywhere() -> None:
    step = take_step("cgan")
    assert len(step.labels_seen) == 5  # G twice, D three times
    assert all(torch.equal(labels, step.labels) for labels in step.labels_seen)


@pytest.mark.parametrize("name", LOGITS)
def test_step_of_a_classifier_reports_its_losses_and_moves_d_up_the_gradient_of_its_objective(name: str) -> None:
    step = take_step(name)
    real, fake, judged = step.logits
    assert list(step.metrics) == ["D(x)", "D(G(z))", "d_loss", "g_loss"]
    close(step.metrics["D(x)"], log_sigmoid(real).exp().mean())
    close(step.metrics["D(G(z))"], log_sigmoid(fake).exp().mean())
    close(step.metrics["d_loss"], -log_sigmoid(real).mean() - log_sigmoid(-fake).mean())
    close(step.metrics["g_loss"], -log_sigmoid(judged).mean())
    close(judged.grad, (log_sigmoid(judged).exp() - 1) / len(judged), atol=1e-7)  # G: of -mean log sigmoid
    reference = step.before["discriminator"].double()
    real, fake = (logits_of(name, reference, x.double()) for x in step.seen[:2])
    objective = torch.log(torch.sigmoid(real)).mean() + torch.log(1 - torch.sigmoid(fake)).mean()
    for grad, value in zip(step.grads[0][1], torch.autograd.grad(objective, [*reference.parameters()]), strict=True):
        close(grad, -value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("coding", "a", "b", "c"), [("binary", 0, 1, 1), ("pearson", -1, 1, 0)])
def test_step_of_lsgan_has_the_least_squares_of_its_coding(coding: str, a: float, b: float, c: float) -> None:
    step = take_step("lsgan", "--coding", coding)
    real, fake, judged = (logits.detach().double() for logits in step.logits)
    close(step.metrics["D(x)"], real.mean())
    close(step.metrics["D(G(z))"], fake.mean())
    close(step.metrics["d_loss"], ((real - b) ** 2 + (fake - a) ** 2).mean() / 2)
    close(step.metrics["g_loss"], ((judged - c) ** 2).mean() / 2)
    for logits, target in zip(step.logits, (b, a, c), strict=True):
        close(logits.grad, (logits - target) / 6, atol=1e-7)


def test_step_of_acgan_adds_the_cross_entropy_of_the_class_to_both_losses() -> None:
    step = take_step("acgan")
    real, fake, judged = step.logits
    right = [-classes.detach().double().log_softmax(1)[range(6), step.labels].mean() for classes in step.classes]
    close(step.metrics["d_loss"], -log_sigmoid(real).mean() - log_sigmoid(-fake).mean() + right[0] + right[1])
    close(step.metrics["g_loss"], -log_sigmoid(judged).mean() + right[2])
    for name, classes in zip(["class_real", "class_fake"], step.classes, strict=False):
        close(step.metrics[name], (classes.argmax(1) == step.labels).double().mean())
    assert len(step.labels_seen) == 2 and all(torch.equal(labels, step.labels) for labels in step.labels_seen)  # by G


# f-GAN: the table of divergences, on P = N(0, 1) and Q = N(1, 1.5^2), by sums over a fine grid

GRID = torch.linspace(-30, 30, 60_001, dtype=torch.float64)
P, Q = (torch.distributions.Normal(torch.tensor(m).double(), torch.tensor(s).double()) for m, s in ((0, 1), (1, 1.5)))
LOG_RATIO = P.log_prob(GRID) - Q.log_prob(GRID)
KL, REVERSE_KL = (torch.distributions.kl_divergence(*pair) for pair in ((P, Q), (Q, P)))
OVERLAP = torch.tensor((2 * 1.5 / (1 + 1.5**2)) ** 0.5 * 2.718281828459045 ** (-1 / (4 * (1 + 1.5**2)))).double()


def expectation(distribution: torch.distributions.Normal, values: Tensor) -> Tensor:
    return (distribution.log_prob(GRID).exp() * values).sum() * (GRID[1] - GRID[0])


def jensen_shannon() -> Tensor:
    middle = torch.logaddexp(P.log_prob(GRID), Q.log_prob(GRID)) - torch.tensor(2.0).log()
    return sum(expectation(d, d.log_prob(GRID) - middle) for d in (P, Q)) / 2


# The divergence, and the logits v at which g_f(v) is the best T, which is f'(p/q)
BEST = {
    "gan": (lambda: 2 * jensen_shannon() - torch.tensor(4.0).double().log(), LOG_RATIO),
    "js": (lambda: 2 * jensen_shannon(), LOG_RATIO),
    "kl": (lambda: KL, 1 + LOG_RATIO),
    "reverse-kl": (lambda: REVERSE_KL, LOG_RATIO),
    "pearson": (lambda: expectation(Q, (LOG_RATIO.exp() - 1) ** 2), 2 * (LOG_RATIO.exp() - 1)),
    "squared-hellinger": (lambda: 2 - 2 * OVERLAP, LOG_RATIO / 2),
}


@pytest.mark.parametrize("name", BEST)
def test_fgan_estimates_the_divergence_of_two_gaussians_with_the_best_t_and_less_with_any_other(name: str) -> None:
    activation, conjugate = MODULES["fgan"].DIVERGENCES[name]
    divergence, best = BEST[name][0](), BEST[name][1].clamp(-30, 30)

    def estimate(v: Tensor) -> Tensor:
        return expectation(P, activation(v)) - expectation(Q, conjugate(activation(v)))

    close(estimate(best), divergence, rtol=1e-5)
    others = [best + 0.1, best - 0.1, 0.9 * best, 1.1 * best, best + 0.1 * GRID.sin(), best.roll(300)]
    gaps = [divergence - estimate(v.clamp(-30, 30)) for v in others]
    assert min(gaps) > 1e-4, gaps
    assert BEST.keys() == MODULES["fgan"].DIVERGENCES.keys()


@pytest.mark.parametrize("loss", ["trick", "exact"])
@pytest.mark.parametrize("name", BEST)
def test_step_of_fgan_moves_d_up_and_g_down_the_estimate_or_the_trick(name: str, loss: str) -> None:
    step = take_step("fgan", "--divergence", name, "--loss", loss)
    activation, conjugate = MODULES["fgan"].DIVERGENCES[name]
    real, fake, judged = (logits.detach().double().requires_grad_() for logits in step.logits)
    estimate = activation(real).mean() - conjugate(activation(fake)).mean()
    g_loss = -(activation(judged) if loss == "trick" else conjugate(activation(judged))).mean()
    for metric, value in {"T(x)": activation(real).mean(), "T(G(z))": activation(fake).mean()}.items():
        close(step.metrics[metric], value)
    close(step.metrics["divergence"], estimate)
    close(step.metrics["g_loss"], g_loss)
    for logits, grad in zip(step.logits, torch.autograd.grad(g_loss - estimate, [real, fake, judged]), strict=True):
        close(logits.grad, grad, rtol=1e-4)


def test_fgan_with_the_divergence_gan_is_dcgan() -> None:
    fgan = take_step("fgan")
    torch.manual_seed(0)
    dcgan = take_step("dcgan")
    close(-fgan.metrics["divergence"], dcgan.metrics["d_loss"])
    close(fgan.metrics["g_loss"], dcgan.metrics["g_loss"])
    for a, b in zip(fgan.networks.parameters(), dcgan.networks.parameters(), strict=True):
        close(a, b, rtol=1e-3)


@pytest.mark.parametrize("name, weight", [("wgan", 0), ("wgan_gp", 0), ("wgan_gp", 3.5)])
def test_step_of_a_critic_reports_its_estimate_and_descends_the_wasserstein_loss(name: str, weight: float) -> None:
    penalized = name == "wgan_gp"
    step = take_step(name, *(["--gp-weight", weight] if penalized else []))
    assert list(step.metrics) == ["wasserstein", *(["penalty"] if penalized else []), "g_loss"]
    close(step.metrics["wasserstein"], step.logits[0].double().mean() - step.logits[1].double().mean())
    close(step.metrics["g_loss"], -step.logits[-1].double().mean())
    close(step.logits[-1].grad, torch.full((6,), -1 / 6))  # G: of -mean f(G(z))
    critic = step.before["critic"].double()
    loss = critic(step.seen[1].double()).mean() - critic(step.seen[0].double()).mean()
    if penalized:
        x_hat = step.seen[2].double().requires_grad_()
        (slope,) = torch.autograd.grad(critic(x_hat).sum(), x_hat, create_graph=True)
        penalty = ((slope.square().sum(dim=(1, 2, 3)).sqrt() - 1) ** 2).mean()
        close(step.metrics["penalty"], penalty, rtol=1e-4)
        loss = loss + weight * penalty
    for grad, value in zip(step.grads[0][1], torch.autograd.grad(loss, [*critic.parameters()]), strict=True):
        close(grad, value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("bias", [0.0, -20.0], ids=["D is unsure", "D is sure"])
@pytest.mark.parametrize("loss", ["non-saturating", "minimax"])
def test_vanilla_losses_have_the_gradients_of_their_formulas(loss: str, bias: float) -> None:
    step = take_step("vanilla_gan", "--loss", loss, bias=bias)
    logits, d_g = step.logits[-1], log_sigmoid(step.logits[-1]).exp()
    minimax = loss == "minimax"  # G minimizes log(1 - D(G(z)))
    close(step.metrics["g_loss"], log_sigmoid(-logits).mean() if minimax else -log_sigmoid(logits).mean())
    close(logits.grad, (-d_g if minimax else d_g - 1) / len(logits), atol=1e-12)
    vanishing = minimax and bias < 0  # section 3 of the paper: early in learning this one saturates
    assert (logits.grad.abs().max() < 1e-6) == vanishing


@pytest.mark.parametrize("name", LOGITS)
def test_losses_do_not_saturate_where_d_is_wrong_and_sure(name: str) -> None:
    step = take_step(name, bias=500.0)  # "real", whatever it sees; sigmoid + BCELoss would stop at 100
    assert 450 < step.metrics["d_loss"] < 550
    close(step.logits[1].grad, torch.full((6,), 1 / 6))
