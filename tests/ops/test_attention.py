import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from recbole_ssd.ops import attention_torch
from recbole_ssd.ops.attention import attention
from recbole_ssd.ops.packing import Segments

from .streams import LENGTHS, ORDERS, borders, error, run

LONG = (300, 40, 299, 1)  # two segments of several blocks in one bucket


def inputs_of(length, heads=2, size=8, seed=0, batch=1):
    """q, k, v in float64."""
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, length, heads, size, dtype=torch.float64, generator=g) for _ in range(3)]


def backend(name, cu_seqlens=None, **kwargs):
    return lambda q, k, v: attention(q, k, v, cu_seqlens=cu_seqlens, backend=name, **kwargs)


def seeded(op, seed=0):
    def call(*inputs):
        torch.manual_seed(seed)
        return op(*inputs)

    return call


def test_reference_is_the_definition():
    (q, k, v), cu = inputs_of(9), borders([3, 1, 5])
    got = attention(q, k, v, cu_seqlens=cu, backend="reference")[0]
    for begin, end in zip(cu, cu[1:]):
        for t in range(begin, end):
            for h in range(2):
                weights = [torch.exp(q[0, t, h] @ k[0, s, h] / 8**0.5) for s in range(begin, t + 1)]
                want = sum(w * v[0, begin + s, h] for s, w in enumerate(weights)) / sum(weights)
                torch.testing.assert_close(got[t, h], want, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("scores", [1, 2**18], ids=["a row a block", "many rows a block"])
@pytest.mark.parametrize("lengths", [*ORDERS.values(), LONG], ids=[*ORDERS, "long"])
def test_packed_equals_reference_in_float64(lengths, scores, monkeypatch):
    monkeypatch.setattr(attention_torch, "SCORES", scores)
    inputs, cu = inputs_of(sum(lengths)), borders(lengths)
    dy = torch.randn_like(inputs[0])
    for got, want in zip(run(backend("torch", cu), inputs, dy), run(backend("reference", cu), inputs, dy)):
        assert error(got, want) < 1e-13


@pytest.mark.parametrize("length", [1, 63, 64, 65, 200])
def test_dense_equals_reference_in_float64(length):
    inputs = inputs_of(length, batch=3)
    dy = torch.randn_like(inputs[0])
    for got, want in zip(run(backend("torch"), inputs, dy), run(backend("reference"), inputs, dy)):
        assert error(got, want) < 1e-13


@pytest.mark.parametrize("lengths", [LENGTHS, LONG], ids=["mixed", "long"])
def test_float32_is_as_accurate_as_plain_softmax(lengths):
    cu, blocked, plain = borders(lengths), [], []
    for seed in range(5):
        inputs = inputs_of(sum(lengths), size=32, seed=seed)
        dy = torch.randn_like(inputs[0])
        truth = run(backend("reference", cu), inputs, dy)
        for name, errors in (("torch", blocked), ("reference", plain)):
            got = run(backend(name, cu), inputs, dy, torch.float32)
            errors.append([error(*pair) for pair in zip(got, truth)])
    blocked, plain = (torch.tensor(errors).median(0).values for errors in (blocked, plain))
    assert (blocked <= 2 * plain).all(), (blocked, plain)


@pytest.mark.parametrize("size", [8, 5], ids=["even", "odd"])
def test_gradcheck(size):
    inputs, cu = [t.requires_grad_() for t in inputs_of(9, size=size)], borders([1, 3, 5])
    assert torch.autograd.gradcheck(backend("torch", cu), inputs)
    assert torch.autograd.gradcheck(seeded(backend("torch", cu, dropout_p=0.4)), inputs)


@pytest.mark.parametrize("dropout_p", [0.0, 0.4])
def test_changing_one_segment_leaves_all_others_bit_identical(dropout_p):
    lengths = (*ORDERS["mixed"], 190)
    cu = borders(lengths)
    changed = slice(cu[2], cu[3])  # the one of 200 tokens, which shares a bucket with that of 190
    inputs, other = inputs_of(sum(lengths)), inputs_of(sum(lengths), seed=1)
    mixed = [t.clone() for t in inputs]
    for t, o in zip(mixed, other):
        t[:, changed] = 50 * o[:, changed]
    op, dy = seeded(backend("torch", cu, dropout_p=dropout_p)), torch.randn_like(inputs[0])
    same = torch.ones(sum(lengths), dtype=torch.bool)
    same[changed] = False
    for before, after in zip(run(op, inputs, dy, torch.float32), run(op, mixed, dy, torch.float32)):
        assert torch.equal(before[:, same], after[:, same])
        assert not torch.equal(before[:, changed], after[:, changed])


def test_a_neighbours_nan_stays_with_him():
    lengths = (5, 8, 60, 64, 190, 200)
    inputs, cu = inputs_of(sum(lengths)), borders(lengths)
    want = run(backend("torch", cu), inputs, inputs[0])
    for ill in range(len(lengths)):
        spoilt = [t.clone() for t in inputs]
        for t in spoilt:
            t[:, cu[ill] : cu[ill + 1]] = torch.nan
        with torch.autograd.set_detect_anomaly(False):  # RecBole's SINE turns it on for all when it is imported
            ours = run(backend("torch", cu), spoilt, inputs[0])
        for got, healthy in zip(ours, want):
            assert torch.equal(got[:, : cu[ill]], healthy[:, : cu[ill]])
            assert torch.equal(got[:, cu[ill + 1] :], healthy[:, cu[ill + 1] :])


@pytest.mark.parametrize("dropout_p", [0.0, 0.4])
@pytest.mark.parametrize("length", [40, 300], ids=["one block", "blocks"])
def test_changing_the_future_leaves_the_past_bit_identical(length, dropout_p):
    inputs, other = inputs_of(length), inputs_of(length, seed=1)
    op = seeded(backend("torch", dropout_p=dropout_p))
    for t in (1, 15, length - 30, length - 1):
        mixed = [torch.cat([here[:, :t], 50 * there[:, t:]], dim=1) for here, there in zip(inputs, other)]
        before, after = op(*(i.float() for i in inputs)), op(*(i.float() for i in mixed))
        assert torch.equal(before[:, :t], after[:, :t])
        assert not torch.equal(before[:, t:], after[:, t:])


@pytest.mark.parametrize("dropout_p", [0.0, 0.4])
def test_same_bits_again_whatever_lies_in_fresh_memory(dropout_p):
    inputs, cu = inputs_of(sum(LENGTHS)), borders(LENGTHS)
    op, dy = seeded(backend("torch", cu, dropout_p=dropout_p)), torch.randn_like(inputs[0])
    before = run(op, inputs, dy, torch.float32)
    torch.use_deterministic_algorithms(True)  # and torch fills every torch.empty with NaN
    try:
        after = run(op, inputs, dy, torch.float32)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(*pair) for pair in zip(before, after))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_scores_stay_finite(dtype):
    (q, k, v), cu = inputs_of(sum(LENGTHS)), borders(LENGTHS)
    inputs, dy = [1e3 * q, 1e3 * k, v], torch.randn_like(v)  # scores of a million: every softmax picks one token
    assert all(got.isfinite().all() for got in run(backend("torch", cu), inputs, dy, dtype))
    if dtype == torch.float64:
        assert error(attention(*inputs, cu_seqlens=cu), attention(*inputs, cu_seqlens=cu, backend="reference")) < 1e-8


