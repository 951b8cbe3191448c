"""Units of the core: time is an integer number of microseconds, sizes are bytes, rates are bits per second."""

from typing import Final

MICROSECOND: Final = 1
MILLISECOND: Final = 1_000
SECOND: Final = 1_000_000

#: "No deadline": later than every time, so that ``min`` over deadlines needs no special case.
NEVER: Final = 1 << 62

KIB: Final = 1024
MIB: Final = 1024 * 1024
MBIT: Final = 1_000_000
