"""Nothing that is read can run code, no configured name leads out of its folder, no revision can move, no key is kept.

More of it is tested where it belongs: Transformer Debugger folders and hub names in `test_model_access`, keys of
language models in `test_llm_client`, hostile text in pages in `test_report` and `test_latent_page`.
"""

from __future__ import annotations

import ast
import json
import os
import pickle
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml

from mechatlas.capture.patterns import read_activations, read_patterns
from mechatlas.circuits.graphs.graph import load_graph
from mechatlas.config import ConfigError, complete_config, load_schema
from mechatlas.dictionaries.clt_formats import load_clt, read_circuit_tracer
from mechatlas.dictionaries.files import load as load_dictionary_file
from mechatlas.dictionaries.formats.openai import read_openai
from mechatlas.dictionaries.formats.saelens import read_saelens
from mechatlas.dictionaries.formats.transcoders import read_transcoder
from mechatlas.io import UserError, read_arrays, read_provenance, read_table
from mechatlas.io.tensors import read_tensors

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "tests" / "reference"
#: Calls that run what they read, by the name that is called.
FORBIDDEN = {
    "eval", "exec", "compile", "__import__", "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load",
    "marshal.loads", "shelve.open", "dill.load", "dill.loads", "joblib.load", "cloudpickle.load", "cloudpickle.loads",
    "yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "os.system", "os.popen", "pandas.read_pickle",
    "pd.read_pickle", "torch.jit.load", "torch.hub.load", "torch.package.PackageImporter",
}  # fmt: skip
#: Arguments that must, or must not, be given.
REQUIRED = {"torch.load": ("weights_only", True)}
REFUSED = {("trust_remote_code", True), ("allow_pickle", True), ("shell", True)}


