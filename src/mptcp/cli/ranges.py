"""The Range header of a request, as far as a file server needs it (RFC 9110 §14.2): one range of octets."""

from __future__ import annotations

import re


class Unsatisfiable(Exception):
    """The range lies outside of the file: answer 416."""


def parse_range(header: str, size: int) -> tuple[int, int] | None:
    """(first, last + 1) for ``bytes=a-b``, ``bytes=a-`` or ``bytes=-n``; None: send all of it.

    RFC 9110 §14.2: "A server MAY ignore the Range header field"; we do for several ranges, other units, and nonsense.
    """
    found = re.fullmatch(r"\s*bytes\s*=\s*([0-9]{0,18})-([0-9]{0,18})\s*", header, re.IGNORECASE)
    if not found or not (found[1] or found[2]):
        return None
    if not found[1]:
        # RFC 9110 §14.1.2: "If the selected representation is shorter than the specified suffix-length, the entire
        # representation is used."
        suffix = int(found[2])
        if not suffix or not size:
            raise Unsatisfiable
        return max(0, size - suffix), size
    first = int(found[1])
    last = int(found[2]) if found[2] else size - 1
    # RFC 9110 §14.1.1: "An int-range is invalid if the last-pos value is present and less than first-pos."
    if found[2] and last < first:
        return None
    if first >= size:
        raise Unsatisfiable
    return first, min(last + 1, size)
