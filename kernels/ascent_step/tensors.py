"""Multi-tensor access: a launch takes the addresses of its tensors as a tuple argument and picks one at run time."""

import triton
import triton.language as tl


@triton.jit
def pick(
    which,  # index of a tensor
    choices,  # tuple of pointers or integers
    TENSORS: tl.constexpr,  # length of the tuple
):
    """choices[which] for an index known only at run time."""
    picked = choices[0]
    for index in tl.static_range(1, TENSORS):
        picked = tl.where(which == index, choices[index], picked)
    return picked


@triton.jit
def find_chunk(
    chunk,  # index of the chunk within the image
    sizes,  # tuple: values per image of each tensor
    TENSORS: tl.constexpr,  # number of tensors
    CHUNK: tl.constexpr,  # values per chunk
):
    """(tensor index, its size, offset of the chunk within it)."""
    which = chunk * 0
    begun = chunk * 0
    total = chunk * 0
    size = chunk * 0
    for tensor in tl.static_range(TENSORS):
        here = chunk >= total
        which = tl.where(here, tensor, which)
        begun = tl.where(here, total, begun)
        size = tl.where(here, sizes[tensor], size)
        total += (sizes[tensor] + CHUNK - 1) // CHUNK
    return which, size, (chunk - begun) * CHUNK
