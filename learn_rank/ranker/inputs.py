"""What a ranker reads: the meaning of the columns and the frozen stores, with fingerprints for its checkpoints."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from learn_rank.distributed import Process, on_main
from learn_rank.errors import InputError
from learn_rank.fingerprints import file_fingerprint, fingerprint
from learn_rank.io import open_parquet, parquet_files, read_batches, require_columns, to_numpy
from learn_rank.progress import note
from learn_rank.ranker.options import CLICK, CONVERSION, RankerOptions
from learn_rank.ranker.tables.frozen import FrozenVectors
from learn_rank.ranker.tables.options import FrozenOptions
from learn_rank.ranker.tasks import tasks_of
from learn_rank.schema import FEATURES, FeatureSet

_STORE = "store "
_LABEL_ROWS = 1 << 18  # read at a time


@dataclass(frozen=True)
class RankerInputs:
    """features: those that the ranker reads, without sequences that it does not. frozen is None in the baseline.

    fingerprints: of features and vocabularies, and of each store if there are.
    """

    prepared: Path
    features: FeatureSet
    frozen: FrozenVectors | None
    fingerprints: dict[str, str]

    def split(self, name: str) -> Path:
        """The Parquet file of a split, or the folder of its files."""
        return self.prepared / "interactions" / f"{name}.parquet"

    def placed(self, options: FrozenOptions, process: Process) -> RankerInputs:
        """The same with the frozen vectors where options.placement puts them; all ranks call it together."""
        return self if self.frozen is None else replace(self, frozen=self.frozen.placed(options, process))


def open_inputs(prepared: Path, stores: Path | None, options: RankerOptions) -> RankerInputs:
    """Opens prepared/ and, with use_learn, stores/; the baseline ignores stores.

    InputError: no stores where they are needed, stores without any of the log's ids, no sequences where the ranker
    reads them.
    """
    features = read_features(prepared / FEATURES, options)
    fingerprints = {"features": features_fingerprint(prepared)}
    frozen = None
    if options.adaptor.use_learn:
        if stores is None:
            raise InputError(
                "ranker.adaptor.use_learn=true needs the stores of `learn-rank export`; export them or set it to false"
            )
        frozen = FrozenVectors(stores, num_folds=features.num_folds, shuffle_seed=options.adaptor.shuffle_seed)
        frozen.check_matches(prepared)
        fingerprints |= {f"{_STORE}{name}": value for name, value in frozen.fingerprints.items()}
    return RankerInputs(prepared, features, frozen, fingerprints)


def read_features(path: Path, options: RankerOptions) -> FeatureSet:
    """The features that a ranker of these options reads of features.json: without sequences where it reads none.

    InputError: there are none where it reads them.
    """
    features = FeatureSet.read(path)
    if not options.backbone.reads_sequences:
        return replace(features, sequences=())
    if not features.sequences:
        is_asked, name = options.backbone.use_sequences, options.backbone.name
        why = "ranker.backbone.use_sequences=true" if is_asked else f"ranker.backbone.name={name}"
        raise InputError(
            f"{path}: {why} reads behaviour sequences, but there are none; add one to the dataset recipe, "
            "`sequence: {history: {of: item_id, max_length: 50}}`, then run `learn-rank prepare` again"
        )
    return features


def features_fingerprint(prepared: Path) -> str:
    """Of features.json and the vocabularies."""
    vocabularies = prepared / "vocabularies"
    return fingerprint(
        features=file_fingerprint(prepared / FEATURES),
        vocabularies=file_fingerprint(vocabularies) if vocabularies.is_dir() else None,
    )


def check_fingerprints(
    inputs: RankerInputs, meta: dict[str, Any], directory: Path, *, accept_stores: Collection[str]
) -> None:
    """InputError if a checkpoint was trained on other features, or on another store that is not in accept_stores.

    accept_stores: fingerprints of stores that may take the place of those it was trained with; a note says where one
    does. All ranks call it together.
    """

    def is_store(name: str) -> bool:
        return name.startswith(_STORE)

    names = sorted(inputs.fingerprints.keys() | meta["inputs"].keys())
    pairs = {name: (meta["inputs"].get(name), inputs.fingerprints.get(name)) for name in names}
    differing = {name: (trained, given) for name, (trained, given) in pairs.items() if trained != given}
    refused = [name for name, (_, given) in differing.items() if not is_store(name) or given not in accept_stores]
    if refused:
        which = ", ".join(f"{name} (fingerprint {pairs[name][0]}, this is {pairs[name][1]})" for name in refused)
        advice = "train again in another folder, or give what it was trained with"
        if all(is_store(name) and pairs[name][1] is not None for name in refused):
            accepted = [*accept_stores, *(str(pairs[name][1]) for name in refused)]
            advice = f"if it is a refresh of that store, accept it: accept_stores=[{','.join(accepted)}]; or {advice}"
        raise InputError(f"{directory}: was trained with other inputs: {which}; {advice}")
    for name, (trained, given) in differing.items():
        on_main(partial(note, f"{directory}: {name} {given} is accepted in place of {trained}"))


def check_labels(path: Path, features: FeatureSet, options: RankerOptions) -> dict[str, int]:
    """InputError, before any training, if a label that is to be learnt has one class in the training rows.

    Reads until both classes of every label have been seen: all of the split only where one is missing, or where a task
    knows conversions of clicks alone: then the facts returned say how many conversions have no click, as does a note.
    """
    tasks_of(features, options)  # refuses
    labels = _LabelCounts()
    for clicks, conversions in _labels(path, features.ranking_label, features.cvr_label):
        labels.add(clicks, conversions)
        if options.task.name == CLICK and not labels.missing_class(features, options):
            return {}
    missing = labels.missing_class(features, options)
    if missing:
        raise InputError(f"{path}: {missing}")
    if options.task.name == CLICK:
        return {}
    without_click = labels.conversions - labels.clicked_conversions
    if without_click:
        note(
            f"{path}: {without_click} of {labels.conversions} rows with '{features.cvr_label}' have no "
            f"'{features.ranking_label}'; ranker.task.name={options.task.name} counts no conversion there"
        )
    return {"num_conversions_without_click": without_click}


@dataclass
class _LabelCounts:
    rows: int = 0
    clicks: int = 0
    conversions: int = 0
    clicked_conversions: int = 0

    def add(self, clicks: npt.NDArray[np.bool_], conversions: npt.NDArray[np.bool_]) -> None:
        self.rows += len(clicks)
        self.clicks += int(clicks.sum())
        self.conversions += int(conversions.sum())
        self.clicked_conversions += int((clicks & conversions).sum())

    def missing_class(self, features: FeatureSet, options: RankerOptions) -> str:
        """Which label cannot be learnt for want of a class, and what to do; empty if all can."""
        ranking, cvr, task = features.ranking_label, features.cvr_label, options.task.name
        needs = "it needs both classes to train"
        if task != CONVERSION and not 0 < self.clicks < self.rows:
            return f"ranking label '{ranking}' is 1 in {self.clicks} of {self.rows} rows; {needs}"
        if task != CLICK and not 0 < self.clicked_conversions < self.clicks:
            share = f"{self.clicked_conversions} of {self.clicks} rows with '{ranking}'"
            return f"CVR label '{cvr}' is 1 in {share}; {needs} ranker.task.name={task}, choose another"
        space = options.adaptor.cvr_space
        num_rows, positives = self.rows, self.conversions
        if space == "clicks":
            num_rows, positives = self.clicks, self.clicked_conversions
        has_adaptor = options.adaptor.use_learn and options.adaptor.use_fusion
        if has_adaptor and not 0 < positives < num_rows:
            return (
                f"CVR label '{cvr}' is 1 in {positives} of {num_rows} {space}; {needs} the adaptor, choose another "
                "ranker.adaptor.cvr_space or CVR label"
            )
        return ""


def _labels(path: Path, *names: str) -> Iterator[list[npt.NDArray[np.bool_]]]:
    """Whether each label is set, for some rows at a time of a file or folder."""
    for file in parquet_files(path):
        with open_parquet(file) as opened:
            require_columns(opened.schema_arrow.names, names, where=str(file))
        for part in read_batches(file, list(dict.fromkeys(names)), None, _LABEL_ROWS):
            yield [to_numpy(part.column(name), where=f"{file}: column '{name}'") != 0 for name in names]
