"""Training: stages, data module, optimiser, exponential average, checkpoints, callbacks. The only room with lightning."""
