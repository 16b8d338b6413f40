"""Training of small GPT-2-architecture language models from token batches, with exact resume."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch.nn import functional

from mechatlas.io import UserError, atomic_path, progress
from mechatlas.models.attention_entropy import mean_entropy, watch_entropy
from mechatlas.models.muon import Muon

IGNORED = -100


@dataclass(frozen=True)
class TrainingRecipe:
    """Architecture and optimisation of one embedded model.

    Attributes
    ----------
    layers, heads, width, context, vocab_size : int
        GPT-2 dimensions; ``width`` is the residual stream's, the MLP is four times as wide.
    steps : int
        Optimiser steps.
    initial_scale : float
        Standard deviation of initial weights and embeddings.
    matrix_rate, other_rate, final_share : float
        Peak rates after warm-up, of the matrices inside the blocks (Muon) and of
        embeddings, norms and biases (AdamW), and the share of them that the cosine ends at.
    warmup_steps, decay_steps : int
        Steps of linear warm-up, and the step at which the cosine ends.
    weight_decay, momentum, beta2, clip_norm : float
        Decay of the matrices inside the blocks, Muon's momentum, AdamW's second-moment rate, largest gradient norm.
    entropy_weight, entropy_from, entropy_ramp : float, int, int
        Weight of the mean attention entropy (nats) in the loss, the first step that has it, and the steps in which it
        grows to its full weight.
    seed : int
        Seed of the initial weights.
    log_every, checkpoint_every : int
        Steps between lines of the log and between checkpoints.
    """

    layers: int
    heads: int
    width: int
    context: int
    vocab_size: int
    steps: int
    initial_scale: float
    matrix_rate: float
    other_rate: float
    final_share: float
    warmup_steps: int
    decay_steps: int
    weight_decay: float
    momentum: float
    beta2: float
    clip_norm: float
    entropy_weight: float
    entropy_from: int
    entropy_ramp: int
    seed: int
    log_every: int
    checkpoint_every: int


def build_model(recipe: TrainingRecipe, bos: int) -> Any:
    """Return a freshly initialised ``GPT2LMHeadModel`` (float32, tied embeddings, no dropout)."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=recipe.vocab_size,
        n_positions=recipe.context,
        n_embd=recipe.width,
        n_layer=recipe.layers,
        n_head=recipe.heads,
        # The same function as gelu_new in one kernel instead of eight.
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=bos,
        eos_token_id=bos,
        tie_word_embeddings=True,
        initializer_range=recipe.initial_scale,
        use_cache=False,
    )
    torch.manual_seed(recipe.seed)
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        model.transformer.wpe.weight.copy_(
            sinusoids(recipe.context, recipe.width, recipe.initial_scale)
        )
    return model


def sinusoids(positions: int, width: int, scale: float) -> torch.Tensor:
    """Return initial position embeddings [positions, width] with root mean square ``scale``.

    A shift by one position is a rotation of them from the start, so that previous-token heads, and with them
    induction, form several times sooner than from random position embeddings. They are trained like all weights.
    """
    pairs = torch.arange(width // 2, dtype=torch.float64) / (width // 2)
    angles = torch.arange(positions, dtype=torch.float64)[:, None] * (2 * positions) ** -pairs
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    return (scale * math.sqrt(2) * waves).float()


def rate_at(recipe: TrainingRecipe, step: int) -> float:
    """Return the share of the peak rates at a step: linear warm-up, then a cosine to ``final_share``."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    done = min(1.0, (step - recipe.warmup_steps) / max(1, recipe.decay_steps - recipe.warmup_steps))
    cosine = 0.5 * (1 + math.cos(math.pi * done))
    return recipe.final_share + (1 - recipe.final_share) * cosine


def token_loss(model: Any, tokens: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy of next tokens, in nats.

    Parameters
    ----------
    model : GPT2LMHeadModel
    tokens : torch.Tensor
        [B, T] int64.
    first : torch.Tensor
        [B] int64, the first index per row whose token counts.
    """
    logits = model(input_ids=tokens).logits[:, :-1]
    index = torch.arange(1, tokens.shape[1], device=tokens.device)
    labels = tokens[:, 1:].masked_fill(index[None, :] < first[:, None], IGNORED)
    return functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), ignore_index=IGNORED
    )


