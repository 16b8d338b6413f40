"""Groups of explanations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mechatlas.explain import clusters as module
from mechatlas.explain.clusters import (
    centred,
    cluster_explanations,
    cluster_vectors,
    describe_clusters,
    distinguishing_words,
    embed_texts,
    find_embedding_model,
    unit_names,
    without_shares,
)
from mechatlas.explain.sentences import read_encoder
from mechatlas.io import UserError


def blobs(sizes: list[int], spread: float = 0.02) -> np.ndarray:
    """Unit vectors around different axes, shuffled in a fixed way by nothing: group after group."""
    rng = np.random.default_rng(0)
    rows = [np.eye(8)[i] + rng.normal(scale=spread, size=(n, 8)) for i, n in enumerate(sizes)]
    vectors = np.concatenate(rows)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def record(unit: str, text: str, control: str = "none", explainer: str = "programs") -> dict:
    return {"unit": unit, "text": text, "control": control, "explainer": explainer}


def test_shares_are_left_out() -> None:
    text = "Attends to the previous token (63 %) and itself (9.5 %); otherwise rests on BOS (30 % or more)."
    assert (
        without_shares(text) == "Attends to the previous token and itself; otherwise rests on BOS."
    )


def test_clusters_are_found_and_numbered_by_size() -> None:
    labels = cluster_vectors(blobs([6, 9, 7]), 5)
    assert labels.tolist() == [2] * 6 + [0] * 9 + [1] * 7


def test_what_is_far_from_all_is_noise() -> None:
    vectors = np.concatenate([blobs([8, 8]), np.eye(8, dtype=np.float32)[[6]]])
    assert cluster_vectors(vectors, 5)[-1] == -1


def test_too_few_are_noise_and_equal_ones_are_one_cluster() -> None:
    assert cluster_vectors(blobs([4]), 5).tolist() == [-1] * 4
    assert cluster_vectors(np.zeros((0, 1)), 2).tolist() == []
    assert cluster_vectors(np.tile(blobs([1]), (5, 1)), 5).tolist() == [0] * 5


def test_many_equal_rows_beside_others() -> None:
    vectors = np.repeat(blobs([1, 1, 1]), [6, 6, 6], axis=0)
    assert sorted(np.bincount(cluster_vectors(vectors, 5) + 1).tolist()) == [0, 6, 6, 6]


def test_what_all_share_does_not_hide_the_groups() -> None:
    shared = np.ones(8) / 8**0.5
    vectors = 0.995 * shared + 0.1 * blobs([8, 8])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert (vectors @ vectors.T).min() > 0.98
    rest = centred(vectors)
    assert np.allclose(np.linalg.norm(rest, axis=1), 1) and rest[0] @ rest[-1] < -0.9
    assert cluster_vectors(rest, 5).tolist() == [0] * 8 + [1] * 8
    assert not centred(np.tile(vectors[:1], (6, 1))).any() and centred(np.zeros((0, 1))).shape == (
        0,
        1,
    )


def test_medoid_and_similarity() -> None:
    angles = np.array([0.0, 0.1, 0.5])
    vectors = np.stack([np.cos(angles), np.sin(angles)], 1)
    found, noise = describe_clusters(
        ["a", "b", "c"], ["x one", "x two", "x three"], vectors, np.zeros(3, int)
    )
    assert found[0]["medoid"] == "b" and noise == []
    expected = np.mean([np.cos(0.1), np.cos(0.5), np.cos(0.4)])
    assert found[0]["mean_similarity"] == pytest.approx(expected, abs=1e-4)


def test_words_set_clusters_apart() -> None:
    texts = [
        "to the previous token",
        "to the previous token",
        "to opening brackets",
        "to opening brackets x",
    ]
    words = distinguishing_words(texts, np.array([0, 0, 1, 1]))
    assert set(words[0]) == {"previous", "token"} and set(words[1]) == {"opening", "brackets"}
    assert distinguishing_words(["1 2", "3"], np.array([0, 0])) == [[]]


def test_units_with_several_explanations_are_told_apart() -> None:
    records = [record("L0.H0", "a"), record("L0.H0", "b", explainer="other"), record("L0.H1", "c")]
    assert unit_names(records) == ["L0.H0 (programs)", "L0.H0 (other)", "L0.H1"]


def test_fewer_heads_than_a_cluster_need_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "embed_texts", lambda *_: pytest.fail("embedded"))
    records = [record("L0.H0", "a"), record("L0.H1", "b"), record("L0.H1", "b", control="shuffled")]
    result = cluster_explanations(records, 3, "all-MiniLM-L6-v2")
    assert result["clusters"] == [] and result["noise"] == ["L0.H0", "L0.H1"]
    assert cluster_explanations([], 2, "all-MiniLM-L6-v2")["noise"] == []


def test_embedding_model_that_is_not_there(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="clusters.embedding_model: the folder .* does not exist"):
        find_embedding_model(str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="clusters.embedding_model: cannot load"):
        embed_texts(["a"], str(tmp_path / "empty"))


TEXTS = [
    "Attends to the previous token.",
    "By its score tables attends mostly to the first token of the line; strongest pair '\\n' to 'Ωmega'.",
    "x",
    "",
    "word " * 400,
]


def test_vectors_are_those_of_sentence_transformers() -> None:
    place = find_embedding_model("all-MiniLM-L6-v2")
    from sentence_transformers import SentenceTransformer

    expected = SentenceTransformer(place, device="cpu").encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(read_encoder(place).encode(TEXTS), expected, atol=1e-5)


def test_a_folder_of_another_kind_is_left_to_sentence_transformers(tmp_path) -> None:
    place = Path(find_embedding_model("all-MiniLM-L6-v2"))
    assert read_encoder(tmp_path) is None
    for file in place.rglob("*.json"):
        copy = tmp_path / file.relative_to(place)
        copy.parent.mkdir(exist_ok=True)
        copy.write_text(file.read_text())
    (tmp_path / "model.safetensors").symlink_to(place / "model.safetensors")
    assert read_encoder(tmp_path) is not None
    pooling = tmp_path / "1_Pooling" / "config.json"
    pooling.write_text(
        pooling.read_text().replace(
            '"pooling_mode_cls_token": false', '"pooling_mode_cls_token": true'
        )
    )
    assert read_encoder(tmp_path) is None


def test_installed_model_groups_like_with_like() -> None:
    texts = [f"Attends to the previous token ({n} %)." for n in range(5)]
    texts += ["Attends to the opening bracket that a closing bracket matches."] * 5
    records = [record(f"L0.H{i}", text) for i, text in enumerate(texts)]
    result = cluster_explanations(records, 5, "all-MiniLM-L6-v2")
    assert [c["size"] for c in result["clusters"]] == [5, 5] and result["noise"] == []
    assert result["clusters"][0]["mean_similarity"] == 1
    assert (
        "previous" in result["clusters"][0]["words"]
        and len(result["embedding_model"]["hash"]) == 64
    )
    assert result == cluster_explanations(records, 5, "all-MiniLM-L6-v2")
