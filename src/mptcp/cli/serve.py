"""``mptcp serve DIRECTORY``: its files by HTTP, over several paths to clients that have them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from mptcp.cli.connections import StackInUse, open_stack
from mptcp.cli.file_server import FileServer
from mptcp.cli.kernel_stack import KernelInUse, StackName, choose
from mptcp.cli.link_option import DEFAULT_LINK, parse_links
from mptcp.cli.stack_options import BackupOption, LinkOption, PcapOption, StackOption
from mptcp.cli.udp import open_udp
from mptcp.errors import ConfigurationError


def serve(
    directory: Annotated[Path, typer.Argument(help="What to serve.", metavar="DIRECTORY")],
    port: Annotated[
        int, typer.Option("--port", "-p", help="Port to listen on (of UDP with --link udp).", min=1, max=65535)
    ] = 8000,
    stack: StackOption = None,
    link: LinkOption = None,
    backup: BackupOption = None,
    pcap: PcapOption = None,
) -> None:
    """Serve a directory by HTTP, with ranges, until Ctrl-C."""
    if not directory.is_dir():
        raise ConfigurationError(f"{directory} is no directory")
    with _open(choose(stack, "http", link or (), pcap), link or (), pcap, backup or (), port) as (opened, port):
        server = FileServer(
            opened.listen(port), directory, say=lambda line: print(line, flush=True), snapshot=opened.snapshot
        )
        for address in opened.addresses:
            print(f"serving {directory} at {opened.url(address, port)}", flush=True)
        try:
            server.serve_forever()
        finally:
            server.server_close()


@contextlib.contextmanager
def _open(
    name: StackName, link: Sequence[str], pcap: Path | None, backup: Sequence[str], port: int
) -> Iterator[tuple[StackInUse, int]]:
    """The stack, and the port that it listens on."""
    opened: StackInUse
    if name is StackName.KERNEL:
        opened = KernelInUse(backup)
    else:
        specs = parse_links(link or [DEFAULT_LINK])
        if specs[0].kind == "loopback":
            raise ConfigurationError(
                "nobody outside of this process reaches a server on loopback: use it with mptcp get"
            )
        if specs[0].kind == "udp":
            port = specs[0].port or port
            opened = open_udp(specs, port=port, pcap=pcap, backup=backup)
        else:
            opened = open_stack(specs, pcap=pcap, backup=backup)
    with opened, opened.shown("mptcp serve"):
        yield opened, port
