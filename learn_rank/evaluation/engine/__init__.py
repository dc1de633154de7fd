"""Rows to sums of fixed size, out of core: on one machine, on several or on a Spark cluster.

Where to read first: `local.run`, one evaluation from start to end. UAUC is computed in `user_metrics.measure_users`:
`values[m] = wins2[m, s] / (2.0 * positives * negatives)` is a user's AUC, and `_add(moments, buckets, UAUC, ...)` adds
it to the sums from which statistics.compare_means takes the mean over users.

    rows        packed_rows (a row in bits) -> partitions (in memory or on disk) -> user_partition (grouping: its loops)
    sums        layout (the axes), sums (the state), partition_sums (what one partition of users adds)
    metrics     user_metrics (UAUC, WUAUC, log loss, revenue), auc_variance (of the AUC over all rows)
    AUC of all  score_bins (tallies) -> score_ranges -> sorted_scores (the walk) -> overall_auc; radix sorts
    runs        plan, threads, local; spark with spark_transport; state_folder and merge_states for several machines
    checks      segment_coverage (are these the segments of this log?), sum_checks (is this a whole state?)
"""
