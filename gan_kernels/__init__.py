"""Fused kernels for training WGAN and WGAN-GP, for CPU and CUDA, as operators torch.ops.gan_kernels.*

    clip_weights_        clamps all tensors of a list in place              WGAN, https://arxiv.org/abs/1701.07875
    rmsprop_clip_        a step of RMSprop and that clamp, in one pass      the same, Algorithm 1, lines 6 and 7
    RMSpropClip          torch.optim.RMSprop with it
    gradient_penalty     mean of (|gradient| - target)^2, differentiable    WGAN-GP, https://arxiv.org/abs/1704.00028

All take float32, float64, float16 and bfloat16 (computed in float32) in any strides, and raise a RuntimeError with a
sentence on anything else. `why_not` tells whether they run here; `python -m gan_kernels` shows what was built.
"""

import itertools
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import RMSprop

__all__ = ["RMSpropClip", "clip_weights_", "gradient_penalty", "rmsprop_clip_", "why_not"]


def _load() -> tuple[dict, str | None]:
    """Loads the library. Returns what setup.py wrote of its making, and why it is not loaded, or None."""
    folder = Path(__file__).parent
    info, libraries = folder / "_build.json", [*folder.glob("_C*.so"), *folder.glob("_C*.pyd")]
    info = json.loads(info.read_text()) if info.exists() else {}
    if not libraries:
        return info, info.get("error") or "the extension is not built; pip install -e . in the repository builds it"
    try:
        torch.ops.load_library(libraries[0])
    except (OSError, RuntimeError) as error:  # the loader's own words are in the cause
        reason = error.__cause__ or error
        return info, f"{libraries[0]}, built with PyTorch {info.get('torch')}, fails in {torch.__version__}: {reason}"
    return info, None


build_info, _problem = _load()
_ops = torch.ops.gan_kernels


def why_not(device: str | torch.device = "cpu") -> str | None:
    """None if the kernels run on this device ("cpu" or "cuda"), else the reason why they do not, in a phrase."""
    device = torch.device(device).type
    if _problem or device == "cpu":
        return _problem
    if device != "cuda":
        return f"there are kernels for cpu and cuda, not for {device}"
    if "no_cuda" in build_info:
        return f"built without CUDA kernels: {build_info['no_cuda']}"
    return None if torch.cuda.is_available() else "PyTorch sees no GPU"


def _check() -> None:
    if _problem:
        raise RuntimeError(f"gan_kernels: {_problem}")


@torch.no_grad()  # a parameter with gaps between its elements is written back by PyTorch's copy_
def clip_weights_(params: Iterable[Tensor], c: float) -> None:
    """Clamps every tensor to [-c, c] in place, all of a dtype in one launch.

    params: tensors of any shapes, on one device, as critic.parameters() gives them. c: at least 0. NaN stays NaN.
    RuntimeError if the tensors are on several devices, of other dtypes, or overlap themselves as expand() makes them.
    """
    _check()
    if params := list(params):
        _ops.clip_weights_.default(params, c)
        torch.autograd.graph.increment_version(params)  # so that autograd sees a change of what it has saved


@torch.no_grad()
def rmsprop_clip_(
    params: Iterable[Tensor],
    grads: Iterable[Tensor],
    square_avgs: Iterable[Tensor],
    lr: float,
    alpha: float,
    eps: float,
    c: float,
) -> None:
    """One step of RMSprop, then every weight clamped to [-c, c], in place and in one pass over memory.

        v <- alpha v + (1 - alpha) g^2        p <- clamp(p - lr g / (sqrt(v) + eps), -c, c)

    params p, grads g and square_avgs v: equally many, of the same shapes and dtypes one by one, on one device.
    RuntimeError if they are not, or as for clip_weights_.
    """
    _check()
    params, grads, square_avgs = list(params), list(grads), list(square_avgs)
    if params:
        _ops.rmsprop_clip_.default(params, grads, square_avgs, lr, alpha, eps, c)
        torch.autograd.graph.increment_version([*params, *square_avgs])


