"""Fine-tuning PaliGemma 1 and PaliGemma 2 in JAX."""

__version__ = "0.1.0"
