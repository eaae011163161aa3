"""``bounds``: what a contract promises, before anybody depends on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from awesomeconnect.cli.exits import ExitCode, Failure, one_line
from awesomeconnect.cli.options import json_option
from awesomeconnect.cli.text import json_line
from awesomeconnect.errors import ContractError

if TYPE_CHECKING:
    from awesomeconnect.shaping.bounds import Bound, OverCommitted

_COLUMNS = "{:13}  {:>12}  {:>12}  {:>12}  {:>14}"


@click.command()
@click.argument("contract", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@json_option
def bounds(contract: Path, as_json: bool) -> None:
    """Print how long a message of each class waits in the relay at most, for the senders and link of CONTRACT.

    The bound is the sum of queueing behind other messages, of one record that is sealed already, and of one
    processing turn of the relay. It holds for messages within their contracts, and does not cover the path.
    Classes that may send more than the link carries have none: exit code 1.

    \b
    CONTRACT is a TOML file:
      link_bytes_per_s = 1_250_000     what the receiver's link carries
      [[flows]]                        one for each kind of sender
      class = "urgent"                 bulk, data, interactive, urgent, or 0 to 7
      count = 50                       how many there are; 1 if left out
      rate_bytes_per_s = 2_000         committed information rate of each
      burst_bytes = 420                committed burst size of each
      min_bytes = 210                  its shortest message, as a frame
      max_bytes = 210                  its longest message, as a frame

    \b
    Above the first [[flows]] it may have (defaults in brackets):
      fragment_bytes [17408], record_bytes [fragment_bytes + message_overhead_bytes], turn_ms [15],
      stall_ms [2000]: what a relay forgives after a stall lengthens each burst by the rate times this,
      message_overhead_bytes [64], fragment_overhead_bytes [29]

    \b
    Examples:
      awesomeconnect bounds votes.toml
      awesomeconnect bounds votes.toml --json | jq 'select(.class == 5).bound_ms'
    """
    from awesomeconnect.shaping.bounds import LinkContract, OverCommitted, delay_bounds

    try:
        found = delay_bounds(LinkContract.parse(contract.read_text()))
    except (ContractError, UnicodeDecodeError) as error:
        raise Failure(f"{contract}: {one_line(error)}", ExitCode.USAGE) from None
    if not as_json:
        click.echo(_COLUMNS.format("class", "queueing ms", "record ms", "turn ms", "bound ms"))
    for bound in found.values():
        click.echo(_object(bound) if as_json else _row(bound))
    if excess := [str(bound) for bound in found.values() if isinstance(bound, OverCommitted)]:
        raise Failure(f"{contract}: {'; '.join(excess)}")


def _row(bound: Bound | OverCommitted) -> str:
    from awesomeconnect.shaping.bounds import Bound

    name = _label(bound.traffic_class)
    if not isinstance(bound, Bound):
        return _COLUMNS.format(name, "", "", "", "over-committed")
    parts = (bound.queueing_ns, bound.record_ns, bound.turn_ns, bound.total_ns)
    return _COLUMNS.format(name, *(f"{_ms(part_ns):.3f}" for part_ns in parts))


def _object(bound: Bound | OverCommitted) -> str:
    from awesomeconnect.shaping.bounds import Bound

    if not isinstance(bound, Bound):
        return json_line(
            **{"class": bound.traffic_class},
            over_committed=True,
            rate_bytes_per_s=bound.rate_bytes_per_s,
            link_bytes_per_s=bound.link_bytes_per_s,
        )
    return json_line(
        **{"class": bound.traffic_class},
        over_committed=False,
        queueing_ms=_ms(bound.queueing_ns),
        record_ms=_ms(bound.record_ns),
        turn_ms=_ms(bound.turn_ns),
        bound_ms=_ms(bound.total_ns),
    )


def _label(traffic_class: int) -> str:
    from awesomeconnect.wire.parts import TrafficClass

    names = {int(member): f" {member.name.lower()}" for member in TrafficClass}
    return f"{traffic_class}{names.get(traffic_class, '')}"


def _ms(time_ns: int) -> float:
    return time_ns / 1_000_000
