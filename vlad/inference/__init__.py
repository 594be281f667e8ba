"""Inference: sampling from prompts to image files, layouts and recipes; loading models; export."""
