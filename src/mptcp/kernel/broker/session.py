"""One client of the broker: its requests one after the other, in a thread of its own.

Whatever a client does to its thread (a descriptor whose close waits, a flood, silence) it does to nobody else's. It is heard
no oftener than its user's rate; what it does not read of its answers ends it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from mptcp.errors import to_errno
from mptcp.info import Support
from mptcp.kernel.addresses import LocalAddress
from mptcp.kernel.broker import authority, protocol
from mptcp.kernel.broker.authority import Refused
from mptcp.kernel.broker.limits import Accounts
from mptcp.kernel.broker.policy import Peer, Policy, Rule
from mptcp.kernel.broker.proof import NamespaceMark, Proof, examine
from mptcp.kernel.broker.protocol import Answer, Message, Operation, ProtocolError, Request
from mptcp.kernel.broker.relay import Channel, Relay
from mptcp.kernel.control import Control

#: Messages that are none of the protocol; the one after them ends the client.
MAX_FAULTS: Final = 8
#: What one of these costs of a user's rate; all else costs 1.
COSTS: Final = {
    Operation.RESET_SUBFLOW: 5,
    Operation.SET_SUBFLOW_OPTION: 5,
    Operation.GET_SUBFLOW_OPTION: 5,
    Operation.EVENTS: 5,
}
FAULT_COST: Final = 10

log = logging.getLogger("mptcp.broker")


@dataclass(frozen=True, slots=True)
class Resources:
    """What all sessions share. ``policy`` is asked for each request, since it can be loaded anew."""

    policy: Callable[[], Policy]
    control: Control
    relay: Relay
    mark: NamespaceMark
    accounts: Accounts
    addresses: Callable[[], Sequence[LocalAddress]]
    stopping: threading.Event


class Session:
    """Serves the client at the other end of ``sock`` with ``run``, and lets go of everything of its when that ends."""

    __slots__ = ("_channel", "_cost", "_faults", "_resources", "_sock", "peer")

    def __init__(self, sock: socket.socket, peer: Peer, resources: Resources) -> None:
        self.peer = peer
        self._sock = sock
        self._resources = resources
        self._channel: Channel | None = None
        self._faults = 0
        self._cost = 1

    def run(self) -> None:
        """Until the client goes, is let go, or ``interrupt`` is called."""
        try:
            self._serve()
        except OSError as error:
            self._log("ended", error.strerror or str(error), logging.INFO)
        finally:
            if self._channel is not None:
                self._resources.relay.release(self._channel)
            self._sock.close()

    def interrupt(self) -> None:
        """Ends ``run``, from another thread."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        while True:
            self._wait_for_rate()
            message = protocol.receive(self._sock, protocol.MAX_REQUEST + 1)
            given: socket.socket | None = None
            try:
                if not message.data or self._has_gone():
                    return
                answer, given = self._answer(message)
            finally:
                # Before the answer: whoever has it and closes its socket closes the connection.
                message.close()
            try:
                self._send(answer, given)
            finally:
                if given is not None:
                    given.close()
            if self._faults > MAX_FAULTS:
                self._log("let go", "too many messages that are none of the protocol")
                return

    def _wait_for_rate(self) -> None:
        delay = self._resources.accounts.charge(self.peer.uid, self._cost, time.monotonic())
        self._cost = 1
        if delay > 0:
            self._resources.stopping.wait(delay)

    def _has_gone(self) -> bool:
        poll = select.poll()
        poll.register(self._sock, 0)
        return any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0))

    def _send(self, answer: Answer, given: socket.socket | None) -> None:
        try:
            protocol.send(self._sock, answer.emit(), given.fileno() if given is not None else -1, wait=False)
        except BlockingIOError:
            raise OSError(errno.ENOBUFS, "let go: it does not read its answers") from None

    def _answer(self, message: Message) -> tuple[Answer, socket.socket | None]:
        operation, sequence = 0, 0
        try:
            request = Request.parse(message.data) if not message.cut else _refuse_cut()
            operation, sequence = request.operation, request.sequence
            self._cost = COSTS.get(request.operation, 1)
            return self._perform(authority.normalized(request), message)
        except ProtocolError as error:
            self._faults += 1
            self._cost = FAULT_COST
            self._log("refused", str(error))
            return Answer.refusal(operation, sequence, errno.EBADMSG, str(error)), None
        except Refused as error:
            self._log(f"refused {Operation(operation).label}", error.strerror or "")
            return Answer.refusal(operation, sequence, to_errno(error), error.strerror or ""), None
        except OSError as error:
            reason = error.strerror or str(error)
            self._log(f"{Operation(operation).label} failed", reason, logging.INFO)
            return Answer.refusal(operation, sequence, to_errno(error), reason), None

    def _perform(self, request: Request, message: Message) -> tuple[Answer, socket.socket | None]:
        policy = self._resources.policy()
        rule = policy.rule_for(self.peer)
        if rule is None:
            raise authority.refused("no rule is for this client")
        if request.operation is Operation.SUPPORTS:
            _expect_no_descriptor(message)
            return self._supports(request, rule, policy), None
        authority.check_operation(rule, request.operation)
        done = Answer(request.operation, request.sequence)
        if request.operation is Operation.EVENTS:
            _expect_no_descriptor(message)
            return done, self._open_channel()
        if request.operation is Operation.UNWATCH:
            _expect_no_descriptor(message)
            if self._channel is not None:
                self._resources.relay.unwatch(self._channel, request.name)
            return done, None
        fd = message.take()
        try:
            proof = self._examine(fd, rule)
            if request.operation is Operation.WATCH:
                self._watch(proof, rule)
                return done, None
            authority.check_request(rule, request, proof, self._resources.addresses)
            value = self._steer(request, proof)
            log.debug("%s: %s of connection %#x", self.peer, request.operation.label, proof.token)
            return Answer(request.operation, request.sequence, value=value), None
        finally:
            os.close(fd)

    def _examine(self, fd: int, rule: Rule) -> Proof:
        try:
            proof = examine(fd, self._resources.mark)
        except OSError as error:
            raise Refused(error.strerror or str(error), to_errno(error)) from None
        authority.check_owner(rule, proof, self.peer)
        return proof

    def _steer(self, request: Request, proof: Proof) -> bytes:
        control, fd, token = self._resources.control, proof.fd, proof.token
        local, remote = request.local, request.remote
        if request.operation is Operation.REMOVE:
            control.remove(fd, token, request.address_id)
            return b""
        assert local is not None
        if request.operation is Operation.ANNOUNCE:
            control.announce(fd, token, local, request.address_id, request.interface)
            return b""
        assert remote is not None
        match request.operation:
            case Operation.CREATE_SUBFLOW:
                control.create_subflow(
                    fd, token, local, request.address_id, remote, backup=request.backup, interface=request.interface
                )
            case Operation.DESTROY_SUBFLOW:
                control.destroy_subflow(fd, token, local, remote)
            case Operation.RESET_SUBFLOW:
                control.reset_subflow(fd, token, local, remote)
            case Operation.SET_BACKUP:
                control.set_backup(fd, token, local, remote, request.backup)
            case Operation.SET_SUBFLOW_OPTION:
                control.set_subflow_option(fd, token, local, remote, request.level, request.name, request.value)
            case Operation.GET_SUBFLOW_OPTION:
                value = control.get_subflow_option(fd, token, local, remote, request.level, request.name, request.size)
                return value[: protocol.MAX_VALUE]
        return b""

    def _supports(self, request: Request, rule: Rule, policy: Policy) -> Answer:
        try:
            operation = Operation(request.name)
        except ValueError:
            raise ProtocolError(f"there is no operation {request.name}") from None
        if authority.allowed(rule, operation):
            steering = operation in protocol.WITH_CONNECTION | {Operation.EVENTS} and operation is not Operation.WATCH
            support = self._resources.control.supports(operation.label) if steering else Support(True)
        else:
            support = Support(
                False,
                f"the broker's policy does not allow {operation.label} to this client",
                f"add it to `allow` in {policy.where}",
            )
        value = protocol.emit_support(support)
        return Answer(request.operation, request.sequence, result=int(support.ok), value=value)

    def _open_channel(self) -> socket.socket:
        """Our end becomes the channel; theirs is given away."""
        if self._channel is not None:
            self._resources.relay.release(self._channel)
            self._channel = None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel = Channel(ours, str(self.peer))
        self._resources.relay.add(self._channel)
        return theirs

    def _watch(self, proof: Proof, rule: Rule) -> None:
        if self._channel is None:
            raise Refused("events go to the socket that EVENTS brings: ask for that first", errno.ENOTCONN)
        if proof.token not in self._channel.tokens and len(self._channel.tokens) >= rule.max_watched:
            raise authority.refused(f"this client watches {rule.max_watched} connections already (`max_watched`)")
        self._resources.relay.watch(self._channel, proof.token, proof.inode)

    def _log(self, what: str, reason: str, level: int = logging.WARNING) -> None:
        more = self._resources.accounts.may_log(self.peer.uid, time.monotonic())
        if more is not None:
            log.log(level, "%s: %s: %s%s", self.peer, what, reason, more)


def _refuse_cut() -> Request:
    raise ProtocolError(f"a message has at most {protocol.MAX_REQUEST} octets and one descriptor")


def _expect_no_descriptor(message: Message) -> None:
    if message.descriptors:
        raise ProtocolError("no descriptor comes with this")
