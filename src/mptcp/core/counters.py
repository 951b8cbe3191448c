"""Counters by name: how the core reports what it dropped, refused or had to work around."""


class Counters(dict[str, int]):
    """``counters.bump("bad_checksum")``; names are listed in the documentation. One per host."""

    __slots__ = ()

    def bump(self, name: str, by: int = 1) -> None:
        self[name] = self.get(name, 0) + by
