"""The forecast of memory and time that the LLM of a study will take on this machine."""
