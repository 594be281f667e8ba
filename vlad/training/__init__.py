"""Training: stages, data module, optimiser, exponential average, checkpoints, callbacks. Only here: lightning."""
