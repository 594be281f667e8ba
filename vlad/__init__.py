"""VLAD: hierarchical vision-language alignment for text-to-image diffusion (arXiv 2501.00917)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlad.config.load import load_config
    from vlad.pipeline.vlad_pipeline import VLADPipeline
    from vlad.training.run import train

__version__ = "0.2.0"
__all__ = ["VLADPipeline", "load_config", "train"]


def __getattr__(name: str) -> Any:
    """Loads the front door's parts on their first use: `import vlad` stays light."""
    if name == "VLADPipeline":
        from vlad.pipeline.vlad_pipeline import VLADPipeline

        return VLADPipeline
    if name == "load_config":
        from vlad.config.load import load_config

        return load_config
    if name == "train":
        from vlad.training.run import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
