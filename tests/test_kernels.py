"""gan_kernels against the formulas in float64, on the CPU and, where there is one, on a GPU.

With the fixture `kernels` a test runs twice: on the package, and on a copy without a library, which
computes in plain PyTorch. With `built` it runs on the package alone.
"""

import copy
import functools
import importlib.util
import pickle
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from conftest import ROOT
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.optim import RMSprop

try:
    import gan_kernels
except ImportError:  # never built
    gan_kernels = None

pytestmark = pytest.mark.filterwarnings("ignore:gan_kernels computes in plain PyTorch")

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
NO_GPU = gan_kernels is None or gan_kernels.why_not("cuda") is not None
NO_BUILD = gan_kernels is None or not shutil.which("c++")
NEEDS_GPU = pytest.mark.skipif(NO_GPU, reason="no GPU here, or no kernels for it")
NUMBERS = (0.01, 0.9, 1e-3, 0.5)  # lr, alpha, eps and the bound of the weights
OPS = torch.ops.gan_kernels
REFUSED_OPTIONS = ["momentum", "weight_decay", "centered", "maximize", "differentiable"]
NO_COMPILER = {"_build.json": '{"error": "there is no compiler"}'}


def import_copy(folder: Path, **files: str) -> ModuleType:
    """Imports a copy of gan_kernels that has these files in place of what setup.py has built."""
    package = folder / "gan_kernels"
    built = shutil.ignore_patterns("_C*", "_build.json", "__pycache__")
    shutil.copytree(ROOT / "gan_kernels", package, ignore=built)
    for file, text in files.items():
        (package / file).write_text(text)
    name = f"gan_kernels_in_{folder.name}"  # not the name of the real package
    spec = importlib.util.spec_from_file_location(name, package / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def run_doctor(folder: Path) -> subprocess.CompletedProcess:
    """Runs python -m gan_kernels with the package in folder."""
    command = [sys.executable, "-m", "gan_kernels"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=NEEDS_GPU, id="gpu")])
def device(request) -> str:
    return request.param


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request) -> torch.dtype:
    return request.param


@pytest.fixture(scope="session")
def formula(tmp_path_factory) -> ModuleType:
    return import_copy(tmp_path_factory.mktemp("formula"), **NO_COMPILER)


@pytest.fixture
def built() -> ModuleType:
    if gan_kernels is None or gan_kernels.why_not("cpu"):
        pytest.skip("gan_kernels is not built; pip install -e . does it")
    return gan_kernels


@pytest.fixture(params=["built", "formula"])
def kernels(request) -> ModuleType:
    torch.manual_seed(0)
    return request.getfixturevalue(request.param)


def layouts(device: str, dtype: torch.dtype) -> list[Tensor]:
    """Random tensors in all kinds of memory layouts."""
    make = functools.partial(torch.randn, device=device, dtype=dtype)
    return [
        make(()),
        make(0, 3),
        make(7),
        make(3, 100_001),
        make(40, 1, 1, 50),
        make(8, 16, 4, 4).to(memory_format=torch.channels_last),
        make(30, 40).t(),
        make(20, 30, 40).permute(2, 0, 1),
        make(50, 60)[5:20, 7:30:3],
        make(9001)[1:].view(9, 1000),  # does not begin at a multiple of 16 bytes
        make(20, 30)[:, 4],
    ]


def test_clip_is_clamp_in_any_layout(kernels, device, dtype) -> None:
    special = torch.tensor([float("nan"), float("inf"), -float("inf")], device=device)
    params = [*layouts(device, dtype), special.to(dtype)]
    expected = [p.clamp(-0.3, 0.3) for p in params]
    kernels.clip_weights_(params, 0.3)
    torch.testing.assert_close(params, expected, rtol=0, atol=0, equal_nan=True)


def test_clip_writes_nothing_beside_a_view(kernels, device) -> None:
    whole = torch.full((50, 60), 2.0, device=device)
    kernels.clip_weights_([whole[5:20, 7:30:2]], 1.0)
    expected = torch.full((50, 60), 2.0, device=device)
    expected[5:20, 7:30:2] = 1
    assert torch.equal(whole, expected)


