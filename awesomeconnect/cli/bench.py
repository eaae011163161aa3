"""``bench``: put a relay under load and say what it costs."""

from __future__ import annotations

import os
import resource
import secrets
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from awesomeconnect.cli.exits import ExitCode, Failure, one_line
from awesomeconnect.cli.link import tell
from awesomeconnect.cli.options import class_option, relay_option, timeout_option

if TYPE_CHECKING:
    from awesomeconnect.bench.load import Limits
    from awesomeconnect.bench.processes import Generator
    from awesomeconnect.bench.relay_client import RelayClient
    from awesomeconnect.bench.results import Result
    from awesomeconnect.bench.workloads import Workload

DURATION_S = 3.0
#: Where --msgs says when it is over.
LONGEST_S = 24 * 3600.0
NAMES = ("fanout", "room", "pair", "rtt", "connect", "idle")
#: File descriptors of the generator that are not its measured connections: epoll, pipes, warm-up.
RESERVED_FILES = 128
#: A relay may cut what is longer into pieces of its choice, where the path to a member is slow.
PIECES_ABOVE_BYTES = 2_048
#: What members that publish too may have under way before the relay asks them to pause: half of its mark.
ROOM_BYTES = 512 << 10
#: The same for a default window: three quarters.
WINDOW_BYTES = 768 << 10
#: What the frame of a message has beside its payload, at most, and what fits a record.
HEAD_BYTES = 64
RECORD_BYTES = 65_519
#: Errors of the generator that are not about reaching the relay.
_EXIT_CODES = {
    "": ExitCode.FAILURE,
    "LoadError": ExitCode.FAILURE,
    "Lost": ExitCode.LOST,
    "Refused": ExitCode.FAILURE,
    "TooFast": ExitCode.FAILURE,
}


class Wanted(NamedTuple):
    """The options that shape a workload; None where its own value stands."""

    clients: int | None
    size: int | None
    rate: float | None
    window: int | None
    pack: int | None


@click.command()
@click.argument("names", metavar="[WORKLOAD]...", nargs=-1, type=click.Choice(NAMES))
@relay_option("A running relay.  [default: one that this command starts, afresh for each workload]")
@click.option("--pid", type=click.IntRange(min=1), help="Process of --relay, if here: for its CPU time and memory.")
@click.option(
    "--clients",
    type=click.IntRange(min=1),
    metavar="N",
    help="Members of fanout [100] and room [20], pairs of rtt [1], connections at a time of connect [4] and in all "
    "of idle [1000].",
)
@click.option("--msgs", type=click.IntRange(min=1), metavar="N", help="End after N messages, or connections.")
@click.option(
    "--size", type=click.IntRange(min=1), metavar="BYTES", help="Payload of a message.  [default: 128; room: 200]"
)
@class_option
@click.option(
    "--duration",
    "seconds",
    type=click.FloatRange(min=0, min_open=True),
    metavar="S",
    help="Seconds of each workload.  [default: 3, or until --msgs are sent]",
)
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    metavar="N",
    help="Messages (rtt: questions, connect: connections) a second, whatever became of those before.  [default: as "
    "fast as --window allows]",
)
@click.option(
    "--window",
    type=click.IntRange(min=1),
    metavar="N",
    help="Messages sent and not yet received by all.  [default: fanout and room 256, pair 1024, rtt 1; fewer if "
    "they are long]",
)
@click.option(
    "--pack",
    type=click.IntRange(min=1),
    metavar="N",
    help="Messages in one record.  [default: fanout and room 8, pair 64 and then 1; 1 with --rate]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per workload.")
