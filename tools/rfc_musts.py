#!/usr/bin/env python3
"""List the MUSTs of an RFC that nothing in the source or the tests quotes.

    tools/rfc_musts.py rfc8684.txt                    # sentences nothing cites, and the count
    tools/rfc_musts.py rfc8684.txt --all              # every one, with the places that cite it
    tools/rfc_musts.py rfc9293.txt --words MUST,SHOULD --section 3.10

The text comes from wherever you keep it (https://www.rfc-editor.org/rfc/rfc8684.txt); the repository has no copy.

A sentence is cited when a comment or a docstring quotes at least a stretch of it after the RFC's tag:

    # RFC 8684 §3.1: "If a SYN contains an MP_CAPABLE option but the SYN/ACK does not, it is assumed that ..."

Quotes may run over several comment lines and may leave words out with "...". A tag without a quote (``# RFC 8684
§3.2``) cites a section, not a sentence; the list says so beside each sentence.

Sentences that do not apply to this project stand in ``tools/rfc_exceptions.toml``, each with the reason; they count as
answered. ``--also 8684`` lets a quotation of that RFC count where this one has the same words (RFC 6824, its
predecessor, for instance).

Exit status: 0; 1 with ``--limit N`` when more than N sentences are uncited; 2 when the arguments are wrong.
"""

from __future__ import annotations

import argparse
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

#: Shorter stretches than this many letters are no proof that the sentence was meant.
SHORTEST_QUOTE = 24

HEADING = re.compile(r"^(?:Appendix )?([0-9A-Z](?:\d*)(?:\.\d+)*)\.  ?\S")
PAGE_BREAK = re.compile(r"^(RFC \d+ .* \d{4}|.*\[Page \d+\])\s*$")
SENTENCE_END = re.compile(r"(?:(?<=[.:;])|(?<=\.\)))\s+(?=[A-Z(\"])")
TAG = re.compile(r"RFC ?(\d+)[, ]*(?:§|[Ss]ection )([0-9A-Z]+(?:\.\d+)*)")
QUOTE = re.compile(r"[\"\u201c]([^\"\u201c\u201d]{8,}?)[\"\u201d]")


@dataclass(slots=True)
class Requirement:
    """One sentence with a requirement word in it, and where it is cited ("path:line")."""

    section: str
    text: str
    cited_by: list[str] = field(default_factory=list)
    section_cited: bool = False
    exception: str = ""  # why it does not apply


def normalised(text: str) -> str:
    """Letters and digits only, lower case: line breaks, comment signs and punctuation do not count."""
    return re.sub(r"[^a-z0-9]+", "", text.lower())


def paragraphs(text: str) -> Iterator[tuple[str, str]]:
    """(section, paragraph) of an RFC's plain text; figures and tables come along as the lines they are."""
    section, lines = "", list[str]()
    for raw in [*text.replace("\f", "\n").splitlines(), ""]:
        line = raw.rstrip()
        if PAGE_BREAK.match(line):
            continue
        heading = HEADING.match(line)
        if heading and "...." not in line and not line.endswith(" ."):
            section = heading.group(1)
        elif line.strip():
            lines.append(line.strip())
            continue
        if lines:
            yield section, " ".join(lines)
            lines = []


def requirements(text: str, words: Iterable[str]) -> list[Requirement]:
    """Every sentence of ``text`` with one of ``words`` in it, as a whole word in capitals."""
    wanted = re.compile(r"\b(?:" + "|".join(map(re.escape, words)) + r")\b")
    found: list[Requirement] = []
    for section, paragraph in paragraphs(text):
        if "key words" in paragraph and ("BCP 14" in paragraph or "RFC 2119" in paragraph):
            continue  # the sentence that explains the words
        sentences = SENTENCE_END.split(paragraph)
        found += [Requirement(section, sentence) for sentence in sentences if wanted.search(sentence)]
    return found


@dataclass(frozen=True, slots=True)
class Citation:
    """One tag in a file: the section it names ("" for another RFC's) and the quoted stretches after it (normalised)."""

    section: str
    place: str
    stretches: tuple[str, ...]


