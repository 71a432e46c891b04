import pytest
import torch
from recbole.model.layers import MultiHeadAttention as RecBoleMultiHeadAttention

from recbole_ssd.layers.attention import SelfAttention
from recbole_ssd.layers.residual import Residual
from recbole_ssd.ops.packing import Segments

LENGTHS = (5, 1, 70, 12, 70)


def layer(n_heads=2, hidden_dropout_prob=0.0, attn_dropout_prob=0.0):
    """What RecBole's MultiHeadAttention is: attention with its residual and norm."""
    torch.manual_seed(0)
    attention = SelfAttention(16, n_heads, attn_dropout_prob)
    return Residual(attention, 16, dropout_prob=hidden_dropout_prob, layer_norm_eps=1e-12)


def renamed(name):
    return name if name.startswith("LayerNorm") else f"mixer.{name}"


def stream(dtype=torch.float32):
    g = torch.Generator().manual_seed(1)
    x = torch.randn(sum(LENGTHS), 16, dtype=torch.float64, generator=g).to(dtype)
    return x, Segments(torch.tensor([0, *LENGTHS]).cumsum(0))


def on_padded_rows(theirs, x, segments):
    """RecBole's layer on rows padded behind, under the mask that its SASRec makes."""
    rows = torch.nn.utils.rnn.pad_sequence(x.split(LENGTHS), batch_first=True)
    real = torch.arange(rows.shape[1]) < segments.lengths[:, None]  # (rows, longest)
    seen = real[:, None, None] & torch.ones(rows.shape[1], rows.shape[1], dtype=torch.bool).tril()
    return theirs(rows, torch.where(seen, 0.0, -10000.0))[real]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_heads", [1, 2])
def test_recboles_weights_give_recboles_output_and_gradients(n_heads, dtype):
    theirs = RecBoleMultiHeadAttention(n_heads, 16, 0.0, 0.0, 1e-12).to(dtype)
    ours = layer(n_heads=n_heads).to(dtype)
    ours.load_state_dict({renamed(name): value for name, value in theirs.state_dict().items()})
    x, segments = stream(dtype)
    got, want = ours(x, segments), on_padded_rows(theirs, x, segments)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-13)
    dy = torch.randn_like(got)
    for y in (got, want):
        y.backward(dy)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(
            ours.get_parameter(renamed(name)).grad, parameter.grad, rtol=tolerance, atol=10 * tolerance
        )


@pytest.mark.parametrize("dropout", ["hidden_dropout_prob", "attn_dropout_prob"])
def test_each_dropout_works_in_training_only(dropout):
    module, (x, segments) = layer(**{dropout: 0.5}), stream()
    with_dropout = module(x, segments)
    assert not torch.equal(with_dropout, module(x, segments))
    plain = layer()(x, segments)
    assert torch.equal(module.eval()(x, segments), plain)
    first = segments.first  # alone with themselves: their one probability is kept or not
    changed = (with_dropout - plain).abs().amax(1) > 0
    assert changed.any() and changed[first].any()


def test_autocast_gives_float32_near_float32():
    module, (x, segments) = layer(), stream()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = module(x, segments)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, module(x, segments), rtol=0, atol=0.05)
    y.sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in module.parameters())


def test_heads_that_do_not_fit_get_a_sentence():
    with pytest.raises(ValueError, match="n_heads must divide hidden_size = 16, got 3"):
        layer(n_heads=3)
