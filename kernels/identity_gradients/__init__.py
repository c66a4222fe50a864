"""Triton kernels and launchers of ``identity_gradients``."""
