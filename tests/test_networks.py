"""The part of each script above the banner: networks, losses and the training step, against the papers' formulas."""

import copy
import importlib
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from conftest import SCRIPTS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

NAMES = [script.removesuffix(".py") for script in SCRIPTS]
CONV = ["dcgan", "cgan", "wgan", "wgan_gp"]
LOGITS = ["vanilla_gan", "dcgan", "cgan"]  # the scripts whose D is a classifier
MODULES = {name: importlib.import_module(name) for name in NAMES}
CLASSES = ["a", "b", "c"]

for_each_script = pytest.mark.parametrize("name", NAMES)
for_each_conv = pytest.mark.parametrize("name", CONV)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def make(name: str, channels: int = 1, size: int = 8, latent_dim: int = 5) -> tuple[nn.Module, nn.Module]:
    """A generator and a discriminator or critic, narrow ones where the width can be chosen."""
    module, classes = MODULES[name], [len(CLASSES)] if name == "cgan" else []
    width = {} if name == "vanilla_gan" else {"width": 4}
    judge = getattr(module, "Discriminator" if name in LOGITS else "Critic")
    return (
        module.Generator(latent_dim, channels, *classes, size, **width),
        judge(channels, *classes, size, **width),
    )


def condition(name: str, count: int) -> list[Tensor]:
    """What the networks take beside z or x: the labels in cgan, nothing elsewhere."""
    return [torch.arange(count) % len(CLASSES)] if name == "cgan" else []


def arguments(name: str, *argv: str, channels: int = 1) -> Namespace:
    args, _ = MODULES[name].parse_args(list(argv))
    return Namespace(**{**vars(args), "channels": channels, "classes": CLASSES})


# Networks


SHAPES = [("vanilla_gan", size) for size in (8, 28, 32)] + [
    (name, size) for name in CONV for size in (8, 16, 32, 64, 128)
]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name, size", SHAPES)
def test_generators_give_images_within_one_and_judges_one_number_for_each(name: str, size: int, channels: int) -> None:
    generator, judge = make(name, channels, size)
    for count in (2, 3):
        images = generator(torch.randn(count, 5), *condition(name, count))
        assert images.shape == (count, channels, size, size)
        assert images.dtype == torch.float32
        assert judge(images, *condition(name, count)).shape == (count,)
    images = generator.eval()(1e4 * torch.randn(8, 5), *condition(name, 8))
    assert -1 <= images.min() < -0.9  # all of the range, and no more of it
    assert 0.9 < images.max() <= 1


@for_each_script
def test_judges_return_logits_or_scores_not_probabilities(name: str) -> None:
    _, judge = make(name)
    *_, bias = judge.parameters()
    for value in (50.0, -50.0):
        nn.init.constant_(bias, value)
        assert (judge(torch.zeros(2, 1, 8, 8), *condition(name, 2)) - value).abs().max() < 5


@pytest.mark.parametrize("size", [-8, 0, 4, 7, 12, 28, 33, 48])
@for_each_conv
def test_sizes_that_are_no_power_of_two_from_8_on_are_refused_by_name(name: str, size: int) -> None:
    module, classes = MODULES[name], [3] if name == "cgan" else []
    with pytest.raises(ValueError, match=f"image_size .*{size}"):
        module.Generator(5, 1, *classes, size, width=4)
    with pytest.raises(ValueError, match=f"image_size .*{size}"):
        (module.Discriminator if name in LOGITS else module.Critic)(1, *classes, size, width=4)


@pytest.mark.parametrize("size, depth", [(8, 2), (32, 4), (128, 6)])
@for_each_conv
def test_depth_follows_the_size_and_the_features_meet_at_4x4(name: str, size: int, depth: int) -> None:
    generator, judge = make(name, size=size)
    ups = [module for module in generator.modules() if isinstance(module, nn.ConvTranspose2d)]
    downs = [module for module in judge.modules() if isinstance(module, nn.Conv2d)]
    assert len(ups) == len(downs) == depth
    assert ups[0].out_channels == downs[-1].in_channels == 4 * size // 8
    assert all(conv.stride == (2, 2) for conv in ups[1:] + downs[:-1])


