"""Backbones: shapes, each one's formula worked by hand, which inputs reach the logit, and a user's own."""

from __future__ import annotations

import sys
import types
from itertools import combinations

import pytest
import torch
from torch import nn

from learn_rank.errors import InputError
from learn_rank.options import with_changes
from learn_rank.ranker.backbones.build import build_backbone
from learn_rank.ranker.backbones.dcnv2 import DCNv2
from learn_rank.ranker.backbones.deepfm import DeepFM
from learn_rank.ranker.backbones.din import DIN
from learn_rank.ranker.backbones.features import Features, SequenceEmbeddings, Widths
from learn_rank.ranker.backbones.finalmlp import FinalMLP
from learn_rank.ranker.backbones.masknet import MaskNet
from learn_rank.ranker.backbones.options import BACKBONES
from learn_rank.ranker.options import RankerOptions

B, F, D, L = 6, 3, 4, 5
OPTIONS = with_changes(
    RankerOptions(), {"backbone.hidden_dims": [8, 4], "tables.embedding_dim": D, "backbone.dcnv2.cross_rank": 5}
)


def random_features(widths: Widths) -> Features:
    """B rows; each sequence one longer than the last, the first empty."""
    mask = torch.arange(L) < torch.arange(B).unsqueeze(1)
    return Features(
        torch.randn(B, widths.dense, requires_grad=True),
        torch.randn(B, sum(widths.sparse), requires_grad=True),
        torch.randn(B, widths.learn, requires_grad=True) if widths.learn else None,
        tuple(
            SequenceEmbeddings((torch.randn(B, L, dim) * mask.unsqueeze(2)).requires_grad_(), mask, torch.randn(B, dim))
            for dim in widths.sequences
        ),
    )


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("num_dense", [0, 2])
@pytest.mark.parametrize("learn_dim", [0, 7])
@pytest.mark.parametrize("num_sequences", [0, 2])
def test_every_input_reaches_the_logit(name: str, num_dense: int, learn_dim: int, num_sequences: int) -> None:
    torch.manual_seed(0)
    widths = Widths(num_dense, (D,) * F, learn_dim, (D,) * num_sequences)
    features = random_features(widths)
    logit = build_backbone(widths, with_changes(OPTIONS, {"backbone.name": name}))(features)
    assert logit.shape == (B,)
    logit.sum().backward()
    for tensor in (features.dense, features.sparse, features.learn, *(one.values for one in features.sequences)):
        if tensor is not None and tensor.numel():
            assert (tensor.grad != 0).flatten(0, -2).any(0).all()


@pytest.mark.parametrize("cross_rank", [0, 2])
def test_dcnv2_logit_worked_from_its_formula(cross_rank: int) -> None:
    torch.manual_seed(0)
    backbone = DCNv2(
        Widths(0, (D,) * F),
        with_changes(OPTIONS, {"backbone.dcnv2.num_cross_layers": 1, "backbone.dcnv2.cross_rank": cross_rank}),
    )
    x = torch.randn(B, F * D)
    cross = backbone.cross
    matrix = cross.W_kernels[0] @ cross.V_kernels[0] if cross_rank else cross.kernels[0]
    bias = nn.init.normal_(cross.bias[0])
    crossed = x * (x @ matrix.T + bias.flatten()) + x
    expected = backbone.head(torch.cat([crossed, backbone.deep(x)], 1)).squeeze(1)
    torch.testing.assert_close(backbone(Features(torch.zeros(B, 0), x)), expected)


def test_deepfm_logit_worked_pair_by_pair() -> None:
    torch.manual_seed(0)
    widths = Widths(2, (D,) * F, 3, (D,))
    features = random_features(widths)
    backbone = DeepFM(widths, OPTIONS)
    x = features.concatenated()
    logits = backbone.first_order(x) + backbone.deep(x)
    for row in range(B):
        fields = list(features.sparse[row].split(D))
        fields.append(features.sequences[0].values[row].sum(0) / max(row, 1))  # `row` entries, zeros behind them
        numbers = [*features.dense[row], *features.learn[row]]
        fields += [number * backbone.vectors.weight[:, k] for k, number in enumerate(numbers)]
        pairs = sum(one @ other for one, other in combinations(fields, 2))
        torch.testing.assert_close(backbone(features)[row], logits[row, 0] + pairs)


