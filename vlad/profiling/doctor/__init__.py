"""The doctor: checks of config and machine before a long run."""
