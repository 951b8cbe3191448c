"""The kernel's stack for a process without any privilege: it reads, it hears what anybody can hear, and it says what it may
not do."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mptcp
from mptcp.testing.netns import Namespace

SOURCE = Path(mptcp.__file__).parents[1]

PROGRAM = """
import errno, json, os
import mptcp
os.environ.pop("MPTCP_BROKER", None)
stack = mptcp.current_stack()
with mptcp.create_server(("127.0.0.1", 0)) as server, mptcp.create_connection(server.getsockname(), 5) as client:
    accepted = server.accept()[0]
    events = client.events()
    kinds = [events.get(5).kind.value for _ in range(2)]
    client.sendall(b"?")
    accepted.recv(1)
    try:
        client.open_subflow(local=("127.0.0.1", 0))
        refused = None
    except OSError as error:
        refused = [error.errno == errno.EPERM, str(error)]
    found = {
        "multipath": [client.is_multipath, accepted.is_multipath], "subflows": len(client.subflows()), "kinds": kinds,
        "refused": refused, "events": bool(stack.supports("events")), "why": stack.supports("events").reason,
        "open": stack.supports("open_subflow").fix, "read": bool(stack.supports("subflows")),
    }
    accepted.close()
print(json.dumps(found))
"""


def test_without_privilege(host_namespace: Namespace) -> None:
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("setpriv (util-linux) is needed to give capabilities up")
    with host_namespace.entered():
        done = subprocess.run(
            [setpriv, "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=30, check=False,
            env={**os.environ, "PYTHONPATH": str(SOURCE)},
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["multipath"] == [True, True]
    assert found["subflows"] == 1
    assert found["kinds"] == ["established", "subflow-established"]
    assert found["refused"][0], found["refused"]
    assert "CAP_NET_ADMIN" in found["refused"][1]
    assert not found["events"]
    assert "CAP_NET_ADMIN" in found["why"]
    assert "mptcp broker" in found["open"]
    assert found["read"]
