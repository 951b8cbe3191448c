"""docs/features.md says what came out when it was tried here, in each family; and ``supports`` says it beforehand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mptcp.testing import netns
from mptcp.testing.features.environments import ENVIRONMENTS, FAMILIES, Environment, examine, unavailable
from mptcp.testing.features.probes import Finding

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
    items = {item: [found[family][item] for family in FAMILIES] for item in found[4]}
    assert {item: features_page.together(each) for item, each in items.items()} == written, [
        (item, each) for item, each in items.items() if features_page.together(each) != written.get(item)
    ]
    findings = [(family, item, finding) for family in FAMILIES for item, finding in found[family].items()]
    promised = [(family, item) for family, item, f in findings if f.supported and f.answer != "yes"]
    assert not promised, "supports() says that these work"
    denied = [(family, item) for family, item, f in findings if f.supported is False and f.answer == "yes"]
    assert not denied, "supports() says that these do not work"


def test_a_cell_is_yes_only_if_both_families_say_so() -> None:
    yes, refused, silent = Finding("yes"), Finding("EPERM", "no privilege"), Finding("no", "nothing came")
    notes: dict[str, int] = {}
    assert features_page.cell([yes, yes], notes) == "yes"
    assert features_page.cell([yes, refused], notes) == "yes/EPERM (1)"
    assert features_page.cell([silent, refused], notes) == "no/EPERM (2, 1)"
    assert features_page.cell([refused, refused], notes) == "EPERM (1)"
    assert notes == {"no privilege": 1, "nothing came": 2}
