"""Hostile file names, and a made-up hub cache, for tests of what may be read and written."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path

CLIMBS = ["..", "../x", "a/../../x", "a/b/../../../x", "./../x", "a/..", "a/.. /x", "a/.../x", "a/. ./x", "..\\x"]
ROOTS = ["/etc/passwd", "//host/share", "/", "\\\\host\\share\\x", "\\x", "C:x", "C:\\x", "c:/x", "\\\\?\\C:\\x"]
ODD = ["", "\x00", "a\x00b", "~", "~root/x", "x" * 5000, "a/" * 600 + "x", "file:///etc/passwd", "a:b", "x\\..\\..\\y"]
PREFIXES = ["", "a/", "model/", "./", "a/b/c/", "é/", "x.safetensors/", "0/", "a a/", "-/"]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def hostile() -> list[str]:
    """More than 300 names that no honest index holds."""
    made = [
        prefix + name
        for prefix, name in itertools.product(PREFIXES, [*CLIMBS[:3], "../../../../x", "../../../../../etc"])
    ]
    made += [
        name + suffix for name, suffix in itertools.product(ROOTS, ["", "x", ".safetensors", "/..", "/a/b", "\x00"])
    ]
    made += [text.replace("/", "\\") for text in made if "/" in text and ".." in text]
    made += [f"{'../' * n}{tail}" for n, tail in itertools.product(range(1, 30), ["x", "tmp/x", "etc/passwd"])]
    made += [f"a{sep}..{sep}..{sep}{n}" for sep, n in itertools.product(["/", "\\", "//"], range(20))]
    return sorted({*made, *CLIMBS, *ROOTS, *ODD} - {"a/..", "a/../x", "model/../x"})


def hub_cache(cache: Path, repository: str, source: Path, *, shared: bool) -> Path:
    """Store the files of ``source`` as the hub does; ``repository``: ``models--org--name`` or ``datasets--org--name``.

    Each is a blob under its hash, and a link to that in the snapshot, which is returned. ``shared`` moves the blobs of
    large files (here: all but .json) into the store that a cache's repositories share, as huggingface_hub 2 does.
    """
    home = cache / repository
    snapshot = home / "snapshots" / COMMIT
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text(COMMIT)
    (home / "blobs").mkdir()
    for path in sorted(source.rglob("*")):
        if not path.is_file():
            continue
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        blob, link = home / "blobs" / digest, snapshot / path.relative_to(source)
        if blob.exists():
            pass  # files of the same content share one
        elif shared and path.suffix != ".json":
            store = cache / "blobs" / digest[:2]
            store.mkdir(parents=True, exist_ok=True)
            (cache / "blobs" / ".huggingface-shared-blobs").write_text("1\n")
            (store / digest).write_bytes(path.read_bytes())
            blob.symlink_to(Path("..", "..", "blobs", digest[:2], digest))
        else:
            blob.write_bytes(path.read_bytes())
        link.parent.mkdir(parents=True, exist_ok=True)
        up = [".."] * (len(path.relative_to(source).parts) + 1)
        link.symlink_to(Path(*up, "blobs", digest))
    return snapshot
