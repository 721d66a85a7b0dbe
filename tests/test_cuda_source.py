"""csrc/cuda.cu without a GPU: it compiles, without spills and with 16-byte loads, and it computes what it should.

The last is tested by running the very source on CPU threads, see cuda_on_cpu.h. Tests on a GPU are in test_kernels.py.
"""

import ctypes
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from torch import Tensor
from torch.utils.cpp_extension import include_paths

SOURCE = ROOT / "csrc" / "cuda.cu"
NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="no nvcc here")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]  # in the order of the enum Type
WAITING = {"squares_kernel", "norms_kernel"}  # kernels that only sum up: their threads wait for each other
KERNELS = {"clip_kernel", "rmsprop_clip_kernel", "gradient_penalty_backward_kernel", *WAITING}


def archs() -> list[str]:
    """sm_80, sm_90 and the newest that this nvcc knows."""
    if NVCC is None:
        return []
    output = subprocess.run([NVCC, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout
    known = sorted({int(arch) for arch in re.findall(r"sm_(\d+)", output)})
    return [f"sm_{arch}" for arch in sorted({80, 90, known[-1]} & set(known))]


@needs_nvcc
@pytest.mark.parametrize("arch", archs())
def test_nvcc_alone_compiles_it_without_spills_and_with_16_byte_loads_and_stores(arch: str, tmp_path: Path) -> None:
    command = [NVCC, "-O3", f"-arch={arch}", "-Xptxas=-v", "--keep", f"--keep-dir={tmp_path}", "-c", str(SOURCE)]
    done = subprocess.run([*command, "-o", str(tmp_path / "cuda.o")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    assert len(spills) == 4 * (2 + 2 + 1 + 1 + 1)  # four dtypes; the kernels on lists in two capacities
    assert set(spills) == {("0", "0")}

    ptx = next(tmp_path.glob("*.ptx")).read_text()
    entries = dict(re.findall(r"\.entry (\w+)\((.*?)(?=\.entry|\Z)", ptx, re.DOTALL))
    assert len(entries) == len(spills)
    for name, body in entries.items():
        (kernel,) = (kernel for kernel in KERNELS if f"{len(kernel)}{kernel}I" in name)  # its mangled name
        if kernel == "norms_kernel":  # which reads sums alone
            continue
        assert re.search(r"ld\.global(\.nc)?\.(v4\.[bfu]32|v2\.[bfu]64)", body), name
        if kernel not in WAITING:
            assert re.search(r"st\.global\.wb\.v4\.u32", body), name


@needs_nvcc
def test_it_includes_no_torch_header(tmp_path: Path) -> None:
    done = subprocess.run([NVCC, "-M", str(SOURCE)], capture_output=True, text=True, check=True)
    assert "arithmetic.h" in done.stdout
    assert "torch" not in done.stdout.replace(str(ROOT), "")


WRAPPERS = """
using namespace gan;
extern "C" {
void clip(int type, const Weights* w, int64_t n, double c) { cuda::clip_weights(Type(type), w, n, c, nullptr); }
void rmsprop(int type, const Weights* w, int64_t n, double lr, double alpha, double eps, double c) {
    cuda::rmsprop_clip(Type(type), w, n, lr, alpha, eps, c, nullptr);
}
void penalty(int type, const void* g, int64_t n, int64_t m, double t, double* partial, double* norms, void* out) {
    cuda::gradient_penalty(Type(type), {g, n, m}, t, partial, norms, out, nullptr);
}
void backward(int type, const void* g, int64_t n, int64_t m, double t, double* norms, const void* o, void* out) {
    cuda::gradient_penalty_backward(Type(type), {g, n, m}, t, norms, o, out, nullptr);
}
const char* clip_nothing() { return cuda::clip_weights(Type::kFloat32, nullptr, 0, 1, nullptr); }
const char* after_an_error() { return last_error = 1, clip_nothing(); }
}
"""


class Weights(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("param", "grad", "square_avg")] + [("numel", ctypes.c_int64)]


def weights(*lists: list[Tensor]) -> ctypes.Array:
    rows = [[tensor.data_ptr() for tensor in row] + [None] * (3 - len(row)) for row in zip(*lists, strict=True)]
    return (Weights * len(rows))(*(Weights(*row, p.numel()) for row, p in zip(rows, lists[0], strict=True)))


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ctypes.CDLL]:
    """csrc/cuda.cu compiled for the CPU."""
    folder = tmp_path_factory.mktemp("emulated")
    source, launches = re.subn(
        r"(\w+)<T><<<(\w+), kThreads, 0, static_cast<cudaStream_t>\(stream\)>>>",
        lambda m: f"run({str(m[1] in WAITING).lower()}, {m[2]}, kThreads, [](const auto&... a) {{ {m[1]}<T>(a...); }})",
        SOURCE.read_text(),
    )
    assert launches == len(KERNELS)
    assert "<<<" not in source
    source = re.sub(r"#include <cuda_\w+\.h>\n", "", source)
    (folder / "cuda.cpp").write_text('#include "cuda_on_cpu.h"\n' + source + WRAPPERS)
    includes = [f"-I{path}" for path in [ROOT / "csrc", ROOT / "tests", *include_paths()]]
    library = folder / "cuda.so"
    command = ["g++", "-std=c++20", "-O2", "-w", "-shared", "-fPIC", "-pthread", *includes]
    subprocess.run([*command, str(folder / "cuda.cpp"), "-o", str(library)], check=True)
    emulated = ctypes.CDLL(str(library))
    number, pointer, real = ctypes.c_int64, ctypes.c_void_p, ctypes.c_double
    emulated.clip.argtypes = [ctypes.c_int, ctypes.POINTER(Weights), number, real]
    emulated.rmsprop.argtypes = [ctypes.c_int, ctypes.POINTER(Weights), number, real, real, real, real]
    emulated.penalty.argtypes = [ctypes.c_int, pointer, number, number, real, pointer, pointer, pointer]
    emulated.backward.argtypes = emulated.penalty.argtypes
    emulated.after_an_error.restype = emulated.clip_nothing.restype = ctypes.c_char_p
    return emulated


def tensors(sizes: list[int], dtype: torch.dtype, misaligned: bool = False) -> list[Tensor]:
    """Random ones; misaligned: beginning one element after a 16-byte boundary."""
    return [torch.randn(size + misaligned).to(dtype)[int(misaligned) :] for size in sizes]


SIZES = [1, 3, 4096, 4097, 8192, 10_001, 5, 255]


@needs_compiler
@pytest.mark.parametrize("misaligned", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_clip_kernel_clamps_every_element_once(emulated: ctypes.CDLL, dtype: torch.dtype, misaligned: bool) -> None:
    torch.manual_seed(0)
    params = tensors(SIZES, dtype, misaligned)
    expected = [p.clamp(-0.5, 0.5) for p in params]
    emulated.clip(DTYPES.index(dtype), weights(params), len(params), 0.5)
    assert all(torch.equal(p, e) for p, e in zip(params, expected, strict=True))


@needs_compiler
@pytest.mark.parametrize("count", [39, 40, 41, 800, 801, 1700])
def test_lists_of_any_length_are_done_whole(emulated: ctypes.CDLL, count: int) -> None:
    params = [torch.full((1 + i % 7,), 2.0) for i in range(count)]
    emulated.clip(0, weights(params), count, 1.0)
    assert all(p.eq(1).all() for p in params)


@needs_compiler
@pytest.mark.parametrize("misaligned", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rmsprop_kernel_follows_the_formula(emulated: ctypes.CDLL, dtype: torch.dtype, misaligned: bool) -> None:
    torch.manual_seed(0)
    params, grads, squares = (tensors(SIZES, dtype, misaligned) for _ in range(3))
    squares = [v.abs() for v in squares]
    v = [0.9 * v.double() + 0.1 * g.double() ** 2 for v, g in zip(squares, grads, strict=True)]
    p = [p.double() - 0.1 * g.double() / (v.sqrt() + 1e-8) for p, g, v in zip(params, grads, v, strict=True)]
    emulated.rmsprop(DTYPES.index(dtype), weights(params, grads, squares), len(params), 0.1, 0.9, 1e-8, 0.5)
    torch.testing.assert_close(squares, [x.to(dtype) for x in v])
    torch.testing.assert_close(params, [x.clamp(-0.5, 0.5).to(dtype) for x in p])


PENALTIES = [(5, 3), (3, 4096), (2, 4099), (9, 9001), (1, 150_001), (4, 0), (0, 9)]
PENALTIES = [(shape, dtype) for shape in PENALTIES for dtype in DTYPES] + [((300, 2), torch.float32)]  # this one: slow


@needs_compiler
@pytest.mark.parametrize(("shape", "dtype"), PENALTIES, ids=str)
def test_penalty_kernels_follow_the_formula(emulated: ctypes.CDLL, shape: tuple[int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    n, m = shape
    grad = (torch.randn(shape) / max(m, 1) ** 0.5).to(dtype)
    if n > 1:
        grad[1] = 0
    x = grad.double().requires_grad_()
    expected = (x.norm(2, dim=1) - 0.7).square().mean()
    expected.backward(torch.tensor(3.0).double())
    partial, norms = torch.full((n * -(-m // 4096) + 1,), torch.nan).double(), torch.full((n,), torch.nan).double()
    penalty, result, out_grad = (torch.tensor(value).to(dtype) for value in (torch.nan, torch.nan, 3.0))
    result = result.expand(shape).clone()
    kind, g = DTYPES.index(dtype), grad.data_ptr()
    emulated.penalty(kind, g, n, m, 0.7, partial.data_ptr(), norms.data_ptr(), penalty.data_ptr())
    emulated.backward(kind, g, n, m, 0.7, norms.data_ptr(), out_grad.data_ptr(), result.data_ptr())
    torch.testing.assert_close(norms, x.norm(2, dim=1).detach(), rtol=1e-6, atol=0)
    torch.testing.assert_close(penalty, expected.detach().to(dtype), equal_nan=True)
    torch.testing.assert_close(result, x.grad.to(dtype))
    assert partial[-1].isnan()  # not written beyond its end


@needs_compiler
def test_what_went_wrong_is_told_once(emulated: ctypes.CDLL) -> None:
    assert [emulated.after_an_error(), emulated.clip_nothing()] == [b"error", None]
