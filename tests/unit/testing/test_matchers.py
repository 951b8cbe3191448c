"""Matchers accept what they should, and say what is wrong with the rest."""

from __future__ import annotations

import pytest

from mptcp.core.wire.mptcp_options import Dss, MpCapable
from mptcp.core.wire.segment import ACK, PSH, SYN
from mptcp.testing.builders import ack, data, dss, mp_capable, rst, syn, syn_ack
from mptcp.testing.matchers import expect, has_mptcp, is_ack, is_data, is_fin, is_rst, is_syn, is_syn_ack, is_tcp


def test_a_matcher_equals_what_it_accepts() -> None:
    assert [syn(mp_capable()), ack(seq=1, ack=2)] == [is_syn(mss=1460, mptcp=MpCapable), is_ack(ack=2, mptcp=())]
    assert syn_ack(ack=5) == is_syn_ack(ack=5)
    assert rst() == is_rst()
    assert data(b"abc", seq=0, ack=0) == is_data(payload=b"abc", length=3)
    assert syn() != is_fin()
    assert is_syn() != 5


def test_flags_ignore_psh_unless_asked_for() -> None:
    segment = data(b"x", seq=0, ack=0)
    assert segment == is_tcp(flags=ACK)
    assert segment == is_tcp(flags=ACK | PSH)
    assert ack(seq=0, ack=0) != is_tcp(flags=ACK | PSH)


def test_numbers_are_compared_as_on_the_wire() -> None:
    assert ack(seq=0xFFFFFFFF + 6, ack=0) == is_tcp(seq=0xFFFFFFFF + 6)


def test_options_by_value_by_class_and_none() -> None:
    segment = ack(dss(data_ack=7), seq=0, ack=0)
    assert segment == has_mptcp(Dss)
    assert segment == is_tcp(mptcp=dss(data_ack=7))
    assert segment != is_tcp(mptcp=dss(data_ack=8))
    assert segment != is_tcp(mptcp=())
    assert segment != is_tcp(mptcp=[Dss, MpCapable])


def test_matchers_are_combined() -> None:
    segment = syn()
    assert segment == is_syn() & is_tcp(mss=1460)
    assert segment == is_fin() | is_syn()
    assert segment == ~is_fin()
    assert segment != ~is_syn()
    assert segment != is_fin() | is_rst()


def test_the_reason_is_readable() -> None:
    assert is_syn_ack(mss=1400).mismatch(syn()) == "flags is SYN, not SYN|ACK; mss is 1460, not 1400"
    matcher = is_tcp(ack=9)
    assert matcher != ack(seq=1, ack=2)
    assert repr(matcher) == "<ack 9: ack is 2, not 9>"


def test_expect_shows_everything() -> None:
    expect([syn()], is_syn())
    with pytest.raises(AssertionError, match=r"segment 0: flags is SYN, not FIN\|ACK\nsegments:\n  \[SYN\] seq="):
        expect([syn()], is_fin())
    with pytest.raises(AssertionError, match="1 segments instead of 2"):
        expect([syn()], is_tcp(flags=SYN), is_fin())
