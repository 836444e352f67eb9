"""A run or a model as files for other programs, read back and compared before anybody relies on them.

Comes in: a run's folder, an adapter, a checkpoint or a hub id. Goes out: a folder, written under another name and
renamed when it is whole, with a model card and ``verify.json``. Formats: ``hf``, an ordinary checkpoint with the adapter
merged in fp32; ``adapter``, PEFT's layout. P: positions. V: vocabulary.
"""

from __future__ import annotations

import errno
import hashlib
import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor

from whippet.chat.messages import Message
from whippet.chat.render import Renderer, make_renderer
from whippet.chat.tokenizer import Tokenizer
from whippet.errors import GateError, ModelError, UsageError, WhippetError
from whippet.infer.locate import Located, locate
from whippet.model.decoder import Decoder
from whippet.model.families import config_to_hf
from whippet.model.size import parameters
from whippet.options import Base
from whippet.report.card import CardFacts, license_of, model_card
from whippet.report.compare import PROMPTS, QUESTIONS, Comparison, compare
from whippet.report.figures import count, size
from whippet.report.folder import public_name, read_run
from whippet.weights.adapter import load_adapter, read_adapter_config, save_adapter
from whippet.weights.files import read_json, sync_folder, write_json
from whippet.weights.hf import MAX_SHARD_BYTES, CheckpointReader, write_checkpoint
from whippet.weights.load import load_decoder, read_config, resolve_model
from whippet.weights.merge import merged_tensors
from whippet.weights.names import table
