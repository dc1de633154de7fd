"""find-learning-rate: the results of the range test, as JSON, as a page and on the terminal."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from learn_rank.artifact import Manifest, read_manifest
from learn_rank.cli.config import RunConfig
from learn_rank.cli.folders import fingerprint_of, folder, stage_on_ranks
from learn_rank.cli.stages import store_fingerprints
from learn_rank.durable import write_json, write_text

if TYPE_CHECKING:
    from learn_rank.ranker.training.find_learning_rate import Sweep

_STAGE = "find-learning-rate"
_SCHEMA_VERSION = 2  # 1 named the options without their group


def find_learning_rate(config: RunConfig) -> None:
    """Canonical tables (and stores) -> lr.json and lr.html, of the first of the run's arms; also under torchrun."""
    from learn_rank.distributed import on_main
    from learn_rank.ranker.training.find_learning_rate import find_learning_rates

    prepared, stores, directory = (folder(config, name) for name in ("prepare", "export", _STAGE))
    arm = config.arms[0]
    options = config.ranker.for_arm(arm, is_shuffled=arm == "shuffled")
    inputs = {"prepare": fingerprint_of(prepared, "prepare")}
    if options.adaptor.use_learn:
        inputs |= store_fingerprints(prepared, stores)

    def work_in(work: Path) -> dict[str, Any]:
        sweeps = find_learning_rates(
            prepared, stores if options.adaptor.use_learn else None, options, config.find, frozen=config.frozen
        )
        on_main(lambda: _write(sweeps, work, arm))
        return {"suggestions": {sweep.option: sweep.suggestion for sweep in sweeps}}

    manifest = Manifest(_STAGE, inputs, {**options.of_weights(), "find": asdict(config.find)})
    stage_on_ranks(directory, manifest, work_in)
    on_main(lambda: _print(directory))


def _write(sweeps: list[Sweep], work: Path, arm: str) -> None:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from learn_rank.evaluation.report.figures import range_plot
    from learn_rank.evaluation.report.rendering import TEMPLATES

    write_json(work / "lr.json", {"schema_version": _SCHEMA_VERSION, "sweeps": [asdict(sweep) for sweep in sweeps]})
    environment = Environment(
        loader=FileSystemLoader([Path(__file__).parent, TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    plots = [range_plot(sweep.rates, sweep.losses, sweep.smoothed, sweep.suggestion) for sweep in sweeps]
    page = environment.get_template("learning_rate.html.jinja").render(
        pairs=list(zip(sweeps, plots, strict=True)), arm=arm
    )
    write_text(work / "lr.html", page)


def _print(directory: Path) -> None:
    suggestions = read_manifest(directory, stage=_STAGE).facts["suggestions"]
    for option, value in suggestions.items():
        missing = "none: the loss has no lowest point within find.low .. find.high; widen them"
        print(f"{option:<22} {missing if value is None else f'{value:g}'}")
    known = [f"ranker.{option}={value:g}" for option, value in suggestions.items() if value is not None]
    if known:
        print(f"try      {' '.join(known)}")
    print(f"curves   {directory / 'lr.html'}")
