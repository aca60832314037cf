"""What each network is for: shapes, causality, padding, torch's own layers, curvature products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from llqr_sam_ref.nets import (
    Decoder,
    EncoderDecoder,
    ResNet,
    VisionTransformer,
    WideResNet,
    contrastive_loss,
    mlp,
    two_towers,
)
from llqr_sam_ref.nets.attention import Block, sinusoids
from llqr_sam_ref.nets.resnet import Bottleneck
from llqr_sam_ref.optim.curvature.linearization import Linearization


def tokens(*shape: int, high: int = 11, low: int = 1) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(0))


def images(n: int, channels: int, size: int) -> Tensor:
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(0)).double()


CASES: dict[str, tuple[Callable[[], nn.Module], Any, Tensor]] = {
    "mlp": (lambda: mlp((16, 5, 3), "tanh"), images(4, 1, 4), tokens(4, high=3)),
    "wide resnet": (lambda: WideResNet(10, 1, 3), images(4, 3, 8), tokens(4, high=3)),
    "bottleneck resnet": (
        lambda: ResNet(Bottleneck, (1, 1), 3, width=4, stem="imagenet"),
        images(4, 3, 16),
        tokens(4, high=3),
    ),
    "vit": (
        lambda: VisionTransformer(8, 2, 2, 3, image_size=8, patch_size=4),
        images(4, 3, 8),
        tokens(4, high=3),
    ),
    "decoder": (lambda: Decoder(11, 8, 2, 2, 6), tokens(4, 6), tokens(4, 6)),
    "encoder-decoder": (
        lambda: EncoderDecoder(11, 11, 8, 2, 2, 16, dropout=0.0),
        (tokens(4, 5), tokens(4, 6)),
        tokens(4, 6),
    ),
}
cases = pytest.mark.parametrize("name", CASES)


def built(name: str) -> tuple[nn.Module, Any, Tensor]:
    make, inputs, targets = CASES[name]
    torch.manual_seed(0)
    model = make().double().eval()
    for parameter in model.parameters():  # also what starts at zero
        nn.init.normal_(parameter, std=0.3)
    return model, inputs, targets


@cases
def test_logits_have_classes_on_axis_one(name: str) -> None:
    model, inputs, targets = built(name)
    outputs = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    assert outputs.shape[0] == 4
    assert outputs.shape[2:] == targets.shape[1:]
    assert torch.isfinite(functional.cross_entropy(outputs, targets))


@cases
def test_curvature_products_run_on_it(name: str) -> None:
    """v^T H w = w^T H v, and H v is the derivative of the gradient along v."""
    model, inputs, targets = built(name)
    linear = Linearization(model, nn.CrossEntropyLoss(), inputs, targets, backend="kept")
    torch.manual_seed(1)
    v, w = (
        {n: torch.randn_like(p) for n, p in model.named_parameters() if p.requires_grad} for _ in range(2)
    )
    product = {
        "hessian": (linear.hessian(v), linear.hessian(w)),
        "fisher": (linear.fisher(v), linear.fisher(w)),
    }
    for hv, hw in product.values():
        left, right = (sum(float((a[n] * b[n]).sum()) for n in v) for a, b in ((hv, w), (hw, v)))
        assert left == pytest.approx(right, rel=1e-9, abs=1e-12)
    gradient, size = linear.gradient(), 1e-6
    with torch.no_grad():
        for n, p in model.named_parameters():
            p.add_(v[n], alpha=size)
    moved = linear.relinearize(inputs, targets).gradient()
    difference = torch.cat([((moved[n] - gradient[n]) / size).flatten() for n in v])
    exact = torch.cat([product["hessian"][0][n].flatten() for n in v])
    assert (difference - exact).norm() < 1e-3 * exact.norm()


def test_traced_products_equal_kept_ones() -> None:
    """Logits whose classes were moved to axis 1 keep a layout that a trace can rely on."""
    model, inputs, targets = built("decoder")
    v = {n: torch.ones_like(p) for n, p in model.named_parameters()}
    kept, traced = (
        Linearization(model, nn.CrossEntropyLoss(), inputs, targets, backend=backend).ggn(v)
        for backend in ("kept", "traced")
    )
    for name, product in kept.items():
        torch.testing.assert_close(traced[name], product, rtol=1e-10, atol=1e-12)


def test_decoder_does_not_look_ahead() -> None:
    model, text, _ = built("decoder")
    changed = text.clone()
    changed[:, 4] = (changed[:, 4] + 1) % 11
    before, after = model(text), model(changed)
    torch.testing.assert_close(before[:, :, :4], after[:, :, :4], rtol=0, atol=0)
    assert not torch.allclose(before[:, :, 4], after[:, :, 4])


def test_translation_ignores_padding_of_the_source() -> None:
    model, (source, target), _ = built("encoder-decoder")
    padded = functional.pad(source, (0, 3), value=0)
    torch.testing.assert_close(model(source, target), model(padded, target), rtol=1e-12, atol=1e-12)


def test_translation_does_not_look_ahead() -> None:
    model, (source, target), _ = built("encoder-decoder")
    changed = target.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 11
    torch.testing.assert_close(
        model(source, target)[:, :, :3], model(source, changed)[:, :, :3], rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("memory", [True, False])
def test_block_equals_torchs_layer(*, norm_first: bool, memory: bool) -> None:
    """The same weights in torch's encoder or decoder layer give the same output."""
    torch.manual_seed(0)
    ours = Block(8, 2, 16, activation="relu", norm_first=norm_first, memory=memory).double()
    kind = nn.TransformerDecoderLayer if memory else nn.TransformerEncoderLayer
    theirs = kind(8, 2, 16, 0.0, norm_first=norm_first, batch_first=True).double()

    def copy_attention(attention: Any, target: Any) -> None:
        parts = (attention.query, attention.key, attention.value)
        target.in_proj_weight.data.copy_(torch.cat([p.weight for p in parts]))
        target.in_proj_bias.data.copy_(torch.cat([p.bias for p in parts]))
        target.out_proj.load_state_dict(attention.out.state_dict())

    copy_attention(ours.attention, theirs.self_attn)
    norms: list[Any] = [ours.attention_norm, ours.mlp_norm]
    if memory:
        copy_attention(ours.cross, theirs.multihead_attn)
        norms.insert(1, ours.cross_norm)
    for number, norm in enumerate(norms, 1):
        torch.nn.init.normal_(norm.weight)
        getattr(theirs, f"norm{number}").load_state_dict(norm.state_dict())
    theirs.linear1.load_state_dict(ours.mlp[0].state_dict())
    theirs.linear2.load_state_dict(ours.mlp[2].state_dict())
    x, y = torch.randn(3, 5, 8).double(), torch.randn(3, 4, 8).double()
    expected = theirs(x, y) if memory else theirs(x)
    torch.testing.assert_close(ours(x, memory=y if memory else None), expected, rtol=1e-12, atol=1e-12)


