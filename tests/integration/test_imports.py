"""What a module does not import, seen in a fresh interpreter."""

from __future__ import annotations

import subprocess
import sys


def test_neither_the_reports_page_nor_its_table_needs_torch() -> None:
    code = "import sys, medfed.report.html, medfed.report.tables; print([m for m in sys.modules if m == 'torch'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
