"""The report of a run: one self-contained HTML file and a terminal table, from the run's files alone, without torch."""
