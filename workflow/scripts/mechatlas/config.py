"""The configuration: checked as a whole, completed with defaults, every mistake reported at once.

The schema (``workflow/schemas/config.schema.yaml``) is the single source of keys, defaults and ranges. What it
cannot say, because it takes two keys or a file, is in `cross_check`. Nothing here imports torch or Snakemake, so
that a Snakefile may call it while it is parsed.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

from mechatlas.config_circuits import check_circuits
from mechatlas.config_files import (
    check_dictionary,
    check_model,
    check_results,
    check_source,
    find_path,
)
from mechatlas.config_spread import check_spread
from mechatlas.io.errors import UserError

SCHEMA = Path(__file__).resolve().parents[2] / "schemas" / "config.schema.yaml"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
RANDOM_SUFFIX = ".random"
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
NULLS = (None, "null", "~", "")
TABLES = (
    *("models", "sources", "tasks", "dictionaries", "transcoders", "graphs", "graph_sets"),
    "sweeps",
)
CIRCUIT_TABLES = ("extra", "published")
RESERVED = (
    *(
        "atlas",
        "benchmarks",
        "circuits",
        "dictionaries",
        "figures",
        "graphs",
        "report",
        "retrained",
    ),
    *("sources", "steps", "tasks", "transcoders"),
)

Schema = Mapping[str, Any]


class ConfigError(UserError):
    """Everything that is wrong with a configuration, one line for each mistake."""

    def __init__(self, errors: list[str]) -> None:
        # A name may hold anything; what a terminal would obey is shown as an escape.
        self.errors = errors = [CONTROL.sub(lambda m: repr(m[0])[1:-1], line) for line in errors]
        many = "1 error" if len(errors) == 1 else f"{len(errors)} errors"
        super().__init__("\n".join([f"the configuration has {many}:", *(f"  {e}" for e in errors)]))


@cache
def load_schema() -> Schema:
    """Return the schema of the configuration as a dictionary."""
    # Ten times faster than the loader in Python, and not in every build of PyYAML.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return loader(SCHEMA.read_text(encoding="utf-8")).get_single_data()


def complete_config(config: Mapping[str, Any], workdir: Path, repository: Path) -> dict[str, Any]:
    """Check a configuration and fill in its defaults.

    Parameters
    ----------
    config : mapping
        What the user wrote; entries that are null are left out of ``models``, ``sources``, ``tasks``,
        ``circuits.extra`` and ``circuits.published``.
    workdir, repository : Path
        Where relative paths are looked up, in this order.

    Returns
    -------
    dict
        A new dictionary with every key of the schema.

    Raises
    ------
    ConfigError
        With one line for each mistake: key, value and way out.
    """
    errors: list[str] = []
    complete = _walk(_without_nulls(config), load_schema(), "", errors)
    if not errors:
        errors.extend(cross_check(complete, workdir, repository))
        errors.extend(_check_places(complete, config, "models", ("sources",)))
        errors.extend(_check_places(complete, config, "dictionaries", ("models", "sources")))
        errors.extend(_check_places(complete, config, "transcoders", ("models", "sources")))
        errors.extend(_check_places(complete, config, "graphs", ("models", "transcoders")))
        errors.extend(_check_places(complete, config, "graph_sets", ("models", "transcoders")))
        errors.extend(_check_places(complete, config, "tasks", ("models",)))
        for section in ("graphs", "graph_sets", "sweeps"):
            errors.extend(_check_named(complete, config, section, "task"))
        for section in ("sweeps", "dictionaries"):
            errors.extend(_check_named(complete, config, section, "transcoder"))
        errors.extend(_check_sweeps(complete["sweeps"], complete["transcoders"]))
    if errors:
        raise ConfigError(errors)
    return complete


def sources_of(config: Mapping[str, Any], model: str) -> list[str]:
    """Return the sources that a model is analysed on: those that it names, or all if it names none that is there."""
    named = config["models"][model].get("sources") or ()
    return [source for source in config["sources"] if source in named] or list(config["sources"])


def cross_check(config: Mapping[str, Any], workdir: Path, repository: Path) -> Iterator[str]:
    """Yield the mistakes that the schema cannot see, in a configuration that the schema accepts."""
    for table in TABLES:
        for name in config[table]:
            yield from _check_name(table, name)
    yield from _check_split(config["sampling"]["split"])
    topk, candidates = config["capture"]["topk"], config["capture"]["candidates"]
    if topk > candidates:
        yield f"capture.topk: {topk} is more than capture.candidates ({candidates}); raise that or lower topk"
    yield from _check_candidates(config["explain"]["openai"])
    for name, model in config["models"].items():
        if "path" in model:
            folder = find_path(model["path"], workdir, repository)
            yield from check_model(f"models.{name}.path", folder, config["sampling"]["window_len"])
    for name, source in config["sources"].items():
        yield from check_source(f"sources.{name}", source, workdir, repository)
    for name, dictionary in config["dictionaries"].items():
        yield from check_dictionary(f"dictionaries.{name}", dictionary, workdir, repository)
    for name, task in config["tasks"].items():
        file = task.get("file")
        if file and not find_path(file, workdir, repository).is_file():
            yield f"tasks.{name}.file: {file!r} is no file in {workdir} or {repository}; correct the path"
    yield from check_circuits(config, workdir, repository)
    yield from check_spread(config, workdir)
    yield from check_results(workdir / "results")


def _check_name(table: str, name: str) -> Iterator[str]:
    key = f"{table}.{name}"
    if not NAME.fullmatch(name) or ".." in name:
        yield (
            f"{key}: {name!r} cannot name a folder; use letters, digits and - _ . +, "
            "beginning with a letter or digit"
        )
    elif name in RESERVED:
        yield f"{key}: {name!r} is a reserved word ({', '.join(RESERVED)}); choose another name"
    elif name.endswith(RANDOM_SUFFIX):
        yield f"{key}: names ending in {RANDOM_SUFFIX} are kept for the random-weight control; rename it"


def _check_places(
    complete: Mapping[str, Any], given: Mapping[str, Any], section: str, tables: Sequence[str]
) -> Iterator[str]:
    """Yield what entries of a section are for that does not exist; those that are left out by null may be named."""
    for name, entry in complete[section].items():
        for table in tables:
            for place in entry[table] or ():
                if place not in given[table]:
                    near = _choices(place, list(given[table]))
                    yield f"{section}.{name}.{table}: {place!r} is not among {table}; {near}"


def _check_named(
    complete: Mapping[str, Any], given: Mapping[str, Any], section: str, key: str
) -> Iterator[str]:
    """Yield entries that name a task or transcoder that does not exist; one that is left out by null may be named."""
    table = f"{key}s"
    known = list(given.get(table) or {})
    for name, entry in complete[section].items():
        wanted = entry.get(key)
        if wanted is not None and wanted not in known:
            yield f"{section}.{name}.{key}: {wanted!r} is not among {table}; {_choices(wanted, known)}"


def _check_sweeps(
    sweeps: Mapping[str, Mapping[str, Any]], transcoders: Mapping[str, Any]
) -> Iterator[str]:
    """Yield sweeps over what their transcoder's activation does not use, or with values that it cannot have."""
    for name, sweep in sweeps.items():
        base = transcoders.get(sweep["transcoder"])
        if base is None:
            continue
        fixed = "topk" in base["activation"]
        if (sweep["vary"] == "k") != fixed:
            yield (
                f"sweeps.{name}.vary: {sweep['vary']!r} does nothing with activation {base['activation']!r} of "
                f"transcoders.{sweep['transcoder']}; vary {'k' if fixed else 'sparsity'}"
            )
        elif fixed and (odd := [value for value in sweep["values"] if value != int(value)]):
            yield f"sweeps.{name}.values: {odd[0]!r} is no whole number, as k must be; round it"
        elif fixed and max(sweep["values"]) > (most := sweep["features"] or base["features"]):
            yield f"sweeps.{name}.values: {max(sweep['values']):g} is above the {most} features of a layer; lower it"


