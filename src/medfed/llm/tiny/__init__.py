"""The LLM of the demo and the tests: a small Llama, pre-trained on the spot on text that the package carries."""
