"""Which encoder turns item texts into content vectors, and what identifies it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from learn_rank.content.text import TextOptions
from learn_rank.errors import InputError
from learn_rank.fingerprints import fingerprint
from learn_rank.options import check_seed
from learn_rank.pretrained import model_fingerprint

OPTION = "encoder.model"
TFIDF_SVD, HF = "tfidf_svd", "hf"
_VECTORS_SINCE = "0.1.0"  # the release since which equal options give equal vectors
_DTYPES = ("float32", "bfloat16", "float16")
# what decides a vector; batch_tokens, device and device_map do not, and encoder_fingerprint says which model it is
_DECIDING = {
    HF: ("kind", "revision", "trust_remote_code", "max_tokens", "dtype"),
    TFIDF_SVD: ("kind", "dim", "min_count", "seed"),
}


@dataclass
class EncoderOptions:
    """Which encoder turns item texts into content vectors."""

    kind: str = field(default=TFIDF_SVD, metadata={"help": "tfidf_svd (no download) or hf"})
    model: str = field(default="", metadata={"help": "hf: folder, hub id, or package:NAME of an installed package"})
    revision: str = field(default="", metadata={"help": "hf: branch, tag or commit of a hub id"})
    trust_remote_code: bool = field(
        default=False, metadata={"help": "hf: run the Python that comes with the model, as Baichuan2 needs"}
    )
    max_tokens: int = field(
        default=256, metadata={"help": "hf: longer texts are cut and counted; the model's own limit holds as well"}
    )
    batch_tokens: int = field(
        default=0, metadata={"help": "hf: padded tokens per batch; 0: 1024 on a CPU, 16384 on other devices"}
    )
    dtype: str = field(default="float32", metadata={"help": "hf: float32, bfloat16 or float16"})
    device: str = field(default="auto", metadata={"help": "hf: auto (CUDA where there is one), or cpu, cuda:1, ..."})
    device_map: str = field(
        default="", metadata={"help": "hf: auto spreads a model larger than one GPU; needs the package accelerate"}
    )
    dim: int = field(default=256, metadata={"help": "tfidf_svd: width of the vectors"})
    min_count: int = field(default=2, metadata={"help": "tfidf_svd: rarer words are left out"})
    seed: int = field(default=0, metadata={"help": "tfidf_svd: of the randomised SVD"})
    text: TextOptions = field(default_factory=TextOptions)

    def __post_init__(self) -> None:
        if self.kind not in _DECIDING:
            raise InputError(f"encoder.kind is '{self.kind}', expected {TFIDF_SVD} or {HF}")
        if self.kind == HF and not self.model:
            raise InputError("encoder.model is empty; give a model folder, a hub id or package:NAME")
        if self.dtype not in _DTYPES:
            raise InputError(f"encoder.dtype is '{self.dtype}', expected one of {', '.join(_DTYPES)}")
        if self.device_map and self.device != "auto":
            raise InputError("encoder.device and encoder.device_map are both set; leave one of them out")
        for name in ("max_tokens", "dim", "min_count"):
            if getattr(self, name) < 1:
                raise InputError(f"encoder.{name} is {getattr(self, name)}, must be 1 or more")
        check_seed("encoder.seed", self.seed)
        if self.batch_tokens < 0:
            raise InputError(f"encoder.batch_tokens is {self.batch_tokens}, must be 0 or more")

    def of_vectors(self) -> dict[str, Any]:
        """Name -> value of the options that decide the vectors; encoder_fingerprint says which model it is."""
        return {**{name: getattr(self, name) for name in _DECIDING[self.kind]}, "text": asdict(self.text)}


def encoder_fingerprint(options: EncoderOptions) -> str:
    """Identifies the encoder's weights: the files of a local model, else its hub id; or the kind."""
    return model_fingerprint(options.model, option=OPTION) if options.kind == HF else options.kind


def vector_key(options: EncoderOptions) -> str:
    """Equal keys give equal vectors to equal texts, however the texts were made."""
    deciding = {name: value for name, value in options.of_vectors().items() if name != "text"}
    return fingerprint(encoder=encoder_fingerprint(options), options=deciding, version=_VECTORS_SINCE)
