"""Synthetic twins of datasets in their native layouts: their simulators, and the writer of them all."""