@click.option("--csv", "as_csv", is_flag=True, help="Print a line of column names and one per workload.")
@timeout_option
def bench(
    names: tuple[str, ...],
    relays: tuple[str, ...],
    pid: int | None,
    clients: int | None,
    msgs: int | None,
    size: int | None,
    traffic_class: int,
    seconds: float | None,
    rate: float | None,
    window: int | None,
    pack: int | None,
    as_json: bool,
    as_csv: bool,
    timeout_s: float,
) -> None:
    """Measure what a relay can do, and what it costs: all workloads, or those named.

    \b
    fanout    one node publishes to a room of many
    room      every member of a room publishes to all others
    pair      one node publishes to one other; with and without messages packed into records
    rtt       one node asks and another answers
    connect   connections are made, with their handshake, and dropped
    idle      connections say nothing: memory of each

    Without --rate, senders send as soon as fewer than --window messages are under way. With --rate latency is
    measured from when a message was due, also when it left late (pair, fanout, rtt, connect). The load comes from a
    process of its own; when that is what sets the pace, the result says so. Ctrl-C shows what was measured so far.

    \b
    Examples:
      awesomeconnect bench
      awesomeconnect bench fanout --clients 1000 --size 1024
      awesomeconnect bench rtt pair --rate 1000 --duration 10
      awesomeconnect bench idle --clients 10000
      awesomeconnect bench pair --relay ac://KEY@127.0.0.1:7420 --pid $(pgrep -f 'awesomeconnect serve') --json
      awesomeconnect bench --csv > today.csv
    """
    from awesomeconnect.cli.bench_report import Report

    if as_json and as_csv:
        raise click.UsageError("--json or --csv, not both")
    if len(relays) > 1:
        raise click.UsageError("one relay at a time: give one --relay")
    if clients is not None and names and set(names) == {"pair"}:
        raise click.UsageError("pair is always one node and one other; fanout and room have --clients")
    if pid is not None and not relays:
        raise click.UsageError("--pid is of a relay that runs already; name it with --relay")
    if pid is not None and not os.path.exists(f"/proc/{pid}"):
        raise click.UsageError(f"--pid {pid}: there is no such process here")
    wanted = Wanted(clients, size, rate, window, pack)
    workloads = [workload for name in names or NAMES for workload in _workloads(name, wanted)]
    _allow_files(max(workload.members + workload.publishers for workload in workloads))
    bench = Bench(relays[0] if relays else None, pid, traffic_class, timeout_s)
    with Report(as_json, as_csv) as report, bench.interruptible():
        if not relays:
            tell("the relay runs here, on 127.0.0.1 with a temporary key: one started afresh for each workload")
        for workload in workloads:
            if bench.is_interrupted:
                break
            limits = _limits(workload, seconds, msgs, rate)
            with report.progress(workload, limits) as progress:
                result = bench.measure(workload, limits, progress)
            if result is not None:
                report.add(result)
    if bench.is_interrupted:
        raise click.exceptions.Exit(ExitCode.INTERRUPTED)


