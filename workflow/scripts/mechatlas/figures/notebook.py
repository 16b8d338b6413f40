"""Notebooks: executed with this interpreter, cleaned to stable bytes, rendered as one page.

Jupyter's and IPython's folders are temporary, so that a run neither depends on the home folder nor leaves anything in
it, and the kernel talks over files rather than the network, so that a run works where there is none. What a killed run
leaves of them, the next one removes.
"""

from __future__ import annotations

import contextlib
import copy
import fcntl
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mechatlas.figures.html import page
from mechatlas.io import UserError, write_text

KERNEL = "mechatlas"
KERNEL_START = (
    "from mechatlas.start import quicken; quicken(); "
    "from ipykernel.kernelapp import launch_new_instance; launch_new_instance()"
)
PREFIX, LOCK = "mx-", "in-use"
LIBRARY = Path(__file__).resolve().parents[2]
# What papermill adds that differs from run to run.
_RUN_METADATA = ("papermill", "execution")
_TOGGLE = "<label class='mx-toggle'><input type='checkbox' id='mx-code'> Show code</label>"
_STYLE = """
.mx-toggle { position: absolute; right: 1.2rem; top: .6rem; font-size: .85rem; color: var(--soft); }
.code_cell > .input { display: none; }
body:has(#mx-code:checked) .code_cell > .input { display: block; }
"""


