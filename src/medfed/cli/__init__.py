"""The ``medfed`` command: verbs without logic. Heavy imports stay inside the verbs, so ``--help`` is instant."""

from medfed.cli.app import main

__all__ = ["main"]
