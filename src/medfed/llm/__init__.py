"""The server's LLM: loading, masks, checkpoints, prompts, decoding."""
