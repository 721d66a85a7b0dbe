"""csrc/cuda.cu without a GPU: how it compiles, and what it computes when it runs on CPU threads.

How the latter is done is in cuda_on_cpu.h. The tests on a GPU are in test_kernels.py.
"""

import ctypes
import functools
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from torch import Tensor
from torch.utils.cpp_extension import include_paths

SOURCE = ROOT / "csrc" / "cuda.cu"
NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]  # as in the enum Type
EACH_DTYPE = pytest.mark.parametrize("dtype", DTYPES, ids=str)
SUMMING = {"squares_kernel", "norms_kernel"}  # their threads wait for each other, others' do not
KERNELS = {"clip_kernel", "rmsprop_clip_kernel", "gradient_penalty_backward_kernel", *SUMMING}


@pytest.mark.skipif(NVCC is None, reason="no nvcc here")
def test_it_compiles_without_spills_and_with_16_byte_accesses(tmp_path: Path) -> None:
    command = [NVCC, "-O3", "-Xptxas=-v", "--keep", f"--keep-dir={tmp_path}", "--threads=2"]
    command += [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in (80, 90)]
    command += ["-c", SOURCE, "-o", tmp_path / "cuda.o"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    bodies = []
    for ptx in tmp_path.glob("*.ptx"):
        bodies += re.findall(r"\.entry (\w+)\((.*?)(?=\.entry|\Z)", ptx.read_text(), re.DOTALL)
    assert len(bodies) == 2 * 4 * (2 + 2 + 3)  # the kernels on lists have two capacities
    assert spills == [("0", "0")] * len(bodies)
    for name, body in bodies:
        (kernel,) = [kernel for kernel in KERNELS if f"{len(kernel)}{kernel}I" in name]  # mangled
        if kernel == "norms_kernel":  # it only adds up single numbers
            continue
        assert re.search(r"ld\.global(\.nc)?\.(v4\.[bfu]32|v2\.[bfu]64)", body), name
        if kernel not in SUMMING:
            assert "st.global.wb.v4.u32" in body, name


class Weights(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("param", "grad", "square_avg")]
    _fields_ += [("numel", ctypes.c_int64)]


class Gradients(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), ("batch", ctypes.c_int64), ("size", ctypes.c_int64)]


class Backend(ctypes.Structure):
    """The struct in csrc/kernels.h: functions of a dtype, ... and a stream that return an error."""

    function = functools.partial(ctypes.CFUNCTYPE, ctypes.c_char_p, ctypes.c_int)
    weights, count = ctypes.POINTER(Weights), ctypes.c_int64
    real, pointer = ctypes.c_double, ctypes.c_void_p
    _fields_ = [
        ("clip_weights", function(weights, count, real, pointer)),
        ("rmsprop_clip", function(weights, count, real, real, real, real, pointer)),
        ("gradient_penalty", function(Gradients, real, pointer, pointer, pointer, pointer)),
        ("backward", function(Gradients, real, pointer, pointer, pointer, pointer)),
    ]


def run_on_cpu(launch: re.Match) -> str:
    """kernel<T><<<blocks, threads, 0, stream>>> as cuda_on_cpu.h has it."""
    kernel, blocks, threads = launch.groups()
    waits = "true" if kernel in SUMMING else "false"
    return f"run({waits}, {blocks}, {threads}, [](const auto&... a) {{ {kernel}<T>(a...); }})"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """csrc/cuda.cu compiled for the CPU."""
    if shutil.which("g++") is None:
        pytest.skip("no g++ here")
    folder = tmp_path_factory.mktemp("emulated")
    source = re.sub(r"#include <cuda_\w+\.h>\n", "", SOURCE.read_text())
    source, launches = re.subn(r"(\w+)<T><<<(\w+), (\w+), 0, \w+>>>", run_on_cpu, source)
    assert launches == len(KERNELS)
    (folder / "cuda.cpp").write_text('#include "cuda_on_cpu.h"\n' + source)
    command = ["g++", "-std=c++20", "-O1", "-w", "-shared", "-fPIC", "-pthread"]
    command += [f"-I{path}" for path in [ROOT / "csrc", ROOT / "tests", *include_paths()]]
    subprocess.run([*command, folder / "cuda.cpp", "-o", folder / "cuda.so"], check=True)
    return ctypes.CDLL(folder / "cuda.so")


@pytest.fixture(scope="module")
def kernels(library: ctypes.CDLL) -> Backend:
    torch.manual_seed(0)
    return Backend.in_dll(library, "_ZN3gan5kCudaE")  # gan::kCuda


