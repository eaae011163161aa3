"""One seed: a world of relays, nodes and a network is made, troubled, healed, and checked.

seed -> settings and habits -> chaos -> healing -> everybody is done -> checks -> everybody leaves -> checks
"""

from __future__ import annotations

import gc
import hashlib
import logging
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import trio
from attrs import asdict, frozen

from awesomeconnect.client import ClientSettings
from awesomeconnect.client.receipts import Receipt
from awesomeconnect.config import RelaySettings
from awesomeconnect.identity import Identity, RelayAddress
from awesomeconnect.reliable.settings import ReliableSettings
from awesomeconnect.server import Relay
from awesomeconnect.server.session import Session
from awesomeconnect.shaping.egress import EgressLimits
from tests.simulation import checks, determinism, reliable_checks
from tests.simulation.faults import Chaos
from tests.simulation.history import Event, History, Sent
from tests.simulation.network import Network, Weather
from tests.simulation.programs import Daemon, Program, habits

#: Everybody who knows that a connection broke tries again after this at the latest (`ClientSettings.later_cap_s`).
LATER_CAP_S = 30.0
#: A reliable message gets through while both sides are connected for so long, and for the time in which a silent
#: connection is noticed: a fault that passes by itself (25 s), and retransmissions.
REPAIR_S = 45.0
#: Between two marks of a room at most.
MOST_MARK_S = 20
#: When all is well, everything that was sent has arrived after this.
QUIET_S = 30.0
#: Times begin here: the start of a process, in milliseconds, tells which of two is newer.
BEGINNING_MS = 1_700_000_000_000
NODES = 12
LEAST_MESSAGES = 1_000
ROOMS = ("atrium", "boiler", "cellar", "dining hall")


@frozen
class Result:
    """What a seed came to.

    Attributes:
        violations: what must not be, in words; empty when all is well.
        digest: equal for two runs of a seed.
        trace: what happened, in lines.
        crashes: how often a relay was killed, lost its power, moved or was drained.
        counters: what else is worth knowing, by name.
    """

    seed: int
    violations: tuple[str, ...]
    digest: str
    trace: tuple[str, ...]
    crashes: int
    counters: dict[str, int]


def simulate(seed: int) -> Result:
    """Run one seed."""
    world = World(seed)
    handler = _Log(world)
    log = logging.getLogger("awesomeconnect")
    before = log.propagate, log.level
    log.propagate, log.level = False, logging.INFO
    log.addHandler(handler)
    try:
        determinism.run(seed, world.run)
    except Exception as error:
        world.violations.append(f"the simulation ended with {error!r}")
        world.trace("failed", "simulation", error=_all_of(error))
    finally:
        log.removeHandler(handler)
        log.propagate, log.level = before
    return world.result()


