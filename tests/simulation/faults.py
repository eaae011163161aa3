"""Chaos: what goes wrong, when, and how everything is made well again.

Each seed draws which kinds of faults it has at all, so that some seeds look long at one kind, and others at how
several of them meet.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import trio

from tests.simulation.network import End
from tests.simulation.programs import Daemon, Habits, Program

if TYPE_CHECKING:
    from tests.simulation.world import World

LEAST_CRASHES = 5


class Chaos:
    """The faults of one seed.

    Attributes:
        crashes: how often the relay was killed, lost its power, moved or was drained.
    """

    def __init__(self, world: World) -> None:
        self.crashes = 0
        self._world = world
        self._chance = world.source("chaos")
        self._impostors: list[Program] = []
        self._relay_faults: dict[str, Callable[[Daemon], Awaitable[None]]] = {
            "kill": self._kill,
            "kill at a byte": self._kill_at_byte,
            "kill at a read": self._kill_at_read,
            "lose power": self._lose_power,
            "drain": self._drain,
            "roll": self._roll,
            "freeze": self._freeze_relay,
        }
        self._node_faults: dict[str, Callable[[], Awaitable[None]]] = {
            "crash": self._crash,
            "crash at a byte": self._crash_at_byte,
            "reset": self._reset,
            "reset at a byte": self._reset_at_byte,
            "silence": self._silence,
            "half open": self._half_open,
            "freeze": self._freeze,
            "cut off": self._cut_off,
            "second process": self._impersonate,
            "storm": self._storm,
        }

    async def run(self) -> None:
        """Relays and nodes have their faults, until the relays have had theirs."""
        chance = self._chance
        relay_kinds = chance.sample([*self._relay_faults], chance.randint(1, len(self._relay_faults)))
        if relay_kinds == ["freeze"]:
            relay_kinds.append("kill")
        node_kinds = chance.sample([*self._node_faults], chance.randint(1, len(self._node_faults)))
        calm_s = chance.choice((2.0, 5.0, 10.0))
        self._world.trace("chaos", "world", relays=relay_kinds, nodes=node_kinds, calm=calm_s)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._trouble_nodes, node_kinds, chance.choice((0.5, 2.0, 6.0)))
            if self._world.has_other:
                nursery.start_soon(self._trouble_other, relay_kinds, 2 * calm_s)
            most = LEAST_CRASHES + chance.randint(0, 3)
            while self.crashes < most:
                self.crashes += await self._trouble(self._world.daemon, chance.choice(relay_kinds), calm_s)
            nursery.cancel_scope.cancel()

    async def heal(self) -> None:
        """End every fault but those that only the programs themselves can find out."""
        world = self._world
        for program in self._impostors:
            program.retire()
        for program in world.programs:
            if program.host is not None:
                program.host.plug_in()
                program.host.thaw()
                program.host.bytes_left = program.host.reads_left = None
        for daemon in (world.daemon, world.other):
            if daemon.host is not None:
                daemon.host.bytes_left = daemon.host.reads_left = None
                daemon.host.thaw()
        if world.other.is_up:
            world.nursery.start_soon(world.other.drain)
        if not world.daemon.is_up:
            await world.daemon.start()

    # ---- relays --------------------------------------------------------------------------------------

    async def _trouble(self, daemon: Daemon, kind: str, calm_s: float) -> bool:
        """One fault of a relay, and the end of it; whether its process ended."""
        await trio.sleep(self._chance.expovariate(1 / calm_s))
        self._world.trace(f"fault: {kind}", daemon.name)
        runs = daemon.runs
        await self._relay_faults[kind](daemon)
        if not daemon.is_up:
            await trio.sleep(self._chance.choice((0.0, 0.0, 0.3, 2.0, 10.0)) * self._chance.random())
            if self._world.has_choice and daemon is self._world.daemon and self._chance.random() < 0.5:
                daemon.place = "there" if daemon.place == "here" else "here"
            await daemon.start()
        return daemon.runs > runs

    async def _trouble_other(self, kinds: list[str], calm_s: float) -> None:
        while True:
            await self._trouble(self._world.other, self._chance.choice(kinds), calm_s)

    async def _kill(self, daemon: Daemon) -> None:
        assert daemon.host is not None
        daemon.host.kill()
        await daemon.drain()

    async def _kill_at_byte(self, daemon: Daemon) -> None:
        assert daemon.host is not None
        daemon.host.bytes_left = int(self._chance.choice((1, 200, 3_000, 30_000)) * self._chance.random()) + 1
        await self._end_of(daemon)

    async def _kill_at_read(self, daemon: Daemon) -> None:
        assert daemon.host is not None
        daemon.host.reads_left = self._chance.randint(1, 60)
        await self._end_of(daemon)

    async def _end_of(self, daemon: Daemon) -> None:
        """Wait until a fuse has burnt, or a while at most."""
        with trio.move_on_after(10):
            await daemon.wait_ended()
        if daemon.is_up:
            await self._kill(daemon)

    async def _lose_power(self, daemon: Daemon) -> None:
        host = daemon.host
        assert host is not None
        host.lose_power()
        await daemon.drain()
        await trio.sleep(self._chance.choice((0.0, 1.0, 10.0)))
        host.has_power = (
            self._chance.random() < 0.7
        )  # or it never comes back, and the relay moves to another machine

    async def _drain(self, daemon: Daemon) -> None:
        await daemon.drain()

    async def _roll(self, daemon: Daemon) -> None:
        """A new process takes the place over while the old one drains."""
        daemon.begin_drain()
        await daemon.start()

    async def _freeze_relay(self, daemon: Daemon) -> None:
        host = daemon.host
        assert host is not None
        host.freeze()
        await trio.sleep(self._chance.choice((0.5, 5.0, 20.0)) * self._chance.random())
        host.thaw()

    # ---- nodes ---------------------------------------------------------------------------------------

    async def _trouble_nodes(self, kinds: list[str], calm_s: float) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                await trio.sleep(self._chance.expovariate(1 / calm_s))
                nursery.start_soon(self._node_faults[self._chance.choice(kinds)])

    def _program(self) -> Program | None:
        """One of them that runs."""
        running = [one for one in self._world.programs if one.host is not None and one.host.is_on]
        return self._chance.choice(running) if running else None

    def _end(self) -> End | None:
        """An end of a connection of one of them, here or there."""
        program = self._program()
        ends = [*program.host.ends] if program is not None and program.host is not None else []
        if not ends:
            return None
        end: End = self._chance.choice(ends)
        self._world.trace("fault: connection", end.peer)
        return end if self._chance.random() < 0.5 else end.outgoing.receiver

    async def _crash(self) -> None:
        program = self._program()
        if program is not None and program.host is not None:
            self._chance.choice((program.host.kill, program.host.lose_power))()

    async def _crash_at_byte(self) -> None:
        program = self._program()
        if program is not None and program.host is not None:
            program.host.bytes_left = self._chance.randint(1, 3_000)

    async def _reset(self) -> None:
        if (end := self._end()) is not None:
            end.reset()

    async def _reset_at_byte(self) -> None:
        if (end := self._end()) is not None:
            end.outgoing.bytes_left = self._chance.randint(1, 3_000)

    async def _silence(self) -> None:
        if (end := self._end()) is not None:
            end.go_silent()

    async def _half_open(self) -> None:
        if (end := self._end()) is not None:
            end.go_silent(is_told=True)

    async def _freeze(self) -> None:
        await self._for_a_while("freeze", "thaw")

    async def _cut_off(self) -> None:
        await self._for_a_while("cut_off", "plug_in")

    async def _for_a_while(self, begin: str, end: str) -> None:
        program = self._program()
        host: Any = program.host if program is not None else None
        if host is None:
            return
        self._world.trace(f"fault: {begin}", host.name)
        getattr(host, begin)()
        await trio.sleep(self._chance.choice((1.0, 5.0, 25.0)) * self._chance.random())
        getattr(host, end)()

    async def _impersonate(self) -> None:
        """Somebody has copied a key."""
        if len(self._impostors) >= 3:
            return
        world, number = self._world, len(self._impostors) + 1
        victim = self._chance.choice(world.programs)
        program = Program(world, f"copy-{number}", victim.key_name, victim.home, Habits(), 30)
        self._impostors.append(program)
        world.nursery.start_soon(program.run)
        await trio.sleep(self._chance.random() * 20)
        program.retire()

    async def _storm(self) -> None:
        """Everybody's connection breaks at once."""
        for program in self._world.programs:
            for end in [*program.host.ends] if program.host is not None else []:
                end.reset()