@pytest.mark.parametrize("num_blocks", [0, 2])
def test_masknet_logit_worked_from_its_formula(num_blocks: int) -> None:
    torch.manual_seed(0)
    widths = Widths(2, (D, 8, 8), 3)
    backbone = MaskNet(
        widths, with_changes(OPTIONS, {"backbone.masknet.num_blocks": num_blocks, "backbone.masknet.mask_ratio": 1.5})
    )
    nn.init.normal_(backbone.norm.scale)
    nn.init.normal_(backbone.norm.shift)
    features = random_features(widths)
    x = features.concatenated()

    def normalised(values: torch.Tensor) -> torch.Tensor:
        mean, variance = values.mean(1, keepdim=True), values.var(1, keepdim=True, unbiased=False)
        return (values - mean) / (variance + 1e-5).sqrt()

    fields = torch.cat([normalised(field) for field in x[:, 2:].split([D, 8, 8, 3], 1)], 1)
    hidden = torch.cat([x[:, :2], fields * backbone.norm.scale + backbone.norm.shift], 1)

    def block(number: int, masked: torch.Tensor) -> torch.Tensor:
        one = backbone.blocks[number]
        first, last = one.mask[0], one.mask[2]
        assert first.out_features == round(1.5 * masked.shape[1])
        mask = (x @ first.weight.T + first.bias).relu() @ last.weight.T + last.bias
        return normalised((mask * masked) @ one.linear.weight.T).relu()

    top = torch.cat([block(0, hidden), block(1, hidden)], 1) if num_blocks else block(1, block(0, hidden))
    torch.testing.assert_close(backbone(features), backbone.head(top).squeeze(1))


def test_din_weighs_a_sequence_by_its_activation_unit_and_sums() -> None:
    torch.manual_seed(0)
    widths = Widths(2, (D,) * F, 3, (D, 8))
    backbone = DIN(widths, with_changes(OPTIONS, {"backbone.din.attention_dims": [7]}))
    for parameter in backbone.parameters():
        nn.init.normal_(parameter)  # PReLU's slopes too
    features = random_features(widths)
    interests = []
    for unit, sequence in zip(backbone.units, features.sequences, strict=True):
        first, slope, last = unit.mlp[0], unit.mlp[1].weight, unit.mlp[2]
        rows = []
        for row, target in enumerate(sequence.target):
            total = torch.zeros_like(target)
            for value in sequence.values[row, :row]:  # `row` values
                hidden = first.weight @ torch.cat([value, target, value - target, value * target]) + first.bias
                hidden = hidden.clamp(min=0) + slope * hidden.clamp(max=0)
                total = total + (last.weight @ hidden + last.bias) * value
            rows.append(total)
        interests.append(torch.stack(rows))
    x = torch.cat([features.dense, features.sparse, *interests, features.learn], 1)
    torch.testing.assert_close(backbone(features), backbone.top(x).squeeze(1), atol=1e-3, rtol=1e-4)
    for layer, kind in zip(backbone.top, [nn.Linear, nn.PReLU] * 2 + [nn.Linear], strict=True):
        assert isinstance(layer, kind)