def train_model(
    recipe: TrainingRecipe,
    batches: Sequence[tuple[np.ndarray, np.ndarray]],
    bos: int,
    checkpoint: str | Path,
    log: TextIO,
    device: str | torch.device = "cpu",
) -> tuple[Any, float]:
    """Train a model, or go on from its checkpoint.

    Parameters
    ----------
    recipe : TrainingRecipe
    batches : sequence of tuple
        Per step: tokens [B, T <= context] (unsigned integers) and the first index that counts [B], see `token_loss`.
    bos : int
        Id of BOS and EOS.
    checkpoint : str or Path
        File (safetensors) that holds weights, optimiser state and step; written every ``checkpoint_every`` steps.
        The same steps follow from it bit for bit.
    log : text file
        Receives one JSON line per logged step: step, loss, rate, seconds of processor time.
    device : str or torch.device
        Where it is trained. The initial weights are the same everywhere; the steps round as the device does.

    Returns
    -------
    tuple
        The trained model and the processor seconds spent on it, earlier runs included.

    Raises
    ------
    UserError
        If the batches do not fit the recipe or the checkpoint cannot be read.
    """
    longest = max((tokens.shape[1] for tokens, _ in batches), default=0)
    if len(batches) != recipe.steps or longest > recipe.context:
        raise UserError(
            f"steps, context: {len(batches)} batches of up to {longest} tokens do not fit {recipe.steps} steps of at "
            f"most {recipe.context}; rebuild the batches"
        )
    model = build_model(recipe, bos).to(device)
    model.train()
    optimizers = _Optimizers(model, recipe)
    done, seconds = _restore(checkpoint, optimizers)
    started = time.process_time()
    for step in progress(range(done, recipe.steps), desc="training", unit="step"):
        if step == max(done, recipe.entropy_from) and recipe.entropy_weight:
            watch_entropy(model)
        loss = _step(model, optimizers, step, *batches[step])
        spent = seconds + time.process_time() - started
        if (step + 1) % recipe.log_every == 0 or step + 1 == recipe.steps:
            record = {"step": step + 1, "loss": round(loss, 4), "cpu_seconds": round(spent, 1)}
            log.write(json.dumps(record) + "\n")
            log.flush()
        if (step + 1) % recipe.checkpoint_every == 0 or step + 1 == recipe.steps:
            _store(checkpoint, optimizers, step + 1, spent)
    model.eval()
    return model, seconds + time.process_time() - started


def save_model(model: Any, folder: str | Path) -> None:
    """Write ``config.json`` and ``model.safetensors`` so that transformers loads them as a GPT-2 model."""
    # Written under GPT-2's own name, which every reader of such files knows.
    model.config.activation_function = "gelu_new"
    model.set_attn_implementation("sdpa")
    model.config.use_cache = model.generation_config.use_cache = True
    model.save_pretrained(str(folder), safe_serialization=True)
    # safetensors makes private files; the folder is meant to be shared.
    for path in Path(folder).iterdir():
        path.chmod(0o644)


