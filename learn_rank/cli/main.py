"""`learn-rank <command> [key=value ...]`: parses, dispatches, and turns what the user can fix into one line."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout, suppress
from importlib import import_module
from typing import NamedTuple, NoReturn, TextIO, cast

from learn_rank import __version__
from learn_rank.cli.streams import BROKEN_PIPE_STATUS, Printable, discard, open_streams, reader_is_gone
from learn_rank.errors import InputError
from learn_rank.printable import printable


class _Command(NamedTuple):
    summary: str
    reads: str
    writes: str
    example: str
    sections: tuple[str, ...] = ()  # options shown by --help; of a config of its own, all are
    config: str = "run"
    function: str = ""  # in `cli`; by default the command's name, in stages


_RUN = "dataset=movietweetings dataset.root=DIR run_dir=runs/mt"
_COMMANDS = {
    "demo": _Command(
        "generate a log with a planted content signal and run everything on it",
        "nothing",
        "RUN/raw and all that `pipeline` writes",
        "learn-rank demo run_dir=runs/demo",
        ("demo", "arms"),
        config="demo",
        function="pipeline.demo",
    ),
    "pipeline": _Command(
        "run all stages below in order; what is already there and unchanged is skipped",
        "a dataset recipe and its files",
        "all that the stages write; the report is RUN/evaluate/report.html",
        f"learn-rank pipeline {_RUN}",
        (
            "dataset",
            "arms",
            "prepare",
            "encoder",
            "prompt",
            "align",
            "export",
            "ranker",
            "frozen",
            "accept_stores",
            "evaluate",
        ),
        function="pipeline.pipeline",
    ),
    "prepare": _Command(
        "check a raw log, split it by time, turn features into table rows",
        "a dataset recipe; the log, items and users (Parquet or CSV)",
        "RUN/prepare: interactions/{train,validation,test}.parquet, items.parquet, counts, vocabularies, features.json",
        f"learn-rank prepare {_RUN}",
        ("dataset", "prepare"),
    ),
    "extract": _Command(
        "encode item texts with a frozen model (CEX)",
        "RUN/prepare",
        "RUN/extract: the content store",
        "learn-rank extract run_dir=runs/mt encoder=minilm",
        ("encoder", "prompt"),
    ),
    "align": _Command(
        "train the user and item towers (PAL) and measure what they retrieve; also under torchrun",
        "RUN/prepare, RUN/extract; with a dataset, or without RUN/extract, what is missing is made first",
        "RUN/align: tower weights, metrics.json, TensorBoard scalars",
        "learn-rank align dataset=amazon_scientific dataset.root=DIR run_dir=runs/scientific",
        ("dataset", "encoder", "prompt", "align"),
        function="alignment.align",
    ),
    "export": _Command(
        "write user snapshots and item vectors",
        "RUN/prepare, RUN/extract, RUN/align",
        "RUN/export: item, user (and user_without_fold_K) stores of 64-d vectors",
        "learn-rank export run_dir=runs/mt export.snapshot_seconds=3600",
        ("export",),
        function="alignment.export",
    ),
    "ablate": _Command(
        "train variants of LEARN, each with several seeds: the paper's tables with this log's beside",
        "RUN/prepare, RUN/extract; like align, makes first what is not there",
        "RUN/ablate/report.{md,json}; RUN/ablate/VARIANT/seed-N: a run directory per variant and seed",
        "learn-rank ablate run_dir=runs/mt align=small ablate.seeds=[0,1,2] ablate.paper=industry",
        ("ablate", "dataset", "encoder", "prompt", "align", "export", "ranker"),
        function="ablation.ablate",
    ),
    "train": _Command(
        "train the rankers: baseline, learn, shuffled; also under torchrun",
        "RUN/prepare, RUN/export",
        "RUN/train/<arm>: checkpoints, TensorBoard scalars",
        "learn-rank train run_dir=runs/mt arms=[baseline,learn] ranker=dlrm",
        ("arms", "ranker", "frozen", "accept_stores"),
    ),
    "find-learning-rate": _Command(
        "raise the ranker's learning rates from step to step and say which suit it; also under torchrun",
        "RUN/prepare; RUN/export if the first of arms is not the baseline",
        "RUN/find-learning-rate: lr.json, lr.html",
        "learn-rank find-learning-rate run_dir=runs/mt ranker.training.batch_size=8192",
        ("find", "arms", "ranker", "frozen"),
        function="learning_rate.find_learning_rate",
    ),
    "predict": _Command(
        "score the validation and test rows with every ranker",
        "RUN/prepare, RUN/export, RUN/train",
        "RUN/predict/{validation,test}.parquet: ids, labels, one probability per ranker and task",
        "learn-rank predict run_dir=runs/mt",
        ("arms", "frozen", "accept_stores"),
    ),
    "export-features": _Command(
        "write [user, item, fusion] as columns of a log, for rankers that cannot call Python",
        "RUN/prepare, RUN/export, RUN/train; a log, or RUN/prepare's own",
        "OUT: the log's rows with learn_user, learn_item, learn_fusion beside their columns",
        "learn-rank export-features run_dir=runs/mt log=impressions/ user_id=uid timestamp=shown_at out=wide",
        config="export_features",
        function="features.export_features",
    ),
    "export-model": _Command(
        "write a ranker as a folder that a service scores with by ids: learn_rank.serving.Scorer",
        "RUN/prepare, RUN/export, RUN/train",
        "OUT: scorer.pt2 (and scorer.onnx), tables and stores as memory-mapped files",
        "learn-rank export-model run_dir=runs/mt arm=learn out=models/mt",
        config="export_model",
        function="model.export_model",
    ),
    "evaluate": _Command(
        "compare rankers by user and item segment, with intervals; or the arms of an A/B test",
        "predictions of any models, with segments; or, with run_dir, RUN/predict and RUN/prepare",
        "report.json, report.md, report.html; or, with state=, sums for evaluate-merge",
        "learn-rank evaluate predictions=scores.parquet label=click baseline=old treatment=new "
        "user_segments=segments/user_segments.parquet item_segments=segments/item_segments.parquet out=report",
        config="evaluate",
        function="evaluations.evaluate_files",
    ),
    "evaluate-merge": _Command(
        "add the states of several machines into one report",
        "state folders that `evaluate state=DIR part=K/N` wrote, one per part",
        "report.json, report.md, report.html",
        "learn-rank evaluate-merge states=[part0,part1] out=report",
        config="merge",
        function="evaluations.merge",
    ),
    "segment": _Command(
        "count a training log: which users and items are cold-start, long-tail, others",
        "a training log, Parquet or CSV",
        "OUT/user_segments.parquet, OUT/item_segments.parquet: id, num_interactions, segment",
        "learn-rank segment log=train.parquet out=segments",
        config="segment",
        function="evaluations.segment",
    ),
    "store build": _Command(
        "compile vectors by id into a frozen store",
        "Parquet: an integer or string id and a list of float16, float32 or float64; maybe a snapshot time",
        "OUT: rows in key order, keys, checksums, manifest.json",
        "learn-rank store build input=vectors/ key=item_id vector=embedding out=stores/item",
        config="store_build",
        function="stores.build",
    ),
    "store info": _Command(
        "say what a store holds, version by version",
        "a store",
        "nothing",
        "learn-rank store info store=stores/item",
        config="store",
        function="stores.info",
    ),
    "store verify": _Command(
        "read every byte of a store and compare it with its checksum",
        "a store",
        "nothing; exit status 2 if a byte is not what was written",
        "learn-rank store verify store=stores/item",
        config="store",
        function="stores.verify",
    ),
    "store refresh": _Command(
        "make and use a new version from a delta: changed, added and removed ids",
        "a store; Parquet of ids and vectors, null for a removed id",
        "STORE/vN beside the versions there are",
        "learn-rank store refresh store=stores/item input=delta.parquet key=item_id vector=embedding",
        config="store_refresh",
        function="stores.refresh",
    ),
    "store use": _Command(
        "go back to another version",
        "a store",
        "STORE/current",
        "learn-rank store use store=stores/item version=v1",
        config="store_version",
        function="stores.use",
    ),
    "store drop": _Command(
        "remove a version that is not in use",
        "a store",
        "nothing",
        "learn-rank store drop store=stores/item version=v1",
        config="store_version",
        function="stores.drop",
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command and exits: 0 done, 2 something the user can fix, 130 interrupted, 141 nobody reads the output;
    a bug shows its traceback."""
    open_streams()
    try:
        with redirect_stdout(cast(TextIO, Printable(sys.stdout))):
            _dispatch(list(sys.argv[1:] if arguments is None else arguments))
            sys.stdout.flush()
    except InputError as error:
        _fail(str(error))
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing not in _EXTRAS:
            raise
        _fail(f"this command needs {error.name}; pip install 'learn-rank[{_EXTRAS[missing]}]'")
    except OSError as error:
        if isinstance(error, BrokenPipeError) and reader_is_gone():
            discard()
            sys.exit(BROKEN_PIPE_STATUS)
        _fail(_explain(error))
    except KeyboardInterrupt:
        _say("interrupted; run the same command again to go on")
        sys.exit(130)


