"""Pages of a list, newest first, by cursor: `after` is the id of the last item of the page before."""

from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from sqlalchemy import ColumnElement, Select, asc, desc
from sqlalchemy.orm import InstrumentedAttribute, Session

from app.errors import InvalidRequest


class Listed(Protocol):
    """A table with an id to name a row by and a `seq` that orders them."""

    id: Any
    seq: Any


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some rows, and whether there are more behind them."""

    rows: list[T]
    has_more: bool


def page_of(
    session: Session,
    rows: Select[T],
    table: type[Listed],
    *,
    after: str | None,
    limit: int,
    oldest_first: bool = False,
) -> Page[T]:
    """One page of a query. Raises `InvalidRequest` for a cursor that is not in the list."""
    seq: InstrumentedAttribute[int] = table.seq
    if after is not None:
        cursor = session.scalar(rows.with_only_columns(seq).where(table.id == after))
        if cursor is None:
            raise InvalidRequest(f"No item '{after}' in this list. Send the last id of the page before.", param="after")
        beyond: ColumnElement[bool] = seq > cursor if oldest_first else seq < cursor
        rows = rows.where(beyond)
    order = asc(seq) if oldest_first else desc(seq)
    found = list(session.scalars(rows.order_by(order).limit(limit + 1)))
    return Page(found[:limit], has_more=len(found) > limit)
