"""Generators of benchmark images: our runs, any diffusers pipeline, Table I's baselines."""
