"""From files to a cohort: sources, decoding, splits, clients."""
