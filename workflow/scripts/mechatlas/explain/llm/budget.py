"""What answers cost, and caps that hold however many requests are under way."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from mechatlas.explain.llm.commits import Statement
from mechatlas.explain.llm.requests import Request, Usage, bound_tokens
from mechatlas.explain.llm.settings import Budget, Price
from mechatlas.explain.llm.store import ResponseStore
from mechatlas.explain.llm.tables import now
from mechatlas.io import UserError

logger = logging.getLogger("mechatlas")

NOTE_CHARACTERS = 10_000


class BudgetReached(UserError):
    """The next request might cost more than a cap leaves."""


@dataclass(frozen=True)
class Cost:
    """An amount of what budgets cap. Unknown prices count as 0, which is why a cap on money refuses them."""

    money: float = 0.0
    tokens: int = 0
    requests: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.money + other.money, self.tokens + other.tokens, self.requests + other.requests
        )

    def __sub__(self, other: Cost) -> Cost:
        return self + Cost(-other.money, -other.tokens, -other.requests)


@dataclass(frozen=True)
class Reservation:
    """The most that a request under way can cost."""

    id: str
    key: str
    model: str
    cost: Cost


class Ledger:
    """Keeps what a store has paid and what is reserved for requests under way, and holds both below the caps.

    A request is reserved at the most it can cost before it is sent, and settled at what it did cost with its answer.
    The statements that these methods return make it durable; the caller commits them, the reservation's before the
    request is sent, the settlement's in one transaction with the answer.

    Requests whose process was killed, or whose answer was lost on the way, may have been billed: they count as
    spent at the most they can have cost. Answers merged from other stores do not count.

    Parameters
    ----------
    store : ResponseStore
        Open for writing.
    budget : Budget
    prices : mapping
        Price by model.
    """

    def __init__(self, store: ResponseStore, budget: Budget, prices: Mapping[str, Price]) -> None:
        self.budget, self.prices = budget, prices
        self.run, self.count, self.under_way = secrets.token_hex(8), 0, 0
        self._close_stale(store)
        self.spent = _paid(store, prices) + _reserved(store, "lost")
        self.reserved = _reserved(store, "open")
        self.before = self.spent

    def _close_stale(self, store: ResponseStore) -> None:
        stale = "state = 'open' AND batch IS NULL"
        query = f"SELECT count(*), sum(tokens), sum(price) FROM reservations WHERE {stale}"
        count, tokens, price = next(store.rows(query))
        if count:
            note = "the process ended before the answer came"
            store.write(
                [(f"UPDATE reservations SET state = 'lost', note = ? WHERE {stale}", (note,))]
            )
            logger.warning(
                "%d requests were under way when an earlier run ended; they may have been billed and count as "
                "spent, with at most %d tokens, price %s",
                count, tokens, "unknown" if price is None else f"at most {price:.4f}",
            )  # fmt: skip

    def reserve(
        self, request: Request, *, batch: str | None = None, share: float = 1.0
    ) -> tuple[Reservation, Statement] | None:
        """Reserve the most that a request can cost.

        Parameters
        ----------
        request : Request
        batch : str, optional
            Name of the batch that it goes out in, which outlives this process.
        share : float
            Share of the price that is paid.

        Returns
        -------
        The reservation and the statement that makes it durable, or None if it takes requests of this run that are
        under way to turn out cheaper than they may be: then it is worth asking again when one of them is settled.

        Raises
        ------
        BudgetReached
            If the caps leave too little even so.
        UserError
            If money is capped and the model has no price.
        """
        most = self._most(request, share)
        name = self._exceeded(self.spent + self.reserved + most)
        if name is not None and self.under_way and self._exceeded(self.spent + most) is None:
            return None
        if name is not None:
            raise BudgetReached(self._refusal(name, most))
        self.reserved += most
        self.count += 1
        self.under_way += 1
        model = request.endpoint.model
        made = Reservation(f"{self.run}-{self.count}", request.key, model, most)
        price = most.money if model in self.prices else None
        values = (made.id, made.key, model, most.tokens, price, "open", batch, None, now())
        return made, (f"INSERT INTO reservations VALUES ({', '.join('?' * 9)})", values)

    def _most(self, request: Request, share: float) -> Cost:
        prompt, answer = bound_tokens(request), request.answer_limit
        price = self.prices.get(request.endpoint.model)
        require_price(request.endpoint.model, self.budget, self.prices)
        money = 0.0
        if price is not None:
            dearest = max(price.of(prompt, cached, answer) for cached in (0, prompt))
            money = share * dearest
        return Cost(money, prompt + answer, 1)

    def settle(self, reservation: Reservation, usage: Usage) -> Statement:
        """Replace a reservation by what the answer took; commit this together with the answer."""
        self.spent += Cost(usage.price or 0.0, usage.tokens, usage.requests)
        return self.release(reservation)

    def release(self, reservation: Reservation) -> Statement:
        """Give a reservation back: the request was not sent, or was refused."""
        self._close(reservation)
        return "DELETE FROM reservations WHERE id = ?", (reservation.id,)

    def lose(self, reservation: Reservation, note: str) -> Statement:
        """Count a reservation as spent: the request was sent, and may have been billed, without a usable answer."""
        self._close(reservation)
        self.spent += reservation.cost
        values = (note[:NOTE_CHARACTERS], reservation.id)
        return "UPDATE reservations SET state = 'lost', note = ? WHERE id = ?", values

    def _close(self, reservation: Reservation) -> None:
        self.reserved -= reservation.cost
        # Those of an earlier run's batch were never counted as under way in this one.
        self.under_way -= reservation.id.startswith(self.run)

    def _exceeded(self, cost: Cost) -> str | None:
        """Return the name of the first cap that is less than a cost."""
        for name in ("money", "tokens", "requests"):
            cap = getattr(self.budget, name)
            if cap is not None and getattr(cost, name) > cap * (1 + 1e-12):
                return name
        return None

    def _refusal(self, name: str, most: Cost) -> str:
        cap, spent, held, more = (
            getattr(x, name) for x in (self.budget, self.spent, self.reserved, most)
        )
        batches = f", {held:.6g} are reserved for batches under way" if held else ""
        return (
            f"llm.budget.{name} is {cap:g}, {spent:.6g} of it are spent{batches}, and the next request may take up "
            f"to {more:.6g}; raise it and run again, every answer so far is kept"
        )


def require_price(model: str, budget: Budget, prices: Mapping[str, Price]) -> None:
    """Raise `UserError` if money is capped and nothing says what a model costs."""
    if budget.money is not None and model not in prices:
        raise UserError(
            f"llm.budget.money is {budget.money:g}, but llm.prices has no price of {model}; "
            "add it (0 for a model that costs nothing), or set llm.budget.money to null"
        )


def _paid(store: ResponseStore, prices: Mapping[str, Price]) -> Cost:
    total = Cost()
    for model, price, count, prompt, cached, answer in store.rows(
        "SELECT model, sum(price), count(*), sum(prompt_tokens), sum(cached_tokens), sum(completion_tokens) "
        "FROM answers WHERE paid GROUP BY model, price IS NULL"
    ):
        if price is None and model in prices:
            # Paid before the price was known.
            price = prices[model].of(prompt, cached, answer)
        total += Cost(price or 0.0, prompt + answer, count)
    return total


def _reserved(store: ResponseStore, state: str) -> Cost:
    query = "SELECT total(price), sum(tokens), count(*) FROM reservations WHERE state = ?"
    money, tokens, count = next(store.rows(query, (state,)))
    return Cost(money, tokens or 0, count)
