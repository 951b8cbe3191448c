"""``mptcp serve DIRECTORY``: its files by HTTP, over several paths to clients that have them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mptcp.cli.connections import Stack, open_stack
from mptcp.cli.file_server import FileServer
from mptcp.cli.link_option import DEFAULT_LINK, parse_links
from mptcp.cli.udp import open_udp
from mptcp.errors import ConfigurationError


def serve(
    directory: Annotated[Path, typer.Argument(help="What to serve.", metavar="DIRECTORY")],
    port: Annotated[
        int, typer.Option("--port", "-p", help="Port to listen on (of UDP with --link udp).", min=1, max=65535)
    ] = 8000,
    link: Annotated[
        list[str] | None,
        typer.Option(help=f"Link and addresses, once per path (docs/cli.md; default: {DEFAULT_LINK}).", metavar="LINK"),
    ] = None,
    backup: Annotated[
        list[str] | None,
        typer.Option(help="One of our addresses whose subflows are only for when no other works.", metavar="ADDRESS"),
    ] = None,
    pcap: Annotated[Path | None, typer.Option(help="Write every packet to this pcapng file.", metavar="FILE")] = None,
) -> None:
    """Serve a directory by HTTP, with ranges, until Ctrl-C."""
    if not directory.is_dir():
        raise ConfigurationError(f"{directory} is no directory")
    specs = parse_links(link or [DEFAULT_LINK])
    if specs[0].kind == "loopback":
        raise ConfigurationError("nobody outside of this process reaches a server on loopback: use it with mptcp get")
    stack: Stack
    if specs[0].kind == "udp":
        port = specs[0].port or port
        stack = open_udp(specs, port=port, pcap=pcap, backup=backup or ())
    else:
        stack = open_stack(specs, pcap=pcap, backup=backup or ())
    with stack:
        server = FileServer(
            stack.listen(port), directory, say=lambda line: print(line, flush=True), snapshot=stack.snapshot
        )
        for address in stack.addresses:
            print(f"serving {directory} at {stack.url(address, port)}", flush=True)
        try:
            server.serve_forever()
        finally:
            server.server_close()
