"""``python -m medfed`` is the ``medfed`` command."""

from __future__ import annotations

from medfed.cli.app import main

main()
