"""Diffusion: the autoencoder, noise schedules and targets, UNets, attention backends, samplers."""
