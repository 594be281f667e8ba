"""Lightning callbacks: progress, EMA, gradient guard, checkpointing, sample grids, validation."""