class World:
    """See the module's docstring.

    Attributes:
        is_heavy: messages of all sizes are equally likely.
        is_reliable: some of the messages are.
        is_healing: no new faults come any more.
        closing: programs are to leave.
        receipts: of what was sent, for the connection and ordinal that it got.
        reserve: messages that a program keeps for when all is well again.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.history = History()
        self.violations: list[str] = []
        self.lines: list[str] = []
        self._digest = hashlib.blake2b(digest_size=16)
        self.counters: dict[str, int] = {}
        self.chance = self.source("world")
        self.is_reliable = self.chance.random() < 0.8
        self.is_heavy = self.chance.random() < 0.4
        self.rooms = ROOMS
        self.reserve = 10
        self.is_healing = False
        self.receipts: list[tuple[Sent, Receipt]] = []
        self.programs: list[Program] = []
        self.key_names: dict[bytes, str] = {}
        self.relay_settings = self._relay_settings()
        self._client_options = self._draw_client_options()
        self.weather_kinds = self._weather_kinds()
        self.network = Network(self.source("network"), self.trace, self._weather, self._note_bytes)
        self.daemon = Daemon(self, "relay", "here")
        self.other = Daemon(self, "other", "elsewhere")
        self.has_choice = self.chance.random() < 0.7
        self.has_other = self.chance.random() < 0.3
        self.chaos = Chaos(self)

    def source(self, name: str) -> Any:
        """Randomness of its own for ``name``."""
        return determinism.source(self.seed, name)

    @cache  # noqa: B019 - a world does not live long
    def identity(self, key_name: str) -> Identity:
        """The key with this name."""
        identity = Identity.from_seed(self.source(f"key of {key_name}").randbytes(32))
        self.key_names[identity.public_key] = key_name
        return identity

    def peers(self, key_name: str) -> list[str]:
        """The names of all other keys."""
        return [name for name in self._names if name != key_name]

    def addresses(self, chance: Any) -> list[RelayAddress]:
        """What a node is configured with."""
        found = [self.daemon.address("here")]
        if self.has_choice:
            found.append(self.daemon.address("there"))
        if self.has_other:
            found.append(self.other.address("elsewhere"))
        chance.shuffle(found)
        return found

    def client_settings(self, **injected: Any) -> ClientSettings:
        """Settings of every node."""
        return ClientSettings(**self._client_options, **injected)

    def now_ms(self) -> int:
        """The wall clock."""
        return BEGINNING_MS + int(trio.current_time() * 1000)

    # ---- the record ----------------------------------------------------------------------------------

    def trace(self, event: str, who: str, **details: Any) -> None:
        """A line for people, and for the digest."""
        text = " ".join(f"{name}={value}" for name, value in details.items())
        try:
            now = trio.current_time()
        except RuntimeError:
            now = math.nan
        line = f"{now:9.3f}  {who:<10} {event} {text}".rstrip()
        self.lines.append(line)
        self._digest.update(line.encode())

    def note(self, event: Event) -> None:
        """Something that checkers need to know."""
        self.history.events.append(event)
        shown = asdict(event, recurse=False, filter=lambda one, _value: one.name not in ("at", "process"))
        self.trace(type(event).__name__.lower(), event.process, **shown)

    def note_relay(self, name: str, relay: Relay) -> None:
        """A relay's process has ended."""
        for event in ("internal_errors", "protocol_errors", "handshake_failures"):
            if count := relay.events.get(event):
                self.violations.append(f"{name} counts {count} {event}")
        for counter, value in (*relay.events.items(), *_counters(relay)):
            self.counters[counter] = self.counters.get(counter, 0) + value

    def _note_bytes(self, end: str, size: int, checksum: int) -> None:
        self._digest.update(f"{trio.current_time():.3f} {end} {size} {checksum}".encode())

    def result(self) -> Result:
        """What came of it."""
        return Result(
            self.seed,
            tuple(self.violations),
            self._digest.hexdigest(),
            tuple(self.lines),
            self.chaos.crashes,
            self.counters,
        )

    # ---- the run -------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Everything."""
        self.closing = trio.Event()
        self._names = [f"node-{number}" for number in range(1, NODES + 1)]
        async with trio.open_nursery() as self.nursery:
            self.nursery.start_soon(self.network.run)
            await self.daemon.start()
            if self.has_other:
                await self.other.start()
            to_send = -(-LEAST_MESSAGES // NODES)
            for name in self._names:
                rooms = self.chance.sample(ROOMS, self.chance.randint(1, 3))
                program = Program(self, name, name, rooms, habits(self.chance), to_send)
                self.programs.append(program)
                self.nursery.start_soon(program.run)
            await self.chaos.run()
            self.trace("heals", "world")
            self.is_healing = True
            await self.chaos.heal()
            self.history.healed_at = trio.current_time()
            if await self._back_in_rooms() and await self._all_done():
                await self._quiet()
                self._check_relay()
            await self._check_history()
            await self._leave()
            self.nursery.cancel_scope.cancel()

    async def _within(
        self, what: str, limit_s: float, holds: Callable[[], bool], missing: Callable[[], Any]
    ) -> bool:
        """Wait until something holds; a violation when it does not in time."""
        begun = trio.current_time()
        while not holds():
            if trio.current_time() - begun > limit_s:
                self.violations.append(f"{what}: not within {limit_s:g} s, missing: {missing()}")
                self.trace("missing", what, which=missing())
                return False
            await trio.sleep(0.05)
        self.trace(what, "world", after=f"{trio.current_time() - begun:.2f}")
        return True

    async def _back_in_rooms(self) -> bool:
        """M1: the relay's view of its rooms becomes that of the nodes."""
        settings, client = self.relay_settings, self.client_settings()
        limit_s = self._silence_s + LATER_CAP_S + 3 * client.welcome_s + settings.closing_s + 10
        return await self._within(
            "back in the rooms", limit_s, lambda: not self._differences(), lambda: self._differences()
        )

    @property
    def _silence_s(self) -> float:
        """After this everybody knows that a connection has gone silent."""
        return self.relay_settings.drop_s + self.relay_settings.keepalive_s

    @property
    def _repair_s(self) -> float:
        """After this together, two nodes have repaired what they can."""
        return self._silence_s + REPAIR_S

    def _differences(self) -> list[str]:
        """Where the relay's view and the nodes' intents differ."""
        relay = self.daemon.relay
        if relay is None:
            return ["no relay"]
        found = [program.name for program in self.programs if program.node is None or not program.node.is_connected]
        for name in self.rooms:
            wanted = {program.identity.public_key for program in self.programs if name in program.rooms}
            room = relay.registry.find_room(name)
            listed = [node.key for node in room.members.values()] if room is not None else []
            names = sorted(self.key_names[key] for key in wanted.symmetric_difference(listed))
            if names or len(listed) != len(wanted):
                found.append(f"{name}: {names}")
        if not found and len(relay.sessions) != len(self.programs):
            found.append(f"{len(relay.sessions)} sessions")
        return found

    async def _all_done(self) -> bool:
        return await self._within(
            "everything sent",
            400.0,
            lambda: all(program.is_done for program in self.programs),
            lambda: [program.name for program in self.programs if not program.is_done],
        )

    async def _quiet(self) -> None:
        """Wait until nothing is under way any more."""
        for _ in range(2):
            await self._within("quiet", QUIET_S, lambda: not self._under_way(), self._under_way)
            await trio.sleep(1.0)  # changes of membership, answers to answers
        if self.is_reliable:  # the last marks, and the repairs that they cause
            await trio.sleep(MOST_MARK_S + self._repair_s)

    def _under_way(self) -> list[str]:
        relay = self.daemon.relay
        assert relay is not None
        found = ["turns"] if relay.touched or relay.unicasts else []
        found += [
            f"for {session}" for session in relay.sessions if session.outlet.total or not session.outlet.is_empty
        ]
        for program in self.programs:
            assert program.node is not None
            counted = program.node.statistics()
            if counted.inbox_bytes or counted.queued_messages or counted.reliable_bytes:
                found.append(program.name)
        return found

    def _check_relay(self) -> None:
        """What must hold while all are connected and nothing happens."""
        self.violations += [f"M1: {difference}" for difference in self._differences()]
        relay = self.daemon.relay
        assert relay is not None
        for program in self.programs:
            room = relay.registry.find_room(program.home[0])
            assert room is not None
            if program.habits.watches:
                listed = {node.key for node in room.members.values()}
                if program.members is None or set(program.members) != listed:
                    wrong = sorted(
                        self.key_names[key] for key in listed.symmetric_difference(program.members or ())
                    )
                    self.violations.append(f"M1: the watch of {program.name} differs in {program.home[0]}: {wrong}")

    async def _check_history(self) -> None:
        for sent, receipt in self.receipts:
            sent.connection, sent.ordinal = receipt.connection or 0, receipt.ordinal or 0
        now = trio.current_time()
        self.violations += checks.plain(self.history, now)
        self.violations += reliable_checks.reliable(self.history, now, self._repair_s)
        self.counters["sent"] = len(self.history.sent)
        for event in self.history.events:
            name = type(event).__name__.lower()
            self.counters[name] = self.counters.get(name, 0) + 1
        if len(self.history.sent) < LEAST_MESSAGES:
            self.violations.append(f"only {len(self.history.sent)} messages were sent")

    async def _leave(self) -> None:
        """All programs end in good order, then the relay; nothing stays behind."""
        for program in self.programs:
            program.is_retired = True
        self.closing.set()
        relay = self.daemon.relay
        await self._within(
            "all gone",
            60.0,
            lambda: not self._here(),
            self._here,
        )
        if relay is not None:
            rooms = [room.name for room in relay.registry.rooms()]
            if rooms:
                self.violations.append(f"left behind: rooms {rooms}")
            self.trace("ends", "relay")
            await self.daemon.drain()
        if self.other.is_up:
            await self.other.drain()
        relay = None
        gc.collect()
        left = sum(isinstance(thing, Session) for thing in gc.get_objects())
        if left:
            self.violations.append(f"left behind: {left} sessions")

    def _here(self) -> list[str]:
        """Programs that have not ended, and what the relay holds of them."""
        sessions = self.daemon.relay.sessions if self.daemon.relay is not None else ()
        return [program.name for program in self.programs if program.node is not None] + [*map(str, sessions)]

    # ---- what the seed decides -----------------------------------------------------------------------

    def _relay_settings(self) -> RelaySettings:
        chance = self.source("relay settings")
        options: dict[str, Any] = {}
        if chance.random() < 0.85:  # so that silence is noticed soon
            options.update(keepalive_s=4, drop_s=10, closing_s=3, first_byte_s=4, greeting_s=6)
        if chance.random() < 0.5:
            options.update(payload_bytes=32_000, egress=EgressLimits(8_192, 36_864, 73_728))
        return RelaySettings(drain_s=chance.choice((0.5, 2, 5)), spread_s=chance.choice((1, 5)), **options)

    def _draw_client_options(self) -> dict[str, Any]:
        chance = self.source("client settings")
        options: dict[str, Any] = {"kept_events": 1 << 20, "kept_problems": 1 << 20}
        if chance.random() < 0.7:
            options.update(inbox_high_bytes=4_096, inbox_bytes=chance.choice((65_536, 1 << 20)))
        if chance.random() < 0.5:
            options.update(queue_bytes=65_536, window_bytes=32_768, flush_messages=16)
        if chance.random() < 0.5:
            options.update(welcome_s=4, closing_s=2)
        reliable = {"window_messages": 4, "outbox_bytes": 40_000} if chance.random() < 0.3 else {}
        options["reliable"] = ReliableSettings(most_mark_ms=MOST_MARK_S * 1000, **reliable)
        return options

    def _weather_kinds(self) -> list[Weather]:
        chance = self.source("weather")
        slow_bytes_per_s = 200_000 if self.is_heavy else 20_000  # what is sent gets through in the end
        kinds = [
            Weather(latency_s=0.001),
            Weather(latency_s=0.02, jitter_s=0.01),
            Weather(latency_s=0.15, jitter_s=0.1),
            Weather(latency_s=0.005, capacity_bytes=2_048),
            Weather(latency_s=0.01, rate_bytes_per_s=slow_bytes_per_s, capacity_bytes=16_384),
            Weather(latency_s=0.03, rate_bytes_per_s=300_000, is_known=True),
            Weather(latency_s=0.002, crumbs=600),
        ]
        return chance.sample(kinds, chance.randint(1, len(kinds)))

    def _weather(self) -> Weather:
        kind: Weather = self.network.random.choice(self.weather_kinds)
        return kind


class _Log(logging.Handler):
    """Puts what is logged into the trace. An error is a violation."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        """Take a log record."""
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            text += f": {record.exc_info[1]!r}"
            self._world.lines.append(logging.Formatter().formatException(record.exc_info))
        if record.levelno >= logging.ERROR:
            self._world.violations.append(f"logged: {text}")
        self._world.trace("logged", record.name, text=text)


def _counters(relay: Relay) -> list[tuple[str, int]]:
    traffic = relay.traffic
    return [
        ("delivered", traffic.delivered_messages),
        ("rejected", traffic.rejected_messages),
        ("receiver_gone", traffic.receiver_gone_messages),
        ("gaps", traffic.gap_messages),
    ]


def _all_of(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(_all_of(one) for one in error.exceptions)
    import traceback

    return "".join(traceback.format_exception(error))
