"""Probabilities of one user's candidates, from a folder that `learn-rank export-model` wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from learn_rank.arrays import Float32Array
from learn_rank.schema import Task
from learn_rank.serving.files import ServedModel
from learn_rank.serving.lookup import History, Lookup
from learn_rank.serving.programs import TORCH_BACKEND, open_program


class Scorer:
    """A trained ranker that scores by ids, with its tables and stores as memory-mapped files.

    Equal to what `learn-rank predict` gives for the same rows; with bf16=True, of a ranker that was trained so. Needs
    neither TorchRec nor the code that trained it. Its tables and stores are shared by all processes of a host, and it
    may be called from several threads.

    tasks: what it predicts, in order; it ranks by the first. features: what context, user and items may hold; those of
    context are known to nobody but the caller.
    """

    def __init__(
        self, folder: Path | str, *, backend: str = TORCH_BACKEND, bf16: bool = False, threads: int | None = None
    ) -> None:
        """backend: torch, or onnx (onnxruntime) where the folder holds scorer.onnx. bf16: the dense part in bfloat16.

        threads: of the backend; torch's are those of the whole process. InputError: no such folder, or one that is not
        whole.
        """
        folder = Path(folder)
        model = ServedModel.read(folder)
        self.tasks: tuple[Task, ...] = model.tasks
        self._lookup = Lookup(folder, model)
        self.features: dict[str, list[str]] = self._lookup.features
        self._program = open_program(folder, model, backend=backend, bf16=bf16, threads=threads)

    def score(
        self,
        user_id: int | str | None,
        item_ids: Any,
        *,
        time: int | None = None,
        context: Mapping[str, Any] | None = None,
        user: Mapping[str, Any] | None = None,
        items: Mapping[Any, Mapping[str, Any]] | None = None,
        history: History = (),
    ) -> Float32Array:
        """[N] probabilities of the first task for one user and N item ids, by which they are ranked.

        user_id: None for a user without one. item_ids: a list, numpy or pyarrow array of ids as the log has them.
        time: unix milliseconds; LEARN's snapshots are those strictly before it, the newest by default.
        context: raw values of the log's own features, such as {"tab": 1}. user, items: raw values in place of what the
        folder knows, by feature and by item id and feature: {"age": 31}, {17: {"genres": "drama|war"}}. A name that a
        sparse and a dense feature share sets both.
        history: what the user did, oldest first, for a ranker that reads sequences: item ids, or values of the
        sequence's feature where the log carries them as a list; by sequence, where there are several.

        A user, item or value that is not known, and a feature that is not given, is what it is in prepared rows:
        the unknown row of its table, a filled number, a missing vector. InputError: a name that is no feature, ids of
        another type than the log's.
        """
        scores: Float32Array = self._probabilities(
            user_id, item_ids, time=time, context=context, user=user, items=items, history=history
        )[0]
        return scores

    def score_tasks(
        self,
        user_id: int | str | None,
        item_ids: Any,
        *,
        time: int | None = None,
        context: Mapping[str, Any] | None = None,
        user: Mapping[str, Any] | None = None,
        items: Mapping[Any, Mapping[str, Any]] | None = None,
        history: History = (),
    ) -> dict[str, Float32Array]:
        """Name of each task -> [N] probabilities; arguments as of `score`."""
        found = self._probabilities(
            user_id, item_ids, time=time, context=context, user=user, items=items, history=history
        )
        return {task.name: scores for task, scores in zip(self.tasks, found, strict=True)}

    def look_up(self, user_id: int | str | None, item_ids: Any, **request: Any) -> tuple[torch.Tensor, ...]:
        """What `run` takes: the tensors of N rows, from the arguments of `score`."""
        return self._lookup.look_up(user_id, item_ids, **request)

    def run(self, inputs: Sequence[torch.Tensor]) -> Float32Array:
        """[T, N] probabilities of the tasks: the dense part alone."""
        probabilities: Float32Array = torch.sigmoid(self._program(inputs)).numpy()
        return probabilities

    def _probabilities(self, user_id: int | str | None, item_ids: Any, **request: Any) -> Float32Array:
        inputs = self.look_up(user_id, item_ids, **request)
        if not len(inputs[0]):
            return np.empty((len(self.tasks), 0), np.float32)
        return self.run(inputs)
