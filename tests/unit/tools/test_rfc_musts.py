"""The list of MUSTs that nothing quotes, on an RFC of three sections and a source of one file."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "tools"))

import rfc_musts as tool  # noqa: E402

RFC = """Request for Comments: 9999

Table of Contents
   1. Introduction . . . . . 2

1.  Introduction

   The key words "MUST" and "SHOULD" are to be read as described in BCP 14.

2.  Words

   A host MUST be polite to every other
   host it meets.  It may be quiet.  The
   receiver MUST NOT shout (unless it is deaf).

Author                Standards Track                  [Page 1]
\f
RFC 9999                  Manners                   May 2024

2.1.  More

   A host SHOULD smile.  The length is REQUIRED to be even.
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for folder in ("src", "tests"):
        (tmp_path / folder).mkdir()
    (tmp_path / "rfc.txt").write_text(RFC)
    return tmp_path


def run(repository: Path, capsys: pytest.CaptureFixture[str], source: str, *arguments: str) -> tuple[int, str]:
    (repository / "src" / "a.py").write_text(source)
    status = tool.main([str(repository / "rfc.txt"), "--root", str(repository), *arguments])
    return status, capsys.readouterr().out


def test_sentences_and_their_sections() -> None:
    found = tool.requirements(RFC, ["MUST", "MUST NOT", "REQUIRED"])
    assert [(r.section, r.text) for r in found] == [
        ("2", "A host MUST be polite to every other host it meets."),
        ("2", "The receiver MUST NOT shout (unless it is deaf)."),
        ("2.1", "The length is REQUIRED to be even."),
    ]


def test_nothing_is_cited(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out = run(repository, capsys, "pass\n")
    assert "3 requirements, 0 cited, 3 not" in out
    assert status == 0
    assert run(repository, capsys, "pass\n", "--limit", "2")[0] == 1
    assert run(repository, capsys, "pass\n", "--limit", "3")[0] == 0


@pytest.mark.parametrize(
    "source",
    [
        '# RFC 9999 §2: "A host MUST be polite to every other host it meets."\nx = 1\n',
        '    # RFC 9999 §2: "A host MUST be polite\n    # to every other host it meets"\n    x = 1\n',
        '# RFC 9999 §2: "A host ... polite to every other host it meets"\n',
        '"""RFC 9999 §2: "MUST be polite to every other host"."""\n',
    ],
)
def test_a_quoted_stretch_cites_the_sentence(repository: Path, capsys: pytest.CaptureFixture[str], source: str) -> None:
    _, out = run(repository, capsys, source)
    assert "3 requirements, 1 cited, 2 not" in out
    assert "polite" not in out
    assert "src/a.py:1" in run(repository, capsys, source, "--all")[1]


@pytest.mark.parametrize(
    "source",
    [
        "# RFC 9999 §2: be polite\n",  # no quote
        '# RFC 9999 §2: "MUST be polite"\n',  # too short to prove anything
        '# RFC 1234 §2: "A host MUST be polite to every other host it meets."\n',  # another RFC
        '"A host MUST be polite to every other host it meets."\n',  # no tag
    ],
)
def test_less_than_that_does_not(repository: Path, capsys: pytest.CaptureFixture[str], source: str) -> None:
    assert "0 cited, 3 not" in run(repository, capsys, source)[1]


def test_a_section_alone_is_told_apart(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out = run(repository, capsys, "# RFC 9999 §2.1\n")
    assert out.count("its section is cited") == 1
    assert out.count("not cited") == 2


def test_words_and_section_are_chosen(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "1 requirements" in run(repository, capsys, "", "--words", "SHOULD")[1]
    assert "1 requirements" in run(repository, capsys, "", "--section", "2.1")[1]


def test_a_missing_text_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        tool.main([str(tmp_path / "nothing")])
    assert caught.value.code == 2
    assert "cannot read" in capsys.readouterr().err


def test_what_does_not_apply_has_a_reason(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (repository / "tools").mkdir()
    exceptions = repository / "tools" / "rfc_exceptions.toml"
    exceptions.write_text('[[rfc9999]]\nquote = "MUST be polite"\nreason = "we meet nobody"\n')
    status, out = run(repository, capsys, "x = 1\n", "--limit", "2")
    assert "3 requirements, 0 cited, 2 not, 1 do not apply" in out
    assert "polite" not in out
    assert status == 0
    assert "we meet nobody" in run(repository, capsys, "x = 1\n", "--all")[1]


def test_an_exception_must_quote_what_is_there(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (repository / "tools").mkdir()
    exceptions = repository / "tools" / "rfc_exceptions.toml"
    exceptions.write_text('[[rfc9999]]\nquote = "MUST be rude to"\nreason = "none"\n')
    (repository / "src" / "a.py").write_text("x = 1\n")
    tool.main([str(repository / "rfc.txt"), "--root", str(repository), "--words", "MUST,MUST NOT"])
    assert "MUST be rude to" in capsys.readouterr().err


def test_quotations_of_another_rfc_count_where_asked(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = '# RFC 1234 §7: "A host MUST be polite to every other host it meets."\nx = 1\n'
    assert "0 cited, 3 not" in run(repository, capsys, source)[1]
    assert "1 cited, 2 not" in run(repository, capsys, source, "--also", "1234")[1]
