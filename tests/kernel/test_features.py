"""docs/features.md says what came out when it was tried here; and ``supports`` says it beforehand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mptcp.testing import netns
from mptcp.testing.features.environments import ENVIRONMENTS, Environment, examine, unavailable

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import features_page  # noqa: E402


@pytest.mark.parametrize("environment", ENVIRONMENTS, ids=[environment.name for environment in ENVIRONMENTS])
def test_what_works(environment: Environment) -> None:
    if environment.kernel and netns.needs_namespaces():
        netns.become_namespace_root()
    if reason := unavailable(environment):
        pytest.skip(reason)
    found = examine(environment)
    written = features_page.columns(features_page.PAGE.read_text())[environment.name]
    assert {item: finding.answer for item, finding in found.items()} == written, [
        (item, finding) for item, finding in found.items() if finding.answer != written.get(item)
    ]
    promised = {item for item, finding in found.items() if finding.supported and finding.answer != "yes"}
    assert not promised, "supports() says that these work"
    denied = {item for item, finding in found.items() if finding.supported is False and finding.answer == "yes"}
    assert not denied, "supports() says that these do not work"
