"""How long frames wait in an egress queue: the longest wait of each class.

Looked at only while something waits, never for each message: what is queued when a turn ends gets a mark, and its
wait ends when the queue has departed as far as the mark. Marks of the same millisecond are one, so a wait may be
found longer than it was by as much.

This module does not know what time it is.
"""

from __future__ import annotations

from collections import deque

from awesomeconnect.shaping.egress import CLASSES, Egress

#: Marks closer than this are one.
GRAIN_S = 0.001
#: Marks of a class; what is queued beyond is not looked at.
MAX_MARKS = 1_024


class Waits:
    """The waits of one queue.

    Attributes:
        longest_s: so far, by class.
    """

    __slots__ = ("_marks", "longest_s")

    def __init__(self) -> None:
        self.longest_s = [0.0] * CLASSES
        self._marks: dict[int, deque[tuple[float, int]]] = {}  # class -> (since, how far it must depart)

    def begin(self, queue: Egress, now_s: float) -> None:
        """What is queued now has been waiting at least since now."""
        waiting = queue.ready & ~queue.held
        while waiting:
            traffic_class = waiting.bit_length() - 1
            waiting &= ~(1 << traffic_class)
            end = queue.departed[traffic_class] + queue.queued[traffic_class]
            marks = self._marks.setdefault(traffic_class, deque())
            if not marks:
                marks.append((now_s, end))
            elif marks[-1][1] < end:
                if now_s - marks[-1][0] < GRAIN_S:
                    marks[-1] = (marks[-1][0], end)
                elif len(marks) < MAX_MARKS:
                    marks.append((now_s, end))

    def end(self, queue: Egress, now_s: float) -> None:
        """Some of it has departed."""
        for traffic_class, marks in self._marks.items():
            departed = queue.departed[traffic_class]
            while marks and marks[0][1] <= departed:
                self.longest_s[traffic_class] = max(self.longest_s[traffic_class], now_s - marks.popleft()[0])

    def forget(self, traffic_class: int) -> None:
        """The receiver has paused the class: what waits there does not wait for the relay."""
        self._marks.pop(traffic_class, None)
