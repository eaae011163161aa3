"""How long can a message wait in a relay at most? Delay bounds of the traffic classes of one receiver.

One link of C bytes/s takes whole units in strict priority, first in first out inside a class. A unit is a frame,
or a fragment of a long one. The flows of a class are token buckets (r, b). For class p, with the higher classes H,
the flows of p itself S, and the longest unit of a lower class L:

    queueing(p) = (sum of b over H and S - u + L) / (C - sum of r over H)  +  u / C

while sum of r over H and S <= C (Specht and Samii 2016; regulators that keep the order of a group add nothing to
it, Le Boudec 2018). u is the shortest unit that can end a message of S: once its last unit has begun, nothing
overtakes a message. The longest message counts with its burst, however long it is.

Two more terms have the same divisor, since what arrives of H while they last comes first too:

    record(p) = one record / (C - sum of r over H)         sealed already: nothing overtakes it
    turn(p)   = one turn x C / (C - sum of r over H)       until the relay comes to look at the queues

The bound covers queueing in the relay, for messages within their contracts. It does not cover the path, nor the
time for which a message that came too early is held, nor a receiver that is slower than the link.
It is computed exactly and rounded up to the next nanosecond. The specification is protocol-spec/shaping.md.

This module is pure: a contract comes as text (TOML), bounds go out as values.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from math import ceil
from typing import Any

from attrs import Attribute, Factory, field, fields_dict, frozen

from awesomeconnect.errors import ContractError
from awesomeconnect.shaping.ats import NS_PER_MS, NS_PER_S, STALL_NS
from awesomeconnect.wire.fragments import CHUNK_BYTES, FRAGMENT_HEAD_BYTES
from awesomeconnect.wire.framing import FRAGMENT_ABOVE_BYTES
from awesomeconnect.wire.parts import TrafficClass
from awesomeconnect.wire.records import OVERHEAD_BYTES

#: A DELIVER is at most this much longer than the PUBLISH that it carries on: the mode, and the sender's key.
_SENDER_BYTES = 35
#: Added to each unit: while a receiver is paced, each is a record of its own.
_UNIT_BYTES = FRAGMENT_HEAD_BYTES + OVERHEAD_BYTES
#: Names that a contract file may use for classes.
_CLASS_NUMBERS = {traffic_class.name.lower(): int(traffic_class) for traffic_class in TrafficClass}


def _at_least(least: int) -> Callable[[Any, Attribute[Any], Any], None]:
    def check(_owner: Any, attribute: Attribute[Any], value: Any) -> None:
        if type(value) is not int or value < least:
            raise ContractError(f"{attribute.name} must be a whole number from {least}, not {value!r}")

    return check


@frozen
class Flow:
    """Equal senders of one class, each within its token bucket.

    Attributes:
        rate_bytes_per_s, burst_bytes: the contract: CIR and CBS.
        min_bytes, max_bytes: shortest and longest message, its frame with the length prefix.
        count: how many senders.
    """

    traffic_class: int = field()
    rate_bytes_per_s: int = field(validator=_at_least(1))
    burst_bytes: int = field(validator=_at_least(1))
    min_bytes: int = field(validator=_at_least(1))
    max_bytes: int = field(validator=_at_least(1))
    count: int = field(default=1, validator=_at_least(1))

    @traffic_class.validator
    def _check_class(self, _attribute: Attribute[Any], value: Any) -> None:
        if type(value) is not int or value not in range(8):
            raise ContractError(f"class must be {', '.join(_CLASS_NUMBERS)} or a number from 0 to 7, not {value!r}")

    def __attrs_post_init__(self) -> None:
        if not self.min_bytes <= self.max_bytes <= self.burst_bytes:
            raise ContractError(
                "min_bytes, max_bytes and burst_bytes must not fall: a message longer than the burst is refused "
                f"(min_bytes {self.min_bytes}, max_bytes {self.max_bytes}, burst_bytes {self.burst_bytes})"
            )


@frozen
class LinkContract:
    """What a receiver's link carries, and what may be sent to it.

    Attributes:
        link_bytes_per_s: what the link takes off the relay, as bytes of the TCP stream.
        flows: everything that may be queued for this receiver.
        fragment_bytes: the longest unit, after which a more urgent class gets its turn.
        record_bytes: what may be sealed ahead of a message: by default one unit.
        turn_ns: the longest processing turn of the relay.
        stall_ns: what is forgiven after a stall (see `ats.STALL_NS`); bursts are longer by the rate times this.
        message_overhead_bytes: added to each message by the relay.
        fragment_overhead_bytes: added to each fragment.
    """

    link_bytes_per_s: int = field(validator=_at_least(1))
    flows: tuple[Flow, ...]
    fragment_bytes: int = field(default=FRAGMENT_ABOVE_BYTES, validator=_at_least(1), kw_only=True)
    message_overhead_bytes: int = field(default=_SENDER_BYTES + _UNIT_BYTES, validator=_at_least(0), kw_only=True)
    fragment_overhead_bytes: int = field(default=_UNIT_BYTES, validator=_at_least(0), kw_only=True)
    record_bytes: int = field(
        default=Factory(lambda self: self.fragment_bytes + self.message_overhead_bytes, takes_self=True),
        validator=_at_least(0),
        kw_only=True,
    )
    turn_ns: int = field(default=15 * NS_PER_MS, validator=_at_least(0), kw_only=True)
    stall_ns: int = field(default=STALL_NS, validator=_at_least(0), kw_only=True)

    @classmethod
    def parse(cls, text: str) -> LinkContract:
        """Read a contract file, which is TOML; see `from_values`.

        Raises:
            ContractError: what is wrong, and in which flow.
        """
        try:
            values = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ContractError(f"not TOML: {error}") from None
        return cls.from_values(values)

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> LinkContract:
        """Take a contract from what a file says.

        Args:
            values: the names of the attributes, but times as ``turn_ms`` and ``stall_ms``, and ``flows`` as a list
                of such mappings, in which ``class`` is a name or a number.

        Raises:
            ContractError: what is wrong, and in which flow.
        """
        values = dict(values)
        tables = values.pop("flows", None)
        if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
            raise ContractError("no flows: write a [[flows]] table for each")
        flows = tuple(_flow(number, table) for number, table in enumerate(tables, 1))
        _check_names(values, (_in_file(name) for name in fields_dict(cls) if name != "flows"), ["link_bytes_per_s"])
        for name in ("turn", "stall"):
            if f"{name}_ms" in values:
                values[f"{name}_ns"] = _milliseconds(f"{name}_ms", values.pop(f"{name}_ms"))
        return cls(flows=flows, **values)


@frozen
class Bound:
    """The longest delay of a class, in nanoseconds, by cause."""

    traffic_class: int
    queueing_ns: int
    record_ns: int
    turn_ns: int

    @property
    def total_ns(self) -> int:
        """The bound."""
        return self.queueing_ns + self.record_ns + self.turn_ns


@frozen
class OverCommitted:
    """A class without a bound: it and the more urgent ones may send more than the link carries."""

    traffic_class: int
    rate_bytes_per_s: int
    link_bytes_per_s: int

    def __str__(self) -> str:
        excess = self.rate_bytes_per_s - self.link_bytes_per_s
        return (
            f"class {self.traffic_class} is over-committed: classes {self.traffic_class} to 7 may send "
            f"{self.rate_bytes_per_s:,} bytes/s, overhead included, and the link carries "
            f"{self.link_bytes_per_s:,}: {excess:,} too many"
        )


def delay_bounds(contract: LinkContract) -> dict[int, Bound | OverCommitted]:
    """The bound of every class that has flows, the most urgent first."""
    link = contract.link_bytes_per_s
    classes = sorted({flow.traffic_class for flow in contract.flows}, reverse=True)
    found: dict[int, Bound | OverCommitted] = {}
    burst = higher_rate = Fraction(0)
    for traffic_class in classes:
        same = [flow for flow in contract.flows if flow.traffic_class == traffic_class]
        burst += sum(flow.count * _wire_burst(flow, contract) for flow in same)
        rate = higher_rate + sum(flow.count * _wire_rate(flow, contract) for flow in same)
        if rate > link:
            found[traffic_class] = OverCommitted(traffic_class, ceil(rate), link)
        else:
            left = link - higher_rate
            last = min(_shortest_last_unit(flow, contract) for flow in same)
            lower = (flow for flow in contract.flows if flow.traffic_class < traffic_class)
            blocking = max((_longest_unit(flow, contract) for flow in lower), default=0)
            found[traffic_class] = Bound(
                traffic_class,
                queueing_ns=ceil(NS_PER_S * ((burst - last + blocking) / left + Fraction(last, link))),
                record_ns=ceil(NS_PER_S * contract.record_bytes / left),
                turn_ns=ceil(contract.turn_ns * link / left),
            )
        higher_rate = rate
    return found


def _wire_rate(flow: Flow, contract: LinkContract) -> Fraction:
    """The flow's rate on the link: a message of l bytes leaves in at most 1 + l / chunk units."""
    overhead = Fraction(contract.message_overhead_bytes, flow.min_bytes)
    if flow.max_bytes > contract.fragment_bytes:
        overhead += Fraction(contract.fragment_overhead_bytes, min(contract.fragment_bytes, CHUNK_BYTES))
    return flow.rate_bytes_per_s * (1 + overhead)


