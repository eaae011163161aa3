from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from awesomeconnect.wire.rooms import owner_of, room_name_problem
from tests.strategies import keys, room_names

KEY = "0123456789abcdef" * 4

VALID = ["a", "lobby", "Lobby", "with space", "a@b", "x" * 128, "é" * 64, "水", f"@{KEY}/room", f"@{KEY}/a/b"]

INVALID = {
    "": "1 to 128 bytes",
    "x" * 129: "1 to 128 bytes",
    "é" * 65: "1 to 128 bytes",
    "\ud800": "UTF-8",
    "a\x00": "control",
    "a\nb": "control",
    "\x7f": "control",
    "\x85": "control",
    f"@{KEY}/a\n": "control",
    "@": "starts with @",
    "@lobby": "starts with @",
    f"@{KEY}": "starts with @",
    f"@{KEY}/": "starts with @",
    f"@{KEY.upper()}/room": "starts with @",
    f"@{KEY[1:]}/room": "starts with @",
    f"@{KEY}0/room": "starts with @",
}


@pytest.mark.parametrize("name", VALID)
def test_valid(name: str) -> None:
    assert room_name_problem(name) is None


@pytest.mark.parametrize(("name", "problem"), INVALID.items())
def test_invalid(name: str, problem: str) -> None:
    assert problem in str(room_name_problem(name))


@given(st.characters(categories=["Cc"]))
def test_every_control_character_is_refused(character: str) -> None:
    assert "control" in str(room_name_problem(f"a{character}b"))


@given(st.characters(exclude_categories=["Cc", "Cs"]))
def test_every_other_character_is_allowed(character: str) -> None:
    assert unicodedata.category(character) != "Cc"
    assert room_name_problem(f"a{character}b") is None


@given(keys)
def test_owner(key: bytes) -> None:
    assert owner_of(f"@{key.hex()}/room") == key


@given(room_names)
def test_only_names_that_start_with_at_have_owners(name: str) -> None:
    assert (owner_of(name) is not None) == name.startswith("@")


@pytest.mark.parametrize("name", ["lobby", "@", f"@{KEY}", f"a@{KEY}/room"])
def test_no_owner(name: str) -> None:
    assert owner_of(name) is None