def _check_candidates(openai: Mapping[str, Any]) -> Iterator[str]:
    if openai["candidates"] > 1 and openai["temperature"] == 0:
        yield (
            f"explain.openai.candidates: {openai['candidates']} answers at temperature 0 would be paid for and be the "
            "same; raise explain.openai.temperature (such as 0.7) or ask for one"
        )


def _check_split(split: Mapping[str, float]) -> Iterator[str]:
    total = sum(split.values())
    if abs(total - 1) > 1e-9:
        shares = " + ".join(f"{share:g}" for share in split.values())
        yield f"sampling.split: {shares} = {total:g}, but the shares must sum to 1"


def _without_nulls(config: Mapping[str, Any]) -> dict[str, Any]:
    result = _tables_without_nulls(config, TABLES)
    if isinstance(result.get("circuits"), Mapping):
        result["circuits"] = _tables_without_nulls(result["circuits"], CIRCUIT_TABLES)
    return result


def _tables_without_nulls(section: Mapping[str, Any], tables: tuple[str, ...]) -> dict[str, Any]:
    result = dict(section)
    for table in tables:
        if isinstance(result.get(table), Mapping):
            result[table] = {k: v for k, v in result[table].items() if v not in NULLS}
    return result


def _walk(value: Any, schema: Schema, key: str, errors: list[str]) -> Any:
    """Return ``value`` completed by the defaults of ``schema``; append what is wrong to ``errors``."""
    if "oneOf" in schema:
        branch = _branch(value, schema["oneOf"], key, errors)
        return value if branch is None else _walk(value, branch, key, errors)
    if schema.get("type") != "object":
        value = _typed(value, schema)
        errors.extend(_leaf_errors(value, schema, key))
        return value
    if not isinstance(value, Mapping):
        errors.append(f"{key or 'config'}: {value!r} is not a mapping of keys to values")
        return value
    return _walk_object(value, schema, key, errors)


