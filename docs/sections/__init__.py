"""Sections of the documentation from finished runs and comparisons, a module per kind of section."""
