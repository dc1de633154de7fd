"""Behaviour sequences as table rows: what the user did before each row, or a list column of the log."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import duckdb

from learn_rank.data.features import KEYS, EncodedFeature, hashed, list_of_values, locate
from learn_rank.data.recipe import SequenceSource
from learn_rank.data.source import first_row, literal, quote, sql_errors
from learn_rank.errors import InputError
from learn_rank.progress import note
from learn_rank.schema import BEHAVIORS, ITEM_ID, SEQUENCE_PREFIX, TIMESTAMP, USER_ID, SequenceFeature

_PASS_VALUES = 4_000_000  # DuckDB cannot spill list aggregates: they are built for some users or rows at a time


@dataclass(frozen=True)
class EncodedSequence:
    """A sequence, the joins to `interactions` that it needs, and the SQL of a row's list (null if empty)."""

    feature: SequenceFeature
    joins: str
    rows: str
    facts: dict[str, Any]

    @property
    def column(self) -> str:
        """SELECT item of the sequence."""
        return f"coalesce({self.rows}, []::BIGINT[]) AS {quote(SEQUENCE_PREFIX + self.feature.name)}"


def encode_sequence(
    connection: duckdb.DuckDBPyConnection, name: str, source: SequenceSource, of: EncodedFeature, *, num_folds: int
) -> EncodedSequence:
    """Encodes one sequence in the table rows of the sparse feature `of`.

    From the log: the user's rows with the label, strictly before the row's time, in any split; rows of the same time do
    not see each other. Behaviours that the sequence names stand among them. With num_folds > 0 a training row's time
    cannot be used, and it gets the newest training rows of the other folds. InputError: a list feature, a column that
    is not a list, a column without a known value.
    """
    if of.feature.is_list:
        raise InputError(f"sequence.{name}.of is '{source.of}', which has several values a row; name one with a single")
    feature = SequenceFeature(name=name, of=source.of, max_length=source.max_length)
    if source.column:
        return _from_column(connection, feature, source, of)
    return _from_log(connection, feature, source, of, num_folds)


