"""The base of all packages: errors, randomness, registries, files, processes."""
