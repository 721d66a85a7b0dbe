"""gan_kernels against the formulas in float64, on the CPU and, where there is one, on a GPU.

The fixture `kernels` is the package with its kernels and then a copy without a library, which
computes in plain PyTorch. The fixture `built` is the package with its kernels alone.
"""

import copy
import functools
import importlib.util
import json
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
from torch.optim import RMSprop

try:
    import gan_kernels
except ImportError:  # never built
    gan_kernels = None

pytestmark = pytest.mark.filterwarnings("ignore:gan_kernels computes in plain PyTorch")

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
NO_GPU = gan_kernels is None or gan_kernels.why_not("cuda") is not None
NEEDS_GPU = pytest.mark.skipif(NO_GPU, reason="no GPU here, or no kernels for it")
EXACTLY = {"rtol": 0, "atol": 0, "equal_nan": True}
NUMBERS = (0.01, 0.9, 1e-3, 0.5)  # lr, alpha, eps and the bound of the weights
OPS = torch.ops.gan_kernels
DOCTOR = [sys.executable, "-m", "gan_kernels"]


def copy_package(folder: Path, build_info: dict | None) -> Path:
    """Copies gan_kernels as it would be without a library, after setup.py has left build_info."""
    package = folder / "gan_kernels"
    ignored = shutil.ignore_patterns("_C*", "_build.json", "__pycache__")
    shutil.copytree(ROOT / "gan_kernels", package, ignore=ignored)
    if build_info:
        (package / "_build.json").write_text(json.dumps(build_info))
    return package


