"""Benchmarks: prompt files, image sets, OCR on all cores, scores, breakdown, HTML report."""