@contextmanager
def jupyter_folders() -> Iterator[Path]:
    """Give Jupyter and IPython a temporary folder, with a kernel that runs this interpreter and this library."""
    remove_abandoned()
    with tempfile.TemporaryDirectory(prefix=PREFIX) as root, open(Path(root, "new"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # held as long as this process lives
        os.rename(lock.name, Path(root, LOCK))  # so that nobody finds it free before
        spec = Path(root, "data", "kernels", KERNEL, "kernel.json")
        spec.parent.mkdir(parents=True)
        paths = [str(LIBRARY), *filter(None, [os.environ.get("PYTHONPATH")])]
        command = [sys.executable, "-c", KERNEL_START, "-f", "{connection_file}"]
        record = {
            "argv": command,
            "display_name": "Python 3",
            "language": "python",
            "env": {"PYTHONPATH": os.pathsep.join(paths), "PYDEVD_DISABLE_FILE_VALIDATION": "1"},
        }
        spec.write_text(json.dumps(record))
        changed = {
            "JUPYTER_PATH": f"{root}/data",
            "JUPYTER_DATA_DIR": f"{root}/data",
            "JUPYTER_CONFIG_DIR": f"{root}/config",
            "JUPYTER_RUNTIME_DIR": f"{root}/run",
            "IPYTHONDIR": f"{root}/ipython",
            "JUPYTER_PLATFORM_DIRS": "1",
        }
        before = {name: os.environ.get(name) for name in changed}
        os.environ.update(changed)
        try:
            yield Path(root)
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def remove_abandoned() -> None:
    """Remove the temporary folders of processes that were killed."""
    for lock in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{LOCK}"):
        # That of another user, of a process that lives, or one that was removed at this moment.
        with contextlib.suppress(OSError), open(lock) as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(lock.parent)


def execute_notebook(source: str | Path, log: str | Path, parameters: Mapping[str, Any]) -> Any:
    """Execute a notebook with parameters and return it cleaned (see `clean_notebook`).

    Parameters
    ----------
    source : path
        Notebook with a cell tagged "parameters".
    log : path
        Where the notebook is written while it runs; after a failure it holds the cells up to the error.
    parameters : mapping

    Raises
    ------
    UserError
        If a cell raises one, or the notebook is damaged.
    """
    import nbformat
    import papermill
    from papermill.exceptions import PapermillException, PapermillExecutionError
    from traitlets.config import Config

    Path(log).parent.mkdir(parents=True, exist_ok=True)
    _write_parameters_plainly()
    try:
        with jupyter_folders() as folder:
            # Named here: by default two kernels that start at once in one working directory share their sockets.
            channel = {"transport": "ipc", "ip": str(folder / "kernel")}
            notebook = papermill.execute_notebook(
                str(source),
                str(log),
                parameters=dict(parameters),
                kernel_name=KERNEL,
                progress_bar=False,
                # Else the whole notebook is written before and after every cell, not only in the end and on an error.
                request_save_on_cell_execute=False,
                config=Config({"KernelManager": channel}),
            )
    except PapermillExecutionError as error:
        if error.ename == UserError.__name__:
            raise UserError(error.evalue) from error
        raise
    except RuntimeError as error:
        if not str(error).startswith("Kernel died"):
            raise
        raise UserError(
            f"{source}: the notebook's kernel died before its end, often for want of memory; run snakemake again, "
            "with fewer jobs at a time if it happens again"
        ) from error
    except (nbformat.reader.NotJSONError, nbformat.ValidationError, PapermillException) as error:
        raise UserError(
            f"{source} is not a notebook that can run: {str(error).splitlines()[0]}"
        ) from error
    return clean_notebook(notebook)


def _write_parameters_plainly() -> None:
    """Let the cell of parameters be the same whether Black is installed, which costs more than it, or not."""
    from papermill.translators import PythonTranslator, Translator, papermill_translators

    class Plain(PythonTranslator):
        codify = Translator.__dict__["codify"]

    papermill_translators.register(KERNEL, Plain)


def clean_notebook(notebook: Any) -> Any:
    """Remove from an executed notebook what differs from run to run, in place; return it."""
    metadata = notebook.metadata
    for name in _RUN_METADATA:
        metadata.pop(name, None)
    metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    for place, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{place}"
        for name in _RUN_METADATA:
            cell.metadata.pop(name, None)
    return notebook


def write_notebook(path: str | Path, notebook: Any, facts: Mapping[str, Any]) -> None:
    """Write a notebook, with its provenance among its metadata."""
    import nbformat

    notebook.metadata["mechatlas"] = dict(facts)
    write_text(path, nbformat.writes(notebook) + "\n")


def _without_html(notebook: Any) -> tuple[Any, dict[str, str]]:
    """Return a copy of a notebook with marks instead of what its cells show as HTML, and what the marks stand for.

    nbconvert parses all that it writes once more, which takes seconds with megabytes of figures.
    """
    cells, shown = copy.deepcopy(notebook), {}
    for cell in cells.cells:
        for output in cell.get("outputs", []):
            if "text/html" in output.get("data", {}):
                mark = f"<!--mx-{len(shown)}-->"
                shown[mark], output.data["text/html"] = output.data["text/html"], mark
    return cells, shown


def notebook_page(notebook: Any, title: str, facts: Mapping[str, Any]) -> str:
    """Render an executed notebook as one page with hidden code and nothing that loads from elsewhere.

    Parameters
    ----------
    notebook : nbformat.NotebookNode
    title : str
    facts : mapping
        Provenance, kept in the page.
    """
    from nbconvert import HTMLExporter
    from nbconvert.preprocessors import TagRemovePreprocessor
    from pygments.formatters import HtmlFormatter

    with jupyter_folders():
        # The basic template is the cells alone: no style sheets, scripts or fonts of others.
        exporter = HTMLExporter(
            template_name="basic",
            embed_images=True,
            exclude_input_prompt=True,
            exclude_output_prompt=True,
            exclude_anchor_links=True,
        )
        remove = TagRemovePreprocessor(
            remove_cell_tags=["parameters", "injected-parameters"], enabled=True
        )
        exporter.register_preprocessor(remove, enabled=True)
        cells, shown = _without_html(notebook)
        body, _ = exporter.from_notebook_node(cells)
    for mark, text in shown.items():
        body = body.replace(mark, text, 1)
    colours = HtmlFormatter(style="default", nobackground=True).get_style_defs(".highlight")
    style = f"@media (prefers-color-scheme: light) {{\n{colours}\n}}\n{_STYLE}"
    return page(title, f"{_TOGGLE}\n<main>\n{body}\n</main>", facts=facts, style=style)


def render_notebook(
    source: str | Path,
    log: str | Path,
    parameters: Mapping[str, Any],
    title: str,
    facts: Mapping[str, Any],
    *,
    notebook_out: str | Path,
    html: str | Path,
) -> None:
    """Execute a notebook and write it and its page; see `execute_notebook` and `notebook_page`."""
    executed = execute_notebook(source, log, parameters)
    write_notebook(notebook_out, executed, facts)
    write_text(html, notebook_page(executed, title, facts))
