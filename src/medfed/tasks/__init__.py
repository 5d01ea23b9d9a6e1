"""Tasks: questions about a dataset with loss, metrics and prompt."""
