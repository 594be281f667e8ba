"""How fast parts of the program are on this machine, what they hold, and what each switch of training brings."""
