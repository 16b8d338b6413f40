"""Made-up result files of circuits, with the columns of docs/files.md, for a model of 3 layers and 4 heads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from mechatlas.circuits.components import Graph
from mechatlas.io import rng_for, write_json, write_jsonl, write_table

LAYERS, HEADS = 3, 4
GRAPH = Graph(LAYERS, HEADS, HEADS)
TASKS = ("numerals", "ioi")
MEMBERS = [" 1", " 2", " <b>", " 4", " 5"]
HOSTILE = "<script>alert(1)</script>"
FACTS = {"model": "m"}


def write_circuits(
    folder: Path, tasks: tuple[str, ...] = TASKS, graph: Graph = GRAPH
) -> dict[str, object]:
    """Write everything and return the parameters of the notebook."""
    for task in tasks:
        _Task(folder / "tasks" / task, task, graph).write()
    _write_shared(folder / "circuits", tasks)
    return {
        "name": "demo",
        "tasks": list(tasks),
        "folder": str(folder / "tasks"),
        "shared": str(folder / "circuits"),
        "prompts": [str(folder / "tasks" / task / "prompts.jsonl") for task in tasks],
        "published": "",
    }


class _Task:
    def __init__(self, folder: Path, task: str, graph: Graph):
        self.folder, self.task, self.graph = folder, task, graph
        self.rng = rng_for(0, "fake circuits", task)
        self.sequence = task != "ioi"
        layer, column = np.indices(graph.shape)
        self.nodes = pd.DataFrame(
            {
                "component": graph.nodes,
                "layer": layer.ravel(),
                "head": np.where(column.ravel() == graph.n_heads, -1, column.ravel()),
            }
        )
        self.heads = self.nodes[self.nodes["head"] >= 0].reset_index(drop=True)
        self.chosen = self.rng.random(len(self.nodes)) < 0.4
        self.chosen[[0, -1]] = True

    def write(self) -> None:
        self._prompts()
        self._patching()
        self._lens()
        self._members()
        self._nodes()
        self._edges()

    def table(self, name: str, table: pd.DataFrame) -> None:
        write_table(self.folder / f"{name}.parquet", table.reset_index(drop=True), FACTS)

    def around(
        self, values: np.ndarray, names: tuple[str, str, str], width: float = 0.1
    ) -> dict[str, np.ndarray]:
        low, high = (self.rng.uniform(0, width, np.shape(values)) for _ in range(2))
        return dict(zip(names, (values, values - low, values + high), strict=True))

    def _prompts(self) -> None:
        split = ["discovery"] * 6 + ["held_out"] * 4
        record = {
            "text": f" {HOSTILE} done in",
            "corrupted_text": " b",
            "answer_text": " 5",
            "wrong_text": " 4",
        }
        write_jsonl(self.folder / "prompts.jsonl", [{**record, "split": s} for s in split], FACTS)

    def _patching(self) -> None:
        parts = []
        for point, rows in (
            ("z", self.heads),
            ("attn_out", _layers(self.graph, "attn_out")),
            ("mlp_out", _layers(self.graph, "mlp")),
        ):
            for direction in ("denoise", "noise"):
                effect = self.rng.normal(0, 0.25, len(rows))
                part = rows.assign(
                    point=point,
                    place="all",
                    direction=direction,
                    metric="logit_difference",
                    pairs=6,
                )
                part = part.assign(change=effect, **self.around(effect, ("effect", "low", "high")))
                part["p"] = part["p_fdr"] = self.rng.random(len(rows))
                parts.append(part)
        self.table("patching/effects", pd.concat(parts))
        roles = self.heads.copy()
        columns = ("attribution", "attention_end_m4", "attention_end_s2", "attention_m4_m1", "previous_token",
            "duplicate_token", "induction", "copying", "negative_copying", "succession", "effect")  # fmt: skip
        for name in columns:
            roles[name] = self.rng.random(len(roles))
        roles["succession"] = roles["succession"] if self.sequence else np.nan
        roles["labels"] = np.where(np.arange(len(roles)) % 3, "", "previous token, reader")
        self.table("roles/heads", roles)

    def _lens(self) -> None:
        tokens = [
            "answer",
            "wrong",
            *(["answer-2", "answer+1"] if self.sequence else ["bystander"]),
        ]
        points = [
            ("embed", -1),
            *((p, n) for n in range(LAYERS) for p in ("resid_mid", "resid_post")),
        ]
        rows = [
            {"point": p, "layer": n, "norm": norm, "position": "end", "token": t, "prompts": 6}
            for norm in ("final", "raw") for p, n in points for t in tokens
        ]  # fmt: skip
        table = pd.DataFrame(rows)
        for name, scale in (("rank", 50), ("probability", 1), ("below_answer", 3), ("top1", 1)):
            table = table.assign(
                **self.around(
                    scale * self.rng.random(len(table)), (name, f"{name}_low", f"{name}_high")
                )
            )
        self.table("lens/logit_lens", table.assign(median_rank=table["rank"]))
        share = self.rng.random(LAYERS)
        table = pd.DataFrame(
            {
                "layer": range(LAYERS),
                "prompts": 6,
                "before": 3,
                "answer": 4,
                "exact": 2,
                "earlier": 3,
            }
        )
        for name in ("exact", "earlier"):
            table = table.assign(
                **self.around(share, (f"{name}_share", f"{name}_low", f"{name}_high"))
            )
        table = table.assign(for_good=2, for_good_exact=1)
        self.table(
            "lens/transitions",
            table if self.sequence else table.head(0).drop(columns=["earlier", "earlier_share"]),
        )
        direct = pd.concat(
            [self.nodes, pd.DataFrame({"component": ["embed", "bias"], "layer": -1, "head": -1})]
        )
        direct["kind"] = np.where(
            direct["head"] >= 0, "head", np.where(direct["layer"] >= 0, "mlp", "other")
        )
        share = self.rng.dirichlet(np.ones(len(direct)))
        direct = direct.assign(
            prompts=6, p_fdr=0.01, **self.around(share, ("share", "share_low", "share_high"))
        )
        self.table(
            "lens/direct",
            direct.assign(**self.around(4 * share, ("logits", "logits_low", "logits_high"))),
        )
        self._attention()

    def _attention(self) -> None:
        pairs = [("end", "m4"), ("end", "m3"), ("m4", "m3"), ("end", "end")]
        pairs += [("repeated", k) for k in ("previous_token", "duplicate_token", "induction")]
        parts = [self.heads.assign(query=q, key=k, prompts=6, chance=0.1) for q, k in pairs]
        table = pd.concat(parts)
        table = table.assign(
            **self.around(self.rng.random(len(table)), ("attention", "low", "high"))
        )
        self.table("lens/attention", table)
        labels = ["<|bos|>", "m3", " \n", "m4", "…", "end"]
        query, key = np.tril_indices(len(labels))
        rows = self.heads.loc[self.heads.index.repeat(len(query))].reset_index(drop=True)
        for name, at in (("query", query), ("key", key)):
            rows[name] = np.tile(at, len(self.heads))
            rows[f"{name}_label"] = np.array(labels, dtype=object)[rows[name]]
        rows["attention"] = self.rng.random(len(rows)) / (1 + rows["query"])
        self.table("lens/patterns", rows.assign(prompts=6))
        offsets = [
            self.heads.assign(offset=k, attention=self.rng.random(len(self.heads)))
            for k in range(4)
        ]
        self.table("lens/positions", pd.concat(offsets))
        table = pd.concat([self.heads.assign(query=q, key=k, prompts=6) for q, k in pairs[:4]])
        for name in ("score", "content"):
            table = table.assign(
                **self.around(
                    self.rng.normal(0, 3, len(table)), (name, f"{name}_low", f"{name}_high")
                )
            )
            table[f"{name}_p_fdr"] = self.rng.choice([0.01, 0.6], len(table))
        self.table("lens/qk", table)

    def _members(self) -> None:
        targets = ("copy", "next", "ordinal") if self.sequence else ("copy",)
        parts = []
        for sign in (1, -1):
            for target in targets:
                hits = self.rng.integers(0, 6, len(self.heads))
                part = self.heads.assign(
                    sign=sign, target=target, hits=hits, of=5, median_rank=3.0, chance=0.01
                )
                parts.append(part.assign(**self.around(hits / 5, ("share", "low", "high"))))
        self.table("lens/ov", pd.concat(parts))
        kinds = {
            "lens/ov_members": ("copy", "next") if self.sequence else ("copy",),
            "lens/qk_members": ("duplicate", "previous", "next")
            if self.sequence
            else ("duplicate",),
        }
        for name, columns in kinds.items():
            table = self.heads.assign(chance=0.2)
            for column in columns:
                hits = self.rng.integers(0, 6, len(table))
                table = table.assign(**{f"{column}_hits": hits, f"{column}_of": 5})
                table = table.assign(
                    **self.around(hits / 5, (column, f"{column}_low", f"{column}_high"))
                )
            if name == "lens/qk_members":
                table = table.assign(
                    **self.around(
                        self.rng.random(len(table)), ("similar", "similar_low", "similar_high")
                    )
                )
            elif self.sequence:
                gain = "next_minus_copy"
                table = table.assign(
                    **self.around(
                        self.rng.normal(0, 1, len(table)), (gain, f"{gain}_low", f"{gain}_high")
                    )
                )
            self.table(name, table)
        size = len(MEMBERS)
        rows = self.heads.loc[self.heads.index.repeat(size**2)].reset_index(drop=True)
        a, b = np.indices((size, size)).reshape(2, -1)
        rows["attended"] = np.tile(np.array(MEMBERS, dtype=object)[a], len(self.heads))
        rows["promoted"] = np.tile(np.array(MEMBERS, dtype=object)[b], len(self.heads))
        rows = rows.assign(ov=self.rng.normal(0, 2, len(rows)), qk=self.rng.normal(0, 1, len(rows)))
        self.table("lens/matrices", rows if self.sequence else rows.head(0))

    def _nodes(self) -> None:
        parts = []
        for base, rows in (("full", self.nodes), ("circuit", self.nodes[self.chosen])):
            drop = self.rng.normal(10, 30, len(rows))
            part = rows.assign(base=base, value=3.0, p=0.01, p_fdr=0.01)
            parts.append(part.assign(**self.around(drop, ("drop", "low", "high"), 8)))
        self.table("nodes/effects", pd.concat(parts))
        frequency = self.rng.random(len(self.nodes))
        self.table(
            "nodes/stability", self.nodes.assign(frequency=frequency, in_circuit=self.chosen)
        )
        parts = []
        for procedure in ("greedy", "least_harmful"):
            for split in ("discovery", "held_out"):
                nodes = np.arange(len(self.nodes), int(self.chosen.sum()) - 1, -1)
                percent = 100 - self.rng.random(len(nodes)).cumsum() * 2
                part = pd.DataFrame({"procedure": procedure, "split": split, "nodes": nodes})
                for name in ("percent", "recovered"):
                    part = part.assign(
                        **self.around(percent, (name, f"{name}_low", f"{name}_high"), 9)
                    )
                parts.append(part)
        self.table("nodes/curve", pd.concat(parts))
        profiles = ("layer", "kind", "size")
        random = [
            pd.DataFrame(
                {"profile": p, "circuit": range(20), "percent": self.rng.normal(20, 15, 20)}
            )
            for p in profiles
        ]
        self.table("nodes/random", pd.concat(random))
        inside = self.nodes[self.chosen]
        minimal = inside[["component"]].assign(alone=0.4, largest=2.0, removed="L0.H1 L1.mlp")
        self.table("nodes/minimality", minimal)
        complete = pd.DataFrame(
            {
                "kind": ["single"],
                "removed": "L0.H1",
                "circuit": 1.0,
                "model": 1.2,
                "incompleteness": 7.0,
            }
        )
        self.table("nodes/completeness", complete)
        held = {"nodes": len(inside), "value": 3.0, "full": 4.0, "empty": 0.0}
        held |= {"percent": 84.0, "percent_low": 79.0, "percent_high": 88.0}
        held |= {"recovered": 83.0, "recovered_low": 78.0, "recovered_high": 87.0}
        control = {"percent": 84.0, "mean": 20.0, "max": 55.0, "p": 0.05, "count": 20}
        heads = inside[inside["head"] >= 0]
        self.circuit = {
            "task": self.task, "method": "greedy", "model_hash": "x", "n_layers": self.graph.n_layers,
            "n_heads": self.graph.n_heads, "n_kv_heads": self.graph.n_kv_heads,
            "heads": heads[["layer", "head"]].values.tolist(), "mlps": inside.loc[inside["head"] < 0, "layer"].tolist(),
        }  # fmt: skip
        rest = {
            "settings": {"threshold": 20}, "score": 84.0, "evaluated": 40,
            "faithfulness": {"discovery": held, "held_out": held}, "controls": dict.fromkeys(profiles, control),
            "completeness": {"worst": 7.0, "removed": "L0.H1"}, "minimality": {"worst": 0.4, "component": "L0.H0"},
            "stability": {"samples": 8, "jaccard": 0.7}, "accepted": {"discovery": 1.0, "held_out": 0.9},
        }  # fmt: skip
        write_json(self.folder / "nodes/circuit.json", {**self.circuit, **rest}, FACTS)

    def _edges(self) -> None:
        graph = self.graph
        source, destination = np.nonzero(graph.edges)
        table = pd.DataFrame({
            "source": np.array(graph.sources, dtype=object)[source],
            "destination": np.array(graph.destinations, dtype=object)[destination],
        })  # fmt: skip
        ends = table["destination"].str.rpartition(".")[2]
        scores = {
            m: self.rng.normal(-0.1, 0.4, len(table)) for m in ("eap", "eap-ig-inputs", "exact")
        }
        kept = np.abs(scores["exact"]) > 0.7
        parts = [
            table.assign(
                method=m,
                kind=ends,
                score=s,
                standard_error=0.1,
                pairs=6,
                in_circuit=kept,
                in_acdc=kept,
            )
            for m, s in scores.items()
        ]
        self.table("edges/effects", pd.concat(parts))
        names = [f"{a} -> {b}" for a, b in table.loc[kept, ["source", "destination"]].values]
        share = np.array([0.01, 0.05, 0.2, 0.5, 1.0])
        parts = []
        for method in ("eap", "eap-ig-inputs"):
            for signed in (False, True):
                size = (share * len(table)).round().astype(int)
                part = pd.DataFrame(
                    {
                        "method": method,
                        "signed": signed,
                        "share": share,
                        "size": size,
                        "realised": size,
                    }
                )
                part = part.assign(
                    **self.around(1 - (1 - share) ** 3, ("faithfulness", "low", "high"))
                )
                band = share**2 if method == "eap-ig-inputs" else np.full(len(share), np.nan)
                parts.append(
                    part.assign(random=band, random_low=band - 0.1, random_high=band + 0.1)
                )
        self.table("edges/curve", pd.concat(parts))
        kinds = ("all", "q", "k", "v", "mlp", "logits")
        parts = [
            pd.DataFrame(
                {
                    "method": m,
                    "kind": kinds,
                    "edges": 50,
                    "pearson": 0.8,
                    "spearman": 0.9,
                    "top_10": 0.7,
                }
            )
            for m in ("eap", "eap-ig-inputs")
        ]
        self.table("edges/agreement", pd.concat(parts))
        paths = pd.DataFrame(
            {
                "sender": ["L0.H1", "embed"],
                "receiver": ["L2.H1.q", "logits"],
                "through_mlps": [True, False],
            }
        )
        paths = paths.assign(
            value=1.0, p=0.1, p_fdr=0.2, drop=[12.0, -3.0], low=[10.0, -5.0], high=[14.0, 1.0]
        )
        self.table("edges/paths", paths)
        ends = {"value": 0.82, "low": 0.7, "high": 0.9}
        circuit = {
            **self.circuit, "edges": names, "settings": {}, "score": 0.85, "ranked": 40, "evaluated": 60,
            "faithfulness": {"discovery": ends, "held_out": ends}, "backend": "highest",
            "control": {"mean": 0.0, "max": 0.2, "p": 0.05, "count": 20},
            "areas": {"eap": {"cpr": 0.9, "cmd": 0.1}, "exact": {"cpr": 0.95, "cmd": 0.05}},
        }  # fmt: skip
        write_json(self.folder / "edges/circuit.json", circuit, FACTS)


def _layers(graph: Graph, name: str) -> pd.DataFrame:
    layers = range(graph.n_layers)
    return pd.DataFrame(
        {"component": [f"L{n}.{name}" for n in layers], "layer": layers, "head": -1}
    )


def _write_shared(folder: Path, tasks: tuple[str, ...]) -> None:
    rng = rng_for(0, "fake shared")
    cross = pd.DataFrame(
        [(a, b) for a in (*tasks, "published") for b in tasks], columns=["circuit", "data"]
    )
    cross["percent"] = rng.normal(50, 60, len(cross))
    cross = cross.assign(percent_low=cross["percent"] - 5, percent_high=cross["percent"] + 5)
    write_table(folder / "cross_task.parquet", cross, FACTS)
    pairs = [(a, b) for i, a in enumerate(tasks) for b in tasks[i + 1 :]]
    overlap = pd.DataFrame(
        [(method, a, b) for method in ("nodes", "edges") for a, b in pairs],
        columns=["method", "first", "second"],
    )
    overlap = overlap.assign(
        heads_jaccard=0.4, heads_shared="L0.H0", mlps_jaccard=1.0, mlps_shared=""
    )
    write_table(folder / "overlap.parquet", overlap, FACTS)
    generation = cross[["circuit", "data"]].assign(
        removed=3, prompts=30, tokens=2, full=0.95, exact=rng.random(len(cross)), random_mean=0.8, random_min=0.5,
        p=0.02, count=10,
    )  # fmt: skip
    write_table(folder / "generation.parquet", generation, FACTS)
    sets = generation[["circuit", "data"]].loc[generation.index.repeat(10)].reset_index(drop=True)
    sets = sets.assign(set=np.arange(len(sets)) % 10, exact=rng.uniform(0.5, 1, len(sets)))
    write_table(folder / "generation_random.parquet", sets, FACTS)
