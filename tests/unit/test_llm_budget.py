"""Budgets: no cap is ever exceeded, whatever is under way, fails or is killed."""

from __future__ import annotations

import pytest
from llm_server import MALFORMED, TOO_MANY, Call, Fault, LlmServer, Reply, completion, echo
from llm_works import PRICES, request, run, settings, texts

from mechatlas.explain.llm.budget import BudgetReached, Ledger
from mechatlas.explain.llm.requests import Usage, bound_tokens
from mechatlas.explain.llm.settings import Budget, Price
from mechatlas.explain.llm.store import ResponseStore
from mechatlas.io import UserError

PRICE = {model: Price(**price) for model, price in PRICES.items()}


@pytest.fixture
def store(tmp_path):
    return tmp_path / "responses.sqlite"


def billed(server: LlmServer) -> tuple[float, int, int]:
    """Return money, tokens and requests as the server counts what it answered."""
    money = tokens = 0.0
    for call in server.answered():
        usage = completion(call.body, Reply(echo(call)))["usage"]
        money += PRICE["scripted"].of(usage["prompt_tokens"], 0, usage["completion_tokens"])
        tokens += usage["total_tokens"]
    return money, int(tokens), len(server.answered())


@pytest.mark.parametrize(
    ("cap", "budget"),
    [("requests", 75), ("tokens", 6000), ("money", 0.02)],
)
def test_caps_hold_with_many_under_way(store, cap, budget):
    # Every third request is refused once, so that reservations are given back in between.
    def answer(call: Call) -> str | Fault:
        return TOO_MANY if call.attempt == 0 and call.number % 3 == 0 else echo(call)

    many = [f"{text} " + "word " * 20 for text in texts(400)]
    given = {"concurrency": 32, "prices": PRICES, "retries": 8}
    with LlmServer(answer, delay=0.01) as server:
        limited = settings(store, budget={cap: budget}, **given)
        with pytest.raises(BudgetReached, match=rf"llm\.budget\.{cap} is {budget:g}.*raise it"):
            run(limited, server, many, max_tokens=40)
        spent = dict(zip(("money", "tokens", "requests"), billed(server), strict=True))
        assert spent[cap] <= budget
        largest = {"requests": 1, "tokens": 200, "money": 0.0005}[cap]
        assert spent[cap] > budget - largest, "the cap is used up as far as it goes"
        with pytest.raises(BudgetReached):
            run(limited, server, many, max_tokens=40)
        assert billed(server)[2] == spent["requests"], "nothing is sent at the cap"
        assert run(settings(store, **given), server, many, max_tokens=40) == many
        assert server.repeated() == []


def test_a_model_without_a_price_is_refused_under_a_cap_on_money(store):
    with LlmServer() as server:
        given = settings(store, budget={"money": 5.0})
        with pytest.raises(UserError, match=r"llm\.prices has no price of scripted"):
            run(given, server, texts(3))
        assert server.chats() == []
        assert run(settings(store, budget={"tokens": 10**6}), server, texts(3)) == texts(3)
        # Paid before the price was known: now it counts at that price.
        with ResponseStore(store) as opened:
            ledger = Ledger(opened, Budget(money=5.0), PRICE)
            assert ledger.spent.money == pytest.approx(billed(server)[0])


def test_what_a_killed_run_reserved_counts_as_spent_once(store, caplog):
    made = request("http://127.0.0.1:1/v1", "question")
    most = bound_tokens(made) + 600
    with ResponseStore(store) as opened:
        reservation, statement = Ledger(opened, Budget(), PRICE).reserve(made)
        opened.write([statement])
        assert reservation.cost.tokens == most
    for _ in range(2):
        with ResponseStore(store) as opened:
            ledger = Ledger(opened, Budget(tokens=most + 10), PRICE)
            assert (ledger.spent.tokens, ledger.spent.requests) == (most, 1)
            assert ledger.spent.money == pytest.approx(reservation.cost.money)
            with pytest.raises(BudgetReached):
                ledger.reserve(made)
    warnings = [line for line in caplog.messages if "under way when an earlier run ended" in line]
    assert len(warnings) == 1
    assert f"at most {most} tokens" in warnings[0]


def test_lost_answers_count_as_spent(store):
    with LlmServer(lambda call: MALFORMED if call.attempt < 2 else echo(call)) as server:
        run(settings(store, prices=PRICES), server, ["x"])
    with ResponseStore(store) as opened:
        ledger = Ledger(opened, Budget(), PRICE)
        assert ledger.spent.requests == 3
        assert ledger.reserved.requests == 0


def test_a_request_waits_while_others_may_turn_out_cheaper(store):
    made = [request("http://127.0.0.1:1/v1", text) for text in texts(3)]
    with ResponseStore(store) as opened:
        ledger = Ledger(opened, Budget(requests=2), {})
        first, _ = ledger.reserve(made[0])
        second, _ = ledger.reserve(made[1])
        assert ledger.reserve(made[2]) is None
        ledger.release(first)
        third, _ = ledger.reserve(made[2])
        for reservation in (second, third):
            ledger.settle(reservation, Usage(1, 5, 0, 5, None))
        with pytest.raises(BudgetReached, match=r"requests is 2, 2 of it are spent"):
            ledger.reserve(made[0])


def test_answers_of_others_cost_nothing(store, tmp_path):
    with LlmServer() as server:
        run(settings(tmp_path / "theirs.sqlite", prices=PRICES), server, texts(5))
        with (
            ResponseStore(store) as mine,
            ResponseStore(tmp_path / "theirs.sqlite", read_only=True) as theirs,
        ):
            mine.merge(theirs)
        given = settings(store, budget={"requests": 1})
        assert run(given, server, [*texts(5), "one more"]) == [*texts(5), "one more"]
        assert len(server.chats()) == 6
