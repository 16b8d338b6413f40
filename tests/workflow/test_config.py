"""The configuration: defaults, every mistake at once, each line with key, value and way out."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path

import pytest
import yaml

from conftest import REPOSITORY, fake_model, snakemake
from mechatlas import config_docs
from mechatlas.config import ConfigError, complete_config, load_schema, sources_of
from mechatlas.explain.fit import FitSettings, settings_from
from mechatlas.explain.fit_scores import ScoreFit
from mechatlas.io import seed_for


def good() -> dict:
    return {
        "models": {"mine": {"path": "model"}},
        "sources": {
            "wiki": {"kind": "synthetic", "style": "wiki"},
            "notes": {"kind": "text", "files": ["text/*.txt"]},
        },
    }


def changed(path: str, value: object) -> dict:
    config = copy.deepcopy(good())
    *parents, last = path.split("/")
    inner = config
    for name in parents:
        inner = inner.setdefault(name, {})
    inner[last] = value
    return config


def errors_of(config: dict, place: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        complete_config(config, place, place / "nowhere")
    assert all("\n" not in line for line in caught.value.errors)
    return caught.value.errors


def test_defaults_are_filled_in_at_every_depth(place: Path) -> None:
    config = complete_config(good(), place, place)
    assert config["seed"] == 0
    assert config["sampling"]["split"] == {"train": 0.5, "validation": 0.2, "test": 0.3}
    assert config["models"]["mine"] == {"path": "model", "bos": None, "sources": None}
    assert config["sources"]["notes"]["text_key"] == "text"
    partial = complete_config(changed("sampling/windows", 10), place, place)
    assert (partial["sampling"]["windows"], partial["sampling"]["window_len"]) == (10, 192)


def test_completion_is_idempotent_and_leaves_its_input_alone(place: Path) -> None:
    config = good()
    once = complete_config(config, place, place)
    assert config == good()
    assert complete_config(once, place, place) == once


def test_null_entries_are_left_out(place: Path) -> None:
    config = complete_config(changed("models/demo", None), place, place)
    assert list(config["models"]) == ["mine"]


def test_a_model_may_be_for_some_sources(place: Path) -> None:
    config = good()
    config["sources"] |= {"more": {"kind": "synthetic", "style": "qa"}, "none": None}
    for named, expected in (
        (None, ["wiki", "notes", "more"]),
        (["more", "none"], ["more"]),
        (["none"], ["wiki", "notes", "more"]),
    ):
        config["models"]["mine"]["sources"] = named
        assert sources_of(complete_config(config, place, place), "mine") == expected
    config["models"]["mine"]["sources"] = ["mor"]
    (error,) = errors_of(config, place)
    assert error.startswith("models.mine.sources: 'mor' is not among sources; did you mean 'more'")


def test_dictionaries_may_be_for_models_that_are_left_out(place: Path) -> None:
    config = changed("models/demo", None)
    entry = {"kind": "trained", "reads": "mlp_out", "latents": 99, "models": ["demo", "mine"]}
    config["dictionaries"] = {"d": entry, "none": None}
    complete = complete_config(config, place, place)
    assert list(complete["dictionaries"]) == ["d"]
    assert complete["dictionaries"]["d"]["k"] == 16


def test_numbers_may_be_text_as_the_command_line_gives_them(place: Path) -> None:
    config = good() | {"score": {"replacement_shares": ["0.5", "1"], "fdr": "0.1"}}
    config["sampling"] = {"windows": "12"}
    config["models"]["demo"] = "null"
    config["models"]["mine"]["bos"] = "null"
    complete = complete_config(config, place, place)
    assert complete["sampling"]["windows"] == 12
    assert complete["score"]["replacement_shares"] == [0.5, 1]
    assert complete["score"]["fdr"] == 0.1
    assert complete["models"] == {"mine": {"path": "model", "bos": None, "sources": None}}


def test_numbers_that_may_be_null_may_be_text_too(place: Path) -> None:
    config = good()
    config["llm"] = {"budget": {"requests": "10", "money": "0.5", "tokens": "null"}}
    config["judge"] = {"temperature": "null", "explainers": "null", "api_key_env": "KEY"}
    complete = complete_config(config, place, place)
    assert complete["llm"]["budget"] == {"requests": 10, "money": 0.5, "tokens": None}
    judge = complete["judge"]
    assert (judge["temperature"], judge["explainers"], judge["api_key_env"]) == (None, None, "KEY")


BROKEN = {
    "unknown key": ("capture/tpok", 5, ["capture.tpok", "5", "'topk'"]),
    "unknown key at the top": ("modle", {}, ["modle", "'models'"]),
    "unknown model key": ("models/mine/pth", "x", ["models.mine.pth", "'path'"]),
    "model without place": ("models/mine", {"paht": "x"}, ["models.mine", "path, hub", "'path'"]),
    "model that is no mapping": ("models/mine", "model", ["models.mine", "'model'"]),
    "candidates that are all the same": (
        "explain/openai/candidates",
        3,
        ["explain.openai.candidates", "3", "temperature"],
    ),
    "missing model folder": ("models/mine/path", "gone", ["models.mine.path", "gone", "correct"]),
    "hub model without revision": (
        "models/hub",
        {"hub": "a/b"},
        ["models.hub.revision", "missing"],
    ),
    "floating revision": (
        "models/hub",
        {"hub": "a/b", "revision": "main"},
        ["models.hub.revision", "'main'"],
    ),
    "no models": ("models", {}, ["models", "empty"]),
    "unknown source kind": ("sources/wiki/kind", "sinthetic", ["sources.wiki.kind", "'synthetic'"]),
    "source without kind": ("sources/wiki", {"style": "qa"}, ["sources.wiki.kind", "missing"]),
    "unknown style": ("sources/wiki/style", "wikki", ["sources.wiki.style", "'wikki'", "'wiki'"]),
    "no matching file": (
        "sources/notes/files",
        ["*.md"],
        ["sources.notes.files", "*.md", "matches"],
    ),
    "missing required key": ("sources/notes", {"kind": "text"}, ["sources.notes.files", "missing"]),
    "zero windows": ("sampling/windows", 0, ["sampling.windows", "0", "at least 3"]),
    "negative size": ("capture/topk", -1, ["capture.topk", "-1", "at least 1"]),
    "topk beyond what is kept": (
        "capture/topk",
        1001,
        ["capture.topk", "1001", "candidates", "1000"],
    ),
    "text for a number": ("sampling/windows", "many", ["sampling.windows", "'many'", "integer"]),
    "window beyond the context": (
        "sampling/window_len",
        257,
        ["sampling.window_len", "257", "models.mine", "256"],
    ),
    "shares that do not sum to 1": ("sampling/split/train", 0.6, ["sampling.split", "1.1"]),
    "empty share": ("sampling/split/test", 0, ["sampling.split.test", "above 0"]),
    "unknown control": ("score/controls", ["swaped"], ["score.controls[0]", "'swapped'"]),
    "control named twice": ("score/controls", ["swapped"] * 2, ["score.controls", "twice"]),
    "unknown explainer": ("explain/explainers", ["program"], ["explain.explainers", "'programs'"]),
    "unknown hook point": ("capture/activations", ["resid"], ["capture.activations[0]", "'resid'"]),
    "share above one": ("score/replacement_shares", [1.5], ["score.replacement_shares[0]", "1.5"]),
    "dictionary of an unknown kind": (
        "dictionaries/d",
        {"kind": "traned", "reads": "mlp_out", "latents": 8},
        ["dictionaries.d.kind", "'traned'", "'trained'"],
    ),
    "dictionary without latents": (
        "dictionaries/d",
        {"kind": "trained", "reads": "mlp_out"},
        ["dictionaries.d.latents", "missing"],
    ),
    "dictionary at an unknown point": (
        "dictionaries/d",
        {"kind": "trained", "reads": "mlp_outt", "latents": 8, "k": 2},
        ["dictionaries.d.reads", "'mlp_outt'", "'mlp_out'"],
    ),
    "more active latents than there are": (
        "dictionaries/d",
        {"kind": "trained", "reads": "mlp_out", "latents": 8},
        ["dictionaries.d.k", "16", "dictionaries.d.latents (8)"],
    ),
    "dictionary of an unknown model": (
        "dictionaries/d",
        {"kind": "trained", "reads": "mlp_out", "latents": 99, "models": ["mein"]},
        ["dictionaries.d.models", "'mein'", "'mine'"],
    ),
    "site that a version does not have": (
        "dictionaries/d",
        {"kind": "openai", "site": "mlp_post_act", "version": "_v5_32k"},
        ["dictionaries.d", "'mlp_post_act'", "'_v5_32k'", "resid_delta_attn"],
    ),
    "unknown version": (
        "dictionaries/d",
        {"kind": "openai", "site": "mlp_post_act", "version": "_v6"},
        ["dictionaries.d.version", "'_v6'"],
    ),
    "layer that was not published": (
        "dictionaries/d",
        {"kind": "openai", "site": "mlp_post_act", "version": "", "layers": [12]},
        ["dictionaries.d", "layer 12", "0 to 11"],
    ),
    "folder of dictionaries that does not exist": (
        "dictionaries/d",
        {"kind": "folder", "folder": "saes/{layer}", "layers": [3], "points": ["resid_pre"]},
        ["dictionaries.d.folder", "saes/3", "layer 3"],
    ),
    "folder of dictionaries without layers": (
        "dictionaries/d",
        {"kind": "folder", "folder": "saes/{layer}", "points": ["resid_pre"]},
        ["dictionaries.d.layers", "needed for the format saelens"],
    ),
    "dots in a name": ("sources/a..b", good()["sources"]["wiki"], ["sources.a..b", "letters"]),
    "threshold that keeps nothing": (
        "circuits/nodes/threshold",
        100,
        ["circuits.nodes.threshold", "100", "below 100"],
    ),
    "faithfulness above all": (
        "circuits/edges/target",
        1.5,
        ["circuits.edges.target", "at most 1"],
    ),
    "scores that are not computed": (
        "circuits/edges/rank_by",
        "eap-ig-activations",
        ["circuits.edges.rank_by", "circuits.edges.methods", "eap-ig-inputs"],
    ),
    "node that no model has": (
        "circuits/nodes/keep",
        ["L9.mlp"],
        ["circuits.nodes.keep", "mine", "L9.mlp", "2 layers"],
    ),
    "node that is none": ("circuits/nodes/keep", ["9.1"], ["circuits.nodes.keep", "'9.1'"]),
    "circuit that is not there": (
        "circuits/extra/other",
        {"file": "gone.json"},
        ["circuits.extra.other.file", "gone.json", "correct the path"],
    ),
    "circuit without heads": (
        "circuits/extra/other",
        {"file": "model/config.json"},
        ["circuits.extra.other.file", "heads", "mlps"],
    ),
    "published numbers that are not there": (
        "circuits/published/mine",
        {"file": "gone.json"},
        ["circuits.published.mine.file", "gone.json"],
    ),
    "task for a model that is not there": (
        "tasks/t",
        {"kind": "induction", "models": ["mein"]},
        ["tasks.t.models", "'mein'", "'mine'"],
    ),
    "reserved name": ("models/report", {"path": "model"}, ["models.report", "reserved"]),
    "a model where the atlas lies": (
        "models/atlas",
        {"path": "model"},
        ["models.atlas", "reserved"],
    ),
    "control's suffix": ("models/a.random", {"path": "model"}, ["models.a.random", ".random"]),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_configuration_names_key_value_and_way_out(case: str, place: Path) -> None:
    path, value, expected = BROKEN[case]
    errors = errors_of(changed(path, value), place)
    assert len(errors) == 1, errors
    assert all(part in errors[0] for part in expected), errors[0]


def test_separator_in_a_name_is_refused(place: Path) -> None:
    config = good()
    config["models"]["a/b"] = {"path": "model"}
    assert "letters" in errors_of(config, place)[0]


def test_all_errors_are_reported_at_once(place: Path) -> None:
    config = changed("capture/tpok", 5)
    config["sampling"] = {"windows": 0, "window_len": -1}
    config["sources"]["wiki"]["style"] = "x"
    assert len(errors_of(config, place)) == 4


def test_damaged_models_are_found_before_the_run(place: Path) -> None:
    folder = place / "model"
    weights = (folder / "model.safetensors").read_bytes()
    for content, word in (
        (weights[:-1], "truncated"),
        (weights[:4], "not a safetensors file"),
        (b"\xff" * 64, "not a safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
    ):
        (folder / "model.safetensors").write_bytes(content)
        (error,) = errors_of(good(), place)
        assert word in error and "model.safetensors" in error
    (folder / "model.safetensors").unlink()
    assert "holds no weights" in errors_of(good(), place)[0]


def test_incomplete_model_folders_are_found_before_the_run(place: Path) -> None:
    folder = place / "model"
    (folder / "tokenizer.json").unlink()
    assert "holds no tokenizer" in errors_of(good(), place)[0]
    (folder / "tokenizer.json").write_text("{}")
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "n_positions": 512}))
    assert "'bert'" in errors_of(good(), place)[0]
    (folder / "config.json").write_text("{")
    assert "damaged" in errors_of(good(), place)[0]
    (folder / "config.json").unlink()
    (error,) = errors_of(good(), place)
    assert error.startswith("models.mine.path: ") and "config.json does not exist" in error


def test_results_that_cannot_be_written(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "results").write_text("a file in the way")
    assert "not a folder" in errors_of(good(), place)[0]
    (place / "results").unlink()
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "cannot be written" in errors_of(good(), place)[0]


def test_relative_paths_are_found_in_the_working_directory_first(place: Path) -> None:
    elsewhere = place / "project"
    fake_model(elsewhere / "model", context=8)
    assert complete_config(good(), place / "empty", place)["models"]["mine"]["path"] == "model"
    with pytest.raises(ConfigError, match="8 tokens"):
        complete_config(good(), elsewhere, place)


def test_snakemake_shows_the_errors_and_writes_nothing(workflow: Path) -> None:
    output = snakemake(
        workflow, "-n", "--config", "capture={tpok: 1}", "sampling={windows: 0}", check=False
    )
    assert "the configuration has 2 errors" in output
    assert "did you mean 'topk'?" in output and "sampling.windows: 0" in output
    assert "Traceback" not in output
    assert not (workflow / "results").exists()


def test_embedded_default_agrees_with_the_schema(workflow: Path) -> None:
    path = REPOSITORY / "config" / "config.yaml"
    assert path.read_text().splitlines()[0].startswith("# yaml-language-server: $schema=")
    complete_config(yaml.safe_load(path.read_text()), workflow, workflow)


def test_defaults_of_the_schema_are_those_of_the_library(place: Path) -> None:
    config = complete_config(good(), place, place)
    seed = seed_for(0, "score tables")
    expected = FitSettings(scores=ScoreFit(seed=seed))
    assert settings_from(config["explain"]["programs"], 0) == expected


class StrictLoader(yaml.SafeLoader):
    """Refuses a mapping that has one key twice, where YAML quietly takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"{node.start_mark}: {keys}"
        return super().construct_mapping(node, deep)


def test_no_key_is_written_twice() -> None:
    for pattern in ("config/*.yaml", "workflow/schemas/*.yaml", "profiles/*/*.yaml"):
        for path in REPOSITORY.glob(pattern):
            yaml.load(path.read_text(), StrictLoader)


def test_every_key_of_the_schema_is_described_and_closed() -> None:
    def visit(schema: dict, key: str) -> None:
        assert schema.get("description") or schema.get("title"), key
        if schema.get("type") == "object":
            assert "additionalProperties" in schema, key
        for name, child in schema.get("properties", {}).items():
            visit(child, f"{key}.{name}")
        others = schema.get("additionalProperties")
        for branch in others.get("oneOf", [others]) if isinstance(others, dict) else ():
            visit(branch, f"{key}.*")

    visit(load_schema(), "config")
    assert load_schema()["$schema"].startswith("https://json-schema.org/")


def test_configuration_page_is_up_to_date() -> None:
    page = (REPOSITORY / "config" / "README.md").read_text()
    assert page == config_docs.page(), "write it again: python -m mechatlas.config_docs"
