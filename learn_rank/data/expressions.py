"""Checks that an entry of a recipe is one SQL expression over a row, and finds its columns."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import duckdb

from learn_rank.errors import InputError, cut

_REFUSED = {
    "SUBQUERY": "a query of its own",
    "WINDOW": "a window function",
    "STAR": "a * of columns",
    "PARAMETER": "a parameter",
    "DEFAULT": "DEFAULT",
    "POSITIONAL_REFERENCE": "a position",
}
# their value depends on the machine or the connection, not on the row, or they change what the next row gets
_REFUSED_FUNCTIONS = {
    "current_setting",
    "current_query",
    "current_database",
    "current_schema",
    "current_schemas",
    "getenv",
    "getvariable",
    "nextval",
    "currval",
    "setval",
    "setseed",
    "sleep_ms",
    "version",
    "write_log",
}
_MANY_ROWS = {"unnest", "unlist", "generate_subscripts"}
_TEXT_FUNCTIONS = {"||", "concat", "concat_ws", "lower", "upper", "trim", "ltrim", "rtrim", "replace"}


@dataclass(frozen=True)
class Expression:
    """The checked text of one expression; columns: the names in it, without parameters of lambdas."""

    source: str
    columns: tuple[str, ...]
    is_textual: bool  # only concatenates or trims text, without comparisons or arithmetic

    @property
    def sql(self) -> str:
        return f"(\n{self.source}\n)"  # the line end limits a comment at the end


def parse_expression(connection: duckdb.DuckDBPyConnection, source: str, *, where: str) -> Expression:
    """Parses an entry with DuckDB's own parser, without running it.

    InputError: several expressions or statements, unbalanced parentheses, queries, windows, aggregates, functions that
    read settings of the machine.
    """
    try:
        alone = _parse(connection, f"SELECT \n{source}\n", source, where)
        inside = _parse(connection, f"SELECT (\n{source}\n)", source, where)
        if _without_places(alone) != _without_places(inside):
            raise InputError(f"{where} = '{cut(source)}' is more than one SQL expression; give one, without statements")
        nodes = list(_nodes(inside))
    except RecursionError:
        raise InputError(f"{where} = '{cut(source)}' is nested too deeply; write it more simply")
    many_rows = _MANY_ROWS | _aggregates(connection)
    for node in nodes:
        name = str(node.get("function_name", "")).lower()
        refused = _REFUSED.get(node["class"])
        if name in _REFUSED_FUNCTIONS:
            refused = f"the function {name}, which is not about the row"
        elif name in many_rows or node["type"] == "GROUPING_FUNCTION":
            refused = f"the function {name or 'grouping'}, which is about many rows"
        if refused:
            raise InputError(f"{where} = '{cut(source)}' has {refused}; an expression is about the columns of one row")
    parameters = {name for node in nodes if node["class"] == "LAMBDA" for name in _parameters(node)}
    references = [node["column_names"][0] for node in nodes if node["class"] == "COLUMN_REF"]
    columns = dict.fromkeys(name for name in references if name not in parameters)
    return Expression(source, tuple(columns), all(map(_is_textual, nodes)))


def _parse(connection: duckdb.DuckDBPyConnection, query: str, source: str, where: str) -> Mapping[str, Any]:
    """The parsed expression that the query selects."""
    parsed = json.loads(connection.execute("SELECT json_serialize_sql(?)", [query]).fetchall()[0][0])
    if parsed["error"]:
        raise InputError(f"{where} = '{cut(source)}' is no SQL expression: {cut(parsed['error_message'])}")
    node = parsed["statements"][0]["node"]
    selected: list[Mapping[str, Any]] = node.get("select_list", [])
    if len(parsed["statements"]) != 1 or len(selected) != 1:
        raise InputError(f"{where} = '{cut(source)}' is more than one SQL expression; give one, without statements")
    return selected[0]


def _nodes(tree: Any) -> Iterator[Mapping[str, Any]]:
    """All parts of a parsed expression that are expressions, itself included."""
    if isinstance(tree, Mapping):
        if "class" in tree:
            yield tree
        for part in tree.values():
            yield from _nodes(part)
    elif isinstance(tree, list):
        for part in tree:
            yield from _nodes(part)


def _without_places(tree: Any) -> Any:
    """The tree without the positions of its parts in the text."""
    if isinstance(tree, Mapping):
        return {key: _without_places(part) for key, part in tree.items() if not key.startswith("query_location")}
    return [_without_places(part) for part in tree] if isinstance(tree, list) else tree


def _parameters(node: Mapping[str, Any]) -> Iterator[str]:
    for part in _nodes(node["lhs"]):
        yield from part.get("column_names", [])


def _is_textual(node: Mapping[str, Any]) -> bool:
    if node["class"] == "FUNCTION":
        return node["function_name"].lower() in _TEXT_FUNCTIONS
    if node["class"] == "CONSTANT":
        return node.get("literal", {}).get("kind") in ("STRING", "NULL_LITERAL")
    return node["class"] == "COLUMN_REF" or node["type"] == "OPERATOR_COALESCE"


def _aggregates(connection: duckdb.DuckDBPyConnection) -> set[str]:
    aggregates = "SELECT DISTINCT function_name FROM duckdb_functions() WHERE function_type = 'aggregate'"
    return {name for (name,) in connection.execute(aggregates).fetchall()}
