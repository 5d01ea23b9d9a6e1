"""Adapters and models for others, and how they are loaded again."""
