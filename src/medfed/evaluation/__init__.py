"""Scores of a run: metrics with stated conventions, patient bootstrap, and the rows the report prints."""
