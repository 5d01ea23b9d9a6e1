"""Hospitals and the federation's server: folders, keys, policy, audit log, transport."""
