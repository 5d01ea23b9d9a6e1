"""A run from top to bottom: data, federations, predictors, scores, report."""
