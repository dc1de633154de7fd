"""Rows to sums of fixed size, out of core, on one machine, on several or on a Spark cluster."""
