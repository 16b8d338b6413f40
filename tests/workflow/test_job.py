"""What surrounds a script: arguments, log, errors; and the manifest of results."""

from __future__ import annotations

import logging
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from mechatlas.job import job, job_arguments
from mechatlas.io import UserError
from mechatlas.io.manifest import verify_manifest, write_manifest


def fake(tmp_path: Path, **fields: dict) -> SimpleNamespace:
    parts = {"input": {}, "output": {}, "params": {}, **fields}
    log = [str(tmp_path / "logs" / "rule" / "x.log")]
    return SimpleNamespace(rule="do_thing", threads=3, log=log, **parts)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, "unset")


def test_arguments_are_names_of_inputs_outputs_and_params(tmp_path: Path) -> None:
    snakemake = fake(
        tmp_path,
        input={"windows": "w", "chunks": ["a", "b"], "model_files": ["c"], "control": []},
        output={"scores": "s"},
        params={"seed": 1, "code": "abc", "model": "folder", "programs": {"max_parts": 3}},
    )
    assert job_arguments(snakemake) == {
        **{"windows": "w", "chunks": ["a", "b"], "control": [], "scores": "s"},
        **{"seed": 1, "model": "folder", "programs": {"max_parts": 3}},
    }


def test_a_name_used_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="events"):
        job_arguments(fake(tmp_path, input={"events": "a"}, output={"events": "b"}))


def test_log_threads_and_network(tmp_path: Path) -> None:
    snakemake = fake(tmp_path)
    with job(snakemake):
        logging.getLogger("mechatlas").info("half way")
        assert os.environ["OMP_NUM_THREADS"] == "3"
        assert os.environ["HF_HUB_OFFLINE"] == "1"
    text = Path(snakemake.log[0]).read_text()
    assert "do_thing started" in text and "half way" in text and "do_thing finished" in text
    assert not logging.getLogger("mechatlas").handlers


def test_a_download_may_use_the_network(tmp_path: Path) -> None:
    with job(fake(tmp_path), offline=False):
        assert os.environ["HF_HUB_OFFLINE"] == "unset"


def test_user_error_is_one_line_and_status_one(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    snakemake = fake(tmp_path)
    with pytest.raises(SystemExit) as caught, job(snakemake):
        raise UserError("seed: -1 is negative; use 0")
    assert caught.value.code == 1
    assert (
        Path(snakemake.log[0]).read_text().splitlines()[-1] == "error: seed: -1 is negative; use 0"
    )
    assert "Traceback" not in capsys.readouterr().err


def test_other_errors_leave_a_traceback_in_the_log(tmp_path: Path) -> None:
    snakemake = fake(tmp_path)
    with pytest.raises(SystemExit) as caught, job(snakemake):
        raise ZeroDivisionError("the reason")
    assert caught.value.code == 1
    text = Path(snakemake.log[0]).read_text()
    assert "Traceback" in text and "ZeroDivisionError: the reason" in text and __file__ in text


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = Path("results/with space")
    (folder / "chunk").mkdir(parents=True)
    (folder / "chunk" / "index.json").write_text("{}")
    (folder / "chunk" / ".snakemake_timestamp").touch()
    (folder / "b.jsonl").write_text("x")
    (folder / "b.jsonl.provenance.json").write_text("{}")
    (folder / "other.txt").write_text("not a result")
    write_manifest([folder / "chunk", folder / "b.jsonl"], "results/manifest.sha256")
    return folder


def test_manifest_is_what_sha256sum_reads(results: Path) -> None:
    checked = subprocess.run(
        ["sha256sum", "-c", "results/manifest.sha256"], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr
    assert [line.split(": ")[0] for line in checked.stdout.splitlines()] == [
        f"{results}/b.jsonl",
        f"{results}/b.jsonl.provenance.json",
        f"{results}/chunk/index.json",
    ]
    assert verify_manifest("results/manifest.sha256") == 3


def test_verification_names_what_differs(results: Path) -> None:
    (results / "b.jsonl").write_text("y")
    (results / "chunk" / "index.json").unlink()
    with pytest.raises(UserError, match=r"2 of 3 .*b.jsonl \(changed\).*index.json \(missing\)"):
        verify_manifest("results/manifest.sha256")


def test_manifest_of_a_missing_file_or_a_missing_manifest(results: Path) -> None:
    with pytest.raises(UserError, match="gone does not exist"):
        write_manifest(["gone"], "m")
    with pytest.raises(UserError, match="m does not exist"):
        verify_manifest("m")
    Path("m").write_text("no checksum\n")
    with pytest.raises(UserError, match="line 1"):
        verify_manifest("m")