@for_each_conv
def test_networks_keep_the_guidelines_of_dcgan(name: str) -> None:
    generator, judge = make(name, size=64)
    g_layers, d_layers = ([m for m in network.modules() if not list(m.children())] for network in (generator, judge))
    allowed = nn.Conv2d | nn.ConvTranspose2d | nn.BatchNorm2d | nn.ReLU | nn.LeakyReLU | nn.Tanh
    assert all(isinstance(layer, allowed) for layer in g_layers + d_layers)  # no pooling, no linear layer
    assert [type(layer) for layer in g_layers] == 4 * [nn.ConvTranspose2d, nn.BatchNorm2d, nn.ReLU] + [
        nn.ConvTranspose2d,
        nn.Tanh,
    ]
    norm = [] if name == "wgan_gp" else [nn.BatchNorm2d]
    inner = [nn.Conv2d, *norm, nn.LeakyReLU]
    assert [type(layer) for layer in d_layers] == [nn.Conv2d, nn.LeakyReLU, *3 * inner, nn.Conv2d]
    assert all(layer.negative_slope == 0.2 for layer in d_layers if isinstance(layer, nn.LeakyReLU))


@for_each_script
def test_batchnorm_has_its_usual_epsilon(name: str) -> None:
    norms = [m for network in make(name, size=16) for m in network.modules() if isinstance(m, _BatchNorm)]
    assert norms
    assert {norm.eps for norm in norms} == {1e-5}


@for_each_conv
def test_initial_weights_are_normal_with_deviation_002(name: str) -> None:
    networks, _ = MODULES[name].build(arguments(name, "--image-size", "32", "--latent-dim", "64"))
    for module in (module for network in networks for module in network.modules()):
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            weights, count = module.weight / 0.02, module.weight.numel()
            assert abs(weights.mean()) < 5 / count**0.5
            assert abs(weights.std() - 1) < 5 / count**0.5
            assert abs((weights.abs() > 1).double().mean() - 0.3173) < 5 / count**0.5  # of a uniform: 0.42
            assert module.bias is None or not module.bias.any()
        elif isinstance(module, nn.BatchNorm2d):
            scale = (module.weight - 1) / 0.02
            assert scale.abs().max() < 5
            assert abs(scale.std() - 1) < 0.4
            assert not module.bias.any()


@for_each_script
def test_optimizers_and_batch_sizes_are_the_papers(name: str) -> None:
    args = arguments(name, "--image-size", "8")
    networks, optimizers = MODULES[name].build(args)
    for network, optimizer in zip(networks, optimizers, strict=True):
        (group,) = optimizer.param_groups
        assert [id(p) for p in group["params"]] == [id(p) for p in network.parameters()]
        if name == "wgan":
            assert isinstance(optimizer, torch.optim.RMSprop)
            assert (group["lr"], group["alpha"], group["momentum"], group["centered"]) == (5e-5, 0.99, 0, False)
        else:
            assert isinstance(optimizer, torch.optim.Adam)
            assert group["lr"] == {"vanilla_gan": 1e-3, "wgan_gp": 1e-4}.get(name, 2e-4)
            assert group["betas"] == ((0.0, 0.9) if name == "wgan_gp" else (0.5, 0.999))
        assert not group["weight_decay"]
    assert args.batch_size == (64 if name.startswith("wgan") else 128)


@pytest.mark.parametrize("name, value", [("wgan", "0.01"), ("wgan_gp", "10.0")])
def test_constants_of_the_wasserstein_scripts_are_the_papers(name: str, value: str) -> None:
    args = arguments(name)
    assert args.n_critic == 5
    assert (args.clip if name == "wgan" else args.gp_weight) == float(value)


# CGAN: the label reaches both networks


@pytest.mark.parametrize("training", [True, False], ids=["train mode", "eval mode"])
@pytest.mark.parametrize("size", [8, 32])
def test_cgan_labels_change_the_images_and_the_logits(size: int, training: bool) -> None:
    generator, discriminator = (network.train(training) for network in make("cgan", size=size))
    z, images = torch.randn(4, 5), torch.randn(4, 1, size, size)
    seen = [(generator(z, torch.full((4,), k)), discriminator(images, torch.full((4,), k))) for k in range(3)]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert (seen[i][0] - seen[j][0]).abs().flatten(1).amax(dim=1).min() > 1e-4  # every image
        assert (seen[i][1] - seen[j][1]).abs().min() > 1e-5  # every logit


