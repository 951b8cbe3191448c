"""When a subflow counts as dead, and data as stuck."""

import dataclasses
import itertools

from mptcp.info import Endpoint
from mptcp.kernel.layout import ESTABLISHED, SYN_SENT, MptcpInfo, TcpInfo
from mptcp.kernel.sockopt import FullInfo, SubflowEntry
from mptcp.kernel.watchdog import MAX_RESCUES, RESTS, Failing, FailurePolicy, OpenFresh, Reset, Watchdog

ENDS = [(Endpoint.parse(f"10.0.{i}.1", 1000 + i), Endpoint.parse(f"10.0.{i}.2", 80)) for i in range(3)]


def subflow(number: int, *, state: int = ESTABLISHED, **fields: int) -> SubflowEntry:
    tcp = TcpInfo.parse(b"")
    fields = {"state": state, "snd_wnd": 65535, "snd_mss": 1400, **fields}
    return SubflowEntry(number + 1, *ENDS[number], dataclasses.replace(tcp, **fields))


def look(*subflows: SubflowEntry, in_flight: int = 100_000, acknowledged: int = 7) -> FullInfo:
    mptcp = dataclasses.replace(MptcpInfo.parse(b""), write_seq=in_flight + acknowledged, snd_una=acknowledged)
    return FullInfo(mptcp, list(subflows), len(subflows))


def test_a_subflow_that_timed_out_beside_one_that_works_is_reset() -> None:
    watchdog = Watchdog(FailurePolicy())
    verdicts = watchdog.judge(look(subflow(0, backoff=1, unacked=9), subflow(1, unacked=5)), 0)
    assert verdicts == [Failing(*ENDS[0], 1), Reset(*ENDS[0], 1)]


def test_so_it_is_beside_a_backup_that_idles() -> None:
    watchdog = Watchdog(FailurePolicy())
    assert Reset(*ENDS[0], 1) in watchdog.judge(look(subflow(0, backoff=1, unacked=9), subflow(1)), 0)


def test_the_last_one_is_never_reset() -> None:
    # A connection may wait for its path to come back.
    watchdog = Watchdog(FailurePolicy())
    dead = subflow(0, backoff=3, unacked=9)
    for others in ([], [subflow(1, backoff=1, unacked=1)], [subflow(1, state=SYN_SENT)]):
        assert not [v for v in watchdog.judge(look(dead, *others), 0) if isinstance(v, Reset)]


def test_a_patient_policy_waits_for_more_timeouts() -> None:
    watchdog = Watchdog(FailurePolicy(timeouts=3))
    assert watchdog.judge(look(subflow(0, backoff=2, unacked=9), subflow(1)), 0) == [Failing(*ENDS[0], 2)]
    assert Reset(*ENDS[0], 3) in watchdog.judge(look(subflow(0, backoff=3, unacked=9), subflow(1)), 0)


def test_each_timeout_is_told_once() -> None:
    watchdog = Watchdog(FailurePolicy())
    told = [watchdog.judge(look(subflow(0, backoff=n, unacked=9)), 0) for n in (0, 1, 1, 2, 2, 0, 1)]
    expected = [[], [Failing(*ENDS[0], 1)], [], [Failing(*ENDS[0], 2)], [], [], [Failing(*ENDS[0], 1)]]
    assert told == expected


def test_data_in_flight_and_every_subflow_idle_is_stuck() -> None:
    watchdog = Watchdog(FailurePolicy())
    idle = look(subflow(0, rtt=900), subflow(1, rtt=300))
    assert watchdog.judge(idle, 0) == []
    assert watchdog.judge(idle, 499_999) == []
    assert watchdog.judge(idle, 500_000) == [OpenFresh(*ENDS[1])]


def test_one_fragment_now_and_then_is_stuck_all_the_same() -> None:
    watchdog = Watchdog(FailurePolicy())
    found = []
    for step in range(30):
        unacked = 1 if step % 10 == 5 else 0
        found += watchdog.judge(look(subflow(0, unacked=unacked)), step * 20_000)
    assert found == [OpenFresh(*ENDS[0])]


