"""Codes of latents, their statistics, events, neighbours and controls, against sums over dense arrays."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from dictionary_makers import random_dictionary, reference
from latent_world import POINT, make_windows, write_capture

from mechatlas.corpus.windows import SPLITS
from mechatlas.dictionaries import codes as encoding
from mechatlas.dictionaries.code_files import blocks, code_file, read_codes, read_index
from mechatlas.dictionaries.codes import encode_chunk
from mechatlas.dictionaries.latent_events import EventSettings
from mechatlas.dictionaries.latent_merge import MergeSettings, merge_layers
from mechatlas.io import UserError, read_arrays, write_arrays

WIDTH, LATENTS = 6, 25
ABOUT = {"reads": POINT}
EVENTS = EventSettings(
    topk=6, max_per_document=2, quantiles=3, events_per_quantile=2, random_events=20, negatives=4,
    seed=3,
)  # fmt: skip
SETTINGS = MergeSettings(
    max_latents=5, neighbours=3, dense_rate=0.4, random_directions=True, events=EVENTS
)


def dictionary(kind="relu", seed=0):
    sae = random_dictionary(
        kind, latents=LATENTS, d_in=WIDTH, dtype=torch.float32, seed=seed, about=ABOUT
    )
    sae.encoder_bias -= 4.0  # so that latents are sparse
    sae.encoder_bias[7] = -1e4  # and one is dead
    return sae


@pytest.fixture(scope="module")
def activations():
    windows = make_windows()
    rng = np.random.default_rng(1)
    return windows, [rng.normal(size=(*windows.tokens.shape, WIDTH)).astype("f4") for _ in range(2)]


@pytest.fixture(scope="module", autouse=True)
def small_batches():
    """Batches of five windows, which chunks cut."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "BATCH_TOKENS", 60)
        yield


def encode(folder, activations, saes, chunks):
    windows, layers = activations
    path, captures = write_capture(folder, windows, layers, chunks)
    folders = []
    for number, chunk in enumerate(captures):
        folders.append(folder / "codes" / f"{number:04d}")
        encode_chunk(saes.items(), chunk, folders[-1], dictionary="d", facts={})
    return path, captures, folders


def merged(path, captures, folders, saes, settings=SETTINGS):
    return list(
        merge_layers(folders, captures, path, lambda at: saes[at].decoder.numpy(), settings)
    )


def dense(values, sae):
    """Activations [W, T, F] in double precision, BOS left out."""
    found = reference(sae, values.reshape(-1, WIDTH))[0].reshape(*values.shape[:2], -1)
    found[:, 0] = 0
    return np.maximum(found, 0)


@pytest.fixture(scope="module")
def one_chunk(tmp_path_factory, activations):
    saes = {0: dictionary(), 1: dictionary("topk", 1)}
    made = encode(tmp_path_factory.mktemp("one"), activations, saes, 1)
    return saes, made, merged(*made, saes)


def test_codes_are_the_positive_latents_of_every_token(one_chunk, activations):
    saes, (_, _, folders), _ = one_chunk
    for layer, sae in saes.items():
        true = dense(activations[1][layer], sae)
        found = np.zeros_like(true)
        for block in blocks(folders, layer, 50):
            found[block.window, block.position, block.first + block.latents] = block.value
        assert np.abs(found - true).max() < 2e-5 and (found > 0).sum() > 300
        assert len(read_codes(folders, layer, 7, 8).value) == 0


@pytest.mark.parametrize("chunks", (3, 7))
def test_chunks_merge_to_the_same_bytes(tmp_path, one_chunk, activations, chunks):
    saes, (_, _, folders), whole = one_chunk
    made = encode(tmp_path, activations, saes, chunks)
    for layer in saes:
        one, other = read_codes(folders, layer, 0, LATENTS), read_codes(made[2], layer, 0, LATENTS)
        for name in ("offsets", "window", "position", "value"):
            assert np.array_equal(getattr(one, name), getattr(other, name)), name
    for one, other in zip(whole, merged(*made, saes), strict=True):
        for name in ("statistics", "events", "neighbours", "activations"):
            pd.testing.assert_frame_equal(
                getattr(one, name), getattr(other, name), check_exact=True
            )


def test_statistics_are_sums_over_tokens(one_chunk, activations):
    saes, _, layers = one_chunk
    windows = activations[0]
    for layer, tables in enumerate(layers):
        true = dense(activations[1][layer], saes[layer])
        norms = saes[layer].decoder_norms().numpy()
        assert len(tables.statistics) == 3 * LATENTS
        for row in tables.statistics.itertuples():
            mine = windows.splits == SPLITS.index(row.split)
            values = true[mine, 1:, row.latent]
            fires = values > 0
            assert row.tokens == values.size and row.fires == fires.sum()
            assert row.firing_rate == pytest.approx(fires.mean())
            assert row.dead == (not fires.any()) and row.dense == (fires.mean() >= 0.4)
            assert row.documents == len(set(windows.docs[mine][fires.any(1)]))
            assert row.importance == pytest.approx(values.mean() * norms[row.latent], rel=1e-4)
            if fires.any():
                assert row.mean_activation == pytest.approx(values[fires].mean(), rel=1e-4)
                assert row.max_activation == pytest.approx(values.max(), rel=1e-4)
                mass = np.bincount(windows.tokens[mine, 1:][fires], values[fires])
                assert row.top_token == mass.argmax()
                assert row.top_token_share == pytest.approx(mass.max() / mass.sum(), rel=1e-4)
                assert row.single_token == (mass.max() / mass.sum() >= 0.95)


