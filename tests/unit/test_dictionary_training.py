"""Streams of activations and training: recovery of planted dictionaries, exact resume, honest failures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from planted_dictionary import WINDOW_LEN, directions, planted, write_chunk
from safetensors.numpy import load_file

from mechatlas.capture.shards import ShardReader, ShardWriter
from mechatlas.dictionaries.loop import fingerprint, metrics_table, train
from mechatlas.dictionaries.schedule import ramp, rate_share
from mechatlas.dictionaries.settings import TrainingSettings
from mechatlas.dictionaries.sparse import (
    decode_events,
    encode_events,
    select_batch_topk,
    select_topk,
)
from mechatlas.dictionaries.straight_through import jump_relu, step
from mechatlas.dictionaries.stream import ActivationStream
from mechatlas.dictionaries.trainer import SparseTrainer, measure_scaling
from mechatlas.io import UserError
from mechatlas.io.tensors import read_tensors

PLACE = ("mlp_out", 0)
OTHER = ("resid_mid", 0)


def numbered(windows: int, first: int = 0) -> np.ndarray:
    """Return activations of width 2 that say window and position."""
    window, position = np.divmod(np.arange(windows * WINDOW_LEN), WINDOW_LEN)
    return np.stack([window + first, position], axis=1).astype(np.float32)


def two_chunks(folder: Path) -> list[Path]:
    places = [{PLACE: numbered(6, f), OTHER: 10 * numbered(6, f)} for f in (0, 6)]
    return [write_chunk(folder / f"{i:04d}", p, first=6 * i) for i, p in enumerate(places)]


# --- streams --------------------------------------------------------------------------------------


def test_an_epoch_holds_every_token_once_and_no_bos(tmp_path: Path) -> None:
    windows = [0, 2, 3, 7, 8, 11]
    stream = ActivationStream(
        two_chunks(tmp_path), [PLACE, OTHER], windows, batch_tokens=12, buffer_windows=4, seed=5
    )
    assert stream.tokens_per_epoch == 6 * 16 and stream.widths == {PLACE: 2, OTHER: 2}
    epochs = [[stream.batch(8 * epoch + i) for i in range(8)] for epoch in range(2)]
    orders = []
    for batches in epochs:
        seen = torch.cat([batch[PLACE] for batch in batches]).int().tolist()
        orders.append(seen)
        wanted = [[w, p] for w in windows for p in range(1, WINDOW_LEN)]
        assert sorted(seen) == wanted and seen != wanted
        # All places of a batch are of the same tokens.
        assert all(torch.equal(10 * batch[PLACE], batch[OTHER]) for batch in batches)
    assert orders[0] != orders[1]


def test_a_batch_does_not_depend_on_what_was_read_before(tmp_path: Path) -> None:
    chunks = two_chunks(tmp_path)

    def new(seed: int = 0) -> ActivationStream:
        return ActivationStream(
            chunks, [PLACE], range(12), batch_tokens=50, buffer_windows=5, seed=seed
        )

    stream = new()
    in_order = [stream.batch(i)[PLACE].clone() for i in range(9)]
    for i in (8, 2, 5):
        assert torch.equal(new().batch(i)[PLACE], in_order[i])
    assert not torch.equal(new(seed=1).batch(0)[PLACE], in_order[0])


def test_tokens_of_a_batch_come_from_many_windows(tmp_path: Path) -> None:
    stream = ActivationStream(two_chunks(tmp_path), [PLACE], range(12), batch_tokens=48)
    windows = stream.batch(0)[PLACE][:, 0]
    assert len(windows.unique()) >= 10


def test_memory_is_bounded_by_the_buffer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = []
    gather = ActivationStream._gather
    monkeypatch.setattr(
        ActivationStream, "_gather", lambda s, p, c, o: held.append(len(o)) or gather(s, p, c, o)
    )
    stream = ActivationStream(
        two_chunks(tmp_path), [PLACE], range(12), batch_tokens=10, buffer_windows=3
    )
    for i in range(19):
        stream.batch(i)
    # Each block of three windows is read once.
    assert held == [3 * 16] * 4


def test_streams_that_cannot_be_are_refused(tmp_path: Path) -> None:
    chunks = two_chunks(tmp_path)
    with pytest.raises(UserError, match="no window to train on"):
        ActivationStream(chunks, [PLACE], [], batch_tokens=4)
    with pytest.raises(UserError, match=r"windows \[12\] are in none of 2 chunks"):
        ActivationStream(chunks, [PLACE], [0, 12], batch_tokens=4)
    with pytest.raises(UserError, match="add attn_out to capture.activations"):
        ActivationStream(chunks, [("attn_out", 0)], [0], batch_tokens=4)
    bad = numbered(2, 12)
    bad[20, 1] = np.nan
    chunks.append(write_chunk(tmp_path / "0002", {PLACE: bad}, first=12))
    with pytest.raises(UserError, match="not finite.*0002"):
        ActivationStream(chunks, [PLACE], range(14), batch_tokens=4).batch(0)
    shard = next((tmp_path / "0001").glob("activations.mlp_out*"))
    shard.write_bytes(shard.read_bytes()[:-8])
    with pytest.raises(UserError, match="damaged or truncated"):
        ActivationStream(chunks, [PLACE], range(12), batch_tokens=4)


def test_shards_are_read_by_rows_and_damage_is_noticed(tmp_path: Path) -> None:
    path, values = tmp_path / "a.safetensors", np.arange(24, dtype=np.float16).reshape(8, 3)
    shard = ShardWriter(path, {"windows": ("int32", (2,)), "x": ("float16", (8, 3))}, {"seed": 1})
    shard.write("windows", np.array([4, 5]))
    shard.write("x", values)
    shard.close()
    reader = ShardReader(path, "x")
    assert reader.shape == (8, 3) and reader.rows(2, 5).dtype == np.float16
    assert np.array_equal(reader.rows(2, 5), values[2:5]) and reader.rows(8, 8).shape == (0, 3)
    # The usual reader of the format sees the same.
    assert np.array_equal(load_file(path)["x"], values)
    whole = path.read_bytes()
    for content in (whole[:-1], whole[:20], b"", whole[:8] + b"x" + whole[9:]):
        path.write_bytes(content)
        with pytest.raises(UserError, match="missing, damaged or truncated"):
            ShardReader(path, "x")
    for name in ("x", "y"):
        path.unlink(missing_ok=True) if name == "x" else path.write_bytes(whole)
        with pytest.raises(UserError, match="missing, damaged or truncated"):
            ShardReader(path, name)


# --- gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("select", [select_topk(3), select_batch_topk(3)])
def test_sparse_gradients_are_those_of_the_dense_computation(select) -> None:
    draw = torch.Generator().manual_seed(0)

    def leaves() -> list[torch.Tensor]:
        draw.manual_seed(1)
        shapes = [(7, 5), (20, 5), (20,), (20, 5)]
        return [
            torch.randn(s, generator=draw, dtype=torch.float64).requires_grad_() for s in shapes
        ]

    x, encoder, bias, decoder = sparse = leaves()
    tokens, latents, values = encode_events(x, encoder, bias, select)
    weights = torch.randn(7, 5, generator=draw, dtype=torch.float64)
    output = decode_events(tokens, latents, values, decoder, 7)
    (output * weights).sum().backward()
    x, encoder, bias, decoder = dense = leaves()
    pre = F.linear(x, encoder, bias)
    mask = torch.zeros_like(pre)
    mask[tokens, latents] = 1
    (((mask * pre) @ decoder) * weights).sum().backward()
    torch.testing.assert_close(output, (mask * pre) @ decoder)
    for a, b in zip(sparse, dense, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_selections_keep_the_largest() -> None:
    pre = torch.tensor([[5.0, 4.0, 3.0, -1.0], [1.0, -2.0, -3.0, -4.0]])
    assert [t.tolist() for t in select_topk(2)(pre)] == [[0, 0, 1], [0, 1, 0]]
    assert [t.tolist() for t in select_batch_topk(2)(pre)] == [[0, 0, 0, 1], [0, 1, 2, 0]]


def test_jump_relu_has_the_published_gradients() -> None:
    pre = torch.tensor([[0.2], [0.45], [0.6], [2.0]], dtype=torch.float64, requires_grad=True)
    threshold = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)
    z = jump_relu(pre, threshold, 0.4)
    assert z.flatten().tolist() == [0.0, 0.0, 0.6, 2.0]
    z.sum().backward()
    assert pre.grad.flatten().tolist() == [0.0, 0.0, 1.0, 1.0]
    # Two pre-activations are within 0.2 of the threshold.
    assert threshold.grad.item() == pytest.approx(-(0.5 / 0.4) * 2)
    threshold.grad = None
    step(pre, threshold, 0.4).sum().backward()
    assert threshold.grad.item() == pytest.approx(-2 / 0.4)


def test_schedules() -> None:
    shares = [rate_share(s, 100, 0.1, 0.2) for s in range(100)]
    assert shares[0] == pytest.approx(0.1) and shares[9:80] == [1.0] * 71
    assert shares[80:] == pytest.approx([(100 - s) / 20 for s in range(80, 100)])
    assert rate_share(0, 10, 0, 0) == 1.0
    assert [ramp(s, 10, 0.5) for s in (0, 1, 5, 9)] == [0, 0.2, 1, 1] and ramp(0, 10, 0) == 1


# --- training -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder, rows = tmp_path_factory.mktemp("planted"), directions(40, 20)
    x, codes = planted(rows, 500 * WINDOW_LEN, 2)
    # What a transcoder has to write: the same code through another dictionary.
    targets = directions(40, 12, seed=3)
    y = (codes @ targets).astype(np.float32)
    chunk = write_chunk(folder / "0000", {PLACE: x, OTHER: y})
    return {"chunk": chunk, "rows": rows, "targets": targets, "x": x, "y": y}


def settings(**changes) -> TrainingSettings:
    return TrainingSettings(
        **{
            **{"latents": 50, "k": 2, "tokens": 120_000, "batch_tokens": 256, "seed": 1},
            **{"learning_rate": 6e-3, "dead_tokens": 5_000},
            **changes,
        }
    )


def trained(world: dict, folder: Path, wanted: TrainingSettings, writes=PLACE, **options):
    stream = ActivationStream(
        [world["chunk"]], {PLACE, writes}, range(500),
        batch_tokens=wanted.batch_tokens, buffer_windows=wanted.buffer_windows, seed=wanted.seed,
    )  # fmt: skip
    trainer = SparseTrainer(wanted, PLACE, writes, measure_scaling(stream, PLACE, writes))
    given = {"checkpoint": folder / "c.safetensors", "identity": "a", "checkpoint_every": 200}
    history = train(trainer, stream, wanted.steps, **(given | options))
    return trainer, history


def recovered(decoder: torch.Tensor, rows: np.ndarray) -> float:
    """Return the mean over planted directions of the largest cosine with a decoder row."""
    cosines = F.normalize(decoder, dim=-1).double() @ torch.from_numpy(rows).T
    return float(cosines.max(0).values.mean())


@pytest.mark.parametrize(
    "changes",
    [
        {"activation": "topk"},
        {"activation": "batchtopk"},
        {"activation": "relu", "tokens": 150_000},
        {"activation": "relu", "penalty": "tanh", "tokens": 150_000},
        {"activation": "jumprelu", "tokens": 200_000},
    ],
    ids=["topk", "batchtopk", "relu", "relu-tanh", "jumprelu"],
)
def test_a_planted_dictionary_is_recovered(world: dict, tmp_path: Path, changes: dict) -> None:
    trainer, history = trained(world, tmp_path, settings(**changes))
    sae = trainer.result({})
    assert recovered(sae.decoder, world["rows"]) >= 0.95
    x = torch.from_numpy(world["x"])
    fvu = (sae.forward(x) - x).square().sum() / (x - x.mean(0)).square().sum()
    l0 = float((sae.encode(x) > 0).sum(1).float().mean())
    assert float(fvu) < 0.15
    assert l0 == pytest.approx(2, abs=0.4) if changes["activation"] != "relu" else l0 < 8
    # The rows have norm 1 and the numbers of the last step are those of the result.
    torch.testing.assert_close(sae.decoder_norms(), torch.ones(50))
    last = dict(zip(trainer.metrics, history[-50:].mean(0).tolist(), strict=True))
    assert last["fvu"] == pytest.approx(float(fvu), abs=0.03)
    assert last["l0"] == pytest.approx(l0, abs=0.5)


def test_a_transcoder_learns_another_place(world: dict, tmp_path: Path) -> None:
    trainer, _ = trained(world, tmp_path, settings(activation="topk"), writes=OTHER)
    sae = trainer.result({"model": "m"})
    x, y = (torch.from_numpy(world[name]) for name in "xy")
    assert (sae.d_in, sae.d_out, sae.subtract_bias) == (20, 12, False)
    assert sae.about == {"layer": 0, "reads": "mlp_out", "writes": "resid_mid", "model": "m"}
    fvu = (sae.forward(x) - y).square().sum() / (y - y.mean(0)).square().sum()
    assert float(fvu) < 0.15
    assert recovered(sae.decoder, world["targets"]) > 0.95


@pytest.mark.parametrize("activation", ["topk", "jumprelu"])
def test_resumed_training_is_bit_for_bit_the_uninterrupted_one(
    world: dict, tmp_path: Path, activation: str
) -> None:
    wanted = settings(activation=activation, tokens=30_000, dead_tokens=2_000)
    whole, history = trained(world, tmp_path / "whole", wanted)
    options = {"checkpoint_every": 25}
    # Step 60 is after resampling and within a block of the buffer.
    trained(world, tmp_path / "parts", wanted, **options, stop_at=60)
    resumed, again = trained(world, tmp_path / "parts", wanted, **options)
    assert torch.equal(history, again) and history.shape == (117, len(whole.metrics))
    a, b = whole.tensors(), resumed.tensors()
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    # Counting dead latents and resampling them was part of it.
    if activation == "topk":
        assert (history[:, whole.metrics.index("dead_share")] > 0).any()
    # Nothing is left to do, and the result is the same.
    finished, _ = trained(world, tmp_path / "parts", wanted, **options)
    assert torch.equal(finished.result({}).encoder, whole.result({}).encoder)


def test_a_checkpoint_of_other_settings_is_not_used(world: dict, tmp_path: Path) -> None:
    wanted = settings(tokens=3_000)
    first, _ = trained(world, tmp_path, wanted)
    other, history = trained(world, tmp_path, settings(tokens=3_000, seed=2), identity="b")
    assert len(history) == 11
    assert not torch.equal(first.parameters["encoder"], other.parameters["encoder"])
    assert fingerprint(a=1, b=[2]) == fingerprint(b=[2], a=1) != fingerprint(a=1, b=[3])


def test_a_loss_that_is_not_finite_stops_with_the_last_good_checkpoint(
    world: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = settings(tokens=30_000)
    loss = SparseTrainer.loss

    def spoiled(self, batch, step):
        return loss(self, batch, step) * (float("nan") if step == 46 else 1.0)

    monkeypatch.setattr(SparseTrainer, "loss", spoiled)
    message = (
        "not finite at step 47; the state after step 40 is in .*c.safetensors; lower learning_rate"
    )
    with pytest.raises(UserError, match=message):
        trained(world, tmp_path, wanted, checkpoint_every=20)
    state = read_tensors(tmp_path / "c.safetensors")
    assert len(state["history"]) == 40
    assert all(bool(torch.isfinite(tensor).all()) for tensor in state.values())


def test_dead_latents_are_resampled_at_the_errors(world: dict, tmp_path: Path) -> None:
    wanted = settings(activation="relu", tokens=20_000, dead_tokens=1_000, resamplings=0)
    trainer, _ = trained(world, tmp_path, wanted)
    with torch.no_grad():
        trainer.parameters["encoder_bias"][:5] = -1e6
    trainer.silent[:5] = 1_000_000
    stream = ActivationStream([world["chunk"]], [PLACE], range(500), batch_tokens=256)
    trainer.loss(stream.batch(0), 0)
    error = F.normalize(trainer._seen["error"], dim=-1)
    with torch.no_grad():
        trainer._resample(torch.arange(5), 3)
    nearest = trainer.parameters["decoder"][:5].detach() @ error.T
    assert float(nearest.max(1).values.min()) > 0.999
    assert trainer.silent[:5].tolist() == [0] * 5
    assert float(trainer.adam.second["encoder"][:5].abs().max()) == 0
    assert wanted.resamples_at(3) is False
    due = [s for s in range(117) if settings(tokens=30_000).resamples_at(s)]
    assert due == [16, 33, 50, 67]


def test_metrics_become_a_table_with_a_row_per_step(world: dict, tmp_path: Path) -> None:
    trainer, history = trained(world, tmp_path, settings(tokens=3_000))
    table = metrics_table(history, trainer.metrics, layer=0)
    assert list(table.columns) == ["step", "layer", *trainer.metrics]
    assert table["step"].tolist() == list(range(1, 12))
    assert table["l0"].between(0, 2).all() and table["loss"].iloc[-1] < table["loss"].iloc[0]
    two = metrics_table(torch.zeros(3, 2, 1), ("loss",), layer=[4, 5])
    assert two["layer"].tolist() == [4, 5] * 3 and two["step"].tolist() == [1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "gelu"}, "activation 'gelu' cannot be trained"),
        ({"k": 51}, "k: 51 must be between 1 and the number of latents, 50"),
        ({"tokens": 100}, "tokens: 100 is less than one batch"),
        ({"penalty": "l2"}, "penalty 'l2' is not known"),
    ],
)
def test_settings_that_cannot_be_trained_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings(**changes)


def test_constant_activations_are_refused(tmp_path: Path) -> None:
    chunk = write_chunk(tmp_path / "0000", {PLACE: np.ones((3 * WINDOW_LEN, 4), np.float32)})
    stream = ActivationStream([chunk], [PLACE], range(3), batch_tokens=16)
    with pytest.raises(UserError, match="mlp_out in layer 0 are constant"):
        measure_scaling(stream, PLACE, PLACE)
