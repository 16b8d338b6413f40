"""Configuration of transcoders and graphs."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from mechatlas.config import ConfigError, complete_config
from mechatlas.dictionaries.clt_settings import CltSettings

REPOSITORY = Path(__file__).parents[2]


def merged(**changes):
    """Return the default configuration with some sections changed, as a second config file changes it."""
    config = yaml.safe_load((REPOSITORY / "config" / "config.yaml").read_text())
    for section, entries in changes.items():
        there = config.setdefault(section, {})
        for name, entry in entries.items():
            both = isinstance(entry, dict) and isinstance(there.get(name), dict)
            there[name] = {**there[name], **entry} if both else entry
    return complete_config(config, REPOSITORY, REPOSITORY)


def test_every_setting_of_training_is_a_key_with_the_same_default():
    entry = merged(transcoders={"x": {"features": 8, "models": None, "sources": None}})
    entry = entry["transcoders"]["x"]
    for field in fields(CltSettings):
        if field.name not in ("features", "seed"):
            assert entry[field.name] == field.default, field.name
    known = {field.name for field in fields(CltSettings)} - {"seed"}
    assert set(entry) - known == {"models", "sources", "checkpoint_every"}


def test_the_paper_configuration_is_complete():
    paper = yaml.safe_load((REPOSITORY / "config" / "paper-clt.yaml").read_text())
    config = merged(**paper)
    assert set(config["transcoders"]) == {"clt", "per-layer"}
    assert list(config["models"]) == ["gpt2"] and config["transcoders"]["clt"]["features"] == 4096
    for entry in config["transcoders"].values():
        for key in ("models", "sources", "checkpoint_every"):
            del entry[key]
        assert CltSettings(**entry).steps > 10_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"graphs": {"x": {"task": "iou"}}},
            "graphs.x.task: 'iou' is not among tasks; did you mean 'ioi'",
        ),
        ({"graphs": {"x": {"task": "ioi", "transcoders": ["clr"]}}}, "graphs.x.transcoders: 'clr'"),
        (
            {"transcoders": {"x": {"features": 8, "models": ["demo"]}}},
            "transcoders.x.models: 'demo'",
        ),
        ({"transcoders": {"x": {"features": 8, "activation": "gelu"}}}, "transcoders.x.activation"),
        ({"transcoders": {"x": {}}}, "features"),
        ({"graphs": {"x": {"task": "ioi", "node_threshold": 1.5}}}, "graphs.x.node_threshold"),
        ({"transcoders": {"graphs": {"features": 8}}}, "reserved word"),
        ({"graph_sets": {"x": {"task": "iou"}}}, "graph_sets.x.task: 'iou' is not among tasks"),
        (
            {"dictionaries": {"x": {"kind": "transcoder", "transcoder": "clr"}}},
            "dictionaries.x.transcoder: 'clr' is not among transcoders; did you mean 'clt'",
        ),
        ({"sweeps": {"x": {"transcoder": "clr", "values": [4]}}}, "sweeps.x.transcoder: 'clr'"),
        (
            {"sweeps": {"x": {"transcoder": "clt", "vary": "sparsity", "values": [1]}}},
            "'sparsity' does nothing with activation 'batchtopk' of transcoders.clt; vary k",
        ),
        ({"sweeps": {"x": {"transcoder": "clt", "values": [4.5]}}}, "4.5 is no whole number"),
        (
            {"sweeps": {"x": {"transcoder": "clt", "values": [4, 1000]}}},
            "sweeps.x.values: 1000 is above the 512 features of a layer",
        ),
    ],
)
def test_mistakes_are_one_clear_line(changes, message):
    with pytest.raises(ConfigError) as error:
        merged(**changes)
    (line,) = error.value.args[0] if isinstance(error.value.args[0], list) else [str(error.value)]
    assert message in line
