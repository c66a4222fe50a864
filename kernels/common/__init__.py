"""What the kernels of several ops share: launch arithmetic, sign bits, the configuration type, convolution loads."""
