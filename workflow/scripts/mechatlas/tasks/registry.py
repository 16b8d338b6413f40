"""Tasks by name: the built-in ones and those that a user writes.

A task of one's own is a class in a file, named in the config::

    tasks:
      opposites: {kind: python, file: my_tasks.py, class: Opposites, settings: {words: 40}}

It is constructed with its ``settings`` as keyword arguments and yields pairs (see `mechatlas.tasks.collect.Task`)::

    class Opposites:
        def __init__(self, words=40): ...

        def pairs(self, builder, split, seed):
            for hot, cold, ... in itertools.cycle(...):
                yield builder.pair(
                    [(" The opposite of", ""), (f" {hot}", "word"), (" is", "")],
                    [(" The opposite of", ""), (f" {other}", "word"), (" is", "")],
                    f" {cold}", f" {hot}", group="opposites", fillers=(hot, cold),
                )

`mechatlas.tasks.build.PromptBuilder` turns pieces into tokens and checks everything that the tokenizer may spoil.
"""

from __future__ import annotations

import difflib
import importlib.util
import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from mechatlas.io import UserError
from mechatlas.tasks.collect import Task
from mechatlas.tasks.greater_than_pairs import GreaterThanTask
from mechatlas.tasks.induction_pairs import InductionTask
from mechatlas.tasks.interleaved_pairs import InterleavedTask
from mechatlas.tasks.ioi_pairs import IoiTask
from mechatlas.tasks.sequence_pairs import SequenceTask

KINDS: dict[str, type[Task]] = {
    "ioi": IoiTask,
    "sequence": SequenceTask,
    "interleaved": InterleavedTask,
    "greater_than": GreaterThanTask,
    "induction": InductionTask,
}
"""Built-in tasks by the ``kind`` of their config entry; the settings are the attributes of the class."""


def make_task(name: str, kind: str, settings: Mapping[str, Any]) -> Task:
    """Construct a built-in task.

    Parameters
    ----------
    name : str
        Name of the task in the config, for messages.
    kind : str
        A key of `KINDS`.
    settings : mapping
        Attributes of the task's class; those left out have their defaults.

    Raises
    ------
    UserError
        If kind or a setting does not exist or a value is out of its range.
    """
    if kind not in KINDS:
        raise UserError(f"tasks.{name}.kind: {kind!r} is not known; {_choose(kind, KINDS)}")
    known = inspect.signature(KINDS[kind]).parameters
    for key in settings:
        if key not in known:
            raise UserError(f"tasks.{name}.{key}: unknown key; {_choose(key, known)}")
    try:
        return KINDS[kind](**settings)
    except UserError as error:
        raise UserError(f"tasks.{name}.{error}") from error


def load_task(name: str, file: str | Path, class_name: str, settings: Mapping[str, Any]) -> Task:
    """Construct a task of one's own from a class in a Python file.

    Raises
    ------
    UserError
        If the file or class is missing or broken, does not take the settings, or has no method ``pairs``.
    """
    module = _import(name, Path(file))
    found = getattr(module, class_name, None)
    if not inspect.isclass(found):
        classes = [n for n, c in inspect.getmembers(module, inspect.isclass)]
        raise UserError(
            f"tasks.{name}.class: {file} has no class {class_name!r}; {_choose(class_name, classes)}"
        )
    if not callable(getattr(found, "pairs", None)):
        raise UserError(
            f"tasks.{name}.class: {class_name} has no method pairs(builder, split, seed); add one that yields pairs"
        )
    try:
        inspect.signature(found).bind(**settings)
    except TypeError as error:
        raise UserError(
            f"tasks.{name}.settings: {class_name} cannot be made from {dict(settings)} ({error}); correct them"
        ) from error
    return found(**settings)


def _import(name: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise UserError(f"tasks.{name}.file: {path} does not exist; correct the path")
    spec = importlib.util.spec_from_file_location(f"mechatlas_task_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(
            f"tasks.{name}.file: {path} is not a Python file; name one that ends in .py"
        )
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (SyntaxError, ImportError) as error:
        raise UserError(
            f"tasks.{name}.file: {path} cannot be imported ({error}); correct it"
        ) from error
    return module


def _choose(value: str, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(value, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}choose from {', '.join(names)}" if names else "there is none"
