"""The description of types: what is in it is found, what is broken is an error and nothing else."""

import contextlib
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mptcp.errors import NotSupportedError
from mptcp.kernel.bpf import btf
from mptcp.kernel.bpf.btf import KIND_FUNC, KIND_STRUCT, Btf, BtfError


class Description:
    """Builds one: types are numbered from 1 in the order they are added."""

    def __init__(self) -> None:
        self.strings = b"\0"
        self.types = b""
        self.count = 0

    def name(self, text: str) -> int:
        if not text:
            return 0
        self.strings += text.encode() + b"\0"
        return len(self.strings) - 1 - len(text)

    def add(
        self, kind: int, name: str, size_or_type: int, tail: bytes = b"", members: int = 0, flag: bool = False
    ) -> int:
        self.types += struct.pack("=III", self.name(name), flag << 31 | kind << 24 | members, size_or_type) + tail
        self.count += 1
        return self.count

    def structure(
        self, name: str, members: list[tuple[str, int, int]], kind: int = KIND_STRUCT, *, flag: bool = False
    ) -> int:
        """``members``: (name, number of its type, offset in bits)."""
        tail = b"".join(struct.pack("=III", self.name(n), number, bits) for n, number, bits in members)
        return self.add(kind, name, 64, tail, len(members), flag)

    def emit(self) -> bytes:
        head = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(self.types), len(self.types), len(self.strings))
        return head + self.types + self.strings


def description() -> Description:
    """One type of each kind, and a structure as the kernel's ``sock_common`` is made."""
    d = Description()
    u32 = d.add(1, "u32", 4, struct.pack("=I", 32))
    d.add(2, "", u32)
    d.add(3, "", 0, struct.pack("=III", u32, u32, 4))
    inner = d.structure("", [("skc_daddr", u32, 0), ("skc_rcv_saddr", u32, 32)])
    union = d.structure("", [("skc_addrpair", u32, 0), ("", inner, 0)], kind=5)
    wrapped = d.add(8, "alias", d.add(10, "", union))
    d.add(6, "choice", 4, struct.pack("=II", 0, 0), 1)
    d.add(7, "forward", 0)
    d.add(13, "", u32, struct.pack("=II", 0, u32), 1)
    d.add(14, "variable", u32, struct.pack("=I", 0))
    d.add(15, "section", 0, struct.pack("=III", u32, 0, 4), 1)
    d.add(16, "float", 4)
    d.add(17, "tag", u32, struct.pack("=I", 0))
    d.add(18, "tag", u32)
    d.add(19, "wide", 8, struct.pack("=III", 0, 0, 0), 1)
    d.add(7, "sock_common", 0)  # a forward declaration of the same name
    d.structure("sock_common", [("first", u32, 0), ("", wrapped, 64), ("skc_num", u32, 128), ("bits", u32, 133)])
    d.structure("packed", [("field", u32, 3 << 24 | 16), ("odd", u32, 3 << 24 | 17)], flag=True)
    d.add(KIND_FUNC, "not_bpf_iter_tcp", u32)
    d.add(KIND_FUNC, "bpf_iter_tcp", u32)
    return d


def test_members_in_anonymous_structures() -> None:
    types = Btf(description().emit())
    assert types.member("sock_common", "first") == 0
    assert types.member("sock_common", "skc_addrpair") == 8
    assert types.member("sock_common", "skc_daddr") == 8
    assert types.member("sock_common", "skc_rcv_saddr") == 12
    assert types.member("sock_common", "skc_num") == 16
    assert types.member("packed", "field") == 2


def test_the_number_of_a_function() -> None:
    d = description()
    types = Btf(d.emit())
    assert types.find("bpf_iter_tcp", KIND_FUNC) == d.count
    assert types.find("not_bpf_iter_tcp", KIND_FUNC) == d.count - 1
    assert len(types) == d.count + 1


def test_what_is_not_there() -> None:
    types = Btf(description().emit())
    with pytest.raises(BtfError, match="no function bpf_iter_udp"):
        types.find("bpf_iter_udp", KIND_FUNC)
    with pytest.raises(BtfError, match="no function iter_tcp"):
        types.find("iter_tcp", KIND_FUNC)  # only as the end of other names
    with pytest.raises(BtfError, match="no structure bpf_iter_tcp"):
        types.find("bpf_iter_tcp", KIND_STRUCT)
    with pytest.raises(BtfError, match="no member skc_state"):
        types.member("sock_common", "skc_state")
    with pytest.raises(BtfError, match="bit field"):
        types.member("sock_common", "bits")
    with pytest.raises(BtfError, match="bit field"):
        types.member("packed", "odd")


def test_a_structure_inside_itself_ends() -> None:
    d = Description()
    d.structure("endless", [("", 1, 0)])
    d.structure("twice", [("", 2, 0), ("", 2, 0)])
    with pytest.raises(BtfError, match="no member"):
        Btf(d.emit()).member("endless", "x")


def test_anonymous_structures_of_many_members_do_not_take_for_ever() -> None:
    d = Description()
    d.structure("wide", [("", 1, 0)] * 1000)
    with pytest.raises(BtfError, match="no member"):
        Btf(d.emit()).member("wide", "x")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "header"),
        (b"\x9f\xeb\x01", "header"),
        (bytes(24), "no description"),
        (b"\xeb\x9f" + description().emit()[2:], "no description"),
        (description().emit()[:-1], "cut short"),
        (struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, 0xFFFFFFFC, 0, 0), "cut short"),
        (struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, 8, 8, 0) + bytes(8), "last type"),
        (struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, 12, 12, 0) + struct.pack("=III", 0, 31 << 24, 0), "kind 31"),
        (
            struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, 12, 12, 0) + struct.pack("=III", 0, 4 << 24 | 9, 0),
            "last type",
        ),
    ],
)
def test_what_is_no_description(data: bytes, message: str) -> None:
    with pytest.raises(BtfError, match=message):
        Btf(data)


@given(st.data())
def test_any_octets_give_an_answer_or_an_error(data: st.DataObject) -> None:
    octets = bytearray(description().emit())
    for _ in range(data.draw(st.integers(1, 6))):
        octets[data.draw(st.integers(0, len(octets) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(BtfError):
        types = Btf(bytes(octets))
        for name in ("skc_num", "skc_daddr", "nothing"):
            with contextlib.suppress(BtfError):
                assert types.member("sock_common", name) >= 0
        assert types.find("bpf_iter_tcp", KIND_FUNC) > 0


@given(st.binary(max_size=200))
def test_random_types(octets: bytes) -> None:
    strings = b"\0s\0x\0"
    head = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(octets), len(octets), len(strings))
    with contextlib.suppress(BtfError):
        Btf(head + octets + strings).member("s", "x")


def test_a_missing_file_is_no_support(tmp_path: Path) -> None:
    with pytest.raises(NotSupportedError, match="CONFIG_DEBUG_INFO_BTF"):
        btf.read(tmp_path / "vmlinux")
    with pytest.raises(NotSupportedError, match="cannot be read"):
        btf.read(tmp_path)
    with (tmp_path / "long").open("wb") as file:
        file.truncate(btf.MAX_BYTES + 1)
    with pytest.raises(NotSupportedError, match="more than 64 MiB"):
        btf.read(tmp_path / "long")


def test_this_kernel() -> None:
    if not btf.VMLINUX.exists():
        pytest.skip(f"{btf.VMLINUX} is not there: this kernel does not describe its types")
    types = btf.read()
    assert types.member("sock_common", "skc_family") < types.member("sock_common", "skc_v6_daddr")
    assert types.find("tcp_sock", KIND_STRUCT) > 0