def test_clip_takes_long_lists_of_several_dtypes_and_empty_ones(kernels, device) -> None:
    params = [torch.full((3,), 2, device=device, dtype=dtype) for dtype in DTYPES * 425]
    kernels.clip_weights_(iter(params), 1.0)
    kernels.clip_weights_([], 1.0)
    assert all(p.eq(1).all() for p in params)


def test_autograd_notices_that_a_saved_weight_was_changed(kernels) -> None:
    weight = nn.Parameter(torch.randn(3))
    loss = weight.square().sum()
    kernels.clip_weights_([weight], 0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def expected_step(p: Tensor, g: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The weights and the running mean of squares after a step, by the paper, in float64."""
    lr, alpha, eps, c = NUMBERS
    square_avg = alpha * v.double() + (1 - alpha) * g.double() ** 2
    weights = p.double() - lr * g.double() / (square_avg.sqrt() + eps)
    return weights.clamp(-c, c).to(p.dtype), square_avg.to(p.dtype)


def test_step_is_right_in_any_layout(kernels, device, dtype) -> None:
    params = layouts(device, dtype)
    grads = layouts(device, dtype)
    squares = [v.abs().contiguous() for v in layouts(device, dtype)]
    grads[5:7] = [g.contiguous() for g in grads[5:7]]  # their weights are in another layout
    expected = [expected_step(*tensors) for tensors in zip(params, grads, squares, strict=True)]
    kernels.rmsprop_clip_(iter(params), iter(grads), iter(squares), *NUMBERS)
    torch.testing.assert_close(list(zip(params, squares, strict=True)), expected)


def test_steps_are_those_of_rmsprop_and_clamp_and_states_can_be_exchanged(kernels, device) -> None:
    p = nn.Parameter(torch.randn(70, 30, device=device) * 0.01)
    q = nn.Parameter(p.detach().clone())
    ours = kernels.RMSpropClip([p], clip=0.01, lr=5e-4, alpha=0.9)
    theirs = RMSprop([q], lr=5e-4, alpha=0.9)
    for _ in range(20):
        saved = copy.deepcopy(ours.state_dict())
        ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
        theirs.load_state_dict(saved)
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
        ours.step()
        theirs.step()
        q.data.clamp_(-0.01, 0.01)
    found = [p, ours.state[p]]
    torch.testing.assert_close(found, [q, theirs.state[q]], rtol=1e-5, atol=1e-8)


def test_a_step_returns_the_loss_and_clips_what_has_no_gradient(kernels) -> None:
    p = nn.Parameter(torch.ones(3))
    unused = nn.Parameter(torch.ones(3))
    optimizer = kernels.RMSpropClip([p, unused], clip=0.5)

    def closure() -> Tensor:
        loss = (2 * p).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 6
    assert p.eq(0.5).all()
    assert unused.eq(0.5).all()
    assert unused not in optimizer.state


def test_clip_is_an_option_of_each_group_like_lr(kernels) -> None:
    p, q, r = (nn.Parameter(torch.ones(3)) for _ in range(3))
    optimizer = kernels.RMSpropClip([{"params": [p]}, {"params": [q], "clip": 0.25}], clip=0.5)
    optimizer.add_param_group({"params": [r]})
    assert "clip: 0.25" in repr(optimizer)
    assert [group["clip"] for group in optimizer.state_dict()["param_groups"]] == [0.5, 0.25, 0.5]
    for same in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        same.step()  # without gradients it only clips
        weights = [group["params"][0].max().item() for group in same.param_groups]
        assert weights == [0.5, 0.25, 0.5]
    assert p.eq(1).all()
    optimizer.load_state_dict(RMSprop([{"params": [x]} for x in (p, q, r)]).state_dict())
    optimizer.step()
    assert [x.max().item() for x in (p, q, r)] == [0.5, 0.25, 0.5]


@pytest.mark.parametrize("clip", [-1, "0.01", float("nan"), None])
def test_a_clip_that_is_no_number_from_0_on_is_refused(kernels, clip) -> None:
    p = nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match="clip must be a number from 0 on"):
        kernels.RMSpropClip([p], clip=clip)
    optimizer = kernels.RMSpropClip([p], clip=0.5)
    optimizer.param_groups[0]["clip"] = clip
    with pytest.raises(ValueError, match="clip must be"):
        optimizer.step()


def test_the_optimizer_survives_what_rmsprop_survives(kernels, monkeypatch) -> None:
    p = nn.Parameter(torch.linspace(-1, 1, 6).view(2, 3))
    q = nn.Parameter(p.detach().clone())
    torch.set_default_dtype(torch.bfloat16)
    try:
        ours = kernels.RMSpropClip([p], clip=0.5, lr=0.01)
        theirs = RMSprop([q], lr=0.01)
        for dtype in (torch.float32, torch.float64):  # as by critic.double()
            for x in (p, q):
                x.data = x.data.to(dtype)
                x.grad = torch.ones(3, 2, dtype=dtype).t()
            ours.step()
            theirs.step()
            q.data.clamp_(-0.5, 0.5)
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(p, q)
    assert ours.state[p]["step"].dtype == torch.float32  # bfloat16 counts to 256 only
    p.grad = torch.ones(2, 3, dtype=torch.float64).to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        ours.step()


def test_parameters_with_gaps_need_no_no_grad(kernels) -> None:
    p = nn.Parameter(torch.ones(4, 4)[:, ::2])
    kernels.clip_weights_([p], 0.5)
    kernels.rmsprop_clip_([p], [torch.zeros(4, 2)], [torch.zeros(4, 2)], 0.1, 0.9, 1e-8, 0.25)
    assert p.eq(0.25).all()
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("option", REFUSED_OPTIONS)
def test_options_not_computed_are_refused_whenever_they_come(kernels, option) -> None:
    p = nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match=option):
        kernels.RMSpropClip([p], clip=0.5, **{option: True})
    optimizer = kernels.RMSpropClip([p], clip=0.5)
    optimizer.load_state_dict(RMSprop([p], **{option: True}).state_dict())
    with pytest.raises(ValueError, match=option):
        optimizer.step()


def reference_penalty(grad: Tensor, target: float = 1.0) -> Tensor:
    return (grad.unsqueeze(-1).flatten(1).norm(2, dim=1) - target).square().mean()


def derivatives(penalty: Callable, values: Tensor, direction: Tensor) -> list[Tensor]:
    """Three times the penalty, its gradient, and the second derivative in a direction."""
    grad = values.detach().requires_grad_()
    result = 3 * penalty(grad, 2.0)
    (first,) = torch.autograd.grad(result, grad, create_graph=True)
    (second,) = torch.autograd.grad(first, grad, direction)
    return [result, first, second]


def test_penalty_and_derivatives_are_right_in_any_layout(kernels, device, dtype) -> None:
    tolerance = {"rtol": 1e-5, "atol": 1e-6}
    if dtype in (torch.float16, torch.bfloat16):
        tolerance = {"rtol": 1e-2, "atol": 1e-3}
    sample = torch.randn(1, 5, device=device, dtype=dtype)
    not_empty = layouts(device, dtype)[2:]
    for values in not_empty:
        values.add_(values.sign())  # near zero, float32 cannot give the second derivative
    for values in [*not_empty, sample.expand(4, 5), sample[:, None].expand(1, 6, 5)]:
        direction = torch.randn_like(values)
        found = derivatives(kernels.gradient_penalty, values, direction)
        expected = derivatives(reference_penalty, values.double(), direction.double())
        torch.testing.assert_close(found, [x.to(dtype) for x in expected], **tolerance)


def test_where_the_gradient_is_zero_the_derivatives_are_zero(kernels, device) -> None:
    grad = torch.randn(3, 4, device=device)
    grad[1] = 0
    penalty, *both = derivatives(kernels.gradient_penalty, grad, torch.ones_like(grad))
    torch.testing.assert_close(penalty, 3 * reference_penalty(grad, 2.0))
    assert all(derivative[1].eq(0).all() for derivative in both)


def test_at_target_0_the_second_derivative_is_the_same_everywhere(kernels, device) -> None:
    zeros = torch.zeros(4, 3, device=device, requires_grad=True)
    penalty = kernels.gradient_penalty(zeros, 0.0)
    (first,) = torch.autograd.grad(penalty, zeros, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), zeros)
    assert second.eq(2 / 4).all()


@pytest.mark.parametrize("target", [0.0, 0.7])
def test_forward_mode_and_torch_func_give_the_right_values(kernels, target) -> None:
    x, direction = torch.randn(2, 3, 4, dtype=torch.float64)
    ours = functools.partial(kernels.gradient_penalty, target=target)
    formula = functools.partial(reference_penalty, target=target)
    for transform in (torch.func.grad, torch.func.hessian):
        torch.testing.assert_close(transform(ours)(x), transform(formula)(x))
    expected = torch.func.jvp(formula, (x,), (direction,))
    torch.testing.assert_close(torch.func.jvp(ours, (x,), (direction,)), expected)
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(ours(forward_ad.make_dual(x, direction)))
        torch.testing.assert_close(tuple(dual), expected)


def test_an_empty_batch_gives_nan_and_empty_samples_the_target(kernels) -> None:
    empty = torch.zeros(0, 3, requires_grad=True)
    penalty = kernels.gradient_penalty(empty)
    assert penalty.isnan()
    penalty.backward()
    assert empty.grad.shape == (0, 3)
    assert kernels.gradient_penalty(torch.zeros(2, 0), 3.0) == 9


def test_gradgradcheck_finds_no_fault(kernels, device) -> None:
    grad = torch.randn(2, 3, 4, dtype=torch.float64, device=device, requires_grad=True)
    penalty = functools.partial(kernels.gradient_penalty, target=0.7)
    assert torch.autograd.gradgradcheck(penalty, grad)


def test_under_autocast_the_critics_gradients_are_those_of_the_formula(kernels, device) -> None:
    critic = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)).to(device)
    x = torch.randn(4, 6, device=device, requires_grad=True)
    with torch.autocast(device, torch.bfloat16):
        (grad,) = torch.autograd.grad(critic(x).sum(), x, create_graph=True)
        penalty = kernels.gradient_penalty(grad)
        expected = reference_penalty(grad)
    found_grad = torch.autograd.grad(penalty, critic[0].weight, retain_graph=True)
    expected_grad = torch.autograd.grad(expected, critic[0].weight)
    torch.testing.assert_close(found_grad, expected_grad, rtol=1e-2, atol=1e-4)


def test_results_do_not_depend_on_the_number_of_threads(built) -> None:
    grad = torch.randn(5, 100_001)
    alone = built.gradient_penalty(grad)
    torch.set_num_threads(3)
    together = built.gradient_penalty(grad)
    torch.set_num_threads(1)  # as conftest.py has it
    assert torch.equal(alone, together)


def refusal(function: Callable, *arguments: object) -> str:
    with pytest.raises(RuntimeError) as error:
        function(*arguments)
    return str(error.value)


def test_what_does_not_fit_is_refused_in_a_sentence(built) -> None:
    x = torch.ones(3)
    clip, step, penalty = built.clip_weights_, built.rmsprop_clip_, built.gradient_penalty
    dtypes = "must be float32, float64, float16 or bfloat16"
    assert f"params {dtypes}" in refusal(clip, [x, x.int()], 0.5)
    assert f"grad {dtypes}" in refusal(penalty, x.int())
    assert "grad must have a batch dimension" in refusal(penalty, torch.ones(()))
    assert "c must not be negative" in refusal(clip, [x], -0.5)
    assert "must not be expanded" in refusal(clip, [x, torch.ones(1).expand(3)], 0.5)
    assert "must be equally many" in refusal(step, [x], [], [], *NUMBERS)
    assert "must have the same shapes" in refusal(step, [x], [x[:2]], [x], *NUMBERS)
    assert "must have the same dtypes" in refusal(step, [x], [x], [x.double()], *NUMBERS)
    assert x.eq(1).all()  # not even changed in part


@NEEDS_GPU
def test_tensors_on_a_gpu_and_on_the_cpu_are_refused_together() -> None:
    mixed = [torch.zeros(3, device="cuda"), torch.zeros(3)]
    assert "on one device" in refusal(gan_kernels.clip_weights_, mixed, 1.0)


def test_opcheck_finds_no_fault(built, device) -> None:
    lists = [[torch.rand(4, device=device), torch.rand(5, device=device)] for _ in range(3)]
    torch.library.opcheck(OPS.rmsprop_clip_.default, (*lists, *NUMBERS))
    torch.library.opcheck(OPS.clip_weights_.default, (lists[0], 0.5))
    grad = torch.randn(3, 4, device=device).t().requires_grad_()
    torch.library.opcheck(OPS.gradient_penalty.default, (grad, 0.7))
    out_grad = torch.ones((), device=device, requires_grad=True)
    norms = torch.rand(4, device=device, dtype=torch.float64)
    torch.library.opcheck(OPS.gradient_penalty_backward.default, (out_grad, grad, norms, 0.7))


def test_everything_works_inside_torch_compile(kernels, device) -> None:
    def step(p: Tensor, g: Tensor, v: Tensor, x: Tensor) -> Tensor:
        kernels.rmsprop_clip_([p], [g], [v], *NUMBERS)
        kernels.clip_weights_([v], 0.2)
        return kernels.gradient_penalty(2 * x) + p.sum()

    tensors = [torch.rand(3, 4, device=device) for _ in range(3)]
    expected_tensors = copy.deepcopy(tensors)
    x = torch.randn(4, 6, device=device, requires_grad=True)
    expected = step(*expected_tensors, x)
    result = torch.compile(step, fullgraph=True)(*tensors, x)
    torch.testing.assert_close([result, *tensors], [expected, *expected_tensors])
    torch.testing.assert_close(torch.autograd.grad(result, x), torch.autograd.grad(expected, x))


def count_launches(function: Callable, *arguments: object) -> int:
    function(*arguments)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        function(*arguments)
        torch.cuda.synchronize()
    on_gpu = torch.profiler.DeviceType.CUDA
    return sum(event.count for event in profile.key_averages() if event.device_type == on_gpu)


@NEEDS_GPU
def test_on_a_gpu_an_operator_is_one_launch_and_the_penalty_two() -> None:
    lists = [[torch.rand(1 + i % 3, device="cuda") for i in range(60)] for _ in range(3)]
    grad = torch.randn(64, 3, 64, 64, device="cuda")
    penalty, norms = OPS.gradient_penalty(grad)
    assert count_launches(gan_kernels.clip_weights_, lists[0], 0.5) == 1
    assert count_launches(gan_kernels.rmsprop_clip_, *lists, *NUMBERS) == 1
    assert count_launches(OPS.gradient_penalty, grad) == 2
    assert count_launches(OPS.gradient_penalty_backward, penalty, grad, norms, 1.0) == 1


@pytest.mark.skipif(NO_BUILD, reason="gan_kernels was never built, or there is no compiler here")
def test_what_was_built_with_a_compiler_runs_and_the_doctor_says_so() -> None:
    done = run_doctor(ROOT)
    assert done.returncode == 0, done.stderr
    assert "cpu      runs" in done.stdout
    if torch.cuda.is_available() and shutil.which("nvcc"):
        assert "cuda     runs" in done.stdout
    assert "not for mps" in gan_kernels.why_not("mps")


def test_where_nothing_was_built_the_import_fails_and_says_how_to_build(tmp_path) -> None:
    with pytest.raises(ImportError, match="not built; pip install -e"):
        import_copy(tmp_path)


def test_where_the_build_failed_a_warning_gives_the_reason_once(tmp_path) -> None:
    package = import_copy(tmp_path, **NO_COMPILER)
    with pytest.warns(UserWarning, match="plain PyTorch on cpu: there is no compiler"):
        package.clip_weights_([torch.ones(3)], 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        package.gradient_penalty(torch.ones(2, 3))
    done = run_doctor(tmp_path)
    assert done.returncode == 1
    assert "cpu      does not run: there is no compiler" in done.stdout


def test_a_library_that_does_not_load_is_named_with_both_versions(tmp_path) -> None:
    files = {"_build.json": '{"torch": "1.2.3"}', "_C.abi3.so": "not a library"}
    reason = import_copy(tmp_path, **files).why_not("cpu")
    assert "_C.abi3.so, built with PyTorch 1.2.3" in reason
    assert torch.__version__ in reason
