"""Spelling and word editing of a run on rendered signs whose words are held out of training."""
