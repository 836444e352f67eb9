"""Archives of torch (``.pth``, ``.bin``), the one place that opens any; and in them Meta's original checkpoints.

An archive is a pickle beside raw numbers, and a pickle can name code to run. It is opened only where a person asks for
it by name (``whippet convert``, ``layout="meta"``), and only if it is an uncompressed zip whose pickle names nothing
but tensors, their storages and dictionaries; then by torch with ``weights_only``, which checks that again, and mapped,
so that numbers are read when they are used.

Meta's layout is ``params.json`` and ``consolidated.NN.pth`` for each rank of model parallelism; ``meta_names.py`` says
what a rank holds of each matrix.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from whippet.errors import ModelError
from whippet.paths import within
from whippet.weights.header import TensorInfo
from whippet.weights.hf import CheckpointReader
from whippet.weights.meta_names import NARROWING, from_interleaved, hf_name, meta_name
from whippet.weights.meta_params import config_from_params, read_params

SHARD = re.compile(r"consolidated\.(\d{2,3})\.pth", re.ASCII)
MAX_PICKLE_BYTES = 64 * 2**20
"""That of a 70-billion-weight file is 100 KB."""
MAX_ENTRIES = 200_000
HARMLESS = re.compile(
    r"torch \w+Storage|torch\.storage UntypedStorage|torch\._utils _rebuild_(tensor_v2|parameter)"
    r"|collections OrderedDict",
    re.ASCII,
)
"""What a pickle of tensors names, spelled as its opcode has it."""
DTYPE_NAMES = {
    torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
DERIVED = "rope.freqs"
"""Held by old files, although the parameters determine it."""


def read_archive(path: Path) -> dict[str, Tensor]:
    """The tensors that an archive of torch holds, by name, mapped: on the CPU and not yet read.

    Raises ModelError for anything else than a dictionary of tensors, before any of it is opened if its pickle names
    more than those.
    """
    within(path.parent, path, error=ModelError)
    _check_archive(path)
    try:
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(f"{path}: cannot be read as an archive of tensors: {reason}") from error
    if not isinstance(held, dict) or not all(isinstance(name, str) for name in held):
        raise ModelError(f"{path}: holds a {type(held).__name__}; wanted tensors by name")
    for name, tensor in held.items():
        if not isinstance(tensor, Tensor) or tensor.is_sparse or tensor.dtype not in DTYPE_NAMES:
            raise ModelError(f"{path}: {name[:80]!r} is no plain tensor")
        if tensor.nbytes > tensor.untyped_storage().nbytes():
            raise ModelError(f"{path}: {name[:80]!r} claims more numbers than it has")
    return {name: tensor.detach() for name, tensor in held.items()}


def write_archive(path: Path, tensors: dict[str, Tensor]) -> None:
    """An archive of torch that holds ``tensors`` (on the CPU)."""
    torch.save(tensors, path)


def _check_archive(path: Path) -> None:
    """ModelError unless the file is a plain zip whose pickle names nothing that could run."""
    try:
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if len(entries) > MAX_ENTRIES or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise ModelError(f"{path}: compressed, which an archive of tensors is not")
            if sum(entry.file_size for entry in entries) > size:
                raise ModelError(f"{path}: its parts claim more than the {size:,} bytes that it has")
            pickles = [entry for entry in entries if entry.filename.endswith(".pkl")]
            if len(pickles) != 1 or pickles[0].file_size > MAX_PICKLE_BYTES:
                raise ModelError(f"{path}: wanted one pickle of at most {MAX_PICKLE_BYTES:,} bytes in it")
            raw = archive.read(pickles[0])
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise ModelError(
            f"{path}: no archive as torch writes them since version 1.6, and others are never opened"
        ) from error
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        opcodes = [(opcode.name, str(argument)) for opcode, argument, _ in pickletools.genops(raw)]
    except (ValueError, IndexError) as error:
        raise ModelError(f"{path}: its pickle is damaged") from error
    for name, argument in opcodes:
        named = name == "GLOBAL" and not HARMLESS.fullmatch(argument)
        if named or name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):
            raise ModelError(f"{path}: its pickle asks for {argument[:80]!r}, which no tensor needs")


def is_meta(folder: Path) -> bool:
    """Whether ``folder`` is laid out as Meta lays checkpoints out."""
    return (folder / "params.json").is_file() and bool(_shard_paths(folder))


class MetaReader(CheckpointReader):
    """The tensors of a folder in Meta's layout, joined and in Hugging Face's names and order of rows.

    Nothing of them is read before it is asked for. Raises ModelError for ranks that do not fit together.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        paths = _shard_paths(folder)
        if not paths:
            raise ModelError(f"{folder}: no consolidated.00.pth is there")
        for number, path in enumerate(paths):
            if path.name != f"consolidated.{number:02d}.pth":
                raise ModelError(f"{folder}: consolidated.{number:02d}.pth is missing, though {path.name} is there")
        self.params = read_params(folder / "params.json")
        self._ranks = [read_archive(path) for path in paths]
        self.tensors: dict[str, TensorInfo] = {}
        self.files: dict[str, Path] = {}
        for name in self._ranks[0]:
            if name == DERIVED:
                continue
            if any(name not in rank or rank[name].dtype != self._ranks[0][name].dtype for rank in self._ranks):
                raise ModelError(f"{folder}: {name!r} is not in every consolidated.NN.pth, or not in one dtype")
            ours, first = hf_name(name), self._ranks[0][name]
            shape = self._joined_shape(name)
            size = first.element_size() * torch.Size(shape).numel()
            self.tensors[ours] = TensorInfo(DTYPE_NAMES[first.dtype], shape, size)
            self.files[ours] = paths[0]
        for path, rank in zip(paths, self._ranks, strict=True):
            if stray := sorted(set(rank) - set(self._ranks[0])):
                raise ModelError(f"{path}: {stray[0]!r} is not in {paths[0].name}")
        self.tied = self._drop_tied_output()
        self.config = config_from_params(self.params, self.tensors, tied=self.tied, where=str(folder / "params.json"))

    def tensor(self, name: str, device: torch.device | str = "cpu") -> Tensor:
        """One tensor, in the file's dtype; of one rank that is not turned, a view of the mapped file."""
        theirs = meta_name(name)
        whole = self._joined(theirs)
        if theirs.endswith((".wq.weight", ".wk.weight")):
            whole = from_interleaved(whole, self.params["dim"] // self.params["n_heads"])
        return whole.to(device)

    def close(self) -> None:
        """Let go of the files. Tensors that were read stay valid."""
        self._ranks = []

    def _pieces(self, name: str) -> list[Tensor]:
        """What is to be joined: of key-value heads that several ranks share, the first's."""
        pieces = [rank[name] for rank in self._ranks]
        kv_heads = self.params["n_kv_heads"]
        if name.endswith((".wk.weight", ".wv.weight")) and len(pieces) > kv_heads:
            if len(pieces) % kv_heads:
                raise ModelError(f"{self.folder}: {len(pieces)} ranks cannot share {kv_heads} key-value heads")
            return pieces[:: len(pieces) // kv_heads]
        return pieces

    def _joined_shape(self, name: str) -> tuple[int, ...]:
        pieces = self._pieces(name)
        shape, axis = list(pieces[0].shape), self._axis(name)
        if any(piece.shape != pieces[0].shape for piece in pieces):
            raise ModelError(f"{self.folder}: {name!r} has other shapes in other ranks")
        if axis is not None:
            shape[axis] *= len(pieces)
        return tuple(shape)

    def _joined(self, name: str) -> Tensor:
        pieces, axis = self._pieces(name), self._axis(name)
        if axis is not None:
            return pieces[0] if len(pieces) == 1 else torch.cat(pieces, axis)
        if any(not torch.equal(piece, pieces[0]) for piece in pieces[1:]):
            raise ModelError(f"{self.folder}: {name!r} differs between ranks, which all hold the whole of it")
        return pieces[0]

    def _axis(self, name: str) -> int | None:
        first = self._ranks[0][name]
        if first.ndim != 2:
            return None
        if name.startswith("tok_embeddings."):
            return 0 if first.shape[1] == self.params["dim"] else 1
        return int(name.split(".")[-2] in NARROWING)

    def _drop_tied_output(self) -> bool:
        """Whether the output matrix is the embedding once more (Llama 3.2's small models): then it is left out."""
        head, embedding = "lm_head.weight", "model.embed_tokens.weight"
        if head not in self.tensors or embedding not in self.tensors:
            return False
        if self.tensors[head] != self.tensors[embedding] or not torch.equal(self.tensor(head), self.tensor(embedding)):
            return False
        del self.tensors[head]
        return True


def _shard_paths(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("consolidated.*.pth") if SHARD.fullmatch(path.name))
