"""A run that is killed, and the next one."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import ctrl_c
import pytest
from llm_server import Call, LlmServer, Reply, echo
from llm_works import run, settings, texts

from mechatlas.explain.llm.store import ResponseStore

HERE = Path(__file__).resolve().parent
SCRIPT = """
import json, sys
from pathlib import Path
from llm_works import run, settings, texts
store, address, batch, out = sys.argv[1:]
answers = run(settings(Path(store), concurrency=8, batch=batch == "batch"), address, texts(60))
Path(out).write_text(json.dumps(answers))
"""


def start(
    tmp_path: Path, server: LlmServer, way: str = "single", out: str = "out"
) -> subprocess.Popen:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "responses.sqlite"), server.base_url]
    return subprocess.Popen(
        [*command, way, str(tmp_path / out)],
        env={"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin"},
        stderr=subprocess.PIPE,
        preexec_fn=ctrl_c.hear,
    )


def wait_for(condition, seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.01)


def stored(path: Path) -> int:
    if not path.exists():
        return 0
    with ResponseStore(path, read_only=True) as store:
        return len(store.keys())


def test_no_answered_request_is_repeated_after_a_kill(tmp_path):
    # The server answers 25 requests and holds back all others. When 25 answers are in the store, everything that was
    # answered has been committed; under way are then exactly the 8 requests (the concurrency) that the server has
    # received and not answered. In general a kill may also fall between an answer's arrival and its commit, some
    # milliseconds later; such an answer is lost to every client, its request counts as spent (its reservation was
    # committed before it was sent) and it alone is asked again, under the same Idempotency-Key.
    def answer(call: Call) -> Reply:
        return Reply(echo(call).upper(), delay=0.0 if call.number < 25 else 3600.0)

    store = tmp_path / "responses.sqlite"
    with LlmServer(answer) as server:
        process = start(tmp_path, server)
        wait_for(lambda: len(server.chats()) == 33 and store.exists() and stored(store) == 25)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "out").exists()
        assert len(server.answered()) == 25

        server.answer = lambda call: echo(call).upper()
        again = start(tmp_path, server)
        error = again.communicate(timeout=60)[1].decode()
        assert again.returncode == 0, error
        assert server.repeated() == []
        assert len(server.answered()) == 60
        asked_twice = [call for call in server.chats() if call.attempt > 0]
        assert len(asked_twice) == 8
        held = server.chats()[25:33]
        assert {c.headers["idempotency-key"] for c in asked_twice} == {
            c.headers["idempotency-key"] for c in held
        }
    assert json.loads((tmp_path / "out").read_text()) == [text.upper() for text in texts(60)]
    with ResponseStore(store) as kept:
        lost = next(kept.rows("SELECT count(*) FROM reservations WHERE state = 'lost'"))[0]
        # Those under way, and requests that were admitted ahead and waited for their place.
        assert 8 <= lost <= 16


def test_an_interrupt_keeps_what_is_under_way(tmp_path):
    store = tmp_path / "responses.sqlite"
    with LlmServer(echo, delay=0.4) as server:
        process = start(tmp_path, server)
        wait_for(lambda: len(server.chats()) >= 16)
        process.send_signal(signal.SIGINT)
        error = process.communicate(timeout=30)[1].decode()
        assert "KeyboardInterrupt" in error
        assert len(server.answered()) == len(server.chats()) < 60
        assert stored(store) == len(server.answered())
    with ResponseStore(store) as kept:
        assert next(kept.rows("SELECT count(*) FROM reservations"))[0] == 0


@pytest.mark.parametrize(
    ("moment", "then"), [("submitted", "batch"), ("submitted", "single"), ("unanswered", "batch")]
)
def test_a_batch_outlives_its_process(tmp_path, moment, then):
    store = tmp_path / "responses.sqlite"
    with LlmServer(lambda call: echo(call).upper(), batch_polls=10**9) as server:
        if moment == "unanswered":
            # The batch is submitted, but the client never learns its number.
            server.hold_batches = True
        process = start(tmp_path, server, "batch")
        wait_for(lambda: server.batches)
        if moment == "submitted":
            wait_for(lambda: server.polls["batch_0"] > 0)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert server.answered() == []

        server.batch_polls, server.hold_batches = 0, False
        again = start(tmp_path, server, then)
        error = again.communicate(timeout=60)[1].decode()
        assert again.returncode == 0, error
        assert len(server.batches) == 1, "the same batch was collected"
        assert len(server.chats()) == 60
        # Whoever asks singly afterwards finds the answers as well.
        assert run(settings(store), server, texts(60)) == [text.upper() for text in texts(60)]
        assert len(server.chats()) == 60
    assert json.loads((tmp_path / "out").read_text()) == [text.upper() for text in texts(60)]
    with ResponseStore(store) as kept:
        for table in ("reservations", "batches", "batch_requests"):
            assert next(kept.rows(f"SELECT count(*) FROM {table}"))[0] == 0


def test_a_disk_that_fills_up_ends_the_run_in_one_line(tmp_path):
    script = """
import resource, sys
from mechatlas.io import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))
try:
    run(settings(Path(sys.argv[1]), concurrency=8), sys.argv[2], texts(500))
except UserError as error:
    print(error)
"""
    start_of_script = SCRIPT.split("store, address")[0]
    store = tmp_path / "responses.sqlite"
    with LlmServer() as server:
        done = subprocess.run(
            [sys.executable, "-c", start_of_script + script, str(store), server.base_url],
            env={"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=50,
        )
        assert done.stdout.startswith(f"cannot write {store} (llm.store): "), done.stderr
        assert done.stdout.count("\n") == 1
        assert 0 < stored(store) <= len(server.answered()) < 500
        given = settings(store)
        assert run(given, server, texts(500)) == texts(500)
