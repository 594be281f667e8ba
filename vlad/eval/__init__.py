"""Evaluation: benchmarks and protocols, generators, FID and CLIPScore, Table I and II, human studies."""