def _wire_burst(flow: Flow, contract: LinkContract) -> Fraction:
    per_byte = _wire_rate(flow, contract) / flow.rate_bytes_per_s
    return per_byte * (flow.burst_bytes + Fraction(flow.rate_bytes_per_s * contract.stall_ns, NS_PER_S))


def _shortest_last_unit(flow: Flow, contract: LinkContract) -> int:
    """Of a message that is cut, the last fragment may have one byte."""
    return flow.min_bytes if flow.max_bytes <= contract.fragment_bytes else 1


def _longest_unit(flow: Flow, contract: LinkContract) -> int:
    return min(flow.max_bytes, contract.fragment_bytes) + contract.message_overhead_bytes


def _in_file(name: str) -> str:
    """A contract file counts milliseconds."""
    return name.removesuffix("_ns") + "_ms" if name.endswith("_ns") else name


def _flow(number: int, table: dict[str, Any]) -> Flow:
    names = ["class" if name == "traffic_class" else name for name in fields_dict(Flow)]
    try:
        _check_names(table, names, [name for name in names if name != "count"])
        values = dict(table)
        named = values.pop("class")
        is_name = isinstance(named, str) and named in _CLASS_NUMBERS
        return Flow(_CLASS_NUMBERS[named] if is_name else named, **values)
    except ContractError as error:
        raise ContractError(f"flow {number}: {error}") from None


def _check_names(values: dict[str, Any], allowed: Iterable[str], needed: Iterable[str]) -> None:
    allowed = list(allowed)
    if unknown := [name for name in values if name not in allowed]:
        raise ContractError(f"unknown name {unknown[0]!r}; known are {', '.join(allowed)}")
    if missing := [name for name in needed if name not in values]:
        raise ContractError(f"{missing[0]} is missing")


def _milliseconds(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 86_400_000:
        raise ContractError(f"{name} must be a number of milliseconds from 0, not {value!r}")
    return round(value * NS_PER_MS)
