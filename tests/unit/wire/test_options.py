"""TCP options: layout as Linux emits it, round trips, contradictions, and hostile octets."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mptcp.core.wire import mptcp_options, options
from mptcp.core.wire.mptcp_options import (
    AddAddr,
    Dss,
    MpCapable,
    MpExperimental,
    MpFail,
    MpFastclose,
    MpJoinAck,
    MpJoinSyn,
    MpJoinSynAck,
    MpPrio,
    MptcpOption,
    MpTcprst,
    MpUnknown,
    RemoveAddr,
)
from mptcp.core.wire.segment import ACK, NO_OPTIONS, RST, SYN, Options

bits8, bits16, bits32, bits64 = (st.integers(0, (1 << width) - 1) for width in (8, 16, 32, 64))
maybe16 = st.none() | bits16


@st.composite
def dss_options(draw: st.DrawFn) -> Dss:
    ack_wide, dsn_wide = draw(st.booleans()), draw(st.booleans())
    ack = draw(st.none() | (bits64 if ack_wide else bits32))
    dsn = draw(st.none() | (bits64 if dsn_wide else bits32))
    fin = draw(st.booleans())
    if dsn is None:
        return Dss(ack, ack_wide and ack is not None, data_fin=fin)
    mapping = draw(bits32), draw(bits16), draw(maybe16)
    return Dss(ack, ack_wide and ack is not None, dsn, dsn_wide, *mapping, fin)


@st.composite
def add_addrs(draw: st.DrawFn) -> AddAddr:
    address = draw(st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16))
    version = draw(st.integers(0, 1))
    echo = version == 1 and draw(st.booleans())
    hmac = None if echo or version == 0 else draw(st.binary(min_size=8, max_size=8))
    return AddAddr(draw(bits8), address, draw(maybe16), echo, hmac, version)


#: Every option that may stand in a segment with these flags.
SYN_MPTCP = (
    st.builds(MpCapable, version=st.integers(1, 15), flags=bits8)
    | st.builds(MpCapable, version=st.just(0), flags=bits8, sender_key=bits64)
    | st.builds(MpJoinSyn, bits32, bits32, bits8, st.booleans())
)
SYN_ACK_MPTCP = st.builds(MpCapable, version=st.integers(0, 15), flags=bits8, sender_key=bits64) | st.builds(
    MpJoinSynAck, st.binary(min_size=8, max_size=8), bits32, bits8, st.booleans()
)
ACK_MPTCP: st.SearchStrategy[MptcpOption] = (
    dss_options()
    | add_addrs()
    | st.builds(MpCapable, version=st.integers(0, 15), flags=bits8, sender_key=bits64, receiver_key=bits64)
    | st.builds(
        MpCapable,
        version=st.integers(1, 15),
        flags=bits8,
        sender_key=bits64,
        receiver_key=bits64,
        data_length=bits16,
        checksum=maybe16,
    )
    | st.builds(MpJoinAck, st.binary(min_size=20, max_size=20))
    | st.builds(RemoveAddr, st.lists(bits8, min_size=1, max_size=20).map(tuple))
    | st.builds(MpPrio, st.booleans(), st.none() | bits8)
    | st.builds(MpFail, bits64)
    | st.builds(MpFastclose, bits64)
    | st.builds(MpTcprst, bits8, st.booleans(), st.integers(0, 7).map(lambda n: n << 1))
    | st.builds(MpExperimental, st.integers(0, 15), st.binary(max_size=20))
    | st.builds(
        lambda subtype, low, rest: MpUnknown(subtype, bytes((subtype << 4 | low,)) + rest),
        st.integers(9, 14),
        st.integers(0, 15),
        st.binary(max_size=20),
    )
)
KNOWN = {0, 1, 2, 3, 4, 5, 8, 28, 30, 34}
UNKNOWN = st.tuples(bits8.filter(lambda kind: kind not in KNOWN), st.binary(max_size=12))


@st.composite
def option_sets(draw: st.DrawFn, flags: int) -> Options:
    is_syn = bool(flags & SYN)
    mptcp = SYN_ACK_MPTCP if flags == SYN | ACK else SYN_MPTCP if is_syn else ACK_MPTCP
    value = draw(st.none() | bits32)
    return Options(
        mss=draw(maybe16) if is_syn else None,
        window_scale=draw(st.none() | bits8) if is_syn else None,
        sack_permitted=is_syn and draw(st.booleans()),
        sack_blocks=draw(st.lists(st.tuples(bits32, bits32), max_size=4).map(tuple)),
        timestamp_value=value,
        timestamp_echo=0 if value is None else draw(bits32),
        user_timeout=draw(st.none() | bits16),
        fast_open=draw(
            st.none() | st.just(b"") | st.integers(2, 8).flatmap(lambda n: st.binary(min_size=2 * n, max_size=2 * n))
        ),
        mptcp=tuple(draw(st.lists(mptcp, max_size=2))),
        unknown=tuple(draw(st.lists(UNKNOWN, max_size=2))),
    )


@pytest.mark.parametrize("flags", [SYN, SYN | ACK, ACK])
def test_parse_gives_back_what_was_emitted(flags: int) -> None:
    @settings(deadline=None, max_examples=200)
    @given(option_sets(flags))
    def check(original: Options) -> None:
        octets = options.length(original)
        assert octets % 4 == 0
        if octets > options.MAX_OCTETS:
            with pytest.raises(AssertionError):
                options.emit(original, flags)
            return
        data = options.emit(original, flags)
        assert len(data) == octets
        assert options.parse(memoryview(b"??" + data + b"!"), 2, 2 + octets, flags) == original

    check()


@settings(deadline=None, max_examples=200)
@given(st.lists(dss_options(), max_size=1), st.lists(st.tuples(bits32, bits32), max_size=3), bits32, bits32)
def test_quick_ways_agree_with_the_general_one(
    dss: list[Dss], blocks: list[tuple[int, int]], value: int, echo: int
) -> None:
    original = Options(timestamp_value=value, timestamp_echo=echo, sack_blocks=tuple(blocks), mptcp=tuple(dss))
    assume(options.length(original) <= options.MAX_OCTETS)
    data = options.emit(original, ACK)
    assert data == options._emit_any(original)
    assert options._parse_any(data, 0, len(data), ACK, 1) == original == options.parse(data, 0, len(data), ACK)


# The layout that Linux sends and middleboxes know.
@pytest.mark.parametrize(
    ("content", "flags", "octets"),
    [
        (NO_OPTIONS, ACK, ""),
        (
            Options(mss=1460, sack_permitted=True, timestamp_value=1, window_scale=7, mptcp=(MpCapable(),)),
            SYN,
            "020405b4 0402080a 00000001 00000000 01030307 1e040101",
        ),
        (Options(mss=1440, sack_permitted=True, window_scale=8), SYN, "020405a0 01010402 01030308"),
        (Options(timestamp_value=1, timestamp_echo=2), ACK, "0101080a 00000001 00000002"),
        (
            Options(timestamp_value=1, timestamp_echo=2, mptcp=(Dss(7, True),)),
            ACK,
            "0101080a 00000001 00000002 1e0c2003 0000000000000007",
        ),
        (
            Options(timestamp_value=1, timestamp_echo=2, mptcp=(Dss(7, True, 9, True, 1, 1400),)),
            ACK,
            "0101080a 00000001 00000002 1e1a200f 0000000000000007 0000000000000009 00000001 0578 0101",
        ),
        (
            Options(timestamp_value=1, timestamp_echo=2, sack_blocks=((5, 6), (1, 2))),
            ACK,
            "0101080a 00000001 00000002 01010512 00000005 00000006 00000001 00000002",
        ),
        (Options(user_timeout=0x8005), ACK, "1c048005"),
        (Options(fast_open=b""), SYN, "22020101"),
        (
            Options(fast_open=b"\1\2\3\4\5\6\7\x08", unknown=((253, b"\xf9\x89"),)),
            SYN,
            "220a0102030405060708 0101 fd04f989",
        ),
        (Options(mptcp=(MpTcprst(1), MpFastclose(3))), RST, "1e048001 1e0c7000 0000000000000003"),
    ],
)
def test_layout(content: Options, flags: int, octets: str) -> None:
    data = bytes.fromhex(octets)
    assert options.emit(content, flags) == data
    assert options.parse(data, 0, len(data), flags) == content


def parse(octets: str, flags: int = ACK) -> Options | None:
    data = bytes.fromhex(octets)
    return options.parse(memoryview(data), 0, len(data), flags)


# RFC 9293 §3.1 (MUST-7): "TCP implementations MUST be prepared to handle an illegal option length (e.g., zero)"
@pytest.mark.parametrize(
    "octets",
    [
        "0200",
        "0201",
        "01010800 00000001 00000002",
        "02",
        "010101 08",
        "0101080b 00000001 00000002",
        "1e00 0000",
        "1e 01",
        "0101 1e0c2003 0000",
        "fd29 0000",
        "0101080a 00000001 00000002 1e0d2003 0000000000000007",
    ],
)
def test_illegal_length_makes_the_segment_malformed(octets: str) -> None:
    assert parse(octets) is None


@pytest.mark.parametrize(
    "octets",
    [
        "020405b4 020405b5",
        "0101080a 00000001 00000002 0101080a 00000001 00000003",
        "03030701 03030801",
        "0101050a 00000005 00000006 0101050a 00000005 00000007",
        "1c040001 1c040002",
    ],
)
def test_the_same_option_twice_with_other_content_is_a_contradiction(octets: str) -> None:
    assert parse(octets, SYN) is None


def test_the_same_option_twice_with_equal_content_is_none() -> None:
    assert parse("020405b4 020405b4", SYN) == Options(mss=1460)


# RFC 9293 §3.1 (MUST-6): "A TCP implementation MUST [...] ignore without error any TCP Option it does not implement"
def test_unknown_kinds_and_lengths_survive() -> None:
    assert parse("fe04abcd 0205010203 0404 0000 0303 07") == Options(
        unknown=((254, b"\xab\xcd"), (2, b"\1\2\3"), (4, b"\0\0")), window_scale=7
    )
    assert parse("0505 010203 01 01 01") == Options(unknown=((5, b"\1\2\3"),))
    assert parse("22050102 03") == Options(unknown=((34, b"\1\2\3"),))  # RFC 7413 §4.1.1: odd cookies are not valid


def test_nothing_after_the_end_of_the_list_counts() -> None:
    assert parse("00 02 ff ff") == Options()
    assert parse("020405b4 00000000", SYN) == Options(mss=1460)


def test_padding_with_zeros_in_place_of_nops_is_understood() -> None:
    dss = Dss(7, True, 9, True, 1, 1400)
    octets = "0101080a 00000001 00000002 1e1a200f 0000000000000007 0000000000000009 00000001 0578 0000"
    assert parse(octets) == Options(timestamp_value=1, timestamp_echo=2, mptcp=(dss,))


def test_tail_behind_a_mapping_is_parsed_not_guessed() -> None:
    dss = "0101080a 00000001 00000002 1e1a200f 0000000000000007 0000000000000009 00000001 0578"
    assert parse(dss + "0402") == Options(
        timestamp_value=1, timestamp_echo=2, sack_permitted=True, mptcp=(Dss(7, True, 9, True, 1, 1400),)
    )
    assert parse(dss + "0205") is None


def test_several_mptcp_options_keep_their_order() -> None:
    assert parse("1e042000 1e035001 1e044001") == Options(mptcp=(Dss(), MpPrio(False), RemoveAddr((1,))))


@settings(deadline=None, max_examples=500)
@given(st.binary(max_size=60), st.integers(0, 0x1FF), st.integers(0, 1))
def test_random_octets_never_raise(data: bytes, flags: int, version: int) -> None:
    result = options.parse(memoryview(data), 0, len(data), flags, version)
    assert result is None or isinstance(result, Options)


@settings(deadline=None, max_examples=200)
@given(st.lists(dss_options(), max_size=1), st.lists(st.tuples(bits32, bits32), max_size=3), st.data())
def test_quick_ways_agree_with_the_general_one_on_damaged_octets(
    dss: list[Dss], blocks: list[tuple[int, int]], more: st.DataObject
) -> None:
    original = Options(timestamp_value=1, timestamp_echo=2, sack_blocks=tuple(blocks), mptcp=tuple(dss))
    assume(options.length(original) <= options.MAX_OCTETS)
    data = bytearray(options.emit(original, ACK))
    data[more.draw(st.integers(0, len(data) - 1))] = more.draw(bits8)
    end = more.draw(st.integers(0, len(data)))
    view = memoryview(data)
    assert options.parse(view, 0, end, ACK) == (options._parse_any(view, 0, end, ACK, 1) if end else NO_OPTIONS)


MUTANTS = [
    options.emit(Options(timestamp_value=1, timestamp_echo=2, mptcp=(Dss(7, True, 9, True, 1, 1400, 5),)), ACK),
    options.emit(Options(mss=1460, sack_permitted=True, timestamp_value=1, window_scale=7, mptcp=(MpCapable(),)), SYN),
    options.emit(Options(sack_blocks=((1, 2), (3, 4)), mptcp=(AddAddr(1, bytes(4), 80, False, bytes(8)),)), ACK),
]


@pytest.mark.parametrize("original", MUTANTS)
def test_every_single_octet_change_is_survived(original: bytes) -> None:
    for position in range(len(original)):
        for value in range(256):
            data = original[:position] + bytes((value,)) + original[position + 1 :]
            result = options.parse(data, 0, len(data), ACK)
            if result is not None and options.length(result) <= options.MAX_OCTETS:
                # What was understood can be said again, and means the same.
                again = options.emit(result, ACK)
                assert options.parse(again, 0, len(again), ACK) == result


def test_every_truncation_is_malformed_or_less() -> None:
    for original in MUTANTS:
        for end in range(len(original)):
            result = options.parse(original[:end], 0, end, ACK)
            assert result is None or options.length(result) <= len(original)


def test_too_many_options_are_the_callers_bug() -> None:
    too_much = Options(timestamp_value=1, sack_blocks=((1, 2),) * 3, mptcp=(Dss(7, True),))
    assert options.length(too_much) == 52
    with pytest.raises(AssertionError):
        options.emit(too_much, ACK)
    assert mptcp_options.padded_length(RemoveAddr((1, 2))) == 8
