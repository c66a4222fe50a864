"""Triton kernels and launchers of ``ascent_step``."""
