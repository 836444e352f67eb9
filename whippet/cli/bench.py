"""``whippet bench``: the figures of the machine that it runs on, and of others that train, beside them.

Figures go to standard output as each is measured; with ``--json`` as one object at the end. ``--out`` is written anew
with each, so that what was measured stays, whatever happens next.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from whippet.errors import UsageError
from whippet.train.signals import Terminated

if TYPE_CHECKING:
    from whippet.bench.peers import Peers
    from whippet.bench.results import Result
    from whippet.bench.settings import Row

PEERS = ("none", "unsloth", "hf", "all")
STEPS, DEVICE, PEER_LIMIT = 10, "auto", 600.0
"""Where none is given."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", metavar="NAME,...", help="only these rows of the table (wrong names list them)")
    parser.add_argument("--steps", type=int, metavar="N", help=f"steps that are timed (default: {STEPS})")
    parser.add_argument("--device", help="cuda, cuda:1, cpu (default: a GPU if there is one)")
    parser.add_argument(
        "--checkpoint",
        action="append",
        type=Path,
        default=[],
        metavar="PATH",
        help="a checkpoint of a row's shape: for cold starts, records and peers; may be given once a shape",
    )
    parser.add_argument("--records", type=Path, metavar="FILE", help="real records, in any form that finetune reads")
    parser.add_argument(
        "--context", metavar="SIZE,...", help="run one step at the longest context of these caps, such as 16GB"
    )
    parser.add_argument(
        "--peers", choices=PEERS, help="others to run beside ours (default: those installed, with --checkpoint)"
    )
    parser.add_argument("--peer-path", type=Path, metavar="DIR", help="PYTHONPATH of the peers' processes")
    parser.add_argument(
        "--peer-limit", type=float, metavar="S", help=f"seconds that a peer may take (default: {PEER_LIMIT:.0f})"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the figures there, as JSON")
    parser.add_argument("--chart", type=Path, metavar="FILE.png", help="also draw them there")
    parser.add_argument("--from", dest="source", type=Path, metavar="FILE", help="show what --out wrote; run nothing")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(args: argparse.Namespace) -> int:
    if args.chart is not None and args.chart.suffix != ".png":
        raise UsageError(f"--chart {args.chart}: wanted a name that ends with .png")
    _check_place("--chart", args.chart)
    if args.source is not None:
        return _show(args)
    _check_place("--out", args.out)
    steps = STEPS if args.steps is None else args.steps
    for name, value in (("--steps", steps), ("--peer-limit", _peer_limit(args))):
        if not value >= 1:
            raise UsageError(f"{name} {value}: must be 1 or more")
    wanted = _rows(args)
    from whippet.bench import settings, table
    from whippet.bench.context import check_caps
    from whippet.bench.results import HEAD, as_json
    from whippet.weights.files import write_json
    from whippet.weights.load import choose_device

    device = choose_device(args.device or DEVICE)
    rows = wanted or (settings.ROWS if device.type == "cuda" else settings.CPU_ROWS)
    contexts = () if args.context is None else tuple(args.context.split(","))
    if contexts and "context" not in [row.name for row in rows]:
        raise UsageError("--context needs the row context among those that are measured")
    check_caps(contexts, device)
    peers, silent = _peers(args, str(device))
    around = table.Around(device, steps, table.by_shape(args.checkpoint), args.records, contexts, peers)
    notes = list(table.left_out(rows, around))
    if wanted and notes:
        raise UsageError("; ".join(notes))
    notes += [silent] if silent else []
    about = table.circumstances(device) | {"command": shlex.join(["whippet", "bench", *asked(args)]), "notes": notes}
    talk = sys.stderr if args.json else sys.stdout
    names = f"; beside {', '.join(peers.names)}" if peers.names else ""
    title = f"{about['device']}, attention by {about['attention']}{names}"
    print(title, *notes, HEAD, sep="\n", file=talk, flush=True)
    results = []
    with _ended_by_hangup():
        for result in table.measure_rows(rows, around):
            results.append(result)
            print(result, file=talk, flush=True)
            about["versions"] |= {"peers": peers.versions} if peers.names else {}
            if args.out is not None:
                write_json(args.out.resolve(), as_json(about, results))
    if args.chart is not None:
        _draw(args.chart, about, results)
    if args.json:
        print(json.dumps(as_json(about, results)))
    return int(any(one.ours.failed for one in results) or all(one.ours.value is None for one in results))


def asked(args: argparse.Namespace) -> list[str]:
    """The options that were given, in one order; steps and device always."""
    words = ["--rows", args.rows] if args.rows else []
    words += ["--steps", str(STEPS if args.steps is None else args.steps), "--device", args.device or DEVICE]
    words += [word for path in args.checkpoint for word in ("--checkpoint", str(path))]
    for name in ("records", "context", "peers", "peer_path", "peer_limit", "out", "chart"):
        if (value := getattr(args, name)) is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return words


def _peer_limit(args: argparse.Namespace) -> float:
    return PEER_LIMIT if args.peer_limit is None else float(args.peer_limit)


def _check_place(option: str, path: Path | None) -> None:
    """UsageError if no file can be written to ``path``: that should not be learnt after an hour."""
    if path is None:
        return
    folder = path.resolve().parent
    if not folder.is_dir():
        raise UsageError(f"{option} {path}: there is no folder {folder}")
    if path.exists() and not path.is_file():
        raise UsageError(f"{option} {path}: is there and no file")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{option} {path}: nothing can be written to {folder}")


@contextlib.contextmanager
def _ended_by_hangup() -> Iterator[None]:
    """Let SIGHUP (a closed terminal) raise ``Terminated`` here: children have sessions of their own, and are ended by
    nobody else."""
    in_main = threading.current_thread() is threading.main_thread()
    # Where it is ignored (nohup), it stays so.
    if sys.platform == "win32" or not in_main or signal.getsignal(signal.SIGHUP) is not signal.SIG_DFL:
        yield
        return

    def arrived(number: int, frame: FrameType | None) -> None:
        # The shell and the kernel may both send one: a second must not stop the first from ending children.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        raise Terminated

    signal.signal(signal.SIGHUP, arrived)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def _rows(args: argparse.Namespace) -> tuple[Row, ...]:
    """Those that were named, in the table's order; none if none were."""
    if not args.rows:
        return ()
    from whippet.bench.settings import CPU_ROWS, ROWS

    known = {row.name: row for row in (*ROWS, *CPU_ROWS)}
    names = args.rows.split(",")
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"--rows: {unknown[0]!r} is no row; known: {', '.join(known)}")
    return tuple(row for name, row in known.items() if name in names)


