"""Diffusion: noise schedules, training targets and loss weights, classifier-free guidance, solvers."""
