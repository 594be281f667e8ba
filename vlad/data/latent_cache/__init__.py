"""Cached latents and text states in companion shards: their format and their writer."""
