"""Real LLMs by one command: which are known, where they come from, and their folders in the cache."""
