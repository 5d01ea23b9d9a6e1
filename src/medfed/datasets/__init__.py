"""Datasets in the native layouts that people download."""
