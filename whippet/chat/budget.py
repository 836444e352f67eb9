"""What one rendering of a stranger's template may spend: time, memory, and the size of any one value.

A template cannot allocate or iterate without passing here: ``sandbox.py`` sends every loop turn, every value that an
operator, filter, call or literal makes, and every piece of output through one ``Budget``. Limits are checked before
an operation that could be large, so nothing has to be interrupted: no signals, no watchdog thread, no subprocess.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import ItemsView, Iterable, Iterator, KeysView, ValuesView
from typing import Any

from jinja2.exceptions import SecurityError

SECONDS = 0.5
"""CPU time of the rendering thread; a chat of a thousand turns takes about a fiftieth of it."""
TOTAL_BYTES = 16 * 1024**2
"""Everything that is made, freed or not, beside ``INPUT_FACTOR`` times the size of what was given."""
VALUE_BYTES = 3 * 1024**2
"""Any one value, written out, beside ``INPUT_FACTOR`` times the input."""
INPUT_FACTOR = 16
INTEGER_BITS = 4096
TICK_BYTES = 64
SLOT_BYTES = 16
PIECE_BYTES = 80

CONTAINERS = (list, tuple, dict, set, frozenset, range, KeysView, ValuesView, ItemsView)
WIDE_NUMBER = re.compile(r"\d{4}")
FORMAT_FIELD = re.compile(r"%(?:\([^()]*\))?([#0\- +.\d*]*)")


class Budget:
    """Counts down while one template renders. Every method raises SecurityError when too little is left."""

    def __init__(self, given: Iterable[Any]) -> None:
        self._weights: dict[int, tuple[Any, int]] = {}
        self._left = self._most = sys.maxsize
        size = sum(self.weigh(value) for value in given)
        self._left = TOTAL_BYTES + INPUT_FACTOR * size
        self._most = VALUE_BYTES + INPUT_FACTOR * size
        self._started = time.perf_counter()
        self._cpu_started = time.thread_time()

    def charge(self, size: int) -> None:
        """Spend ``size`` bytes, and look at the clock."""
        self._left -= size
        if self._left < 0:
            raise SecurityError("the template makes too much text or too many values")
        if time.perf_counter() - self._started > SECONDS and time.thread_time() - self._cpu_started > SECONDS:
            raise SecurityError(f"the template runs for more than {SECONDS} seconds")

    def allow(self, size: int) -> None:
        """Refuse a value of ``size`` bytes before it is made."""
        self.charge(0)
        if size > self._most or size > self._left:
            raise SecurityError(f"the template makes a value of {size} bytes")

    def accept(self, value: Any) -> Any:
        """Charge a value that was just made, and hand it on. Iterators are charged as they are drawn from."""
        if isinstance(value, str):
            self.charge(sys.getsizeof(value))
        elif isinstance(value, int):
            if value.bit_length() > INTEGER_BITS:
                raise SecurityError(f"the template makes an integer of {value.bit_length()} bits")
        elif isinstance(value, CONTAINERS):
            self.weigh(value)
            self.charge(SLOT_BYTES * len(value))
        elif isinstance(value, Iterator):
            return self.watch(value)
        return value

    def watch(self, values: Iterable[Any]) -> Iterator[Any]:
        """The same values, each charged as it is drawn."""
        for value in values:
            self.charge(TICK_BYTES)
            self.weigh(value)
            yield value

    def pieces(self, text: str, number: int) -> None:
        """Charge for taking a text apart: its pieces are far larger than itself."""
        self.allow(PIECE_BYTES * number + sys.getsizeof(text))
        self.charge(PIECE_BYTES * number)

    def join(self, parts: Iterable[str], separator: str = "") -> str:
        """``separator.join(parts)`` with its size known beforehand."""
        held = list(parts)
        self.allow(sum(map(sys.getsizeof, held)) + len(held) * sys.getsizeof(separator))
        return str(self.accept(separator.join(held)))

    def weigh(self, value: Any) -> int:
        """Bytes of ``value`` written out in full: what occurs twice counts twice, so that a small nest of shared
        lists which would print as gigabytes is refused when it is made."""
        if isinstance(value, str):
            return sys.getsizeof(value)
        if not isinstance(value, CONTAINERS):
            return 32
        known = self._weights.get(id(value))
        if known is not None:
            return known[1]
        if isinstance(value, range):
            weight = 64 * len(value)
        else:
            weight = 64
            for part in (*value, *value.values()) if isinstance(value, dict) else value:
                weight += SLOT_BYTES + self.weigh(part)
        if weight > self._most:
            raise SecurityError(f"the template makes a value of {weight} bytes")
        self._weights[id(value)] = (value, weight)
        return weight

    def power(self, left: Any, right: Any) -> None:
        """Refuse ``left ** right`` if its digits would be many."""
        if isinstance(left, int) and isinstance(right, int) and left.bit_length() * abs(right) > INTEGER_BITS:
            raise SecurityError(f"the template makes an integer of about {left.bit_length() * abs(right)} bits")

    def repeat(self, left: Any, right: Any) -> None:
        """Refuse ``left * right`` if it repeats a text or a list too often."""
        for many, times in ((left, right), (right, left)):
            if isinstance(many, str | list | tuple) and isinstance(times, int):
                self.allow(self.weigh(many) * max(times, 0))

    def percent(self, text: str, values: Any) -> Any:
        """``text % values`` without the widths and precisions that make gigabytes out of a few characters."""
        fields = FORMAT_FIELD.findall(text)
        if "((" in text or any("*" in flags or WIDE_NUMBER.search(flags) for flags in fields):
            raise SecurityError("the template formats with a width that is computed or above 999")
        repeated = len(fields) if isinstance(values, dict) else 1
        self.allow(4 * len(text) + 1024 * len(fields) + 2 * repeated * self.weigh(values))
        return text % values
