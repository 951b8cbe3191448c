"""Options that the verbs share which need a stack: which one, over which links and addresses."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from mptcp.cli.kernel_stack import StackName
from mptcp.cli.link_option import DEFAULT_LINK

StackOption: TypeAlias = Annotated[
    StackName | None,
    typer.Option(help="kernel (the default), or user: this package's own, the default with --link and --pcap."),
]
LinkOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        help=f"--stack user: link and addresses, once per path (docs/cli.md; default: {DEFAULT_LINK}).",
        metavar="LINK",
    ),
]
BackupOption: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(help="One of our addresses whose subflows are only for when no other works.", metavar="ADDRESS"),
]
PcapOption: TypeAlias = Annotated[
    Path | None, typer.Option(help="--stack user: write every packet to this pcapng file.", metavar="FILE")
]
