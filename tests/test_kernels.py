"""gan_kernels against float64 references, on the CPU and, where there is one, on the GPU."""

import copy
import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, call, load, make_data
from torch import Tensor, nn

import gan_kernels

OPS = torch.ops.gan_kernels
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"))]
EACH_DEVICE = pytest.mark.parametrize("device", DEVICES)
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


def test_the_extension_is_built_and_runs_wherever_there_is_a_compiler() -> None:
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler here")
    assert gan_kernels.why_not("cpu") is None
    if torch.cuda.is_available() and shutil.which("nvcc"):
        assert gan_kernels.why_not("cuda") is None


@pytest.fixture(autouse=True)
def built() -> None:
    torch.manual_seed(0)
    if problem := gan_kernels.why_not():
        pytest.skip(problem)


def layouts(device: str, dtype: torch.dtype) -> list[Tensor]:
    """Random tensors in all kinds of memory layouts."""
    make = functools.partial(torch.randn, device=device)
    tensors = [
        make(()),
        make(0),
        make(3, 0, 2),
        make(7),
        make(100_003),
        make(40, 1, 1, 50),
        make(8, 16, 4, 4).to(memory_format=torch.channels_last),
        make(1, 5, 3, 3).to(memory_format=torch.channels_last),
        make(30, 40).t(),
        make(20, 30, 40).permute(2, 0, 1),
        make(50, 60)[:, ::3],
        make(50, 60)[5:20, 7:30],
        make(9001)[1:],  # not at a 16-byte boundary
        make(20, 30)[:, 4],
    ]
    return [copy_layout(tensor, dtype) for tensor in tensors]


