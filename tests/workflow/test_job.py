"""What surrounds a script: arguments, log, errors; and the manifest of results."""

from __future__ import annotations

import logging
import os
import sqlite3
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from mechatlas.job import job, job_arguments, storage_problem
from mechatlas.io import UserError, atomic_path, write_arrays
from mechatlas.io.manifest import verify_manifest, write_manifest
from mechatlas.io.seals import break_seals, check_seals, seal


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
        params={
            "seed": 1,
            "code": "abc",
            "captions": {"x": "y"},
            "model": "folder",
            "programs": {"max_parts": 3},
        },
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


@pytest.fixture
def sealed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory in which a job has made a table and a folder from weights that came from elsewhere."""
    monkeypatch.chdir(tmp_path)
    made = Path("results/with space")
    (made / "chunk").mkdir(parents=True)
    (made / "chunk" / "patterns.safetensors").write_bytes(bytes(100))
    (made / "t.parquet").write_bytes(b"table")
    Path("weights.safetensors").write_bytes(b"weights")
    check_seals(["weights.safetensors", made / "t.parquet"])
    seal([made / "chunk", made / "t.parquet"])
    return made


def flipped(path: Path) -> None:
    status, content = path.stat(), bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_what_a_job_made_is_compared_when_it_is_read(sealed: Path) -> None:
    everything = [sealed / "chunk", sealed / "t.parquet", "weights.safetensors"]
    check_seals(everything)
    for path, said in (
        (
            sealed / "chunk" / "patterns.safetensors",
            f"delete {sealed}/chunk and run snakemake again",
        ),
        (sealed / "t.parquet", f"delete {sealed}/t.parquet and run snakemake again"),
        (Path("weights.safetensors"), "restore it from where it came from"),
    ):
        flipped(path)
        with pytest.raises(UserError, match=f"{path} is damaged") as caught:
            check_seals(everything)
        assert said in str(caught.value) and "\n" not in str(caught.value)
        flipped(path)
        check_seals(everything)
    (sealed / "chunk" / "patterns.safetensors").unlink()
    with pytest.raises(UserError, match=r"patterns\.safetensors is damaged"):
        check_seals(everything)


def test_seals_are_what_sha256sum_reads(sealed: Path) -> None:
    place = f"results/.seals/{sealed}/t.parquet.sha256"
    done = subprocess.run(["sha256sum", "-c", "--quiet", place], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_is_replaced_on_purpose_gets_a_new_seal(
    sealed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("weights.safetensors").write_bytes(b"others!")
    os.utime("weights.safetensors", ns=(1, 1))
    check_seals(["weights.safetensors"])
    (sealed / "t.parquet").write_bytes(b"new table")
    with pytest.raises(UserError):
        check_seals([sealed / "t.parquet"])
    monkeypatch.setenv("MECHATLAS_CHECK_INPUTS", "0")
    check_seals([sealed / "t.parquet"])
    monkeypatch.delenv("MECHATLAS_CHECK_INPUTS")
    break_seals([sealed / "t.parquet"])
    check_seals([sealed / "t.parquet"])


def test_a_damaged_input_ends_a_job_before_it_starts(sealed: Path, tmp_path: Path) -> None:
    flipped(sealed / "t.parquet")

    class Files(list):
        def items(self):
            return [("table", self[0])]

    snakemake = fake(tmp_path)
    snakemake.input = Files([f"{sealed}/t.parquet"])
    with pytest.raises(SystemExit), job(snakemake):
        pytest.fail("the job ran")
    assert Path(snakemake.log[0]).read_text().splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (OSError(28, "No space left on device", "a.parquet"), "a.parquet cannot be written (no space"),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), "no space"),
        (sqlite3.OperationalError("database or disk is full"), "no space left on the device"),
        (OSError(27, "File too large"), "larger than files may be here"),
        (OSError(30, "Read-only file system"), "the file system is read-only"),
    ],
)  # fmt: skip
def test_a_disk_that_takes_nothing_is_one_line(
    failure: Exception, said: str, tmp_path: Path
) -> None:
    snakemake = fake(tmp_path)
    with pytest.raises(SystemExit), job(snakemake):
        raise failure
    last = Path(snakemake.log[0]).read_text().splitlines()[-1]
    assert last.startswith("error: ") and said in last and "make room" in last
    assert storage_problem(ValueError("no such thing")) == ""


def test_results_have_the_permissions_of_the_umask(tmp_path: Path) -> None:
    import numpy as np

    old = os.umask(0o027)
    try:
        write_arrays(tmp_path / "a.safetensors", {"x": np.zeros(2)}, {})
        with atomic_path(tmp_path / "folder", folder=True) as folder:
            write_arrays(folder / "b.safetensors", {"x": np.zeros(2)}, {})
    finally:
        os.umask(old)
    modes = {p.name: p.stat().st_mode & 0o777 for p in tmp_path.rglob("*")}
    assert modes == {"a.safetensors": 0o640, "folder": 0o750, "b.safetensors": 0o640}
