"""Federated learning: what a client does, what the server does, and what travels."""
