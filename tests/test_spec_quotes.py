"""The specification, the code that quotes it, the error table and the CDDL agree.

Code quotes the specification at the line that obeys it::

    # SPEC frames.md: A receiver MUST answer a frame of length 0 with
    #   CLOSE protocol_error.

Whitespace, emphasis and backticks do not count; every other character does. ``python -m tests.test_spec_quotes``
prints the MUST requirements that no code quotes. That list is information, not a failure.
"""

from __future__ import annotations

import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from awesomeconnect.errors import ErrorCode

ROOT = Path(__file__).resolve().parent.parent
SPEC = ROOT / "protocol-spec"
CODE = ROOT / "awesomeconnect"
FILES = (
    *("README.md", "handshake.md", "records.md", "frames.md", "cbor.md", "messages.md", "sessions.md"),
    *(
        "rooms.md",
        "flow-control.md",
        "shaping.md",
        "errors.md",
        "limits.md",
        "requests.md",
        "reliable.md",
        "sealed.md",
    ),
    "CHANGELOG.md",
)
WITHOUT_REQUIREMENTS = ("README.md", "CHANGELOG.md")

_QUOTE = re.compile(r"# SPEC ([\w-]+\.md): (\S.*)")
_KEY_WORD = re.compile(r"\b(MUST|SHOULD|MAY)\b")
_CLASSES = re.compile(r"own|[0-7]")


class Quote(NamedTuple):
    """A quote in a source file: where it stands, and what it says of which file of the specification."""

    where: str
    file: str
    text: str


def normalised(text: str) -> str:
    return " ".join(re.sub(r"[`*]", "", text).split())


def quotes_in(source: Path) -> Iterator[Quote]:
    """The quotes in a Python file; a comment that only resembles one is a quote of the file ``?``."""
    with tokenize.open(source) as file:
        comments = [
            (token.start[0], token.string)
            for token in tokenize.generate_tokens(file.readline)
            if token.type == tokenize.COMMENT
        ]
    by_line = dict(comments)
    for line, comment in comments:
        if not re.match(r"#\s*SPEC\b", comment):
            continue
        where = f"{source.name}:{line}"
        match = _QUOTE.fullmatch(comment.rstrip())
        if match is None:
            yield Quote(where, "?", comment)
            continue
        parts = [match[2]]
        while by_line.get(line + 1, "").startswith("#   "):
            line += 1
            parts.append(by_line[line][1:])
        yield Quote(where, match[1], normalised(" ".join(parts)))


def all_quotes(code: Path = CODE) -> list[Quote]:
    return [quote for source in sorted(code.rglob("*.py")) for quote in quotes_in(source)]


def wrong_quotes(quotes: list[Quote], spec: Path = SPEC) -> list[str]:
    """What is wrong with each quote that does not stand in its file of the specification."""
    wrong = []
    for quote in quotes:
        path = spec / quote.file
        if quote.file == "?":
            wrong.append(f"{quote.where}: not of the form `# SPEC file.md: sentence`: {quote.text}")
        elif len(quote.text.split()) < 4:
            wrong.append(f"{quote.where}: too short to be a sentence: {quote.text}")
        elif not path.is_file():
            wrong.append(f"{quote.where}: there is no {quote.file}")
        elif quote.text not in normalised(path.read_text()):
            wrong.append(f"{quote.where}: not in {quote.file}: {quote.text}")
    return wrong


def without_code_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def requirements(text: str) -> list[str]:
    """The bullets under headings that begin with "Requirements"."""
    found = []
    inside = False
    for line in without_code_blocks(text).splitlines():
        if line.startswith("#"):
            inside = line.lstrip("# ").startswith("Requirements")
        elif inside and line.strip():
            found.append(line)
    return found


def headings(text: str) -> list[str]:
    return re.findall(r"^#+ (.+)$", without_code_blocks(text), flags=re.MULTILINE)


