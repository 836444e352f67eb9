"""A run or a model as files for other programs, read back and compared before anybody relies on them.

Comes in: a run's folder, an adapter, a checkpoint or a hub id. Goes out: a folder, written under another name and
renamed when it is whole, with a model card and ``verify.json``. Formats: ``hf``, an ordinary checkpoint with the
adapter merged in fp32; ``adapter``, PEFT's layout; ``gguf:TYPE``, one file for llama.cpp (``weights/gguf.py``).
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from whippet.chat.render import Renderer, make_renderer
from whippet.chat.tokenizer import Tokenizer
from whippet.errors import GateError, UsageError, WhippetError
from whippet.infer.locate import RECIPE, Located, locate
from whippet.lora import adapter_parameters
from whippet.model.config import ModelConfig
from whippet.model.decoder import Decoder
from whippet.model.families import config_to_hf
from whippet.model.size import parameters
from whippet.options import Base
from whippet.paths import within
from whippet.report.card import CardFacts, model_card
from whippet.report.card_facts import Relation
from whippet.report.compare import Comparison, compare
from whippet.report.exported import ExportReport
from whippet.report.figures import size
from whippet.report.folder import RunFacts, read_run
from whippet.report.licences import carry_licence, languages_of, license_of
from whippet.verify import Ledger, bases_distance, check_tensors, check_words, digest, probe_logits, probes
from whippet.weights import gguf, gguf_check
from whippet.weights.adapter import WEIGHTS, load_adapter, read_adapter_config, save_adapter
from whippet.weights.files import read_json, sync_folder, write_json
from whippet.weights.gguf_meta import model_pairs
from whippet.weights.gguf_mix import MIXES
from whippet.weights.gguf_names import for_llama_cpp
from whippet.weights.gguf_read import GGUFFile
from whippet.weights.gguf_words import model_name, word_pairs
from whippet.weights.hf import MAX_SHARD_BYTES, CheckpointReader, write_checkpoint
from whippet.weights.load import choose_device, load_decoder, read_config, resolve_model
from whippet.weights.merge import merged_tensors

FORMATS = ("hf", "adapter", *(f"gguf:{mix}" for mix in MIXES))
MERGE_ONTO = ("trained", "16bit")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
DTYPE_NAMES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
DRAWING_KEYS = ("do_sample", "temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""What is kept of the base's generation_config.json; its special tokens are written anew."""
SIDE_BYTES = 64 * 2**20
"""Room for tokenizer, card and the like, asked for before anything is written."""
CURVE = "loss.png"


@dataclass(frozen=True)
class Material:
    """A source, opened: everything that an export needs but the weights."""

    located: Located
    folder: Path
    """The checkpoint's folder."""
    config: ModelConfig
    renderer: Renderer
    run: RunFacts | None
    device: str
    trained: Base
    """How the base was held in training."""
    stored: Base
    """How the base's own files are held without loss."""
    quantised: bool
    """Whether those files are 4 bit themselves."""

    @property
    def tokenizer(self) -> Tokenizer:
        return self.renderer.tokenizer

    @property
    def pad_token(self) -> str | None:
        """The padding token of the recipe, if it names one."""
        return self.run.table("model").get("pad_token") if self.run is not None else None

    def save_words(self, folder: Path) -> None:
        """The tokenizer's files, with the template that was trained with and what it was told."""
        template = self.renderer.template.source if self.renderer.template is not None else None
        told = self.renderer.variables
        self.tokenizer.save(folder, chat_template=template, pad_token=self.pad_token, variables=told)

    def decoder(self, base: Base) -> Decoder:
        """The live model: the base held so, the adapter over it, computing in fp32."""
        decoder = load_decoder(self.folder, base=base, compute="fp32", device=self.device)
        if self.located.adapter is not None:
            load_adapter(decoder, self.located.adapter)
        return decoder


@dataclass(frozen=True)
class Written:
    """What a writer has done in the folder."""

    parameters: int
    comparison: Comparison
    merged_onto: str | None = None
    bases_distance: float | None = None
    against_trained: Comparison | None = None
    notes: tuple[str, ...] = ()


