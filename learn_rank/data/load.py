"""Raw files -> the DuckDB tables interactions, items and users: checked, with canonical ids.

Names from a recipe cannot collide with ours: in these tables the files' columns are called raw.NAME, labels label.NAME
and text fields text.NAME. Every expression is computed earlier, over the columns of its own file only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import pyarrow as pa

from learn_rank.data.behavior_options import BehaviorsSource
from learn_rank.data.expressions import Expression
from learn_rank.data.raw import Raw, is_integer_text, open_raw
from learn_rank.data.recipe import DatasetRecipe, InteractionsSource
from learn_rank.data.source import Engine, first_row, id_type, quote
from learn_rank.data.timestamps import milliseconds, refuse_time
from learn_rank.errors import InputError, cut
from learn_rank.inputs import InputFiles, find_inputs
from learn_rank.schema import ITEM_ID, TIMESTAMP, USER_ID, VALUE

_ARROW_TYPES = {"BIGINT": pa.int64(), "VARCHAR": pa.string()}
CARRIED = "carried"  # our name of a list of items: all that a user had done by the row's time
_KEYS = {"items": ITEM_ID, "users": USER_ID}


@dataclass
class Source:
    """The log, the items or the users: the files, and the columns and expressions of the recipe under our names."""

    raw: Raw
    columns: dict[str, str] = field(default_factory=dict)
    expressions: dict[str, Expression] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)  # our name -> entry of the recipe, for errors
    where: Expression | None = None
    kinds: dict[str, str] = field(default_factory=dict)  # SQL of a text -> type of all its values
    types: dict[str, str] = field(default_factory=dict)  # our name -> SQL type

    @property
    def query(self) -> str:
        """SQL of the rows, with row_id."""
        return self._select(self.columns, self.expressions, self.where)

    def name(self, name: str, source: str, *, key: str) -> None:
        """Adds a column or an expression under our name. key: its key in the recipe, for errors."""
        self.said[name] = source
        if source in self.raw.types:
            self.raw.require({key: source})
            self.columns[name] = source
        else:
            self.expressions[name] = self.raw.parse(source, where=key)

    def name_column(self, name: str, column: str, *, key: str) -> None:
        """Adds a column under our name; InputError if there is no such column."""
        self.raw.require({key: column})
        self.columns[name] = self.said[name] = column

    def find_types(self) -> None:
        """Reads all CSV values whose type matters, and asks DuckDB for the types of columns and expressions."""
        texts = [quote(self.columns[key]) for key in (USER_ID, ITEM_ID, TIMESTAMP) if key in self.columns]
        if TIMESTAMP in self.expressions and self.expressions[TIMESTAMP].is_textual:
            texts.append(self.expressions[TIMESTAMP].sql)
        computed = [expression for expression in self.expressions.values() if not expression.is_textual]
        computed += [self.where] if self.where else []
        if self.raw.is_text:
            texts += [quote(column) for expression in computed for column in self.raw.columns_of(expression)]
            self.kinds = self.raw.kinds(texts)
        for name, expression in self.expressions.items():  # one at a time, so that an error names it
            self._describe(self._select({}, {name: expression}, None), f"{name} = '{cut(expression.source)}'")
        if self.where:
            self._describe(self._select({}, {}, self.where), f"where = '{cut(self.where.source)}'")
        self.types = self._describe(self.query, "")

    def check(self, table: str, condition: str, raw_condition: str, name: str, told: str) -> None:
        """InputError if a condition holds in one of our tables; raw_condition is used to find file and row.

        told: the message, with placeholders {value}, {count} and {row}.
        """
        connection = self.raw.engine.connection
        if not first_row(connection, f"SELECT count(*) FROM {table} WHERE {condition}")[0]:
            return
        bad = self.raw.first(self.query, raw_condition, quote(name))
        assert bad is not None
        count, file, row, value = bad
        shown = "null" if value is None else cut(repr(value) if isinstance(value, str) else str(value), 60)
        raise InputError(f"{file}: {told.format(value=shown, count=f'{count:,}', row=row)}")

    def _select(
        self, columns: Mapping[str, str], expressions: Mapping[str, Expression], where: Expression | None
    ) -> str:
        types = {name: self.kinds[quote(name)] for name in self.raw.types if quote(name) in self.kinds}
        return self.raw.select(columns, expressions, where=where, types=types)

    def _describe(self, query: str, where: str) -> dict[str, str]:
        with self.raw.errors(where):
            rows = self.raw.engine.connection.execute(f"DESCRIBE {query}").fetchall()
        return {row[0]: row[1] for row in rows}


def find_sources(recipe: DatasetRecipe) -> dict[str, InputFiles]:
    """Table -> its files; InputError if there are none."""
    named = {"interactions": recipe.interactions.files, "items": recipe.items.files, "users": recipe.users.files}
    named |= {f"behaviors.{name}": behaviors.files for name, behaviors in recipe.behaviors.items()}
    return {
        table: find_inputs(files, root=Path(recipe.root), may_be_pattern=True, advice="; check dataset.root")
        for table, files in named.items()
        if files
    }


def open_sources(engine: Engine, recipe: DatasetRecipe, files: Mapping[str, InputFiles]) -> dict[str, Source]:
    """Opens the log, the items and the users, and checks the recipe against them; no table is made yet."""
    sources = {table: Source(open_raw(engine, inputs)) for table, inputs in files.items()}
    log, said = sources["interactions"], recipe.interactions
    log.name_column(USER_ID, said.user_id, key="interactions.user_id")
    log.name_column(ITEM_ID, said.item_id, key="interactions.item_id")
    log.name(TIMESTAMP, said.timestamp, key="interactions.timestamp")
    for label, entry in said.labels.items():
        log.name(f"label.{label}", entry, key=f"interactions.labels.{label}")
    if said.value:
        log.name(VALUE, said.value, key="interactions.value")
    if said.where:
        log.where = log.raw.parse(said.where, where="interactions.where")
    if recipe.split.column:
        log.name_column("split", recipe.split.column, key="split.column")
    for table, key in _KEYS.items():
        if table in sources:
            column = recipe.items.item_id if table == "items" else recipe.users.user_id
            sources[table].name_column(key, column, key=f"{table}.{key}")
    for nth, (field_name, entry) in enumerate(recipe.items.fields().items()):
        if "items" not in sources:
            raise InputError(f"dataset '{recipe.name}': items.text needs items.files, which is empty")
        sources["items"].name(f"text.{field_name}", entry, key=f"items.text[{nth}]")
    for key, dotted in recipe.feature_columns().items():
        table, _, column = dotted.partition(".")
        sources[table].name_column(f"raw.{column}", column, key=key)
    for name, behaviors in recipe.behaviors.items():
        _open_behaviors(sources[f"behaviors.{name}"], behaviors, key=f"behaviors.{name}")
    for source in sources.values():
        source.find_types()
    return sources


def _open_behaviors(source: Source, said: BehaviorsSource, *, key: str) -> None:
    has_lists, has_times = source.raw.is_list(said.item_id), source.raw.is_list(said.timestamp)
    is_carried = has_lists and bool(said.timestamp) and not has_times and not said.precedes_log
    if has_lists and not is_carried:
        source.raw = source.raw.unnested([said.item_id, *([said.timestamp] if has_times else [])])
    source.name_column(USER_ID, said.user_id, key=f"{key}.user_id")
    source.name_column(CARRIED if is_carried else ITEM_ID, said.item_id, key=f"{key}.item_id")
    if said.timestamp:
        source.name(TIMESTAMP, said.timestamp, key=f"{key}.timestamp")
    if said.label:
        source.name("label.behavior", said.label, key=f"{key}.label")
    if said.where:
        source.where = source.raw.parse(said.where, where=f"{key}.where")


def load_times(
    source: Source, said: InteractionsSource | BehaviorsSource, *, key: str
) -> tuple[str, Callable[[], InputError]]:
    """SQL of a log's times in milliseconds, null for what is none, and the error for the first of these.

    key: of the log in the recipe.
    """
    kind, text_kind = source.types[TIMESTAMP], ""
    if kind == "VARCHAR" and not said.timestamp_format:
        sql = quote(source.columns[TIMESTAMP]) if TIMESTAMP in source.columns else source.expressions[TIMESTAMP].sql
        text_kind = source.kinds.get(sql) or source.raw.kinds([quote(TIMESTAMP)], f"({source.query})")[quote(TIMESTAMP)]
    where = f"{source.raw.where}: timestamp '{said.timestamp}'"
    time = milliseconds(quote(TIMESTAMP), kind, said, text_kind=text_kind, where=where)

    def refuse() -> InputError:
        bad = source.raw.first(source.query, f"({time}) IS NULL", quote(TIMESTAMP))
        assert bad is not None
        count, file, row, value = bad
        more = f" (and {count - 1:,} more rows)" if count > 1 else ""
        return refuse_time(value, said, f"{file}: timestamp '{cut(said.timestamp)}', row {row}{more}", key=key)

    return time, refuse


def load_tables(
    connection: duckdb.DuckDBPyConnection, recipe: DatasetRecipe, sources: Mapping[str, Source]
) -> dict[str, pa.DataType]:
    """Makes the tables `interactions`, `items` and `users`; returns the types of user_id and item_id."""
    types = {key: _id_type(key, sources) for key in (USER_ID, ITEM_ID)}
    _load_interactions(connection, recipe, sources["interactions"], types)
    for table, key in _KEYS.items():
        _load_entities(connection, table, key, sources.get(table), types[key])
    for key, dense in recipe.dense.items():
        table, _, column = dense.column.partition(".")
        _refuse_texts(table, f"raw.{column}", sources[table], f"dense.{key} = '{dense.column}'")
    return {name: _ARROW_TYPES[kind] for name, kind in types.items()}


def _id_type(key: str, sources: Mapping[str, Source]) -> str:
    """BIGINT or VARCHAR, the same for all files: Parquet has types; CSV ids are integers if all of them are."""
    holders = {table: source for table, source in sources.items() if key in source.columns}
    typed: dict[str, Source] = {}
    for source in holders.values():
        if not source.raw.is_text:
            kind = id_type(source.types, key, where=source.raw.where, column=source.said[key])
            if typed and kind not in typed:
                raise InputError(
                    f"{source.raw.where}: column '{source.said[key]}' is {kind}, but {key} of the log is "
                    f"{_ARROW_TYPES[next(iter(typed))]}; cast one of them"
                )
            typed.setdefault(kind, source)
    texts = [source for source in holders.values() if source.raw.is_text]
    is_integer = all(source.kinds[quote(source.columns[key])] in ("BIGINT", "NULL") for source in texts)
    if "BIGINT" not in typed or is_integer:
        return next(iter(typed), "BIGINT" if is_integer else "VARCHAR")
    for source in texts:
        bad = source.raw.first(source.query, f"NOT {is_integer_text(key)}", key)
        if bad is not None:
            _, file, row, value = bad
            raise InputError(
                f"{file}: column '{source.said[key]}' is {cut(value, 60)!r} in row {row}, but {key} is an integer in "
                f"{typed['BIGINT'].raw.where}; write both alike"
            )
    raise AssertionError("a text that is no integer was seen and not found again")


def _load_interactions(
    connection: duckdb.DuckDBPyConnection, recipe: DatasetRecipe, log: Source, types: Mapping[str, str]
) -> None:
    said = recipe.interactions
    time, refuse = load_times(log, said, key="interactions")
    labels = {f"label.{label}": _number(f"label.{label}", log) for label in said.labels}
    selected = ["row_id", *(f"CAST({key} AS {kind}) AS {key}" for key, kind in types.items()), f"{time} AS {TIMESTAMP}"]
    selected += [f"{sql} AS {quote(name)}" for name, sql in labels.items()]
    selected += [f"{_number(VALUE, log)} AS {VALUE}"] if said.value else []
    selected += [quote(name) for name in log.columns if name.startswith("raw.")]
    selected += ["CAST(split AS VARCHAR) AS split"] if recipe.split.column else []
    with log.raw.errors():
        connection.execute(f"CREATE TEMP TABLE interactions AS SELECT {', '.join(selected)} FROM ({log.query})")
    if not first_row(connection, "SELECT count(*) FROM interactions")[0]:
        raise InputError(f"{log.raw.where}: no rows; check the file and interactions.where")
    for key in (USER_ID, ITEM_ID):
        told = f"column '{log.said[key]}' is null in {{count}} rows, first row {{row}}; fill or filter them"
        log.check("interactions", f"{key} IS NULL", f"{key} IS NULL", key, told)
    if first_row(connection, f"SELECT count(*) FROM interactions WHERE {TIMESTAMP} IS NULL")[0]:
        raise refuse()
    for label, source in said.labels.items():
        name = quote(f"label.{label}")
        log.check(
            "interactions",
            f"coalesce({name} NOT IN (0, 1), true)",
            f"coalesce({labels[f'label.{label}']} NOT IN (0, 1), true)",
            f"label.{label}",
            f"label '{label}' = '{_escaped(cut(source))}' is not 0 or 1 in {{count}} rows, "
            "first row {row} ({value}); use an expression such as 'rating >= 4'",
        )
    if said.value:
        log.check(
            "interactions",
            f"NOT coalesce(isfinite({VALUE}), false)",
            f"NOT coalesce(isfinite({_number(VALUE, log)}), false)",
            VALUE,
            f"value '{_escaped(cut(said.value))}' is missing or not finite in {{count}} rows, "
            "first row {row} ({value})",
        )
    if recipe.split.column:
        told = (
            f"column '{_escaped(log.said['split'])}' is null in {{count}} rows, first row {{row}}; fill or filter them"
        )
        log.check("interactions", "split IS NULL", "split IS NULL", "split", told)


def _load_entities(
    connection: duckdb.DuckDBPyConnection, table: str, key: str, source: Source | None, kind: str
) -> None:
    """Without a file the table holds the ids of the log."""
    if source is None:
        connection.execute(f"CREATE TEMP TABLE {table} AS SELECT DISTINCT {key} FROM interactions")
        return
    selected = [f"CAST({key} AS {kind}) AS {key}", *(quote(name) for name in source.columns if name.startswith("raw."))]
    texts = [name for name in source.types if name.startswith("text.")]
    selected += [f"{_as_text(quote(name), source.types[name])} AS {quote(name)}" for name in texts]
    with source.raw.errors():
        connection.execute(f"CREATE TEMP TABLE {table} AS SELECT {', '.join(selected)} FROM ({source.query})")
    told = f"column '{_escaped(source.said[key])}' is null in {{count}} rows, first row {{row}}; fill or filter them"
    source.check(table, f"{key} IS NULL", f"{key} IS NULL", key, told)
    twice = f"SELECT {key} FROM {table} GROUP BY {key} HAVING count(*) > 1"
    count, example = first_row(connection, f"SELECT count(*), min({key}) FROM ({twice})")
    if count:
        raise InputError(
            f"{source.raw.where}: column '{source.said[key]}' holds {count} duplicate ids, first {example!r}; "
            "keep one row"
        )


def _refuse_texts(table: str, name: str, source: Source, where: str) -> None:
    """Refuses text that is not a number; it would otherwise count as missing."""
    if source.types[name] == "VARCHAR":
        is_text = f"TRY_CAST({quote(name)} AS DOUBLE) IS NULL AND trim({quote(name)}) <> ''"
        told = f"{_escaped(where)} is {{value}} in row {{row}}, expected a number ({{count}} such rows); leave it empty"
        source.check(table, is_text, is_text, name, told + " where there is none")


def _number(name: str, source: Source) -> str:
    """SQL of a label or value; true and false are 1 and 0, also when spelled in CSV."""
    text = quote(name)
    if not source.raw.is_text or source.types[name] != "VARCHAR":
        return f"TRY_CAST({text} AS DOUBLE)"
    return f"CASE lower({text}) WHEN 'true' THEN 1 WHEN 'false' THEN 0 ELSE TRY_CAST({text} AS DOUBLE) END"


def _as_text(sql: str, kind: str) -> str:
    if kind.endswith("[]"):
        return f"list_aggregate({sql}, 'string_agg', ', ')"
    return f"CAST({sql} AS VARCHAR)"


def _escaped(text: str) -> str:
    """Text with its braces escaped for str.format."""
    return text.replace("{", "{{").replace("}", "}}")