def test_a_window_now_and_then_is_stuck_all_the_same() -> None:
    # As read from the kernel, every 20 ms: a subflow that works, a delayed acknowledgement, a connection that has moved.
    watchdog = Watchdog(FailurePolicy())
    found, acknowledged = [], 0
    for step, seen in enumerate("wwm.......wwm.......wm......m.......wwm......."):
        acknowledged += 100_000 * (seen == "m")
        entry = subflow(0, unacked=int(seen == "w"))
        found += watchdog.judge(look(entry, acknowledged=acknowledged), step * 20_000)
    assert found == [OpenFresh(*ENDS[0])]


def test_a_window_at_every_look_is_not() -> None:
    # A fast path and a small window: whenever it is looked at, everything is acknowledged on the subflow.
    watchdog = Watchdog(FailurePolicy())
    for step in range(100):
        assert watchdog.judge(look(subflow(0), acknowledged=step), step * 20_000) == []
    for step in range(100, 300):  # ... nor where nothing moves at every third look
        assert watchdog.judge(look(subflow(0), acknowledged=step - (step % 3 == 2)), step * 20_000) == []


def test_a_subflow_that_carries_data_is_not_stuck() -> None:
    watchdog = Watchdog(FailurePolicy())
    for step in range(100):
        assert watchdog.judge(look(subflow(0), subflow(1, unacked=2)), step * 20_000) == []
    for step in range(100, 200):
        assert watchdog.judge(look(subflow(0, notsent_bytes=10), subflow(1)), step * 20_000) == []


def test_a_closed_window_is_the_peers_right() -> None:
    watchdog = Watchdog(FailurePolicy())
    for step in range(100):
        assert watchdog.judge(look(subflow(0, snd_wnd=0), subflow(1, snd_wnd=1399)), step * 20_000) == []


def test_nothing_in_flight_is_nothing_stuck() -> None:
    watchdog = Watchdog(FailurePolicy())
    for step in range(100):
        assert watchdog.judge(look(subflow(0), in_flight=0), step * 20_000) == []
    assert watchdog.interval_us == FailurePolicy().idle_interval_us
    watchdog.judge(look(subflow(0)), 0)
    assert watchdog.interval_us == FailurePolicy().busy_interval_us


def rescues(watchdog: Watchdog, seconds: int, octets: int = 0) -> list[float]:
    """When a fresh subflow is opened while ``octets`` arrive four times a second."""
    found, seen = [], look(subflow(0))
    for step in range(seconds * 20):
        if octets and step % 5 == 0:
            seen = look(*seen.subflows, acknowledged=step * octets)
        if watchdog.judge(seen, now := step * 50_000):
            found.append(now / 1e6)
    return found


def test_rescues_are_few() -> None:
    watchdog = Watchdog(FailurePolicy())
    assert len(rescues(watchdog, 9)) == MAX_RESCUES


def test_rescues_that_do_not_help_are_ever_fewer() -> None:
    # A peer that reads slowly looks stuck, too, and no subflow makes it faster.
    found = rescues(Watchdog(FailurePolicy()), 200, octets=65_536)
    assert len(found) == MAX_RESCUES + 2
    pauses = [later - earlier for earlier, later in itertools.pairwise(found)]
    assert pauses == sorted(pauses)


def test_after_one_that_helped_there_may_be_others() -> None:
    watchdog = Watchdog(FailurePolicy())
    assert len(rescues(watchdog, 2, octets=65_536)) == MAX_RESCUES
    for step in range(1000):  # twenty seconds at full speed
        assert (
            watchdog.judge(look(subflow(0, unacked=5), acknowledged=10**7 * (step + 1)), 2_000_000 + step * 20_000)
            == []
        )
    watchdog.judge(look(subflow(0), acknowledged=10**11), 22_000_000)
    found = [watchdog.judge(look(subflow(0), acknowledged=10**11), 22_000_000 + step * 20_000) for step in range(100)]
    assert len([verdict for verdict in found if verdict]) == MAX_RESCUES


def test_a_connection_at_rest_is_looked_at_less_often() -> None:
    policy = FailurePolicy()
    watchdog = Watchdog(policy)
    for _ in range(RESTS - 1):
        watchdog.rest()
    assert watchdog.interval_us == policy.idle_interval_us
    watchdog.rest()
    assert watchdog.interval_us == policy.rest_interval_us
    watchdog.judge(look(subflow(0)), 0)
    watchdog.rest()
    assert watchdog.interval_us == policy.idle_interval_us