def export(
    source: str | Path,
    to: str = "hf",
    out: str | Path | None = None,
    *,
    dtype: str = "bf16",
    merge_onto: str = "trained",
    device: str = "auto",
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> ExportReport:
    """Write ``source`` to the folder ``out`` (by default ``hf`` in a run's folder) and compare it with the live model.

    dtype: of the merged weights, ``bf16``, ``fp16`` or ``fp32``; an adapter stays fp32, and the type of a GGUF file is
    in its format's name. merge_onto: ``trained`` adds
    the adapter to exactly the weights that it was trained over (dequantised, if those were 4 bit), ``16bit`` to those
    of the unquantised checkpoint. Raises UsageError for what cannot be exported, and GateError if what was written
    answers differently from the model; then the files stay, with ``"passed": false`` in ``verify.json``.
    """
    started = time.monotonic()
    for name, value, known in (("to", to, FORMATS), ("dtype", dtype, DTYPES), ("merge-onto", merge_onto, MERGE_ONTO)):
        if value not in known:
            raise UsageError(f"--{name} {value}: not known; known: {', '.join(known)}")
    folder = _free_folder(source, to, out)
    material = _open(str(source), device)
    _check_possible(material, str(source), to, merge_onto)
    mix = to.partition(":")[2]
    if mix and dtype != "bf16":
        raise UsageError(f"--dtype {dtype}: the type of a GGUF file is chosen by --to gguf:TYPE")
    dtype = mix or ("fp32" if to == "adapter" else dtype)
    with _written_aside(folder, _bytes_needed(material, to, dtype)) as aside:
        if to == "adapter":
            written = _write_adapter(material, aside)
        elif mix:
            written = _write_gguf(material, aside, mix, merge_onto)
        else:
            written = _write_merged(material, aside, dtype, merge_onto, max_shard_bytes)
        report = ExportReport(
            format="gguf" if mix else to,
            out=folder,
            dtype=dtype,
            bytes=sum(path.stat().st_size for path in aside.iterdir()),
            trained_base=material.trained,
            seconds=round(time.monotonic() - started, 3),
            **vars(written),
        )
        write_json(aside / "verify.json", report.as_dict())
        _write_card(material, report, aside)
    if not report.passed:
        raise GateError(
            f"{folder}: the files answer differently from the model: mean KL {report.comparison.mean_kl:.3g} nats, at "
            f"most {report.bound_mean_kl:g} is allowed; verify.json there holds the figures"
        )
    return report


def _open(source: str, device: str) -> Material:
    located = locate(source)
    folder = resolve_model(located.base, located.revision)
    config, quantised = read_config(folder)
    run = read_run(Path(source)) if (Path(source) / RECIPE).is_file() else None
    told = run.table("data").get("template_variables", {}) if run is not None else {}
    if not isinstance(told, dict):
        raise UsageError(f"{Path(source) / RECIPE}: data.template_variables is {told!r:.60}, wanted a table")
    renderer = make_renderer(Tokenizer.load(folder), located.template, told)
    with CheckpointReader(folder) as reader:
        # 16-bit floats other than bf16 are held exactly in fp32 only.
        stored: Base = "bf16" if reader.tensors["model.embed_tokens.weight"].dtype == "BF16" else "fp32"
    trained: Base = located.stored_as if located.stored_as != "auto" else "nf4" if quantised else stored
    return Material(located, folder, config, renderer, run, device, trained, stored, quantised)


def _check_possible(material: Material, source: str, to: str, merge_onto: str) -> None:
    if to == "adapter" and material.located.adapter is None:
        raise UsageError(f"{source} has no adapter; --to hf writes it as a whole model")
    if to.startswith("gguf:"):
        gguf.import_gguf()
    if merge_onto == "16bit" and material.quantised:
        raise UsageError(
            f"--merge-onto 16bit: the base {material.located.base} is 4 bit itself, so its unquantised weights are not "
            "at hand; --merge-onto trained adds the adapter to the weights that it was trained over"
        )


def _write_merged(material: Material, folder: Path, dtype: str, merge_onto: str, max_shard_bytes: int) -> Written:
    """An ordinary checkpoint. One model is in memory at a time, and of the files one shard."""
    prompts = probes(material.renderer, material.config.context)
    live, logits_PV, distance, against = _live(material, prompts, merge_onto)
    ledger = Ledger()
    tensors = ledger.watched(merged_tensors(live, DTYPES[dtype]))
    write_checkpoint(folder, tensors, max_shard_bytes=max_shard_bytes)
    config = live.config
    del live, tensors
    _write_settings(material, config, folder, dtype)
    check_tensors(folder, ledger)
    check_words(folder, material.renderer, material.pad_token)
    back = load_decoder(folder, base="bf16" if dtype == "bf16" else "fp32", compute="fp32", device=material.device)
    comparison = compare(logits_PV, probe_logits(back, prompts))
    onto = merge_onto if material.located.adapter is not None else None
    return Written(ledger.num_parameters, comparison, onto, distance, against)


def _write_gguf(material: Material, folder: Path, mix: str, merge_onto: str) -> Written:
    """One file. The model that is compared is read from it alone, metadata and all."""
    config, notes = for_llama_cpp(material.config)
    prompts = probes(material.renderer, config.context)
    live, logits_PV, distance, against = _live(material, prompts, merge_onto)
    # Matrices that an adapter parted are the live model's, not the checkpoint's.
    config = replace(config, tie_embeddings=live.config.tie_embeddings)
    with TemporaryDirectory(dir=folder) as scratch:
        material.save_words(Path(scratch))
        described = read_json(Path(scratch) / "tokenizer.json")
    words, more = word_pairs(material.renderer, described, config.vocab_size)
    name = material.run.name if material.run is not None else material.folder.name
    pairs = model_pairs(config, mix, model_name(name, described)) | words
    plan, ledger = gguf.planned(config, mix), Ledger()
    tensors = ledger.watched(gguf.packed(config, merged_tensors(live), plan, live.device))
    path = folder / f"model-{mix}.gguf"
    gguf.write_gguf(path, pairs, plan, tensors)
    del live, tensors
    with GGUFFile(path) as file:
        gguf_check.check_file(file, plan, ledger.digests, digest)
        gguf_check.check_words(file, material.renderer, pairs)
        back = gguf.load_gguf(file, choose_device(material.device))
    comparison = compare(logits_PV, probe_logits(back, prompts))
    onto = merge_onto if material.located.adapter is not None else None
    notes = (*notes, *more, *gguf.substituted(plan, mix))
    return Written(parameters(config), comparison, onto, distance, against, notes)


def _live(
    material: Material, prompts: list[list[int]], merge_onto: str
) -> tuple[Decoder, Tensor, float | None, Comparison | None]:
    """The model that is written, its logits, how far the trained base is from the unquantised one, and, if the adapter
    goes over the latter, how far that model is from the trained one."""
    live = material.decoder(material.trained)
    logits_PV = probe_logits(live, prompts)
    distance = None if material.quantised else bases_distance(live, material.folder)
    if merge_onto == "trained" or material.trained == material.stored:
        return live, logits_PV, distance or None, None
    del live
    live = material.decoder(material.stored)
    trained_PV, logits_PV = logits_PV, probe_logits(live, prompts)
    return live, logits_PV, distance or None, compare(trained_PV, logits_PV)


def _write_adapter(material: Material, folder: Path) -> Written:
    """PEFT's layout, with the tokenizer and template that it was trained with."""
    assert material.located.adapter is not None
    prompts = probes(material.renderer, material.config.context)
    live = material.decoder(material.trained)
    logits_PV = probe_logits(live, prompts)
    options, named = read_adapter_config(material.located.adapter)
    base, revision = named or material.located.base, material.located.revision
    notes = save_adapter(live, options, folder, base, revision=revision)
    num_parameters = sum(factor.numel() for factor in adapter_parameters(live).values())
    del live
    material.save_words(folder)
    back = load_decoder(material.folder, base=material.trained, compute="fp32", device=material.device)
    load_adapter(back, folder)
    return Written(num_parameters, compare(logits_PV, probe_logits(back, prompts)), notes=tuple(notes))


def _write_settings(material: Material, config: ModelConfig, folder: Path, dtype: str) -> None:
    """config.json of what was written, generation_config.json and the tokenizer's files."""
    tokenizer, pad = material.tokenizer, material.pad_token
    stops = sorted(material.renderer.stop_ids)
    ids = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": stops[0] if len(stops) == 1 else stops or None,
        "pad_token_id": tokenizer.token_id(pad) if pad is not None else tokenizer.pad_id,
    }
    special: dict[str, Any] = {key: value for key, value in ids.items() if value is not None}
    write_json(folder / "config.json", config_to_hf(config, dtype=DTYPE_NAMES[dtype], extra=special))
    before = material.folder / "generation_config.json"
    base = read_json(before) if before.is_file() else {}
    drawing = {key: base[key] for key in DRAWING_KEYS if base.get(key) is not None}
    write_json(folder / "generation_config.json", special | drawing)
    material.save_words(folder)