def _from_log(
    connection: duckdb.DuckDBPyConnection,
    feature: SequenceFeature,
    source: SequenceSource,
    of: EncodedFeature,
    num_folds: int,
) -> EncodedSequence:
    """A user's events lie in blocks of max_length; the newest max_length before a row lie in two of them, or in one.

        max_length 3, events of a user   a b c | d e f | g        blocks 0, 1, 2
        a row after e: 5 events before   block 1, 2 of it         b c + d e, its last three: c d e

    So the cost per row is max_length, however many events its user has.
    """
    length = feature.max_length
    events, before, blocks, folds = (
        quote(f"{part}_{feature.name}") for part in ("events", "before", "blocks", "other_folds")
    )
    last, earlier = quote(f"last_{feature.name}"), quote(f"earlier_{feature.name}")
    is_event = "true" if source.label == "*" else f"interactions.{quote('label.' + source.label)} = 1"
    found = (
        f"SELECT {USER_ID}, fold, split, {of.table}.row, {TIMESTAMP}, interactions.row_id AS place FROM interactions "
        f"LEFT JOIN {of.table} ON {of.table}.{of.key} = interactions.{of.key} WHERE {is_event}"
    )
    moments = f"SELECT row_id, fold, {USER_ID}, {TIMESTAMP}, {is_event} AS is_event FROM interactions"
    if source.behaviors:
        # of equal times behaviours are the earlier ones: their places are below 0
        found += f" UNION ALL {_behaviors(source, of, is_event)}"
        moments += f" UNION ALL SELECT NULL, -1, {USER_ID}, {TIMESTAMP}, true FROM ({_behaviors(source, of, is_event)})"
    connection.execute(
        f"""
        CREATE TEMP TABLE {events} AS
        SELECT {USER_ID}, fold, split, coalesce(row, {of.unknown})::BIGINT AS row,
          row_number() OVER (PARTITION BY {USER_ID} ORDER BY {TIMESTAMP}, place) - 1 AS number FROM ({found})
        """
    )
    # fold < 0: the time of a cross-fitted row cannot be used
    connection.execute(
        f"""
        CREATE TEMP TABLE {before} AS
        SELECT row_id, (num_before - 1) // {length} AS block, (num_before - 1) % {length} + 1 AS num_last FROM (
          SELECT row_id, fold, count(*) FILTER (WHERE is_event) OVER (
            PARTITION BY {USER_ID} ORDER BY {TIMESTAMP} RANGE BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
          ) AS num_before FROM ({moments}))
        WHERE num_before > 0 AND fold < 0 AND row_id IS NOT NULL
        """
    )
    num_events = first_row(connection, f"SELECT count(*) FROM {events}")[0]

    def in_blocks(some_users: str) -> str:
        return f"""
            SELECT {USER_ID}, number // {length} AS block, list(row ORDER BY number) AS rows
            FROM {events} WHERE {some_users} GROUP BY ALL
            """

    _make_lists(connection, blocks, in_blocks, key=USER_ID, num_values=num_events)
    joins = (
        f"LEFT JOIN {before} ON {before}.row_id = interactions.row_id "
        f"LEFT JOIN {blocks} AS {last} ON {last}.{USER_ID} = interactions.{USER_ID} AND {last}.block = {before}.block "
        f"LEFT JOIN {blocks} AS {earlier} ON {earlier}.{USER_ID} = interactions.{USER_ID} "
        f"AND {earlier}.block = {before}.block - 1"
    )
    both = f"list_concat({earlier}.rows, {last}.rows)[{before}.num_last + 1 : {before}.num_last + {length}]"
    rows = f"CASE WHEN {before}.block = 0 THEN {last}.rows[:{before}.num_last] ELSE {both} END"
    if num_folds:
        _other_folds(connection, events, folds, length=length, num_folds=num_folds, num_events=num_events)
        joins += (
            f" LEFT JOIN {folds} ON {folds}.{USER_ID} = interactions.{USER_ID} AND {folds}.fold = interactions.fold"
        )
        rows = f"CASE WHEN interactions.fold < 0 THEN {rows} ELSE {folds}.rows END"
    connection.execute(f"DROP TABLE {events}")
    return EncodedSequence(feature=feature, joins=joins, rows=rows, facts={"events": num_events})


def _behaviors(source: SequenceSource, of: EncodedFeature, is_event: str) -> str:
    """SQL of the behaviours as events; one that is an event of the log too (same user, item and time) is left out."""
    value = f"SELECT *, CAST({ITEM_ID} AS VARCHAR) AS value FROM {BEHAVIORS}"
    row = "row"
    if of.num_buckets:
        row = f"{hashed(of.num_buckets)} AS row"
    else:
        value = f"SELECT b.*, row FROM ({value}) AS b LEFT JOIN {of.vocabulary} USING (value)"
    return f"""
        SELECT {USER_ID}, -1 AS fold, 'train' AS split, {row}, {TIMESTAMP}, place - (1::BIGINT << 62) AS place
        FROM ({value}) AS b ANTI JOIN (SELECT {USER_ID}, {ITEM_ID}, {TIMESTAMP} FROM interactions WHERE {is_event})
        USING ({USER_ID}, {ITEM_ID}, {TIMESTAMP}) WHERE source IN ({", ".join(map(literal, source.behaviors))})
        """


