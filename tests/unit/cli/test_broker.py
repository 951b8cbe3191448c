"""``mptcp broker`` as an administrator meets it before it runs: the policy's check, and what is wrong."""

import socket
from pathlib import Path

import pytest

from mptcp.cli import app, broker


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "broker.toml"
    path.write_text("[[rule]]\nusers = [0]\nallow = ['events']\n[[rule]]\naddresses = ['any']\noptions = []\n")
    path.chmod(0o644)
    return path


def test_check_says_what_the_policy_means(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["broker", "--check", "--policy", str(policy)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{policy}: 2 rules, at most 256 clients\n1. user 0 may: events\n   from host on ")
    assert "2. everybody may: announce, remove, create_subflow," in said
    assert "options none" in said


def test_without_a_file_it_is_the_default_policy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(broker, "DEFAULT_PATH", str(tmp_path / "none"))
    assert app.run(["broker", "--check"]) == 0
    assert "the default policy: 1 rule, at most 256 clients\n1. everybody may: " in capsys.readouterr().out
    monkeypatch.setattr(broker, "DEFAULT_PATH", str(policy))
    assert app.run(["broker", "--check"]) == 0
    assert "2 rules" in capsys.readouterr().out


def test_a_fault_in_the_policy_names_its_line(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy.write_text("[[rule]]\n\nallow = ['fly']\n")
    assert app.run(["broker", "--check", "--policy", str(policy)]) == app.EXIT_USAGE
    assert f"mptcp: {policy}, line 3: allow: there is no operation 'fly'" in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--check"]])
def test_a_user_that_is_not_there(options: list[str], policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["broker", "--policy", str(policy), "--user", "nobody-of-this-name", *options]
    assert app.run(arguments) == app.EXIT_USAGE
    assert capsys.readouterr() == ("", "mptcp: there is no user 'nobody-of-this-name' on this system\n")


def test_a_policy_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["broker", "--policy", str(tmp_path / "none")]) == app.EXIT_FAILED
    assert capsys.readouterr().err == f"mptcp: {tmp_path / 'none'}: No such file or directory\n"


def test_where_another_broker_listens(policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
        other.bind(str(tmp_path / "s"))
        other.listen()
        assert app.run(["broker", "--policy", str(policy), "--socket", str(tmp_path / "s")]) == app.EXIT_FAILED
    assert "a broker listens at" in capsys.readouterr().err


def test_where_no_socket_can_be(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["broker", "--policy", str(policy), "--socket", "/proc/s"]) == app.EXIT_FAILED
    assert "mptcp: listening at /proc/s: " in capsys.readouterr().err


def test_a_socket_path_that_is_too_long(policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["broker", "--policy", str(policy), "--socket", str(tmp_path / ("x" * 200))]) == app.EXIT_USAGE
    assert "at most 107 octets" in capsys.readouterr().err
