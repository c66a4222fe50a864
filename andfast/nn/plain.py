"""A generator built from standard PyTorch ops only, for ONNX and torch.export."""

from copy import deepcopy

from torch import Tensor, nn

from andfast.functional.residual_dense_block import CONVOLUTIONS
from andfast.functional.residual_dense_block_reference import residual_dense_block_reference
from andfast.functional.upsampled_convolution_reference import upsampled_convolution_reference
from andfast.nn.rrdbnet import NEGATIVE_SLOPE, RESIDUAL_SCALE, Convolution, RRDBNet


def plain_copy(generator: RRDBNet) -> RRDBNet:
    """A deep copy in eval mode with the same state dict and no custom ops."""
    copy = deepcopy(generator).eval()
    for block in copy.body:
        for name, dense in list(block.named_children()):
            setattr(block, name, _PlainDenseBlock(dense))
    for name, convolution in list(copy.named_children()):
        if isinstance(convolution, Convolution):
            setattr(copy, name, _PlainConvolution(convolution))
    return copy


class _PlainConvolution(nn.Module):
    """Reference convolution with upsampling and activation, sharing the parameters of a fused one."""

    def __init__(self, fused: Convolution) -> None:
        super().__init__()
        self.weight, self.bias = fused.weight, fused.bias
        self.factor, self.slope = fused.factor, fused.slope

    def forward(self, x: Tensor) -> Tensor:
        assert self.bias is not None
        return upsampled_convolution_reference(x, self.weight, self.bias, factor=self.factor, slope=self.slope)


class _PlainDenseBlock(nn.Module):
    """Reference dense block, sharing the convolutions of a fused one."""

    def __init__(self, dense: nn.Module) -> None:
        super().__init__()
        for number in range(1, CONVOLUTIONS + 1):
            self.add_module(f"conv{number}", dense.get_submodule(f"conv{number}"))

    def forward(self, x: Tensor) -> Tensor:
        parameters = dict(self.named_parameters())
        weights, biases = (
            [parameters[f"conv{number}.{kind}"] for number in range(1, CONVOLUTIONS + 1)] for kind in ("weight", "bias")
        )
        return residual_dense_block_reference(x, weights, biases, slope=NEGATIVE_SLOPE, scale=RESIDUAL_SCALE)
