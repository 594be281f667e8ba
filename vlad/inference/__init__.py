"""Inference: from prompts on the command line to image files, layouts and recipes; export."""