def test_cgan_label_of_one_sample_leaves_the_others_as_they_were() -> None:
    generator, discriminator = (network.eval() for network in make("cgan", size=16))
    z, images = torch.randn(3, 5), torch.randn(3, 1, 16, 16)
    labels, other = torch.tensor([0, 1, 2]), torch.tensor([0, 0, 2])
    for before, after in (
        (generator(z, labels), generator(z, other)),
        (discriminator(images, labels), discriminator(images, other)),
    ):
        assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True, False, True]


def test_cgan_noise_still_matters_within_a_class() -> None:
    generator, _ = make("cgan", size=16)
    images = generator(torch.randn(4, 5), torch.ones(4, dtype=torch.long))
    assert (images[1:] - images[:-1]).abs().flatten(1).amax(dim=1).min() > 1e-3


# WGAN-GP: the penalty


class Linear(nn.Module):
    """f(x) = <w, x>: its gradient is w everywhere."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.weight).flatten(1).sum(dim=1)


class Recorder(nn.Module):
    """A critic that keeps what it was given."""

    def __init__(self, critic: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.critic, self.x = critic, torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        self.x = x.detach().clone()
        return self.critic(x)


def pair(*shape: int) -> tuple[Tensor, Tensor]:
    return torch.randn(*shape, dtype=torch.float64), torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(3, 2, 5, 7), (5, 1, 5, 5), (1, 3, 4, 4), (8, 3, 2, 2)])
@pytest.mark.parametrize("norm", [0.25, 1.0, 4.0])
def test_penalty_of_a_linear_critic_is_its_closed_form(shape: tuple[int, ...], norm: float) -> None:
    weight = torch.randn(shape[1:], dtype=torch.float64)
    critic = Linear(weight * norm / weight.norm())
    for real, fake in (pair(*shape), pair(*shape)):
        penalty = MODULES["wgan_gp"].gradient_penalty(critic, real, fake)
        assert penalty.shape == ()
        torch.testing.assert_close(penalty, torch.tensor((norm - 1) ** 2, dtype=torch.float64))
    (grad,) = torch.autograd.grad(penalty, critic.weight)
    torch.testing.assert_close(grad, 2 * (norm - 1) * critic.weight.detach() / norm)


def test_penalty_of_a_zero_gradient_is_one_and_its_gradient_is_finite() -> None:
    critic = Linear(torch.zeros(2, 3, 3, dtype=torch.float64))
    penalty = MODULES["wgan_gp"].gradient_penalty(critic, *pair(4, 2, 3, 3))
    assert penalty == 1
    penalty.backward()
    assert critic.weight.grad.isfinite().all()


def test_penalty_with_one_dead_sample_in_the_batch_learns_from_the_others() -> None:
    critic = Linear(torch.rand(1, 3, 3, dtype=torch.float64) + 1)
    x = torch.stack([torch.full((1, 3, 3), sign, dtype=torch.float64) for sign in (-1.0, 1.0)])
    penalty = MODULES["wgan_gp"].gradient_penalty(lambda x: critic(x).relu(), x, x)  # x_hat = x, the first is dead
    norm = critic.weight.detach().norm()
    torch.testing.assert_close(penalty.detach(), (1 + (norm - 1) ** 2) / 2)
    penalty.backward()
    torch.testing.assert_close(critic.weight.grad, (norm - 1) * critic.weight.detach() / norm)


def test_penalty_draws_one_epsilon_in_0_1_for_each_sample() -> None:
    critic = Recorder(Linear(torch.ones(3, 4, 5, dtype=torch.float64)))
    real, fake = pair(2000, 3, 4, 5)
    MODULES["wgan_gp"].gradient_penalty(critic, real, fake)
    on_line = ((critic.x - fake) * (real - fake)).flatten(1).sum(1) / (real - fake).square().flatten(1).sum(1)
    line = on_line.view(-1, 1, 1, 1)
    torch.testing.assert_close(critic.x, line * real + (1 - line) * fake)  # every pixel at the same fraction
    assert 0 <= on_line.min() < 0.01
    assert 0.99 < on_line.max() <= 1
    assert len(on_line.unique()) > 1900
    quarters = on_line.sort().values[[500, 1000, 1500]]
    torch.testing.assert_close(quarters, torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64), atol=0.06, rtol=0)


def test_penalty_draws_anew_at_every_call() -> None:
    critic = Recorder(Linear(torch.ones(1, 2, 2, dtype=torch.float64)))
    real, fake = pair(4, 1, 2, 2)
    MODULES["wgan_gp"].gradient_penalty(critic, real, fake)
    first = critic.x
    MODULES["wgan_gp"].gradient_penalty(critic, real, fake)
    assert not torch.equal(first, critic.x)


def test_penalty_and_its_weight_gradients_agree_with_a_float64_reference() -> None:
    """f(x) = v . tanh(A x), whose gradient A' (v (1 - tanh^2)) the reference writes by hand."""
    a, v = (nn.Parameter(torch.randn(n, m, dtype=torch.float64) / 4) for n, m in ((6, 24), (1, 6)))
    critic = Recorder(lambda x: ((x.flatten(1) @ a.T).tanh() @ v.T).flatten())
    penalty = MODULES["wgan_gp"].gradient_penalty(critic, *pair(5, 2, 3, 4))
    grads = torch.autograd.grad(penalty, [a, v])
    slope = (v * (1 - (critic.x.flatten(1) @ a.T).tanh() ** 2)) @ a  # (N, 24)
    reference = ((slope.square().sum(dim=1).sqrt() - 1) ** 2).mean()
    torch.testing.assert_close(penalty, reference)
    for grad, expected in zip(grads, torch.autograd.grad(reference, [a, v]), strict=True):
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(grad, expected)


