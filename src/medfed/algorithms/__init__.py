"""The federated algorithms: three parts each (:mod:`medfed.algorithms.composed`), or one whole (CreamFL).

Their settings are in :mod:`medfed.study.algorithms`.
"""
