"""Contracts and quantities as people write them: ``bulk:5MB/s:2MB:500ms``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from awesomeconnect.cli.options import room, traffic_class

if TYPE_CHECKING:
    from awesomeconnect.wire.messages import ClassContract

#: When none is named: ten messages of a sender of 100 a second.
DEFAULT_RESIDENCE_MS = 100
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?) ?([A-Za-z/]*)", re.ASCII)
_BYTES = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_RATES = {
    **_BYTES,
    **{f"{unit or 'B'}/s": size for unit, size in _BYTES.items()},
    **{"kbit/s": 125, "Mbit/s": 125_000, "Gbit/s": 125_000_000},
}
_TIMES_MS = {"ms": 1, "s": 1_000}


def rate(text: str) -> int:
    """Bytes per second, above 0."""
    return _above_0(text, _RATES, "a rate", "5MB/s, 200kB/s or 8Mbit/s")


def contract(text: str) -> ClassContract:
    """CLASS:RATE:BURST[:RESIDENCE]."""
    from awesomeconnect.wire.messages import ClassContract

    parts = text.split(":")
    if len(parts) not in (3, 4):
        raise click.BadParameter(f"{text!r}: write CLASS:RATE:BURST[:RESIDENCE], for example bulk:5MB/s:2MB:500ms")
    residence_ms = DEFAULT_RESIDENCE_MS
    if len(parts) == 4:
        residence_ms = _quantity(parts[3], _TIMES_MS, "a time", "500ms, 2s or 0ms")
    burst = _above_0(parts[2], _BYTES, "a size", "2MB, 64KiB or 1500")
    return ClassContract(traffic_class(parts[0]), rate(parts[1]), burst, residence_ms)


def room_contract(text: str) -> tuple[str, ClassContract]:
    """ROOM=CLASS:RATE:BURST[:RESIDENCE]."""
    name, equals, rest = text.rpartition("=")
    if not equals:
        raise click.BadParameter(f"{text!r}: write ROOM=CLASS:RATE:BURST[:RESIDENCE]")
    return room(name), contract(rest)


def by_room(pairs: Iterable[tuple[str, ClassContract]]) -> dict[str, tuple[ClassContract, ...]]:
    """The contracts of each room."""
    found: dict[str, tuple[ClassContract, ...]] = {}
    for name, one in pairs:
        found[name] = (*found.get(name, ()), one)
    return found


def _above_0(text: str, units: dict[str, int], what: str, examples: str) -> int:
    value = _quantity(text, units, what, examples)
    if not value:
        raise click.BadParameter(f"{text!r}: {what} of 0 would let nothing pass; leave the class out instead")
    return value


def _quantity(text: str, units: dict[str, int], what: str, examples: str) -> int:
    match = _QUANTITY.fullmatch(text)
    if match is None or match[2] not in units:
        raise click.BadParameter(f"{text!r} is not {what}; write for example {examples}")
    return round(float(match[1]) * units[match[2]])