def kept_by_dropout(cu, dropout_p, heads=2, seed=0, scores=None):
    """(T, h, longest): P times its dropout, read off with values that name their token."""
    segments = Segments(cu)
    q, k, _ = scores or inputs_of(segments.total, heads)
    v = F.one_hot(segments.position).double()[None, :, None].expand(-1, -1, heads, -1)
    q, k = (F.pad(t, (0, v.shape[-1] - t.shape[-1])) for t in (q, k))
    return seeded(backend("torch", cu, dropout_p=dropout_p), seed)(q, k, v)[0]


def with_mask(mask, cu):
    """The definition with a given mask on the probabilities, (T, h, longest)."""

    def op(q, k, v):
        parts = []
        for begin, end in zip(cu, cu[1:]):
            queries, keys, values = (t[0, begin:end].transpose(0, 1) for t in (q, k, v))
            scores = queries @ keys.mT / q.shape[-1] ** 0.5
            P = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf).softmax(-1)
            dropped = P * mask[begin:end, :, : end - begin].transpose(0, 1)
            parts.append((dropped @ values).transpose(0, 1))
        return torch.cat(parts)[None]

    return op


def test_backward_drops_what_forward_dropped():
    lengths, scale = (200, 3, 65, 1, 180), 1 / (1 - round(0.4 * 2**16) / 2**16)
    cu = borders(lengths)
    mask = (kept_by_dropout(cu, 0.4) != 0).double() * scale
    inputs = inputs_of(sum(lengths))
    dy = torch.randn_like(inputs[0])
    got = run(seeded(backend("torch", cu, dropout_p=0.4)), inputs, dy)
    for ours, truth in zip(got, run(with_mask(mask, cu), inputs, dy)):
        assert error(ours, truth) < 1e-12