def as_weights(*lists: list[Tensor]) -> ctypes.Array:
    rows = []
    for tensors in zip(*lists, strict=True):
        pointers = [tensor.data_ptr() for tensor in tensors] + [None] * (3 - len(tensors))
        rows.append(Weights(*pointers, tensors[0].numel()))
    return (Weights * len(rows))(*rows)


def random_tensors(dtype: torch.dtype, misaligned: bool) -> list[Tensor]:
    sizes = [1, 3, 4096, 4097, 8192, 10_001, 5, 255]
    skipped = int(misaligned)  # a tensor then begins one element after a multiple of 16 bytes
    return [torch.randn(size + skipped).to(dtype)[skipped:] for size in sizes]


@pytest.mark.parametrize("misaligned", [False, True])
@EACH_DTYPE
def test_clip_is_right(kernels: Backend, dtype: torch.dtype, misaligned: bool) -> None:
    params = random_tensors(dtype, misaligned)
    expected = [p.clamp(-0.5, 0.5) for p in params]
    kernels.clip_weights(DTYPES.index(dtype), as_weights(params), len(params), 0.5, None)
    torch.testing.assert_close(params, expected, rtol=0, atol=0)


@pytest.mark.parametrize("count", [39, 40, 41, 800, 801, 1700])
def test_lists_of_any_length_are_done_whole(kernels: Backend, count: int) -> None:
    params = [torch.full((1 + i % 7,), 2.0) for i in range(count)]
    kernels.clip_weights(0, as_weights(params), count, 1.0, None)
    assert all(p.eq(1).all() for p in params)


@pytest.mark.parametrize("misaligned", [False, True])
@EACH_DTYPE
def test_rmsprop_is_right(kernels: Backend, dtype: torch.dtype, misaligned: bool) -> None:
    params = random_tensors(dtype, misaligned)
    grads = random_tensors(dtype, misaligned)
    squares = [v.abs() for v in random_tensors(dtype, misaligned)]
    expected = []
    for p, g, v in zip(params, grads, squares, strict=True):
        square = 0.9 * v.double() + 0.1 * g.double() ** 2
        weight = p.double() - 0.1 * g.double() / (square.sqrt() + 1e-8)
        expected.append((weight.clamp(-0.5, 0.5).to(dtype), square.to(dtype)))
    weights = as_weights(params, grads, squares)
    numbers = (0.1, 0.9, 1e-8, 0.5)
    kernels.rmsprop_clip(DTYPES.index(dtype), weights, len(params), *numbers, None)
    torch.testing.assert_close(list(zip(params, squares, strict=True)), expected)


SHAPES = [(5, 3), (3, 4096), (2, 4099), (9, 9001), (1, 150_001), (1030, 0), (0, 9)]
CASES = [(shape, dtype) for shape in SHAPES for dtype in DTYPES]
CASES += [((33, 65_537), torch.float32)]  # slow: norms_kernel needs a second round


@pytest.mark.parametrize(("shape", "dtype"), CASES, ids=str)
def test_penalty_is_right(kernels: Backend, shape: tuple[int, int], dtype: torch.dtype) -> None:
    batch, size = shape
    grad = (torch.randn(shape) / max(size, 1) ** 0.5).to(dtype)
    grad[1:2] = 0
    grad64 = grad.double().requires_grad_()
    expected_norms = grad64.norm(2, dim=1)
    expected = (expected_norms - 0.7).square().mean()
    expected.backward(torch.tensor(3.0).double())
    chunks = -(-size // 4096)
    partial = torch.full((batch * chunks + 1,), torch.nan).double()
    norms = torch.full((batch,), torch.nan).double()
    penalty = torch.tensor(torch.nan).to(dtype)
    out_grad = torch.tensor(3.0).to(dtype)
    grad_grad = torch.full(shape, torch.nan).to(dtype)
    arguments = (DTYPES.index(dtype), Gradients(grad.data_ptr(), batch, size), 0.7)
    outputs = (partial.data_ptr(), norms.data_ptr(), penalty.data_ptr())
    kernels.gradient_penalty(*arguments, *outputs, None)
    kernels.backward(*arguments, norms.data_ptr(), out_grad.data_ptr(), grad_grad.data_ptr(), None)
    torch.testing.assert_close(norms, expected_norms.detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(penalty, expected.detach().to(dtype), equal_nan=True)
    torch.testing.assert_close(grad_grad, grad64.grad.to(dtype))
    assert partial[-1].isnan()  # nothing was written beyond the end


def test_an_error_of_a_launch_is_told_once(library: ctypes.CDLL, kernels: Backend) -> None:
    ctypes.c_int.in_dll(library, "last_error").value = 1
    assert kernels.clip_weights(0, as_weights([]), 0, 1.0, None) == b"error"
    assert kernels.clip_weights(0, as_weights([]), 0, 1.0, None) is None
