"""A DuckDB query -> a Parquet file in the stage's schema, streamed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from learn_rank.data.dense import DenseFeature
from learn_rank.schema import DENSE_PREFIX


def write_query(
    connection: duckdb.DuckDBPyConnection,
    query: str,
    path: Path,
    schema: pa.Schema,
    row_group_rows: int,
    dense: Sequence[DenseFeature] = (),
    *,
    compression: str = "snappy",
) -> None:
    """Streams a query into a Parquet file of exactly this schema; dense columns are transformed on the way."""
    reader = connection.sql(query).to_arrow_reader(row_group_rows)
    with pq.ParquetWriter(path, schema, compression=compression, write_page_checksum=True) as writer:
        for batch in reader:
            for feature in dense:
                name = DENSE_PREFIX + feature.name
                raw = batch[name].to_numpy(zero_copy_only=False)  # null becomes NaN
                place = batch.schema.get_field_index(name)
                batch = batch.set_column(place, name, pa.array(feature.apply(raw)))
            writer.write_table(pa.Table.from_batches([batch]).cast(schema), row_group_size=row_group_rows)
