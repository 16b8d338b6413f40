"""Random transcoders for tests, and the local replacement model computed another way."""

from __future__ import annotations

import torch

from mechatlas.dictionaries.activations import JumpReLU, ReLU, TopK
from mechatlas.dictionaries.clt import CrossLayerTranscoder


def make_clt(
    n_layers=3, d=12, features=10, *, decoders="cross", activation="jumprelu", skip=False,
    reads="resid_mid", dtype=torch.float64, seed=0, about=None,
):  # fmt: skip
    """Return a random transcoder whose features are active about half of the time."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape, scale=0.5):
        return scale * torch.randn(*shape, generator=generator).to(dtype)

    layers, tied = range(n_layers), decoders == "tied"
    width = {"cross": lambda i: n_layers - i}.get(decoders, lambda i: 1)
    kinds = {"relu": lambda: ReLU(), "topk": lambda: TopK(3)}
    kinds["jumprelu"] = lambda: JumpReLU(draw(features, scale=0.2).abs())
    return CrossLayerTranscoder(
        [draw(features, d) for _ in layers],
        [draw(features) for _ in layers],
        [draw(features, width(i), d) for i in layers],
        [draw(d) for _ in layers],
        [kinds[activation]() for _ in layers],
        decoders=decoders,
        target_scale=[draw(features, n_layers - i) for i in layers] if tied else None,
        skip=[draw(d, d, scale=0.2) for _ in layers] if skip else None,
        reads=reads,
        about=about,
    )


def dense_outputs(clt, features, inputs):
    """Return what each layer's MLP output is according to the formula, term by term."""
    outputs = []
    for target in range(clt.n_layers):
        y = clt.decoder_bias[target].expand(len(inputs[0]), -1)
        for source in clt.sources(target):
            rows = clt.decoder[source][:, 0 if clt.decoders != "cross" else target - source]
            if clt.decoders == "tied":
                rows = rows * clt.target_scale[source][:, target - source, None]
            y = y + torch.einsum("nf,fd->nd", features[source], rows)
        if clt.skip is not None:
            y = y + torch.einsum("nd,ed->ne", inputs[target], clt.skip[target])
        outputs.append(y)
    return outputs