def test_the_most_important_latents_are_kept(one_chunk):
    for tables in one_chunk[2]:
        train = tables.statistics.query("split == 'train'").set_index("latent")["importance"]
        wanted = train.sort_values(ascending=False).index[:5].tolist()
        assert list(dict.fromkeys(tables.events["latent"])) == wanted


def test_events_are_what_they_are_called(one_chunk, activations):
    saes, _, layers = one_chunk
    windows = activations[0]
    for layer, tables in enumerate(layers):
        true = dense(activations[1][layer], saes[layer])
        for (latent, split), group in tables.events.groupby(["latent", "split"]):
            mine = np.flatnonzero(windows.splits == SPLITS.index(split))
            values = true[group["window"], group["position"], latent]
            assert np.abs(values - group["activation"]).max() < 2e-5
            assert (group["position"] > 0).all() and group["window"].isin(mine).all()
            top = group[group["role"] == "top"]
            rest = true[mine, :, latent].copy()
            assert top["doc"].value_counts().max() <= 2 and len(top) <= 6
            # Nothing stronger was left out but for the cap on documents.
            full = set(top["doc"].value_counts().loc[lambda n: n == 2].index)
            rest[[windows.docs[w] in full for w in mine]] = 0
            assert np.sort(rest.ravel())[-3:].max() <= top["activation"].max() + 1e-5
            drawn = group[group["role"] == "quantile"]
            active = int((true[mine, :, latent] > 0).sum())
            assert drawn["weight"].sum() == pytest.approx(active)
            mass = (
                drawn.assign(m=drawn["weight"] * drawn["activation"]).groupby("quantile")["m"].sum()
            )
            assert len(mass) <= 3
            random = group[group["role"] == "random"]
            assert random["weight"].sum() == pytest.approx(len(mine) * 11) and len(random) == 20
            for role in ("negative_similar", "negative_coactive"):
                negative = group[group["role"] == role]
                assert (negative["activation"] == 0).all()
                other = true[negative["window"], negative["position"], negative["neighbour"]]
                assert (other > 0).all()


def test_neighbours_are_the_nearest(one_chunk, activations):
    saes, _, layers = one_chunk
    windows = activations[0]
    for layer, tables in enumerate(layers):
        decoder = saes[layer].decoder.double().numpy()
        decoder /= np.linalg.norm(decoder, axis=1, keepdims=True)
        active = dense(activations[1][layer], saes[layer])[windows.splits == 0] > 0
        active = active.reshape(-1, LATENTS)
        for row in tables.neighbours.itertuples():
            assert row.neighbour != row.latent
            if row.kind == "similar":
                assert row.value == pytest.approx(decoder[row.latent] @ decoder[row.neighbour])
                alive = set(tables.statistics.loc[~tables.statistics["dead"], "latent"])
                closer = decoder[row.latent] @ decoder.T > row.value + 1e-9
                assert len((set(np.flatnonzero(closer)) & alive) - {row.latent}) == row.rank - 1
            else:
                a, b = active[:, row.latent], active[:, row.neighbour]
                assert row.value == pytest.approx((a & b).sum() / (a | b).sum())


def test_random_directions_fire_as_often_as_their_latents(one_chunk, activations):
    _, _, layers = one_chunk
    train = activations[0].splits == 0
    for tables in layers:
        values = tables.activations
        own = values[values["control"] == "none"]
        rates = tables.statistics.query("split == 'train'").set_index("latent")["fires"]
        assert (own["latent"].value_counts() > 0).all()
        control = values[values["control"] == "random_direction"]
        assert (control["activation"] > 0).all() and (control["position"] > 0).all()
        for latent, group in control.groupby("latent"):
            fires = train[group["window"]].sum()
            assert fires == pytest.approx(rates[latent], abs=2)


def test_bad_input_is_one_clear_line(tmp_path, activations, one_chunk):
    windows, layers = activations
    path, (chunk,) = write_capture(tmp_path, windows, layers, 1)
    with pytest.raises(UserError, match="width 9"):
        wide = random_dictionary(latents=4, d_in=9, dtype=torch.float32, about=ABOUT)
        encode_chunk([(0, wide)], chunk, tmp_path / "x", dictionary="d", facts={})
    with pytest.raises(UserError, match=r"activations\.resid_mid\.layer_2"):
        encode_chunk([(2, dictionary())], chunk, tmp_path / "x", dictionary="d", facts={})
    broken = [layer.copy() for layer in layers]
    broken[0][3, 4, 2] = np.nan
    _, (bad,) = write_capture(tmp_path / "bad", windows, broken, 1)
    with pytest.raises(UserError, match="not finite"):
        encode_chunk([(0, dictionary())], bad, tmp_path / "x", dictionary="d", facts={})
    assert not (tmp_path / "x").exists()
    saes, (path, captures, folders), _ = one_chunk
    with pytest.raises(UserError, match="cover windows"):
        read_index(folders, 41)
    with pytest.raises(UserError, match="25 latents"):
        list(merge_layers(folders, captures, path, lambda at: np.ones((9, WIDTH)), SETTINGS))


def test_a_truncated_file_is_named(tmp_path, activations):
    saes = {0: dictionary()}
    path, captures, folders = encode(tmp_path, activations, saes, 2)
    file = folders[1] / code_file(0)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"0001.*damaged"):
        merged(path, captures, folders, saes)
    arrays = read_arrays(folders[0] / code_file(0))
    write_arrays(file, arrays | {"offsets": arrays["offsets"][:-1]}, {})
    with pytest.raises(UserError):
        merged(path, captures, folders, saes)
