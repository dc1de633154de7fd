"""Evaluates predictions on Spark, here in local mode on a generated log; on a cluster only `master` changes.

    pip install 'learn-rank[spark]'        # needs Java 17
    python examples/evaluate_on_spark.py [predictions=DIR_OR_FILE] [out=runs/spark_report]

predictions: Parquet with user_id, click, baseline, treatment and user_segment columns; without it, a small log is made.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import SparkSession

from learn_rank.evaluation import EvaluateOptions, write_report
from learn_rank.evaluation.report.write import format_table
from learn_rank.evaluation.spark import evaluate_on_spark


def generate(path: Path, rows: int = 50_000) -> None:
    """A log in which the treatment ranks better for cold-start users."""
    rng = np.random.default_rng(0)
    user = rng.integers(0, rows // 25, rows)
    is_cold = user % 3 == 0
    signal = rng.normal(size=rows)
    noise = rng.normal(size=(2, rows))
    pq.write_table(
        pa.table(
            {
                "user_id": user,
                "click": (rng.random(rows) < 1 / (1 + np.exp(2 - signal))).astype(np.int8),
                "baseline": (1 / (1 + np.exp(2 - 0.5 * signal - noise[0]))).astype(np.float32),
                "treatment": (1 / (1 + np.exp(2 - 0.5 * signal - np.where(is_cold, 0.6, 1) * noise[1]))).astype(
                    np.float32
                ),
                "user_segment": np.where(is_cold, "cold_start", "others").tolist(),
            }
        ),
        path,
    )


def main() -> None:
    settings = dict(argument.split("=", 1) for argument in sys.argv[1:])
    out = Path(settings.get("out", "runs/spark_report"))
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # workers need the same packages
    spark = SparkSession.builder.master("local[2]").config("spark.sql.shuffle.partitions", 8).getOrCreate()
    with tempfile.TemporaryDirectory() as folder:
        predictions = settings.get("predictions")
        if predictions is None:
            predictions = f"{folder}/log.parquet"
            generate(Path(predictions))
        report = evaluate_on_spark(
            spark.read.parquet(predictions),
            user_segments="user_segment",
            options=EvaluateOptions(label="click", baseline="baseline", treatment="treatment"),
        )
    spark.stop()
    write_report(report, out)
    print(format_table(report))
    print(f"report: {out / 'report.html'}")


if __name__ == "__main__":
    main()
