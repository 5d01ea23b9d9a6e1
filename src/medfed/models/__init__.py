"""Models of the clients: encoders, fusion and heads."""
