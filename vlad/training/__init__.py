"""Training: runs, stages, trainer, checkpoints, callbacks. The only room that imports lightning."""
