"""What pyproject.toml says of the package is so: its version, its command, its types, the files that go into a wheel."""

from __future__ import annotations

import configparser
import importlib
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import mptcp
from mptcp.cli import app
from mptcp.kernel.broker.client import DEFAULT_SOCKET

ROOT = Path(__file__).parents[2]
UNITS = ROOT / "packaging" / "systemd"


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(UNITS / name)
    return parser


def test_the_version_is_where_it_is_read_from(project: dict[str, Any]) -> None:
    text = (ROOT / project["tool"]["hatch"]["version"]["path"]).read_text()
    assert re.findall(r'^__version__ = "(\d+\.\d+\.\d+)"$', text, re.MULTILINE) == [mptcp.__version__]


def test_the_command_is_there(project: dict[str, Any]) -> None:
    module, _, function = project["project"]["scripts"]["mptcp"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_without_extras_it_needs_nothing(project: dict[str, Any]) -> None:
    assert project["project"]["dependencies"] == []


def test_it_is_typed_and_says_so(project: dict[str, Any]) -> None:
    [package] = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert (ROOT / package / "py.typed").exists()
    assert "Typing :: Typed" in project["project"]["classifiers"]


def test_this_python_is_one_of_those_it_is_for(project: dict[str, Any]) -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert f"Programming Language :: Python :: {version}" in project["project"]["classifiers"]


def test_the_wheel_has_the_units_of_the_broker(project: dict[str, Any]) -> None:
    shared = project["tool"]["hatch"]["build"]["targets"]["wheel"]["shared-data"]
    assert {ROOT / source for source in shared} == {UNITS}
    assert {path.name for path in UNITS.iterdir()} == {"mptcp-broker.service", "mptcp-broker.socket"}


def test_the_units_start_what_there_is() -> None:
    _, *arguments = unit("mptcp-broker.service")["Service"]["ExecStart"].split()
    assert arguments == ["broker"]
    assert "broker" in {verb for verb, _, _ in app.VERBS}
    assert unit("mptcp-broker.socket")["Socket"]["ListenSequentialPacket"] == DEFAULT_SOCKET
