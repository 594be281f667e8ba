"""Images and pages for people: image grids, training curves, a run's HTML report."""
