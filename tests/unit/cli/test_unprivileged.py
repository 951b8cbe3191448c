"""What the command line says to a user without privilege: what is missing, and what would help."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from mptcp.cli import app
from mptcp.info import Support
from mptcp.kernel import features
from mptcp.kernel.broker import service
from mptcp.kernel.namespace import NetNamespace


def denied(*_: Any, **__: Any) -> Any:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/run/mptcp")


def test_a_network_namespace_of_somebody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(PermissionError, match="may not be opened: Permission denied; run it as root"):
        NetNamespace("/proc/1/ns/net")


def test_a_broker(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(service, "listen", denied)
    assert app.run(["broker"]) == 1
    error = capsys.readouterr().err
    assert error == "mptcp: /run/mptcp: Permission denied: run it as root, or name another place with --socket\n"


def test_path_managers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(features, "steering", lambda *_: Support(False, "it needs CAP_NET_ADMIN", ""))
    assert app.run(["pm"]) == 1
    assert capsys.readouterr().err == "mptcp: it needs CAP_NET_ADMIN: run it as root, or inside `unshare -Urn`\n"