def _peers(args: argparse.Namespace, device: str) -> tuple[Peers, str]:
    """Those that will be run, perhaps none; and what is to be said about that."""
    from whippet.bench.peers import PACKAGES, SCRIPT, Peers, importable

    if args.peer_path is not None and not args.peer_path.is_dir():
        raise UsageError(f"--peer-path {args.peer_path}: no such folder")
    named = {None: (), "none": (), "all": tuple(PACKAGES)}.get(args.peers, (args.peers,))
    if named and not args.checkpoint:
        raise UsageError(f"--peers {args.peers}: they need a --checkpoint to load")
    there = [name for name in PACKAGES if importable(name, args.peer_path)]
    if absent := [name for name in named if name not in there]:
        raise UsageError(f"--peers {args.peers}: cannot be imported: {', '.join(PACKAGES[absent[0]])}; see --peer-path")
    names = list(named) if named else there if args.peers is None and args.checkpoint else []
    if names and not SCRIPT.is_file():
        if named:
            raise UsageError(f"--peers {args.peers}: {SCRIPT} is missing; run from a checkout of the repository")
        return Peers([]), f"no peers: {SCRIPT.name} lies in the repository, and this installation is not in one"
    return Peers(names, device, args.peer_path, _peer_limit(args)), ""


def _show(args: argparse.Namespace) -> int:
    """Stored results, printed and drawn."""
    names = ("rows", "records", "context", "peers", "peer_path", "out", "steps", "peer_limit", "device")
    given = [name for name in names if getattr(args, name) is not None]
    if given or args.checkpoint:
        odd = "checkpoint" if args.checkpoint else given[0].replace("_", "-")
        raise UsageError(f"--from runs nothing, so --{odd} has no meaning beside it")
    from whippet.bench.results import HEAD, as_json, read_results

    about, results = read_results(args.source)
    if args.chart is not None:
        _draw(args.chart, about, results)
    if args.json:
        print(json.dumps(as_json(about, results)))
        return 0
    print(HEAD)
    for result in results:
        print(result)
    return 0


def _draw(path: Path, about: dict[str, Any], results: Sequence[Result]) -> None:
    from whippet.bench.chart import draw

    draw(path, about, results)
