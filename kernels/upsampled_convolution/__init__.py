"""Triton kernels and launchers of ``upsampled_convolution``."""
