"""Simulators: synthetic twins of datasets in their native layouts."""
