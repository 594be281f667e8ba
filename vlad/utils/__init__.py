"""Helpers that know nothing of the model: user errors, locks, distributed ranks, the hub, child processes."""
