"""Modalities: named kinds of measurements."""
