"""``mptcp get URL``: a file over several paths, with a live view of them; continued if it was interrupted."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import SplitResult

import typer

from mptcp.cli import figures
from mptcp.cli.connections import StackInUse, open_stack
from mptcp.cli.fetch import Fetch, default_name, split_url
from mptcp.cli.interruption import status_of
from mptcp.cli.kernel_stack import KernelInUse, StackName, choose
from mptcp.cli.progress import TransferDisplay
from mptcp.cli.stack_options import BackupOption, LinkOption, PcapOption, StackOption
from mptcp.cli.udp import links_for, open_udp
from mptcp.errors import ConfigurationError


def get(
    url: Annotated[
        str,
        typer.Argument(
            help="What to fetch: http://HOST[:PORT]/PATH, or mptcp://HOST[:PORT]/PATH over UDP.", metavar="URL"
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write (default: the URL's name).")
    ] = None,
    stack: StackOption = None,
    link: LinkOption = None,
    backup: BackupOption = None,
    pcap: PcapOption = None,
    timeout: Annotated[float, typer.Option(help="Seconds without progress before giving up.", min=0.1)] = 60.0,
    sha256: Annotated[bool, typer.Option("--sha256", help="Print the file's SHA-256.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress display.")] = False,
) -> None:
    """Fetch a file over several paths at once; a second run continues an interrupted one."""
    target = output or Path(default_name(url))
    parts = split_url(url)
    if not target.parent.is_dir():
        raise ConfigurationError(f"there is no directory {target.parent}")
    name = choose(stack, parts.scheme, link or (), pcap)
    with _open(name, parts, link or (), pcap, backup or ()) as opened, opened.shown("mptcp get"):
        transfer = Transfer(opened, url, target, timeout=timeout, quiet=quiet or as_json)
        try:
            transfer.run(sha256)
        except KeyboardInterrupt as interruption:
            print(f"mptcp: interrupted; {transfer.leftover()}", file=sys.stderr)
            raise typer.Exit(status_of(interruption)) from None
        except OSError as error:
            what = f"{error.filename}: " if error.filename else ""
            print(f"mptcp: {what}{error.strerror or error}; {transfer.leftover()}", file=sys.stderr)
            raise typer.Exit(1) from None
    if as_json:
        print(json.dumps(transfer.report()))
    else:
        transfer.print_summary()


def _open(
    name: StackName, parts: SplitResult, link: Sequence[str], pcap: Path | None, backup: Sequence[str]
) -> StackInUse:
    if name is StackName.KERNEL:
        return KernelInUse(backup)
    specs = links_for(parts, link)
    if specs[0].kind == "udp":
        return open_udp(specs, towards=parts.hostname or "", pcap=pcap, backup=backup)
    return open_stack(specs, pcap=pcap, backup=backup)


class Transfer:
    """One ``get``: the fetch and its display."""

    def __init__(self, stack: StackInUse, url: str, target: Path, *, timeout: float, quiet: bool) -> None:
        self._socket: Any = None
        self._snapshot = stack.snapshot
        self._quiet = quiet
        self.is_multipath = False
        self.fallback_reason = ""
        self.display = TransferDisplay(target.name, quiet=quiet)
        self._fetch = Fetch(
            url,
            target,
            stack.connect,
            timeout=timeout,
            progress=self._progress,
            on_connection=self._connected,
            before_close=self._closing,
        )
        self.elapsed_s = 0.0

    def run(self, sha256: bool) -> None:
        with self.display:
            self.result = self._fetch.run(sha256)
            self.elapsed_s = self.display.elapsed_s

    def leftover(self) -> str:
        """What an interrupted run leaves behind, in words."""
        part = self._fetch.part
        if not part.part.exists():
            return "nothing was received"
        if not part.note.exists():
            return f"{figures.octets(part.size)} are in {part.part}, but the server gave nothing to continue it by"
        return f"{figures.octets(part.size)} are in {part.part}; the same command continues it"

    def report(self) -> dict[str, Any]:
        """Everything that ``--json`` prints. Bytes and bits; times in seconds or, named so, in microseconds."""
        result = self.result
        report: dict[str, Any] = asdict(result)
        report["path"] = str(result.path)
        if not result.sha256:
            del report["sha256"]
        report["seconds"] = round(self.elapsed_s, 3)
        report["goodput_bits_per_second"] = round(result.received * 8 / self.elapsed_s)
        report["is_multipath"] = self.is_multipath
        report["fallback_reason"] = self.fallback_reason
        report["subflows"] = [
            {
                "id": track.info.id,
                "local": str(track.info.local),
                "remote": str(track.info.remote),
                "backup": track.info.backup,
                "state": track.state,
                "bytes_received": track.info.bytes_received,
                "bytes_sent": track.info.bytes_sent,
                "srtt_us": track.info.srtt_us,
            }
            for track in self.display.log.tracks
        ]
        return report

    def print_summary(self) -> None:
        result = self.result
        if not self._quiet:
            resumed = f" ({figures.octets(result.resumed)} were there already)" if result.resumed else ""
            goodput = figures.rate(result.received * 8 / self.elapsed_s)
            print(f"{result.path}: {figures.octets(result.total)}{resumed} in {self.elapsed_s:.1f} s, {goodput}")
            if not self.is_multipath:
                print(f"  plain TCP: {self.fallback_reason or 'no multipath connection'}")
            for track in self.display.log.tracks:
                print(f"  {track.info.local} → {track.info.remote}: {figures.octets(track.info.bytes_received)}")
        if result.sha256:
            print(f"{result.sha256}  {result.path}")

    def _connected(self, sock: Any) -> None:
        self._socket = sock
        self.display.watch(lambda: self._snapshot(sock))

    def _closing(self) -> None:
        sock, self._socket = self._socket, None
        if sock is not None:
            self.display.unwatch()
            self.is_multipath, self.fallback_reason = sock.is_multipath, sock.fallback_reason

    def _progress(self, done: int, total: int | None, resumed: int) -> None:
        self.display.done, self.display.total, self.display.resumed = done, total, resumed
        self.display.tick()
