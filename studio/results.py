"""What a statement answered: as a table, as a chart, as a file."""

from __future__ import annotations

import io
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import streamlit as st

from fluxcore.history import SqlResult

from . import charts, words

MARKS = {"Line": "line", "Bars": "bar", "Points": "point"}
_NUMBERS = ("INT", "DOUBLE", "FLOAT", "DECIMAL", "HUGEINT")
NOTHING = "(none)"


def as_table(result: SqlResult) -> pa.Table:
    """The rows as Arrow; what has no plain type there is text."""
    columns = {}
    for i, (name, kind) in enumerate(zip(_distinct(result.columns), result.types, strict=True)):
        values = [row[i] for row in result.rows]
        try:
            columns[name] = pa.array(values, pa.timestamp("us")) if kind == "TIMESTAMP" else pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
            columns[name] = pa.array([_text(value) for value in values])
        if pa.types.is_nested(columns[name].type) or pa.types.is_null(columns[name].type):
            columns[name] = pa.array([_text(value) for value in values], pa.string())
    return pa.table(columns)


def show(result: SqlResult, seconds: float) -> None:
    """Table or chart, and the downloads."""
    for sentence in result.unreadable:
        st.warning(words.escape(sentence), icon=":material/warning:")
    table = as_table(result)
    cut = f" The first {len(result.rows):,}: narrow it down to see others." if result.truncated else ""
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"**{words.plural(len(result.rows), 'row')}** in {seconds:.2g} s.{cut}", width="stretch")
        shown = st.segmented_control(
            "As", ["Table", "Chart"], default="Table", required=True, key="sql-as", label_visibility="collapsed"
        )
        st.download_button(
            "CSV",
            lambda: as_csv(table),
            "history.csv",
            "text/csv",
            key="sql-csv",
            icon=":material/download:",
            on_click="ignore",
        )
        st.download_button(
            "Parquet",
            lambda: as_parquet(table),
            "history.parquet",
            "application/vnd.apache.parquet",
            key="sql-parquet",
            icon=":material/download:",
            on_click="ignore",
        )
    if not result.rows:
        st.caption("It is right, but there is no such row.")
    elif shown == "Chart":
        _chart(table, result.types)
    else:
        st.dataframe(table, hide_index=True, width="stretch", height=min(42 + 35 * len(table), 560), key="sql-table")


def as_csv(table: pa.Table) -> bytes:
    """The table as CSV with a head."""
    buffer = io.BytesIO()
    pyarrow.csv.write_csv(table, buffer)
    return buffer.getvalue()


def as_parquet(table: pa.Table) -> bytes:
    """The table as Parquet."""
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _chart(table: pa.Table, types: list[str]) -> None:
    names = table.column_names
    numbers = [name for name, kind in zip(names, types, strict=True) if any(word in kind for word in _NUMBERS)]
    texts = [name for name, kind in zip(names, types, strict=True) if kind == "VARCHAR"]
    if not numbers:
        st.caption("There is no column of numbers to draw.")
        return
    times = [name for name, kind in zip(names, types, strict=True) if kind.startswith(("TIMESTAMP", "DATE"))]
    across = [*times, *(name for name in names if name not in times)]
    usual = next(
        (name for name in across if name in times or name in ("step", "epoch")), texts[0] if texts else names[0]
    )
    form = "|".join(names)  # other columns: other choices
    with st.container(horizontal=True, vertical_alignment="bottom", key="sql-chart-tools"):
        x = st.selectbox("Across", across, index=across.index(usual), key=f"sql-x-{form}", width=200)
        choices = [name for name in numbers if name != x] or numbers
        y = st.selectbox("Up", choices, key=f"sql-y-{form}-{x}", width=200)
        by = st.selectbox(
            "Colour",
            [NOTHING, *texts],
            index=1 if len(texts) == 1 and texts[0] != x else 0,
            key=f"sql-by-{form}",
            width=200,
        )
        lines = x in times or x in numbers
        mark = st.segmented_control(
            "As", list(MARKS), default="Line" if lines else "Bars", required=True, key=f"sql-mark-{form}-{x}"
        )
    whole = pa.types.is_integer(table.schema.field(x).type)
    kept = list(dict.fromkeys([x, y, *([by] if by != NOTHING else [])]))
    kind = "temporal" if x in times else "quantitative" if x in numbers else "nominal"
    drawn = table.select(kept).rename_columns([f"c{i}" for i in range(len(kept))])
    at = {name: f"c{i}" for i, name in enumerate(kept)}
    color = (at[by], by) if by != NOTHING else None
    st.vega_lite_chart(
        drawn,
        charts.answer(MARKS[mark or "Line"], (at[x], x, kind), (at[y], y), color, whole),
        key="sql-chart",
        width="stretch",
        alt=f"{y} over {x}",
    )


def _distinct(names: list[str]) -> list[str]:
    kept: list[str] = []
    for name in names:
        count, new = 1, name
        while new in kept:
            count += 1
            new = f"{name}_{count}"
        kept.append(new)
    return kept


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return orjson.dumps(value, default=str).decode()
