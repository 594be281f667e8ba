"""Human study: which images are rated by whom, the rating page, the results."""
