"""Evaluation of what any models predicted, away from a run: files in, a report or a state out."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path

from learn_rank.artifact import Manifest
from learn_rank.cli.config import EvaluateConfig, MergeConfig, SegmentConfig, part_of, require
from learn_rank.errors import InputError
from learn_rank.evaluation.options import EvaluateOptions, SegmentOptions
from learn_rank.memory import parse_bytes
from learn_rank.publish import check_target, publish

_SCRATCH = "scratch"  # in the work folder, which the next run clears if this one is killed


def evaluate_files(config: EvaluateConfig) -> None:
    """Predictions that any models made -> report, or a state of some of the users; an A/B log -> its report."""
    require(config, "evaluate", "predictions", *(() if config.state else ("out",)))
    if config.variant:
        _experiment(config)
        return
    from learn_rank.evaluation.engine.local import run
    from learn_rank.evaluation.engine.state_folder import STAGE, save_state
    from learn_rank.evaluation.evaluate import fingerprints, segment_rules
    from learn_rank.evaluation.input.inputs import open_inputs
    from learn_rank.evaluation.input.part import Part
    from learn_rank.evaluation.report.build import make_report
    from learn_rank.evaluation.report.write import format_table, write_report

    if config.part and not config.state:
        raise InputError("part=K/N makes a state: add state=FOLDER, then `learn-rank evaluate-merge`")
    if config.state and config.out:
        raise InputError("state and out are both set; a state becomes a report by `learn-rank evaluate-merge`")
    reads = _reads(config)
    check_target(Path(config.state or config.out), STAGE if config.state else "evaluate", reads=reads)
    options = part_of(config, EvaluateOptions)
    part = Part.of(_part(config.part)) if config.part else None
    start = time.monotonic()
    inputs = open_inputs(
        Path(config.predictions),
        user_segments=config.user_segments,
        item_segments=config.item_segments,
        options=options,
        part=part,
    )
    sources = fingerprints(Path(config.predictions), inputs.users.origin, inputs.items.origin)
    recorded = {name: str(value) for name, value in sources.items()}
    if config.state:
        manifest = Manifest(STAGE, recorded, {**asdict(options), "part": config.part})
        with publish(Path(config.state), manifest, reads=reads) as (work, facts):
            state, run_facts = run(inputs, save_scores=work if options.auc == "exact" else None)
            rules = segment_rules(inputs.users, inputs.items, state)
            save_state(state, work, options=options, part=part, rules=rules, sources=sources)
            facts.update(run_facts)
        print(f"state: {config.state} ({state.num_rows:,} rows, {time.monotonic() - start:.1f} s)")
        return
    out = Path(config.out)
    with publish(out, Manifest("evaluate", recorded, asdict(options)), reads=reads) as (work, _):
        state, run_facts = run(inputs)
        seconds = time.monotonic() - start
        report = make_report(
            state,
            options,
            rules=segment_rules(inputs.users, inputs.items, state),
            sources=sources,
            engine={**run_facts, "seconds": seconds, "rows_per_second": state.num_rows / seconds},
        )
        write_report(report, work)
    print(format_table(report))
    print(f"{state.num_rows:,} rows in {seconds:.1f} s; report: {out / 'report.html'}")


def merge(config: MergeConfig) -> None:
    """States of disjoint users -> report."""
    require(config, "evaluate-merge", "states", "out")
    from learn_rank.artifact import read_manifest
    from learn_rank.evaluation.engine.merge_states import merge_states
    from learn_rank.evaluation.engine.state_folder import STAGE
    from learn_rank.evaluation.report.build import make_report
    from learn_rank.evaluation.report.write import format_table, write_report

    folders, out = [Path(folder) for folder in config.states], Path(config.out)
    check_target(out, "evaluate", reads=folders)
    inputs = {str(position): read_manifest(folder, stage=STAGE).fingerprint for position, folder in enumerate(folders)}
    state, first, sources = merge_states(folders)
    rules = {
        entity: {**first.rules[entity], "num_without_history": unlisted}
        for entity, unlisted in (("user", state.unlisted_users), ("item", state.unlisted_items))
    }
    report = make_report(state, first.options, rules=rules, sources=sources, engine={"num_parts": len(folders)})
    with publish(out, Manifest("evaluate", inputs, asdict(first.options)), reads=folders) as (work, _):
        write_report(report, work)
    print(format_table(report))
    print(f"report: {out / 'report.html'}")


def segment(config: SegmentConfig) -> None:
    """A training log -> segments of its users and items."""
    require(config, "segment", "log", "out")
    from learn_rank.evaluation.input.count_segments import count_segments
    from learn_rank.inputs import find_inputs

    parse_bytes(config.memory_limit, name="memory_limit")
    log, out = Path(config.log), Path(config.out)
    check_target(out, "segment", reads=[log])
    options = part_of(config, SegmentOptions)
    inputs = {"log": find_inputs(log).fingerprint}
    manifest = Manifest("segment", inputs, {**asdict(options), "user_id": config.user_id, "item_id": config.item_id})
    with publish(out, manifest, reads=[log]) as (work, facts):
        facts.update(
            count_segments(
                log,
                work,
                user_id=config.user_id,
                item_id=config.item_id,
                options=options,
                memory_limit=config.memory_limit,
                scratch=work / _SCRATCH,
            )
        )
    print(f"{facts['num_rows']:,} rows")
    for entity in ("user", "item"):
        for name, size in facts.get(entity, {}).get("segments", {}).items():
            print(f"  {entity}s {name:<12} {size['num_ids']:>14,}  {100 * size['share']:5.1f} %")
    print(f"segments: {out}")


def _experiment(config: EvaluateConfig) -> None:
    from learn_rank.evaluation.evaluate import fingerprints
    from learn_rank.evaluation.experiment.compare import evaluate_experiment
    from learn_rank.evaluation.experiment.exposures import exposure_columns
    from learn_rank.evaluation.experiment.text import format_experiment
    from learn_rank.evaluation.experiment.write import write_experiment
    from learn_rank.evaluation.input.entity_segments import segment_origin

    if config.state or config.part or len(config.treatments) != 1 or config.control:
        raise InputError("variant: baseline and treatment name two of its values; no state, part or control")
    if config.spill_dir and not Path(config.spill_dir).is_dir():
        raise InputError(f"spill_dir={config.spill_dir}: no such folder; make it or choose another")
    predictions, out = Path(config.predictions), Path(config.out)
    reads = _reads(config)
    check_target(out, "experiment", reads=reads)
    columns = exposure_columns(predictions) if config.user_segments or config.item_segments else []
    users = segment_origin(config.user_segments, entity="user", columns=columns)
    items = segment_origin(config.item_segments, entity="item", columns=columns)
    sources = fingerprints(predictions, users, items)
    recorded = {name: str(value) for name, value in sources.items()}
    with publish(out, Manifest("experiment", recorded, asdict(config)), reads=reads) as (work, _):
        report = evaluate_experiment(
            predictions,
            variant=config.variant,
            control=config.baseline,
            treatment=config.treatments[0],
            labels=config.labels,
            value=config.value,
            user_id=config.user_id,
            item_id=config.item_id,
            user_segments=users,
            item_segments=items,
            segment_options=config.segments,
            confidence=config.confidence,
            expected_share=config.expected_share,
            memory_limit=config.memory_limit,
            scratch=Path(config.spill_dir or work / _SCRATCH),
        )
        report = replace(report, inputs=sources)
        write_experiment(report, work)
    print(format_experiment(report))
    print(f"report: {out / 'report.html'}")


def _reads(config: EvaluateConfig) -> list[Path]:
    """What an evaluation reads: its output may not lie there."""
    from learn_rank.inputs import find_inputs

    segments = [Path(path) for path in (config.user_segments, config.item_segments) if path]
    return [*find_inputs(config.predictions, may_be_pattern=True).reads, *segments]


def _part(text: str) -> tuple[int, int]:
    """'1/4' -> (1, 4)."""
    number, _, total = text.partition("/")
    if not (number.isdecimal() and total.isdecimal()):
        raise InputError(f"part={text}: expected K/N with K from 0 to N - 1, such as 0/4")
    return int(number), int(total)
