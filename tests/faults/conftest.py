"""The reference run of the suite, and how much of the suite runs: ``FAULTS=short`` or ``FAULTS=full``."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from llm_server import LlmServer

from .world import World, explainer

#: Or the names of some faults, with commas between them.
FORM = os.environ.get("FAULTS", "short")
SHORT = FORM != "full"
CORES = int(os.environ.get("FAULTS_CORES", "2"))
SEED = int(os.environ.get("FAULTS_SEED", "0"))
#: The short form ends with the report on heads; the full one makes everything.
TARGETS = ["heads"] if SHORT else ["all"]


@pytest.fixture(scope="session")
def server() -> Iterator[LlmServer]:
    """The language model of all runs whose answers may be shared."""
    with LlmServer(explainer) as running:
        yield running


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory, server: LlmServer) -> World:
    """A run that nothing happened to."""
    world = World(tmp_path_factory.mktemp("faults") / "reference", server)
    world.run(*TARGETS, cores=CORES)
    assert not world.leftovers() and not world.wait_until_empty()
    return world


@pytest.fixture
def copy(reference: World, server: LlmServer, tmp_path: Path) -> Callable[[], World]:
    """Return a function that copies the finished reference run."""

    def make() -> World:
        folder = tmp_path / "copy"
        shutil.copytree(reference.folder, folder, copy_function=shutil.copy2)
        return World(folder, server)

    return make


@pytest.fixture
def fresh(server: LlmServer, tmp_path: Path) -> Iterator[World]:
    """A world in which nothing has run."""
    world = World(tmp_path / "fresh", server)
    yield world
    assert not world.wait_until_empty(), "processes were left behind"
