"""One table of everything about the heads of a model: words, scores, roles, effects, circuits, OV and QK, latents.

It only joins what other rules have measured; what it adds is the comparison of words with causes: the agreement of
explanations with measurements, and the heads where the two disagree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from mechatlas.io import read_json, read_table, rng_for
from mechatlas.score.agreement import (
    Draws,
    Resamples,
    cohens_kappa,
    mean_difference,
    with_control,
)
from mechatlas.score.behaviours import BEHAVIOURS, says_idle, stated_share, word_class
from mechatlas.score.judge.columns import KEY as JUDGED
from mechatlas.score.judge.columns import judge_columns

KEY = ["component", "layer", "head"]
#: Columns of summary.csv that go into the table.
SUMMARY = (
    *("kind", "text", "status", "iou", "iou_low", "iou_high", "iou_without_sink", "loss_recovered"),
    *("best_control", "advantage", "advantage_low", "advantage_high", "beats_every_control"),
    *("cluster", "cluster_label"),
)


@dataclass(frozen=True)
class TaskFiles:
    """What is known of one task.

    Attributes
    ----------
    name, kind : str
        As in the config.
    roles, nodes, patching, ov, ov_members, qk_members : data frame
        roles/heads.parquet, nodes/effects.parquet, patching/effects.parquet, lens/ov.parquet, lens/ov_members.parquet,
        lens/qk_members.parquet.
    circuits : mapping
        Method (``nodes``, ``least_harmful``, ``edges``) -> circuit.json.
    """

    name: str
    kind: str
    roles: pd.DataFrame
    nodes: pd.DataFrame
    patching: pd.DataFrame
    ov: pd.DataFrame
    ov_members: pd.DataFrame
    qk_members: pd.DataFrame
    circuits: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


#: The tables and the circuits of a task, in the order of the fields of `TaskFiles`.
TABLES = ("roles", "nodes", "patching", "ov", "ov_members", "qk_members")
CIRCUITS = {"nodes": "circuits", "least_harmful": "least_harmful", "edges": "edge_circuits"}


def read_tasks(kinds: Mapping[str, str], files: Mapping[str, Sequence[str]]) -> list[TaskFiles]:
    """Read what is known of tasks.

    Parameters
    ----------
    kinds : mapping
        Task -> its kind.
    files : mapping
        `TABLES` and the values of `CIRCUITS` -> a path for each task, in the order of ``kinds``.
    """
    return [
        TaskFiles(
            *(task, kind),
            *(read_table(files[name][at]) for name in TABLES),
            {method: read_json(files[name][at]) for method, name in CIRCUITS.items()},
        )
        for at, (task, kind) in enumerate(kinds.items())
    ]


@dataclass(frozen=True)
class Thresholds:
    """What counts as said, shown and needed.

    Attributes
    ----------
    attention : float
        Share of attention, stated in words or measured.
    effect : float
        Share of a task's score that is lost when the head alone is removed.
    significance : float
        Largest adjusted p of an effect.
    """

    attention: float
    effect: float
    significance: float = 0.05


def cross_table(
    summaries: Mapping[str, pd.DataFrame],
    tasks: Sequence[TaskFiles],
    latents: Mapping[str, pd.DataFrame],
    judged: Mapping[str, pd.DataFrame] | None = None,
) -> pd.DataFrame:
    """Join everything: one row per head, source and explainer.

    Parameters
    ----------
    summaries : mapping
        Source -> summary.csv of its heads.
    tasks : sequence of TaskFiles
    latents : mapping
        Name of a dictionary (``source/name``) -> `mechatlas.score.written_latents.strongest_latents`.
    judged : mapping, optional
        Source -> judge_scores.parquet of its heads, if there is a judge.

    Returns
    -------
    data frame
        `KEY`, ``source``, ``explainer``, the columns `SUMMARY`, ``class`` (of its words), ``says_{behaviour}`` (share
        that the words give it), ``says_idle``, with a judge the columns of `mechatlas.score.judge.columns`,
        ``shows_{behaviour}`` (measured, missing without a task), for each task the columns of `of_task`;
        ``latents.{dictionary}``: names and multiples of chance, strongest first.
    """
    words = {source: _words(source, table) for source, table in summaries.items()}
    for source, scores in (judged or {}).items():
        words[source] = words[source].join(judge_columns(scores), on=JUDGED)
    table = pd.concat(list(words.values())).reset_index(drop=True)
    for name, column in shown(tasks).items():
        table[f"shows_{name}"] = table["component"].map(column)
    joined = [of_task(task) for task in tasks]
    joined += [_written(name, strongest) for name, strongest in latents.items()]
    for part in joined:
        table = table.join(part, on="component")
    return table


def _words(source: str, summary: pd.DataFrame) -> pd.DataFrame:
    table = summary[["layer", "head", "explainer", *SUMMARY]].copy()
    places = zip(table["layer"], table["head"], strict=True)
    table.insert(0, "component", [f"L{layer}.H{head}" for layer, head in places])
    table.insert(3, "source", source)
    table["text"] = table["text"].astype(object).fillna("").astype(str)
    for name in ("kind", "status", "best_control", "cluster_label"):
        table[name] = table[name].astype(object).fillna("").astype(str)
    table["cluster"] = table["cluster"].astype("Int64")
    table["beats_every_control"] = table["beats_every_control"].map(_truth).astype("boolean")
    for name, behaviour in BEHAVIOURS.items():
        table[f"says_{name}"] = [stated_share(text, behaviour.phrases) for text in table["text"]]
    table["class"] = [word_class(text) for text in table["text"]]
    table["says_idle"] = [says_idle(text) for text in table["text"]]
    return table.sort_values(["layer", "head", "explainer"], kind="stable")


def _truth(value: Any) -> bool | None:
    return None if pd.isna(value) else str(value) == "True"


def shown(tasks: Sequence[TaskFiles]) -> dict[str, pd.Series]:
    """Return the measured attention of each behaviour by component, a mean over tasks (which share the probe)."""
    if not tasks:
        return {}
    roles = pd.concat([task.roles for task in tasks])
    means = roles.groupby("component", sort=False)[[b.measure for b in BEHAVIOURS.values()]].mean()
    return {name: means[behaviour.measure] for name, behaviour in BEHAVIOURS.items()}


def of_task(task: TaskFiles) -> pd.DataFrame:
    """Return what a task says about each head, by component.

    Returns
    -------
    data frame
        Named ``{task}.`` and: ``roles`` (labels), ``attribution``, ``effect`` (patching, with ``_low``, ``_high``,
        ``_p_fdr``), ``drop`` (percent of the score that is lost without the head, likewise), ``circuits`` (methods
        whose circuit has it), ``copies``, ``promotes_next`` (OV: share of tokens among the five most promoted),
        ``member_copy``, ``member_next`` (OV among the words of the task), ``matches`` (QK: the words match each other
        better than other words; 0.5 is chance).
    """
    roles = task.roles.set_index("component")
    table = roles[["labels", "attribution"]].rename(columns={"labels": "roles"})
    patched = task.patching
    chosen = (patched["point"] == "z") & (patched["place"] == "all")
    chosen &= patched["direction"] == "denoise"
    if len(patched):
        chosen &= patched["metric"] == patched["metric"].iloc[0]
    table = table.join(_effects(patched[chosen], "effect", "effect"))
    table = table.join(_effects(task.nodes[task.nodes["base"] == "full"], "drop", "drop"))
    table["circuits"] = ""
    for method, circuit in task.circuits.items():
        inside = [f"L{layer}.H{head}" for layer, head in circuit["heads"]]
        mine = table.index.isin(inside)
        joined = table.loc[mine, "circuits"].str.cat([method] * int(mine.sum()), sep=", ")
        table.loc[mine, "circuits"] = joined.str.removeprefix(", ")
    for target, name in (("copy", "copies"), ("next", "promotes_next")):
        rows = task.ov[(task.ov["target"] == target) & (task.ov["sign"] == 1)]
        table[name] = rows.set_index("component")["share"]
    for source, names in (
        (task.ov_members, {"copy": "member_copy", "next": "member_next"}),
        (task.qk_members, {"similar": "matches"}),
    ):
        own = source.set_index("component")
        for column, name in names.items():
            table[name] = own.get(column, np.nan)
    return table.add_prefix(f"{task.name}.")


def _effects(rows: pd.DataFrame, value: str, name: str) -> pd.DataFrame:
    columns = {value: name, "low": f"{name}_low", "high": f"{name}_high", "p_fdr": f"{name}_p_fdr"}
    return rows.set_index("component")[list(columns)].rename(columns=columns)


def _written(name: str, strongest: pd.DataFrame) -> pd.DataFrame:
    lines = strongest.assign(
        words=[
            f"{unit} ({times:.1f}x)"
            for unit, times in zip(strongest["unit"], strongest["times_chance"], strict=True)
        ]
    )
    column = f"latents.{name}"
    return lines.groupby("component", sort=False)["words"].agg("; ".join).to_frame(column)


def written_table(latents: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return the latents that heads write to, of all dictionaries, with the column ``dictionary``."""
    columns = ["dictionary", *KEY, "rank", "latent_layer", "latent", "unit", "times_chance"]
    if not latents:
        return pd.DataFrame({name: [] for name in columns})
    return pd.concat(
        [table.assign(dictionary=name) for name, table in latents.items()], ignore_index=True
    )[columns]


