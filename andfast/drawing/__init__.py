"""Images for people: sample sheets and the loss curve."""

from andfast.drawing.canvas import GAP, GREY, INK, MARGIN, PAPER, pixels, write_text
from andfast.drawing.curve import loss_curve
from andfast.drawing.sheet import sample_sheet

__all__ = ["GAP", "GREY", "INK", "MARGIN", "PAPER", "loss_curve", "pixels", "sample_sheet", "write_text"]
