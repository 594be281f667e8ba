"""Text encoders: prompt parsing, LVLMs, tokenization, vision towers, a base model's text encoders."""
