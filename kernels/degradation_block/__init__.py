"""Triton kernels and launchers of ``degradation_block``."""
