"""Projected gradient ascent on theta: the paper's adversary (section 4.3, K = 5)."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from andfast.adversary.ball import Ball
from andfast.nn.degradation_network import Theta


class Ascent(NamedTuple):
    """Result of an ascent.

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
    factors: Tensor | None = None,
    first: Callable[[Theta], Tensor] | None = None,
    callback: Callable[[Theta], None] | None = None,
    impl: str = "auto",
) -> Ascent:
    """Push identity networks up the objective, inside the ball, by ``steps`` projected gradient steps.

    Each step normalises the gradient to unit length, per network and (unless the ball is joint) per group or part, goes
    ``step_size`` radii along it and projects. Gradients are taken with respect to theta only: freeze the parameters
    that the objective uses (see :func:`andfast.nn.frozen`), so that nothing is saved for gradients to them. The host
    never waits for the device. Theta keeps the identity's dtypes, which may differ between tensors: noises in a half
    type halve the bytes of every pass over them (docs/kernels/ascent_step.md).

    Args:
        objective: maps theta to a loss to be raised, a scalar or (N,), finite.
        identity: where to start, from :func:`andfast.adversary.sample_identity`.
        ball: how far theta may go.
        steps: number of ascent steps K, 0 or more.
        step_size: length of a step as a fraction of the radius (paper: 6 of 20).
        loss_scale: factor on the objective against underflow of float16 gradients; the normalisation removes it.
        factors: (N,), float32: a factor per network on all radii; None for 1.
        first: the objective of the first step alone, which may rely on theta being the identity.
        callback: called with theta after each step.
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
    objectives = [objective] * steps
    if steps and first is not None:
        objectives[0] = first
    for step_objective in objectives:
        loss, gradient = loss_and_gradient(step_objective, theta, loss_scale)
        losses.append(loss)
        theta = ball.step(theta, gradient, identity, step_size, factors=factors, impl=impl)
        del gradient  # as large as theta: free it before the next step
        if callback is not None:
            callback(theta)
    return Ascent(theta, torch.stack(losses) if losses else identity.weights[0].new_empty(0))


def loss_and_gradient(objective: Callable[[Theta], Tensor], theta: Theta, loss_scale: float) -> tuple[Tensor, Theta]:
    """The mean objective at theta, and its gradient times ``loss_scale``. The graph, which holds theta, is freed."""
    leaves = theta.rebuild(tensor.detach().requires_grad_() for tensor in theta.tensors())
    with torch.enable_grad():
        # Views, because torch's flop counter cannot follow autograd.grad where a module's inputs are leaves.
        loss = objective(leaves.rebuild(leaf.view_as(leaf) for leaf in leaves.tensors()))
        gradients = torch.autograd.grad(loss.sum() * loss_scale, tuple(leaves.tensors()))
    return loss.detach().mean(), theta.rebuild(iter(gradients))