def anchor(heading: str) -> str:
    """The anchor that GitHub and others give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def rows(text: str, heading: str) -> list[list[str]]:
    """The cells of the tables in the section of this heading whose first cell is a number."""
    section = re.search(rf"^#+ {re.escape(heading)}$(.*?)(?=^#|\Z)", text, flags=re.MULTILINE | re.DOTALL)
    assert section is not None, f"no heading {heading!r}"
    table = [
        [normalised(cell) for cell in line.strip("|").split("|")]
        for line in section[1].splitlines()
        if line.startswith("|")
    ]
    return [cells for cells in table if cells[0].isdecimal()]


def kinds_in_cddl() -> dict[int, str]:
    """Kind -> name as messages.md writes it, of all messages that messages.cddl lets a client or relay send."""
    cddl = re.sub(r";.*", "", (SPEC / "messages.cddl").read_text())
    rules = {
        name: body.strip()
        for name, body in re.findall(r"^([\w-]+)\s*=(.*?)(?=^[\w-]+\s*=|\Z)", cddl, flags=re.MULTILINE | re.DOTALL)
    }

    def kinds(name: str) -> set[int]:
        body = rules[name]
        if body.startswith("["):
            return {int(re.match(r"\[(\d+)", body)[1])}  # type: ignore[index]
        return set().union(*(kinds(part.strip()) for part in body.split("/")))

    names = {part.strip() for side in ("client", "relay") for part in rules[f"{side}-message"].split("/")}
    result = {}
    for name in sorted(names):
        (kind,) = kinds(name)
        result[kind] = name.replace("-", "_").upper()
    assert len(result) == len(names), "two messages share a kind"
    return result


def unquoted_musts() -> list[str]:
    """``file: requirement`` for every MUST that no code quotes, whole or in part."""
    quoted: dict[str, list[str]] = {}
    for quote in all_quotes():
        quoted.setdefault(quote.file, []).append(quote.text)
    return [
        f"{file}: {sentence}"
        for file in FILES
        for sentence in (normalised(line[2:]) for line in requirements((SPEC / file).read_text()))
        if re.search(r"\bMUST\b", sentence)
        and not any(text in sentence or sentence in text for text in quoted.get(file, ()))
    ]


# ---- the specification itself ------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_file_is_there_and_says_something(name: str) -> None:
    text = (SPEC / name).read_text()
    assert len(text.split()) > 50
    assert text.startswith("# ")
    assert name in WITHOUT_REQUIREMENTS or requirements(text)


@pytest.mark.parametrize("name", FILES)
def test_requirement_is_one_sentence_with_a_key_word_in_one_line(name: str) -> None:
    seen = set()
    for line in requirements((SPEC / name).read_text()):
        assert line.startswith("- "), line
        assert line.endswith("."), line
        assert not re.search(r"[.!?] [A-Z]", line), line
        assert _KEY_WORD.search(line), line
        assert line not in seen, line
        seen.add(line)


@pytest.mark.parametrize("name", FILES)
def test_links_lead_somewhere(name: str) -> None:
    text = (SPEC / name).read_text()
    for target in re.findall(r"\]\(([^)]+)\)", text):
        file, _, fragment = target.partition("#")
        linked = SPEC / file
        assert linked.is_file(), target
        if fragment:
            assert fragment in map(anchor, headings(linked.read_text())), target


def test_contents_name_every_section() -> None:
    readme = (SPEC / "README.md").read_text()
    for name in FILES:
        if name in WITHOUT_REQUIREMENTS:
            continue
        assert f"({name})" in readme
        for heading in re.findall(r"^## (.+)$", without_code_blocks((SPEC / name).read_text()), re.MULTILINE):
            if not heading.startswith("Requirements"):
                assert f"[{heading}]({name}#{anchor(heading)})" in readme


# ---- the specification and the CDDL ------------------------------------------------------------------


def test_every_message_has_its_heading() -> None:
    kinds = kinds_in_cddl()
    assert len(kinds) == 26
    found = [heading for heading in headings((SPEC / "messages.md").read_text()) if "(kind " in heading]
    assert sorted(found) == sorted(f"{name} (kind {kind})" for kind, name in kinds.items())


def test_cddl_excerpts_stand_in_the_cddl() -> None:
    cddl = [" ".join(line.split()) for line in (SPEC / "messages.cddl").read_text().splitlines()]
    excerpts = re.findall(r"^```cddl\n(.*?)^```$", (SPEC / "messages.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(excerpts) >= 26
    for line in "".join(excerpts).splitlines():
        assert " ".join(line.split()) in cddl


def test_class_table_covers_every_kind() -> None:
    table = rows((SPEC / "frames.md").read_text(), "Classes")
    table = [cells for cells in table if len(cells) == 4]
    assert {int(kind): name for kind, name, _, _ in table} == kinds_in_cddl()
    assert len(table) == len(kinds_in_cddl())
    for _, name, traffic_class, barrier in table:
        assert _CLASSES.fullmatch(traffic_class), name
        assert barrier in ("no", "yes", "if flush"), name


# ---- the specification and the code ------------------------------------------------------------------


def test_error_table_is_the_enum() -> None:
    table = rows((SPEC / "errors.md").read_text(), "Codes")
    described = [(int(code), name, retry) for code, name, _, retry, _ in table]
    assert described == [(code, code.label, "yes" if code.may_retry else "no") for code in ErrorCode]


def test_quotes_stand_in_the_specification() -> None:
    assert wrong_quotes(all_quotes()) == []


# ---- the checker itself ------------------------------------------------------------------------------


@pytest.fixture
def example(tmp_path: Path) -> Path:
    (tmp_path / "frames.md").write_text("- A sender **MUST NOT** send `a  b` twice.\n- A relay MAY wait.\n")
    return tmp_path


@pytest.mark.parametrize(
    "comment",
    [
        "# SPEC frames.md: A sender MUST NOT send a b twice.",
        "# SPEC frames.md: A *sender* MUST NOT\n#   send `a b`\n#   twice.\n# Something else.",
        "x = 1  # SPEC frames.md: A relay MAY wait.",
    ],
)
def test_right_quote_passes(example: Path, comment: str) -> None:
    (example / "code.py").write_text(f"{comment}\n")
    quotes = all_quotes(example)
    assert len(quotes) == 1
    assert wrong_quotes(quotes, example) == []


@pytest.mark.parametrize(
    ("comment", "complaint"),
    [
        ("# SPEC frames.md: A sender MUST send a b twice.", "code.py:1: not in frames.md: A sender MUST send"),
        ("# SPEC frames.md: A sender MUST NOT\n#   send it twice.", "send it twice"),
        ("# SPEC frames.md: a relay MAY wait.", "not in frames.md"),
        ("# SPEC missing.md: A relay MAY wait.", "there is no missing.md"),
        ("# SPEC frames.md: MAY wait.", "too short"),
        ("# SPEC frames.md:", "not of the form"),
        ("# SPEC: A relay MAY wait.", "not of the form"),
        ("#SPEC frames.md: A relay MAY wait.", "not of the form"),
    ],
)
def test_wrong_quote_is_caught(example: Path, comment: str, complaint: str) -> None:
    (example / "code.py").write_text(f"{comment}\n")
    (wrong,) = wrong_quotes(all_quotes(example), example)
    assert complaint in wrong


def test_quote_in_a_string_is_none(example: Path) -> None:
    (example / "code.py").write_text('"""\n# SPEC frames.md: Nothing of the kind.\n"""\n')
    assert all_quotes(example) == []


if __name__ == "__main__":
    unquoted = unquoted_musts()
    print(*unquoted, sep="\n")
    print(f"{len(unquoted)} MUST requirements are not quoted by code.")
