"""What a ranker reads: the meaning of the columns and the frozen stores, with fingerprints for its checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from learn_rank.artifact import file_fingerprint, fingerprint
from learn_rank.errors import InputError
from learn_rank.io import open_parquet, require_columns
from learn_rank.ranker.frozen import FrozenVectors
from learn_rank.ranker.options import RankerOptions
from learn_rank.schema import FEATURES, FeatureSet


@dataclass(frozen=True)
class RankerInputs:
    """frozen is None in the baseline. fingerprints: of features and vocabularies, and of the stores if there are."""

    prepared: Path
    features: FeatureSet
    frozen: FrozenVectors | None
    fingerprints: dict[str, str]

    def split(self, name: str) -> Path:
        """The Parquet file of a split."""
        return self.prepared / "interactions" / f"{name}.parquet"


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
        fingerprints["stores"] = frozen.fingerprint
    return RankerInputs(prepared, features, frozen, fingerprints)


def check_fingerprints(inputs: RankerInputs, meta: dict[str, Any], directory: Path) -> None:
    """InputError if a checkpoint was trained on other features or other vectors than these."""
    for name in sorted(inputs.fingerprints.keys() | meta["inputs"].keys()):
        if inputs.fingerprints.get(name) != meta["inputs"].get(name):
            raise InputError(
                f"{directory}: was trained with other {name} (fingerprint {meta['inputs'].get(name)}, "
                f"these are {inputs.fingerprints.get(name)}); train again or give the {name} it was trained with"
            )


def check_labels(path: Path, features: FeatureSet, options: RankerOptions) -> None:
    """InputError, before any training, if a label that is to be learnt has one class in the training rows."""
    ranking, cvr = features.ranking_label, features.cvr_label
    num_rows, num_clicks, num_conversions, num_clicked_conversions = 0, 0, 0, 0
    with open_parquet(path) as file:
        require_columns(file.schema_arrow.names, [ranking, cvr], where=str(path))
        for part in file.iter_batches(1 << 20, columns=list({ranking, cvr})):
            clicks, conversions = part.column(ranking).to_numpy() != 0, part.column(cvr).to_numpy() != 0
            num_rows += len(part)
            num_clicks += int(clicks.sum())
            num_conversions += int(conversions.sum())
            num_clicked_conversions += int((clicks & conversions).sum())
    if not 0 < num_clicks < num_rows:
        raise InputError(
            f"{path}: ranking label '{ranking}' is 1 in {num_clicks} of {num_rows} rows; it needs both classes to train"
        )
    if not options.use_learn:
        return
    if options.cvr_space == "clicks":
        num_rows, num_conversions = num_clicks, num_clicked_conversions
    if not 0 < num_conversions < num_rows:
        raise InputError(
            f"{path}: CVR label '{cvr}' is 1 in {num_conversions} of {num_rows} {options.cvr_space}; it needs both "
            "classes to train the adaptor, choose another cvr_space or CVR label"
        )
