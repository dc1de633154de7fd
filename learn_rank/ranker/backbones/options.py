"""Which backbones there are, and what can be chosen about each. Imports no torch: the command line's --help needs it.

A further backbone: its file here, with a class made of (Widths, RankerOptions), and its line in BACKBONES. Where it has
options of its own, also their dataclass and a field of BackboneOptions, by the backbone's name.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

from learn_rank.errors import InputError
from learn_rank.options import Check, group, option


@dataclass(frozen=True)
class Backbone:
    """build: module:function, as of a backbone of one's own.

    reads_sequences: weighs behaviour sequences, which others read as means where they are asked to.
    multiplies_rows: table rows reach the logit multiplied with each other, so that what they start from is noise.
    """

    build: str
    reads_sequences: bool = False
    multiplies_rows: bool = False


_HERE = "learn_rank.ranker.backbones"
BACKBONES = {
    "dcnv2": Backbone(f"{_HERE}.dcnv2:DCNv2"),
    "deepfm": Backbone(f"{_HERE}.deepfm:DeepFM", multiplies_rows=True),
    "din": Backbone(f"{_HERE}.din:DIN", reads_sequences=True),
    "dlrm": Backbone(f"{_HERE}.dlrm:DLRM", multiplies_rows=True),
    "finalmlp": Backbone(f"{_HERE}.finalmlp:FinalMLP", multiplies_rows=True),
    "masknet": Backbone(f"{_HERE}.masknet:MaskNet"),
}


@dataclass
class DCNv2Options:
    """Of the cross network."""

    num_cross_layers: int = option(2, "Number of cross layers.")
    cross_rank: int = option(
        64, "Rank of the cross matrices. 0: full matrices, which are cheaper for rows narrower than twice the rank."
    )

    def __post_init__(self) -> None:
        Check(self, "ranker.backbone.dcnv2.").at_least(0, "num_cross_layers", "cross_rank")


@dataclass
class DINOptions:
    """Of the attention over a behaviour sequence."""

    attention_dims: list[int] = option([36], "Hidden widths of the MLP that weighs the values of a sequence.")

    def __post_init__(self) -> None:
        if min(self.attention_dims, default=1) < 1:
            raise InputError(
                f"ranker.backbone.din.attention_dims is {self.attention_dims}, expected positive widths, or none"
            )


@dataclass
class FinalMLPOptions:
    """Of the gates and the fusion of the two streams."""

    gate_features: list[str] = option(
        [],
        "The sparse features that the two gates read, such as [user_id,item_id]. Empty: each learns a vector instead.",
    )
    fusion_heads: int = option(4, "Number of heads of the bilinear fusion. It divides the last of hidden_dims.")

    def __post_init__(self) -> None:
        Check(self, "ranker.backbone.finalmlp.").at_least(1, "fusion_heads")
        if len(self.gate_features) not in (0, 2):
            raise InputError(
                f"ranker.backbone.finalmlp.gate_features is {self.gate_features}, expected two sparse features or none"
            )


@dataclass
class MaskNetOptions:
    """Of the blocks that mask their input."""

    num_blocks: int = option(3, "Number of parallel blocks. 0: serial blocks, one for each of hidden_dims.")
    mask_ratio: float = option(1.0, "Hidden units of a mask's MLP for each number that it masks.")

    def __post_init__(self) -> None:
        check = Check(self, "ranker.backbone.masknet.")
        check.at_least(0, "num_blocks")
        check.above_zero("mask_ratio")


@dataclass
class BackboneOptions:
    """The network on top of the features: which one, and what all of them have. Below: what one of them has alone."""

    name: str = option("dcnv2", f"The network: {', '.join(BACKBONES)}, or one of your own as pkg.module:build.")
    hidden_dims: list[int] = option([256, 128], "Widths of the hidden layers of the network's MLP.")
    dropout: float = option(
        0.0, "Share of the hidden units, of the network and of the adaptor, that are dropped in a training step."
    )
    use_sequences: bool = option(
        False,
        "Read the recipe's behaviour sequences. din always reads and weighs them; other networks read their mean.",
    )
    dcnv2: DCNv2Options = group(DCNv2Options, "options of dcnv2 alone")
    din: DINOptions = group(DINOptions, "options of din alone")
    finalmlp: FinalMLPOptions = group(FinalMLPOptions, "options of finalmlp alone")
    masknet: MaskNetOptions = group(MaskNetOptions, "options of masknet alone")

    def __post_init__(self) -> None:
        if self.name not in BACKBONES and ":" not in self.name:
            raise unknown_backbone(self.name)
        if not self.hidden_dims or min(self.hidden_dims) < 1:
            raise InputError(f"ranker.backbone.hidden_dims is {self.hidden_dims}, expected one or more positive widths")
        Check(self, "ranker.backbone.").below_one("dropout")

    @property
    def built_in(self) -> Backbone | None:
        """The backbone of this package that is named; None for one of your own."""
        return BACKBONES.get(self.name)

    @property
    def reads_sequences(self) -> bool:
        return self.use_sequences or (self.built_in is not None and self.built_in.reads_sequences)


def unknown_backbone(name: str) -> InputError:
    """Says which backbone was meant, or which there are."""
    near = get_close_matches(name, BACKBONES, n=1, cutoff=0.4)
    hint = f"; did you mean '{near[0]}'?" if near else f", expected one of {', '.join(BACKBONES)}"
    return InputError(f"ranker.backbone.name: there is no backbone '{name}'{hint}")
