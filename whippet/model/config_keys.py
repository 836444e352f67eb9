"""Typed access to the keys of a ``config.json``; each complaint names the file, the key, what was met and wanted."""

from __future__ import annotations

from typing import Any, TypeVar

from whippet.errors import ModelError

Number = TypeVar("Number", int, float)


class Keys:
    """A dictionary that was read from the file ``where``."""

    def __init__(self, config: dict[str, Any], where: str) -> None:
        self.config, self.where = config, where

    def integer(self, key: str, default: int | None = None, *, most: int = 2**31) -> int:
        return self._number(key, default, int, most, f"a whole number from 1 to {most}")

    def real(self, key: str, default: float | None = None) -> float:
        return float(self._number(key, default, float, 1e30, "a number above 0"))

    def optional(self, key: str, default: float | None) -> float | None:
        """A number that null switches off; ``default`` is for an absent key."""
        if key not in self.config:
            return default
        return None if self.config[key] is None else self.real(key)

    def flag(self, key: str, default: bool) -> bool:
        value = self.config.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise ModelError(f"{self.where}: {key} is {str(value)[:60]!r}, and must be true or false")
        return value

    def table(self, key: str) -> Keys:
        """A table within, empty if it is absent."""
        value = self.config.get(key)
        if value is not None and not isinstance(value, dict):
            raise ModelError(f"{self.where}: {key} is {str(value)[:60]!r}, and must be a table")
        return Keys(value or {}, f"{self.where}: {key}")

    def reals(self, key: str, count: int) -> tuple[float, ...]:
        """A list of ``count`` numbers above 0."""
        value = self.config.get(key)
        if not isinstance(value, list) or len(value) != count:
            met = f"{len(value)} entries" if isinstance(value, list) else repr(str(value)[:60])
            raise ModelError(f"{self.where}: {key} has {met}; wanted a list of {count} numbers")
        return tuple(Keys({key: number}, self.where).real(key) for number in value)

    def must_be(self, key: str, *known: Any) -> None:
        """The decoder computes only ``known`` (the first is what an absent or null key means)."""
        value = self.config.get(key)
        if value is not None and value not in known:
            raise ModelError(f"{self.where}: {key} is {str(value)[:60]!r}; whippet computes only {known[0]!r}")

    def _number(self, key: str, default: Number | None, kind: type[Number], most: float, wanted: str) -> Number:
        value = self.config.get(key)
        if value is None:
            if default is None:
                raise ModelError(f"{self.where}: the key {key} is missing")
            return default
        good = isinstance(value, (int, kind)) and not isinstance(value, bool)
        if not good or not 0 < value <= most:
            raise ModelError(f"{self.where}: {key} is {str(value)[:60]}, and must be {wanted}")
        return kind(value)
