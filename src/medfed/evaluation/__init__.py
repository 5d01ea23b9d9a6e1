"""Scores: metrics, intervals by patient, comparisons. Nothing here opens a file of a run or needs torch."""
