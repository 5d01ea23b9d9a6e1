"""Federated multimodal learning for medicine: inject into a medical LLM what hospitals learn, or benchmark it.

Read :mod:`medfed.runs.pipeline` first; it runs top to bottom.
"""

from __future__ import annotations

__version__ = "0.1.0"