def citations(path: Path, number: str, name: str, also: Sequence[str] = ()) -> Iterator[Citation]:
    """The citations of RFC ``number``, and of those ``also``, in one Python file."""
    text = path.read_text(encoding="utf-8")
    tags = list(TAG.finditer(text))
    for i, tag in enumerate(tags):
        if tag.group(1) != number and tag.group(1) not in also:
            continue
        end = tags[i + 1].start() if i + 1 < len(tags) else len(text)
        # What follows the tag in the same comment block or paragraph: joined, without comment signs.
        block = re.split(r"\n\s*\n|\n(?=\s*[^#\s\"\u201c])(?<!\")", text[tag.end() : end], maxsplit=1)[0]
        if '"' not in block and "\u201c" not in block:
            block = text[tag.end() : min(end, tag.end() + 600)].split("\n\n")[0]
        block = re.sub(r"\n\s*#?\s*", " ", block)
        stretches = [
            normalised(stretch)
            for quote in QUOTE.findall(block)
            for stretch in re.split(r"\.\.\.|\u2026|\[.*?\]", quote)
        ]
        line = text.count("\n", 0, tag.start()) + 1
        section = tag.group(2) if tag.group(1) == number else ""
        yield Citation(section, f"{name}:{line}", tuple(s for s in stretches if len(s) >= SHORTEST_QUOTE))


def except_from(found: list[Requirement], exceptions: Iterable[dict[str, str]]) -> list[str]:
    """Fill in the reasons of ``exceptions`` ({"quote", "reason"}); the quotes that are in no requirement."""
    keys = [normalised(requirement.text) for requirement in found]
    unknown = []
    for exception in exceptions:
        quote = normalised(exception["quote"])
        matching = [requirement for requirement, key in zip(found, keys, strict=True) if quote in key]
        for requirement in matching:
            requirement.exception = exception["reason"]
        if not matching:
            unknown.append(exception["quote"])
    return unknown


def match(found: list[Requirement], cited: Iterable[Citation]) -> None:
    """Fill in where each requirement is cited."""
    keys = [normalised(requirement.text) for requirement in found]
    for citation in cited:
        for requirement, key in zip(found, keys, strict=True):
            requirement.section_cited |= requirement.section == citation.section
            if any(stretch in key or key in stretch for stretch in citation.stretches):
                requirement.cited_by.append(citation.place)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="List the MUSTs of an RFC that nothing in the source or the tests quotes."
    )
    parser.add_argument("rfc", type=Path, help="the RFC's plain text")
    parser.add_argument(
        "--root", type=Path, default=Path(__file__).parents[1], help="the repository (default: this one)"
    )
    parser.add_argument("--words", default="MUST,MUST NOT,SHALL,SHALL NOT,REQUIRED", help="what makes a requirement")
    parser.add_argument("--section", default="", help="only this section and what is under it")
    parser.add_argument("--all", action="store_true", help="the cited ones too, with the places")
    parser.add_argument("--also", default="", help="RFCs whose quotations count too, by number: 8684,6182")
    parser.add_argument("--limit", type=int, help="exit with 1 if more than this many are uncited")
    arguments = parser.parse_args(argv)
    try:
        text = arguments.rfc.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        parser.error(f"cannot read {arguments.rfc}: {error.strerror}")
    number = re.search(r"Request for Comments: *(\d+)", text) or re.search(r"rfc(\d+)", arguments.rfc.name)
    if number is None:
        parser.error(f"{arguments.rfc} does not say which RFC it is")
    found = requirements(text, arguments.words.split(","))
    if arguments.section:
        found = [r for r in found if r.section == arguments.section or r.section.startswith(arguments.section + ".")]
    cited = [
        citation
        for folder in ("src", "tests")
        for path in sorted((arguments.root / folder).rglob("*.py"))
        for citation in citations(
            path, number.group(1), str(path.relative_to(arguments.root)), arguments.also.split(",")
        )
    ]
    match(found, cited)
    file = arguments.root / "tools" / "rfc_exceptions.toml"
    known = tomllib.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    unknown = except_from(found, known.get(f"rfc{number.group(1)}", ()))
    if set(arguments.words.split(",")) >= {"MUST", "MUST NOT"} and not arguments.section:
        for quote in unknown:
            print(f"rfc_exceptions.toml quotes what is not there: {quote}", file=sys.stderr)
    for requirement in found:
        if (requirement.cited_by or requirement.exception) and not arguments.all:
            continue
        note = (
            ", ".join(requirement.cited_by)
            or requirement.exception
            or ("its section is cited" if requirement.section_cited else "not cited")
        )
        print(f"§{requirement.section}  {requirement.text}\n    -> {note}")
    excepted = sum(bool(requirement.exception) and not requirement.cited_by for requirement in found)
    uncited = sum(not requirement.cited_by and not requirement.exception for requirement in found)
    print(
        f"RFC {number.group(1)}: {len(found)} requirements, {len(found) - uncited - excepted} cited, {uncited} not"
        + (f", {excepted} do not apply" if excepted else "")
    )
    return 1 if arguments.limit is not None and uncited > arguments.limit else 0


if __name__ == "__main__":
    sys.exit(main())
