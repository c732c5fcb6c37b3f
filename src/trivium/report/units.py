"""Numbers as people read them: counts, bytes, durations, and figures of a few digits."""

from __future__ import annotations

import math


def figure(value: float, digits: int = 3) -> str:
    """`value` with `digits` significant digits; an exponent only where it is shorter: 3.00e-04, 1.92, 2,019."""
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if magnitude >= 15 or magnitude < -3:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(0, digits - 1 - magnitude)}f}"


def count(value: float) -> str:
    """A count in at most four characters and a letter: 950, 8,192, 13.9 M, 1.2 B."""
    for limit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if abs(value) >= limit:
            return f"{figure(value / limit)} {letter}"
    return f"{value:,.0f}" if math.isfinite(value) else str(value)


def size(num_bytes: float) -> str:
    """Bytes in units of a thousand, as everywhere: 512 B, 1.50 kB, 2.31 GB."""
    value = float(num_bytes)
    if not math.isfinite(value):
        return str(value)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(value) < 1000 or unit == "TB":
            return f"{value:.0f} B" if unit == "B" else f"{figure(value)} {unit}"
        value /= 1000
    raise AssertionError("the last unit takes every value")


def duration(seconds: float) -> str:
    """Seconds in the two largest units that say something: 4.2 s, 4 min 12 s, 2 h 05 min, 3 d 4 h."""
    if not math.isfinite(seconds):
        return str(seconds)
    if seconds < 60:
        return f"{figure(seconds, 2)} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