class Bench:
    """Measurements of one relay, or of one started afresh for each.

    Attributes:
        is_interrupted: Ctrl-C was pressed: nothing more should be measured.
    """

    def __init__(self, relay: str | None, pid: int | None, traffic_class: int, timeout_s: float) -> None:
        self._relay = relay
        self._pid = pid
        self._class = traffic_class
        self._timeout_s = timeout_s
        self._generator: Generator | None = None
        self.is_interrupted = False

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Ctrl-C ends the measurement under way in good order; another ends the command, as SIGTERM does."""

        def interrupt(_number: int, _frame: FrameType | None) -> None:
            if self.is_interrupted:
                raise KeyboardInterrupt
            self.is_interrupted = True
            if self._generator is not None:
                self._generator.stop()

        def end(number: int, _frame: FrameType | None) -> None:
            sys.exit(128 + number)

        handlers = {signal.SIGINT: interrupt, signal.SIGTERM: end, signal.SIGHUP: end}
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def measure(
        self,
        workload: Workload,
        limits: Limits,
        progress: Callable[[int, float], None],
    ) -> Result | None:
        """One workload; None if it was interrupted before it had begun.

        Raises:
            Failure: it could not be measured.
        """
        import attrs

        from awesomeconnect.bench.generator import Job
        from awesomeconnect.bench.measure import measure
        from awesomeconnect.bench.processes import Failed, embedded_relay, generator

        with ExitStack() as stack:
            try:
                address, pid = self._relay, self._pid
                if address is None:
                    address, pid = stack.enter_context(embedded_relay())
                probe = stack.enter_context(self._probe(address))
                limit = probe.welcome.limits.get("payload_bytes", workload.payload_bytes)
                if workload.payload_bytes > limit:
                    raise Failure(
                        f"--size {workload.payload_bytes} is above this relay's limit; give at most {limit}"
                    )
                job = Job(
                    system="relay-opened" if self._is_opened(workload, probe) else "relay",
                    address=address,
                    workload=workload,
                    seconds=limits.seconds,
                    messages=limits.messages,
                    rate=limits.rate,
                    room=f"bench-{secrets.token_hex(4)}",
                    options={"traffic_class": self._class, "timeout_s": self._timeout_s},
                )
                with generator(job) as self._generator:
                    if self.is_interrupted:
                        return None
                    result = measure(self._generator, job, pid, progress)
                return attrs.evolve(result, interrupted=self.is_interrupted)
            except Failed as failed:
                if failed.error == "Stopped":
                    return None
                hint = self._contract_hint(workload, probe) if failed.error == "TooFast" else ""
                raise Failure(
                    f"{workload.name}: {failed}{hint}", _EXIT_CODES.get(failed.error, ExitCode.NO_CONNECTION)
                ) from None
            finally:
                self._generator = None

    @contextmanager
    def _probe(self, address: str) -> Iterator[RelayClient]:
        """A connection that shows whether the relay is there, and what it allows."""
        from awesomeconnect.bench.load import LoadError
        from awesomeconnect.bench.relay_client import RelayClient

        try:
            probe = RelayClient(address, None, self._class, self._timeout_s)
        except (OSError, LoadError) as error:
            raise Failure(
                f"cannot connect to {address}: {one_line(error)}; is the relay running there?",
                ExitCode.NO_CONNECTION,
            ) from None
        with probe.socket:
            probe.socket.close()
            yield probe

    def _is_opened(self, workload: Workload, probe: RelayClient) -> bool:
        """Whether the members must open all that they receive, since more than whole messages may come."""
        return (
            workload.payload_bytes > PIECES_ABOVE_BYTES
            or self._contract(probe) is not None
            or (not workload.publishers and workload.window * workload.payload_bytes > ROOM_BYTES)
        )

    def _contract(self, probe: RelayClient) -> Any:
        return next((one for one in probe.welcome.contracts if one.traffic_class == self._class), None)

    def _contract_hint(self, workload: Workload, probe: RelayClient) -> str:
        contract = self._contract(probe)
        if contract is None:
            return ""
        per_connection = contract.cir_bytes_per_s / (workload.payload_bytes + HEAD_BYTES)
        rate = per_connection * max(workload.publishers or workload.members, 1)
        return (
            f". Its contract for class {self._class} allows a connection {contract.cir_bytes_per_s:,} bytes/s in "
            f"bursts of {contract.cbs_bytes:,}: give --rate {rate:.3g} or less, or another --class"
        )


def _workloads(name: str, wanted: Wanted) -> Iterator[Workload]:
    """A workload as it is wanted; `pair` is two if nobody says how messages are packed."""
    import attrs

    from awesomeconnect.bench.workloads import WORKLOADS, Kind

    workload = WORKLOADS[name]
    if workload.kind in (Kind.CONNECT, Kind.IDLE):
        yield attrs.evolve(workload, members=wanted.clients or workload.members)
        return
    size = wanted.size or workload.payload_bytes
    members = workload.members if name == "pair" else wanted.clients or workload.members
    if name == "room" and members < 2:
        raise click.UsageError("a room of one hears nobody: give --clients 2 or more")
    packs = [wanted.pack or 1]
    if wanted.pack is None:
        pack = min(workload.pack, max(RECORD_BYTES // (size + HEAD_BYTES), 1))
        packs = [1] if wanted.rate else [pack, 1] if name == "pair" and pack > 1 else [pack]
    for pack in packs:
        window = wanted.window or max(min(workload.window, WINDOW_BYTES // size), pack)
        if window < pack:
            raise click.UsageError(
                f"{name}: --window {window} never lets {pack} messages leave together; see --pack"
            )
        if name == "rtt":
            pack = 1
        yield attrs.evolve(workload, payload_bytes=size, members=members, pack=pack, window=window)


def _limits(workload: Workload, seconds: float | None, msgs: int | None, rate: float | None) -> Limits:
    """How long a workload lasts. Idleness is neither counted nor paced."""
    from awesomeconnect.bench.load import Limits
    from awesomeconnect.bench.workloads import Kind

    if workload.kind is Kind.IDLE:
        return Limits(seconds or DURATION_S)
    return Limits(seconds or (DURATION_S if msgs is None else LONGEST_S), msgs, rate)


def _allow_files(connections: int) -> None:
    """Every connection takes a file descriptor, in the generator and in a relay of this command.

    Raises:
        Failure: the system allows too few.
    """
    _soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and connections + RESERVED_FILES > most:
        need = connections + RESERVED_FILES
        raise Failure(
            f"{connections:,} connections need {need:,} open files, and this process may have {most:,}: raise the "
            f"limit (as root: ulimit -n {need}), or give --clients {max(most - RESERVED_FILES, 1)}"
        )
