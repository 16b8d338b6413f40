"""The quick start of jobs: nothing is missing that a job could ask for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

LIBRARY = Path(__file__).parents[2] / "workflow" / "scripts"
BEGIN = "import gc, json, sys\nfrom mechatlas.start import DeferredModule, quicken\nquicken()\n"
WAITING = "sorted(n for n, m in sys.modules.items() if type(m) is DeferredModule)"


def in_a_process(code: str) -> Any:
    """Return what code gives to ``tell`` in a new process after a quick start."""
    code = f"{BEGIN}tell = lambda value: print(json.dumps(value))\n{code}"
    environment = {**os.environ, "PYTHONPATH": str(LIBRARY)}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(ran.stdout)


def test_tensors_do_without_what_waits() -> None:
    """Draws, products, attention and gradients are those of a usual start, and the compiler stays unloaded."""
    work = """
import torch
draw = torch.Generator().manual_seed(5)
x = torch.randn(1, 2, 6, 4, generator=draw, requires_grad=True)
out = torch.nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)
loss = torch.nn.functional.gelu(torch.einsum('bhtd,bhsd->bhts', out, x)).logsumexp(-1).sum()
loss.backward()
found = [loss.item(), *x.grad.flatten().tolist(), *torch.randperm(7, generator=draw).tolist()]
"""
    quick, waiting, loaded = in_a_process(
        f"{work}tell([found, {WAITING}, 'torch._decomp' in sys.modules])"
    )
    assert {"torch._meta_registrations", "torch.export", "torch.utils.data"} <= set(waiting)
    assert not loaded
    usual: dict[str, Any] = {}
    exec(work, usual)
    assert quick == usual["found"]


def test_what_waits_is_there_when_it_is_asked_for() -> None:
    """A name of a waiting module, shapes without tensors, and a second start of the generators."""
    before, loader, shape, after, draw = in_a_process(
        f"""
import torch
before = {WAITING}
loader = torch.utils.data.DataLoader.__name__
import torch._dynamo
x = torch.empty(3, 5, device='meta')
shape = list(torch.linalg.solve(torch.empty(3, 3, device='meta'), x).shape)
draw = torch.randn(1, generator=torch.Generator().manual_seed(1)).item()
tell([before, loader, shape, {WAITING}, draw])
"""
    )
    import torch

    assert (loader, shape) == ("DataLoader", [3, 5])
    assert before and not after
    assert draw == torch.randn(1, generator=torch.Generator().manual_seed(1)).item()


def test_a_process_that_has_torch_is_left_alone() -> None:
    finders, threshold = in_a_process(
        "from mechatlas.start import Deferral\n"
        "import torch\nsys.meta_path[:] = [f for f in sys.meta_path if type(f) is not Deferral]\n"
        "quicken()\ntell([[type(f).__name__ for f in sys.meta_path], gc.get_threshold()[0]])"
    )
    assert "Deferral" not in finders
    assert threshold > 700


def test_garbage_is_looked_for_once_the_work_begins() -> None:
    """Not while modules are imported; then a cycle that work leaves behind is found, what was there before is not."""
    quiet, again, found, kept = in_a_process(
        """
import weakref
from mechatlas.start import settle
class Node: pass
def cycle():
    one, other = Node(), Node()
    one.other, other.one = other, one
    return weakref.ref(one)
early = cycle()
quiet = gc.isenabled()
settle()
late = cycle()
again = gc.isenabled()
gc.collect()
tell([quiet, again, late() is None, early() is not None])
"""
    )
    assert (quiet, again, found, kept) == (False, True, True, True)


def test_a_usual_start_is_left_alone() -> None:
    """`settle` in a program that did not start quickly freezes nothing."""
    assert (
        in_a_process(
            "gc.enable()\nfrom mechatlas.start import settle\nsettle()\ntell(gc.get_freeze_count())"
        )
        == 0
    )