@pytest.mark.parametrize("dropout_p", [0.1, 0.5, 0.9])
def test_dropout_rate_scale_and_independence(dropout_p):
    n = 250
    cu, level = borders([n, n]), torch.zeros(1, 2 * n, 2, 1, dtype=torch.float64)
    P = kept_by_dropout(cu, dropout_p, scores=[level] * 3)  # level scores: row t holds t + 1 times 1 / (t + 1)
    assert torch.equal(P, P * torch.ones(n, n).tril().repeat(2, 1)[:, None])
    rows = torch.arange(1, n + 1).repeat(2)[:, None, None]
    kept = P != 0
    scale = 1 / (1 - round(dropout_p * 2**16) / 2**16)
    torch.testing.assert_close((P * rows)[kept], torch.full_like(P[kept], scale), rtol=1e-12, atol=0)
    draws, p = n * (n + 1) * 2, 1 - dropout_p
    assert abs(kept.sum() / draws - p) < 5 * (p * dropout_p / draws) ** 0.5
    for far in (1, 2, 3, 4):  # bits are cut from words of four
        agree = (kept[..., far:] == kept[..., :-far])[(rows > torch.arange(far, n)).expand(-1, 2, -1)].double().mean()
        assert abs(agree - p**2 - dropout_p**2) < 0.01
    last = kept[n - 1 :: n].double().flatten(0, 1)  # the longest row of either head and segment
    agree = [(last[i] == last[j]).double().mean() for i in range(4) for j in range(i)]
    assert all(abs(a - p**2 - dropout_p**2) < 0.17 for a in agree)  # heads and segments draw for themselves


