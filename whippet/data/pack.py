"""Lengths to packs: which examples lie end to end in one stream.

Comes in: the lengths of a window of examples, and what a pack holds. Goes out: for each pack the indices of its
examples. Best fit, longest first: each example goes where the least room is left over (Johnson 1973, at most 11/9 of
the fewest packs and one more).
"""

from __future__ import annotations

from collections.abc import Sequence


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Packs of indices into ``lengths``, each pack at most ``capacity`` in all; nothing is left out or cut.

    An example longer than ``capacity`` has a pack to itself. Indices rise within a pack; the same lengths give the
    same packs.
    """
    assert capacity > 0
    packs: list[list[int]] = []
    with_room: dict[int, list[int]] = {}
    rooms = 0  # bit r is set if some pack has room for exactly r more
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[index]
        fitting = rooms >> length
        if fitting and length <= capacity:
            room = length + (fitting & -fitting).bit_length() - 1
            pack = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
            packs[pack].append(index)
        else:
            room, pack = max(capacity, length), len(packs)
            packs.append([index])
        left = room - length
        if left:
            if not with_room.setdefault(left, []):
                rooms |= 1 << left
            with_room[left].append(pack)
    for members in packs:
        members.sort()
    return packs