def _write_card(material: Material, report: ExportReport, folder: Path) -> None:
    run, curve = material.run, None
    if run is not None and (run.folder / CURVE).is_file():
        shutil.copyfile(within(run.folder, run.folder / CURVE), folder / CURVE)
        curve = CURVE
    base = str(run.table("model").get("path") or material.located.base) if run is not None else material.located.base
    licence = license_of(material.folder, base)
    relation: Relation = "finetune"
    if report.format == "adapter":
        relation = "adapter"
    elif run is None and material.located.adapter is None and report.format.startswith("gguf"):
        relation = "quantized"
    facts = CardFacts(
        name=run.name if run is not None and report.out.parent == run.folder else report.out.name,
        base=base,
        relation=relation,
        run=run,
        chat=material.renderer.template is not None,
        license=licence,
        languages=languages_of(material.folder),
        export=report.as_dict(),
        curve=curve,
        notes=report.notes,
    )
    (folder / "README.md").write_text(model_card(facts), encoding="utf-8")
    carry_licence(material.folder, licence, folder)


def _bytes_needed(material: Material, to: str, dtype: str) -> int:
    if to == "adapter":
        assert material.located.adapter is not None
        return (material.located.adapter / WEIGHTS).stat().st_size + SIDE_BYTES
    if dtype in MIXES:
        return gguf.planned_bytes(gguf.planned(for_llama_cpp(material.config)[0], dtype)) + SIDE_BYTES
    return parameters(material.config) * DTYPES[dtype].itemsize + SIDE_BYTES


