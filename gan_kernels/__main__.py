"""Tells what was built, what runs, and why not where not. Exit code 0 if the CPU kernels run."""

import sys

import torch

import gan_kernels
from gan_kernels import _formula, _library


def compare_with_formula(device: str) -> None:
    """Runs every operator on a small example; AssertionError if the formula in float64 differs."""
    torch.manual_seed(0)
    p, g, v = torch.randn(3, 5000, device=device)
    v = v.square()
    p64, g64, v64 = p.double(), g.double(), v.double()
    gan_kernels.rmsprop_clip_([p], [g], [v], 0.01, 0.99, 1e-8, 0.5)
    _formula.rmsprop_clip_([p64], [g64], [v64], 0.01, 0.99, 1e-8, 0.5)
    torch.testing.assert_close(p, p64.float())
    torch.testing.assert_close(v, v64.float())

    gan_kernels.clip_weights_([p], 0.1)
    _formula.clip_weights_([p64], 0.1)
    torch.testing.assert_close(p, p64.float())

    grad = torch.randn(8, 1000, device=device, requires_grad=True)
    penalty = gan_kernels.gradient_penalty(grad)
    expected = _formula.gradient_penalty(grad.double(), 1.0)
    torch.testing.assert_close(penalty, expected.float())
    penalty_grad = torch.autograd.grad(penalty, grad)
    torch.testing.assert_close(penalty_grad, torch.autograd.grad(expected, grad))


def describe_library() -> str:
    if not _library.libraries:
        return f"none in {_library.FOLDER}"
    info = _library.build_info
    text = f"{_library.libraries[0]}, built with PyTorch {info.get('torch')} for CPU"
    if info.get("cuda"):
        text += f" and CUDA {info['cuda']}"
    return text


def describe_device(device: str) -> str:
    reason = gan_kernels.why_not(device)
    if reason:
        return f"does not run: {reason}"
    compare_with_formula(device)
    name = f" ({torch.cuda.get_device_name()})" if device == "cuda" else ""
    return f"runs, and agrees with PyTorch on a small example{name}"


def main() -> int:
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    print(f"torch    {torch.__version__}, {cuda}, Python {sys.version.split()[0]}")
    print(f"library  {describe_library()}")
    print(f"cpu      {describe_device('cpu')}")
    print(f"cuda     {describe_device('cuda')}")
    return 1 if gan_kernels.why_not("cpu") else 0


if __name__ == "__main__":
    sys.exit(main())
