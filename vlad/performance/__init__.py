"""How fast a config trains on this machine, and what each switch brings."""
