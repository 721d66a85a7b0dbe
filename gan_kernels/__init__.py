"""Fused kernels for training WGAN and WGAN-GP, on the CPU and on NVIDIA GPUs.

    clip_weights_       clamps all tensors of a list, in place
    rmsprop_clip_       takes a step of RMSprop and clamps, in one pass over memory
    RMSpropClip         is torch.optim.RMSprop with that step
    gradient_penalty    is the mean of (|gradient| - target)^2, differentiable

The first three are for WGAN (https://arxiv.org/abs/1701.07875, Algorithm 1), the last is for
WGAN-GP (https://arxiv.org/abs/1704.00028, section 4). They take float32, float64, float16 and
bfloat16 tensors with any strides; those of 16 bits are computed in float32.

Where a device has no kernels, they compute the same in plain PyTorch, and a warning says why, once.
Where nothing was ever built, as in a fresh clone, importing this package raises an ImportError.
"""

import warnings
from collections.abc import Callable, Iterable
from numbers import Real

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.optim import RMSprop

from . import _formula, _library

__all__ = ["RMSpropClip", "clip_weights_", "gradient_penalty", "rmsprop_clip_", "why_not"]

if not _library.was_built:
    reason = "gan_kernels is not built; pip install -e . in its repository builds it"
    raise ImportError(reason, name=__name__)

_ops = _library.ops
# Looked up once: just after an optimizer step, when caches hold weights, each lookup costs
_clip_weights_ = None if _library.problem else _ops.clip_weights_.default
_increment_version = torch._C._increment_version  # that of torch.autograd.graph
_has_kernels: dict[str, bool] = {}  # kind of device: whether the kernels run there


def why_not(device: str | torch.device = "cpu") -> str | None:
    """None if the kernels run on this device ("cpu" or "cuda"), else the reason, in a phrase."""
    kind = torch.device(device).type
    if _library.problem:
        return _library.problem
    if kind not in ("cpu", "cuda", "meta"):  # on meta the operators only tell shapes
        return f"there are kernels for cpu and cuda, not for {kind}"
    if kind == "cuda" and _library.build_info.get("no_cuda"):
        return f"built without CUDA kernels: {_library.build_info['no_cuda']}"
    if kind == "cuda" and not torch.cuda.is_available():
        return "PyTorch sees no GPU"
    return None


def _run_on(device: torch.device) -> bool:
    """Whether the kernels run on the device. If not, a warning says why, but only once."""
    kind = device.type
    if kind not in _has_kernels:
        reason = why_not(kind)
        if torch.compiler.is_compiling():  # it can trace neither a warning nor a new entry
            return reason is None
        _has_kernels[kind] = reason is None
        if reason:
            message = f"gan_kernels computes in plain PyTorch on {kind}: {reason}"
            warnings.warn(message, stacklevel=3)
    return _has_kernels[kind]


def clip_weights_(params: Iterable[Tensor], c: float) -> None:
    """Clamps every tensor to [-c, c] in place, all of a dtype in one launch. NaN stays NaN.

    params: tensors of any shapes on one device, such as critic.parameters(). c: 0 or more.
    RuntimeError for tensors on several devices, of other dtypes, or expanded ones.
    """
    params = list(params)
    if not params:
        return
    if not (_has_kernels.get(params[0].device.type) or _run_on(params[0].device)):
        _formula.clip_weights_(params, c)
        return
    _clip_weights_(params, c)
    # Our operators are invisible to autograd, so we tell it that these tensors have changed
    _increment_version(params)


def rmsprop_clip_(
    params: Iterable[Tensor],
    grads: Iterable[Tensor],
    square_avgs: Iterable[Tensor],
    lr: float,
    alpha: float,
    eps: float,
    c: float,
) -> None:
    """One step of RMSprop, then every weight clamped to [-c, c], in place.

        v <- alpha v + (1 - alpha) g^2        p <- clamp(p - lr g / (sqrt(v) + eps), -c, c)

    params p, grads g and square_avgs v: equally many, alike in shape and dtype, on one device.
    RuntimeError if they are not, and as for clip_weights_.
    """
    params = list(params)
    grads = list(grads)
    square_avgs = list(square_avgs)
    if not params:
        return
    if not _run_on(params[0].device):
        _formula.rmsprop_clip_(params, grads, square_avgs, lr, alpha, eps, c)
        return
    _ops.rmsprop_clip_.default(params, grads, square_avgs, lr, alpha, eps, c)
    torch.autograd.graph.increment_version([*params, *square_avgs])


