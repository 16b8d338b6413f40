"""One attribution graph by circuit-tracer, run in the environment of the peers.

Usage: python circuit_tracer_job.py FOLDER DTYPE [MAX_FEATURES]

Reads a folder that `bench_circuit_tracer` wrote, and writes there ``theirs.{DTYPE}.safetensors`` (traced features,
targets and the dense matrix of edges) and prints one line of JSON: wall and processor seconds of the graph alone, peak
memory of the process. It needs no network: the tokenizer is made of names for numbers.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}

import torch
from circuit_tracer import attribute
from circuit_tracer.replacement_model.replacement_model_transformerlens import (
    TransformerLensReplacementModel,
)
from circuit_tracer.transcoder.cross_layer_transcoder import load_clt
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformer_lens import HookedTransformerConfig
from transformers import AutoTokenizer, PreTrainedTokenizerFast


def make_tokenizer(folder: Path, size: int, bos: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer of so many words, one of which begins every text; it has to come from a folder."""
    words = WordLevel({f"t{i}": i for i in range(size)}, unk_token="t0")
    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), bos_token=f"t{bos}")
    made.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


def main(folder: Path, dtype: str, most: int | None) -> None:
    """Make the graph of the folder's prompt, of all features or of so many."""
    about = json.loads((folder / "job.json").read_text())
    tokens = torch.tensor(about["tokens"])
    tokenizer = make_tokenizer(folder / "tokenizer", about["config"]["d_vocab"], int(tokens[0]))
    shape = {
        "normalization_type": "LN",
        "positional_embedding_type": "standard",
        "act_fn": "gelu_new",
    }
    shape |= {"model_name": "gpt2", "device": "cpu", "dtype": getattr(torch, dtype)}
    model = TransformerLensReplacementModel(
        HookedTransformerConfig(**about["config"], **shape), tokenizer
    )
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    clt = load_clt(str(folder / "clt"), dtype=getattr(torch, dtype), lazy_decoder=False)
    model._configure_replacement_model(clt)
    wall, cpu = time.perf_counter(), time.process_time()
    graph = attribute(tokens, model, batch_size=about["batch_size"], max_feature_nodes=most)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    found = {
        "features": graph.active_features[graph.selected_features],
        "edges": graph.adjacency_matrix,
        "targets": torch.tensor([target.vocab_idx for target in graph.logit_targets]),
    }
    save_file({k: v.contiguous() for k, v in found.items()}, folder / f"theirs.{dtype}.safetensors")
    status = Path("/proc/self/status").read_text().splitlines()
    high = next(line for line in status if line.startswith("VmHWM"))
    print(json.dumps({"wall_s": wall, "cpu_s": cpu, "peak_mb": int(high.split()[1]) / 1024}))


if __name__ == "__main__":
    torch.manual_seed(0)
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else None)
