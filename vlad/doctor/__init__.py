"""What stands between a config and a long run on this machine, looked at before the run."""
