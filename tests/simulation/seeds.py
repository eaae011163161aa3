"""Seeds that every run of the tests plays again."""

from __future__ import annotations

#: Together they have every kind of fault, several times.
CI_SEEDS = range(16)

#: Seeds that found a bug, each with a sentence about it.
#: (The story of a seed changes with the simulation and with the library; the tests of the fix are what stays.)
NAMED_SEEDS: dict[int, str] = {
    4: "the library's task ran without end while there was no connection, for a pause that was over",
    25: "a watch applied a change and then listed the room anew: nobody was told of the change",
    158: "of two processes with one key, the older one's reliable messages were taken twice",
}
