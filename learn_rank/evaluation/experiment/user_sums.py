"""What did the users of each variant bring? The exposures, checked, and summed per user, segment and cell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import pyarrow as pa

from learn_rank.data.source import id_type, quote, sql_errors
from learn_rank.errors import InputError, cut
from learn_rank.evaluation.engine.segment_coverage import SegmentCoverage
from learn_rank.evaluation.experiment.lift import RatioSums
from learn_rank.evaluation.experiment.segment_codes import Segments, Source, code_sql, join_sql, load_codes, text_sql
from learn_rank.evaluation.input.segments import MAX_SEGMENTS, open_segments, report_order
from learn_rank.evaluation.options import MAX_AMOUNT, SegmentOptions

_INTEGERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT")
_NUMBERS = {*_INTEGERS, *(f"U{name}" for name in _INTEGERS), "FLOAT", "DOUBLE", "DECIMAL"}
_MAX_LISTED = 20


class Sums(NamedTuple):
    """Sums over the users of one variant in one slice: x exposures, and per measure (y, xy, yy, users with y > 0)."""

    num_users: int
    x: float
    xx: float
    measures: tuple[tuple[float, float, float, int], ...]

    def per_exposure(self, measure: int) -> RatioSums:
        y, xy, yy, _ = self.measures[measure]
        return RatioSums(self.num_users, self.x, y, self.xx, xy, yy)

    def per_user(self, measure: int, num_users: int) -> RatioSums:
        """Users beyond those of the slice brought nothing in it."""
        y, _, yy, _ = self.measures[measure]
        return RatioSums(num_users, num_users, y, num_users, y, yy)


class Rows(NamedTuple):
    """The exposures in DuckDB. Tables: `cells`, sums per user and item segment; `users`, sums per user."""

    connection: duckdb.DuckDBPyConnection
    where: str
    types: dict[str, str]
    variant: str
    control: str
    treatment: str
    labels: list[str]
    value: str
    place: Callable[[int], tuple[str, int]]  # (file, row there) of a row of the exposures

    @property
    def variant_text(self) -> str:
        """SQL of the variant as text, whatever its type: whole floats as integers, booleans as 'true' and 'false'."""
        name, kind = quote(self.variant), self.types[self.variant]
        if kind == "BOOLEAN":
            return f"(CASE WHEN {name} THEN 'true' WHEN NOT {name} THEN 'false' END)"
        if kind in ("FLOAT", "DOUBLE"):  # integers beside nulls, as pandas writes them
            whole = f"{name} = trunc({name}) AND abs({name}) < 1e15"
            return f"(CASE WHEN {whole} THEN CAST(CAST({name} AS BIGINT) AS VARCHAR) ELSE CAST({name} AS VARCHAR) END)"
        return f"CAST({name} AS VARCHAR)"

    @property
    def names(self) -> list[str]:
        """Control and treatment as `variant_text` spells them; 0 and 1 are false and true where those are meant."""
        if self.types[self.variant] != "BOOLEAN":
            return [self.control, self.treatment]
        return [{"0": "false", "1": "true"}.get(name, name.lower()) for name in (self.control, self.treatment)]

    @property
    def chosen(self) -> str:
        """SQL list of control and treatment."""
        return "(" + ", ".join(text_sql(name) for name in self.names) + ")"

    def load_segments(self, source: Source, entity: str, id_column: str, options: SegmentOptions) -> Segments:
        """Reads the names of a segment column, or loads a segment file into the table <entity>_codes (id, code)."""
        if source is None:
            return Segments((), 0, "", None)
        if isinstance(source, str):
            text = f"CAST({quote(source)} AS VARCHAR)"
            with sql_errors(self.where):
                names = self.connection.execute(
                    f"SELECT DISTINCT {text} FROM exposures WHERE {self.variant_text} IN {self.chosen} "
                    f"AND {text} IS NOT NULL LIMIT {MAX_SEGMENTS + 1}"
                ).fetchall()
            if len(names) > MAX_SEGMENTS:
                raise InputError(f"{self.where}: column '{source}' holds more than {MAX_SEGMENTS} names; merge some")
            return Segments(report_order(name for (name,) in names), 0, source, None)
        opened = open_segments(source, entity=entity, options=options)
        kind = id_type(self.types, id_column, where=self.where)
        where = str(source) if isinstance(source, Path) else f"{entity}_segments"
        if (kind == "BIGINT") != pa.types.is_integer(opened.id_type):
            raise InputError(
                f"{where}: column '{entity}_id' is {opened.id_type}, but '{id_column}' of {self.where} is {kind}; cast "
                "one of them"
            )
        load_codes(self.connection, f"{entity}_codes", opened, where)
        return Segments(opened.names, opened.default, "", opened.rule)

    def sum_up(self, user_id: str, item_id: str, users: Segments, items: Segments) -> None:
        """Makes `cells` and `users` in one pass over the exposures, and refuses what is wrong with them."""
        user = f"CAST({quote(user_id)} AS {id_type(self.types, user_id, where=self.where)})"
        has_items = items.rule is not None or bool(items.column)
        item = "NULL"
        if has_items:
            item = f"CAST({quote(item_id)} AS {id_type(self.types, item_id, where=self.where)})"
        checks = self._checks([user_id, *([item_id] if has_items else [])], [users.column, items.column])
        bad = " OR ".join(check.is_bad for check in checks)
        measures = [f"{self._number(name)} AS y{n}" for n, name in enumerate(self._measures)]
        item_join, item_code = join_sql("item", items)
        self.connection.execute(
            f"""CREATE OR REPLACE VIEW shown AS SELECT s.* REPLACE ({item_code} AS item_code) FROM (
            SELECT {user} AS user_id, {item} AS item_id, {self.variant_text} AS variant, {code_sql(users)} AS user_code,
            {code_sql(items)} AS item_code, {", ".join(measures)}, {self.variant_text} IS NULL OR
            ({self.variant_text} IN {self.chosen} AND ({bad})) AS is_bad FROM exposures) s {item_join}"""
        )
        # a bad value is refused below; until then it must not end the pass
        sums = [f"count(*) FILTER (y{n} = 1) AS y{n}" for n in range(len(self.labels))]
        if self.value:
            sums.append(
                f"coalesce(fsum(y{len(sums)}) FILTER (y{len(sums)} BETWEEN 0 AND {MAX_AMOUNT}), 0) AS y{len(sums)}"
            )
        user_join, user_code = join_sql("user", users)
        with sql_errors(self.where):
            self.connection.execute(
                f"""CREATE OR REPLACE TABLE cells AS SELECT s.* REPLACE ({user_code} AS user_code) FROM (
                SELECT user_id, variant, user_code, item_code, count(*) AS x, {", ".join(sums)},
                bool_or(is_bad) AS is_bad FROM shown GROUP BY user_id, variant, user_code, item_code) s {user_join}"""
            )
        if self._first("SELECT count(*) FROM cells WHERE is_bad")[0]:
            self._refuse_bad_row(checks)
        self._require_variants()
        totals = [f"sum(y{n})::BIGINT AS y{n}" for n in range(len(self.labels))]
        totals += [f"fsum(y{len(totals)}) AS y{len(totals)}"] if self.value else []
        self.connection.execute(
            f"""CREATE OR REPLACE TABLE users AS SELECT user_id, min(variant) AS variant, max(variant) AS other_variant,
            min(user_code) AS user_code, max(user_code) AS other_code, sum(x)::BIGINT AS x, {", ".join(totals)}
            FROM cells WHERE variant IN {self.chosen} GROUP BY user_id"""
        )
        self._refuse_users_in_two("variant", f"in '{self.names[0]}' and in '{self.names[1]}'")
        self._refuse_users_in_two("code", f"in two segments of column '{users.column}'")

    def moments(self) -> dict[tuple[str, int | None, int | None], Sums]:
        """('control' | 'treatment', user code, item code) -> sums; None: all of them."""
        columns = ["count(*)", "sum(x)", "sum(x * x)"]
        for n, _ in enumerate(self._measures):
            add = "fsum" if n == len(self.labels) else "sum"
            columns += [f"{add}(y{n})", f"{add}(x * y{n})", f"{add}(y{n} * y{n})", f"count(*) FILTER (y{n} > 0)"]
        moments = {}
        for keys, sets, table in (
            ("user_code, NULL", "(variant), (variant, user_code)", "users"),
            ("user_code, item_code", "(variant, item_code), (variant, user_code, item_code)", "cells"),
        ):
            rows = self.connection.execute(
                f"SELECT variant, {keys}, {', '.join(columns)} FROM {table} WHERE variant IN {self.chosen} "
                f"GROUP BY GROUPING SETS ({sets})"
            ).fetchall()
            for variant, user_code, item_code, num_users, x, xx, *rest in rows:
                measures = tuple(
                    (float(rest[n]), float(rest[n + 1]), float(rest[n + 2]), rest[n + 3])
                    for n in range(0, len(rest), 4)
                )
                role = "control" if variant == self.names[0] else "treatment"
                moments[role, user_code, item_code] = Sums(num_users, float(x), float(xx), measures)
        return moments

    def item_shares(self, items: Segments) -> list[float]:
        """Share of the exposed items per segment."""
        if not items.names:
            return []
        self.connection.execute(
            f"""CREATE OR REPLACE TABLE items AS SELECT item_id, min(item_code) AS code, max(item_code) AS other_code
            FROM shown WHERE variant IN {self.chosen} GROUP BY item_id"""
        )
        example, count = self._first("SELECT min(item_id), count(*) FROM items WHERE code <> other_code")
        if count:
            raise InputError(
                f"{self.where}: item {example!r} is in two segments of column '{items.column}' ({count} such items); "
                "an item has one segment throughout"
            )
        sizes = dict(self.connection.execute("SELECT code, count(*) FROM items GROUP BY code").fetchall())
        return [sizes.get(code, 0) / sum(sizes.values()) for code in range(len(items.names))]

    def matches(self, users: Segments, items: Segments) -> list[SegmentCoverage]:
        """What the files of segments list; none for columns. After `item_shares`."""
        matches = []
        for entity, segments in (("user", users), ("item", items)):
            if segments.rule is not None and self._first(f"SELECT count(*) FROM {entity}_codes")[0]:
                table = f"{entity}s"
                num_ids = self._first(f"SELECT count(*) FROM {table}")[0]
                join = f"{table} ANTI JOIN {entity}_codes ON {entity}_codes.id = {table}.{entity}_id"
                matches.append(SegmentCoverage(entity, num_ids, self._first(f"SELECT count(*) FROM {join}")[0]))
        return matches

    def ids_of_both(self, entity: str) -> str:
        """Of an error: an id of the file of segments, and one of the log."""
        listed, shown = (
            self._first(f"SELECT min({column}) FROM {table}")[0]
            for table, column in ((f"{entity}_codes", "id"), (f"{entity}s", f"{entity}_id"))
        )
        return f": it holds ids such as {listed!r}, and {self.where} ids such as {shown!r}"

    def excluded(self) -> dict[str, Any]:
        """Rows of other variants, the most frequent of these by name, and users that saw one besides theirs."""
        others = f"FROM cells WHERE variant NOT IN {self.chosen}"
        listed = f"SELECT variant, sum(x)::BIGINT {others} GROUP BY variant ORDER BY 2 DESC, 1 LIMIT {_MAX_LISTED}"
        return {
            "num_rows_other_variants": int(self._first(f"SELECT coalesce(sum(x), 0) {others}")[0]),
            "other_variants": dict(self.connection.execute(listed).fetchall()),
            "num_users_in_other_variants_too": self._first(
                f"SELECT count(DISTINCT user_id) {others} AND user_id IN (SELECT user_id FROM users)"
            )[0],
        }

    @property
    def _measures(self) -> list[str]:
        return [*self.labels, *([self.value] if self.value else [])]

    def _number(self, column: str) -> str:
        """SQL of a label or value as a number."""
        if self.types[column] == "BOOLEAN":  # no cast: DuckDB pushes casts into its CSV reader, which fails on 'true'
            return f"(CASE WHEN {quote(column)} THEN 1 WHEN NOT {quote(column)} THEN 0 END)"
        return f"CAST({quote(column)} AS DOUBLE)"

    def _checks(self, ids: list[str], segment_columns: list[str]) -> list[_Check]:
        checks = [_Check(name, f"{quote(name)} IS NULL", "an id") for name in ids]
        checks += [_Check(name, f"{quote(name)} IS NULL", "a segment") for name in segment_columns if name]
        for name in self.labels:
            if self.types[name].partition("(")[0] not in _NUMBERS | {"BOOLEAN"}:
                raise InputError(f"{self.where}: column '{name}' is {self.types[name]}, expected a label of 0 and 1")
            checks.append(_Check(name, f"coalesce({self._number(name)} NOT IN (0, 1), true)", "0 or 1"))
        if self.value:
            if self.types[self.value].partition("(")[0] not in _NUMBERS:
                raise InputError(f"{self.where}: column '{self.value}' is {self.types[self.value]}, expected numbers")
            number = self._number(self.value)
            checks.append(
                _Check(
                    self.value,
                    f"coalesce(NOT isfinite({number}) OR {number} < 0 OR {number} > {MAX_AMOUNT}, true)",
                    f"a number of 0 to {MAX_AMOUNT:g}",
                )
            )
        return checks

    def _refuse_bad_row(self, checks: list[_Check]) -> None:
        """Looks for the first bad row, which the pass over all rows only knows to exist."""
        in_test = f"{self.variant_text} IN {self.chosen} AND "
        every = [_Check(self.variant, f"{quote(self.variant)} IS NULL", "a variant")]
        every += [check._replace(is_bad=in_test + check.is_bad) for check in checks]
        for column, is_bad, expected in every:
            count, row, value = self._first(
                f"""SELECT count(*), min(num), arg_min(text, num) FROM (SELECT row_number() OVER () - 1 AS num,
                coalesce(CAST({quote(column)} AS VARCHAR), 'null') AS text, {is_bad} AS is_bad FROM exposures)
                WHERE is_bad"""
            )
            if count:
                file, its_row = self.place(row)
                raise InputError(
                    f"{file}: column '{column}' is {cut(value, 60)} in row {its_row}, "
                    f"expected {expected} ({count} such rows)"
                )
        raise AssertionError("a bad row was seen and not found again")

    def _require_variants(self) -> None:
        present = f"SELECT variant, sum(x)::BIGINT FROM cells GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT {_MAX_LISTED}"
        for name in self.names:
            if not self._first(f"SELECT count(*) FROM cells WHERE variant = {text_sql(name)}")[0]:
                others = [f"'{given}' ({count} rows)" for given, count in self.connection.execute(present).fetchall()]
                held = f"it holds {', '.join(others)}" if others else "there are no rows"
                raise InputError(f"{self.where}: column '{self.variant}' is never '{name}'; {held}")

    def _refuse_users_in_two(self, what: str, said: str) -> None:
        first = "variant" if what == "variant" else "user_code"
        example, count = self._first(f"SELECT min(user_id), count(*) FROM users WHERE {first} <> other_{what}")
        if count:
            raise InputError(
                f"{self.where}: user {example!r} is {said} ({count} such users); a user has one throughout, or the "
                "comparison is broken: leave these users out, or correct the log"
            )

    def _first(self, query: str) -> tuple[Any, ...]:
        row: tuple[Any, ...] = self.connection.execute(query).fetchall()[0]
        return row


class _Check(NamedTuple):
    column: str
    is_bad: str  # SQL, never null
    expected: str