def test_penalty_reaches_every_weight_of_the_critic() -> None:
    _, critic = make("wgan_gp", channels=3, size=16)
    MODULES["wgan_gp"].gradient_penalty(critic, torch.randn(3, 3, 16, 16), torch.randn(3, 3, 16, 16)).backward()
    for name, parameter in critic.named_parameters():
        if name.endswith("weight"):
            assert parameter.grad.abs().max() > 0
            assert parameter.grad.isfinite().all()


@pytest.mark.parametrize("size", [8, 32, 64])
def test_wgan_gp_critic_scores_each_image_on_its_own(size: int) -> None:
    _, critic = make("wgan_gp", size=size)
    assert not any(isinstance(module, _BatchNorm) for module in critic.modules())
    images = torch.randn(4, 1, size, size)
    torch.testing.assert_close(critic(images), torch.cat([critic(image[None]) for image in images]))


# WGAN: the clip


def test_clip_clamps_all_parameters_and_no_buffer() -> None:
    _, critic = make("wgan", size=16)
    buffers = {name: buffer.fill_(5).clone() for name, buffer in critic.named_buffers()}
    before = {name: nn.init.normal_(parameter, std=0.02).clone() for name, parameter in critic.named_parameters()}
    assert any("running_var" in name for name in buffers)
    MODULES["wgan"].clip_weights_(critic, 0.01)
    for name, parameter in critic.named_parameters():
        assert torch.equal(parameter, before[name].clamp(-0.01, 0.01))
        assert parameter.requires_grad
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in critic.named_buffers())


@pytest.mark.parametrize("clip", [0.01, 0.003])
def test_wgan_critic_is_within_the_clip_after_every_one_of_its_steps(clip: float) -> None:
    step = take_step("wgan", "--clip", str(clip), "--lr", "0.1", batches=3)
    clip = torch.tensor(clip).item()  # as float32 has it
    bounds = step.largest_at_forward  # the critic scores real and fake once for each batch, then once for G
    assert bounds[0] == bounds[1] > clip
    assert all(bound <= clip for bound in bounds[2:])
    sizes = torch.cat([parameter.detach().flatten().abs() for parameter in step.networks[1].parameters()])
    assert sizes.max() == clip  # RMSprop's first step is 10 lr = 1: a clip before it would leave much larger ones
    assert (sizes == clip).double().mean() > 0.1


# The training step


@dataclass
class Step:
    """One call of train_step and what could be seen from outside while it ran."""

    networks: list[nn.Module]
    args: Namespace
    batches: list[tuple[Tensor, Tensor]]
    metrics: dict[str, Tensor] = field(default_factory=dict)
    before: list[nn.Module] = field(default_factory=list)  # copies of the networks
    events: list[str] = field(default_factory=list)  # "G" and "D", the updates in order
    noise: list[Tensor] = field(default_factory=list)  # what G was given, and with which labels
    g_labels: list[Tensor] = field(default_factory=list)
    seen: list[Tensor] = field(default_factory=list)  # what D was given, and with which labels
    d_labels: list[Tensor] = field(default_factory=list)
    seen_grad: list[bool] = field(default_factory=list)  # whether a gradient flows back through it
    logits: list[Tensor] = field(default_factory=list)  # what it answered
    largest_at_forward: list[float] = field(default_factory=list)  # its largest weight at that time
    grads: list[list[list[Tensor | None]]] = field(default_factory=list)  # of G and of D, before each update

    def judged(self) -> list[int]:
        """The calls of D by batch, as first call of each (wgan_gp calls it a third time, for the penalty)."""
        per_batch = (len(self.seen) - 1) // len(self.batches)
        return [i * per_batch for i in range(len(self.batches))]


