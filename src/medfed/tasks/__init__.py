"""Tasks: what is asked of a dataset."""
