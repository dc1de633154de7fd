"""What a ranker reads: the meaning of the columns and the frozen stores, with fingerprints for its checkpoints."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from learn_rank.artifact import file_fingerprint, fingerprint
from learn_rank.distributed import Process, on_main
from learn_rank.errors import InputError
from learn_rank.io import open_parquet, parquet_files, read_batches, require_columns, to_numpy
from learn_rank.progress import note
from learn_rank.ranker.frozen import FrozenVectors
from learn_rank.ranker.options import FrozenOptions, RankerOptions
from learn_rank.schema import FEATURES, FeatureSet

_STORE = "store "
_LABEL_ROWS = 1 << 18  # read at a time


@dataclass(frozen=True)
class RankerInputs:
    """frozen is None in the baseline. fingerprints: of features and vocabularies, and of each store if there are."""

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
    """Opens prepared/ and, with options.use_learn, stores/; the baseline ignores stores."""
    features = FeatureSet.read(prepared / FEATURES)
    vocabularies = prepared / "vocabularies"
    fingerprints = {
        "features": fingerprint(
            features=file_fingerprint(prepared / FEATURES),
            vocabularies=file_fingerprint(vocabularies) if vocabularies.is_dir() else None,
        )
    }
    frozen = None
    if options.use_learn:
        if stores is None:
            raise InputError(
                "use_learn=true needs the stores of `learn-rank export`; export them or set use_learn=false"
            )
        frozen = FrozenVectors(stores, num_folds=features.num_folds, shuffle_seed=options.shuffle_seed)
        fingerprints |= {f"{_STORE}{name}": value for name, value in frozen.fingerprints.items()}
    return RankerInputs(prepared, features, frozen, fingerprints)


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
    differing = {name: (trained, found) for name, (trained, found) in pairs.items() if trained != found}
    refused = [name for name, (_, found) in differing.items() if not is_store(name) or found not in accept_stores]
    if refused:
        which = ", ".join(f"{name} (fingerprint {pairs[name][0]}, this is {pairs[name][1]})" for name in refused)
        advice = "train again in another folder, or give what it was trained with"
        if all(is_store(name) and pairs[name][1] is not None for name in refused):
            accepted = [*accept_stores, *(str(pairs[name][1]) for name in refused)]
            advice = f"if it is a refresh of that store, accept it: accept_stores=[{','.join(accepted)}]; or {advice}"
        raise InputError(f"{directory}: was trained with other inputs: {which}; {advice}")
    for name, (trained, found) in differing.items():
        on_main(partial(note, f"{directory}: {name} {found} is accepted in place of {trained}"))


def check_labels(path: Path, features: FeatureSet, options: RankerOptions) -> None:
    """InputError, before any training, if a label that is to be learnt has one class in the training rows.

    Reads until both classes of both labels have been seen: all of the split only where one is missing.
    """
    ranking, cvr, space = features.ranking_label, features.cvr_label, options.cvr_space
    num_rows = num_clicks = num_counted = num_conversions = 0
    for clicks, conversions in _labels(path, ranking, cvr):
        counted = clicks if space == "clicks" else np.ones_like(clicks)
        num_rows += len(clicks)
        num_clicks += int(clicks.sum())
        num_counted += int(counted.sum())
        num_conversions += int((counted & conversions).sum())
        if 0 < num_clicks < num_rows and (not options.use_learn or 0 < num_conversions < num_counted):
            return
    if not 0 < num_clicks < num_rows:
        raise InputError(
            f"{path}: ranking label '{ranking}' is 1 in {num_clicks} of {num_rows} rows; it needs both classes to train"
        )
    raise InputError(
        f"{path}: CVR label '{cvr}' is 1 in {num_conversions} of {num_counted} {space}; it needs both classes to train "
        "the adaptor, choose another cvr_space or CVR label"
    )


def _labels(path: Path, *names: str) -> Iterator[list[npt.NDArray[np.bool_]]]:
    """Whether each label is set, for some rows at a time of a file or folder."""
    for file in parquet_files(path):
        with open_parquet(file) as opened:
            require_columns(opened.schema_arrow.names, names, where=str(file))
        for part in read_batches(file, list(dict.fromkeys(names)), None, _LABEL_ROWS):
            yield [to_numpy(part.column(name), where=f"{file}: column '{name}'") != 0 for name in names]
