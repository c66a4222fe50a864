"""What a machine has, and whether a training would run on it: behind ``andfast doctor``."""