class RMSpropClip(RMSprop):
    """torch.optim.RMSprop whose step also clamps every parameter to [-clip, clip].

    Like lr, clip can be set for each group of parameters: {"params": ..., "clip": 0.02}. The other
    options and the state are those of RMSprop, so either continues from a checkpoint of the other.

    ValueError for a clip that is not a number from 0 on, and for the options that the kernel does
    not compute: momentum, weight_decay, centered, maximize, differentiable, and a learning rate on
    the GPU, for which the CPU would have to wait. If they come later, from add_param_group or
    load_state_dict, step() raises it. RuntimeError for sparse gradients.
    """

    def __init__(self, params: Iterable, *, clip: float, **options) -> None:
        super().__init__(params, **options)
        self.defaults["clip"] = clip  # for groups that come later
        for group in self.param_groups:
            group.setdefault("clip", clip)
        self._check_options()

    def load_state_dict(self, state_dict: dict) -> None:
        clips = [group["clip"] for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, clip in zip(self.param_groups, clips, strict=True):
            group.setdefault("clip", clip)  # a plain RMSprop has saved none

    def _check_options(self) -> None:
        for group in self.param_groups:
            for name in ("momentum", "weight_decay", "centered", "maximize", "differentiable"):
                if group[name]:
                    raise ValueError(f"RMSpropClip does not compute {name}")
            lr = group["lr"]
            if isinstance(lr, Tensor) and lr.device.type != "cpu":
                raise ValueError("RMSpropClip takes lr as a number or a tensor on the CPU")
            clip = group["clip"]
            if not isinstance(clip, Real) or not clip >= 0:
                raise ValueError(f"clip must be a number from 0 on, not {clip!r}")

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """Updates the parameters that have gradients and clamps all. Returns the closure's loss."""
        # Not by super().step(): once there is a plain RMSprop, that runs the hooks a second time
        self._check_options()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_group(group)
        return loss

    def _step_group(self, group: dict) -> None:
        params, grads, square_avgs, steps, without_gradient = [], [], [], [], []
        for p in group["params"]:
            if p.grad is None:
                without_gradient.append(p)
                continue
            if p.grad.is_sparse:
                raise RuntimeError("RMSpropClip does not support sparse gradients")
            state = self.state[p]
            if not state:
                counter_device = p.device if group["capturable"] else "cpu"
                state["step"] = torch.zeros((), dtype=torch.float32, device=counter_device)
                state["square_avg"] = torch.zeros_like(p)
            elif state["square_avg"].dtype != p.dtype:  # the model was converted, as by .double()
                state["square_avg"] = state["square_avg"].to(p.dtype)
            params.append(p)
            grads.append(p.grad)
            square_avgs.append(state["square_avg"])
            steps.append(state["step"])
        lr = float(group["lr"])
        clip = group["clip"]
        rmsprop_clip_(params, grads, square_avgs, lr, group["alpha"], group["eps"], clip)
        clip_weights_(without_gradient, clip)
        if steps:
            torch._foreach_add_(steps, 1)


def _is_transformed(x: Tensor) -> bool:
    """Whether torch.func or forward-mode AD is at work, for which our operators have no rules."""
    if torch.compiler.is_compiling():
        return False
    if torch._C._functorch.is_functorch_wrapped_tensor(x):
        return True
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None


def gradient_penalty(grad: Tensor, target: float = 1.0) -> Tensor:
    """Mean over the batch of (|grad_i|_2 - target)^2: a 0-dim tensor of grad's dtype.

    grad: (N, ...), the gradient of each sample's score with respect to that sample. With target 0
    this is the R1 or R2 penalty of newer GANs, |grad_i|^2. The penalty is differentiable, also
    repeatedly; where grad is zero, its derivative is zero. It is NaN for an empty batch, like every
    mean. RuntimeError if grad has no dimension or is of another dtype.
    """
    if not _run_on(grad.device) or _is_transformed(grad):
        return _formula.gradient_penalty(grad, target)
    penalty, _norms = _ops.gradient_penalty.default(grad, target)
    return penalty
