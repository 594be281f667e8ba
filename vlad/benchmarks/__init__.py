"""A target scored on a benchmark; what the published tables compare with, row by row."""
