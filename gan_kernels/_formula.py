"""What the kernels compute, in plain PyTorch: equal up to rounding, in more passes over memory."""

import torch
from torch import Tensor


@torch.no_grad()
def clip_weights_(params: list[Tensor], c: float) -> None:
    for p in params:
        p.clamp_(-c, c)


@torch.no_grad()
def rmsprop_clip_(
    params: list[Tensor],
    grads: list[Tensor],
    square_avgs: list[Tensor],
    lr: float,
    alpha: float,
    eps: float,
    c: float,
) -> None:
    """Does to float32 and float64 tensors exactly what torch.optim.RMSprop and clamp_ do."""
    weights = in_float32(params)
    gradients = in_float32(grads)
    squares = in_float32(square_avgs)
    torch._foreach_mul_(squares, alpha)
    torch._foreach_addcmul_(squares, gradients, gradients, 1 - alpha)
    roots = torch._foreach_sqrt(squares)
    torch._foreach_add_(roots, eps)
    torch._foreach_addcdiv_(weights, gradients, roots, -lr)
    clip_weights_(weights, c)
    copy_back(weights, params)
    copy_back(squares, square_avgs)


def gradient_penalty(grad: Tensor, target: float) -> Tensor:
    samples = grad.unsqueeze(-1).flatten(1)  # (N, size), also for a grad of shape (N,)
    (samples,) = in_float32([samples])
    if target == 0:
        return samples.square().sum(1).mean().to(grad.dtype)
    # At zero the second derivative of the norm would be NaN, so zero samples do not go through it
    zero = samples.detach().norm(dim=1) == 0  # (N,)
    norms = samples.masked_fill(zero[:, None], 1).norm(dim=1).masked_fill(zero, 0)
    return (norms - target).square().mean().to(grad.dtype)


def in_float32(tensors: list[Tensor]) -> list[Tensor]:
    """The tensors themselves, but for those of 16 bits a copy."""
    return [x.float() if x.element_size() == 2 else x for x in tensors]


def copy_back(results: list[Tensor], originals: list[Tensor]) -> None:
    for result, original in zip(results, originals, strict=True):
        if result is not original:
            original.copy_(result)
