"""python -m gan_kernels: what was built, what runs, and why not where not. Exit code 0 if the CPU kernels run."""

import sys
from pathlib import Path

import torch

import gan_kernels


def agree(device: str) -> str:
    """Runs every operator on a small example beside the formula, in float64 by PyTorch, and says how that went."""
    torch.manual_seed(0)
    p, g, v = torch.randn(3, 5000, device=device)
    v = v.square()
    root = (0.99 * v.double() + 0.01 * g.double().square()).sqrt()
    expected = (p.double() - 0.01 * g.double() / (root + 1e-8)).clamp(-0.5, 0.5)
    gan_kernels.rmsprop_clip_([p], [g], [v], 0.01, 0.99, 1e-8, 0.5)
    torch.testing.assert_close(p, expected.float())
    gan_kernels.clip_weights_([p], 0.1)
    assert p.abs().max() <= 0.1
    grad = torch.randn(8, 1000, device=device, requires_grad=True)
    expected = (grad.norm(2, dim=1) - 1).square().mean()
    found = gan_kernels.gradient_penalty(grad)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, grad), torch.autograd.grad(expected, grad))
    return "runs, and agrees with PyTorch on a small example"


def main() -> int:
    info, here = gan_kernels.build_info, Path(gan_kernels.__file__).parent
    library = next((str(path) for path in here.glob("_C*")), "")
    if library and info:
        library += f", built with PyTorch {info['torch']} for CPU" + (
            f" and CUDA {info['cuda']}" if info["cuda"] else ""
        )
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    print(f"torch    {torch.__version__}, {cuda}, Python {sys.version.split()[0]}")
    print(f"library  {library or f'none in {here}'}")
    for device in ("cpu", "cuda"):
        problem = gan_kernels.why_not(device)
        name = f" ({torch.cuda.get_device_name()})" if device == "cuda" and not problem else ""
        print(f"{device:9}{f'does not run: {problem}' if problem else agree(device) + name}")
    return 1 if gan_kernels.why_not() else 0


if __name__ == "__main__":
    sys.exit(main())
