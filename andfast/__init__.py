"""andfast: fast adversarial neural degradation (AND) for training blind super-resolution networks."""

__version__ = "0.1.0"
