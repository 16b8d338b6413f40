"""The response store: keys, durability, replay, merging, export, one process at a time."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
from llm_server import LlmServer, Reply, completion, echo
from llm_works import PRICES, asking, request, run, settings, texts

from mechatlas.explain.llm import store as command_line
from mechatlas.explain.llm.client import run_units
from mechatlas.explain.llm.requests import (
    Request,
    UnusableAnswer,
    Usage,
    bound_tokens,
    estimate_text,
    estimate_tokens,
    read_answer,
    read_usage,
)
from mechatlas.explain.llm.settings import Price
from mechatlas.explain.llm.store import ResponseStore
from mechatlas.io import UserError

ADDRESS = "http://127.0.0.1:1/v1"


def response(made: Request, text: str) -> str:
    return json.dumps(completion(made.body(), Reply(text)))


def filled(path, answers: dict[str, str]) -> None:
    with ResponseStore(path) as store:
        for question, answer in answers.items():
            made = request(ADDRESS, question)
            store.put(made, response(made, answer), Usage(1, 10, 4, 5, 0.25))


def test_the_key_depends_on_all_that_decides_the_answer_and_on_nothing_else():
    base = request(ADDRESS, "question")
    schema = {"type": "object", "properties": {"a": {}, "b": {}}}
    reordered = {"type": "object", "properties": {"b": {}, "a": {}}}
    different = [
        request(ADDRESS, "question?"),
        request(ADDRESS, "question", model="other"),
        request(ADDRESS, "question", temperature=1.0),
        request(ADDRESS, "question", temperature=None),
        request(ADDRESS, "question", max_tokens=17),
        request(ADDRESS, "question", token_limit_key="max_completion_tokens"),
        request(ADDRESS, "question", provider="another"),
        request(ADDRESS, "question", extra_body={"seed": 1}),
        replace(base, sample=1),
        replace(base, prompt_version="test.2"),
        replace(base, top_logprobs=3),
        replace(base, schema=schema),
        replace(base, schema=reordered),
        replace(base, messages=({"role": "system", "content": "question"},)),
    ]
    assert len({made.key for made in [base, *different]}) == len(different) + 1
    same = [
        request("http://127.0.0.1:2/v1", "question"),
        request(ADDRESS, "question", api_key_env="SOME_KEY"),
        replace(base, max_tokens=base.endpoint.max_tokens),
    ]
    assert {made.key for made in same} == {base.key}
    one = request(ADDRESS, "q", extra_body={"a": 1, "b": 2})
    assert one.key == request(ADDRESS, "q", extra_body={"b": 2, "a": 1}).key


def test_the_body_holds_the_endpoint_to_a_schema_as_far_as_it_can():
    schema = {"type": "object"}
    forms = {}
    for structured in ("json_schema", "json_object", "text"):
        made = replace(request(ADDRESS, "q", structured=structured), schema=schema)
        forms[structured] = made.body().get("response_format")
    assert forms["json_schema"]["json_schema"] == {
        "name": "test_1",
        "strict": True,
        "schema": schema,
    }
    assert forms["json_object"] == {"type": "json_object"}
    assert forms["text"] is None
    assert "response_format" not in request(ADDRESS, "q").body()
    assert "seed" not in request(ADDRESS, "q").body()
    assert request(ADDRESS, "q", extra_body={"seed": 5}).body()["seed"] == 5


def test_token_estimates():
    # Counts of a byte-level BPE with 100,000 entries, worked out by hand for common words.
    assert estimate_text("The cat sat on the mat.") == 7
    assert estimate_text("") == 0
    assert 5 <= estimate_text("internationalisation is 123456") <= 8
    assert estimate_text("日本語") >= 3
    made = request(ADDRESS, "The cat sat on the mat.")
    assert 7 < estimate_tokens(made) < 7 + 12
    hostile = request(ADDRESS, "\x00\u202e€\ud800" * 50)
    assert estimate_tokens(hostile) <= bound_tokens(hostile)
    with_schema = replace(made, schema={"type": "object", "description": "word " * 50})
    assert estimate_tokens(with_schema) > estimate_tokens(made) + 50


def test_usage_is_read_as_far_as_it_is_there():
    price = Price(2.0, 8.0, 1.0)
    whole = {"usage": {"prompt_tokens": 100, "completion_tokens": 10,
                       "prompt_tokens_details": {"cached_tokens": 60}}}  # fmt: skip
    assert read_usage(json.dumps(whole), price, lambda: 1 / 0) == Usage(
        1, 100, 60, 10, pytest.approx((40 * 2 + 60 * 1 + 10 * 8) / 1e6)
    )
    assert read_usage(json.dumps(whole), None, lambda: 1 / 0).price is None
    for odd in (
        "{}",
        "[]",
        "no",
        '{"usage": null}',
        '{"usage": {"prompt_tokens": -5}}',
        '{"usage": 3}',
    ):
        assert read_usage(odd, price, lambda: 77).prompt_tokens == 77
    assert Usage(1, 2, 0, 3, 0.5) + Usage(1, 1, 1, 1, None) == Usage(2, 3, 1, 4, None)


def test_what_is_no_chat_completion_is_refused():
    texts = ("", "null", "{}", '{"choices": []}', '{"choices": [{}]}', '{"choices": [{"message": 1}]}',
             '{"choices": [{"message": {"content": ["a"]}}]}', '{"error": {"code": 500}}')  # fmt: skip
    for text in texts:
        with pytest.raises(UnusableAnswer):
            read_answer("key", text, Usage())
    assert read_answer("key", '{"choices": [{"message": {"content": null}}]}', Usage()).text == ""


def test_answers_survive_and_are_never_replaced(tmp_path):
    path = tmp_path / "deep" / "responses.sqlite"
    filled(path, {"a": "one", "b": "zwei — ☃"})
    filled(path, {"a": "another"})
    with ResponseStore(path) as store:
        answer = store.get(request(ADDRESS, "a").key)
        assert (answer.text, answer.usage) == ("one", Usage(1, 10, 4, 5, 0.25))
        assert store.get(request(ADDRESS, "b").key).text == "zwei — ☃"
        assert store.get(request(ADDRESS, "c").key) is None
    assert sorted(os.listdir(path.parent)) == [".responses.sqlite.lock", "responses.sqlite"]


def test_bad_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"no response store .*none\.sqlite \(llm\.store\)"):
        ResponseStore(tmp_path / "none.sqlite", create=False)
    bad = tmp_path / "bad.sqlite"
    bad.write_bytes(b"no database at all, but long enough to look like something" * 100)
    with pytest.raises(UserError, match=r"bad\.sqlite as response store"):
        ResponseStore(bad)
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE t (x)")
    with pytest.raises(UserError, match="format 0"):
        ResponseStore(other)


def test_replay_gives_the_same_bytes_without_a_server(tmp_path):
    path = tmp_path / "responses.sqlite"

    async def unit(ask, server, name):
        first = await ask(request(server, name))
        second = await ask(request(server, f"{first.text} again"))
        return json.dumps([first.text, second.text, second.usage.__dict__, second.finish_reason])

    def works(server):
        return [lambda ask, n=n: unit(ask, server, n) for n in texts(10)]

    with LlmServer(lambda call: echo(call) + "!") as server:
        live = run_units(settings(path, prices=PRICES), works(server), "units")
        address = server.base_url
    before = path.read_bytes()
    replayed = run_units(settings(path, mode="replay"), works(address), "units")
    assert replayed == live
    assert path.read_bytes() == before
    assert os.listdir(tmp_path).count("responses.sqlite-wal") == 0


def test_replay_names_the_first_missing_request(tmp_path):
    path = tmp_path / "responses.sqlite"
    filled(path, {"text 0": "a", "text 1": "b", "text 3": "d"})
    missing = request(ADDRESS, "text 2").key
    with pytest.raises(
        UserError, match=rf"units, unit 3, model scripted, prompt test\.1.*{missing}"
    ):
        works = [asking(request(ADDRESS, text)) for text in texts(6)]
        run_units(settings(path, mode="replay"), works, "units")
    with pytest.raises(UserError, match="no response store"):
        run(settings(tmp_path / "none.sqlite", mode="replay"), ADDRESS, ["x"])
    assert not (tmp_path / "none.sqlite").exists()


def test_replay_needs_no_write_permission(tmp_path):
    folder = tmp_path / "fixed"
    filled(folder / "responses.sqlite", {"text 0": "a"})
    (folder / ".responses.sqlite.lock").unlink()
    # A log that cannot be made is what a folder without write permission comes to, for root as well.
    (folder / "responses.sqlite-wal").mkdir()
    given = settings(folder / "responses.sqlite", mode="replay")
    assert run(given, ADDRESS, texts(1)) == ["a"]
    assert sorted(os.listdir(folder)) == ["responses.sqlite", "responses.sqlite-wal"]


def test_merge_adds_what_is_missing_and_counts_differences(tmp_path, capsys):
    mine, yours = tmp_path / "mine.sqlite", tmp_path / "yours.sqlite"
    filled(mine, {"a": "one", "b": "two"})
    filled(yours, {"b": "TWO", "c": "three", "d": "four"})
    command_line.main(["merge", str(mine), str(yours)])
    assert "2 answers added, 1 differ" in capsys.readouterr().out
    with ResponseStore(mine) as store:
        answers = [store.get(request(ADDRESS, name).key).text for name in "abcd"]
        assert answers == ["one", "two", "three", "four"]
        paid = next(store.rows("SELECT sum(paid) FROM answers"))[0]
        assert paid == 2, "answers that others paid for count for no budget"
    command_line.main(["merge", str(mine), str(yours)])
    assert "0 answers added" in capsys.readouterr().out


def test_export_gives_equal_bytes_for_equal_answers(tmp_path, capsys):
    one, two = tmp_path / "one.sqlite", tmp_path / "two.sqlite"
    filled(one, {"a": "1", "b": "2", "c": "3"})
    with ResponseStore(two) as store, ResponseStore(one, read_only=True) as source:
        store.merge(source)
    keys = tmp_path / "keys"
    keys.write_text("\n".join(request(ADDRESS, name).key for name in "ca") + "\n")
    for source in (one, two):
        target = source.with_suffix(".out")
        command_line.main(["export", str(source), str(target), "--keys", str(keys)])
    assert "2 answers written" in capsys.readouterr().out
    assert one.with_suffix(".out").read_bytes() == two.with_suffix(".out").read_bytes()
    with ResponseStore(one.with_suffix(".out"), read_only=True) as store:
        assert store.get(request(ADDRESS, "c").key).text == "3"
        assert len(store.keys()) == 2
    keys.write_text("0" * 64)
    with pytest.raises(SystemExit, match="lacks 1 of the keys"):
        command_line.main(["export", str(one), str(tmp_path / "x"), "--keys", str(keys)])
    assert not (tmp_path / "x").exists()


def test_usage_says_what_a_store_has_cost(tmp_path, capsys):
    path = tmp_path / "responses.sqlite"
    filled(path, {"a": "1", "b": "2"})
    command_line.main(["usage", str(path)])
    row = capsys.readouterr().out.splitlines()[1].split()
    assert row == ["scripted", "2", "2", "30", "0.5000"]


def test_the_command_line_starts_without_warnings(tmp_path):
    filled(tmp_path / "a.sqlite", {"a": "1"})
    command = [sys.executable, "-W", "error", "-m", "mechatlas.explain.llm.store", "usage"]
    done = subprocess.run(
        [*command, str(tmp_path / "a.sqlite")], capture_output=True, text=True, check=True
    )
    assert "scripted" in done.stdout
    assert done.stderr == ""
    done = subprocess.run([*command, str(tmp_path / "b.sqlite")], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: there is no response store")


def test_one_process_at_a_time(tmp_path, caplog):
    caplog.set_level("INFO", logger="mechatlas")
    path = tmp_path / "responses.sqlite"
    first = ResponseStore(path)
    with pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
        ResponseStore(path, wait=False)
    opened = []
    waiting = threading.Thread(target=lambda: opened.append(ResponseStore(path)))
    waiting.start()
    time.sleep(0.3)
    assert not opened
    assert any("waiting for" in line for line in caplog.messages)
    with ResponseStore(path, read_only=True) as reader:
        assert reader.keys() == []
    first.close()
    waiting.join(5)
    opened[0].close()


def test_a_full_disk_is_said_so(tmp_path):
    path = tmp_path / "responses.sqlite"
    with ResponseStore(path) as store:
        store.rows("SELECT 1")
        store._writer.execute("PRAGMA max_page_count = 12")
        with pytest.raises(UserError, match=r"cannot write .*responses\.sqlite.*full"):
            for number in range(100):
                made = request(ADDRESS, f"{number} " + "x" * 5000)
                store.put(made, response(made, "y"), Usage(1))
        kept = len(store.keys())
    with ResponseStore(path) as store:
        assert len(store.keys()) == kept
