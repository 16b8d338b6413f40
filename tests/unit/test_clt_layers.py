"""Features of a transcoder as latents of a dictionary: the same activations, and the same effect on the model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from clt_makers import make_clt
from edge_models import make_model

from mechatlas.circuits.graphs.interventions import Intervention, intervention_hooks
from mechatlas.circuits.graphs.prompt_graph import explained_nodes
from mechatlas.circuits.graphs.run import run_prompt
from mechatlas.dictionaries.clt_formats import save_clt
from mechatlas.dictionaries.clt_layers import layer_dictionary, target_parts
from mechatlas.dictionaries.collection import import_collection, layers_of, read_dictionary
from mechatlas.dictionaries.directions import decoder_directions
from mechatlas.io import UserError, write_jsonl
from mechatlas.models.sampling import sample
from mechatlas.score.latents.causal import Edit, LayerRunner, direct_logits

TOKENS = torch.tensor([0, 7, 3, 22, 7, 39, 1])


@pytest.fixture(params=["cross", "per_layer", "tied"])
def pair(request):
    model = make_model()
    return model, make_clt(d=model.config.d_model, decoders=request.param)


def test_a_layers_features_are_a_dictionary(pair):
    _, clt = pair
    x = torch.randn(6, clt.d_model, dtype=torch.float64)
    for layer in range(clt.n_layers):
        sae = layer_dictionary(clt, layer)
        features = clt.encode(x, layer)
        assert torch.equal(sae.encode(x), features)
        written = target_parts(sae, sae.decode(features), layer)
        assert list(written) == list(clt.targets(layer))
        for part, wanted in zip(written.values(), clt.written(features, layer), strict=True):
            torch.testing.assert_close(part, wanted)
        torch.testing.assert_close(sae.decoder_norms(), clt.decoder_norms(layer))


def test_taking_a_feature_out_is_the_intervention(pair):
    """Both remove what the feature writes to all its layers and let the model follow."""
    model, clt = pair
    layer, feature = 1, 4
    sae = layer_dictionary(clt, layer)
    runner = LayerRunner(model, sae, layer, TOKENS[None].numpy(), 1)
    read: list = []
    model.forward(TOKENS[None], {"resid_mid": lambda x, at: read.append(x[0])}, logits=False)
    values = clt.encode(read[layer], layer)[:, feature]
    values[0] = 0
    assert float(values.max()) > 0
    edit = Edit(0, feature, -values.numpy())
    hooks = intervention_hooks(clt, [Intervention(layer, feature, slice(1, None), 0.0)])
    wanted = model.losses(TOKENS[None], hooks.bound(torch.arange(len(TOKENS))[None])).sum()
    assert runner.losses([edit])[0] == pytest.approx(float(wanted), rel=1e-6)
    plain = model.losses(TOKENS[None]).sum()
    assert abs(float(wanted - plain)) > 1e-3  # losses are float32
    assert sample(model, [[0, 7]], 2, temperature=0, hooks=hooks)  # the hooks also run with a cache


def test_promoted_tokens_count_all_that_a_feature_writes(pair):
    model, clt = pair
    sae, index = layer_dictionary(clt, 0), torch.tensor([3])
    found = direct_logits(model, sae, 3, 0)
    direction = sum(clt.decoder_rows(0, target, index)[0] for target in clt.targets(0))
    direction = direction - direction.mean()
    logits = (direction * model.weights.final_norm) @ model.weights.unembedding.mT
    assert np.allclose(found, (logits - logits.mean()).numpy(), atol=1e-6)


def test_a_collection_refers_to_one_file_for_all_layers(pair, tmp_path):
    model, clt = pair
    save_clt(tmp_path / "clt.safetensors", clt, {})
    entry = {"every": {"format": "transcoder", "path": str(tmp_path / "clt.safetensors")}}
    import_collection(tmp_path / "weights", entry, model.config, {})
    assert layers_of(tmp_path / "weights") == [0, 1, 2]
    sae = read_dictionary(tmp_path / "weights", 1, config=model.config)
    assert torch.equal(sae.encoder, clt.encoder[1]) and sae.about["layer"] == 1
    rows = decoder_directions(tmp_path / "weights", 2)
    assert np.allclose(rows, layer_dictionary(clt, 2).decoder.numpy(), atol=1e-6)


def test_a_transcoder_of_another_width_is_refused(tmp_path):
    save_clt(tmp_path / "clt.safetensors", make_clt(d=10), {})
    entry = {"every": {"format": "transcoder", "path": str(tmp_path / "clt.safetensors")}}
    with pytest.raises(UserError, match="belongs to another model"):
        import_collection(tmp_path / "weights", entry, make_model().config, {})
    assert not (tmp_path / "weights").exists()


def test_nodes_of_a_graph_get_the_first_explanation_of_their_feature(tmp_path):
    from mechatlas.circuits.graphs.attribute import attribute

    model = make_model()
    run = run_prompt(model, make_clt(d=model.config.d_model), TOKENS)
    graph = attribute(run)
    layer, feature = int(graph.layer[0]), int(graph.feature[0])
    records = [
        {"layer": layer, "latent": feature, "text": text} for text in ("", "first", "second")
    ]
    write_jsonl(tmp_path / "explanations.jsonl", records, {})
    found = explained_nodes(graph, [tmp_path / "explanations.jsonl"])
    same = np.flatnonzero((graph.kind == 0) & (graph.layer == layer) & (graph.feature == feature))
    assert found == dict.fromkeys(same.tolist(), "first")
    assert explained_nodes(graph, []) == {}
