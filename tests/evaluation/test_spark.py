"""Spark's report is the local one."""

from __future__ import annotations

import os
import runpy
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_rank.errors import InputError
from learn_rank.evaluation.evaluate import evaluate
from learn_rank.evaluation.options import EvaluateOptions

pytest.importorskip("pyspark", reason="pyspark is not installed: pip install 'learn-rank[spark]'")
if shutil.which("java") is None:
    pytest.skip("Spark needs Java, which is not here", allow_module_level=True)

os.environ.setdefault("JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1")  # the best code is ready after the tests
OPTIONS = EvaluateOptions(label="click", baseline="baseline", treatment="learn", control="shuffled")


@pytest.fixture(scope="module")
def spark() -> Iterator[Any]:
    from pyspark.sql import SparkSession

    os.environ["PYSPARK_PYTHON"] = sys.executable
    builder = SparkSession.builder.master("local[2]").config("spark.sql.shuffle.partitions", 3)
    for key, value in (("spark.ui.enabled", "false"), ("spark.driver.host", "127.0.0.1")):
        builder = builder.config(key, value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("OFF")
    yield session
    session.stop()


def frame(spark: Any, table: pa.Table, path: Path) -> Any:
    pq.write_table(table, path)
    return spark.read.parquet(str(path))


def same(wanted: Any, actual: Any, where: str) -> None:
    if isinstance(wanted, dict):
        assert wanted.keys() == actual.keys(), where
        for key in wanted:
            same(wanted[key], actual[key], f"{where}.{key}")
    elif isinstance(wanted, list):
        assert len(wanted) == len(actual), where
        for position, (a, b) in enumerate(zip(wanted, actual, strict=True)):
            same(a, b, f"{where}[{position}]")
    elif isinstance(wanted, float):
        assert actual == pytest.approx(wanted, rel=1e-9, abs=1e-12), where
    else:
        assert wanted == actual, where


PARTS = ("overall", "segments", "cells", "control", "calibration", "distribution", "excluded", "segment_rules", "notes")


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The first one here: it starts Spark and stops it, and leaves a warm JVM to the tests below."""
    example = Path(__file__).parents[2] / "examples" / "evaluate_on_spark.py"
    monkeypatch.setattr(sys, "argv", [str(example), f"out={tmp_path / 'report'}"])
    runpy.run_path(str(example), run_name="__main__")
    assert "treatment lifts UAUC" in capsys.readouterr().out
    assert (tmp_path / "report" / "report.html").is_file()


def test_the_report_equals_the_local_one(spark: Any, generated: Any, tmp_path: Path) -> None:
    from learn_rank.evaluation.spark import evaluate_on_spark

    report = evaluate_on_spark(
        frame(spark, generated.predictions, tmp_path / "predictions.parquet"),
        user_segments=frame(spark, generated.user_counts, tmp_path / "users.parquet"),
        item_segments=frame(spark, generated.item_counts, tmp_path / "items.parquet"),
        options=OPTIONS,
        num_partitions=3,
    ).to_json()
    local = evaluate(
        generated.predictions,
        user_segments=generated.user_counts,
        item_segments=generated.item_counts,
        options=OPTIONS,
    ).to_json()
    for key in PARTS:
        same(local[key], report[key], key)


def test_string_ids_double_scores_and_a_segment_column_too(spark: Any, generated: Any, tmp_path: Path) -> None:
    from learn_rank.evaluation.spark import evaluate_on_spark

    table = generated.predictions
    users = [f"u{user}" for user in table["user_id"].to_pylist()]
    segments = ["even" if len(user) % 2 else "odd" for user in users]
    columns = {name: table[name].cast(pa.float64()) for name in ("baseline", "learn")}
    strings = pa.table({"user_id": users, "click": table["click"], "parity": segments, **columns})
    options = EvaluateOptions(label="click", baseline="baseline", treatment="learn", auc="histogram")
    report = evaluate_on_spark(
        frame(spark, strings, tmp_path / "strings.parquet"), user_segments="parity", options=options
    ).to_json()
    local = evaluate(strings, user_segments="parity", options=options).to_json()
    for key in PARTS:
        same(local[key], report[key], key)


def test_bad_input_is_one_line_here_too(spark: Any, generated: Any, tmp_path: Path) -> None:
    from learn_rank.evaluation.spark import evaluate_on_spark

    table = generated.predictions
    predictions = frame(spark, table, tmp_path / "predictions.parquet")
    bad = table.set_column(2, "click", pa.array([2] + [0] * (table.num_rows - 1)))
    with pytest.raises(InputError, match=r"column 'click', row .* is 2, expected a label of 0 or 1"):
        evaluate_on_spark(frame(spark, bad, tmp_path / "bad.parquet"), options=OPTIONS)
    with pytest.raises(InputError, match="no column 'clack'; did you mean 'click'"):
        evaluate_on_spark(predictions, options=EvaluateOptions(label="clack", baseline="baseline"))
    torn = table.append_column("segment", pa.array([str(row % 2) for row in range(table.num_rows)]))
    with pytest.raises(InputError, match="has several values of 'segment'; a user has one segment"):
        evaluate_on_spark(frame(spark, torn, tmp_path / "torn.parquet"), user_segments="segment", options=OPTIONS)
    twice = pa.concat_tables([generated.user_counts, generated.user_counts.slice(0, 1)])
    with pytest.raises(InputError, match="is there twice"):
        evaluate_on_spark(predictions, user_segments=frame(spark, twice, tmp_path / "twice.parquet"), options=OPTIONS)
