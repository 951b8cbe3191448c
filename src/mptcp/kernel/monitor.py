"""Listens for all connections of a namespace with one thread, and gives each what concerns it.

With CAP_NET_ADMIN, or by the broker, the kernel says what happens to each connection. Without, three sources that anybody
has stand in for that: sock_diag tells which TCP sockets have ended, full info is read again and again (at most
``POLL_SHARE`` of a processor), and what is between two readings is not seen. In either case rtnetlink tells of local
addresses, and epoll of a connection that is over.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import os
import select
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from mptcp.forking import freed_in_child
from mptcp.info import Endpoint, Support
from mptcp.kernel import features
from mptcp.kernel.addresses import AddressChange, AddressWatch, LocalAddress
from mptcp.kernel.control import Control
from mptcp.kernel.destroyed import DestroyedSockets
from mptcp.kernel.fallback import fallbacks, resets
from mptcp.kernel.namespace import NetNamespace
from mptcp.kernel.pm_events import EventsLost, PmEvent, PmEventKind, PmEventSource

#: Events of connections that nobody has subscribed to yet: so many connections, so many events each, for so long.
MAX_UNCLAIMED: Final = 4096
MAX_UNCLAIMED_EVENTS: Final = 64
UNCLAIMED_S: Final = 120.0
#: Full info is read every so many seconds without privilege, or less often with many connections: ``POLL_COST_S`` is what
#: one reading takes, ``POLL_SHARE`` what all of them together may take of a processor.
POLL_S: Final = 0.2
POLL_COST_S: Final = 200e-6
POLL_SHARE: Final = 0.01
#: The namespace's counters are looked at every so many seconds, so that it is told within 2 s: no event says that a
#: connection fell back to TCP, nor that the kernel of this side has reset a subflow for what came in on it.
FALLBACK_S: Final = 1.8
#: Whether a subflow is gone without a word shows so many seconds later: in good order its event comes sooner.
CONFIRM_S: Final = 0.1
#: A source of events that failed is asked for again after so many seconds, and up to the second figure.
RETRY_S: Final = (0.5, 30.0)

#: Notices that a connection has not come to yet; beyond, it compares what holds with what it knows.
MAX_INBOX: Final = 4096

_READY: Final = 64
_log = logging.getLogger("mptcp.kernel")


class Overflow:
    """Events are missing: what holds now has to be read."""


class ResetsCounted:
    """This side has reset subflows. The kernel tells nothing of those it resets itself; of others it may be about to: what
    is gone at two of these in a row, and not told, will not be."""


class PollTurn:
    """Without privilege: time to look."""


class HungUp:
    """Both directions of the connection are over, or it failed (``failed``)."""

    __slots__ = ("failed",)

    def __init__(self, failed: bool) -> None:
        self.failed = failed


Notice = PmEvent | AddressChange | Overflow | ResetsCounted | PollTurn | HungUp


class Subscriber(ABC):
    """Whoever wants to hear of a connection: notices are put into ``inbox``, then ``work`` is called.

    ``work`` takes them out in order; any thread may call it at any time, and it does not wait for other connections.
    """

    inbox: deque[Notice]

    @abstractmethod
    def work(self) -> None: ...


class _Place:
    __slots__ = ("fd", "ref", "token", "tuples")

    def __init__(self, token: int, fd: int, ref: weakref.ref[Subscriber]) -> None:
        self.token, self.fd, self.ref = token, fd, ref
        self.tuples: frozenset[tuple[Endpoint, Endpoint]] = frozenset()


class _Ears:
    """What the thread listens to. Its own: what is left open when the monitor is gone, it closes."""

    __slots__ = ("_lock", "addresses", "destroyed", "epoll", "source", "waker")

    def __init__(self) -> None:
        self.source: PmEventSource | None = None
        self.addresses: AddressWatch | None = None
        self.destroyed: DestroyedSockets | None = None
        self.epoll = select.epoll()
        self.waker = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.epoll.register(self.waker, select.EPOLLIN)
        self._lock = freed_in_child(threading.RLock())  # a monitor may be collected in the middle of ``wake``

    def listen_to(self, opened: PmEventSource | AddressWatch | DestroyedSockets) -> None:
        self.epoll.register(opened.fileno(), select.EPOLLIN)

    def wake(self) -> None:
        with self._lock:
            if self.waker >= 0:
                os.eventfd_write(self.waker, 1)

    def was_woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.waker)

    def close(self) -> None:
        for opened in (self.source, self.addresses, self.destroyed):
            if opened is not None:
                opened.close()
        self.epoll.close()
        with self._lock:
            os.close(self.waker)
            self.waker = -1


def _put(subscriber: Subscriber, notice: Notice) -> None:
    inbox = subscriber.inbox
    if len(inbox) >= MAX_INBOX:
        inbox.clear()
        notice = Overflow()
    inbox.append(notice)


def _guarded(call: Callable[[], None]) -> None:
    try:
        call()
    except Exception:  # noqa: BLE001 what one connection's listener does wrong must not end the events of all others
        _log.exception("a subscriber of kernel events failed")


def _is_over(fd: int) -> bool:
    """Whether epoll would say so now: both directions over, an error, or no such descriptor."""
    poll = select.poll()
    poll.register(fd, 0)
    return bool(poll.poll(0))


def _run(reference: weakref.ref[Monitor], ears: _Ears) -> None:
    """The thread: as long as there is a monitor that is not closed."""
    try:
        timeout = 0.0
        while True:
            ready = ears.epoll.poll(timeout, _READY)
            monitor = reference()
            if monitor is None or not monitor._turn(ready):
                return
            timeout = monitor._timeout()
            del monitor
    finally:
        ears.close()


class Monitor:
    """One a namespace and process; its thread runs from the start, so that what happens before anybody subscribes is kept.

    Subscribers are held weakly. Any thread may call anything. A forked child has no such thread: make another there.
    """

    def __init__(self, namespace: NetNamespace, control: Control) -> None:
        self._namespace, self._control = namespace, control
        self._lock = freed_in_child(threading.Lock())
        self._places: dict[int, list[_Place]] = {}  # by token; 0: plain TCP
        self._by_fd: dict[int, _Place] = {}
        self._everything: list[weakref.ref[Subscriber]] = []
        self._by_tuple: dict[tuple[Endpoint, Endpoint], _Place] = {}
        self._unclaimed: OrderedDict[int, tuple[float, list[PmEvent]]] = OrderedDict()
        self._timers: list[tuple[float, int, weakref.WeakMethod[Callable[[], None]]]] = []
        self._order = itertools.count()
        self._why_not: Support = Support(True)
        self._retry_s = RETRY_S[0]
        self._polls = self._watches_fallbacks = False
        self._closed = False
        self._pid = os.getpid()
        #: Of the namespace, when they were last looked at.
        self.counted: Mapping[str, int] = features.counters(namespace)
        self._ears = _Ears()
        with contextlib.suppress(OSError):
            self._ears.addresses = AddressWatch(namespace)
            self._ears.listen_to(self._ears.addresses)
        self._find_source()
        # The thread must not keep the monitor alive; nor may a monitor that nobody holds leave it asleep.
        weakref.finalize(self, self._ears.wake)
        self._thread = threading.Thread(
            target=_run, args=(weakref.ref(self), self._ears), name="mptcp-monitor", daemon=True
        )
        self._thread.start()

    # --- for connections ---------------------------------------------------------------------------------------------
    def subscribe(self, token: int, subscriber: Subscriber, fd: int = -1) -> None:
        """From now on ``subscriber`` gets the notices of the connection with that token, first those that came before.

        ``fd``, its socket, is watched for the end of the connection; it is what proves to the broker whose it is. Token
        0: a plain TCP connection, of which only that and local addresses are told.
        """
        place = _Place(token, fd, weakref.ref(subscriber))
        with self._lock:
            _, events = self._unclaimed.pop(token, (0.0, []))
            for event in events:
                _put(subscriber, event)
            self._places.setdefault(token, []).append(place)
            self._arm()
            if fd >= 0:
                stale = self._by_fd.pop(fd, None)
                self._by_fd[fd] = place
                if stale is not None:
                    with contextlib.suppress(OSError, ValueError):
                        self._ears.epoll.unregister(fd)
                with contextlib.suppress(OSError, ValueError):  # ValueError: the monitor has just been closed
                    self._ears.epoll.register(fd, select.EPOLLHUP | select.EPOLLERR | select.EPOLLET)
            source = self._ears.source
        if source is not None and token and fd >= 0:
            with contextlib.suppress(OSError):
                source.watch(fd, token)
        subscriber.work()

    def unsubscribe(self, token: int, subscriber: Subscriber) -> None:
        """No further notices; before the socket is closed. Twice is as good as once."""
        with self._lock:
            gone = [place for place in self._places.get(token, ()) if place.ref() in {subscriber, None}]
            for place in gone:
                self._drop(place)
            left = token in self._places
            source = self._ears.source
        if gone and not left and token and source is not None:
            with contextlib.suppress(OSError):
                source.unwatch(token)

    def subscribe_all(self, subscriber: Subscriber) -> None:
        """``subscriber`` gets the kernel's events of every connection, and what is not of one. Not without privilege."""
        with self._lock:
            self._everything.append(weakref.ref(subscriber))

    def note_subflows(self, token: int, subscriber: Subscriber, tuples: Iterable[tuple[Endpoint, Endpoint]]) -> None:
        """These are the addresses of the connection's subflows now (without privilege: to know whose socket has ended)."""
        if self._ears.source is not None:
            return
        now = frozenset(tuples)
        with self._lock:
            for place in self._places.get(token, ()):
                if place.ref() is subscriber and place.tuples != now:
                    for key in place.tuples - now:
                        self._by_tuple.pop(key, None)
                    for key in now - place.tuples:
                        self._by_tuple[key] = place
                    place.tuples = now

    def call_later(self, delay_s: float, method: Callable[[], None]) -> None:
        """Calls a bound method in the monitor's thread, unless its object is gone by then."""
        with self._lock:
            self._later(delay_s, method)
        self._ears.wake()

    def local_addresses(self) -> list[LocalAddress]:
        """The host's usable addresses, as last heard of."""
        return self._ears.addresses.usable() if self._ears.addresses is not None else []

    def supports(self) -> Support:
        """Whether the kernel tells of everything; if not, why, and what stands in for it."""
        return self._why_not

    @property
    def is_polling(self) -> bool:
        """Without privilege: subscribers have to look for themselves, at each PollTurn."""
        return self._ears.source is None

    def close(self) -> None:
        """Ends the thread; twice is as good as once. Not from within ``work``."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._ears.wake()
        if self._pid == os.getpid() and self._thread is not threading.current_thread():
            self._thread.join()

    # --- the thread --------------------------------------------------------------------------------------------------
    def _timeout(self) -> float:
        with self._lock:
            return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else -1

    def _turn(self, ready: list[tuple[int, int]]) -> bool:
        """One round of the thread; False: it was the last."""
        if self._closed:
            return False
        ears = self._ears
        for fd, mask in ready:
            if fd == ears.waker:
                ears.was_woken()
            elif ears.source is not None and fd == ears.source.fileno():
                self._read_source(ears.source)
            elif ears.addresses is not None and fd == ears.addresses.fileno():
                self._read_addresses(ears.addresses)
            elif ears.destroyed is not None and fd == ears.destroyed.fileno():
                self._read_destroyed(ears.destroyed)
            else:
                self._hung_up(fd, mask)
        self._run_timers()
        return True

    def _read_source(self, source: PmEventSource) -> None:
        try:
            events = source.read()
        except EventsLost:
            with self._lock:
                self._unclaimed.clear()
            self._tell(self._all(), Overflow())
            return
        except OSError as error:
            self._lose_source(source, error)
            return
        touched: dict[int, Subscriber] = {}
        with self._lock:
            everybody = [subscriber for ref in self._everything if (subscriber := ref()) is not None]
            for event in events:
                heard = everybody
                if event.token:
                    listening = self._listening(event.token)
                    if listening:
                        heard = heard + listening
                    else:
                        self._keep(event)
                for subscriber in heard:
                    _put(subscriber, event)
                    touched[id(subscriber)] = subscriber
        for subscriber in touched.values():
            _guarded(subscriber.work)

    def _read_addresses(self, watch: AddressWatch) -> None:
        try:
            changes = watch.read()
        except OSError:
            watch.close()
            return
        for change in changes:
            self._tell(self._all(), change)

    def _read_destroyed(self, watch: DestroyedSockets) -> None:
        try:
            ended = watch.read()
        except EventsLost:
            self._tell(self._all(), Overflow())
            return
        except OSError:
            watch.close()
            return
        with self._lock:
            places = [place for key in ended if (place := self._by_tuple.get(key)) is not None]
            concerned = {id(s): s for place in places if (s := place.ref()) is not None}
        self._tell(concerned.values(), PollTurn())

    def _hung_up(self, fd: int, mask: int) -> None:
        with self._lock:
            place = self._by_fd.get(fd)
            subscriber = place.ref() if place is not None else None
            # What epoll has said may be of a connection that was closed since, and the number another one's by now.
            if subscriber is None or not _is_over(fd):
                return
        self._tell([subscriber], HungUp(bool(mask & select.EPOLLERR)))

    def _run_timers(self) -> None:
        now = time.monotonic()
        while True:
            with self._lock:
                if not self._timers or self._timers[0][0] > now:
                    return
                call = heapq.heappop(self._timers)[2]()
            if call is not None:
                _guarded(call)

    def _poll(self) -> None:
        subscribers = self._all() if self._ears.source is None else []
        with self._lock:
            self._polls = bool(subscribers)
            if subscribers:
                self._later(max(POLL_S, len(subscribers) * POLL_COST_S / POLL_SHARE), self._poll)
        self._tell(subscribers, PollTurn())

    def _check_fallbacks(self) -> None:
        with self._lock:
            self._watches_fallbacks = bool(self._places)
            if not self._places:
                return
            self._later(FALLBACK_S, self._check_fallbacks)
        before, self.counted = self.counted, features.counters(self._namespace)
        if resets(before) != resets(self.counted):
            self._tell(self._all(), ResetsCounted())
            self.call_later(CONFIRM_S, self._confirm_resets)
        elif fallbacks(before) != fallbacks(self.counted):
            self._tell(self._all(), PollTurn())

    def _confirm_resets(self) -> None:
        self._tell(self._all(), ResetsCounted())

    # --- inside ------------------------------------------------------------------------------------------------------
    def _tell(self, subscribers: Iterable[Subscriber], notice: Notice) -> None:
        for subscriber in subscribers:
            with self._lock:
                _put(subscriber, notice)
            _guarded(subscriber.work)

    def _all(self) -> list[Subscriber]:
        with self._lock:
            places = [place for places in self._places.values() for place in places]
            for place in places:
                if place.ref() is None:
                    self._drop(place)
            self._everything = [ref for ref in self._everything if ref() is not None]
            found = [place.ref() for place in places] + [ref() for ref in self._everything]
        return [subscriber for subscriber in found if subscriber is not None]

    def _listening(self, token: int) -> list[Subscriber]:
        places = self._places.get(token)
        if places is None:
            return []
        return [subscriber for place in places if (subscriber := place.ref()) is not None]

    def _keep(self, event: PmEvent) -> None:
        """With the lock: for whoever subscribes to this connection later."""
        now = time.monotonic()
        kept = self._unclaimed.get(event.token)
        if kept is None or event.kind is PmEventKind.CREATED:
            kept = self._unclaimed[event.token] = (now, [])
        if len(kept[1]) < MAX_UNCLAIMED_EVENTS:
            kept[1].append(event)
        while self._unclaimed:
            token, (since, _) = next(iter(self._unclaimed.items()))
            if len(self._unclaimed) <= MAX_UNCLAIMED and now - since < UNCLAIMED_S:
                break
            del self._unclaimed[token]

    def _drop(self, place: _Place) -> None:
        """With the lock."""
        places = self._places.get(place.token, [])
        if place in places:
            places.remove(place)
            if not places:
                self._places.pop(place.token, None)
        for key in place.tuples:
            self._by_tuple.pop(key, None)
        if self._by_fd.get(place.fd) is place:
            del self._by_fd[place.fd]
            with contextlib.suppress(OSError, ValueError):
                self._ears.epoll.unregister(place.fd)

    def _later(self, delay_s: float, method: Callable[[], None]) -> None:
        """With the lock. Held weakly: a timer keeps nobody alive."""
        heapq.heappush(self._timers, (time.monotonic() + delay_s, next(self._order), weakref.WeakMethod(method)))

    def _arm(self) -> None:
        """With the lock: what is done from time to time is done while there are subscribers."""
        if not self._watches_fallbacks:
            self._watches_fallbacks = True
            self._later(FALLBACK_S, self._check_fallbacks)
            self._ears.wake()
        if self._ears.source is None and not self._polls:
            self._polls = True
            self._later(POLL_S, self._poll)
            self._ears.wake()

    def _find_source(self) -> None:
        try:
            source = self._control.event_source()
        except OSError as error:
            told = self._control.supports("events")
            reason = told.reason if not told else (error.strerror or str(error))
            self._why_not = Support(
                False,
                f"{reason}; in place of the kernel's events: sock_diag's notices, full info read every {POLL_S:g} s, "
                "rtnetlink",
                told.fix,
            )
            self._start_polling()
            return
        self._retry_s = RETRY_S[0]
        self._why_not = Support(True)
        self._ears.source = source
        self._ears.listen_to(source)
        if self._ears.destroyed is not None:
            self._ears.destroyed.close()
            self._ears.destroyed = None

    def _start_polling(self) -> None:
        if self._ears.destroyed is None:
            with contextlib.suppress(OSError):
                self._ears.destroyed = DestroyedSockets(self._namespace)
                self._ears.listen_to(self._ears.destroyed)
        with self._lock:
            if self._places:
                self._arm()

    def _lose_source(self, source: PmEventSource, error: OSError) -> None:
        """The broker went away, for instance: without it until it is there again."""
        self._ears.source = None
        source.close()
        self._why_not = Support(False, f"the source of the kernel's events failed: {error.strerror or error}")
        self._start_polling()
        self.call_later(self._retry_s, self._retry_source)
        self._tell(self._all(), Overflow())

    def _retry_source(self) -> None:
        self._retry_s = min(self._retry_s * 2, RETRY_S[1])
        self._find_source()
        source = self._ears.source
        if source is None:
            self.call_later(self._retry_s, self._retry_source)
            return
        with self._lock:
            places = [place for places in self._places.values() for place in places if place.token and place.fd >= 0]
        for place in places:
            with contextlib.suppress(OSError):
                source.watch(place.fd, place.token)
        self._tell(self._all(), Overflow())
