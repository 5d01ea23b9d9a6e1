"""Questions to a finished run: one, many from a table, or on a page."""
