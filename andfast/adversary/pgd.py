"""Projected gradient ascent on theta: the paper's adversary (section 4.3, K = 5)."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from andfast.adversary.ball import Ball
from andfast.nn.degradation_network import Theta


class Ascent(NamedTuple):
    """What an adversary found.

    Attributes:
        theta: N networks inside the ball, detached.
        losses: (steps,), the mean objective before each step; the first is that of the identity networks.
    """

    theta: Theta
    losses: Tensor


def ascend(
    objective: Callable[[Theta], Tensor],
    identity: Theta,
    *,
    ball: Ball,
    steps: int = 5,
    step_size: float = 0.3,
    loss_scale: float = 1.0,
    first: Callable[[Theta], Tensor] | None = None,
    impl: str = "auto",
) -> Ascent:
    """Push identity networks up the objective, inside the ball, by ``steps`` projected gradient steps.

    Each step normalises the gradient to unit length, a network and (unless the ball is joint) a group at a time, goes
    ``step_size`` radii along it and projects. Gradients are taken with respect to theta only: whatever parameters the
    objective uses should be frozen (see :func:`andfast.nn.frozen`), so that nothing is kept for gradients nobody asks
    for. The host never waits for the device. Theta keeps the identity's dtypes, which may differ from tensor to tensor:
    noises in a half type halve the bytes of every pass over them (docs/kernels.md).

    Args:
        objective: maps theta to a loss to be raised, a scalar or (N,), finite.
        identity: where to start, from :func:`andfast.adversary.sample_identity`.
        ball: how far theta may go.
        steps: number of ascent passes K, 0 or more.
        step_size: length of a step as a fraction of the radius (paper: 6 of 20).
        loss_scale: factor on the objective's gradient against underflow in float16; the normalisation removes it.
        first: the same objective, for the first pass alone: it may rely on theta being the identity.
        impl: implementation of the step, see :func:`andfast.functional.ascent_step`.

    Raises:
        ValueError: steps or step_size is negative, or step_size is not finite.
    """
    if steps < 0:
        raise ValueError(f"steps must be 0 or more, was {steps}")
    if not (math.isfinite(step_size) and step_size >= 0):
        raise ValueError(f"step_size must be finite and 0 or more, was {step_size}")
    theta = identity.detach()
    losses = []
    for number in range(steps):
        loss, gradient = _raise(objective if number or first is None else first, theta, loss_scale)
        losses.append(loss)
        theta = ball.step(theta, gradient, identity, step_size, impl=impl)
        del gradient  # as large as theta, and else alive through the next pass
    return Ascent(theta, torch.stack(losses) if losses else identity.weights[0].new_empty(0))


def _raise(objective: Callable[[Theta], Tensor], theta: Theta, loss_scale: float) -> tuple[Tensor, Theta]:
    """The mean objective at theta, and its gradient; with this function goes the graph, which holds theta."""
    leaves = theta.rebuild(one.detach().requires_grad_() for one in theta.tensors())
    with torch.enable_grad():
        # Views, because torch's flop counter cannot follow autograd.grad where a module's inputs are leaves.
        loss = objective(leaves.rebuild(one.view_as(one) for one in leaves.tensors()))
        gradients = torch.autograd.grad(loss.sum() * loss_scale, tuple(leaves.tensors()))
    return loss.detach().mean(), theta.rebuild(iter(gradients))
