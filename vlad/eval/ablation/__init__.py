"""Table II: the method trained without each of its parts, over several seeds."""
