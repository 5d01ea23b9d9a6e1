"""What every package may use: errors, random numbers, registries, files."""
