"""Probabilities of one user's candidates, from a folder that `learn-rank export-model` wrote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from learn_rank.arrays import Float32Array
from learn_rank.schema import Task
from learn_rank.serving.folder import ServedModel
from learn_rank.serving.lookup import Lookup
from learn_rank.serving.programs import TORCH_BACKEND, open_program
from learn_rank.serving.request import Request


class Scorer:
    """A trained ranker that scores by ids, with its tables and stores as memory-mapped files.

    Its probabilities are those of `learn-rank predict` for the same rows; set bf16=True for a ranker trained with bf16.
    It needs neither TorchRec nor the code that trained the ranker. All processes of a host share its tables and stores,
    and several threads may call it.

    tasks: what it predicts, in order; it ranks by the first. features: the names of features that a request may hold
    under context, user and items; only the caller knows those of context.
    """

    def __init__(
        self, folder: Path | str, *, backend: str = TORCH_BACKEND, bf16: bool = False, threads: int | None = None
    ) -> None:
        """backend: torch, or onnx (onnxruntime) where the folder holds scorer.onnx. bf16: the dense part in bfloat16.

        threads: how many the backend uses; torch's are those of the whole process. InputError: the folder is missing or
        incomplete.
        """
        folder = Path(folder)
        model = ServedModel.read(folder)
        self.tasks: tuple[Task, ...] = model.tasks
        self._lookup = Lookup(folder, model)
        self.features: dict[str, list[str]] = self._lookup.features
        self._program = open_program(folder, model, backend=backend, bf16=bf16, threads=threads)

    def score(self, user_id: int | str | Request | None, item_ids: Any = None, **details: Any) -> Float32Array:
        """[N] probabilities of the first task, by which the N candidates are ranked.

        Takes a `Request`, or its fields: score(7, [17, 31], time=1700000000000, context={"tab": 1}).
        InputError: a name that is no feature, ids of another type than the log's.
        """
        scores: Float32Array = self._probabilities(Request.of(user_id, item_ids, **details))[0]
        return scores

    def score_tasks(
        self, user_id: int | str | Request | None, item_ids: Any = None, **details: Any
    ) -> dict[str, Float32Array]:
        """Name of each task -> [N] probabilities; arguments and errors as of `score`."""
        probabilities = self._probabilities(Request.of(user_id, item_ids, **details))
        return {task.name: scores for task, scores in zip(self.tasks, probabilities, strict=True)}

    def look_up(
        self, user_id: int | str | Request | None, item_ids: Any = None, **details: Any
    ) -> tuple[torch.Tensor, ...]:
        """What `run` takes: the tensors of the N candidates; arguments and errors as of `score`."""
        return self._lookup.look_up(Request.of(user_id, item_ids, **details))

    def run(self, inputs: Sequence[torch.Tensor]) -> Float32Array:
        """[T, N] probabilities of the tasks, from what `look_up` gives: the dense part alone."""
        probabilities: Float32Array = torch.sigmoid(self._program(inputs)).numpy()
        return probabilities

    def _probabilities(self, request: Request) -> Float32Array:
        inputs = self._lookup.look_up(request)
        if not len(inputs[0]):
            return np.empty((len(self.tasks), 0), np.float32)
        return self.run(inputs)
