"""What one client may have of the broker."""

from hypothesis import given
from hypothesis import strategies as st

from mptcp.kernel.broker import limits
from mptcp.kernel.broker.limits import Accounts, LogLimit, TokenBucket


def test_a_burst_is_free_and_then_the_rate_counts() -> None:
    bucket = TokenBucket(8, 5, 100.0)
    assert [bucket.take(1, 100.0) for _ in range(7)] == [0, 0, 0, 0, 0, 0.125, 0.25]
    assert bucket.take(1, 100.375) == 0
    assert bucket.take(1, 200.0) == 0


@given(st.lists(st.tuples(st.floats(0, 2), st.floats(1, 10)), max_size=50))
def test_nobody_waits_longer_than_the_longest_debt(steps: list[tuple[float, float]]) -> None:
    bucket = TokenBucket(1, 5, 0.0)
    now = taken = 0.0
    for pause, cost in steps:
        now += pause
        assert 0 <= bucket.take(cost, now) <= limits.MAX_DEBT_S
        taken += cost


def test_a_clock_that_stands_still_gives_nothing() -> None:
    bucket = TokenBucket(1, 1, 10.0)
    assert bucket.take(1, 9.0) == 0
    assert bucket.take(1, 9.0) == 1


def admit(accounts: Accounts, uid: int, limit: int = 2, total: int = 3) -> str:
    return accounts.admit(uid, limit=limit, total=total, rate_per_s=10, burst=10, now=0.0)


def test_clients_are_counted_by_user_and_together() -> None:
    accounts = Accounts()
    assert admit(accounts, 1) == admit(accounts, 1) == ""
    assert "2 clients of this user" in admit(accounts, 1)
    assert admit(accounts, 2) == ""
    assert "3 clients already" in admit(accounts, 3)
    assert accounts.total == 3
    accounts.leave(1)
    assert admit(accounts, 1) == ""


def test_clients_of_one_user_share_its_rate_and_other_users_do_not() -> None:
    accounts = Accounts()
    for uid in (1, 1, 2):
        assert not admit(accounts, uid)
    assert [accounts.charge(1, 5, 0.0) for _ in range(3)] == [0, 0, 0.5]
    assert accounts.charge(2, 5, 0.0) == 0


def test_who_comes_back_has_its_debts_still() -> None:
    accounts = Accounts()
    admit(accounts, 1)
    accounts.charge(1, 50, 0.0)
    accounts.leave(1)
    admit(accounts, 1)
    assert accounts.charge(1, 1, 0.0) > 4


def test_users_who_have_gone_are_forgotten_in_the_end() -> None:
    accounts = Accounts()
    for uid in range(3 * limits.MAX_IDLE_USERS):
        assert not admit(accounts, uid)
        accounts.leave(uid)
    assert len(accounts._users) <= limits.MAX_IDLE_USERS + 1


def test_the_log_has_room_for_everybody() -> None:
    limit = LogLimit(2)
    assert [limit.allows(100.0) for _ in range(5)] == [True, True, False, False, False]
    assert limit.allows(100.0 + limits.LOG_PERIOD_S)
    assert "3 lines" in limit.suppressed()
    assert limit.suppressed() == ""
    accounts = Accounts()
    admit(accounts, 1)
    told = [accounts.may_log(1, 0.0) for _ in range(100)]
    assert told.count("") == limits.MAX_LOG_LINES
    assert told.count(None) == 100 - limits.MAX_LOG_LINES
    assert accounts.may_log(2, 0.0) == ""  # strangers have a share of their own
