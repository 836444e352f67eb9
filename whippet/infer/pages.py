"""Who holds which page of a ``PagedCache``; and full pages that are kept for whoever begins with the same tokens.

A page that is full never changes, so several sequences may hold it. It is known by all tokens from the beginning up to
its end (and by what else its keys depend on, ``kind``), each page by its own tokens and the page before it. Pages that
nobody holds stay known until their memory is needed, the one that was let go first being taken first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from whippet.model.paged import PAGE

Name = tuple[Hashable, ...]


@dataclass
class Held:
    """The pages of one sequence, in order. ``named`` of them are full and known."""

    pages: list[int] = field(default_factory=list)
    named: int = 0
    last: int | None = None
    """The number of the last known page's name, by which the next is named."""


class Pages:
    """Pages 1 to ``count - 1``. ``keep`` False: nothing is kept for others."""

    def __init__(self, count: int, *, keep: bool = True) -> None:
        self._keep = keep
        self._free = list(range(count - 1, 0, -1))
        self._holders = [0] * count
        self._idle: OrderedDict[int, None] = OrderedDict()
        """Known pages that nobody holds, the longest idle first."""
        self._known: dict[Name, int] = {}
        self._names: dict[int, tuple[Name, int]] = {}
        self._numbers = 0
        self.count = count - 1

    @property
    def free(self) -> int:
        """Pages that can be had."""
        return len(self._free) + len(self._idle)

    def begin(self, ids: Sequence[int], kind: Hashable = None) -> Held:
        """The known pages that ``ids`` begin with: never all of them, since the last token has to be computed."""
        held = Held()
        for place in range((len(ids) - 1) // PAGE):
            name = (kind, held.last, *ids[place * PAGE : (place + 1) * PAGE])
            page = self._known.get(name)
            if page is None:
                break
            self._hold(page)
            held.pages.append(page)
            held.named, held.last = place + 1, self._names[page][1]
        return held

    def extend(self, held: Held, tokens: int) -> bool:
        """Give ``held`` room for ``tokens`` in all; False, and nothing is given, if there are not enough pages."""
        more = -(-tokens // PAGE) - len(held.pages)
        if more > self.free:
            return False
        for _ in range(more):
            if self._free:
                page = self._free.pop()
            else:
                page, _ = self._idle.popitem(last=False)
                self._forget(page)
            self._holders[page] += 1
            held.pages.append(page)
        return True

    def fill(self, held: Held, ids: Sequence[int], kind: Hashable = None) -> None:
        """``ids`` have been computed into ``held``: full pages become known."""
        while self._keep and (held.named + 1) * PAGE <= len(ids):
            page = held.pages[held.named]
            name = (kind, held.last, *ids[held.named * PAGE : (held.named + 1) * PAGE])
            if name in self._known:
                # Two computed it at the same time. This one stays unknown; what follows is named by the other.
                held.last = self._names[self._known[name]][1]
            else:
                self._numbers += 1
                self._known[name] = page
                self._names[page] = name, self._numbers
                held.last = self._numbers
            held.named += 1

    def release(self, held: Held) -> None:
        """Nobody holds these for that sequence any more. Later pages go first: they are of less use alone."""
        for page in reversed(held.pages):
            self._holders[page] -= 1
            if self._holders[page]:
                continue
            if page in self._names:
                self._idle[page] = None
            else:
                self._free.append(page)
        held.pages.clear()
        held.named, held.last = 0, None

    def _hold(self, page: int) -> None:
        self._holders[page] += 1
        self._idle.pop(page, None)

    def _forget(self, page: int) -> None:
        name, _ = self._names.pop(page)
        del self._known[name]
