"""How to use a model: the commands of whippet, transformers, vLLM and llama.cpp that run in the card's own folder.

Comes in: ``CardFacts``. Goes out: markdown. ``tests/report/test_card_usage.py`` runs what can be run.
"""

from __future__ import annotations

import re
from typing import Any

from whippet.report.card_facts import CardFacts
from whippet.report.card_text import plain
from whippet.report.folder import is_hub_id, public_name

SHELL_WORD = re.compile(r"[\w.+-]+", re.ASCII)
VLLM_UNASKED, VLLM_RANKS = 16, (32, 64, 128, 256, 320, 512)
"""The largest rank that vLLM takes unasked, and what ``--max-lora-rank`` may be beyond (its ``config/lora.py``)."""


def usage(facts: CardFacts) -> str:
    """The section, for the kind of files that lie beside the card."""
    ways = _gguf(facts) if is_gguf(facts) else _adapter(facts) if facts.relation == "adapter" else _whole(facts)
    parts = [f"{heading}\n\n```{language}\n{code}\n```" for heading, language, code in ways]
    return "\n\n".join(["## How to use", *parts, *(f"{plain(note)}." for note in facts.notes)])


def is_gguf(facts: CardFacts) -> bool:
    """Whether the card is of a file for llama.cpp."""
    return facts.export is not None and facts.export.get("format") == "gguf"


def _whole(facts: CardFacts) -> list[tuple[str, str, str]]:
    load = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'tokenizer = AutoTokenizer.from_pretrained(".")',
        'model = AutoModelForCausalLM.from_pretrained(".", dtype="auto")',
    ]
    return [
        ("In this folder, with whippet:", "sh", f"whippet {_ask(facts)}.{_tail(facts)}"),
        ("with transformers:", "python", _python(facts, load)),
        ("with vLLM:", "sh", f"vllm serve . --served-model-name {_word(facts.name)}"),
        ("with llama.cpp:", "sh", _convert(facts)),
    ]


def _adapter(facts: CardFacts) -> list[tuple[str, str, str]]:
    base = facts.base if is_hub_id(facts.base) else "BASE"
    where = "" if is_hub_id(facts.base) else f"; BASE is the folder of {plain(public_name(facts.base))}"
    load = [
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'tokenizer = AutoTokenizer.from_pretrained("{base}")',
        f'model = AutoModelForCausalLM.from_pretrained("{base}", dtype="auto")',
        'model = PeftModel.from_pretrained(model, ".")',
    ]
    rank: Any = facts.run.table("lora").get("r") if facts.run is not None else None
    rank = rank if isinstance(rank, int) else 0
    high = (
        next((f" --max-lora-rank {most}" for most in VLLM_RANKS if most >= rank), None) if rank > VLLM_UNASKED else ""
    )
    served = f"vllm serve {base} --enable-lora{high} --lora-modules {_word(facts.name)}=."
    return [
        (f"In this folder, with whippet{where}:", "sh", f"whippet {_ask(facts)}{base} --adapter .{_tail(facts)}"),
        ("with transformers and peft:", "python", _python(facts, load)),
        *([("with vLLM:", "sh", served)] if high is not None else []),
        ("with llama.cpp, merged:", "sh", _convert(facts)),
    ]


def _gguf(facts: CardFacts) -> list[tuple[str, str, str]]:
    assert facts.export is not None
    file = f"model-{facts.export.get('dtype')}.gguf"
    chat = f'llama-cli -m {file} -p "Once upon a time" -n 200' if not facts.chat else f"llama-cli -m {file} -cnv"
    return [("In this folder, with llama.cpp:", "sh", f"{chat}\nllama-server -m {file}")]


def _convert(facts: CardFacts) -> str:
    out = f"{_word(facts.name)}-gguf"
    return f"whippet export . --to gguf:q8_0 --out ../{out}\nllama-server -m ../{out}/model-q8_0.gguf"


def _python(facts: CardFacts, load: list[str]) -> str:
    asked = ['inputs = tokenizer("Once upon a time", return_tensors="pt")']
    if facts.chat:
        asked = [
            'messages = [{"role": "user", "content": "Hello!"}]',
            "inputs = tokenizer.apply_chat_template(",
            '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"',
            ")",
        ]
    answer = [
        "output = model.generate(**inputs, max_new_tokens=200)",
        'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))',
    ]
    return "\n".join([*load, *asked, *answer])


def _ask(facts: CardFacts) -> str:
    return "chat " if facts.chat else "generate "


def _tail(facts: CardFacts) -> str:
    return "" if facts.chat else ' --prompt "Once upon a time"'


def _word(name: str) -> str:
    """The name as a word that a shell takes as it stands."""
    return "-".join(SHELL_WORD.findall(name)).lstrip("-.") or "model"
