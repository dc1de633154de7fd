"""Scalars of a training run for TensorBoard."""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from learn_rank.progress import note


class Scalars:
    """An event file that cannot stop a run: on a full disk, scalars are left out and one note is printed.

    torch's SummaryWriter writes in a thread, which on a full disk prints a traceback, dies and makes the next call
    raise. It leaves half a record, and TensorBoard reads nothing after it.
    """

    def __init__(self, directory: Path | None, *, first_step: int) -> None:
        """Writes to a file in the directory, created with the first scalars; None (ranks other than 0) writes nothing.

        TensorBoard drops scalars of earlier files from first_step on: they are from a run that was killed.
        """
        self._directory, self._first_step = directory, first_step
        self._file: io.FileIO | None = None
        self._size = 0  # of whole records
        self._is_failing = False

    def __enter__(self) -> Scalars:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Writes a step's values, by name."""
        if self._directory is None:
            return
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        try:
            if self._file is None:
                self._file = _open(self._directory)
            if self._size == 0:
                self._append(
                    Event(step=self._first_step, file_version="brain.Event:2"),
                    Event(step=self._first_step, session_log=SessionLog(status=SessionLog.START)),
                )
            self._append(Event(step=step, summary=summary))
            self._is_failing = False
        except OSError as error:
            if not self._is_failing:
                note(f"{self._directory}: {error.strerror}; training continues without scalars for now")
            self._is_failing = True

    def _append(self, *events: Event) -> None:
        assert self._file is not None
        records = io.BytesIO()
        for event in events:
            event.wall_time = time.time()
            RecordWriter(records).write(event.SerializeToString())
        data = records.getvalue()
        os.ftruncate(self._file.fileno(), self._size)  # drops half a record left by a failed call
        self._file.seek(self._size)
        written = 0
        while written < len(data):
            written += self._file.write(data[written:])
        self._size += len(data)


def _open(directory: Path) -> io.FileIO:
    directory.mkdir(parents=True, exist_ok=True)
    # TensorBoard reads the files of a folder by name
    return io.FileIO(directory / f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}", "w")
