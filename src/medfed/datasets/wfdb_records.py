"""WFDB records of 12-lead ECGs: a header and a signal file each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float32

from medfed.core.errors import DataError
from medfed.datasets.base import AGAIN
from medfed.modalities.signal import LEADS, RAW_HZ

BOTH_AGAIN = "the two files are truncated or do not belong together: download both again"


def read_wfdb(header: Path, signal: Path) -> Float32[np.ndarray, "lead time"]:
    """Read a 12-lead WFDB record at 100 Hz into millivolts, leads in the order of :data:`LEADS`.

    Raises:
        DataError: a file is missing or damaged, a lead is missing, or frequency or units differ.
    """
    import wfdb  # noqa: PLC0415 (large; loaded where it is used)

    for path in (header, signal):
        if not path.is_file():
            raise DataError("the file is missing", where=path, hint="a record is a .hea and a .dat file: get both")
    try:
        record = wfdb.rdrecord(str(header.with_suffix("")))
    except Exception as error:  # wfdb reports damage as TypeError, IndexError, ValueError, …
        kind = f"{type(error).__name__}: {error}"
        raise DataError(
            f"not a readable WFDB record, {signal.stat().st_size} bytes ({kind})", where=signal, hint=BOTH_AGAIN
        ) from error
    if record.p_signal is None or record.p_signal.size == 0:
        raise DataError("the record holds no samples", where=signal, hint=BOTH_AGAIN)
    if record.fs != RAW_HZ:
        raise DataError(
            f"sampled at {record.fs} Hz; {RAW_HZ} Hz is needed", where=header, hint="use records100, not records500"
        )
    row = {name.upper(): position for position, name in enumerate(record.sig_name)}
    missing = [lead for lead in LEADS if lead not in row]
    if missing or len(row) < len(record.sig_name):
        problem = f"lead {', '.join(missing)} is missing" if missing else "a lead is named twice"
        raise DataError(f"{problem}; found {', '.join(record.sig_name)}", where=header, hint=AGAIN)
    if set(record.units) != {"mV"}:
        raise DataError(f"units {', '.join(record.units)}; mV is needed", where=header, hint=AGAIN)
    ordered: np.ndarray = record.p_signal[:, [row[lead] for lead in LEADS]].T
    return ordered.astype(np.float32)
