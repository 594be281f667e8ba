"""VLADPipeline: prompt -> layout -> image, in diffusers' format; its options and folders."""