@pytest.mark.parametrize("gates", [[], ["item", "user"]])
def test_finalmlp_logit_worked_from_its_formula(gates: list[str]) -> None:
    torch.manual_seed(0)
    widths = Widths(2, (D, 8, D), 3, names=("user", "genres", "item"))
    backbone = FinalMLP(
        widths, with_changes(OPTIONS, {"backbone.finalmlp.gate_features": gates, "backbone.finalmlp.fusion_heads": 2})
    )
    features = random_features(widths)
    x = features.concatenated()
    places = {"user": slice(0, D), "item": slice(D + 8, D + 8 + D)}
    outputs = []
    for number in range(2):
        gate = backbone.gates[number]
        context = features.sparse[:, places[gates[number]]] if gates else gate.vector.expand(B, D)
        outputs.append(backbone.streams[number](2 * gate.mlp(context).sigmoid() * x))
    logits = backbone.linear(torch.cat(outputs, 1)).squeeze(1)
    for head in range(2):  # hidden_dims[-1] = 4: two numbers each
        first, second = (output[:, 2 * head : 2 * head + 2] for output in outputs)
        logits = logits + ((first @ backbone.bilinear[head]) * second).sum(1)
    torch.testing.assert_close(backbone(features), logits)


def test_what_finalmlp_cannot_do_is_said() -> None:
    widths = Widths(0, (D, D), names=("user", "item"))
    with pytest.raises(InputError, match=r"fusion_heads is 3, expected a divisor of the last of hidden_dims, 4"):
        FinalMLP(widths, with_changes(OPTIONS, {"backbone.finalmlp.fusion_heads": 3}))
    with pytest.raises(InputError, match=r"gate_features is \['user'\], expected two sparse features or none"):
        FinalMLP(widths, with_changes(OPTIONS, {"backbone.finalmlp.gate_features": ["user"]}))
    with pytest.raises(InputError, match="'author' is no sparse feature, expected one of user, item"):
        FinalMLP(widths, with_changes(OPTIONS, {"backbone.finalmlp.gate_features": ["user", "author"]}))


def test_the_mean_of_a_sequence_ignores_what_is_behind_its_end() -> None:
    features = random_features(Widths(0, (D,), 0, (D,)))
    sequence = features.sequences[0]
    means = features.concatenated()[:, D:]
    assert not means[0].any()  # empty
    torch.testing.assert_close(means[3], sequence.values[3, :3].mean(0))


def test_a_backbone_of_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    class Linear(nn.Module):
        def __init__(self, widths: Widths, options: RankerOptions) -> None:
            super().__init__()
            self.linear = nn.Linear(widths.total, 1)

        def forward(self, features: Features) -> torch.Tensor:
            logit: torch.Tensor = self.linear(features.concatenated())
            return logit.squeeze(1)

    monkeypatch.setitem(sys.modules, "my_rankers", types.ModuleType("my_rankers"))
    monkeypatch.setattr(sys.modules["my_rankers"], "build", Linear, raising=False)
    widths = Widths(2, (D, 2 * D))
    backbone = build_backbone(widths, with_changes(OPTIONS, {"backbone.name": "my_rankers:build"}))
    assert backbone(random_features(widths)).shape == (B,)
    with pytest.raises(InputError, match=r"ranker.backbone.name is 'my_rankers:nothing': .*expected module:Name"):
        build_backbone(widths, with_changes(OPTIONS, {"backbone.name": "my_rankers:nothing"}))
    with pytest.raises(InputError, match=r"ranker.backbone.name is 'no_rankers:build': No module named 'no_rankers'"):
        build_backbone(widths, with_changes(OPTIONS, {"backbone.name": "no_rankers:build"}))


@pytest.mark.parametrize("name", ["deepfm", "dlrm"])
def test_a_product_of_embeddings_needs_equal_widths(name: str) -> None:
    with pytest.raises(InputError, match=rf"{name} multiplies embeddings .* are 4, 8 wide; leave out"):
        build_backbone(Widths(0, (4, 8)), with_changes(OPTIONS, {"backbone.name": name}))


def test_an_unknown_backbone_names_the_nearest() -> None:
    with pytest.raises(InputError, match="no backbone 'dcn'; did you mean 'dcnv2'"):
        with_changes(RankerOptions(), {"backbone.name": "dcn"})
    with pytest.raises(InputError, match="expected one of dcnv2, deepfm, din, dlrm"):
        with_changes(RankerOptions(), {"backbone.name": "transformer"})
