"""A page on this machine on which one asks a finished run about a file."""
