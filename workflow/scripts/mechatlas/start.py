"""A cheap start for the processes of jobs, most of whose time would go into imports.

Half of what ``import torch`` loads serves its compiler, its exporter and training on many machines. `quicken` lets such
modules load when something in them is used, which in a job is never. It also keeps Python from looking for garbage
before the work begins (`settle`), and lets it look less often then: imports make a million objects that stay, and
looking through them, again and again and at the end, costs as much as making them.
"""

from __future__ import annotations

import atexit
import gc
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # importing it would take longer than all of this
    from importlib.abc import Loader

#: Modules that torch (2.6 to 2.13), or SciPy the last one, imports but takes no name from.
DEFERRED = (
    *("torch._meta_registrations", "torch.distributed._meta_registrations"),
    *("torch.distributions", "torch.export", "torch.masked", "torch.quantization"),
    *("torch.testing", "torch.utils.data", "torchgen.model", "numpy.f2py"),
)
#: These may compute with shapes alone, for which the first two of `DEFERRED` register functions.
NEED_ALL = ("torch._dynamo", "torch._inductor", "transformers")
GARBAGE_THRESHOLD = (
    100_000  # new objects before Python looks for garbage among them; 700 by default
)


def quicken() -> None:
    """Make the imports of this process and its end cheaper; call it before torch is imported, `settle` after."""
    gc.disable()
    gc.set_threshold(GARBAGE_THRESHOLD)
    atexit.register(gc.freeze)
    if "torch" not in sys.modules:
        sys.meta_path.insert(0, Deferral(DEFERRED, NEED_ALL))


def settle() -> None:
    """Let Python look for garbage again, among what comes from now on, if `quicken` stopped it."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


class Deferral:
    """Finder that puts off the execution of some modules until an attribute of theirs is asked for.

    Parameters
    ----------
    deferred : sequence of str
        Names of the modules.
    need_all : sequence of str
        Names of modules before whose import all of them are executed.
    """

    def __init__(self, deferred: Sequence[str], need_all: Sequence[str]):
        self.deferred, self.need_all = frozenset(deferred), frozenset(need_all)

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the usual spec of a deferred module with a loader that waits, nothing for other modules."""
        if name in self.need_all:
            self.execute()
        if name not in self.deferred:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Waiting(spec.loader)
        return spec

    def execute(self) -> None:
        """Execute all deferred modules that are still waiting, and defer no more."""
        self.deferred = frozenset()
        for module in [m for m in sys.modules.values() if type(m) is DeferredModule]:
            module.execute()


class DeferredModule(ModuleType):
    """A module that is executed when an attribute is asked for that it does not have yet."""

    def __getattr__(self, name: str) -> object:
        # The import system asks for special names, such as __path__, of every module.
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        self.execute()
        return getattr(self, name)

    def execute(self) -> None:
        """Turn into the module that it stands for."""
        loader = self.__spec__.loader.loader
        self.__class__ = ModuleType
        self.__spec__.loader = self.__loader__ = loader
        loader.exec_module(self)


class _Waiting:
    def __init__(self, loader: Loader):
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return DeferredModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Wait, but do what cannot wait."""
        if module.__name__ == DEFERRED[0]:
            _finish_generators()


def _finish_generators() -> None:
    """Do for ``torch.Generator`` what torch 2.13 does in a module that the first of `DEFERRED` imports."""
    torch = sys.modules["torch"]
    if hasattr(torch._C, "_set_generator_metaclass"):
        from torch._opaque_base import OpaqueBaseMeta

        torch._C._set_generator_metaclass(OpaqueBaseMeta)