def agreement(
    table: pd.DataFrame,
    tasks: Sequence[TaskFiles],
    thresholds: Thresholds,
    draws: Draws,
    seed: int,
) -> list[dict[str, Any]]:
    """Compare words with measurements, for every source and explainer.

    Returns
    -------
    list of dict
        ``source``, ``explainer``, ``heads`` (explained in words); ``kappa``: of named and shown behaviours over all
        pairs of head and behaviour; ``behaviours``: by name the same with ``named``, ``shown`` and ``both`` counts;
        ``causes``: for each behaviour and task that needs it, how much more of the score is lost without heads whose
        words name it than without others; ``idle``: how much more is lost, in the task where each head matters most,
        without heads whose words do not say that they do nothing than without those that do. Each is as
        `mechatlas.score.agreement.with_control` returns it, or None where no task was measured.
    """
    found = []
    for (source, explainer), rows in table.groupby(["source", "explainer"], sort=False):
        rows = rows[rows["text"] != ""]
        found.append(
            {"source": source, "explainer": explainer, "heads": len(rows)}
            | _compare(rows, tasks, thresholds, draws, (seed, "agreement", source, explainer))
        )
    return found


def _compare(
    rows: pd.DataFrame,
    tasks: Sequence[TaskFiles],
    thresholds: Thresholds,
    draws: Draws,
    names: tuple[Any, ...],
) -> dict[str, Any]:
    if not tasks or rows.empty:
        return {"kappa": None, "behaviours": {}, "causes": [], "idle": None}
    said = _marks(rows, "says", thresholds)
    seen = _marks(rows, "shows", thresholds)
    resamples = Resamples(rows["layer"].to_numpy(), draws, rng_for(*names))
    behaviours = {
        name: with_control(cohens_kappa, said[:, i], seen[:, i], resamples)
        | {
            "named": int(said[:, i].sum()),
            "shown": int(seen[:, i].sum()),
            "both": int((said[:, i] & seen[:, i]).sum()),
        }
        for i, name in enumerate(BEHAVIOURS)
    }
    causes = [
        {"behaviour": name, "task": task.name, "named": int(said[:, i].sum())}
        | with_control(mean_difference, said[:, i], _drops(rows, task.name), resamples)
        for i, (name, behaviour) in enumerate(BEHAVIOURS.items())
        for task in tasks
        if task.kind in behaviour.needed_by
    ]
    worst = np.max([np.abs(_drops(rows, task.name)) for task in tasks], axis=0)
    idle = rows["says_idle"].to_numpy(bool)
    return {
        "kappa": with_control(cohens_kappa, said, seen, resamples),
        "behaviours": behaviours,
        "causes": causes,
        "idle": with_control(mean_difference, ~idle, worst, resamples) | {"named": int(idle.sum())},
    }


