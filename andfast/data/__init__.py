"""Training images: packed once from files, cut into random crops, loaded onto the device.

Import from the submodules: ``sources`` and ``images`` (find and decode files), ``pack`` and ``store`` (the packed
store), ``crops`` (random crops), ``loader`` (batches on the device). This file imports nothing, so that packing starts
without importing torch.
"""