def copy_layout(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor as dtype, in the very same strides and at the same offset in a storage of its own."""
    storage = torch.zeros(tensor.untyped_storage().nbytes() // tensor.element_size(), device=tensor.device, dtype=dtype)
    result = storage.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
    return result.copy_(tensor)


# -------------------------------------------------------------------------------------------------------- clip_weights_


@EACH_DEVICE
@EACH_DTYPE
def test_clip_is_clamp_in_every_layout(device: str, dtype: torch.dtype) -> None:
    params = [nn.Parameter(p) for p in layouts(device, dtype)]
    expected = [p.detach().clamp(-0.3, 0.3) for p in params]
    gan_kernels.clip_weights_(params, 0.3)
    assert all(torch.equal(p, e) for p, e in zip(params, expected, strict=True))


@EACH_DEVICE
def test_clip_writes_nothing_beside_a_view(device: str) -> None:
    whole = torch.full((50, 60), 2.0, device=device)
    gan_kernels.clip_weights_([whole[5:20, 7:30], whole[40, ::2]], 1.0)
    expected = torch.full((50, 60), 2.0, device=device)
    expected[5:20, 7:30] = 1
    expected[40, ::2] = 1
    assert torch.equal(whole, expected)


@EACH_DEVICE
@EACH_DTYPE
def test_clip_keeps_nan_and_bounds_infinity(device: str, dtype: torch.dtype) -> None:
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-7], device=device, dtype=dtype)
    expected = x.clamp(-0.5, 0.5)
    gan_kernels.clip_weights_([x], 0.5)
    assert x[0].isnan()
    assert torch.equal(x[1:], expected[1:])
    gan_kernels.clip_weights_([x], 0.0)
    assert x[1:].eq(0).all()


@EACH_DEVICE
def test_clip_takes_lists_of_any_length_and_of_several_dtypes(device: str) -> None:
    gan_kernels.clip_weights_([], 1.0)
    params = [torch.full((1 + i % 5,), 2.0, device=device, dtype=DTYPES[i % 4]) for i in range(1700)]
    gan_kernels.clip_weights_(params, 1.0)
    assert all(p.eq(1).all() for p in params)


def test_lists_may_be_any_iterable() -> None:
    critic = nn.Linear(3, 2)
    nn.init.constant_(critic.weight, 2.0)
    gan_kernels.clip_weights_(critic.parameters(), 1.0)
    assert critic.weight.eq(1).all()
    gan_kernels.rmsprop_clip_(*(iter([torch.ones(2)]) for _ in range(3)), 0.1, 0.9, 1e-8, 0.5)
    gan_kernels.clip_weights_(iter(()), 1.0)


def test_autograd_notices_that_a_saved_weight_was_changed() -> None:
    weight = nn.Parameter(torch.randn(3))
    loss = (weight * weight.detach().clone().requires_grad_()).square().sum()
    version = weight._version
    gan_kernels.clip_weights_([weight], 0.1)
    assert weight._version > version
    assert weight.is_leaf
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# ---------------------------------------------------------------------------------------- rmsprop_clip_ and RMSpropClip


def rmsprop(p: Tensor, g: Tensor, v: Tensor, lr: float, alpha: float, eps: float, c: float) -> tuple[Tensor, Tensor]:
    """The formula in float64."""
    p, g, v = p.double(), g.double(), v.double()
    v = alpha * v + (1 - alpha) * g * g
    return (p - lr * g / (v.sqrt() + eps)).clamp(-c, c), v


@EACH_DEVICE
@EACH_DTYPE
def test_rmsprop_clip_follows_the_formula_in_every_layout(device: str, dtype: torch.dtype) -> None:
    params, grads, squares = (layouts(device, dtype) for _ in range(3))
    for v in squares:
        v.abs_()
    grads[8], squares[8] = grads[8].contiguous(), squares[8].contiguous()  # in another layout than the weights
    grads[6] = grads[6].contiguous()
    squares[13] = squares[13].contiguous()
    before = copy.deepcopy(grads)
    numbers = (0.01, 0.9, 1e-3, 0.5)
    expected = [rmsprop(*tensors, *numbers) for tensors in zip(params, grads, squares, strict=True)]
    params = [nn.Parameter(p) for p in params]
    gan_kernels.rmsprop_clip_(params, grads, squares, *numbers)
    for i, (p, v) in enumerate(expected):
        torch.testing.assert_close(params[i].detach(), p.to(dtype))
        torch.testing.assert_close(squares[i], v.to(dtype))
        assert torch.equal(grads[i], before[i])


def make_critic(device: str = "cpu") -> nn.Module:
    torch.manual_seed(1)
    critic = load("wgan.py").Critic(1, 16, width=8).apply(load("wgan.py").init_weights)
    return critic.to(device, memory_format=torch.channels_last)


def set_gradients(critic: nn.Module, step: int) -> None:
    for i, p in enumerate(critic.parameters()):
        rng = torch.Generator().manual_seed(100 * step + i)
        p.grad = (torch.randn(p.shape, generator=rng) * 10.0 ** (i % 3 - 2)).to(p)


@EACH_DEVICE
def test_fifty_steps_of_rmsprop_clip_are_those_of_rmsprop_and_clamp(device: str) -> None:
    ours, theirs = make_critic(device), make_critic(device)
    fused = gan_kernels.RMSpropClip(ours.parameters(), clip=0.01, lr=5e-4)
    plain = torch.optim.RMSprop(theirs.parameters(), lr=5e-4)
    for step in range(50):
        for critic, optimizer in ((ours, fused), (theirs, plain)):
            set_gradients(critic, step)
            optimizer.step()
        load("wgan.py").clip_weights_(theirs, 0.01)
    clipped = 0
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-8)
        clipped += int((p.abs() == torch.tensor(0.01)).sum())
    assert clipped > 100
    for a, b in zip(fused.state.values(), plain.state.values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-12)


def test_the_state_of_rmsprop_and_of_rmsprop_clip_is_the_same_dictionary() -> None:
    first, second, third = make_critic(), make_critic(), make_critic()
    options = {"lr": 1e-3, "alpha": 0.9, "eps": 1e-5}
    fused = gan_kernels.RMSpropClip(first.parameters(), clip=10.0, **options)
    plain = torch.optim.RMSprop(second.parameters(), **options)
    for step in range(3):
        for critic, optimizer in ((first, fused), (second, plain)):
            set_gradients(critic, step)
            optimizer.step()
    assert fused.state_dict()["param_groups"] == plain.state_dict()["param_groups"]
    resumed = gan_kernels.RMSpropClip(third.parameters(), clip=10.0)
    resumed.load_state_dict(copy.deepcopy(plain.state_dict()))
    plain.load_state_dict(copy.deepcopy(fused.state_dict()))
    third.load_state_dict(second.state_dict())
    for critic, optimizer in ((first, fused), (second, plain), (third, resumed)):
        set_gradients(critic, 3)
        optimizer.step()
    for p, q, r in zip(first.parameters(), second.parameters(), third.parameters(), strict=True):
        torch.testing.assert_close(p, q)
        torch.testing.assert_close(p, r)


def test_rmsprop_clip_clips_what_has_no_gradient_and_leaves_its_state_alone() -> None:
    used, unused = (nn.Parameter(torch.full((3,), 2.0)) for _ in range(2))
    optimizer = gan_kernels.RMSpropClip([used, unused], clip=0.5, lr=0.1)
    used.grad = torch.ones(3)
    optimizer.step()
    assert used.eq(0.5).all()
    assert unused.eq(0.5).all()
    assert unused not in optimizer.state


def test_rmsprop_clip_has_what_an_optimizer_has() -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = gan_kernels.RMSpropClip([{"params": [p], "lr": 0.25}], clip=5.0, alpha=0.0, eps=0.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    steps = []
    optimizer.register_step_pre_hook(lambda *_: steps.append("before"))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (2 * p).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 6
    assert torch.equal(p.detach(), torch.full((3,), 0.75))  # alpha 0: lr times the sign
    scheduler.step()
    optimizer.step(closure)
    assert torch.equal(p.detach(), torch.full((3,), 0.625))
    assert steps == ["before"] * 2


REFUSED = {"momentum": 0.9, "weight_decay": 0.1, "centered": True, "maximize": True, "differentiable": True}


@pytest.mark.parametrize(("name", "value"), REFUSED.items())
def test_rmsprop_clip_refuses_what_it_does_not_compute_whichever_way_it_comes(name: str, value: float) -> None:
    p, q = (nn.Parameter(torch.ones(3)) for _ in range(2))
    with pytest.raises(ValueError, match=name):
        gan_kernels.RMSpropClip([p], clip=1.0, **{name: value})
    added, loaded = (gan_kernels.RMSpropClip([p], clip=0.5) for _ in range(2))
    added.add_param_group({"params": [q], name: value})
    loaded.load_state_dict(torch.optim.RMSprop([p], **{name: value}).state_dict())
    for optimizer in (added, loaded):
        with pytest.raises(ValueError, match=name):
            optimizer.step()
    assert p.eq(1).all()


def test_rmsprop_clip_takes_its_learning_rate_from_the_host() -> None:
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    optimizer = gan_kernels.RMSpropClip([p], clip=5.0, lr=torch.tensor(0.25), alpha=0.0, eps=0.0)
    optimizer.step()
    assert p.eq(0.75).all()
    optimizer.param_groups[0]["lr"] = torch.empty((), device="meta")  # as one on a GPU would
    with pytest.raises(ValueError, match="on the CPU"):
        optimizer.step()


# ----------------------------------------------------------------------------------------------------- gradient_penalty


def formula(grad: Tensor, target: float = 1.0) -> Tensor:
    return (grad.unsqueeze(-1).flatten(1).norm(2, dim=1) - target).square().mean()


def gradients(device: str, dtype: torch.dtype) -> list[Tensor]:
    make = functools.partial(torch.randn, device=device)
    tensors = [
        make(1),
        make(6),
        make(4, 7),
        make(5, 1, 28, 28),
        make(3, 3, 64, 64).to(memory_format=torch.channels_last),
        make(7, 9001),
        make(1, 20_000),
        make(300, 3),
        make(12, 20).t(),
        make(4, 6, 8).permute(1, 0, 2),
        make(6, 8, 10)[:, ::2, 1:7],
        make(1, 5).expand(4, 5),
        make(3, 1, 5).expand(3, 6, 5),
    ]
    return [copy_layout(t, dtype) if 0 not in t.stride() else t.to(dtype) for t in tensors]


@EACH_DEVICE
@EACH_DTYPE
@pytest.mark.parametrize("target", [1.0, 0.0, 30.0])
def test_penalty_and_its_gradient_follow_the_formula_in_every_layout(
    device: str, dtype: torch.dtype, target: float
) -> None:
    for grad in gradients(device, dtype):
        grad = grad.detach().requires_grad_()
        reference = grad.detach().double().requires_grad_()
        expected = formula(reference, target)
        penalty = gan_kernels.gradient_penalty(grad, target)
        assert penalty.shape == ()
        assert penalty.dtype == dtype
        torch.testing.assert_close(penalty, expected.to(dtype))
        (3 * penalty).backward()
        (3 * expected).backward()
        assert grad.grad.dtype == dtype
        torch.testing.assert_close(
            grad.grad,
            reference.grad.to(dtype),
            rtol=1e-2 if dtype.itemsize == 2 else 1e-5,
            atol=1e-3 if dtype.itemsize == 2 else 1e-6,
        )


@EACH_DEVICE
def test_a_zero_gradient_has_penalty_one_and_gradient_zero_also_at_second_order(device: str) -> None:
    grad = torch.randn(3, 4, device=device)
    grad[1] = 0
    grad.requires_grad_()
    penalty = gan_kernels.gradient_penalty(grad)
    torch.testing.assert_close(penalty, formula(grad))
    (first,) = torch.autograd.grad(penalty, grad, create_graph=True)
    assert first[1].eq(0).all()
    (second,) = torch.autograd.grad(first.square().sum(), grad)
    assert second[1].eq(0).all()
    assert second.isfinite().all()


@EACH_DEVICE
def test_an_empty_batch_gives_nan_and_empty_samples_the_target(device: str) -> None:
    empty = torch.zeros(0, 3, device=device, requires_grad=True)
    penalty = gan_kernels.gradient_penalty(empty)
    assert penalty.isnan()
    penalty.backward()
    assert empty.grad.shape == (0, 3)
    assert gan_kernels.gradient_penalty(torch.zeros(2, 0, device=device), 3.0) == 9


@EACH_DEVICE
@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 4)], ids=str)
def test_gradcheck_and_gradgradcheck(device: str, shape: tuple[int, ...]) -> None:
    grad = torch.randn(shape, dtype=torch.float64, device=device, requires_grad=True)
    out_grad = torch.randn((), dtype=torch.float64, device=device, requires_grad=True)
    penalty = functools.partial(gan_kernels.gradient_penalty, target=0.7)
    assert torch.autograd.gradcheck(penalty, grad)
    assert torch.autograd.gradgradcheck(penalty, grad)

    def backward(out_grad: Tensor, grad: Tensor) -> Tensor:
        return torch.autograd.grad(penalty(grad), grad, out_grad, create_graph=True)[0]

    assert torch.autograd.gradgradcheck(backward, (out_grad, grad))  # the third order of the penalty


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    grad = torch.randn(5, 100_001, requires_grad=True)
    params = [torch.randn(200_003), torch.randn(7, 40_000)]
    results, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            penalty = gan_kernels.gradient_penalty(grad)
            ps, vs = copy.deepcopy(params), [p.abs() for p in params]
            gan_kernels.rmsprop_clip_(ps, params, vs, 0.1, 0.9, 1e-8, 0.5)
            results.append([penalty.detach(), *torch.autograd.grad(penalty, grad), *ps, *vs])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@EACH_DEVICE
def test_a_long_sum_keeps_float32_accuracy(device: str) -> None:
    grad = torch.rand(2, 3_000_000, device=device)
    expected = formula(grad.double())
    assert abs(gan_kernels.gradient_penalty(grad).double() / expected - 1) < 1e-6


@EACH_DEVICE
@pytest.mark.parametrize("amp", [False, True])
def test_the_critics_weight_gradients_are_those_of_the_formula(device: str, amp: bool) -> None:
    module = load("wgan_gp.py")
    critic = module.Critic(3, 16, width=16).apply(module.init_weights).to(device, memory_format=torch.channels_last)
    real, fake = torch.rand(2, 8, 3, 16, 16, device=device) * 2 - 1
    found = []
    for fused in (False, True):
        torch.manual_seed(5)
        critic.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=amp):
            penalty = module.gradient_penalty(critic, real, fake, fused)
        (10 * penalty).backward()
        found.append([p.grad.clone() for p in critic.parameters() if p.grad is not None])
    assert len(found[0]) == len(list(critic.parameters())) - 1  # the last bias does not reach the gradient
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6 * a.abs().max().item())


# ------------------------------------------------------------------------------------------------- errors, registration


x, meta = torch.zeros(3), torch.zeros(3, device="meta")
REFUSED = {
    "params must be float": lambda: gan_kernels.clip_weights_([x, torch.zeros(3, dtype=torch.int32)], 1.0),
    "must be float32, float64": lambda: gan_kernels.gradient_penalty(torch.zeros(3, 2, dtype=torch.complex64)),
    "c must not be negative": lambda: gan_kernels.clip_weights_([x], -1.0),
    "c must not be": lambda: gan_kernels.rmsprop_clip_([x], [x], [x], 0.1, 0.9, 1e-8, float("nan")),
    "must not be expanded": lambda: gan_kernels.clip_weights_([torch.zeros(1).expand(3)], 1.0),
    "and square_avgs must not be": lambda: gan_kernels.rmsprop_clip_([x], [x], [x[:1].expand(3)], 0.1, 0.9, 1e-8, 1.0),
    "equally many": lambda: gan_kernels.rmsprop_clip_([x, x], [x], [x, x], 0.1, 0.9, 1e-8, 1.0),
    "grads must have the same shapes": lambda: gan_kernels.rmsprop_clip_([x], [x[:2]], [x], 0.1, 0.9, 1e-8, 1.0),
    "avgs must have the same shapes": lambda: gan_kernels.rmsprop_clip_([x], [x], [x[None]], 0.1, 0.9, 1e-8, 1.0),
    "grads must have the same dtypes": lambda: gan_kernels.rmsprop_clip_([x], [x.double()], [x], 0.1, 0.9, 1e-8, 1.0),
    "a batch dimension": lambda: gan_kernels.gradient_penalty(torch.zeros(())),
    "norms that gradient_penalty returned": lambda: OPS.gradient_penalty_backward(torch.ones(()), x, x, 1.0),
    "one number": lambda: OPS.gradient_penalty_backward(x, x, x.double(), 1.0),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_what_does_not_fit_is_refused_in_one_sentence(sentence: str) -> None:
    with pytest.raises(RuntimeError, match=sentence) as error:
        REFUSED[sentence]()
    assert "\n" not in str(error.value).strip()
    assert x.eq(0).all()


def test_a_list_that_is_refused_is_not_changed_in_part() -> None:
    params = [torch.full((3,), 2.0), torch.full((3,), 2.0, dtype=torch.float64), torch.ones(1).expand(4)]
    with pytest.raises(RuntimeError, match="expanded"):
        gan_kernels.clip_weights_(params, 1.0)
    assert params[0].eq(2).all()
    assert params[1].eq(2).all()


@NEEDS_GPU
def test_tensors_on_two_devices_are_refused() -> None:
    with pytest.raises(RuntimeError, match="on one device"):
        gan_kernels.clip_weights_([torch.zeros(3, device="cuda"), torch.zeros(3)], 1.0)
    assert torch.zeros(3, device="cuda").eq(0).all()  # the device still works


@EACH_DEVICE
@pytest.mark.parametrize("requires_grad", [False, True])
def test_opcheck(device: str, requires_grad: bool) -> None:
    make = functools.partial(torch.randn, device=device, requires_grad=requires_grad)
    lists = [[make(3, 4), make(5)] for _ in range(3)]
    with torch.no_grad():
        torch.library.opcheck(OPS.rmsprop_clip_.default, (*lists, 0.1, 0.9, 1e-8, 0.5))
        torch.library.opcheck(OPS.clip_weights_.default, (lists[0], 0.5))
    grad, norms = make(4, 3, 5), torch.rand(4, device=device, dtype=torch.float64)
    for grad in (make(4, 3, 5), torch.randn(4, 5, 3, device=device).transpose(1, 2).requires_grad_(requires_grad)):
        torch.library.opcheck(OPS.gradient_penalty.default, (grad, 0.7))
        torch.library.opcheck(OPS.gradient_penalty_backward.default, (make(()), grad, norms, 0.7))


@EACH_DEVICE
def test_everything_works_inside_torch_compile(device: str) -> None:
    @torch.compile(fullgraph=True)
    def step(params: list[Tensor], grads: list[Tensor], squares: list[Tensor], x: Tensor) -> Tensor:
        gan_kernels.rmsprop_clip_(params, grads, squares, 0.1, 0.9, 1e-8, 0.5)
        gan_kernels.clip_weights_(squares, 0.2)
        return gan_kernels.gradient_penalty(2 * x) + params[0].sum()

    lists = [[torch.rand(3, 4, device=device), torch.rand(5, device=device)] for _ in range(3)]
    others = copy.deepcopy(lists)
    x = torch.randn(4, 6, device=device, requires_grad=True)
    result = step(*lists, x)
    gan_kernels.rmsprop_clip_(*others, 0.1, 0.9, 1e-8, 0.5)
    gan_kernels.clip_weights_(others[2], 0.2)
    torch.testing.assert_close(lists, others)
    expected = formula(2 * x) + others[0][0].sum()
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(torch.autograd.grad(result, x), torch.autograd.grad(expected, x))


# -------------------------------------------------------------------------------------------------------- on a GPU only


def count_launches(function: Callable[[], object]) -> int:
    function()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        function()
        torch.cuda.synchronize()
    return sum(event.count for event in profile.key_averages() if event.device_type == torch.profiler.DeviceType.CUDA)


@NEEDS_GPU
def test_each_operator_is_one_launch() -> None:
    lists = [[torch.rand(1 + 5000 * (i % 3), device="cuda") for i in range(60)] for _ in range(3)]
    grad = torch.randn(64, 3, 64, 64, device="cuda")
    out_grad, norms = torch.ones((), device="cuda"), OPS.gradient_penalty(grad)[1]
    assert count_launches(lambda: gan_kernels.clip_weights_(lists[0], 0.5)) == 1
    assert count_launches(lambda: gan_kernels.rmsprop_clip_(*lists, 0.1, 0.9, 1e-8, 0.5)) == 1
    assert count_launches(lambda: OPS.gradient_penalty(grad)) == 1
    assert count_launches(lambda: OPS.gradient_penalty_backward(out_grad, grad, norms, 1.0)) == 1


@NEEDS_GPU
def test_operators_replay_from_a_cuda_graph_and_keep_to_the_current_stream() -> None:
    lists = [[torch.rand(4097, device="cuda"), torch.rand(33, device="cuda")] for _ in range(3)]
    start, grad = copy.deepcopy(lists), torch.randn(8, 5000, device="cuda", requires_grad=True)

    def step() -> tuple[Tensor, Tensor]:
        gan_kernels.rmsprop_clip_(*lists, 0.01, 0.9, 1e-8, 0.5)
        penalty = gan_kernels.gradient_penalty(grad)
        return penalty, *torch.autograd.grad(penalty, grad)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    for tensors, values in zip(lists, start, strict=True):
        torch._foreach_copy_(tensors, values)
    with torch.no_grad():
        grad.copy_(torch.randn_like(grad))
    graph.replay()
    graph.replay()
    for _ in range(2):
        gan_kernels.rmsprop_clip_(*start, 0.01, 0.9, 1e-8, 0.5)
    torch.testing.assert_close(lists, start, rtol=0, atol=0)
    expected = formula(grad)
    torch.testing.assert_close(results, (expected, *torch.autograd.grad(expected, grad)))


# ------------------------------------------------------------------------------------------- in the scripts, the doctor


NAMES = ["wgan", "wgan_gp"]
LONG = ["--batch-size", 8, "--latent-dim", 8, "--log-every", 1, "--epochs", 1000]


def rows(run: str) -> list[list[float]]:
    lines = Path(run, "metrics.csv").read_text().splitlines()[1:]
    return [[float(value) for value in line.split(",")[:-1]] for line in lines]  # seconds are last


@pytest.mark.parametrize("amp", [[], ["--amp"]], ids=["float32", "amp"])
@pytest.mark.parametrize("name", NAMES)
def test_twenty_steps_with_kernels_follow_those_without(name: str, amp: list[str]) -> None:
    data = make_data(Path("data"), 60, size=16)
    for kernels in ("on", "off"):
        call(f"{name}.py", "--data", data, "--out", kernels, "--steps", 20, "--kernels", kernels, *LONG, *amp)
    on, off = rows("on"), rows("off")
    assert len(on) == len(off) == 20
    scale = max(abs(value) for row in off for value in row[2:])
    for a, b in zip(on, off, strict=True):
        assert a[:2] == b[:2]
        assert a[2:] == pytest.approx(b[2:], abs=0.02 * scale)  # as much as another number of threads does
    assert on != off or name == "wgan"  # the kernels were used: their rounding shows


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("order", [("on", "off"), ("off", "on")], ids=" then ".join)
def test_a_run_is_resumed_with_or_without_kernels(name: str, order: tuple[str, str], data: Path) -> None:
    common = ["--data", data, *TINY]
    call(f"{name}.py", *common, "--out", "run", "--kernels", order[0])
    call(f"{name}.py", "--resume", "run", "--steps", 6, "--kernels", order[1])
    call(f"{name}.py", *common, "--out", "whole", "--steps", 6, "--kernels", order[1])
    found, expected = (torch.load(Path(run, "checkpoint.pt"), weights_only=True) for run in ("run", "whole"))
    assert found["step"] == 6
    assert found["args"]["kernels"] == order[1]
    for part in ("generator", "critic"):
        torch.testing.assert_close(found[part], expected[part], rtol=1e-3, atol=1e-5)
    assert found["optimizers"][1].keys() == expected["optimizers"][1].keys()


@pytest.mark.parametrize("name", NAMES)
def test_the_start_says_which_path_runs_and_why(
    name: str, data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def line(kernels: str) -> str:
        call(f"{name}.py", "--data", data, "--kernels", kernels, *TINY)
        return next(line for line in capsys.readouterr().out.splitlines() if line.startswith("kernels: "))

    assert line("auto") == line("on") == "kernels: gan_kernels"
    assert line("off") == "kernels: formula in PyTorch (--kernels off)"
    monkeypatch.setattr(gan_kernels, "why_not", lambda device: f"broken on {device}")
    assert line("auto") == "kernels: formula in PyTorch (broken on cpu)"


@pytest.mark.parametrize("name", NAMES)
def test_a_run_with_kernels_goes_on_without_them_if_auto_is_typed(
    name: str, data: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    call(f"{name}.py", "--data", data, *TINY, "--out", "run", "--kernels", "on")
    monkeypatch.setattr(load(f"{name}.py"), "gan_kernels", None)
    assert "--kernels on: gan_kernels is not installed" in refused(f"{name}.py", "--resume", "run", "--steps", 4)
    assert call(f"{name}.py", "--resume", "run", "--generate", 2, "--kernels", "auto") == 0
    assert call(f"{name}.py", "--resume", "run", "--steps", 4, "--kernels", "auto") == 0


def test_the_doctor_reports_what_was_built_and_what_runs() -> None:
    done = subprocess.run([sys.executable, "-m", "gan_kernels"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = dict(line.split(None, 1) for line in done.stdout.splitlines())
    assert torch.__version__ in lines["torch"]
    assert "_C" in lines["library"]
    assert lines["cpu"].startswith("runs")
    assert lines["cuda"].startswith("runs" if torch.cuda.is_available() else "does not run: ")


def test_without_a_library_the_package_imports_and_says_why_it_does_not_run(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "gan_kernels", tmp_path / "gan_kernels", ignore=shutil.ignore_patterns("_*.so", "_build*"))
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    code = "import gan_kernels; print(gan_kernels.__file__); gan_kernels.clip_weights_([], 1.0)"
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert str(tmp_path) in done.stdout
    assert "RuntimeError: gan_kernels: the extension is not built" in done.stderr
    done = subprocess.run([sys.executable, "-m", "gan_kernels"], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "the extension is not built; pip install -e . in the repository builds it" in done.stdout


def test_a_library_that_does_not_load_is_named_with_both_versions(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "gan_kernels", tmp_path / "gan_kernels", ignore=shutil.ignore_patterns("_*.so"))
    (tmp_path / "gan_kernels" / "_C.abi3.so").write_bytes(b"not a library")
    (tmp_path / "gan_kernels" / "_build.json").write_text(json.dumps({"torch": "1.2.3", "cuda": None, "error": None}))
    code = "import gan_kernels; print(gan_kernels.why_not())"
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "built with PyTorch 1.2.3" in done.stdout
    assert torch.__version__ in done.stdout
    assert "invalid ELF header" in done.stdout or "file too short" in done.stdout