def _free_folder(source: str | Path, to: str, out: str | Path | None) -> Path:
    """The absolute path of the folder to write: absent, or there and empty."""
    if out is None:
        if not (Path(source) / RECIPE).is_file():
            raise UsageError(f"{source} is no run's folder, so say where to write: --out DIR")
        out = Path(source) / to.replace(":", "-")
    folder = Path(out).expanduser().absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is there already and not an empty folder; choose another with --out")
    return folder


@contextmanager
def _written_aside(folder: Path, needed: int) -> Iterator[Path]:
    """A folder beside ``folder`` that takes its name on success and is removed on failure.

    WhippetError if the disk lacks ``needed`` bytes, before or while writing.
    """
    home = next(path for path in folder.parents if path.is_dir())
    free = shutil.disk_usage(home).free
    if free < needed:
        raise WhippetError(f"{folder}: the export needs {size(needed)} and {size(free)} are free there")
    aside = folder.with_name(f".{folder.name}.partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # What a killed export left under this name is nobody's.
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        yield aside
        sync_folder(aside)
        if folder.exists():
            folder.rmdir()
        aside.replace(folder)
        sync_folder(folder.parent)
    except (OSError, SafetensorError) as error:
        free = shutil.disk_usage(home).free
        raise WhippetError(
            f"{folder}: cannot be written: {error} (it needs {size(needed)}; {size(free)} are free there)"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
