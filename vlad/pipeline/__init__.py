"""VLADPipeline: prompt -> layout -> image, in diffusers' format."""
