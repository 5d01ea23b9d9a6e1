"""Ratios, measured interleaved in one process. Nothing here is a timed test."""
