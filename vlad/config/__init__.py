"""Config: the schema composed of all rooms' options, loading from YAML and overrides."""
