"""The one resolver for paths that come from outside: index files, repositories, archives, requests.

A name from outside is a relative path of plain parts. It may not be absolute, climb ('..'), carry a drive, a NUL or a
backslash, nor reach outside its folder through a symbolic link (the link's target counts; a link into the same hub
cache is how the hub stores files and is allowed by naming that cache as an extra root).
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath

from whippet.errors import UsageError

MAX_NAME_BYTES = 1024


def inside(folder: Path, name: str, *, roots: tuple[Path, ...] = ()) -> Path:
    """Return ``folder / name``, or raise UsageError if ``name`` would leave ``folder`` (or one of ``roots``).

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
    joined = folder / posix
    target = joined.resolve()
    allowed = (folder.resolve(), *(root.resolve() for root in roots))
    if not any(target.is_relative_to(root) for root in allowed):
        raise UsageError(f"unsafe file name {shown}: it leads to {target}, outside {folder}")
    return joined
