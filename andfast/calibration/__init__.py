"""How far real LR is from the clean pooling of HR, and radii as far; implements ``andfast calibrate``."""
