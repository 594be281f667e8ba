"""The open benchmark: rendered scenes with prompts, layouts and reference images."""
