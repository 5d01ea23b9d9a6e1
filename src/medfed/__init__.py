"""Federated multimodal learning for medicine: inject into a medical LLM what hospitals learn, or benchmark it.

Read :mod:`medfed.pipeline` first; it runs top to bottom.
"""

__version__ = "0.1.0"
