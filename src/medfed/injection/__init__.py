"""Knowledge injection (FedKIM): router, experts, prompt, distillation."""
