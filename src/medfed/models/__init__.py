"""What clients train: encoders, fusion and heads."""
