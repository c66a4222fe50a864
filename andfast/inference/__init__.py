"""Restoring images: one interface for all restorers, tiled restoration of large images, export."""

from andfast.inference.models import Restorer, load_restorer
from andfast.inference.tiles import restore_tiled

__all__ = ["Restorer", "load_restorer", "restore_tiled"]
