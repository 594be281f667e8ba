"""Command lines: the verbs of `vlad`, and the scripts train.py, sample.py and tools/ that call them.

Nothing heavy is imported before a line is parsed: `--help` and mistakes answer at once.
"""
