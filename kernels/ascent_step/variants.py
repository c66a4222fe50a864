"""Kernel variants of the ascent step.

Dtypes may be mixed freely, so these are the launches of an ascent through F (11 weights, 10 noises, 10 slopes), a
gradient of another dtype, and the most tensors per launch.
"""

from typing import Any, NamedTuple

from triton.compiler import ASTSource

from ..common.compilation import kernel_source
from . import convolutions, maps
from . import kernels as module
from .batches import MAX_TENSORS


class Variant(NamedTuple):
    """One compiled kernel."""

    architecture: str
    kernel: str
    """sums, coefficients or update; with parts also map_sums, map_means, map_update, convolution_sums and
    convolution_update."""
    dtypes: tuple[str, str] = ("fp32", "fp32")
    """Of values, centers and outputs; of gradients."""
    tensors: int = 10
    at_center: bool = False
    expanded: bool = False
    """As in :class:`~.batches.Batch`, like ``at_center``."""
    layout: str = "aligned"
    """"aligned", "odd" (values per image are not a multiple of 16), "ones" (one value per image: slopes)."""
    joint: bool = False
    """Of the coefficients: one ball for all groups."""
    groups: int = 3
    """Of the coefficients: number of groups, or parts."""
    factors: bool = False
    """Of the coefficients: a factor per image on all radii."""
    in_tensor: bool = False
    """Of the coefficients: radii are in a tensor."""
    channels: int = 64
    """Of maps."""
    channels_last: bool = True
    """Of maps: channels are contiguous."""
    symmetric: bool = True
    """Of convolutions: parts are point-symmetric."""

    def name(self) -> str:
        if self.kernel == "coefficients":
            options = [name for name in ("factors", "in_tensor") if getattr(self, name)]
            balls = "joint" if self.joint else f"{self.groups} balls"
            return " ".join([f"{self.architecture} coefficients {balls}", *options])
        center = ("expanded" if self.expanded else "full") + " centers" + (", first step" if self.at_center else "")
        value, gradient = self.dtypes
        dtypes = value if value == gradient else f"{value}, gradients {gradient}"
        if self.kernel.startswith("map"):
            center += f", {self.channels} channels{' last' if self.channels_last else ''}"
        if self.kernel.startswith("convolution"):
            center += ", symmetric" if self.symmetric else ", any shape"
        return f"{self.architecture} {self.kernel} {self.tensors} {dtypes} {self.layout}, {center}"

    def source(self) -> ASTSource:
        if self.kernel == "coefficients":
            return self._coefficients_source()
        if self.kernel.startswith("map"):
            return self._map_source()
        if self.kernel.startswith("convolution"):
            return self._convolution_source()
        function = getattr(module, f"_{self.kernel}_kernel")
        value, gradient = ("*" + dtype for dtype in self.dtypes)
        types: dict[str, Any] = {
            "values": (value,) * self.tensors,
            "gradients": (gradient,) * self.tensors,
            "centers": (value,) * self.tensors,
            "sizes": ("i32",) * self.tensors,
        }
        pointers = ["values", "gradients", "centers"]
        if self.kernel == "update":
            types |= {"outs": (value,) * self.tensors, "coefficients_ptr": "*fp32"}
            pointers += ["outs"]
        else:
            types["partials_ptr"] = "*fp32"
        constants: dict[str, Any] = {
            "TENSORS": self.tensors,
            "AT_CENTER": int(self.at_center),
            "EXPANDED": int(self.expanded),
            "BLOCK": module.CONFIG.block,
            "BLOCKS": module.CONFIG.blocks,
        }
        divisible = [name for name in types if name.endswith("_ptr")] + pointers  # torch's allocations are aligned
        if self.layout == "ones":
            constants["sizes"] = (1,) * self.tensors
        if self.layout == "aligned":
            divisible.append("sizes")
        return kernel_source(function, types, constants, divisible)

    def _coefficients_source(self) -> ASTSource:
        pointers = ["partials_ptr", "coefficients_ptr", "radii_ptr", "factors_ptr"]
        types: dict[str, Any] = dict.fromkeys(pointers, "*fp32")
        constants = {
            "GROUPS": self.groups,
            "JOINT": self.joint,
            "IN_TENSOR": int(self.in_tensor),
            "FACTORS": int(self.factors),
            "BLOCK": module.PARTIALS_BLOCK,
        }
        types |= {"radii": ("fp32",) * self.groups, "step_size": "fp32"}
        return kernel_source(module._coefficients_kernel, types, constants, pointers)

    def _tensor_types(self) -> dict[str, Any]:
        """Of the tuples that sums and update have in common."""
        value, gradient = ("*" + dtype for dtype in self.dtypes)
        types = {"values": value, "gradients": gradient, "centers": value, "sizes": "i32"}
        if self.kernel.endswith("update"):
            types["outs"] = value
        return {name: (kind,) * self.tensors for name, kind in types.items()}

    def _map_source(self) -> ASTSource:
        rows, lanes = maps.CONFIG.tile(self.channels, self.channels_last)
        constants: dict[str, Any] = {"TENSORS": self.tensors, "AT_CENTER": int(self.at_center), "LANES": lanes}
        if self.kernel == "map_means":
            types: dict[str, Any] = {"sizes": ("i32",) * self.tensors}
            types |= dict.fromkeys(("partials_ptr", "chunk_means_ptr", "means_ptr"), "*fp32")
            constants |= {"PIXELS": rows * maps.CONFIG.blocks, "BLOCK": maps.MEANS_BLOCK}
            divisible = list(types)
        else:
            own = (
                ("partials_ptr", "chunk_means_ptr") if self.kernel == "map_sums" else ("coefficients_ptr", "means_ptr")
            )
            types = self._tensor_types() | dict.fromkeys(own, "*fp32")
            constants |= {"EXPANDED": int(self.expanded), "CHANNELS_LAST": int(self.channels_last)}
            constants |= {"ROWS": rows, "BLOCKS": maps.CONFIG.blocks}
            divisible = [*types, "channels"]
            if self.channels == 1:
                constants["channels"] = 1
                divisible.remove("channels")
            if self.layout == "odd":
                divisible = [name for name in divisible if name not in ("sizes", "channels")]
        return kernel_source(getattr(maps, f"_{self.kernel}_kernel"), types, constants, divisible)

    def _convolution_source(self) -> ASTSource:
        own = ("partials_ptr", "k_ptr") if self.kernel == "convolution_sums" else ("coefficients_ptr", "k_ptr")
        types = self._tensor_types() | dict.fromkeys(own, "*fp32")
        constants: dict[str, Any] = {
            "TENSORS": self.tensors,
            "AT_CENTER": int(self.at_center),
            "SYMMETRIC": int(self.symmetric),
            "KERNELS": convolutions.KERNELS,
        }
        if self.kernel == "convolution_update":
            constants["BLOCKS"] = convolutions.BLOCKS
        divisible = [name for name in types if name != "sizes" or self.layout == "aligned"]
        return kernel_source(getattr(convolutions, f"_{self.kernel}_kernel"), types, constants, divisible)

    def options(self) -> dict[str, int]:
        if self.kernel.startswith("convolution"):
            return {"num_warps": convolutions.WARPS}
        if self.kernel in ("map_sums", "map_update"):
            return {"num_warps": maps.CONFIG.warps}
        return {"num_warps": 4 if self.kernel in ("coefficients", "map_means") else module.CONFIG.warps}

    def register_ceiling(self) -> int:
        ceilings = {"sums": 128, "coefficients": 64, "update": 80, "map_sums": 128, "map_means": 128, "map_update": 80}
        return ceilings.get(self.kernel, 128)