def _dispatch(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return
    if words[0] == "--version":
        print(f"learn-rank {__version__}")
        return
    if words[0] == "store" and (len(words) == 1 or words[1] in ("-h", "--help")):
        print(_overview("store "))
        return
    size = 2 if words[0] == "store" else 1
    command = _find(" ".join(words[:size]))
    if any(word in ("-h", "--help") for word in words[size:]):
        print(_help(command))
        return
    for word in words[size:]:
        if not word.isascii() and word != os.fsencode(word).decode("utf-8", "replace"):
            raise InputError(f"'{word}' is not UTF-8 text; rename it, or where the locale is at fault set PYTHONUTF8=1")
    _run(command, words[size:])


_EXTRAS = {
    "torch": "cpu", "torchrec": "cpu", "fbgemm_gpu": "cpu", "tensorboard": "cpu", "transformers": "hf",
    "peft": "hf", "accelerate": "hf", "mlflow": "trackers", "wandb": "trackers",
}  # fmt: skip


_LONGEST_LINE = 1200
_FREE, _ELSEWHERE = "free some space (or inodes)", "give yourself the right or choose another folder"
_REMEDIES = {
    errno.ENOSPC: _FREE, errno.EDQUOT: _FREE, errno.EACCES: _ELSEWHERE, errno.EPERM: _ELSEWHERE,
    errno.EROFS: "choose another folder", errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOTDIR: "choose a folder where no file stands in the way", errno.EEXIST: "choose another name",
    errno.EISDIR: "name a file", errno.ELOOP: "mend the symbolic links", errno.EBUSY: "see who uses it",
    errno.EMFILE: "raise ulimit -n", errno.ENFILE: "close some files",
}  # fmt: skip


def _run(command: str, overrides: Sequence[str]) -> None:
    # waiting OpenMP threads that spin cost a busy machine up to 20x; read when torch starts its threads
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from learn_rank.cli.load import load

    config, function = _COMMANDS[command].config, _COMMANDS[command].function or f"stages.{command}"
    if command == "evaluate" and any(word.startswith("run_dir=") for word in overrides):
        config, function = "run", "stages.evaluate_run"
    module, _, name = function.partition(".")
    getattr(import_module(f"learn_rank.cli.{module}"), name)(load(config, overrides))


def _find(word: str) -> str:
    if word in _COMMANDS:
        return word
    from difflib import get_close_matches

    near = get_close_matches(word, _COMMANDS, n=1)
    raise InputError(f"no command '{word}'" + (f"; did you mean '{near[0]}'?" if near else "; see learn-rank --help"))


def _overview(prefix: str = "") -> str:
    lines = ["usage: learn-rank <command> [key=value ...]", ""]
    lines += [f"  {name:<18} {command.summary}" for name, command in _COMMANDS.items() if name.startswith(prefix)]
    lines += ["", "learn-rank <command> --help says what a command reads, writes and takes. RUN is run_dir."]
    return "\n".join(lines)


def _help(name: str) -> str:
    from learn_rank.cli.help import options_of

    command = _COMMANDS[name]
    lines = [
        f"learn-rank {name}: {command.summary}",
        "",
        f"reads    {command.reads}",
        f"writes   {command.writes}",
        f"example  {command.example}",
        "",
        "options",
        *options_of(command.config, command.sections),
    ]
    return "\n".join(lines)


def _explain(error: OSError) -> str:
    """What the operating system would not do, and where; what to do about it."""
    where = " -> ".join(
        os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)
    )
    said = error.strerror or str(error) or type(error).__name__
    remedy = _REMEDIES.get(error.errno or 0, "")
    where = where or ("the working folder" if error.errno == errno.ENOENT else "reading or writing")
    return f"{where}: {said}" + (f"; {remedy}, then run again" if remedy else "")


def _fail(message: str) -> NoReturn:
    _say(f"error: {message}")
    sys.exit(2)


def _say(message: str) -> None:
    """One line on stderr, if it can be told at all; of a very long one the beginning and the end."""
    line = printable(message)
    if len(line) > _LONGEST_LINE:
        line = f"{line[: _LONGEST_LINE * 2 // 3]} ... {line[-_LONGEST_LINE // 3 :]}"
    with suppress(OSError, ValueError):
        print(f"learn-rank: {line}", file=sys.stderr, flush=True)
    discard()
