"""Reports on a run: image grids, training curves, the HTML page, the list of starts."""
