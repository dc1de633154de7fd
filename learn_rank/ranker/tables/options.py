"""What can be chosen about the trainable tables, and about where the frozen vectors lie."""

from __future__ import annotations

from dataclasses import dataclass

from learn_rank.errors import InputError
from learn_rank.options import Check, option

AUTO, TABLE_WISE, ROW_WISE, DATA_PARALLEL = SHARDINGS = ("auto", "table_wise", "row_wise", "data_parallel")
STORE, SHARDED, TORCHREC = PLACEMENTS = ("store", "sharded", "torchrec")


@dataclass
class TableOptions:
    """The trainable embedding tables, one for each sparse feature: their size, their learning, their places."""

    embedding_dim: int = option(
        16, "Width of a table for which the recipe gives none, in float32 numbers. A multiple of 4."
    )
    initial_length: float = option(
        0.0,
        "About the length of a fresh row. 0: 0.25, or 0.025 with dlrm, deepfm and finalmlp, which multiply rows.",
    )
    learning_rate: float = option(0.1, "Learning rate of the tables, which row-wise Adagrad trains.")
    sharding: str = option(
        AUTO,
        "How the tables are spread over ranks: auto (by their sizes and the memory), table_wise, row_wise or "
        "data_parallel.",
        is_operational=True,
    )
    row_wise_rows: int = option(
        1_000_000,
        "With sharding=auto, tables of at least this many rows are split over the ranks.",
        is_operational=True,
    )
    data_parallel_rows: int = option(
        0, "With sharding=auto, tables of at most this many rows are held whole by every rank.", is_operational=True
    )

    def __post_init__(self) -> None:
        check = Check(self, "ranker.tables.")
        check.at_least(1, "embedding_dim")
        check.at_least(0, "initial_length", "row_wise_rows", "data_parallel_rows")
        check.above_zero("learning_rate")
        check.is_one_of("sharding", SHARDINGS)
        if self.embedding_dim % 4:
            raise InputError(
                f"ranker.tables.embedding_dim is {self.embedding_dim}, expected a multiple of 4 (fbgemm kernels)"
            )


@dataclass
class FrozenOptions:
    """Where frozen vectors lie while a ranker trains or predicts. The results have the same bits wherever they lie."""

    placement: str = option(
        STORE,
        "Where the vectors are read from. store: each host reads the files. sharded: each rank holds a range of rows, "
        "for stores larger than a host's memory. torchrec: copied once into the memory of all ranks (of their GPUs, "
        "with CUDA).",
    )
    sharding: str = option(
        AUTO,
        "With placement=torchrec, how vectors are spread over ranks: auto (by size and memory), table_wise, row_wise.",
    )

    def __post_init__(self) -> None:
        check = Check(self, "frozen.")
        check.is_one_of("placement", PLACEMENTS)
        check.is_one_of("sharding", (AUTO, TABLE_WISE, ROW_WISE))