def variants(architecture: str) -> list[Variant]:
    noises = [
        Variant(architecture, "", (dtype, dtype), at_center=first, expanded=True)
        for dtype in ("fp32", "bf16", "fp16")
        for first in (True, False)
    ]
    weights = [Variant(architecture, "", tensors=11, at_center=first) for first in (True, False)]
    slopes = [Variant(architecture, "", at_center=first, layout="ones") for first in (True, False)]
    rare = [
        Variant(architecture, "", ("fp32", "bf16"), expanded=True),
        Variant(architecture, "", layout="odd"),
        Variant(architecture, "", ("bf16", "bf16"), layout="odd"),
        Variant(architecture, "", tensors=MAX_TENSORS),
        Variant(architecture, "", ("bf16", "fp32"), tensors=MAX_TENSORS),
    ]
    batches = [*noises, *weights, *slopes, *rare]
    coefficients = Variant(architecture, "coefficients")
    return [
        *(variant._replace(kernel=kernel) for kernel in ("sums", "update") for variant in batches),
        *(coefficients._replace(joint=joint) for joint in (False, True)),
        *(coefficients._replace(groups=groups, factors=True) for groups in (3, 5)),
        coefficients._replace(groups=5),
        coefficients._replace(groups=5, factors=True, in_tensor=True),
        *_with_parts(architecture),
    ]


def _with_parts(architecture: str) -> list[Variant]:
    """Noises of mean zero and convolutions in parts."""
    maps_of_noise = [
        Variant(architecture, "", (dtype, dtype), at_center=first, expanded=True)
        for dtype in ("fp32", "bf16", "fp16")
        for first in (True, False)
    ]
    maps_of_noise += [
        Variant(architecture, "", at_center=first, expanded=True, channels=channels, channels_last=last)
        for channels, last in ((64, False), (1, False), (16, True), (32, True))
        for first in (True, False)
    ]
    means = {variant._replace(dtypes=("fp32", "fp32"), expanded=False, kernel="map_means") for variant in maps_of_noise}
    # The first layer's 3 * 64 kernels and the others are multiples of 16, as sizes are.
    weights = [
        Variant(architecture, "", tensors=11, at_center=first, symmetric=symmetric)
        for first in (True, False)
        for symmetric in (True, False)
    ]
    return [
        *(variant._replace(kernel=kernel) for kernel in ("map_sums", "map_update") for variant in maps_of_noise),
        *sorted(means),
        *(v._replace(kernel=kernel) for kernel in ("convolution_sums", "convolution_update") for v in weights),
    ]


def representatives(architecture: str) -> list[Variant]:
    """The variants that use the most registers."""
    batches = [
        Variant(architecture, "", expanded=True),
        Variant(architecture, "", layout="odd"),
        Variant(architecture, "", ("bf16", "fp32"), tensors=MAX_TENSORS),
    ]
    return [
        *(variant._replace(kernel=kernel) for kernel in ("sums", "update") for variant in batches),
        Variant(architecture, "coefficients", joint=True),
        Variant(architecture, "coefficients", groups=5, factors=True, in_tensor=True),
        *(
            Variant(architecture, kernel, expanded=True, channels=channels, channels_last=channels_last)
            for kernel in ("map_sums", "map_update")
            for channels, channels_last in ((64, True), (64, False))
        ),
        Variant(architecture, "map_means"),
        *(Variant(architecture, kernel, tensors=11) for kernel in ("convolution_sums", "convolution_update")),
    ]
