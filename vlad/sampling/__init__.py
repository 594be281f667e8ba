"""From prompts to files: requests, the pipeline that draws them, pictures with their recipes."""

from vlad.sampling.loading import load_pipeline

__all__ = ["load_pipeline"]
