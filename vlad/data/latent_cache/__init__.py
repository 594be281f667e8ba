"""Cached latents: their format, precomputing them with frozen models, and opening a cache."""
