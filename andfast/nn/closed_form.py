"""F at fresh identity networks, with its gradients to theta, without a convolution.

An identity network acts on each pixel alone. With A_k the center of kernel k, the output of layer k is M_k x, where M_k
= A_k ... A_1, and x is HR before the pooling and the pooled HR behind it; F's output is the pooled HR. The way back is
as plain: with g the gradient to LR, or behind the pooling's transpose for the layers in front of it, and N_k = A_11 ...
A_(k+1), the gradient to the output of layer k is N_k^T g, three channels seen through a matrix. With sums over pixels:

    1.  gradient to kernel k at tap d:  N_k^T R_d M_(k-1)^T,  R_d = sum of g times x shifted by d, a 3 x 3 matrix
    2.  gradient to noise k:            N_k^T g
    3.  gradient to slope k:            sum of min(M_k x, 0) * (N_k^T g)

So eleven convolutions with their gradients to input and weight become two correlations of three-channel images, and
products with matrices of three columns. What comes out differs by rounding only. What reads pixels is one op,
:mod:`andfast.functional.identity_gradients`; here it is called for the layers before and behind the pooling.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from andfast.functional.identity_gradients import identity_gradients


def merged(kernels: Sequence[Tensor], dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor]]:
    """The maps of identity networks up to, and from, each layer.

    Args:
        kernels: of L layers, (N, Cout, Cin, 3, 3), zero off their centers.
        dtype: of the results; the products are taken in float64.

    Returns:
        (before, after): before[k], (N, C, 3), is M_k for k = 0 to L - 1; after[k], (N, 3, Cout), leads from the output
        of the layer behind before[k] to the end.
    """
    centers = [one.detach()[..., 1, 1].double() for one in kernels]
    n, _, colours = centers[0].shape
    eye = torch.eye(colours, dtype=torch.float64, device=centers[0].device).expand(n, -1, -1)
    before, after = [eye], [eye]
    for one in centers[:-1]:
        before.append(one @ before[-1])
    for one in reversed(centers[1:]):
        after.append(after[-1] @ one)
    return [one.to(dtype) for one in before], [one.to(dtype) for one in reversed(after)]


class ClosedFormIdentity(torch.autograd.Function):
    """Consecutive layers of identity networks as one map of images (N, 3, H, W) to themselves.

    Nothing looks at the values: that the layers are an identity is the caller's to know.
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
        """Let x pass.

        Args:
            x: HR, or the pooled HR, (N, 3, H, W).
            padding: of the convolutions, "replicate" or "zeros".
            impl: implementation of the op behind the gradients.
            before, after: as of :func:`merged`, of these layers, and one more of ``before`` for each with a slope.
            counts: numbers of kernels and of noises, which is that of the slopes, in ``theta``.
            theta: the layers' kernels, noises and slopes, an image each.
        """
        kernels, noises = counts
        ctx.save_for_backward(x, *before, *after)
        ctx.counts, ctx.padding, ctx.impl, ctx.matrices = counts, padding, impl, len(before)
        ctx.dtypes = [one.dtype for one in theta]
        ctx.maps = [one.shape[1] for one in theta[kernels : kernels + noises]]
        ctx.one_slope = [one.dim() == 1 for one in theta[kernels + noises :]]
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """The formulas above for all layers at once; what nobody asks for is not computed."""
        x, *matrices = ctx.saved_tensors
        before, after = matrices[: ctx.matrices], matrices[ctx.matrices :]
        kernels, noises = ctx.counts
        wanted = ctx.needs_input_grad[6:]
        want_noises, want_slopes = wanted[kernels : kernels + noises], wanted[kernels + noises :]
        found: list[Tensor | None] = [None] * len(wanted)
        with nullcontext() if g.is_meta else torch.autocast(g.device.type, enabled=False):
            correlation, maps, sums = identity_gradients(
                x,
                g,
                torch.stack([one.mT for one in before[1 : noises + 1]]),
                torch.stack(after[:noises]),
                noises=[channels if want else 0 for channels, want in zip(ctx.maps, want_noises, strict=True)],
                slopes=want_slopes,
                correlation=any(wanted[:kernels]),
                noise_dtype=ctx.dtypes[kernels],
                padding=ctx.padding,
                impl=ctx.impl,
            )
            for k in range(kernels):
                if wanted[k]:
                    taps = after[k].mT[:, None] @ correlation @ before[k].mT[:, None]  # (N, 9, Cout, Cin)
                    found[k] = taps.permute(0, 2, 3, 1).unflatten(3, (3, 3)).contiguous()
        found[kernels : kernels + noises] = maps
        rows = iter(sums)
        for k in range(noises):
            if want_slopes[k]:
                one = next(rows)
                found[kernels + noises + k] = one.sum(1) if ctx.one_slope[k] else one
        theta = [None if one is None else one.to(dtype) for one, dtype in zip(found, ctx.dtypes, strict=True)]
        return g if ctx.needs_input_grad[0] else None, None, None, None, None, None, *theta
