"""What requests will take, told before any is sent."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from mechatlas.explain.llm.requests import Request, estimate_tokens
from mechatlas.explain.llm.settings import LlmSettings
from mechatlas.explain.llm.store import ResponseStore

COLUMNS = (
    "stage", "model", "requests", "stored", "prompt tokens", "answer tokens", "answers at most",
    "price", "price at most",
)  # fmt: skip


@dataclass
class Row:
    """The requests of a stage to a model.

    ``requests`` counts those that would be sent, ``stored`` those that the store answers. Tokens and prices are of
    the former: ``prompt_tokens`` estimated; ``answer_tokens`` as many as answers to the same prompt version have
    had in the store, or the most where there are none; ``most_answer_tokens`` what the requests allow. A price is
    None where the configuration has none of the model.
    """

    stage: str
    model: str
    requests: int = 0
    stored: int = 0
    prompt_tokens: int = 0
    answer_tokens: float = 0.0
    most_answer_tokens: int = 0
    price: float | None = 0.0
    most_price: float | None = 0.0


@dataclass(frozen=True)
class Forecast:
    """A table of what requests will take, by stage and model."""

    rows: list[Row]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: ``rows``, and the total ``price`` and ``most_price`` (None if one is unknown)."""
        totals = {
            name: _sum([getattr(row, name) for row in self.rows])
            for name in ("price", "most_price")
        }
        return {"rows": [asdict(row) for row in self.rows], **totals}

    def table(self) -> str:
        """Return the table as text, with a line of totals."""
        total = Row("total", "")
        for name in ("requests", "stored", "prompt_tokens", "answer_tokens", "most_answer_tokens"):
            setattr(total, name, sum(getattr(row, name) for row in self.rows))
        total.price = _sum([row.price for row in self.rows])
        total.most_price = _sum([row.most_price for row in self.rows])
        lines = [COLUMNS, *map(_cells, [*self.rows, total])]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if place < 2 else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )


def tabulate(requests: Iterable[tuple[str, Request]], settings: LlmSettings) -> Forecast:
    """Count what requests will take; nothing is sent.

    Parameters
    ----------
    requests : iterable of (stage, Request)
        A request that comes up twice counts once, as it would be sent once.
    settings : LlmSettings
        The store may not exist yet.
    """
    rows: dict[tuple[str, str], Row] = {}
    seen: set[str] = set()
    with ExitStack() as stack:
        store = None
        if settings.store.exists():
            store = stack.enter_context(ResponseStore(settings.store, read_only=True))
        typical = _typical_answers(store)
        for stage, request in requests:
            if request.key in seen:
                continue
            seen.add(request.key)
            model = request.endpoint.model
            row = rows.setdefault((stage, model), Row(stage, model))
            if store is not None and store.has(request.key):
                row.stored += 1
            else:
                _count(row, request, typical, settings)
    return Forecast(list(rows.values()))


def _count(
    row: Row, request: Request, typical: dict[tuple[str, str], float], settings: LlmSettings
) -> None:
    prompt, most = estimate_tokens(request), request.answer_limit
    answer = min(typical.get((row.model, request.prompt_version), most), most)
    row.requests += 1
    row.prompt_tokens += prompt
    row.answer_tokens += answer
    row.most_answer_tokens += most
    price = settings.prices.get(row.model)
    if price is None:
        row.price = row.most_price = None
        return
    if settings.batch:
        price = price.times(settings.batch_price)
    if row.price is not None and row.most_price is not None:
        row.price += price.of(prompt, 0, answer)
        row.most_price += price.of(prompt, 0, most)


def _typical_answers(store: ResponseStore | None) -> dict[tuple[str, str], float]:
    if store is None:
        return {}
    query = "SELECT model, prompt_version, avg(completion_tokens) FROM answers GROUP BY 1, 2"
    return {(model, version): mean for model, version, mean in store.rows(query)}


def _sum(prices: list[float | None]) -> float | None:
    known = [price for price in prices if price is not None]
    return sum(known) if len(known) == len(prices) else None


def _cells(row: Row) -> tuple[str, ...]:
    counts = (
        row.requests,
        row.stored,
        row.prompt_tokens,
        row.answer_tokens,
        row.most_answer_tokens,
    )
    prices = (row.price, row.most_price)
    return (
        row.stage,
        row.model,
        *(f"{count:,.0f}" for count in counts),
        *("unknown" if price is None else f"{price:,.4f}" for price in prices),
    )
