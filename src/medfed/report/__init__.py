"""The report of runs, from their files alone."""
