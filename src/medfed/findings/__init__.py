"""Findings read off the data, and their meaning by an LLM: it answers questions, and no patient enters it."""
