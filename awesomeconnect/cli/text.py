"""Text of strangers on the screens of people: names, attributes and error details cannot move the cursor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

#: Longest text of a stranger that is shown on one line.
SHOWN_CHARACTERS = 200


def safe(text: str, most: int = SHOWN_CHARACTERS) -> str:
    """``text`` with everything invisible escaped (controls, bidirectional marks, surrogates), cut to ``most``."""
    shown = "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text[:most]
    )
    return shown if len(text) <= most and len(shown) <= most else shown[: most - 1] + "…"


def attributes_text(attributes: Mapping[str, Any]) -> str:
    """Attributes of a node for people: ``name=value`` in one line, without those of the protocol itself."""
    pairs = (
        f"{safe(name, 64)}={safe(value.hex() if isinstance(value, bytes) else str(value), 80)}"
        for name, value in attributes.items()
        if not name.startswith("ac:")
    )
    return safe(" ".join(pairs))


def json_line(**fields: Any) -> str:
    """One JSON object on one line of ASCII, which is safe on any terminal; bytes become ``{"hex": ...}``."""
    return json.dumps(fields, default=lambda value: {"hex": value.hex()})
