"""Losses beside L_align and L_diff: regions, matching, captioning, hard negatives, legibility of text."""
