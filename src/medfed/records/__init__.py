"""The typed run folder: every file a run leaves, as a frozen record. Free of torch."""