def _marks(rows: pd.DataFrame, prefix: str, thresholds: Thresholds) -> np.ndarray:
    columns = rows[[f"{prefix}_{name}" for name in BEHAVIOURS]].to_numpy(float)
    return columns >= thresholds.attention


def _drops(rows: pd.DataFrame, task: str) -> np.ndarray:
    return rows[f"{task}.drop"].to_numpy(float)


def disagreements(
    table: pd.DataFrame, tasks: Sequence[TaskFiles], thresholds: Thresholds
) -> list[dict[str, Any]]:
    """List the heads where words and causes disagree, most striking first.

    Returns
    -------
    list of dict
        ``component``, ``source``, ``explainer``, ``kind`` (``shown, not named``; ``named, not shown``; ``says idle, is
        needed``; ``needed, words fail``: its explanation beats not every control; ``named and shown, not needed``),
        ``what`` (behaviour or task), ``said``, ``measured`` (numbers that are compared) and ``weight`` in 0 to 1.
    """
    found: list[dict[str, Any]] = []
    for row in table[table["text"] != ""].to_dict("records"):
        place = {name: row[name] for name in ("component", "source", "explainer")}
        found += [place | item for item in _of_head(row, tasks, thresholds)]
    return sorted(found, key=lambda item: (-item["weight"], item["component"], item["kind"]))


