"""A device that is no CPU, on a machine that has nothing else, to find tensors that are on the wrong one.

Inside `pretend_gpu` tensors can be put on `DEVICE`. They compute on the CPU, but refuse what tensors on a GPU refuse:
to meet tensors of another device (unless those have no dimensions, or are indices), and to be read as NumPy arrays.
What is forgotten on the CPU thus fails in a test here, and not first on a machine with a GPU. Speed, rounding and
memory of a GPU are not pretended.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

#: The one device type, besides the CPU, that every build of torch knows without a driver.
DEVICE = torch.device("meta")
AUTOCAST = torch.autocast
PRODUCTS = (torch.matmul, Tensor.matmul, Tensor.__matmul__)
INDEXED = (Tensor.__getitem__, Tensor.__setitem__)
#: Operations whose tensors may be on several devices: copies, and indices on the CPU.
MIXED = {"aten::copy_", "aten::_to_copy", "aten::index", "aten::index_put", "aten::index_put_"}


class _OnDevice(Tensor):
    """A tensor on the pretended device; ``inner`` holds its values."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> _OnDevice:
        self = Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, device=DEVICE,
        )  # fmt: skip
        self.inner = inner
        return self

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(op, args, kwargs or {})

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __repr__(self, **_: Any) -> str:
        return f"on {DEVICE}: {self.inner!r}"


class _Made(TorchFunctionMode):
    """Replaces what torch would do out of sight of `_Mode`: making tensors from Python values, for example."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = kwargs["device"]
            return function(*args, **{**kwargs, "device": "cpu"}).to(device)
        if function in PRODUCTS and args[0].ndim == 1 and args[1].ndim == 2:
            # torch would make a matrix of the vector and change the product's shape in place, unseen by the wrapper.
            return torch.mv(args[1].mT, args[0])
        if function in INDEXED:
            given = args[1] if isinstance(args[1], tuple) else (args[1],)
            index = tuple(torch.tensor([*i]) if isinstance(i, list | range) else i for i in given)
            return function(args[0], index, *args[2:])
        return function(*args, **kwargs)


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(op, args, kwargs or {})


@contextlib.contextmanager
def pretend_gpu() -> Iterator[torch.device]:
    """Let tensors be put on the returned device."""
    with contextlib.ExitStack() as stack:
        # What is no part of torch for this device: inference mode for tensors that wrap others, and autocast.
        without = torch.no_grad
        stack.enter_context(mock.patch("torch._C._InferenceMode", lambda mode: without()))
        stack.enter_context(mock.patch("torch.autocast", _autocast))
        stack.enter_context(_Made())
        stack.enter_context(_Mode())
        yield DEVICE


def _autocast(device_type: str, **settings: Any) -> contextlib.AbstractContextManager[Any]:
    known = torch.amp.is_autocast_available(device_type)
    return AUTOCAST(device_type, **settings) if known else contextlib.nullcontext()


def _run(op: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    here = [x for x in tensors if isinstance(x, _OnDevice)]
    elsewhere = [x for x in tensors if not isinstance(x, _OnDevice) and x.ndim]
    name = op._schema.name
    if any(x.device == DEVICE for x in elsewhere):
        raise RuntimeError(f"{name}: a tensor was made out of sight of the pretended device")
    if here and elsewhere and name not in MIXED:
        raise RuntimeError(f"{name}: tensors on {DEVICE} and on {elsewhere[0].device}")
    if name in ("aten::index", "aten::index_put", "aten::index_put_", "aten::copy_"):
        # The indexed or written tensor says where the result is, and indices may not be on another device than the CPU.
        if not isinstance(args[0], _OnDevice) and here and name != "aten::copy_":
            raise RuntimeError(f"{name}: a tensor on {elsewhere[0].device}, an index on {DEVICE}")
        if name.startswith("aten::index_put") and isinstance(args[0], _OnDevice):
            value = args[2]
            if not isinstance(value, _OnDevice) and value.ndim:
                raise RuntimeError(f"{name}: values on {value.device}")
        on_device = isinstance(args[0], _OnDevice)
    else:
        on_device = bool(here)
    if kwargs.get("device") is not None:
        on_device = torch.device(kwargs["device"]).type == DEVICE.type
        kwargs = {**kwargs, "device": torch.device("cpu")}
    bare = tree_map(lambda x: x.inner if isinstance(x, _OnDevice) else x, (args, kwargs))
    found = op(*bare[0], **bare[1])
    if not on_device:
        return found
    written = {id(x.inner): x for x in here}

    def wrapped(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return written[id(x)] if id(x) in written else _OnDevice(x)

    return tree_map(wrapped, found)
