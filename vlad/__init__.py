"""VLAD: hierarchical vision-language alignment for text-to-image diffusion (arXiv 2501.00917)."""

__version__ = "0.1.0"
