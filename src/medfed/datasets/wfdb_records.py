"""WFDB records of 12-lead ECGs: a header and a signal file each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float32

from medfed.core.errors import DataError
from medfed.datasets.base import AGAIN, require
from medfed.modalities.signal import LEADS, RAW_HZ

BOTH_AGAIN = "the two files are truncated or do not belong together: download both again"


def read_wfdb(header: Path, signal: Path) -> Float32[np.ndarray, "lead time"]:
    """Read a 12-lead WFDB record at 100 Hz into millivolts, leads in the order of :data:`LEADS`.

    Raises DataError if a file is missing or damaged, a lead is missing, or frequency or units differ.
    """
    import wfdb  # noqa: PLC0415 (large; loaded where it is used)

    for path in (header, signal):
        require(path.is_file(), "the file is missing", path, "a record is a .hea and a .dat file: get both")
    try:
        record = wfdb.rdrecord(str(header.with_suffix("")))
    except Exception as error:  # wfdb reports damage as TypeError, IndexError, ValueError, …
        what = f"not a readable WFDB record, {signal.stat().st_size} bytes ({type(error).__name__}: {error})"
        raise DataError(what, where=signal, hint=BOTH_AGAIN) from error
    some = record.p_signal is not None and record.p_signal.size > 0
    require(some, "the record holds no samples", signal, BOTH_AGAIN)
    wrong_rate = f"sampled at {record.fs} Hz; {RAW_HZ} Hz is needed"
    require(record.fs == RAW_HZ, wrong_rate, header, "use records100, not records500")
    row, named = {name.upper(): position for position, name in enumerate(record.sig_name)}, ", ".join(record.sig_name)
    missing = ", ".join(lead for lead in LEADS if lead not in row)
    require(not missing, f"lead {missing} is missing; found {named}", header, AGAIN)
    require(len(row) == len(record.sig_name), f"a lead is named twice; found {named}", header, AGAIN)
    require(set(record.units) == {"mV"}, f"units {', '.join(record.units)}; mV is needed", header, AGAIN)
    return np.asarray(record.p_signal[:, [row[lead] for lead in LEADS]].T, np.float32)
