"""Triton kernels and launchers of ``mean_distance``."""
