"""Training pictures: packed once from files, cut into random crops, and brought to the device.

Import from the modules: ``sources`` and ``images`` (find and decode files), ``pack`` and ``store`` (the
packed store), ``crops`` (random crops), ``loader`` (batches on the device). This file imports nothing, so
that packing does not wait for torch.
"""
