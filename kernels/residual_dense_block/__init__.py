"""Triton kernels and launchers of ``residual_dense_block``."""
