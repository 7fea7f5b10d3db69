"""Sizes in bytes, as people write and read them. Pure."""

from __future__ import annotations

import re

_SIZE = r"([0-9]{1,20})(?:\.([0-9]{1,15}))? ?(?:([kmgtp])(i?))?b?"
"""Not compiled before it is used: most starts read no size, and a pattern takes as long as a small module."""


def parse_size_bytes(text: str) -> int:
    """Bytes in "10GB" (10^9), "10GiB" (2^30), "500M" (10^6), "64k" or a bare number of bytes.

    A unit without "i" is decimal, as in units.FromHumanSize, whose counterpart prints docker's sizes (go-units,
    size.go); the sizes in a daemon.json are read by units.RAMInBytes, for which GB is 2^30 too. Raises ValueError
    saying what is accepted.
    """
    match = re.fullmatch(_SIZE, text, re.IGNORECASE)
    if match is None:
        raise ValueError("a size such as 500MB, 10GB or 10GiB")
    whole, fraction, unit, binary = match[1], match[2] or "", match[3] or "", match[4]
    factor = (1024 if binary else 1000) ** " kmgtp".index(unit.lower() or " ")
    size = int(int(whole + fraction) * factor // 10 ** len(fraction))
    if size >= 2**60:  # dockerd reads sizes as floats, in which the largest of 63 bits would become negative
        raise ValueError("a size below 2^60 bytes")
    return size


def format_bytes(count: float) -> str:
    """1536 → "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
