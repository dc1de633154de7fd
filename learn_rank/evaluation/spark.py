"""The same evaluation on a Spark cluster; the report is that of one machine but for rounding."""

from __future__ import annotations

from pyspark.sql import DataFrame

from learn_rank.evaluation.engine.spark import run_on_spark
from learn_rank.evaluation.evaluate import segment_rules
from learn_rank.evaluation.input.spark import open_spark_inputs
from learn_rank.evaluation.options import EvaluateOptions
from learn_rank.evaluation.report.build import make_report
from learn_rank.evaluation.report.report import Report


def evaluate_on_spark(
    predictions: DataFrame,
    *,
    user_segments: DataFrame | str | None = None,
    item_segments: DataFrame | str | None = None,
    options: EvaluateOptions,
    num_partitions: int | None = None,
    facts: dict[str, object] | None = None,
) -> Report:
    """The report of a Spark DataFrame, as `learn_rank.evaluation.evaluate` makes it of files and tables.

    user_segments, item_segments: a DataFrame with the id and `segment`, or `num_interactions` (cut by options.segments;
    proportions are not supported here); or the name of a column of the predictions. num_partitions: of the shuffle by
    user, Spark's default if None; a partition of a million rows takes about 200 MB of a worker. InputError as there.
    """
    opened = open_spark_inputs(predictions, user_segments=user_segments, item_segments=item_segments, options=options)
    state, run_facts = run_on_spark(opened, num_partitions=num_partitions)
    return make_report(
        state,
        options,
        rules=segment_rules(opened.inputs.users, opened.inputs.items, state),
        sources={"predictions": "a Spark DataFrame", "user_segments": None, "item_segments": None},
        facts=facts,
        engine=run_facts,
    )
