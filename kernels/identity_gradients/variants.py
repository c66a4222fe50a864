"""Kernel variants of the identity gradients.

These are the launches of a closed-form first step (five layers of 64 channels, images in fp32 and bf16, noises in three
dtypes, both memory formats, all shapes of noise), and sizes that are not multiples of 16.
"""

from typing import Any, Final, NamedTuple

from triton.compiler import ASTSource

from ..common.compilation import kernel_source
from . import kernels as module

FORMS: Final = ("no noise", "one map", "each channel")
"""By the kernel's NOISE."""


class Variant(NamedTuple):
    """One compiled kernel."""

    architecture: str
    kernel: str
    """layers or correlation."""
    images: tuple[str, str] = ("fp32", "fp32")
    """Dtypes of x and of g."""
    noise: str = "fp32"
    """Dtype of the gradients to the noises."""
    form: str = "each channel"
    """Of :data:`FORMS`."""
    last: bool = True
    """Whether noises are channels_last."""
    aligned: bool = True
    """Whether rows of noises are multiples of 16."""
    block: int = 64
    """Channels per program."""
    slope: bool = True
    """Whether gradients to the slopes are computed."""

    def name(self) -> str:
        x, g = self.images
        start = f"{self.architecture} {self.kernel} x {x} g {g}"
        if self.kernel == "correlation":
            return start
        noise = self.form if self.form == FORMS[0] else f"{self.noise} {self.form}"
        layout = ("channels_last" if self.last else "contiguous") + (" aligned" if self.aligned else " odd")
        return f"{start}, {noise}, {'slopes' if self.slope else 'no slopes'}, {layout}, {self.block} channels"

    def source(self) -> ASTSource:
        config = module.CONFIG
        x, g = ("*" + dtype for dtype in self.images)
        types: dict[str, Any] = {"x_ptr": x, "g_ptr": g, "sums_ptr": "*fp32"}
        if self.kernel == "correlation":
            constants = {"SEGMENT": config.segment, "BLOCK": module.TAPS_BLOCK}
            return kernel_source(module._correlation_kernel, types, constants, list(types))
        form = FORMS.index(self.form)
        noises = ("*" + self.noise,) * 5 if form else ("*fp32",)
        size = 2 if self.form == FORMS[2] and self.noise != "fp32" else 4
        block_c, block_p = module.tile_of(self.block, size, config)
        types |= {"before_ptr": "*fp32", "after_ptr": "*fp32", "noises": noises}
        constants = {
            "LAYERS": 5,
            "NOISE": form,
            "SLOPE": int(self.slope),
            "LAST": int(self.last),
            "ALIGNED": int(self.aligned),
            "BLOCK_C": block_c,
            "BLOCK_P": block_p,
        }
        return kernel_source(module._layers_kernel, types, constants, list(types))  # torch's allocations are aligned

    def options(self) -> dict[str, int]:
        return {"num_warps": module.CONFIG.warps}

    def register_ceiling(self) -> int:
        return {"layers": 224, "correlation": 128}[self.kernel]


def variants(architecture: str) -> list[Variant]:
    base = Variant(architecture, "layers")
    images = [("fp32", "fp32"), ("bf16", "bf16"), ("fp32", "bf16"), ("fp32", "fp16")]
    listed = [base._replace(noise=noise, last=last) for noise in ("fp32", "bf16", "fp16") for last in (True, False)]
    listed += [base._replace(images=pair, noise=noise) for pair in images[1:] for noise in ("fp32", pair[1])]
    listed += [base._replace(aligned=False, last=last, block=block) for block in (16, 64) for last in (True, False)]
    listed += [base._replace(aligned=False, noise="bf16", last=last) for last in (True, False)]
    listed += [base._replace(slope=False), base._replace(slope=False, last=False), base._replace(block=16)]
    listed += [base._replace(form=form, block=block) for form in FORMS[:2] for block in (16, 64)]
    listed += [base._replace(form=FORMS[1], aligned=False), base._replace(form=FORMS[1], slope=False)]
    listed += [Variant(architecture, "correlation", pair) for pair in images]
    return list(dict.fromkeys(listed))


def representatives(architecture: str) -> list[Variant]:
    """One variant per layout and form, in the dtypes that use the most registers."""
    base = Variant(architecture, "layers")
    return [
        base,
        base._replace(last=False),
        base._replace(noise="bf16"),
        base._replace(aligned=False),
        base._replace(aligned=False, last=False),
        base._replace(form=FORMS[1]),
        Variant(architecture, "correlation"),
        Variant(architecture, "correlation", ("bf16", "bf16")),
    ]
