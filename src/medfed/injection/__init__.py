"""Knowledge injection (FedKIM): the router, the experts, the injected LLM, its training on public data, its answers."""