def import_package(package: Path) -> ModuleType:
    """Imports such a copy beside the real package, under another name."""
    name = f"gan_kernels_in_{package.parent.name}"
    spec = importlib.util.spec_from_file_location(name, package / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=NEEDS_GPU, id="gpu")])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def formula(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    folder = tmp_path_factory.mktemp("formula")
    return import_package(copy_package(folder, {"error": "there was no compiler"}))


@pytest.fixture
def built() -> ModuleType:
    if gan_kernels is None:
        pytest.skip("gan_kernels was never built; pip install -e . does it")
    if gan_kernels.why_not("cpu"):
        pytest.skip(gan_kernels.why_not("cpu"))
    return gan_kernels


@pytest.fixture(params=["built", "formula"])
def kernels(request: pytest.FixtureRequest) -> ModuleType:
    torch.manual_seed(0)
    return request.getfixturevalue(request.param)


def layouts(device: str, dtype: torch.dtype) -> list[Tensor]:
    """Random tensors in all kinds of memory layouts."""
    make = functools.partial(torch.randn, device=device, dtype=dtype)
    return [
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
        make(9001)[1:],  # does not begin at a multiple of 16 bytes
        make(20, 30)[:, 4],
    ]


@EACH_DTYPE
def test_clip_is_clamp_in_any_layout(kernels: ModuleType, device: str, dtype: torch.dtype) -> None:
    infinity = float("inf")
    special = torch.tensor([float("nan"), infinity, -infinity, 0.0, -0.0], device=device)
    params = [nn.Parameter(x) for x in [*layouts(device, dtype), special.to(dtype)]]
    expected = [p.detach().clamp(-0.3, 0.3) for p in params]
    kernels.clip_weights_(params, 0.3)
    torch.testing.assert_close([p.data for p in params], expected, **EXACTLY)


def test_clip_writes_nothing_beside_a_view(kernels: ModuleType, device: str) -> None:
    whole = torch.full((50, 60), 2.0, device=device)
    kernels.clip_weights_([whole[5:20, 7:30], whole[40, ::2]], 1.0)
    expected = torch.full((50, 60), 2.0, device=device)
    expected[5:20, 7:30] = 1
    expected[40, ::2] = 1
    assert torch.equal(whole, expected)


def test_clip_takes_long_lists_of_several_dtypes(kernels: ModuleType, device: str) -> None:
    dtypes = DTYPES * 425
    params = [torch.full((i % 5,), 2, device=device, dtype=x) for i, x in enumerate(dtypes)]
    kernels.clip_weights_(params, 1.0)
    assert all(p.eq(1).all() for p in params)


def test_lists_may_be_empty_and_any_iterable(kernels: ModuleType) -> None:
    p = torch.ones(2)
    kernels.rmsprop_clip_(iter([p]), iter([p.clone()]), iter([p.clone()]), *NUMBERS)
    assert p.eq(0.5).all()
    kernels.clip_weights_(iter([p]), 0.25)
    assert p.eq(0.25).all()
    kernels.clip_weights_(iter(()), 1.0)
    kernels.rmsprop_clip_([], [], [], *NUMBERS)


def test_autograd_notices_that_a_saved_weight_was_changed(kernels: ModuleType) -> None:
    weight = nn.Parameter(torch.randn(3))
    other = torch.randn(3, requires_grad=True)
    loss = (weight * other).square().sum()
    kernels.clip_weights_([weight], 0.1)
    assert weight.is_leaf
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def expected_step(p: Tensor, g: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The weights and the running mean of squares after a step, by the paper, in float64."""
    lr, alpha, eps, c = NUMBERS
    square_avg = alpha * v.double() + (1 - alpha) * g.double() ** 2
    weights = p.double() - lr * g.double() / (square_avg.sqrt() + eps)
    return weights.clamp(-c, c).to(p.dtype), square_avg.to(p.dtype)


@EACH_DTYPE
def test_step_is_right_in_any_layout(kernels: ModuleType, device: str, dtype: torch.dtype) -> None:
    params = layouts(device, dtype)
    grads = layouts(device, dtype)
    squares = [v.abs_() for v in layouts(device, dtype)]
    grads[6] = grads[6].contiguous()  # some that are in another layout than their weights
    grads[8] = grads[8].contiguous()
    squares[8] = squares[8].contiguous()
    squares[13] = squares[13].contiguous()
    grads_before = copy.deepcopy(grads)
    expected = [expected_step(*tensors) for tensors in zip(params, grads, squares, strict=True)]
    kernels.rmsprop_clip_(params, grads, squares, *NUMBERS)
    torch.testing.assert_close(list(zip(params, squares, strict=True)), expected)
    torch.testing.assert_close(grads, grads_before, **EXACTLY)


def test_fifty_steps_are_those_of_rmsprop_and_clamp(kernels: ModuleType, device: str) -> None:
    p = nn.Parameter(torch.randn(70, 30, device=device) * 0.01)
    q = nn.Parameter(p.detach().clone())
    ours = kernels.RMSpropClip([p], clip=0.01, lr=5e-4)
    theirs = RMSprop([q], lr=5e-4)
    for _ in range(50):
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
        ours.step()
        theirs.step()
        q.data.clamp_(-0.01, 0.01)
    is_formula_on_cpu = kernels is not gan_kernels and device == "cpu"
    tolerance = EXACTLY if is_formula_on_cpu else {"rtol": 1e-5, "atol": 1e-8}
    torch.testing.assert_close(p, q, **tolerance)
    torch.testing.assert_close(ours.state[p], theirs.state[q], **tolerance)


def test_rmsprop_and_rmsprop_clip_continue_from_each_others_state(kernels: ModuleType) -> None:
    p = nn.Parameter(torch.randn(3))
    p.grad = torch.randn(3)
    ours = kernels.RMSpropClip([p], clip=10.0, lr=1e-3, alpha=0.9)
    ours.step()
    saved = copy.deepcopy(ours.state_dict())
    theirs = RMSprop([p])
    theirs.load_state_dict(saved)
    resumed = kernels.RMSpropClip([p], clip=10.0)
    resumed.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(resumed.state_dict()["state"], saved["state"], **EXACTLY)
    assert resumed.state_dict()["param_groups"] == saved["param_groups"]


def test_what_has_no_gradient_is_clipped_and_gets_no_state(kernels: ModuleType) -> None:
    p = nn.Parameter(torch.full((3,), 2.0))
    optimizer = kernels.RMSpropClip([p], clip=0.5, lr=0.1)
    optimizer.step()
    assert p.eq(0.5).all()
    assert p not in optimizer.state


def test_a_step_takes_a_closure_and_returns_its_loss(kernels: ModuleType) -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = kernels.RMSpropClip([p], clip=0.5)

    def closure() -> Tensor:
        loss = (2 * p).sum()
        loss.backward()
        return loss

    with torch.no_grad():
        assert optimizer.step(closure) == 6
    assert p.eq(0.5).all()


def test_hooks_run_once_a_step_and_may_change_the_gradients(kernels: ModuleType) -> None:
    RMSprop([torch.ones(3)])  # from the first instance on, PyTorch runs hooks in RMSprop.step, too
    p = nn.Parameter(torch.zeros(3))
    p.grad = torch.ones(3)
    optimizer = kernels.RMSpropClip([p], clip=0.5, lr=0.25, alpha=0.0, eps=0.0)
    calls = []

    def negate_gradient(*_: object) -> None:
        calls.append("hook")
        p.grad.neg_()

    optimizer.register_step_pre_hook(negate_gradient)
    optimizer.step()
    assert calls == ["hook"]
    assert p.eq(0.25).all()


REFUSED = {"momentum": 0.9, "weight_decay": 0.1, "centered": True, "maximize": True}


@pytest.mark.parametrize(("name", "value"), REFUSED.items())
def test_options_not_computed_are_refused(kernels: ModuleType, name: str, value: float) -> None:
    p = nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match=name):
        kernels.RMSpropClip([p], clip=0.5, **{name: value})
    optimizer = kernels.RMSpropClip([p], clip=0.5)
    optimizer.load_state_dict(RMSprop([p], **{name: value}).state_dict())
    with pytest.raises(ValueError, match=name):
        optimizer.step()
    assert p.eq(1).all()


def reference_penalty(grad: Tensor, target: float = 1.0) -> Tensor:
    return (grad.unsqueeze(-1).flatten(1).norm(2, dim=1) - target).square().mean()


def gradients(device: str, dtype: torch.dtype) -> list[Tensor]:
    """Random gradients in all kinds of memory layouts, also expanded ones."""
    samples = torch.randn(3, 1, 5, device=device, dtype=dtype).expand(3, 6, 5)
    batch = torch.randn(1, 5, device=device, dtype=dtype).expand(4, 5)
    long_samples = torch.randn(7, 9001, device=device, dtype=dtype)
    return [*layouts(device, dtype)[3:], long_samples, samples, batch]  # not the first: empty ones


@EACH_DTYPE
@pytest.mark.parametrize("target", [1.0, 0.0, 30.0])
def test_penalty_and_its_gradient_are_right_in_any_layout(
    kernels: ModuleType, device: str, dtype: torch.dtype, target: float
) -> None:
    tolerance = {"rtol": 1e-5, "atol": 1e-6}
    if dtype in (torch.float16, torch.bfloat16):
        tolerance = {"rtol": 1e-2, "atol": 1e-3}
    for values in gradients(device, dtype):
        grad = values.detach().requires_grad_()
        penalty = kernels.gradient_penalty(grad, target)
        (3 * penalty).backward()
        grad64 = values.detach().double().requires_grad_()
        expected = reference_penalty(grad64, target)
        (3 * expected).backward()
        torch.testing.assert_close(penalty, expected.to(dtype))
        torch.testing.assert_close(grad.grad, grad64.grad.to(dtype), **tolerance)


def test_at_zero_the_first_and_second_derivative_are_zero(kernels: ModuleType, device: str) -> None:
    grad = torch.randn(3, 4, device=device)
    grad[1] = 0
    grad.requires_grad_()
    penalty = kernels.gradient_penalty(grad)
    torch.testing.assert_close(penalty, reference_penalty(grad))
    (first,) = torch.autograd.grad(penalty, grad, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), grad)
    for derivative in (first, second):
        assert derivative[1].eq(0).all()
        assert derivative.isfinite().all()


def test_an_empty_batch_gives_nan_and_empty_samples_the_target(kernels: ModuleType) -> None:
    empty = torch.zeros(0, 3, requires_grad=True)
    penalty = kernels.gradient_penalty(empty)
    assert penalty.isnan()
    penalty.backward()
    assert empty.grad.shape == (0, 3)
    assert kernels.gradient_penalty(torch.zeros(2, 0), 3.0) == 9


def test_the_first_and_second_derivative_are_right(kernels: ModuleType, device: str) -> None:
    grad = torch.randn(2, 3, 4, dtype=torch.float64, device=device, requires_grad=True)
    penalty = functools.partial(kernels.gradient_penalty, target=0.7)
    assert torch.autograd.gradcheck(penalty, grad)
    assert torch.autograd.gradgradcheck(penalty, grad)


@pytest.mark.parametrize("amp", [False, True], ids=["float32", "amp"])
def test_the_critics_weight_gradients_are_those_of_the_formula(
    kernels: ModuleType, device: str, amp: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    critic = nn.Sequential(nn.Conv2d(3, 16, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(16, 1, 8))
    critic.to(device, memory_format=torch.channels_last)
    images = torch.rand(8, 3, 16, 16, device=device) * 2 - 1
    found = []
    for penalty in (kernels.gradient_penalty, reference_penalty):
        x = images.clone().requires_grad_()
        with torch.autocast(device, torch.bfloat16, enabled=amp):
            scores = critic(x)
        (grad,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
        weights = [critic[0].weight, critic[2].weight]
        found.append(torch.autograd.grad(10 * penalty(grad), weights))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6 * b.abs().max().item())


def test_results_do_not_depend_on_the_number_of_threads(
    built: ModuleType, request: pytest.FixtureRequest
) -> None:
    request.addfinalizer(functools.partial(torch.set_num_threads, torch.get_num_threads()))
    grad = torch.randn(5, 100_001, requires_grad=True)
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        penalty = built.gradient_penalty(grad)
        results.append([penalty, *torch.autograd.grad(penalty, grad)])
    torch.testing.assert_close(*results, **EXACTLY)


def test_a_long_sum_keeps_the_accuracy_of_float32(built: ModuleType, device: str) -> None:
    grad = torch.rand(2, 3_000_000, device=device)
    expected = reference_penalty(grad.double())
    assert abs(built.gradient_penalty(grad).double() / expected - 1) < 1e-6


def test_what_does_not_fit_is_refused_in_a_sentence(built: ModuleType) -> None:
    x = torch.ones(3)
    expanded = torch.ones(1).expand(3)
    with pytest.raises(RuntimeError, match="params must be float32, float64, float16 or bfloat16"):
        built.clip_weights_([x, x.int()], 0.5)
    with pytest.raises(RuntimeError, match="c must not be negative"):
        built.clip_weights_([x], -0.5)
    with pytest.raises(RuntimeError, match="params and square_avgs must not be expanded"):
        built.clip_weights_([x, expanded], 0.5)
    with pytest.raises(RuntimeError, match="params, grads and square_avgs must be equally many"):
        built.rmsprop_clip_([x], [], [], *NUMBERS)
    with pytest.raises(RuntimeError, match="params and grads must have the same shapes"):
        built.rmsprop_clip_([x], [x[:2]], [x], *NUMBERS)
    with pytest.raises(RuntimeError, match="params and square_avgs must have the same dtypes"):
        built.rmsprop_clip_([x], [x], [x.double()], *NUMBERS)
    with pytest.raises(RuntimeError, match="grad must have a batch dimension"):
        built.gradient_penalty(torch.ones(()))
    assert x.eq(1).all()  # not even changed in part


@pytest.mark.parametrize("requires_grad", [False, True], ids=["plain", "requires_grad"])
def test_opcheck_finds_no_fault(built: ModuleType, device: str, requires_grad: bool) -> None:
    make = functools.partial(torch.randn, device=device, requires_grad=requires_grad)
    params, grads, squares = [[make(3, 4), make(5)] for _ in range(3)]
    with torch.no_grad():
        torch.library.opcheck(OPS.rmsprop_clip_.default, (params, grads, squares, *NUMBERS))
        torch.library.opcheck(OPS.clip_weights_.default, (params, 0.5))
    norms = torch.rand(4, device=device, dtype=torch.float64)
    transposed = make(3, 4, 5).detach().transpose(0, 1).requires_grad_(requires_grad)
    for grad in (make(4, 3, 5), transposed):
        torch.library.opcheck(OPS.gradient_penalty.default, (grad, 0.7))
        arguments = (make(()), grad, norms, 0.7)
        torch.library.opcheck(OPS.gradient_penalty_backward.default, arguments)


def test_everything_works_inside_torch_compile(kernels: ModuleType, device: str) -> None:
    def step(params: list, grads: list, squares: list, x: Tensor) -> Tensor:
        kernels.rmsprop_clip_(params, grads, squares, *NUMBERS)
        kernels.clip_weights_(squares, 0.2)
        return kernels.gradient_penalty(2 * x) + params[0].sum()

    lists = [[torch.rand(3, 4, device=device), torch.rand(5, device=device)] for _ in range(3)]
    expected_lists = copy.deepcopy(lists)
    x = torch.randn(4, 6, device=device, requires_grad=True)
    expected = step(*expected_lists, x)
    result = torch.compile(step, fullgraph=True)(*lists, x)
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(lists, expected_lists)
    expected_grad = torch.autograd.grad(expected, x)
    torch.testing.assert_close(torch.autograd.grad(result, x), expected_grad)


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
    out_grad = torch.ones((), device="cuda")
    _, norms = OPS.gradient_penalty(grad)
    assert count_launches(gan_kernels.clip_weights_, lists[0], 0.5) == 1
    assert count_launches(gan_kernels.rmsprop_clip_, *lists, *NUMBERS) == 1
    assert count_launches(OPS.gradient_penalty, grad) == 2
    assert count_launches(OPS.gradient_penalty_backward, out_grad, grad, norms, 1.0) == 1


@NEEDS_GPU
def test_tensors_on_a_gpu_and_on_the_cpu_are_refused_together() -> None:
    with pytest.raises(RuntimeError, match="on one device"):
        gan_kernels.clip_weights_([torch.zeros(3, device="cuda"), torch.zeros(3)], 1.0)
    assert torch.zeros(3, device="cuda").eq(0).all()  # the GPU still works


@NEEDS_GPU
def test_steps_replay_from_a_graph_on_a_gpu(kernels: ModuleType) -> None:
    p = nn.Parameter(torch.rand(4097, device="cuda"))
    q = nn.Parameter(p.detach().clone())
    p.grad = torch.rand(4097, device="cuda")
    q.grad = p.grad.clone()
    grad = torch.randn(8, 5000, device="cuda", requires_grad=True)
    replayed = kernels.RMSpropClip([p], clip=0.5, lr=0.01, capturable=True)
    eager = kernels.RMSpropClip([q], clip=0.5, lr=0.01, capturable=True)
    stream = torch.cuda.Stream()  # the default stream cannot be captured
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        replayed.step()  # makes the state, which the graph must not do
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            replayed.step()
            penalty = kernels.gradient_penalty(grad)
        with torch.no_grad():
            grad.normal_()
        graph.replay()
        graph.replay()
    torch.cuda.synchronize()
    for _ in range(3):
        eager.step()
    torch.testing.assert_close(p, q, **EXACTLY)
    torch.testing.assert_close(replayed.state[p], eager.state[q], **EXACTLY)
    torch.testing.assert_close(penalty, reference_penalty(grad))


def test_what_was_built_with_a_compiler_runs() -> None:
    if gan_kernels is None or shutil.which("c++") is None:
        pytest.skip("gan_kernels was never built, or there is no compiler here")
    assert gan_kernels.why_not("cpu") is None
    if torch.cuda.is_available() and shutil.which("nvcc"):
        assert gan_kernels.why_not("cuda") is None
    assert "not for mps" in gan_kernels.why_not("mps")


def test_the_doctor_reports_what_was_built_and_what_runs(built: ModuleType) -> None:
    done = subprocess.run(DOCTOR, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"torch    {torch.__version__}, " in done.stdout
    assert "cpu      runs" in done.stdout
    assert ("cuda     runs" in done.stdout) == (built.why_not("cuda") is None)


def test_where_nothing_was_built_the_import_fails_and_says_how_to_build(tmp_path: Path) -> None:
    package = copy_package(tmp_path, build_info=None)
    with pytest.raises(ImportError, match="is not built; pip install"):
        import_package(package)
    done = subprocess.run(DOCTOR, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "not built; pip install -e ." in done.stderr


def test_where_the_build_failed_a_warning_gives_the_reason_once(tmp_path: Path) -> None:
    package = import_package(copy_package(tmp_path, {"error": "no compiler here"}))
    assert package.why_not("cpu") == "no compiler here"
    with pytest.warns(UserWarning, match="plain PyTorch on cpu: no compiler here"):
        package.clip_weights_([torch.ones(3)], 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        package.clip_weights_([torch.ones(3)], 0.5)
        package.gradient_penalty(torch.ones(2, 3))
    done = subprocess.run(DOCTOR, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "cpu      does not run: no compiler here" in done.stdout


def test_a_library_that_does_not_load_is_named_with_both_versions(tmp_path: Path) -> None:
    package = copy_package(tmp_path, {"torch": "1.2.3"})
    (package / "_C.abi3.so").write_bytes(b"not a library")
    reason = import_package(package).why_not("cpu")
    assert "_C.abi3.so, built with PyTorch 1.2.3" in reason
    assert torch.__version__ in reason