def _of_head(
    row: Mapping[str, Any], tasks: Sequence[TaskFiles], thresholds: Thresholds
) -> list[dict[str, Any]]:
    if not tasks:
        return []
    items = []
    needed = [task for task in tasks if _needed(row, task.name, thresholds)]
    for name, behaviour in BEHAVIOURS.items():
        said, seen = row[f"says_{name}"], row[f"shows_{name}"]
        named, measured = said >= thresholds.attention, seen >= thresholds.attention
        if named != measured:
            kind = "shown, not named" if measured else "named, not shown"
            items.append(_item(kind, behaviour.words, said, seen, abs(said - seen)))
        asking = [task for task in tasks if task.kind in behaviour.needed_by]
        if named and measured and asking and not set(map(id, asking)) & set(map(id, needed)):
            largest = max(abs(row[f"{task.name}.drop"]) for task in asking)
            items.append(_item("named and shown, not needed", behaviour.words, said, largest, 0.1))
    if needed:
        task = max(needed, key=lambda task: abs(row[f"{task.name}.drop"]))
        drop = row[f"{task.name}.drop"]
        weight = min(1.0, abs(drop) / 100)
        if row["says_idle"]:
            items.append(_item("says idle, is needed", task.name, 0.0, drop, weight))
        elif row["beats_every_control"] is False:
            items.append(_item("needed, words fail", task.name, row["advantage"], drop, weight))
    return items


def _item(kind: str, what: str, said: float, measured: float, weight: float) -> dict[str, Any]:
    numbers = {"said": said, "measured": measured, "weight": weight}
    return {"kind": kind, "what": what} | {
        name: None if pd.isna(value) else round(float(value), 6) for name, value in numbers.items()
    }


def _needed(row: Mapping[str, Any], task: str, thresholds: Thresholds) -> bool:
    drop, p = row[f"{task}.drop"], row[f"{task}.drop_p_fdr"]
    return abs(drop) >= 100 * thresholds.effect and p < thresholds.significance
