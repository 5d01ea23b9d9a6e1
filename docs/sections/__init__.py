"""What the documentation prints of finished runs and comparisons, a module per kind of section."""
