"""Triton kernels: jit functions and their host launchers, nothing else.

Policy lives in :mod:`andfast.functional`: which implementation a call gets, argument checks, autograd, registration
with ``torch.library``. This folder is imported as :mod:`andfast.kernels`: a relative symbolic link in a checkout, a
plain folder in wheels and source distributions.
"""