def _typed(value: Any, schema: Schema) -> Any:
    """Read a text as the number or null that is wanted: --config hands nested values over as text."""
    if isinstance(value, list):
        return [_typed(item, schema.get("items", {})) for item in value]
    wanted = schema.get("type", "string")
    kinds = wanted if isinstance(wanted, list) else [wanted]
    if not isinstance(value, str) or kinds in (["string"], ["array"]):
        return value
    if "null" in kinds and value == "null":
        return None
    if "string" in kinds:
        return value
    try:
        read = yaml.safe_load(value)
    except yaml.YAMLError:
        return value
    return read if isinstance(read, int | float) else value


def _walk_object(
    value: Mapping[str, Any], schema: Schema, key: str, errors: list[str]
) -> dict[str, Any]:
    known = schema.get("properties", {})
    others = schema.get("additionalProperties", False)
    prefix = f"{key}." if key else ""
    result: dict[str, Any] = {}
    for name, child in known.items():
        if name in value:
            result[name] = _walk(value[name], child, prefix + name, errors)
        elif name in schema.get("required", ()):
            errors.append(f"{prefix}{name} is missing: {_first_sentence(child)}")
        elif "default" in child:
            result[name] = _walk(child["default"], child, prefix + name, errors)
    for name in value:
        if name in known:
            continue
        if others is True:
            result[name] = value[name]
        elif isinstance(others, Mapping):
            result[name] = _walk(value[name], others, prefix + str(name), errors)
        else:
            errors.append(_unknown(prefix, name, value[name], list(known)))
    if len(value) < schema.get("minProperties", 0):
        errors.append(f"{key} is empty; name at least one")
    return result


def _branch(value: Any, branches: list[Schema], key: str, errors: list[str]) -> Schema | None:
    """Choose the alternative that a mapping means: by its constant, or by the first key it requires."""
    if not isinstance(value, Mapping):
        errors.append(f"{key}: {value!r} is not a mapping of keys to values")
        return None
    marker = branches[0]["required"][0]
    if "const" in branches[0]["properties"][marker]:
        choices = {branch["properties"][marker]["const"]: branch for branch in branches}
        found = value.get(marker)
        if isinstance(found, str) and found in choices:
            return choices[found]
        if marker in value:
            errors.append(
                f"{key}.{marker}: {found!r} is not known; {_choices(found, list(choices))}"
            )
        else:
            errors.append(f"{key}.{marker} is missing; {_choices('', list(choices))}")
        return None
    for branch in branches:
        if branch["required"][0] in value:
            return branch
    markers = [branch["required"][0] for branch in branches]
    hints = [hint for name in value for hint in _near(name, markers)]
    hint = f"; did you mean {hints[0]!r}?" if hints else ""
    errors.append(f"{key}: needs one of the keys {', '.join(markers)}{hint}")
    return None


def _leaf_errors(value: Any, schema: Schema, key: str) -> Iterator[str]:
    for error in Draft202012Validator(schema).iter_errors(value):
        place = key + "".join(f"[{part}]" for part in error.path)
        yield f"{place}: {_explain(error)}"


def _explain(error: Any) -> str:
    value, limit = error.instance, error.validator_value
    match error.validator:
        case "type":
            wanted = limit if isinstance(limit, str) else " or ".join(limit)
            return f"{value!r} is not of type {wanted}"
        case "enum":
            return f"{value!r} is not known; {_choices(value, limit)}"
        case "minimum":
            return f"{value!r} is too small; it must be at least {limit}"
        case "exclusiveMinimum":
            return f"{value!r} is too small; it must be above {limit}"
        case "maximum":
            return f"{value!r} is too large; it must be at most {limit}"
        case "exclusiveMaximum":
            return f"{value!r} is too large; it must be below {limit}"
        case "minItems" | "minLength":
            return f"{value!r} is empty; give at least one"
        case "uniqueItems":
            return f"{value!r} names something twice; remove the repetition"
        case "pattern":
            if error.schema.get("writeOnly"):
                # Not shown: it may be the key itself, put in the wrong place.
                return "what is given is no name of an environment variable; put a key into one and name that here"
            return f"{value!r} does not have the form {limit}"
        case _:
            return error.message


def _unknown(prefix: str, name: Any, value: Any, known: list[str]) -> str:
    near = _near(name, known)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
    return f"{prefix}{name}: unknown key (value {value!r}); {hint}"


def _choices(value: Any, known: list[str]) -> str:
    near = _near(value, known)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}choose from {', '.join(map(str, known))}"


def _near(value: Any, known: list[str]) -> list[str]:
    return difflib.get_close_matches(str(value), list(map(str, known)), n=1, cutoff=0.5)


def _first_sentence(schema: Schema) -> str:
    return re.split(r"(?<=\.)\s", schema.get("description", "").strip())[0]
