"""How an evaluation runs - threads, partitions, memory or disk, files or arrays - changes nothing of what it finds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from learn_rank.errors import InputError
from learn_rank.evaluation import EvaluateOptions, evaluate
from learn_rank.evaluation.engine import local, partitions, plan
from learn_rank.evaluation.engine.layout import Layout
from learn_rank.evaluation.engine.local import run
from learn_rank.evaluation.engine.plan import make_plan
from learn_rank.evaluation.input.inputs import open_inputs
from learn_rank.evaluation.input.part import Part

IN_MEMORY = ("engine", "inputs", "options")  # of a report: how it was made, not what was found


def _options(**changed):
    defaults = {"value": "price", "value_top": [1, 3], "bootstrap_samples": 50, "threads": 2}
    return EvaluateOptions(["click", "buy|click"], "baseline", "learn", **(defaults | changed))


@pytest.fixture(scope="module")
def log(generated) -> pa.Table:
    """The generated log with a second label, revenue and segment columns."""
    table, rng = generated.predictions, np.random.default_rng(0)
    num_rows = table.num_rows
    buy = table["click"].to_numpy() * (rng.random(num_rows) < 0.4)
    kinds = np.array(["cold_start", "long_tail", "others"])
    return (
        table.append_column("buy", pa.array(buy))
        .append_column("price", pa.array(buy * rng.integers(1, 50, num_rows)))
        .append_column("user_kind", pa.array(kinds[table["user_id"].to_numpy() % 3]))
        .append_column("item_kind", pa.array(kinds[table["item_id"].to_numpy() % 2]))
    )


def _found(predictions, **changed):
    report = evaluate(
        predictions, user_segments="user_kind", item_segments="item_kind", options=_options(**changed)
    ).to_json()
    return {name: value for name, value in report.items() if name not in IN_MEMORY}


@pytest.fixture(scope="module")
def expected(log):
    return _found(log)


def _assert_same(actual, expected, where="report"):
    """Equal structures; floats up to rounding: sums are added in another order."""
    assert type(actual) is type(expected), where
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys(), where
        for key in expected:
            _assert_same(actual[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(actual) == len(expected), where
        for i, (a, b) in enumerate(zip(actual, expected, strict=True)):
            _assert_same(a, b, f"{where}[{i}]")
    elif isinstance(expected, float):
        assert actual == pytest.approx(expected, rel=1e-12, abs=1e-11 if "pp" in where else 1e-12), where
    else:
        assert actual == expected, where


# ---- laws ----------------------------------------------------------------------------------------------------------


def test_the_order_of_rows_does_not_matter(log, expected):
    shuffle = np.random.default_rng(9).permutation(log.num_rows)
    _assert_same(_found(log.take(shuffle)), expected)
    _assert_same(_found(log.sort_by("learn")), expected)


@pytest.mark.parametrize("threads", [1, 3, 7])
def test_the_number_of_threads_does_not_matter(log, expected, threads):
    _assert_same(_found(log, threads=threads), expected)


def test_the_number_of_partitions_ranges_and_batches_does_not_matter(log, expected, monkeypatch):
    monkeypatch.setattr(plan, "_PARTITION_ROWS", 16)  # 2^11 partitions
    monkeypatch.setattr(plan, "_SCORE_RANGE_ROWS", 100)
    monkeypatch.setattr(plan, "_MIN_BATCH", 1000)
    monkeypatch.setattr(plan, "_MAX_BATCH", 1000)
    inputs = open_inputs(log, user_segments="user_kind", item_segments="item_kind", options=_options())
    made = make_plan(inputs, Layout.of_inputs(inputs))
    assert made.bits >= 10
    assert made.num_score_ranges > 100
    assert len(inputs.predictions.units(made.batch_rows)) > 10
    _assert_same(_found(log), expected)


def test_the_same_run_gives_the_same_bits_whichever_thread_was_first(log, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "_MIN_BATCH", 500)
    monkeypatch.setattr(plan, "_MAX_BATCH", 500)
    pq.write_table(log, tmp_path / "log.parquet", row_group_size=400)
    first, *others = (json.dumps(_found(tmp_path / "log.parquet", threads=4)) for _ in range(5))
    assert others == [first] * 4


def _spill(monkeypatch):
    """Makes 1 MiB the memory that a run may use."""
    monkeypatch.setattr(plan, "_LEAST_BYTES", 1)
    monkeypatch.setattr(Layout, "state_bytes", 0)
    monkeypatch.setattr(plan, "_MIN_BATCH", 1000)
    monkeypatch.setattr(plan, "_MAX_BATCH", 2000)


@pytest.mark.parametrize("auc", ["exact", "histogram", "off"])
def test_memory_and_disk_give_the_same_report(log, expected, auc, tmp_path, monkeypatch):
    in_memory = expected if auc == "exact" else _found(log, auc=auc)
    _spill(monkeypatch)
    options = _options(auc=auc, memory_limit="1MiB", spill_dir=str(tmp_path))
    report = evaluate(log, user_segments="user_kind", item_segments="item_kind", options=options).to_json()
    layout = Layout.of_inputs(open_inputs(log, user_segments="user_kind", item_segments="item_kind", options=options))
    score_bytes = 2 * 4 * layout.score_words if auc == "exact" else 0
    assert report["engine"]["spill_bytes"] == log.num_rows * (4 * layout.row_words + score_bytes)
    _assert_same({name: report[name] for name in in_memory}, in_memory)
    assert list(tmp_path.iterdir()) == []


def test_segments_of_files_are_spilled_and_found_too(log, generated, tmp_path, monkeypatch):
    segments = {"user_segments": generated.user_counts, "item_segments": generated.item_counts}
    in_memory = evaluate(log, **segments, options=_options()).to_json()
    _spill(monkeypatch)
    spilled = evaluate(log, **segments, options=_options(memory_limit="1MiB", spill_dir=str(tmp_path))).to_json()
    assert spilled["engine"]["spill_bytes"] > in_memory["engine"]["spill_bytes"] == 0
    for name in in_memory.keys() - set(IN_MEMORY):
        _assert_same(spilled[name], in_memory[name], name)


def test_a_folder_of_many_small_row_groups_gives_the_same_report(log, expected, tmp_path):
    for number, at in enumerate(range(0, log.num_rows, 5000)):
        pq.write_table(log.slice(at, 5000), tmp_path / f"{number:03d}.parquet", row_group_size=300)
    _assert_same(_found(tmp_path), expected)
    one_file = tmp_path / "000.parquet"
    pq.write_table(log, one_file)
    _assert_same(_found(one_file), expected)


def test_a_mapping_of_arrays_gives_the_same_report(log, expected):
    _assert_same(_found({name: log[name].to_numpy() for name in log.column_names}), expected)


def test_text_and_dictionaries_give_the_same_report_as_numbers(log, expected):
    def changed(make, *columns):
        table = log
        for name in columns:
            table = table.set_column(table.column_names.index(name), name, make(table[name]))
        return table

    encoded = changed(lambda column: column.dictionary_encode(), "user_id", "user_kind", "item_kind")
    _assert_same(_found(encoded), expected)
    # another hash puts users into other buckets of the bootstrap, and nothing else changes
    for kind in (pa.string(), pa.large_string()):
        text = changed(lambda column, kind=kind: column.cast(kind), "user_id")
        report = _found(text)
        overall, expected_overall = report["overall"], expected["overall"]
        for name in ("uauc", "wuauc", "auc"):
            metric = {key: value for key, value in expected_overall[name].items() if not key.startswith("bootstrap")}
            _assert_same({key: overall[name][key] for key in metric}, metric)


def test_parts_see_each_user_once(log):
    inputs = open_inputs(log, user_segments=None, item_segments=None, options=_options(auc="off"))
    num_rows, num_users, sketches = 0, 0, []
    for number in range(4):
        state, _ = run(replace(inputs, part=Part(number, 4)))
        num_rows += state.num_rows
        num_users += int(state.users_per_segment.sum())
        sketches.append(set(state.user_sketch.tolist()))
    users = len(set(log["user_id"].to_pylist()))
    assert (num_rows, num_users, len(set().union(*sketches))) == (log.num_rows, users, users)


# ---- what happens to failures --------------------------------------------------------------------------------------


def _open_files(folder):
    names = []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            names.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        except OSError:  # the listing's own
            continue
    return [name for name in names if name.startswith(str(folder))]


def test_after_a_failure_nothing_of_the_spill_is_left(log, tmp_path, monkeypatch):
    _spill(monkeypatch)
    scores = log["learn"].to_numpy().copy()
    scores[-3] = np.nan
    spilled = []
    append = partitions.Partitions.append

    def noted(self, *args, **options):
        append(self, *args, **options)
        spilled.append(self.spill_bytes)

    monkeypatch.setattr(partitions.Partitions, "append", noted)
    bad = log.set_column(log.column_names.index("learn"), "learn", pa.array(scores))
    with pytest.raises(InputError, match=f"column 'learn', row {log.num_rows - 3} is NaN"):
        _found(bad, memory_limit="1MiB", spill_dir=str(tmp_path), threads=1)
    assert max(spilled) > 0
    assert list(tmp_path.iterdir()) == []
    assert _open_files(tmp_path) == []


_KILLED = """
import signal, sys
from pathlib import Path
import numpy as np
from learn_rank.evaluation import EvaluateOptions, evaluate
from learn_rank.evaluation.engine import local, plan
plan._LEAST_BYTES, plan._MIN_BATCH, plan._MAX_BATCH = 1, 1000, 1000
def paused(*args):
    print("spilled", flush=True)
    signal.pause()