def test_positions_are_sines_and_cosines() -> None:
    codes = sinusoids(7, 6)
    for t in range(7):
        for i in range(3):
            angle = torch.tensor(t / 10000 ** (2 * i / 6))
            torch.testing.assert_close(codes[t, 2 * i], angle.sin(), rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(codes[t, 2 * i + 1], angle.cos(), rtol=1e-5, atol=1e-6)


def test_contrastive_loss_at_chance_is_the_logarithm_of_the_batch() -> None:
    loss = contrastive_loss(torch.zeros(128, 128, dtype=torch.float64), torch.arange(128))
    assert float(loss) == pytest.approx(4.852030, abs=1e-6)


def test_contrastive_loss_is_symmetric_in_images_and_captions() -> None:
    logits, order = torch.randn(6, 6).double(), torch.randperm(6)
    inverse = torch.argsort(order)
    torch.testing.assert_close(contrastive_loss(logits, order), contrastive_loss(logits.T, inverse))


def test_two_towers_see_directions_only() -> None:
    torch.manual_seed(0)
    model = two_towers(12, (16, 8, 4)).double()
    pictures, captions = images(3, 1, 4), tokens(5, 2)
    logits = model(pictures, captions)
    assert logits.shape == (3, 5)
    scale = float(model.log_scale.detach().exp())
    assert float(logits.detach().abs().max()) <= scale + 1e-9
    assert scale == pytest.approx(1 / 0.07, rel=1e-6)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: WideResNet(12, 2), ("depth=12", "6 n + 4")),
        (lambda: VisionTransformer(8, 1, 3), ("heads=3", "width=8")),
        (lambda: VisionTransformer(8, 1, 2, patch_size=5), ("patch_size=5", "image_size=32")),
        (lambda: VisionTransformer(8, 1, 2)(torch.zeros(1, 3, 28, 28)), ("(28, 28)", "image_size=32")),
        (lambda: Decoder(5, 8, 1, 2, 3)(tokens(1, 4, high=5)), ("4 tokens", "context=3")),
        (lambda: Decoder(0), ("vocabulary=0",)),
        (lambda: Block(8, 2, 8, activation="rleu"), ("'rleu'", "'relu'")),
        (lambda: sinusoids(3, 5), ("width=5", "even")),
        (lambda: two_towers(3, temperature=0.0), ("temperature=0.0",)),
    ],
)
def test_bad_arguments_are_named(make: Callable[[], object], words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError) as caught:
        make()
    for word in words:
        assert word in str(caught.value)
