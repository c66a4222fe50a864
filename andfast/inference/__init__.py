"""Restoring pictures: any restorer behind one interface, in tiles where a picture is large."""

from andfast.inference.models import Restorer, load_restorer
from andfast.inference.tiles import restore_tiled

__all__ = ["Restorer", "load_restorer", "restore_tiled"]
