"""Numbers as people read them."""

from __future__ import annotations


def octets(count: float) -> str:
    """``1536`` -> ``1.5 KiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")


def rate(bits_per_second: float) -> str:
    """``94_100_000`` -> ``94.1 Mbit/s``."""
    for unit in ("bit/s", "kbit/s", "Mbit/s"):
        if bits_per_second < 1000:
            return f"{bits_per_second:.0f} {unit}" if unit == "bit/s" else f"{bits_per_second:.1f} {unit}"
        bits_per_second /= 1000
    return f"{bits_per_second:.2f} Gbit/s"


def milliseconds(microseconds: float) -> str:
    """``12_300`` -> ``12.3 ms``; a dash for "no sample yet"."""
    if microseconds <= 0:
        return "–"
    return f"{microseconds / 1000:.1f} ms" if microseconds < 1e6 else f"{microseconds / 1e6:.2f} s"
