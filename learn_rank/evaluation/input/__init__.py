"""What is evaluated: predictions as checked, typed batches, and the segments of their users and items.

Where to read first: `inputs.open_inputs` finds and checks everything, `decode.BatchDecoder` turns what is read into a
`DecodedBatch` (hashed user ids, label bits, scores, segment codes, revenue). The engine takes it from there; the line
that computes UAUC is in engine/user_metrics.py, in `measure_users`.

    predictions       predictions (files and tables, read in batches), array_table, columns (checks), column_scans
    segments          entity_segments (which file or column?), segments with segment_files and cuts, count_segments
    of items          item_lookup, id_map (hash -> code)
    of some users     part
    on Spark          spark
"""
