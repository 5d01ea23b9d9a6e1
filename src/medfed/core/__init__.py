"""What every room needs: errors, randomness, registries, files, processes."""