def test_dropout_follows_the_seed():
    inputs, cu = inputs_of(sum(LENGTHS)), borders(LENGTHS)
    op = backend("torch", cu, dropout_p=0.4)
    first, again, other = (seeded(op, seed)(*inputs) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not torch.equal(op(*inputs), op(*inputs))
    state = torch.get_rng_state()
    attention(*inputs, cu_seqlens=cu)
    assert torch.equal(torch.get_rng_state(), state)  # nothing is drawn where nothing is dropped
    mean = sum(op(*inputs) for _ in range(200)) / 200
    assert error(mean, attention(*inputs, cu_seqlens=cu)) < 0.3


def test_reference_has_dropout_too():
    inputs = inputs_of(20)
    op = backend("reference", dropout_p=0.4)
    assert torch.equal(seeded(op)(*inputs), seeded(op)(*inputs)) and not torch.equal(op(*inputs), op(*inputs))


class Largest(TorchDispatchMode):
    """The most elements any result had."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        sizes = [t.numel() for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        self.numel = max([self.numel, *sizes])
        return result


@pytest.mark.parametrize("dropout_p", [0.0, 0.4])
def test_memory_is_linear_in_the_longest_segment(dropout_p):
    largest, saved = {}, []
    for length in (2048, 4096):
        inputs = [t.float().requires_grad_() for t in inputs_of(length, size=32)]
        keep = torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t)
        with Largest() as mode, keep:
            attention(*inputs, dropout_p=dropout_p).sum().backward()
        largest[length] = mode.numel
    assert largest[4096] <= 2.01 * largest[2048]
    assert largest[4096] <= 4096 * 2 * 32 * 1.01  # the inputs themselves; all scores would be 4096 * 2 * 4096
    assert saved == [2048 * 2 * 32] * 3 + [4096 * 2 * 32] * 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["torch", "reference"])
def test_half_precision_is_computed_in_float32(name, dtype):
    inputs, cu = [t.to(dtype) for t in inputs_of(sum(LENGTHS))], borders(LENGTHS)
    dy = torch.randn_like(inputs[0])
    got, want = (run(backend(name, cu), inputs, dy, d) for d in (dtype, torch.float32))
    for half, single in zip(got, want):
        assert torch.equal(half, single.to(dtype).double())


def test_autocast_changes_nothing():
    inputs, cu = inputs_of(sum(LENGTHS)), borders(LENGTHS)
    dy = torch.randn_like(inputs[0])
    for name in ("torch", "reference"):
        want = attention(*(t.float() for t in inputs), cu_seqlens=cu, backend=name)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(attention(*(t.float() for t in inputs), cu_seqlens=cu, backend=name), want)
    want = run(backend("torch", cu), inputs, dy, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = run(backend("torch", cu), inputs, dy, torch.float32)
    assert all(torch.equal(*pair) for pair in zip(got, want))


def test_the_layout_is_made_once_for_a_number_of_heads():
    segments = Segments(borders(LENGTHS))
    first = attention_torch.buckets(segments, 2)
    assert attention_torch.buckets(segments, 2) is first
    for heads in (2, 3):
        inputs = inputs_of(sum(LENGTHS), heads=heads)
        got = attention(*inputs, cu_seqlens=segments)
        assert error(got, attention(*inputs, cu_seqlens=segments, backend="reference")) < 1e-13


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"backend": "flash"}, "backends auto, torch, reference; got 'flash'"),
        ({"cu_seqlens": torch.tensor([0, 5])}, r"\(1, 5"),
        ({"cu_seqlens": torch.tensor([0, 4, 4, 10])}, "empty"),
        ({"k": torch.ones(1, 10, 2, 7)}, "one shape"),
        ({name: torch.ones(10, 2, 8) for name in "qkv"}, "one shape"),
        ({"v": torch.ones(1, 10, 2, 8, dtype=torch.float64)}, "must all be float32"),
        ({name: torch.ones(1, 10, 2, 8, dtype=torch.int64) for name in "qkv"}, "must all be float32"),
        ({"dropout_p": 1.0}, "below 1, got 1.0"),
        ({"dropout_p": -0.1}, "at least 0"),
    ],
)
def test_wrong_input_gets_a_sentence(change, sentence):
    arguments = dict(zip("qkv", (t.float() for t in inputs_of(10)))) | change
    with pytest.raises(ValueError, match=sentence):
        attention(**arguments)


def test_a_dense_batch_is_no_stream():
    with pytest.raises(ValueError, match=r"\(1, 30, \.\.\.\)"):
        attention(*inputs_of(10, batch=3), cu_seqlens=torch.tensor([0, 30]))