def shipped() -> list[tuple[str, str]]:
    """Return name and Python text of everything that ships and runs: library, scripts, notebooks, benchmarks."""
    found = [
        (str(path.relative_to(ROOT)), path.read_text(encoding="utf-8"))
        for area in ("workflow", "benchmarks")
        for path in sorted((ROOT / area).rglob("*.py"))
    ]
    for path in sorted((ROOT / "workflow" / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        found.append((str(path.relative_to(ROOT)), "\n".join(code)))
    return found


def offences(text: str) -> list[str]:
    """Return the calls of a Python text that could run what they read."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {(k.arg, k.value.value) for k in node.keywords if isinstance(k.value, ast.Constant)}
        if name in FORBIDDEN or given & REFUSED:
            found.append(ast.unparse(node))
        if name in REQUIRED and REQUIRED[name] not in given:
            found.append(ast.unparse(node))
    return found


def test_nothing_that_ships_can_run_what_it_reads() -> None:
    sources = shipped()
    assert len(sources) > 300 and any(name.endswith(".ipynb") for name, _ in sources)
    assert {name: found for name, text in sources if (found := offences(text))} == {}
    for path in (ROOT / "Snakefile", *(ROOT / "workflow" / "rules").rglob("*.smk")):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\b(?:eval|exec|pickle|yaml\.load)\s*\(|shell=True", text), path


@pytest.mark.parametrize(
    "text",
    [
        "eval(x)", "yaml.load(f)", "torch.load(f)", "torch.load(f, weights_only=False)",
        "np.load(f, allow_pickle=True)", "pickle.loads(b)", "AutoModel.from_pretrained(n, trust_remote_code=True)",
        "subprocess.run(c, shell=True)",
    ],
)  # fmt: skip
def test_the_search_finds_what_it_is_for(text: str) -> None:
    assert offences(text)
    assert not offences("model.eval(); yaml.safe_load(f); torch.load(f, weights_only=True)")


class Attack:
    """A pickle that leaves a file where it was run."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def _copied(name: str):
    def make(folder: Path) -> Path:
        return Path(shutil.copytree(REFERENCE / name, folder / "copy"))

    return make


def _empty(folder: Path) -> Path:
    return folder


READERS = {
    "OpenAI's autoencoder": (_empty, "0.pt", lambda f: read_openai(
        f / "0.pt", site="resid_post_mlp", version="_v5_32k", layer=0)),
    "SAELens": (_copied("dictionaries/standard"), "sae_weights.safetensors", read_saelens),
    "transcoder of circuit-tracer": (
        _copied("dictionaries/circuit_tracer"), "layer_0.safetensors", lambda f: read_transcoder(f, 0)),
    "cross-layer transcoder, encoder": (
        _copied("parity_clt/clt_relu"), "W_enc_1.safetensors", read_circuit_tracer),
    "cross-layer transcoder, decoder": (
        _copied("parity_clt/clt_relu"), "W_dec_0.safetensors", read_circuit_tracer),
    "our transcoder": (_empty, "clt.safetensors", lambda f: load_clt(f / "clt.safetensors")),
    "our dictionary": (_empty, "d.safetensors", lambda f: load_dictionary_file(f / "d.safetensors")),
    "attribution graph": (_empty, "g.safetensors", lambda f: load_graph(f / "g.safetensors")),
    "patterns": (_empty, "patterns.layer_0.safetensors", lambda f: read_patterns([f], 0, [0])),
    "activations": (
        _empty, "activations.v.layer_0.safetensors", lambda f: read_activations([f], "v", 0, [0])),
    "checkpoint of a training": (_empty, "c.safetensors", lambda f: read_tensors(f / "c.safetensors")),
    "arrays": (_empty, "a.safetensors", lambda f: read_arrays(f / "a.safetensors")),
    "provenance": (_empty, "a.safetensors", lambda f: read_provenance(f / "a.safetensors")),
    "table": (_empty, "t.parquet", lambda f: read_table(f / "t.parquet")),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("saved", [False, True], ids=["bare", "saved"])
@pytest.mark.parametrize("what", READERS)
def test_a_pickle_where_a_file_is_expected_is_refused_and_not_run(
    what: str, saved: bool, tmp_path: Path
) -> None:
    make, name, read = READERS[what]
    target, folder = tmp_path / "ran", make(tmp_path)
    if saved:
        torch.save({"encoder": torch.ones(2), "x": Attack(target)}, folder / name)
    else:
        (folder / name).write_bytes(pickle.dumps(Attack(target)))
    with pytest.raises(UserError) as caught:
        read(folder)
    assert not target.exists()
    assert name in str(caught.value) and "\n" not in str(caught.value)
    pickle.loads(pickle.dumps(Attack(target)))  # the attack itself works
    assert target.exists()


BAD_NAMES = (
    "../x",
    "a/../../x",
    "/etc/x",
    "..",
    ".hidden",
    "a\\b",
    "a b",
    "a\x00b",
    "a\nb",
    "{model}",
    "~x",
    "$HOME",
)


def _named_tables(schema: dict, at: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return where the configuration has tables whose keys are chosen by the user."""
    found = []
    if isinstance(schema.get("additionalProperties"), dict):
        found.append(at)
    for name, child in schema.get("properties", {}).items():
        found += _named_tables(child, (*at, name))
    return found


def configured(folder: Path) -> dict:
    config = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    config["circuits"]["published"] = {}
    return config


#: Tables whose keys never become part of a path.
NO_PATH = {("llm", "prices")}


@pytest.mark.parametrize(
    "table", [t for t in _named_tables(load_schema()) if t not in NO_PATH], ids="/".join
)
@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_lead_out_of_their_folder_are_refused(
    table: tuple[str, ...], name: str, tmp_path: Path
) -> None:
    config = configured(tmp_path)
    inner = config
    for key in table:
        inner = inner.setdefault(key, {})
    inner[name] = next(iter(inner.values()), None) or {}
    with pytest.raises(ConfigError) as caught:
        complete_config(config, tmp_path, ROOT)
    assert any(".".join(table) in line for line in caught.value.errors), caught.value.errors
    assert all("\n" not in line for line in caught.value.errors)


@pytest.mark.parametrize("revision", [None, "main", "v1.0", "0123456", "g" * 40, "A" * 40])
@pytest.mark.parametrize(
    "entry",
    [
        ("models", "mine", {"hub": "openai-community/gpt2"}),
        ("sources", "text", {"kind": "wikitext"}),
    ],
    ids=["model", "source"],
)
def test_revisions_of_the_hub_are_whole_commits(entry, revision, tmp_path: Path) -> None:
    table, name, value = entry
    if revision is None and table == "sources":
        config = configured(tmp_path)
        config[table][name] = value
        pinned = complete_config(config, tmp_path, ROOT)
        assert re.fullmatch("[0-9a-f]{40}", pinned["sources"]["text"]["revision"])
        return
    given = value if revision is None else value | {"revision": revision}
    config = configured(tmp_path)
    config[table] = config[table] | {name: given}
    with pytest.raises(ConfigError) as caught:
        complete_config(config, tmp_path, ROOT)
    assert any(f"{table}.{name}.revision" in line for line in caught.value.errors)


def test_every_call_of_the_hub_names_a_revision() -> None:
    calls = []
    for name, text in shipped():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and re.search(
                r"(?:^|\.)(?:snapshot_download|hf_hub_download|load_dataset)$",
                ast.unparse(node.func),
            ):
                calls.append((name, {k.arg for k in node.keywords}))
    assert len(calls) >= 2
    assert [call for call in calls if "revision" not in call[1]] == []


def test_a_key_in_the_configuration_is_refused_as_there_is_no_place_for_it(tmp_path: Path) -> None:
    for section in ("judge", "explain/openai"):
        config = configured(tmp_path)
        inner = config
        for key in section.split("/"):
            inner = inner.setdefault(key, {})
        inner["api_key"] = "sk-0123456789abcdef"
        with pytest.raises(ConfigError, match="unknown key"):
            complete_config(config, tmp_path, ROOT)
        del inner["api_key"]
        # Given in place of the variable's name, it is not repeated.
        inner["api_key_env"] = "sk-0123456789abcdef"
        with pytest.raises(ConfigError) as caught:
            complete_config(config, tmp_path, ROOT)
        assert "sk-0123456789abcdef" not in str(caught.value)


def test_pyarrow_is_new_enough_not_to_unpickle_extension_types() -> None:
    import pyarrow

    # CVE-2023-47248, mended in 14.0.1.
    assert tuple(map(int, pyarrow.__version__.split(".")[:2])) >= (15, 0)
    assert "pickle" not in sys.modules["pyarrow.parquet"].__dict__
