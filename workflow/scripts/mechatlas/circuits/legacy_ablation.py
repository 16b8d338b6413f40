"""Node ablation exactly as in the published sequence circuits (Lan, Torr, Barez 2023, arXiv 2311.04131).

There the means of the MLPs are taken after the heads are removed: from corrupted prompts on which every removed head
already writes its mean. So they differ from one set of nodes to the next, which costs a second pass over the corrupted
prompts for every set. `mechatlas.circuits.ablation` takes both means from the unchanged model; this exists to compare.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mechatlas.circuits.ablation import Ablation
from mechatlas.models.transformer import Transformer


class LegacyAblation(Ablation):
    """The task under sets of kept nodes, with MLP means from the run without the removed heads.

    Parameters
    ----------
    model, clean, corrupted, answers, wrong, metric, rows
        As in `Ablation`.
    """

    def __init__(
        self,
        model: Transformer,
        clean: Tensor,
        corrupted: Tensor,
        answers: Tensor,
        wrong: Tensor,
        *,
        metric: str = "logit_difference",
        rows: int | None = None,
    ):
        self.clean, self.corrupted = clean.to(model.device), corrupted.to(model.device)
        options = {"kind": "mean", "metric": metric, "rows": rows}
        super().__init__(model, clean, corrupted, answers, wrong, **options)
        self.z_means = self._means("z", {})
        self.at_once = 1

    @torch.inference_mode()
    def residuals(self, keeps: Tensor) -> Tensor:
        """Return the normalised final residuals ``[V, N, d]`` under sets of kept nodes, bool ``[V, L, H + 1]``."""
        if not hasattr(self, "z_means"):  # the full model, while the metric is made
            return super().residuals(keeps)
        out = []
        for keep in keeps.to(self.model.device):
            hooks = {"z": _replacing(keep[:, None, None, :-1, None], self.z_means)}
            if not bool(keep[:, -1].all()):
                means = self._means("mlp_out", hooks)
                hooks["mlp_out"] = _replacing(keep[:, -1, None, None, None], means)
            parts = [
                self.model.forward(self.clean[s], hooks, logits=False)[:, -1] for s in self.slices
            ]
            out.append(torch.cat(parts))
        return torch.stack(out)

    @torch.inference_mode()
    def _means(self, point: str, hooks: dict) -> list[Tensor]:
        """Return the mean per position over the corrupted prompts under hooks, for every layer."""
        sums: dict[int, Tensor] = {}

        def add(value: Tensor, layer: int) -> None:
            sums[layer] = sums.get(layer, 0) + value.sum(0, keepdim=True)

        for part in self.slices:
            self.model.forward(self.corrupted[part], {**hooks, point: add}, logits=False)
        return [sums[layer] / len(self.corrupted) for layer in range(self.model.config.n_layers)]


def _replacing(keep: Tensor, means: list[Tensor]):
    """Return a hook that writes means where a node is not kept."""
    return lambda value, layer: torch.where(keep[layer], value, means[layer])