local._tally = paused
rng = np.random.default_rng(0)
log = {"user_id": rng.integers(0, 999, 99999), "click": rng.random(99999) < 0.5, "a": rng.random(99999)}
evaluate(log, options=EvaluateOptions("click", "a", memory_limit="1MiB", spill_dir=sys.argv[1]))
"""


def test_a_killed_process_leaves_no_spill_file(tmp_path):
    with subprocess.Popen([sys.executable, "-c", _KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "spilled"
        descriptors = Path(f"/proc/{process.pid}/fd").iterdir()
        open_files = [(str(file.readlink()), file.stat().st_size) for file in descriptors]
        spilled = [(name, size) for name, size in open_files if name.startswith(str(tmp_path))]
        assert all(name.endswith("(deleted)") for name, _ in spilled)
        assert max(size for _, size in spilled) == 99_999 * 16  # a key of 8 bytes and a float64 for each row
        assert list(tmp_path.iterdir()) == []  # the file has no name while it is in use
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


def test_a_disk_too_small_is_refused_before_anything_is_read(log, tmp_path, monkeypatch):
    _spill(monkeypatch)
    full = partitions.shutil._ntuple_diskusage(10**12, 10**12 - 10**6, 10**6)
    monkeypatch.setattr(partitions.shutil, "disk_usage", lambda _: full)
    monkeypatch.setattr(local, "_read", None)
    with pytest.raises(InputError, match=r"sorting [\d,]+ rows by user needs .* raise memory_limit"):
        _found(log, memory_limit="1MiB", spill_dir=str(tmp_path))


def test_a_spill_folder_that_is_not_there_is_refused_only_if_it_is_needed(log, expected, tmp_path, monkeypatch):
    _assert_same(_found(log, spill_dir=str(tmp_path / "absent")), expected)
    _spill(monkeypatch)
    with pytest.raises(InputError, match=r"spill_dir=.*absent: no such folder; make it or choose another"):
        _found(log, memory_limit="1MiB", spill_dir=str(tmp_path / "absent"))


def test_a_memory_limit_below_what_the_sums_take_is_refused_with_one_that_would_do(log, tmp_path):
    path = tmp_path / "log.parquet"
    pq.write_table(log, path)
    with pytest.raises(InputError, match=r"memory_limit=64MiB: the map of .* set at least (\d+)MiB$") as e:
        _found(path, memory_limit="64MiB")
    enough = str(e.value).rsplit(" ", 1)[1]
    assert _found(path, memory_limit=enough)["overall"]["num_rows"] == log.num_rows


def test_a_user_of_more_rows_than_memory_holds_is_refused(log, tmp_path, monkeypatch):
    _spill(monkeypatch)
    one_user = log.set_column(0, "user_id", pa.array(np.zeros(log.num_rows, np.int64)))
    at = one_user.column_names.index("user_kind")
    one_user = one_user.set_column(at, "user_kind", pa.array(["others"] * log.num_rows))
    with pytest.raises(InputError, match=r"memory_limit=1MiB: a user has up to [\d,]+ rows, .* leave that user out"):
        _found(one_user, memory_limit="1MiB", spill_dir=str(tmp_path))