def _other_folds(
    connection: duckdb.DuckDBPyConnection, events: str, folds: str, *, length: int, num_folds: int, num_events: int
) -> None:
    """Per user and fold the newest training events of the other folds, oldest first."""
    newest = f"QUALIFY row_number() OVER (PARTITION BY {USER_ID}, {{}} ORDER BY number DESC) <= {length}"

    def by_fold(some_users: str) -> str:
        return f"""
            SELECT {USER_ID}, fold, list(row ORDER BY number) AS rows FROM (
              SELECT {USER_ID}, own.fold AS fold, row, number
              FROM (SELECT * FROM {events} WHERE split = 'train' AND {some_users} {newest.format("fold")}) AS event
              JOIN range({num_folds}) AS own(fold) ON own.fold <> event.fold {newest.format("own.fold")})
            GROUP BY ALL
            """

    _make_lists(connection, folds, by_fold, key=USER_ID, num_values=num_events * num_folds)


def _from_column(
    connection: duckdb.DuckDBPyConnection, feature: SequenceFeature, source: SequenceSource, of: EncodedFeature
) -> EncodedSequence:
    """Empty values of a list are not events; unknown values take the unknown row."""
    table, column = locate(source.column)
    key, where = KEYS[table], f"sequence.{feature.name}.column = '{source.column}'"
    values, lists = quote(f"lists_of_{feature.name}"), quote(f"sequence_{feature.name}")
    texts = list_of_values(connection, table, column, source.separator)
    if texts is None:
        raise InputError(f"{where}: expected a list, or strings and a separator such as ' '; set the separator")
    with sql_errors(where):
        connection.execute(
            f"CREATE TEMP TABLE {values} AS SELECT {key}, [x for x in {texts} if x <> ''] AS texts FROM {table}"
        )
    length = feature.max_length
    num_lists, num_cut, longest, num_values = first_row(
        connection,
        f"SELECT count(*), count(*) FILTER (WHERE len(texts) > {length}), coalesce(max(len(texts)), 0), "
        f"coalesce(sum(least(len(texts), {length})), 0)::BIGINT FROM {values}",
    )
    vocabulary = of.vocabulary
    if of.num_buckets:
        distinct = f"SELECT DISTINCT unnest(texts) AS value FROM {values}"
        vocabulary = f"(SELECT value, {hashed(of.num_buckets)} AS row FROM ({distinct}))"

    def looked_up(some_keys: str) -> str:
        return f"""
            SELECT {key}, list(coalesce(row, {of.unknown}) ORDER BY place) AS rows FROM (
              SELECT {key}, unnest(newest) AS value, generate_subscripts(newest, 1) AS place
              FROM (SELECT {key}, texts[-{length}:] AS newest FROM {values} WHERE {some_keys}))
            LEFT JOIN {vocabulary} USING (value) GROUP BY {key}
            """

    _make_lists(connection, lists, looked_up, key=key, num_values=num_values)
    connection.execute(f"DROP TABLE {values}")
    known = f"SELECT count(*) FROM {lists} WHERE list_min(rows) < {of.unknown}"
    if num_values and not first_row(connection, known)[0]:
        raise InputError(f"{where}: none of its values is one of sparse.{source.of}; are they the same kind of id?")
    if num_cut:
        note(
            f"{where}: {num_cut:,} of {num_lists:,} lists are longer than max_length={length}, "
            f"the longest {longest:,}; the newest {length} values of each are kept"
        )
    joins = f"LEFT JOIN {lists} ON {lists}.{key} = interactions.{key}"
    facts = {"lists_cut": num_cut, "longest_list": longest}
    return EncodedSequence(feature=feature, joins=joins, rows=f"{lists}.rows", facts=facts)


def _make_lists(
    connection: duckdb.DuckDBPyConnection, table: str, query: Callable[[str], str], *, key: str, num_values: int
) -> None:
    """Makes a table of query(condition), for some of the keys at a time: about _PASS_VALUES values per pass."""
    num_passes = 1 + num_values // _PASS_VALUES
    for number in range(num_passes):
        statement = f"INSERT INTO {table}" if number else f"CREATE TEMP TABLE {table} AS"
        connection.execute(f"{statement} {query(f'hash({key}) % {num_passes} = {number}')}")
