"""``whippet data check FILES...`` reports on records; ``whippet data show FILES...`` shows them as the model will.

``check`` ends with 3 if a record is bad. Both tell on standard output, with ``--json`` as JSON. They read the
tokenizer and the template of ``--model``, never its weights.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from whippet.errors import DataError, UsageError
from whippet.options import DataFormat, DataOptions, Source, TrainOn

if TYPE_CHECKING:
    from whippet.chat.render import Renderer

TINY = Path(__file__).resolve().parents[1] / "assets" / "tiny"
COUNT = 3


def configure(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    check = verbs.add_parser("check", help="count, measure and test every record", description=check_records.__doc__)
    show = verbs.add_parser("show", help="print records as the model will see them", description=show_records.__doc__)
    for sub in (check, show):
        sub.add_argument("data", nargs="+", metavar="DATA", help="files, folders or hub ids with records")
        sub.add_argument("--model", metavar="MODEL", help="whose tokenizer and template (default: the embedded model)")
        sub.add_argument("--revision", default="main", help="branch, tag or commit of a hub id (default: main)")
        sub.add_argument("--template", metavar="NAME|FILE", help="a chat template by name, or a .jinja file")
        sub.add_argument("--format", choices=get_args(DataFormat), default="auto", help="the form of the records")
        sub.add_argument("--train-on", choices=get_args(TrainOn), default="assistant", help="what carries loss")
        sub.add_argument("--json", action="store_true", help="print JSON")
    check.add_argument(
        "--max-length", type=int, metavar="N", help="longest example in tokens (default: 2048, or the model's context)"
    )
    show.add_argument("--count", type=int, default=COUNT, metavar="N", help=f"how many records (default: {COUNT})")


def run(args: argparse.Namespace) -> int:
    return check_records(args) if args.action == "check" else show_records(args)


def check_records(args: argparse.Namespace) -> int:
    """Read every record; report form, counts, lengths, duplicates, empty answers and each bad record by line, field
    and reason. Ends with 3 if any is bad."""
    from whippet.data.prepare import examine

    folder, renderer = _open(args)
    data = DataOptions(sources=_sources(args), format=args.format, train_on=args.train_on)
    longest = args.max_length if args.max_length is not None else min(data.max_length, _context(args, folder))
    if longest < 2:
        raise UsageError(f"--max-length {longest}: must be 2 or more")
    report = examine(data, renderer, max_length=longest, seed=0, on_progress=_tell_progress).report
    if sys.stderr.isatty():
        print(f"\r{'':<40}\r", end="", file=sys.stderr)
    if args.model is None:
        report.notes.append("tokens are those of the embedded model; --model MODEL counts them as yours does")
    print(json.dumps(report.as_dict(), ensure_ascii=False) if args.json else report.text(every=True))
    return DataError.exit_code if report.refused or not report.kept else 0


def show_records(args: argparse.Namespace) -> int:
    """Print the first records as tokens, coloured by loss weight, with all that the chat template adds. Where colours
    are unwanted, brackets stand around each token that is trained."""
    from whippet.cli.data_screen import print_example, print_example_as_json
    from whippet.data.examples import Maker, Problem, rows_of
    from whippet.data.sources import find

    if args.count < 1:
        raise UsageError(f"--count {args.count}: must be 1 or more")
    _, renderer = _open(args)
    maker = Maker(renderer, args.train_on, DataOptions().max_length)
    shown = bad = 0
    for source in _sources(args):
        for file in find(source).train:
            detected, rows = rows_of(file, args.format)
            for row in rows:
                if shown + bad >= args.count or detected is None:
                    break
                made = maker.make(row, detected.format)
                if isinstance(made, Problem):
                    bad += 1
                    print(f"whippet: {made}", file=sys.stderr)
                    continue
                shown += 1
                for example in made.examples:
                    if args.json:
                        print_example_as_json(example, made.where, renderer.tokenizer)
                    else:
                        print_example(example, f"{made.where}  {detected.format}", renderer.tokenizer)
    if not shown and not bad:
        raise DataError(f"{', '.join(args.data)}: no record to show")
    return DataError.exit_code if bad else 0


def _open(args: argparse.Namespace) -> tuple[Path, Renderer]:
    """The folder of the tokenizer, and the renderer that training would use."""
    from whippet.chat.render import make_renderer
    from whippet.chat.tokenizer import Tokenizer
    from whippet.infer.locate import locate

    found = locate(args.model if args.model is not None else TINY, revision=args.revision)
    folder = Path(found.base).expanduser()
    if not folder.is_dir():
        # Imported here, for it brings torch, which no model that is here already needs.
        from whippet.weights.load import resolve_model

        folder = resolve_model(found.base, found.revision, weights=False)
    template = args.template if args.template is not None else found.template
    told = found.template_variables if args.template is None else {}
    return folder, make_renderer(Tokenizer.load(folder), template, told)


def _context(args: argparse.Namespace, folder: Path) -> int:
    """Tokens that MODEL can take in, if its configuration says so."""
    unlimited = DataOptions().max_length
    if args.model is None:
        return unlimited
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return unlimited
    context = config.get("max_position_embeddings") if isinstance(config, dict) else None
    return context if isinstance(context, int) and context >= 2 else unlimited


def _sources(args: argparse.Namespace) -> tuple[Source, ...]:
    return tuple(Source(path) for path in args.data)


def _tell_progress(rows: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{rows:,} records", end="", file=sys.stderr, flush=True)
