"""F and its gradients to theta at fresh identity networks, in closed form, without convolutions.

An identity network acts pointwise. With A_k the center tap of kernel k, the output of layer k is M_k x, where M_k =
A_k ... A_1, and x is HR before the pooling and the pooled HR after it; F's output is the pooled HR. Backward, let g be
the gradient to LR after the pooling, and its pooling transpose before it, and N_k = A_11 ... A_(k+1). The gradient to
the output of layer k is N_k^T g. With sums over pixels:

    1.  gradient to kernel k at tap d:  N_k^T R_d M_(k-1)^T,  R_d = sum of g times x shifted by d, a 3 x 3 matrix
    2.  gradient to noise k:            N_k^T g
    3.  gradient to slope k:            sum of min(M_k x, 0) * (N_k^T g)

Eleven convolutions with their input and weight gradients thus become two correlations of three-channel images and
products with matrices of three columns; the results differ by rounding only. All per-pixel work is in one op,
:mod:`andfast.functional.identity_gradients`, called once for the layers before and once for those after the pooling.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from andfast.functional.identity_gradients import identity_gradients


def cumulative_maps(kernels: Sequence[Tensor], dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """Products of the center taps of identity networks before and after each layer.

    Args:
        kernels: of L layers, (N, Cout, Cin, 3, 3), zero outside of their centers.
        dtype: dtype of the results; the products are computed in float64.

    Returns:
        (before, after): before[k], (N, C, 3), is M_k for k = 0 to L - 1; after[k], (N, 3, Cout), is N_(k+1), the map
        from the output of layer k + 1 to F's output.
    """
    centers = [kernel.detach()[..., 1, 1].double() for kernel in kernels]
    n, _, channels = centers[0].shape
    eye = torch.eye(channels, dtype=torch.float64, device=centers[0].device).expand(n, -1, -1)
    before, after = [eye], [eye]
    for center in centers[:-1]:
        before.append(center @ before[-1])
    for center in reversed(centers[1:]):
        after.append(after[-1] @ center)
    return [matrix.to(dtype) for matrix in before], [matrix.to(dtype) for matrix in reversed(after)]


class ClosedFormIdentity(torch.autograd.Function):
    """Consecutive layers of identity networks as the identity on images (N, 3, H, W), with gradients to theta.

    The values of theta are not checked: the caller guarantees that the layers are an identity.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        padding: str,
        impl: str,
        before: Sequence[Tensor],
        after: Sequence[Tensor],
        counts: tuple[int, int],
        *theta: Tensor,
    ) -> Tensor:
        """Return x.

        Args:
            x: HR or pooled HR, (N, 3, H, W).
            padding: padding of the convolutions, "replicate" or "zeros".
            impl: implementation of :func:`andfast.functional.identity_gradients`.
            before, after: these layers' part of :func:`cumulative_maps`; ``before`` has one more entry, for the slopes.
            counts: number of kernels, and number of noises (equal to that of slopes), in ``theta``.
            theta: kernels, noises and slopes of the layers, one of each per image.
        """
        kernels, noises = counts
        ctx.save_for_backward(x, *before, *after)
        ctx.counts, ctx.padding, ctx.impl, ctx.matrices = counts, padding, impl, len(before)
        ctx.dtypes = [tensor.dtype for tensor in theta]
        ctx.noise_channels = [noise.shape[1] for noise in theta[kernels : kernels + noises]]
        ctx.slope_per_layer = [slope.dim() == 1 for slope in theta[kernels + noises :]]
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients by the formulas above, for all layers at once and only where ``needs_input_grad``."""
        x, *matrices = ctx.saved_tensors
        before, after = matrices[: ctx.matrices], matrices[ctx.matrices :]
        kernels, noises = ctx.counts
        needs_grad = ctx.needs_input_grad[6:]
        noise_needs_grad, slope_needs_grad = needs_grad[kernels : kernels + noises], needs_grad[kernels + noises :]
        grads: list[Tensor | None] = [None] * len(needs_grad)
        with nullcontext() if g.is_meta else torch.autocast(g.device.type, enabled=False):
            correlation, noise_grads, slope_grads = identity_gradients(
                x,
                g,
                torch.stack([matrix.mT for matrix in before[1 : noises + 1]]),
                torch.stack(after[:noises]),
                noises=[
                    channels if needed else 0
                    for channels, needed in zip(ctx.noise_channels, noise_needs_grad, strict=True)
                ],
                slopes=slope_needs_grad,
                correlation=any(needs_grad[:kernels]),
                noise_dtype=ctx.dtypes[kernels],
                padding=ctx.padding,
                impl=ctx.impl,
            )
            for k in range(kernels):
                if needs_grad[k]:
                    taps = after[k].mT[:, None] @ correlation @ before[k].mT[:, None]  # (N, 9, Cout, Cin)
                    grads[k] = taps.permute(0, 2, 3, 1).unflatten(3, (3, 3)).contiguous()
        grads[kernels : kernels + noises] = noise_grads
        per_channel = iter(slope_grads)
        for k in range(noises):
            if slope_needs_grad[k]:
                grad = next(per_channel)
                grads[kernels + noises + k] = grad.sum(1) if ctx.slope_per_layer[k] else grad
        grads = [None if grad is None else grad.to(dtype) for grad, dtype in zip(grads, ctx.dtypes, strict=True)]
        return g if ctx.needs_input_grad[0] else None, None, None, None, None, None, *grads
