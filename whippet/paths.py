"""The one resolver for paths that come from outside: index files, repositories, archives, requests.

A name from outside is a relative path of plain parts (``inside``): it may not be absolute, climb ('..'), carry a drive,
a NUL or a backslash. And no file of a folder may lie outside of it by way of a symbolic link, whoever chose its name
(``within``): the link's target counts. A file or folder that a person names may itself be a link. The hub's cache
keeps the files of a snapshot as links into stores beside it; those count as inside.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath, PureWindowsPath

from whippet.errors import UsageError, WhippetError

MAX_NAME_BYTES = 1024
HUB_REPOSITORY = re.compile(r"(?:models|datasets)--.+", re.DOTALL)
HUB_STORE_MARK = ".huggingface-shared-blobs"
"""What huggingface_hub puts into the store that the repositories of a cache share."""


def inside(folder: Path, name: str) -> Path:
    """Return ``folder / name``, or raise UsageError if ``name`` would leave ``folder``.

    The rules of POSIX and of Windows are both applied on every system, so that a file made here is safe there.
    """
    shown = repr(name if len(name) <= 80 else name[:77] + "...")
    if not name or "\x00" in name or len(name.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
        raise UsageError(f"unsafe file name {shown}: it is empty, too long or holds a NUL byte")
    windows, posix = PureWindowsPath(name), PurePosixPath(name)
    if windows.drive or windows.root or posix.is_absolute() or ":" in name or "\\" in name or name.startswith("~"):
        raise UsageError(f"unsafe file name {shown}: it must be relative to {folder}")
    if any(part == ".." or part != part.rstrip(". ") for part in posix.parts):
        raise UsageError(f"unsafe file name {shown}: it must stay inside {folder}")
    return within(folder, folder / posix)


def within(folder: Path, path: Path, *, error: type[WhippetError] = UsageError) -> Path:
    """Return ``path``, which is spelled below ``folder``, or raise ``error`` if a link makes it lead out of there."""
    home = folder.resolve()
    try:
        target = path.resolve()
    except RuntimeError as loop:
        raise error(f"{path}: a link that leads back to itself") from loop
    if not any(target.is_relative_to(root) for root in (home, *_hub_stores(home))):
        raise error(
            f"{path} leads to {target}, outside {folder}: links out of a folder are not followed; copy it there"
        )
    return path


def _hub_stores(folder: Path) -> list[Path]:
    """Where the links of ``folder`` (resolved) may lead if it lies in a snapshot of the hub's cache.

    That is ``models--org--name/snapshots/<commit>``, whose files are links to ``models--org--name/blobs/<hash>``; those
    in turn may be links into ``blobs`` of the whole cache (huggingface_hub 2). They are not resolved: a store that is
    itself a link is none, for no target lies in it.
    """
    for place in (folder, *folder.parents):
        repository = place.parent.parent
        if place.parent.name == "snapshots" and HUB_REPOSITORY.fullmatch(repository.name):
            shared = repository.parent / "blobs"
            return [repository / "blobs", *([shared] if (shared / HUB_STORE_MARK).is_file() else [])]
    return []
