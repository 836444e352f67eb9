"""``whippet bench``: the figures of the machine that it runs on, and of others that train, beside them.

Figures go to standard output as each is measured; with ``--json`` as one object at the end. ``--out`` is written anew
with each, so that what was measured stays, whatever happens next.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whippet.errors import UsageError

if TYPE_CHECKING:
    from whippet.bench.peers import Peers
    from whippet.bench.results import Result
    from whippet.bench.settings import Row

PEERS = ("none", "unsloth", "hf", "all")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", metavar="NAME,...", help="only these rows of the table (wrong names list them)")
    parser.add_argument("--steps", type=int, default=10, metavar="N", help="steps that are timed (default: 10)")
    parser.add_argument("--device", default="auto", help="cuda, cuda:1, cpu (default: a GPU if there is one)")
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
        "--peer-limit", type=float, default=600.0, metavar="S", help="seconds that a peer may take (default: 600)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the figures there, as JSON")
    parser.add_argument("--chart", type=Path, metavar="FILE.png", help="also draw them there")
    parser.add_argument("--from", dest="source", type=Path, metavar="FILE", help="show what --out wrote; run nothing")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")


def run(args: argparse.Namespace) -> int:
    if args.chart is not None and args.chart.suffix != ".png":
        raise UsageError(f"--chart {args.chart}: wanted a name that ends with .png")
    if args.source is not None:
        return _show(args)
    for name, value in (("--steps", args.steps), ("--peer-limit", args.peer_limit)):
        if value < 1:
            raise UsageError(f"{name} {value}: must be 1 or more")
    wanted = _rows(args)
    from whippet.bench import settings, table
    from whippet.bench.results import HEAD, as_json
    from whippet.weights.load import choose_device

    device = choose_device(args.device)
    rows = wanted or (settings.ROWS if device.type == "cuda" else settings.CPU_ROWS)
    contexts = tuple(args.context.split(",")) if args.context else ()
    if contexts and "context" not in [row.name for row in rows]:
        raise UsageError("--context needs the row context among those that are measured")
    peers, silent = _peers(args, str(device))
    around = table.Around(device, args.steps, table.by_shape(args.checkpoint), args.records, contexts, peers)
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
    for result in table.measure_rows(rows, around):
        results.append(result)
        print(result, file=talk, flush=True)
        about["versions"] |= {"peers": peers.versions} if peers.names else {}
        if args.out is not None:
            args.out.write_text(json.dumps(as_json(about, results), indent=1) + "\n", encoding="utf-8")
    if args.chart is not None:
        _draw(args.chart, about, results)
    if args.json:
        print(json.dumps(as_json(about, results)))
    return int(any(one.ours.failed for one in results) or all(one.ours.value is None for one in results))


def asked(args: argparse.Namespace) -> list[str]:
    """The options that were given, in one order."""
    words = ["--rows", args.rows] if args.rows else []
    words += ["--steps", str(args.steps), "--device", args.device]
    words += [word for path in args.checkpoint for word in ("--checkpoint", str(path))]
    for name in ("records", "context", "peers", "peer_path", "out", "chart"):
        if (value := getattr(args, name)) is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return words


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
    return Peers(names, device, args.peer_path, args.peer_limit), ""


def _show(args: argparse.Namespace) -> int:
    """Stored results, printed and drawn."""
    given = [name for name in ("rows", "records", "context", "peers", "peer_path", "out") if getattr(args, name)]
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
