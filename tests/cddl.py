"""A validator for the part of CDDL (RFC 8610) that ``protocol-spec/messages.cddl`` uses.

pycddl 0.6 accepts anything for a choice of many arrays, ignores the bounds of an array of arrays, and refuses
maps whose keys have a ``.size``; so the tests judge with this one, and with pycddl where it can.

The grammar: ``name = type``, choices ``a / b``, ranges ``1..2``, ``.size``, arrays of fixed members or of one
repeated member (``*``, ``n*m``), maps with one repeated entry, parentheses around types, and comments.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeAlias

Check: TypeAlias = Callable[[object], bool]

MAX_UINT = (1 << 64) - 1

_TOKEN = re.compile(r"\d+\*\d+|\*|\.\.|\.size|=>|[\[\]{}(),/:=]|[a-z][a-z0-9-]*|\d+|\S")


def _integer(low: int, high: int) -> Check:
    return lambda value: type(value) is int and low <= value <= high


_PRELUDE: dict[str, Check] = {
    "uint": _integer(0, MAX_UINT),
    "int": _integer(-MAX_UINT - 1, MAX_UINT),
    "bstr": lambda value: type(value) is bytes,
    "tstr": lambda value: type(value) is str,
    "bool": lambda value: type(value) is bool,
    "null": lambda value: value is None,
}


class Schema:
    """The rules of a CDDL text; ``accepts(rule, value)`` judges a decoded value."""

    def __init__(self, source: str) -> None:
        self._tokens: list[str] = _TOKEN.findall(re.sub(r";.*", "", source))
        self._rules: dict[str, Check] = {}
        while self._tokens:
            name = self._take()
            assert name not in self._rules, f"{name} is defined twice"
            self._expect("=")
            self._rules[name] = self._type()

    def accepts(self, rule: str, value: object) -> bool:
        return (self._rules.get(rule) or _PRELUDE[rule])(value)

    def _take(self) -> str:
        return self._tokens.pop(0)

    def _expect(self, token: str) -> None:
        assert (taken := self._take()) == token, f"{taken} where {token} is due"

    def _skip(self, token: str) -> bool:
        """Whether the next token was this one, which is then gone."""
        found = self._tokens[:1] == [token]
        if found:
            self._take()
        return found

    def _type(self) -> Check:
        choices = [self._controlled()]
        while self._skip("/"):
            choices.append(self._controlled())
        return choices[0] if len(choices) == 1 else lambda value: any(check(value) for check in choices)

    def _controlled(self) -> Check:
        check = self._single()
        if not self._skip(".size"):
            return check
        size = self._single()
        return lambda value: (
            check(value)
            and size(
                len(value.encode() if isinstance(value, str) else value)  # type: ignore[arg-type]
            )
        )

    def _single(self) -> Check:
        first = self._take()
        if first.isdigit():
            return _integer(int(first), int(self._take() if self._skip("..") else first))
        if first == "(":
            check = self._type()
            self._expect(")")
            return check
        if first == "[":
            return self._array()
        if first == "{":
            return self._map()
        assert first[0].isalpha(), f"{first} where a type is due"
        return lambda value: self.accepts(first, value)

    def _occurrence(self) -> range | None:
        """How often the next member may come; None when nothing is said."""
        if "*" not in self._tokens[0]:
            return None
        low, high = self._take().split("*")
        return range(int(low or 0), int(high or MAX_UINT) + 1)

    def _array(self) -> Check:
        if (times := self._occurrence()) is not None:
            item = self._type()
            self._expect("]")
            return lambda value: type(value) is list and len(value) in times and all(map(item, value))
        members: list[Check] = []
        while not members or self._skip(","):
            if self._tokens[1] == ":":
                del self._tokens[:2]  # a member's name means nothing in an array
            members.append(self._type())
        self._expect("]")
        return lambda value: (
            type(value) is list
            and len(value) == len(members)
            and all(check(item) for check, item in zip(members, value, strict=True))
        )

    def _map(self) -> Check:
        times = self._occurrence()
        assert times is not None, "only maps with one repeated entry"
        key = self._controlled()
        self._expect("=>")
        item = self._type()
        self._expect("}")
        return lambda value: (
            type(value) is dict and len(value) in times and all(map(key, value)) and all(map(item, value.values()))
        )
