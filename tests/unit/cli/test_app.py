"""The command line as a user meets it: wrong arguments, failures, and ``get`` over the in-process link."""

import hashlib
import json
import os
import re
from pathlib import Path

import pytest

import mptcp
from mptcp.cli import app, demo, dump, get
from mptcp.cli.kernel_stack import StackName, choose
from mptcp.links.pcap import OUTBOUND, PcapWriter

URL = "http://10.99.1.1:8000/file.bin"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "file.bin").write_bytes(os.urandom(300_000))
    return folder


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "missing command"),
        (["frobnicate"], "no such command 'frobnicate'"),
        (["get"], "missing argument 'URL'"),
        (["get", "--frobnicate"], "no such option: --frobnicate"),
        (["get", "http://x/y", "--timeout", "soon"], "'--timeout'"),
        (["get", "https://x/y"], "only http URLs"),
        (["get", "http://x/y", "--link", "carrier-pigeon"], "a link is one of"),
        (["get", "http://x/y", "--link", "loopback:/nowhere"], "no directory to serve"),
        (["get", "http://x/y", "--link", "loopback", "--backup", "1.2.3.4"], "no --link has that address"),
        (["get", "http://x/y", "--link", "loopback", "--backup", "me"], "is no address"),
        (["get", "http://x/y", "-o", "/nowhere/file"], "no directory /nowhere"),
        (["get", "http://x/y", "--link", "loopback", "--pcap", "/nowhere/file"], "--pcap /nowhere/file"),
        (["get", "http://x/y", "--link", "packet:nope=10.0.0.1/24"], "no interface 'nope'"),
        (["get", "http://x/y", "--backup", "192.0.2.1"], "this host has no such address"),
        (["get", "http://x/y", "--stack", "kernel", "--backup", "me"], "is no address"),
        (["get", "http://x/y", "--stack", "kernel", "--link", "loopback"], "--link is for the user-space stack"),
        (["get", "mptcp://x/y", "--stack", "kernel"], "an mptcp:// URL is for the user-space stack"),
        (["get", "http://x/y", "--stack", "windows"], "'--stack'"),
        (["serve", "/", "--stack", "kernel", "--pcap", "x"], "--pcap is for the user-space stack"),
        (["serve", "/", "--backup", "192.0.2.1"], "this host has no such address"),
        (["serve", "/nowhere"], "/nowhere is no directory"),
        (["serve", "/", "--port", "99999"], "'--port'"),
        (["serve", "/", "--link", "loopback"], "nobody outside of this process"),
        (["demo", "--size", "0"], "'--size'"),
        (["demo", "--rates", "fast"], "two numbers"),
        (["demo", "--rates", "0,5"], "1 to 10000"),
        (["dump", "/nowhere"], "No such file"),
        (["dump", __file__], "is no pcapng file"),
        (["serve", "--frobnicate"], "(mptcp serve --help)"),
        (["run"], "a program to run is missing"),
        (["run", "--frobnicate", "true"], "no such option: --frobnicate (mptcp run --help)"),
        (["run", "--link", "loopback", "-m", "no_module_of_this_name"], "no module named no_module_of_this_name"),
    ],
)
def test_wrong_command_line_is_one_sentence(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert app.run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("mptcp: ")
    assert err.count("\n") == 1
    assert says in err
    assert list(tmp_path.iterdir()) == []


def test_help_names_every_verb_and_cuts_none_short(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert app.run(["--help"]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    for verb, _, summary in app.VERBS:
        assert f"{verb:6}  {summary}" in lines


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["--version"]) == 0
    assert capsys.readouterr().out == f"mptcp {mptcp.__version__}\n"


def test_a_capture_in_the_older_format_names_the_way_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.pcap").write_bytes(bytes.fromhex("d4c3b2a1020004000000000000000000000004000100000000"))
    assert app.run(["dump", str(tmp_path / "x.pcap")]) == 2
    assert "editcap -F pcapng" in capsys.readouterr().err


def test_who_did_not_answer_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["get", "http://10.99.1.1:1/x", "--link", "loopback", "-o", str(tmp_path / "x")]) == 1
    assert capsys.readouterr().err == "mptcp: 10.99.1.1:1: Connection refused; nothing was received\n"


def test_a_capture_that_cannot_be_written_does_not_hinder_the_transfer(
    site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["get", URL, "--link", f"loopback:{site}", "-o", str(tmp_path / "got"), "-q", "--pcap", "/dev/full"]
    assert app.run(arguments) == 0
    assert capsys.readouterr() == ("", "mptcp: --pcap /dev/full is not complete: No space left on device\n")
    assert (tmp_path / "got").read_bytes() == (site / "file.bin").read_bytes()


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "got"
    (tmp_path / "got.part").mkdir()
    assert app.run(["get", URL, "--link", "loopback", "-o", str(target), "-q"]) == 1
    assert capsys.readouterr().err.startswith(f"mptcp: {target}.part: Is a directory")


def test_get_over_two_paths_in_process(site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = (site / "file.bin").read_bytes()
    target, capture = tmp_path / "got", tmp_path / "x.pcapng"
    arguments = [
        "get",
        URL,
        "--link",
        f"loopback:{site}",
        "-o",
        str(target),
        "--json",
        "--sha256",
        "--pcap",
        str(capture),
    ]
    assert app.run(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert target.read_bytes() == body
    assert report["sha256"] == hashlib.sha256(body).hexdigest()
    assert report["is_multipath"] is True
    assert report["total"] == report["received"] == len(body)
    assert sum(row["bytes_received"] for row in report["subflows"]) >= len(body)
    assert app.run(["dump", str(capture)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "Flags [S]" in lines[0]
    assert "capable" in lines[0]
    assert any("join" in line for line in lines)
    assert app.run(["dump", "--absolute", str(capture)]) == 0
    absolute = capsys.readouterr().out.splitlines()
    assert len(absolute) > 10
    assert all(re.match(r"[0-2]\d:[0-5]\d:[0-6]\d\.\d{6} \S", line) for line in absolute)
    assert app.run(["dump", "--mptcp", str(capture)]) == 0
    assert 0 < len(capsys.readouterr().out.splitlines()) <= len(lines)


@pytest.mark.parametrize(
    ("given", "stack"),
    [
        ((None, "http", (), None), StackName.KERNEL),
        ((StackName.USER, "http", (), None), StackName.USER),
        ((None, "http", ("loopback",), None), StackName.USER),
        ((None, "http", (), Path("x")), StackName.USER),
        ((None, "mptcp", (), None), StackName.USER),
    ],
)
def test_whose_mptcp_it_is(given: tuple[StackName | None, str, tuple[str, ...], Path | None], stack: StackName) -> None:
    assert choose(*given) is stack


def test_get_prints_what_each_subflow_carried(site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "got"
    assert app.run(["get", URL, "--link", f"loopback:{site}", "-o", str(target), "--sha256"]) == 0
    out = capsys.readouterr().out
    assert "293.0 KiB in" in out
    assert "→ 10.99.1.1:8000" in out
    assert f"{hashlib.sha256(target.read_bytes()).hexdigest()}  {target}" in out


def test_backup_address_carries_nothing(site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "get",
        URL,
        "--link",
        f"loopback:{site}",
        "-o",
        str(tmp_path / "got"),
        "--json",
        "--backup",
        "10.99.2.2",
    ]
    assert app.run(arguments) == 0
    rows = json.loads(capsys.readouterr().out)["subflows"]
    backup = [row for row in rows if row["local"].startswith("10.99.2.2:")]
    assert backup
    assert all(row["backup"] for row in backup)
    assert sum(row["bytes_received"] for row in backup) == 0


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://10.99.1.1:8000/none", "404"),
        ("http://10.99.1.1:1/file.bin", "Connection refused"),
    ],
)
def test_failure_is_one_sentence(
    url: str, says: str, site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run(["get", url, "--link", f"loopback:{site}", "-o", str(tmp_path / "got"), "-q"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
    assert err.count("\n") == 1
    assert not list(tmp_path.glob("got*"))


@pytest.mark.parametrize("verb", ["serve", "demo", "dump"])
def test_interrupt_is_one_line(verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mptcp.cli.serve.KernelInUse", interrupt)
    monkeypatch.setattr(demo, "run", interrupt)
    monkeypatch.setattr(dump, "read", interrupt)
    assert app.run([verb, *([] if verb == "demo" else ["/"])]) == 130
    assert capsys.readouterr().err == "mptcp: interrupted\n"


def test_interrupted_get_tells_what_is_left(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    body = (site / "file.bin").read_bytes()
    os.utime(site / "file.bin", (1_600_000_000, 1_600_000_000))
    progress = get.Transfer._progress

    def interrupt(self: get.Transfer, done: int, total: int | None, resumed: int) -> None:
        progress(self, done, total, resumed)
        if done > 100_000:
            raise KeyboardInterrupt

    arguments = ["get", URL, "--link", f"loopback:{site}", "-o", str(tmp_path / "got"), "--json"]
    with monkeypatch.context() as patch:
        patch.setattr(get.Transfer, "_progress", interrupt)
        assert app.run(arguments) == 130
    err = capsys.readouterr().err
    assert err.startswith("mptcp: interrupted; ")
    assert "the same command continues it" in err
    kept = (tmp_path / "got.part").stat().st_size
    assert 100_000 < kept < len(body)
    assert app.run(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["resumed"], report["received"]) == (kept, len(body) - kept)
    assert (tmp_path / "got").read_bytes() == body


def ethernet(kind: bytes, payload: bytes) -> bytes:
    return bytes(12) + kind + payload


@pytest.mark.parametrize(
    ("link_type", "data", "expected"),
    [
        (101, b"\x45abc", b"\x45abc"),
        (1, ethernet(b"\x08\x00", b"\x45abc"), b"\x45abc"),
        (1, ethernet(b"\x81\x00", b"\x00\x07\x86\xdd\x60abc"), b"\x60abc"),
        (1, ethernet(b"\x08\x06", b"arp"), None),
        (113, bytes(14) + b"\x08\x00\x45abc", b"\x45abc"),
        (276, b"\x86\xdd" + bytes(18) + b"\x60abc", b"\x60abc"),
        (1, b"", None),
        (999, b"\x45abc", None),
    ],
)
def test_dump_finds_ip_behind_other_headers(link_type: int, data: bytes, expected: bytes | None) -> None:
    packet = dump.CapturedPacket("eth0", 0, data, len(data), OUTBOUND, "", link_type)
    assert dump.ip_octets(packet) == expected


def test_dump_disarms_comments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with PcapWriter(tmp_path / "x") as writer:
        writer.write(writer.add_interface("x"), [b"\x45" + bytes(19)], OUTBOUND, "evil \x1b[31m red")
    assert app.run(["dump", str(tmp_path / "x")]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "evil" in out


def test_dump_of_a_capture_with_a_snap_length(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    header = bytes.fromhex("450005dc000040004006211a0a0000010a000002") + bytes.fromhex(
        "9c4000500000000100000002501000ff00000000"
    )
    ethernet = bytes(12) + b"\x08\x00" + header
    cut = dump.CapturedPacket("eth0", 0, ethernet, 14 + 1500, OUTBOUND, "", 1)
    monkeypatch.setattr(dump, "read", lambda file: [cut])
    assert app.run(["dump", "--raw", str(tmp_path / "x")]) == 0
    assert "10.0.0.1.40000 > 10.0.0.2.80: Flags [.], seq 1:1461, ack 2" in capsys.readouterr().out
