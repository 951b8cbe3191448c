"""What others have sent, fit for a terminal."""

from __future__ import annotations

from typing import Final

_CONTROLS: Final = {code: f"\\x{code:02x}" for code in [*range(0x20), *range(0x7F, 0xA0)]}


def printable(text: str) -> str:
    """Control characters, which could steer a terminal or a log, as the escapes that Python writes."""
    return text.translate(_CONTROLS)
