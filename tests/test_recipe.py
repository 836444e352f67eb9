"""Recipes: every key round-trips, every mistake is one line that names the key."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from whippet.errors import UsageError
from whippet.options import Recipe, Source
from whippet.recipe import known_keys, make_recipe, parse_bytes, read_recipe, write_recipe

START = {"model": {"path": "some/model"}, "data": {"sources": ["a.jsonl"]}}


def test_defaults_round_trip(tmp_path: Path) -> None:
    recipe = make_recipe(START)
    write_recipe(recipe, tmp_path / "r.toml")
    assert read_recipe(tmp_path / "r.toml") == recipe


def test_every_key_round_trips(tmp_path: Path) -> None:
    other = {
        "out": 'runs/"quoted" \\ and – dash\n',
        "model": {"path": "m", "revision": "v2", "base": "bf16", "compute": "fp16", "device": "cpu",
                  "pad_token": "<p>"},
        "lora": {"r": 3, "alpha": 1e-7, "dropout": 0.25, "targets": ["q_proj"], "rslora": True},
        "data": {
            "sources": [{"path": "a", "weight": 0.5, "format": "text"}, "b"], "format": "alpaca", "template": "chatml",
            "train_on": "all", "max_length": 99, "packing": False, "eval_sources": ["c"], "streaming": True,
            "shuffle": False, "skip_bad": True,
            "template_variables": {"date_string": "26 \"Jul\"", "n": 3, "on": False, "x": ["1", {"a b": 0.5}], "y": ""},
        },
        "train": {
            "objective": "sft", "method": "lora", "max_steps": 5, "epochs": 2.5, "learning_rate": 1e-05,
            "schedule": "constant", "warmup": 10, "tokens_per_step": 512, "optimizer": "adamw8bit",
            "weight_decay": 0.0, "beta1": 0.8, "beta2": 0.95, "clip": 0, "seed": 7, "save_every": 2, "keep": 3,
            "eval_every": 4, "sample_every": 5, "sample_prompts": ["héllo\x7f"], "deterministic": True,
            "track": ["tensorboard"],
        },
        "memory": {"budget": "6.5GiB"},
        "energy": {"country": "FRA", "pue": 1.1, "renewable_share": 0.25, "gpu_watts": 300},
    }  # fmt: skip
    recipe = make_recipe(other)
    write_recipe(recipe, tmp_path / "r.toml")
    assert read_recipe(tmp_path / "r.toml") == recipe
    start = Recipe()
    for key in known_keys():
        table, _, name = key.partition(".")
        if key in ("train.objective", "train.method", "data.eval_fraction", "model.add_tokens"):
            continue
        now, was = (getattr(getattr(r, table), name) if name else getattr(r, table) for r in (recipe, start))
        assert now != was, f"{key} is not exercised by this test"


def test_tokens_to_add_round_trip(tmp_path: Path) -> None:
    typed = {"train.method": "full", "model.add_tokens": '["<think>", "a, b"]'}
    recipe = make_recipe(START, typed)
    write_recipe(recipe, tmp_path / "r.toml")
    assert read_recipe(tmp_path / "r.toml") == recipe and recipe.model.add_tokens == ("<think>", "a, b")


def test_overrides_take_command_line_text() -> None:
    recipe = make_recipe(
        START,
        {"lora.r": "32", "lora.targets": "q_proj, v_proj", "data.packing": "false", "train.learning_rate": "1e-4",
         "data.sources": '["x.json", "y.json"]', "data.template": "chatml", "train.tokens_per_step": "16_384"},
    )  # fmt: skip
    assert recipe.lora.r == 32 and recipe.lora.targets == ("q_proj", "v_proj")
    assert recipe.data.packing is False and recipe.train.learning_rate == 1e-4
    assert recipe.data.sources == (Source("x.json"), Source("y.json"))
    assert recipe.data.template == "chatml" and recipe.train.tokens_per_step == 16384


def test_a_table_of_free_names_is_set_as_a_whole_or_name_by_name() -> None:
    whole = make_recipe(START, {"data.template_variables": '{"enable_thinking": false, "date_string": "26 Jul 2024"}'})
    typed = {"data.template_variables.enable_thinking": "false", "data.template_variables.date_string": "26 Jul 2024"}
    assert make_recipe(START, typed).data == whole.data
    assert whole.data.template_variables == {"enable_thinking": False, "date_string": "26 Jul 2024"}
    data = {"sources": ["a"], "template_variables": {"year": "2024"}}
    held = make_recipe({**START, "data": data}, {"data.template_variables.n": "3"}).data.template_variables
    assert held == {"year": "2024", "n": 3}, "what a file has in quotes is text"


def test_an_override_leaves_the_rest_of_its_table() -> None:
    recipe = make_recipe({**START, "lora": {"r": 8, "alpha": 3.0}}, {"lora.r": 4})
    assert (recipe.lora.r, recipe.lora.alpha) == (4, 3.0)


def test_learning_rate_follows_the_method() -> None:
    assert make_recipe(START).train.learning_rate == 2e-4
    assert make_recipe(START, {"train.method": "full"}).train.learning_rate == 2e-5


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"lora.rank": "3"}, "Did you mean 'lora.r'?"),
        ({"train.scedule": "linear"}, "Did you mean 'train.schedule'?"),
        ({"learning_rate": "1"}, "Did you mean 'train.learning_rate'?"),
        ({"train.schedule": "cosin"}, "Did you mean 'cosine'?"),
        ({"train.max_steps": "many"}, "train.max_steps = 'many': must be a whole number"),
        ({"train.max_steps": True}, "must be a whole number"),
        ({"train.learning_rate": "nan"}, "finite"),
        ({"data.packing": "yes"}, "must be true or false"),
        ({"lora.targets": "q_prj"}, "Did you mean 'q_proj'?"),
        ({"lora.r": "0"}, "lora.r = 0: must be 1 or more"),
        ({"lora.dropout": "1"}, "lora.dropout = 1.0"),
        ({"memory.budget": "6 bananas"}, "memory.budget = '6 bananas'"),
        ({"data.eval_fraction": "0.9"}, "from 0 to 0.5"),
        ({"data.sources": "[1]"}, "data.sources"),
        ({"train.method": "full", "model.base": "nf4"}, "model.base = 'nf4'"),
        ({"train.method": "full", "lora.r": "4"}, "left out"),
        ({"model.path": ""}, "model.path"),
        ({"model.add_tokens": "<a>"}, "an adapter trains no rows"),
        ({"model.add_tokens": ["<a>", "<a>"], "train.method": "full"}, "model.add_tokens"),
        ({"model.add_tokens": [""], "train.method": "full"}, "must be texts that are not empty, each once"),
        ({"data": "x"}, "unknown recipe key 'data'"),
        ({"data.template_variables": "date"}, "data.template_variables = 'date': must be a table"),
        ({"data.template_variables": "x", "data.template_variables.y": "1"}, "must be a table"),
        ({"data.template_variable.x": "1"}, "unknown recipe key 'data.template_variable.x'"),
        ({"lora.r.x": "1"}, "unknown recipe key 'lora.r.x'"),
        ({"train.beta1": "1"}, "train.beta1"),
    ],
)
def test_mistakes_are_named(overrides: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        make_recipe(START, overrides)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[model]\npath = 'x'\n[lora]\nrank = 3\n[data]\nsources=['a']", "Did you mean 'lora.r'?"),
        ("[mdel]\npath = 'x'", "mdel"),
        ("model = 3", "must be a table"),
        ("= broken", "not a TOML recipe"),
        ("[model]\npath = 3", "model.path = 3"),
    ],
)
def test_mistakes_in_a_file_name_the_file(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_recipe(path)
    assert said in str(caught.value) and str(path) in str(caught.value)


def test_missing_recipe(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such recipe"):
        read_recipe(tmp_path / "none.toml")


@pytest.mark.parametrize(("text", "count"), [("6.5GiB", 6979321856), ("24GB", 24 * 10**9), ("800 MiB", 800 * 2**20)])
def test_sizes(text: str, count: int) -> None:
    assert parse_bytes(text, "k") == count


@pytest.mark.parametrize("text", ["", "GiB", "-1GiB", "nanGB", "infGB", "12", "1e400GB"])
def test_wrong_sizes(text: str) -> None:
    with pytest.raises(UsageError):
        parse_bytes(text, "k")


def test_every_option_has_a_docstring() -> None:
    """Each field says what it means, unless its name is plain among its neighbours (betas, seed, decay)."""
    import ast

    import whippet.options as options

    tree = ast.parse(Path(options.__file__).read_text())
    bare = []
    for cls in (n for n in tree.body if isinstance(n, ast.ClassDef)):
        for item, after in zip(cls.body, [*cls.body[1:], None], strict=True):
            said = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            if isinstance(item, ast.AnnAssign) and not said:
                bare.append(item.target.id)  # type: ignore[union-attr]
    assert set(bare) <= {"model", "lora", "data", "train", "memory", "energy", "weight_decay", "beta1", "beta2", "seed"}
    assert dataclasses.is_dataclass(Recipe)