def take_step(
    name: str,
    *argv: str,
    batches: int = 1,
    count: int = 6,
    prepare: Callable[[list[nn.Module]], object] = lambda networks: None,
) -> Step:
    """Builds a script's networks and optimizers, calls train_step once on random images and records it."""
    size = 8 if name == "vanilla_gan" else 16  # 16: BatchNorm in D too
    args = arguments(name, "--image-size", str(size), "--latent-dim", "20", *argv, channels=2)
    networks, optimizers = MODULES[name].build(args)
    prepare(networks)
    data = [(torch.rand(count, 2, size, size) * 2 - 1, torch.arange(count) % len(CLASSES)) for _ in range(batches)]
    step = Step(networks, args, data, before=copy.deepcopy(networks))
    generator, judge = networks

    def g_called(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        step.noise.append(inputs[0].clone())
        step.g_labels += [labels.clone() for labels in inputs[1:]]

    def d_called(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        step.seen.append(inputs[0].detach().clone())
        step.seen_grad.append(inputs[0].requires_grad)
        step.d_labels += [labels.clone() for labels in inputs[1:]]
        step.largest_at_forward.append(max(p.abs().max().item() for p in judge.parameters()))

    def d_answered(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
        if output.requires_grad:
            output.retain_grad()
        step.logits.append(output)

    def before_update(event: str) -> Callable[..., None]:
        def hook(*_: object) -> None:
            step.events.append(event)
            grads = [[None if p.grad is None else p.grad.clone() for p in n.parameters()] for n in networks]
            step.grads.append(grads)

        return hook

    generator.register_forward_pre_hook(g_called)
    judge.register_forward_pre_hook(d_called)
    judge.register_forward_hook(d_answered)
    for event, optimizer in zip("GD", optimizers, strict=True):
        optimizer.register_step_pre_hook(before_update(event))
    step.metrics = MODULES[name].train_step(networks, optimizers, data, args)
    return step


def log_sigmoid(logits: Tensor) -> Tensor:
    """log(sigmoid(x)) in float64, written out."""
    return -torch.log1p(torch.exp(-logits.detach().double()))


def no_dropout(networks: list[nn.Module]) -> None:
    for module in (module for network in networks for module in network.modules()):
        if isinstance(module, nn.Dropout):
            module.p = 0.0


@pytest.mark.parametrize("batches", [1, 3])
@for_each_script
def test_step_updates_d_once_for_each_batch_and_then_g_once(name: str, batches: int) -> None:
    step = take_step(name, batches=batches)
    assert step.events == ["D"] * batches + ["G"]
    for before, after in zip(step.before, step.networks, strict=True):
        changed = [not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True)]
        assert sum(changed) > len(changed) / 2  # a bias before BatchNorm has no gradient


@for_each_script
def test_step_takes_the_batch_size_from_the_images(name: str) -> None:
    for count in (2, 5):
        step = take_step(name, count=count)
        assert step.args.batch_size != count
        assert {len(x) for x in step.noise + step.seen + step.logits} == {count}


@for_each_script
def test_step_gives_g_no_gradient_while_d_learns_nor_d_one_while_g_learns(name: str) -> None:
    step = take_step(name, batches=2)
    (g_first, _), (g_second, d_second), (g_last, d_last) = step.grads
    assert all(grad is None for grad in g_first + g_second)
    assert all(grad is not None and grad.isfinite().all() for grad in g_last)
    assert all(torch.equal(a, b) for a, b in zip(d_second, d_last, strict=True))  # as D's own update left them
    assert all(parameter.requires_grad for network in step.networks for parameter in network.parameters())


@for_each_script
def test_step_shows_d_real_and_fake_apart_and_builds_no_graph_of_g_for_it(name: str) -> None:
    step = take_step(name, batches=2)
    for (real, _), i in zip(step.batches, step.judged(), strict=True):
        assert torch.equal(step.seen[i], real)
        assert not torch.equal(step.seen[i + 1], real)
        assert step.seen_grad[i : i + 2] == [False, False]
    assert step.seen_grad[-1]
    assert all(len(x) == len(real) for x in step.seen)


@for_each_script
def test_step_draws_fresh_normal_noise_for_each_update(name: str) -> None:
    step = take_step(name, batches=3, count=50)
    assert len(step.noise) == 4
    assert len({tuple(z.flatten().tolist()) for z in step.noise}) == 4
    for z in step.noise:
        assert z.shape == (50, 20)
        assert abs(z.mean()) < 0.15
        assert abs(z.std() - 1) < 0.1


def test_step_of_cgan_uses_the_labels_of_the_batch_everywhere() -> None:
    step = take_step("cgan", batches=2)
    assert len(step.g_labels) == 3
    assert len(step.d_labels) == 5
    assert all(torch.equal(labels, step.batches[0][1]) for labels in step.g_labels + step.d_labels)


COLUMNS = {name: ["D(x)", "D(G(z))", "d_loss", "g_loss"] for name in LOGITS}
COLUMNS |= {"wgan": ["wasserstein", "g_loss"], "wgan_gp": ["wasserstein", "penalty", "g_loss"]}


@for_each_script
def test_step_returns_the_columns_as_finite_scalars(name: str) -> None:
    step = take_step(name, batches=2)
    assert list(step.metrics) == COLUMNS[name]
    for value in step.metrics.values():
        assert value.shape == ()
        assert value.isfinite()


@pytest.mark.parametrize("name", LOGITS)
def test_step_reports_the_losses_and_probabilities_of_the_logits(name: str) -> None:
    step = take_step(name)
    real, fake, judged = step.logits
    expected = {
        "D(x)": log_sigmoid(real).exp().mean(),
        "D(G(z))": log_sigmoid(fake).exp().mean(),
        "d_loss": -log_sigmoid(real).mean() - log_sigmoid(-fake).mean(),
        "g_loss": -log_sigmoid(judged).mean(),
    }
    assert step.metrics.keys() == expected.keys()
    for column, value in expected.items():
        torch.testing.assert_close(step.metrics[column].double(), value, atol=1e-6, rtol=1e-5, msg=column)
    assert 0 < step.metrics["D(x)"] < 1
    assert 0 < step.metrics["D(G(z))"] < 1


@pytest.mark.parametrize("name", ["wgan", "wgan_gp"])
def test_step_reports_the_wasserstein_estimate_and_g_loss_of_the_last_scores(name: str) -> None:
    step = take_step(name, batches=2)
    last = step.judged()[-1]
    real, fake, judged = (step.logits[i].detach().double() for i in (last, last + 1, -1))
    torch.testing.assert_close(step.metrics["wasserstein"].double(), real.mean() - fake.mean(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(step.metrics["g_loss"].double(), -judged.mean(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", LOGITS)
def test_step_moves_d_up_the_gradient_of_its_objective(name: str) -> None:
    step = take_step(name, prepare=no_dropout)
    labels = [step.batches[0][1]] if name == "cgan" else []
    reference = step.before[1].double()
    real, fake = (reference(x.double(), *labels) for x in step.seen[:2])
    objective = torch.log(torch.sigmoid(real)).mean() + torch.log(1 - torch.sigmoid(fake)).mean()
    expected = torch.autograd.grad(objective, list(reference.parameters()))
    for grad, value in zip(step.grads[0][1], expected, strict=True):
        torch.testing.assert_close(grad.double(), -value, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("weight", ["0", "10", "3.5"])
def test_step_of_wgan_gp_descends_the_wasserstein_loss_plus_the_weighted_penalty(weight: str) -> None:
    step = take_step("wgan_gp", "--gp-weight", weight)
    critic = step.before[1].double()
    real, fake, x_hat = (x.double() for x in step.seen[:3])
    (slope,) = torch.autograd.grad(critic(x_hat.requires_grad_()).sum(), x_hat, create_graph=True)
    penalty = ((slope.square().sum(dim=(1, 2, 3)).sqrt() - 1) ** 2).mean()
    loss = critic(fake).mean() - critic(real).mean() + float(weight) * penalty
    torch.testing.assert_close(step.metrics["penalty"].double(), penalty, atol=1e-6, rtol=1e-4)
    weights = {name: p for name, p in critic.named_parameters() if name.endswith("weight")}
    expected = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
    for (name, _), grad in zip(critic.named_parameters(), step.grads[0][1], strict=True):
        if name in expected:
            torch.testing.assert_close(grad.double(), expected[name], atol=1e-5, rtol=1e-3)


def test_step_of_wgan_ascends_the_wasserstein_estimate() -> None:
    step = take_step("wgan")
    critic = step.before[1].double()
    estimate = critic(step.seen[0].double()).mean() - critic(step.seen[1].double()).mean()
    expected = torch.autograd.grad(estimate, list(critic.parameters()))
    for grad, value in zip(step.grads[0][1], expected, strict=True):
        torch.testing.assert_close(grad.double(), -value, atol=1e-5, rtol=1e-3)


@for_each_script
def test_step_moves_g_to_where_d_likes_its_images_better(name: str) -> None:
    step = take_step(name)
    grad = step.logits[-1].grad
    expected = torch.full((len(grad),), -1 / len(grad), dtype=torch.float64)  # of -mean f(G(z))
    if name in LOGITS:  # of -mean log sigmoid: sigmoid - 1
        expected *= 1 - log_sigmoid(step.logits[-1]).exp()
    torch.testing.assert_close(grad.double(), expected, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("bias", [0.0, -20.0], ids=["D is unsure", "D is sure"])
@pytest.mark.parametrize("loss", ["non-saturating", "minimax"])
def test_vanilla_losses_have_the_gradients_of_their_formulas(loss: str, bias: float) -> None:
    def prepare(networks: list[nn.Module]) -> None:
        *_, last = networks[1].parameters()
        nn.init.constant_(last, bias)

    step = take_step("vanilla_gan", "--loss", loss, prepare=prepare)
    logits, d_g = step.logits[-1], log_sigmoid(step.logits[-1]).exp()
    if loss == "minimax":  # G minimizes log(1 - D(G(z)))
        value, slope = log_sigmoid(-logits).mean(), -d_g
    else:
        value, slope = -log_sigmoid(logits).mean(), d_g - 1
    torch.testing.assert_close(step.metrics["g_loss"].double(), value, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(logits.grad.double(), slope / len(logits), atol=1e-12, rtol=1e-5)
    vanishing = loss == "minimax" and bias < 0  # section 3 of the paper: early in learning this one saturates
    assert (logits.grad.abs().max() < 1e-6) == vanishing


def test_vanilla_learning_rates_fall_at_each_step_down_to_their_least() -> None:
    args = arguments("vanilla_gan", "--image-size", "8", "--latent-dim", "4", "--d-steps", "2", "--lr", "0.5")
    networks, optimizers = MODULES["vanilla_gan"].build(args)
    batch = torch.zeros(4, args.channels, 8, 8), torch.zeros(4, dtype=torch.int64)

    def rates(steps: int) -> list[float]:
        for _ in range(steps):
            MODULES["vanilla_gan"].train_step(networks, optimizers, [batch, batch], args)
        return [float(optimizer.param_groups[0]["lr"]) for optimizer in optimizers]

    assert rates(1) == pytest.approx([0.5 * 0.9998] * 2, rel=1e-6)
    assert rates(2) == pytest.approx([0.5 * 0.9998**3] * 2, rel=1e-6)
    for optimizer, rate in zip(optimizers, [0.005, 0.1], strict=True):
        optimizer.param_groups[0]["lr"] = rate * 1.0001
    assert rates(1) == rates(1) == pytest.approx([0.005, 0.1], rel=1e-6)


@pytest.mark.parametrize("name", LOGITS)
def test_losses_do_not_saturate_where_d_is_wrong_and_sure(name: str) -> None:
    def prepare(networks: list[nn.Module]) -> None:
        *_, last = networks[1].parameters()
        nn.init.constant_(last, 500.0)  # "real", whatever it sees; sigmoid + BCELoss would stop at 100

    step = take_step(name, prepare=prepare)
    assert 450 < step.metrics["d_loss"] < 550
    torch.testing.assert_close(step.logits[1].grad, torch.full((6,), 1 / 6))


@for_each_script
def test_same_seed_gives_the_same_step(name: str) -> None:
    weights = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        step = take_step(name)
        weights.append([p.clone() for network in step.networks for p in network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(weights[0], weights[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(weights[0], weights[2], strict=True) if a.dim() > 1)