def logits_of(model: Any) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from tokens [N, T] to logits [N, T, V]."""

    def logits(tokens: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            ids = torch.from_numpy(tokens.astype(np.int64)).to(model.device)
            return model(input_ids=ids).logits.cpu().numpy()

    return logits


def mean_loss(model: Any, windows: np.ndarray, batch: int = 16) -> float:
    """Return the mean next-token loss of windows [N, T], in nats."""
    total = 0.0
    with torch.inference_mode():
        for first in range(0, len(windows), batch):
            tokens = torch.from_numpy(windows[first : first + batch].astype(np.int64))
            tokens = tokens.to(model.device)
            ones = torch.ones(len(tokens), dtype=torch.int64, device=model.device)
            total += float(token_loss(model, tokens, ones)) * len(tokens)
    return total / len(windows)


class _Optimizers:
    """Muon for the matrices inside the blocks, AdamW for embeddings, norms and biases."""

    def __init__(self, model: Any, recipe: TrainingRecipe) -> None:
        self.recipe = recipe
        self.named = dict(model.named_parameters())
        matrices = {n: p for n, p in self.named.items() if ".h." in n and p.ndim == 2}
        self.others = {n: p for n, p in self.named.items() if n not in matrices}
        self.muon = Muon(matrices, recipe.momentum, recipe.weight_decay)
        self.adamw = torch.optim.AdamW(
            self.others.values(), betas=(0.9, recipe.beta2), weight_decay=0.0
        )

    def step(self, step: int) -> None:
        """Update the weights with the rates of a step."""
        share = rate_at(self.recipe, step)
        self.muon.step(self.recipe.matrix_rate * share)
        for group in self.adamw.param_groups:
            group["lr"] = self.recipe.other_rate * share
        self.adamw.step()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return weights and moments by name."""
        named = {f"weight.{n}": p.detach() for n, p in self.named.items()}
        named |= {f"momentum.{n}": m for n, m in self.muon.momenta.items()}
        for name, parameter in self.others.items():
            named[f"first.{name}"] = self.adamw.state[parameter]["exp_avg"]
            named[f"second.{name}"] = self.adamw.state[parameter]["exp_avg_sq"]
        return named

    def load(self, tensors: dict[str, torch.Tensor], step: int) -> None:
        """Take weights and moments as they were after ``step`` steps."""
        with torch.no_grad():
            for name, parameter in self.named.items():
                parameter.copy_(tensors[f"weight.{name}"])
        for name, momentum in self.muon.momenta.items():
            momentum.copy_(tensors[f"momentum.{name}"])
        for name, parameter in self.others.items():
            self.adamw.state[parameter] = {
                "step": torch.tensor(float(step)),
                "exp_avg": tensors[f"first.{name}"].to(parameter.device),
                "exp_avg_sq": tensors[f"second.{name}"].to(parameter.device),
            }


def _step(
    model: Any,
    optimizers: _Optimizers,
    step: int,
    tokens: np.ndarray,
    first: np.ndarray,
) -> float:
    recipe = optimizers.recipe
    ids = torch.from_numpy(tokens.astype(np.int64)).to(model.device)
    loss = token_loss(model, ids, torch.from_numpy(first).to(model.device))
    penalised = loss
    if recipe.entropy_weight and step >= recipe.entropy_from:
        share = min(1.0, (step - recipe.entropy_from + 1) / recipe.entropy_ramp)
        penalised = loss + recipe.entropy_weight * share * mean_entropy(model)
    model.zero_grad(set_to_none=True)
    penalised.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
    optimizers.step(step)
    return float(loss.detach())


def _store(path: str | Path, optimizers: _Optimizers, step: int, seconds: float) -> None:
    with atomic_path(path) as temporary:
        facts = {"step": str(step), "cpu_seconds": repr(seconds)}
        save_file(optimizers.tensors(), str(temporary), facts)


def _restore(path: str | Path, optimizers: _Optimizers) -> tuple[int, float]:
    if not Path(path).exists():
        return 0, 0.0
    try:
        tensors = load_file(str(path))
        with safe_open(str(path), framework="pt") as file:
            facts = file.metadata()
        step, seconds = int(facts["step"]), float(facts["cpu_seconds"])
        optimizers.load(tensors, step)
    except (SafetensorError, OSError, KeyError, RuntimeError) as error:
        raise UserError(
            f"checkpoint {path} cannot be used ({error}); delete it to start again"
        ) from error
    return step, seconds
