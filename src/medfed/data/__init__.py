"""From files to cohorts: sources, decode, split, cohort. Read them in this order."""
