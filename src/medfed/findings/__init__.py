"""Findings that are read off the data, and what an LLM says they mean: questions are answered without a patient in it."""
