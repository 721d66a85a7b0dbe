"""The library that setup.py builds: loads it, and tells PyTorch what its C++ part cannot.

That is the shapes of the results, for torch.compile, and the derivatives, for autograd.
"""

import json
from pathlib import Path

import torch

FOLDER = Path(__file__).parent
BUILD_FILE = FOLDER / "_build.json"  # written by setup.py

ops = torch.ops.gan_kernels
libraries = [*FOLDER.glob("_C*.so"), *FOLDER.glob("_C*.pyd")]
was_built = bool(libraries) or BUILD_FILE.exists()
build_info = json.loads(BUILD_FILE.read_text()) if BUILD_FILE.exists() else {}


def load() -> str | None:
    """Loads the library. Returns None, or the reason why that is not possible."""
    if not libraries:
        return build_info.get("error") or f"there is no library in {FOLDER}"
    try:
        torch.ops.load_library(libraries[0])
    except (OSError, RuntimeError) as error:
        built_with = f"built with PyTorch {build_info.get('torch')}"
        reason = error.__cause__ or error  # the cause has what the loader says
        return f"{libraries[0]}, {built_with}, fails in {torch.__version__}: {reason}"
    return None


# ------------------------------------------------------------- Shapes and dtypes, without computing


def fake_clip_weights_(params, c):
    return None


def fake_rmsprop_clip_(params, grads, square_avgs, lr, alpha, eps, c):
    return None


def fake_gradient_penalty(grad, target=1.0):
    penalty = grad.new_empty(())
    norms = grad.new_empty(grad.shape[:1], dtype=torch.float64)
    return penalty, norms


def fake_gradient_penalty_backward(out_grad, grad, norms, target):
    return torch.empty_like(grad)


# ------------------------------------------------------------ The first derivative, by an operator


def save_for_backward(ctx, inputs, output):
    grad, ctx.target = inputs
    _, norms = output
    ctx.save_for_backward(grad, norms)
    ctx.mark_non_differentiable(norms)


def backward(ctx, out_grad, _):
    grad, norms = ctx.saved_tensors
    return ops.gradient_penalty_backward.default(out_grad, grad, norms, ctx.target), None


# ------------------------------------------------------- The second derivative, in plain PyTorch


def save_for_double_backward(ctx, inputs, output):
    out_grad, grad, _, ctx.target = inputs
    ctx.save_for_backward(out_grad, grad)


def double_backward(ctx, v):
    """The derivative of b = 2/N o (1 - t/n) x in the direction v, where n = |x| for each sample x.

    d<v, b>/do = sum of 2/N (1 - t/n) <v, x>
    d<v, b>/dx = 2/N o ((1 - t/n) v + t <v, x> x / n^3)
    """
    out_grad, grad = ctx.saved_tensors
    dtype = torch.promote_types(grad.dtype, torch.float32)
    x = grad.unsqueeze(-1).flatten(1).to(dtype)  # (N, size)
    v = v.unsqueeze(-1).flatten(1).to(dtype)
    norms = x.norm(dim=1, keepdim=True)  # (N, 1)
    zero = norms == 0
    norms = norms.masked_fill(zero, 1)
    slopes = 2 / len(x) * (1 - ctx.target / norms)
    if ctx.target != 0:  # there the penalty has no second derivative, and we take 0
        slopes = slopes.masked_fill(zero, 0)
    inner = (v * x).sum(dim=1, keepdim=True)
    d_out_grad = (slopes * inner).sum()
    d_grad = out_grad * (slopes * v + 2 / len(x) * ctx.target * inner * x / norms**3)
    return d_out_grad.to(out_grad.dtype), d_grad.view_as(grad).to(grad.dtype), None, None


def register() -> torch.library.Library:
    """Registers all of that. It holds as long as the object that is returned."""
    # These two write in place what no gradient flows through, like an optimizer: autograd has
    # nothing to do there
    implementations = torch.library.Library("gan_kernels", "IMPL")
    implementations.impl("clip_weights_", torch.library.fallthrough_kernel, "Autograd")
    implementations.impl("rmsprop_clip_", torch.library.fallthrough_kernel, "Autograd")

    register_fake = torch.library.register_fake
    register_fake("gan_kernels::clip_weights_", fake_clip_weights_)
    register_fake("gan_kernels::rmsprop_clip_", fake_rmsprop_clip_)
    register_fake("gan_kernels::gradient_penalty", fake_gradient_penalty)
    register_fake("gan_kernels::gradient_penalty_backward", fake_gradient_penalty_backward)

    torch.library.register_autograd(
        "gan_kernels::gradient_penalty", backward, setup_context=save_for_backward
    )
    torch.library.register_autograd(
        "gan_kernels::gradient_penalty_backward",
        double_backward,
        setup_context=save_for_double_backward,
    )
    return implementations


problem = load()
registered = register() if problem is None else None
