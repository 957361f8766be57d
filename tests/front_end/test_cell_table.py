"""Every cell of the viewer can be reached, also where the table has places without one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from javascript import module, needs_node

pytestmark = needs_node

ANSWER = """
function answer({ labels, row, column, inColumn }) {
  const table = new CellTable(labels);
  const place = table.nearest(row, column, inColumn) ?? null;
  const size = [table.rows.length, table.columns.length];
  const all = labels.map((_, index) => table.placeOf(index));
  return { size, all, place, cell: place && table.at(...place) };
}
"""

SPARSE = st.sets(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1).map(sorted)


@pytest.fixture(scope="module")
def ask() -> Iterator[Callable[..., dict[str, Any]]]:
    with module("cell_table.js", ANSWER) as asked:
        yield lambda **question: asked(question)


@given(cells=SPARSE, row=st.integers(-1, 4), column=st.integers(-1, 5), in_column=st.booleans())
def test_the_nearest_cell_is_in_the_column_or_row_that_was_asked_for(ask, cells, row, column, in_column) -> None:
    """The very place where it has a cell, and nothing beyond the table."""
    labels = [f"seed {seed}, scale {scale}" for seed, scale in cells]
    found = ask(labels=labels, row=row, column=column, inColumn=in_column)
    rows, columns = found["size"]
    if not (column in range(columns) if in_column else row in range(rows)):
        assert found["place"] is None
        return
    along = [place for place in found["all"] if (place[1] == column if in_column else place[0] == row)]
    assert isinstance(found["cell"], int) and found["place"] in along

    def distance(place: list[int]) -> int:
        return abs(place[0] - row) + abs(place[1] - column)

    assert distance(found["place"]) == min(map(distance, along))
