"""START HERE. A run from top to bottom: data → partition → federate → inject → evaluate → report.

FedKIM (Wang et al. 2024), Figure 1: every round the clients train, the server aggregates (Eq. 3) and injects (Eq. 4, 5), and
the updated encoders go back. The *federated-only* arm is the same federation without injection: the baseline that
injection has to beat.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from medfed.arms import Arm, Arms
from medfed.errors import RunError
from medfed.evaluation.evaluate import score_rows
from medfed.progress import Reporter
from medfed.prepare import Sources, decode_all, divide, find_sources
from medfed.provenance import provenance
from medfed.report.html import write_report
from medfed.rundir import RunDir
from medfed.study import Study