class RMSpropClip(RMSprop):
    """torch.optim.RMSprop whose step also clamps every parameter to [-clip, clip], by rmsprop_clip_.

    Its state is RMSprop's own, so that checkpoints of either go on with the other. Takes the same options, but for
    those that the kernel does not compute: ValueError for momentum, weight_decay, centered, maximize, differentiable
    and a learning rate on the GPU, for which the host would have to wait; at step() if they come in later.
    """

    def __init__(self, params: Iterable, clip: float, **options) -> None:
        super().__init__(params, **options)
        self.clip = clip
        self._check_options()

    def _check_options(self) -> None:
        unknown = ["momentum", "weight_decay", "centered", "maximize", "differentiable"]
        for group, option in itertools.product(self.param_groups, unknown):
            if group[option]:
                raise ValueError(f"RMSpropClip does not compute {option}")
        if any(isinstance(group["lr"], Tensor) and group["lr"].device.type != "cpu" for group in self.param_groups):
            raise ValueError("RMSpropClip takes lr as a number or a tensor on the CPU")

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One step of all parameters that have gradients, and the clipping of all. Returns what the closure does."""
        self._check_options()  # add_param_group and load_state_dict may have changed them
        loss = closure() if closure else None
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            for p in params:
                if not self.state[p]:  # as RMSprop begins
                    self.state[p]["step"] = torch.zeros((), device=p.device if group["capturable"] else None)
                    self.state[p]["square_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            if params:
                torch._foreach_add_([self.state[p]["step"] for p in params], 1)
            grads, square_avgs = [p.grad for p in params], [self.state[p]["square_avg"] for p in params]
            rmsprop_clip_(params, grads, square_avgs, float(group["lr"]), group["alpha"], group["eps"], self.clip)
            clip_weights_([p for p in group["params"] if p.grad is None], self.clip)
        return loss


def gradient_penalty(grad: Tensor, target: float = 1.0) -> Tensor:
    """Mean over the batch of (|grad_i|_2 - target)^2, a 0-dim tensor of grad's dtype. Differentiable, also repeatedly.

    grad: (N, ...), the gradient of each sample's score with respect to that sample. Where it is zero, the penalty's
    derivative is taken as zero. NaN for an empty batch, as a mean is. RuntimeError if grad has no dimension or is of
    another dtype.
    """
    _check()
    return _ops.gradient_penalty.default(grad, target)[0]


if _problem is None:
    # Both write in place what no gradient flows through, as an optimizer does: autograd has nothing to do
    _library = torch.library.Library("gan_kernels", "IMPL")
    _library.impl("clip_weights_", torch.library.fallthrough_kernel, "Autograd")
    _library.impl("rmsprop_clip_", torch.library.fallthrough_kernel, "Autograd")

    @torch.library.register_fake("gan_kernels::clip_weights_")
    def _(params, c):
        return None

    @torch.library.register_fake("gan_kernels::rmsprop_clip_")
    def _(params, grads, square_avgs, lr, alpha, eps, c):
        return None

    @torch.library.register_fake("gan_kernels::gradient_penalty")
    def _(grad, target=1.0):
        return grad.new_empty(()), grad.new_empty(grad.shape[:1], dtype=torch.float64)

    @torch.library.register_fake("gan_kernels::gradient_penalty_backward")
    def _(out_grad, grad, norms, target):
        return torch.empty_like(grad)

    def _setup_penalty(ctx, inputs, output):
        grad, ctx.target = inputs
        ctx.save_for_backward(grad, output[1])
        ctx.mark_non_differentiable(output[1])

    def _penalty_backward(ctx, out_grad, _):
        return _ops.gradient_penalty_backward.default(out_grad, *ctx.saved_tensors, ctx.target), None

    def _setup_penalty_backward(ctx, inputs, output):
        out_grad, grad, _, ctx.target = inputs
        ctx.save_for_backward(out_grad, grad)

    def _penalty_double_backward(ctx, v):
        """The derivative of b = 2/N o (1 - t/n) x, with n = |x| of each sample x, in the direction v, by PyTorch.

        d<v, b>/do = sum of 2/N (1 - t/n) <v, x>        d<v, b>/dx = 2/N o ((1 - t/n) v + t <v, x> x / n^3)
        """
        out_grad, grad = ctx.saved_tensors
        dtype = torch.promote_types(grad.dtype, torch.float32)
        x, w = (tensor.unsqueeze(-1).flatten(1).to(dtype) for tensor in (grad, v))  # (N, size)
        norm = x.norm(dim=1, keepdim=True)
        zero, norm = norm == 0, norm.where(norm != 0, 1)
        slope = (2 / len(x) * (1 - ctx.target / norm)).where(~zero, 0)
        inner = (w * x).sum(1, keepdim=True)
        d_grad = out_grad * (slope * w + 2 / len(x) * ctx.target * inner * x / norm**3)
        return (slope * inner).sum().to(out_grad.dtype), d_grad.view_as(grad).to(grad.dtype), None, None

    torch.library.register_autograd("gan_kernels::gradient_penalty", _penalty_backward, setup_context=_setup_penalty)
    torch.library.register_autograd(
        "gan_kernels::gradient_penalty_backward", _penalty_double_backward, setup_context=_setup_penalty_backward
    )
