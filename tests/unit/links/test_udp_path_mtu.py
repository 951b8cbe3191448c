"""Paths over UDP: how their MTU is found."""

from mptcp.core.units import SECOND
from mptcp.links import udp_frames as frames
from mptcp.links.udp_path import MAX_PROBE_FAILURES, RAISE_US

from .udp_world import Frame, Two


def narrow(two: Two, longest: int) -> None:
    """Datagrams with a longer payload vanish, without a word."""
    two.world.between = lambda source, to, octets: None if len(octets) > longest else (source, to, octets)


def test_what_the_system_believes_is_probed_and_used(two: Two) -> None:
    two.meet()
    assert two.ours.mtu == two.theirs.mtu == two.world.limit
    lengths = [len(octets) for _, _, octets in two.world.sent if octets[1] & 15 == frames.PING]
    assert lengths.count(two.world.limit + frames.HEADER_BYTES) == 2
    assert two.ours.sizes is None


def test_a_black_hole_is_found(two: Two) -> None:
    """The system believes in 1,440 octets; 1,410 pass: the next plateau below is used."""
    overhead = (28 if two.world.family == 4 else 48) + frames.HEADER_BYTES
    narrow(two, 1410 + frames.HEADER_BYTES)
    two.meet()
    assert two.ours.mtu == two.world.limit  # until it has proved too long
    two.world.run(20 * SECOND)
    assert two.ours.mtu == two.theirs.mtu
    assert two.ours.mtu == max(p - overhead for p in (1460, 1420, 1400, 1380) if p - overhead <= 1410)
    assert two.ours.raise_at > two.world.now


def test_a_late_answer_still_proves_a_size(two: Two) -> None:
    """A queue of a second on the way: the probes were given up, but they had arrived."""
    late: list[Frame] = []

    def between(source: bytes, to: bytes, octets: bytes) -> Frame | None:
        if len(octets) > frames.HELLO_BYTES:
            late.append((source, to, octets))
            return None
        return source, to, octets

    two.world.between = between
    two.meet()
    two.world.run(10 * SECOND)
    assert two.ours.mtu == frames.BASE_MTU
    two.world.between = lambda source, to, octets: (source, to, octets)
    two.world.deliver(*next(frame for frame in late if frame[0] == two.world.where(1)))
    two.world.settle()
    assert two.ours.mtu == two.world.limit


def test_the_least_that_passes_everywhere_is_used_if_nothing_else_does(two: Two) -> None:
    narrow(two, frames.HELLO_BYTES)
    two.meet()
    two.world.run(60 * SECOND)
    assert two.ours.mtu == two.theirs.mtu == frames.BASE_MTU


def test_a_dead_path_is_no_narrow_one(two: Two) -> None:
    """RFC 8899 §4.4: loss of a probe is no proof if nothing else arrives either."""
    two.meet()
    two.ours.set_limit(two.world.limit)
    two.world.between = lambda source, to, octets: None
    two.client._start_probing(two.ours, two.world.now)
    two.world.run(60 * SECOND)
    assert two.ours.mtu == two.world.limit


def test_a_larger_size_is_tried_again_later(two: Two) -> None:
    narrow(two, frames.HELLO_BYTES)
    two.meet()
    two.world.run(60 * SECOND)
    two.world.between = lambda source, to, octets: (source, to, octets)
    two.world.run(RAISE_US - 120 * SECOND)
    assert two.ours.mtu == frames.BASE_MTU
    two.world.run(200 * SECOND)
    assert two.ours.mtu == two.theirs.mtu == two.world.limit


def test_what_the_system_refuses_is_too_long(two: Two) -> None:
    two.meet()
    two.world.limit = 1300
    path = two.client.handle_too_long(two.world.where(2), 1440 + frames.HEADER_BYTES, two.world.now)
    assert path is two.ours
    assert path.mtu == 1300
    assert two.client.handle_too_long(two.world.where(77), 1440, two.world.now) is None


def test_a_system_that_has_no_room_for_the_least_fragments(two: Two) -> None:
    two.world.limit = 1000
    two.meet()
    assert two.ours.mtu == frames.BASE_MTU
    assert two.ours.is_fragmented


def test_three_probes_are_lost_before_a_size_is_given_up(two: Two) -> None:
    sizes: list[int] = []

    def between(source: bytes, to: bytes, octets: bytes) -> Frame | None:
        if len(octets) > frames.HELLO_BYTES and source == two.world.where(1):
            sizes.append(len(octets))
            return None
        return source, to, octets

    two.world.between = between
    two.meet()
    two.world.run(20 * SECOND)
    assert sizes[:MAX_PROBE_FAILURES] == [two.world.limit + frames.HEADER_BYTES] * MAX_PROBE_FAILURES
    assert sizes[MAX_PROBE_FAILURES] < sizes[0]
