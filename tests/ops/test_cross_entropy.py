from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F

from recbole_ssd.ops.cross_entropy import linear_cross_entropy

from .streams import assert_threads_change_no_bit, error, run, seen_by

ROWS, TILES = {"budget_mb": 1.0}, {"budget_mb": 0.004}  # for the inputs below: blocks of whole rows, and tiles
NUMBA = {"backend": "numba"}
with_numba = pytest.mark.skipif(find_spec("numba") is None, reason="numba is not installed")
by_numba = pytest.param(NUMBA, marks=with_numba, id="numba")
by_columns = pytest.param("columns", marks=with_numba, id="columns")
forms = pytest.mark.parametrize(
    "form", [pytest.param(ROWS, id="rows"), pytest.param(TILES, id="tiles"), by_numba, by_columns], indirect=True
)
numbas = pytest.mark.parametrize("form", [by_numba, by_columns], indirect=True)
ONE = torch.ones((), dtype=torch.float64)


@pytest.fixture
def form(request, monkeypatch):
    """How a loss is computed, as arguments; `columns` is numba's way with catalogues whose logits it cannot hold."""
    if request.param != "columns":
        return request.param
    from recbole_ssd.ops.compiled import cross_entropy

    monkeypatch.setattr(cross_entropy, "MOST_LOGITS", 0)
    return NUMBA


def inputs_of(targets=70, items=301, size=16, scale=1.0):
    torch.manual_seed(0)
    hidden, weight = (torch.randn(n, size, dtype=torch.float64) for n in (targets, items))
    target = torch.randint(items, (targets,))
    target[0], target[-1] = items - 1, 0
    return [scale * hidden, weight], target


def plain(target):
    return lambda h, w: F.cross_entropy(h @ w.t(), target)


def ours(target, *args, **kwargs):
    return lambda h, w: linear_cross_entropy(h, w, target, *args, **kwargs)


@pytest.mark.parametrize("rows", [0.01, 1, 7, 64, 1000])
@pytest.mark.parametrize("targets, items", [(70, 301), (1, 2), (1, 301), (300, 2)])
def test_equals_torch(rows, targets, items):
    inputs, target = inputs_of(targets, items, scale=0.3)  # no loss so near 0 that a share of it means nothing
    dy = torch.tensor(1.7, dtype=torch.float64)
    budget_mb = rows * items * 8 / 2**20
    for got, want in zip(run(ours(target, budget_mb), inputs, dy), run(plain(target), inputs, dy)):
        assert error(got, want) < 1e-13


@numbas
# rows of one tile and of several stripes, items of one tile and of several
@pytest.mark.parametrize("targets, items", [(70, 301), (1, 2), (1, 301), (300, 2), (1000, 1300), (128, 512)])
def test_numba_equals_torch(targets, items, form):
    inputs, target = inputs_of(targets, items, scale=0.3)
    dy = torch.tensor(1.7, dtype=torch.float64)
    for got, want in zip(run(ours(target, **form), inputs, dy), run(plain(target), inputs, dy)):
        assert error(got, want) < 1e-13


@forms
def test_takes_any_strides(form):
    inputs, target = inputs_of()
    turned = [t.t().contiguous().t() for t in inputs]
    leaves = [t.clone(memory_format=torch.preserve_format).requires_grad_() for t in turned]
    assert not any(t.is_contiguous() for t in leaves)
    linear_cross_entropy(*leaves, target, **form).backward()
    for got, want in zip(leaves, run(plain(target), inputs, ONE)[1:], strict=True):
        assert error(got.grad, want) < 1e-13


@numbas
def test_takes_any_strides_in_bfloat16(form):
    inputs, target = inputs_of()
    inputs = [t.float() for t in inputs]
    turned = [t.t().contiguous().t() for t in inputs]
    one, other = (linear_cross_entropy(*t, target, precision="bfloat16", **form) for t in (inputs, turned))
    assert torch.equal(one, other)


@numbas
def test_numba_gives_the_same_bits_whatever_the_number_of_threads(form):
    inputs, target = inputs_of(1000, 1300)
    assert_threads_change_no_bit(ours(target, **form), inputs, ONE)


@with_numba
@pytest.mark.parametrize("targets, items, size", [(9, 33_000, 8), (9, 8200, 520)])
def test_large_catalogues_go_by_columns(monkeypatch, targets, items, size):
    from recbole_ssd.ops.compiled import cross_entropy

    monkeypatch.setattr(cross_entropy, "_run_by_rows", None)
    inputs, target = inputs_of(targets, items, size, scale=0.1)
    for got, want in zip(run(ours(target, **NUMBA), inputs, ONE), run(plain(target), inputs, ONE)):
        assert error(got, want) < 1e-12


@pytest.mark.parametrize("form", [by_columns], indirect=True)
def test_rows_come_in_groups_that_have_room(form, monkeypatch):
    from recbole_ssd.ops.compiled import cross_entropy_columns

    monkeypatch.setattr(cross_entropy_columns, "MOST_GRADIENTS", 16 * 16 * 200)  # 200 rows: a block of 144, one of 56
    seen, mask = seen_by([3, 450, 47], 1300)
    inputs, target = inputs_of(500, 1300, scale=0.3)
    inputs[0][210] *= 1000  # one group's totals do not fit
    inputs.append(torch.tensor(-1.5, dtype=torch.float64))
    theirs = lambda h, w, b: F.cross_entropy(h @ w.t() + b * mask, target)  # noqa: E731
    mine = lambda h, w, b: linear_cross_entropy(h, w, target, seen=seen, seen_bias=b, **form)  # noqa: E731
    for got, want in zip(run(mine, inputs, ONE), run(theirs, inputs, ONE), strict=True):
        assert error(got, want) < 1e-12


@forms
@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_one_gradient_alone_is_the_same(form, wanted):
    inputs, target = inputs_of(scale=0.3)
    leaves = [t.clone().requires_grad_(w) for t, w in zip(inputs, wanted)]
    linear_cross_entropy(*leaves, target, **form).backward()
    for leaf, want, asked in zip(leaves, run(plain(target), inputs, ONE)[1:], wanted):
        assert error(leaf.grad, want) < 1e-13 if asked else leaf.grad is None


@forms
def test_a_loss_that_is_no_number_is_told(form):
    (hidden, weight), target = inputs_of()
    hidden[3, 2] = float("nan")
    assert linear_cross_entropy(hidden.float(), weight.float(), target, **form).isnan()


@with_numba
def test_little_memory_for_gradients_means_few_stripes(monkeypatch):
    from recbole_ssd.ops.compiled import cross_entropy as module

    monkeypatch.setattr(module, "MOST_GRADIENTS", 2 * 301 * 16)
    monkeypatch.setattr(module, "LEAST", 1)
    inputs, target = inputs_of(500)
    for got, want in zip(run(ours(target, **NUMBA), inputs, ONE), run(plain(target), inputs, ONE)):
        assert error(got, want) < 1e-12


@with_numba
def test_numba_says_that_its_blocks_are_its_own():
    (hidden, weight), target = inputs_of()
    with pytest.raises(RuntimeError, match="blocks of its own, and budget_mb is 1.0"):
        linear_cross_entropy(hidden, weight, target, budget_mb=1.0, **NUMBA)


@with_numba
def test_too_many_pairs_of_rows_and_items_go_to_torch(monkeypatch):
    from recbole_ssd.ops.compiled import cross_entropy

    monkeypatch.setattr(cross_entropy, "MOST_ENTRIES", 10)
    seen, mask = seen_by([3, 4], 1300, whole=True)  # 3 tiles of 7 tokens, of 2 rows
    inputs, target = inputs_of(2, 1300)
    assert mask.shape == (2, 1300)
    with pytest.raises(RuntimeError, match="room for 5,120 pairs of a token and an item, and these are 7 x 1,300"):
        linear_cross_entropy(*inputs, target, seen=seen, seen_bias=ONE, **NUMBA)
    assert linear_cross_entropy(*inputs, target, seen=seen, seen_bias=ONE).isfinite()


@pytest.mark.parametrize("smoothing", [0.1, 0.9])
def test_label_smoothing_is_torchs(smoothing):
    inputs, target = inputs_of(scale=0.3)
    theirs = lambda h, w: F.cross_entropy(h @ w.t(), target, label_smoothing=smoothing)  # noqa: E731
    for got, want in zip(run(ours(target, label_smoothing=smoothing), inputs, ONE), run(theirs, inputs, ONE)):
        assert error(got, want) < 1e-13


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_label_smoothing_is_a_share(smoothing):
    inputs, target = inputs_of()
    with pytest.raises(ValueError, match=r"label_smoothing must lie in \[0, 1\)"):
        linear_cross_entropy(*inputs, target, label_smoothing=smoothing)


@forms
@pytest.mark.parametrize("items", [301, 1300])
@pytest.mark.parametrize("scale", [1, 15, 60])  # logits up to 20, 200 and 1,000: float32's exp ends at 88
def test_float32_is_as_accurate_as_torch(form, scale, items):
    inputs, target = inputs_of(targets=500, items=items, scale=scale)
    truth, theirs = run(plain(target), inputs, ONE), run(plain(target), inputs, ONE, torch.float32)
    for got, other, want in zip(run(ours(target, **form), inputs, ONE, torch.float32), theirs, truth):
        assert error(got, want) <= max(2 * error(other, want), 1e-6)


@pytest.mark.parametrize("offset", [-200, 200])
@forms
@pytest.mark.parametrize("items", [301, 1300])
def test_logits_far_from_zero_neither_overflow_nor_vanish(form, offset, items):
    (hidden, weight), target = inputs_of(items=items, scale=0.3)
    hidden[40:, 0], weight[:, 0] = offset, 1  # from the 41st target on; those before stay as they are
    truth = run(plain(target), [hidden, weight], ONE)
    for got, want in zip(run(ours(target, **form), [hidden, weight], ONE, torch.float32), truth):
        assert error(got, want) < 1e-4  # one digit of float32 at 200 is 1.5e-5


@forms
def test_a_second_run_gives_the_same_bits(form):
    inputs, target = inputs_of(targets=500)
    first, second = (run(ours(target, **form), inputs, ONE, torch.float32) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second))


@pytest.mark.parametrize("budget_mb", [8.0, 1.0, 0.05])
def test_the_budget_holds(budget_mb):
    inputs, target = inputs_of(targets=1500, items=20_000, size=4)  # 114 MB of logits, 0.3 MB of items
    hidden, weight = (t.float().requires_grad_() for t in inputs)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        linear_cross_entropy(hidden, weight, target, budget_mb).backward()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    assert events
    peak, held = 0, 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    gradients = 4 * (hidden.numel() + weight.numel())
    assert peak < budget_mb * 2**20 + 2 * gradients + 2**17  # made and scaled; and a few numbers a row


@forms
def test_no_gradient_is_made_where_none_is_asked_for(form):
    (hidden, weight), target = inputs_of()
    loss = linear_cross_entropy(hidden.requires_grad_(), weight, target, **form)
    assert loss.grad_fn.saved_tensors[1] is None
    loss.backward()
    assert hidden.grad is not None and weight.grad is None
    assert not linear_cross_entropy(hidden.detach(), weight, target, **form).requires_grad


@pytest.mark.skipif(not hasattr(torch.backends.mkldnn, "matmul"), reason="bfloat16 products need torch 2.9")
@pytest.mark.parametrize(("items", "budget_mb"), [(301, 1.0), (5000, 0.5)], ids=["rows", "tiles"])
def test_bfloat16_products_stay_close(items, budget_mb):
    inputs, target = inputs_of(targets=500, items=items, size=64, scale=0.4)  # oneDNN keeps smaller products in float32
    truth = run(plain(target), inputs, ONE)
    before = torch.backends.mkldnn.matmul.fp32_precision
    loss, *grads = run(ours(target, budget_mb, precision="bfloat16"), inputs, ONE, torch.float32)
    assert torch.backends.mkldnn.matmul.fp32_precision == before
    assert error(loss, truth[0]) < 1e-3
    for got, want in zip(grads, truth[1:]):
        assert F.cosine_similarity(got.flatten(), want.flatten(), dim=0) > 0.9999
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        exact = run(ours(target, budget_mb), inputs, ONE, torch.float32)
        assert not torch.equal(grads[0], exact[1]), "the switch reaches nothing"


@numbas
@pytest.mark.parametrize("targets, items, size", [(500, 301, 64), (131, 1300, 33), (1, 2, 1)])
def test_numbas_bfloat16_products_stay_close(targets, items, size, form):
    from recbole_ssd.ops.compiled.registers import HAS_AMX, HAS_BFLOAT16

    inputs, target = inputs_of(targets, items, size, scale=0.4)
    bfloat16 = ours(target, precision="bfloat16", **form)
    if HAS_AMX:
        with pytest.raises(RuntimeError, match="AMX .* which torch uses"):
            run(bfloat16, inputs, ONE, torch.float32)
        return
    loss, *grads = run(bfloat16, inputs, ONE, torch.float32)
    truth, *slopes = run(plain(target), [t.bfloat16().double() if HAS_BFLOAT16 else t for t in inputs], ONE)
    assert error(loss, truth) < 1e-6
    for got, want in zip(grads, slopes):  # p is rounded, too
        assert error(got, want) < (2**-7 if HAS_BFLOAT16 else 1e-5)


def test_half_precision_is_summed_in_float32():
    inputs, target = inputs_of(targets=500)
    inputs = [t.bfloat16() for t in inputs]
    truth = run(plain(target), inputs, ONE)
    for got, want in zip(run(ours(target), inputs, ONE, torch.bfloat16), truth):
        assert error(got, want) < 2**-8  # of the result's own rounding


def test_autocast_changes_nothing():
    inputs, target = inputs_of()
    exact = run(ours(target), inputs, ONE, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(torch.equal(a, b) for a, b in zip(run(ours(target), inputs, ONE, torch.float32), exact))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"target": torch.zeros(3, dtype=torch.int64)}, r"target \(N,\)"),
        ({"hidden": torch.zeros(0, 16), "target": torch.zeros(0, dtype=torch.int64)}, "no target"),
        ({"weight": torch.zeros(301, 16).double()}, "share a dtype"),
        ({"target": torch.full((70,), 301)}, r"targets must lie in 0\.\.300, got 301"),
        ({"target": torch.full((70,), -1)}, r"targets must lie in 0\.\.300, got -1"),
        ({"budget_mb": 0.0}, "budget_mb must be above 0"),
        ({"precision": "half"}, "precision must be float32 or bfloat16"),
        ({"backend": "liger"}, "backends auto, torch, triton, numba; got 'liger'"),
    ],
)
def test_wrong_input_gets_a_sentence(change, message):
    arguments = {"hidden": torch.zeros(70, 16), "weight": torch.zeros(301, 16), "target": torch.zeros(70).long()}
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(**{**arguments, **change})


@pytest.mark.parametrize(
    "hidden, precision, message",
    [
        (torch.zeros(2, 16).double(), "float32", "not in torch.float64"),
        (torch.zeros(2, 65), "float32", "a d of up to 64 in torch.float32, got 65"),
        (torch.zeros(2, 257), "bfloat16", "a d of up to 256 in torch.bfloat16, got 257"),
        (torch.zeros(2, 16), "bfloat16", "no bfloat16"),  # the tests' interpreter
    ],
)
def test_a_backend_that_cannot_run_says_why(hidden, precision, message):
    with pytest.raises(RuntimeError, match=message):
        linear_cross_entropy(hidden, hidden, torch.zeros(2).long(), precision=precision, backend="triton")


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("form", [ROWS, {"budget_mb": 0.02}, TILES, by_numba, by_columns], indirect=True)
@pytest.mark.parametrize("items, bias", [(301, -1.5), (7, 0.7), (301, 400.0), (1300, -1.5), (1300, 400.0)])
def test_what_was_seen_gets_the_bias(form, items, bias, whole, smoothing):
    lengths = [1, 64, 2, 3, 290, 5]
    seen, mask = seen_by(lengths, items, whole)
    inputs, target = inputs_of(len(mask), items, scale=0.3)
    theirs = lambda h, w, b: F.cross_entropy(h @ w.t() + b * mask, target, label_smoothing=smoothing)  # noqa: E731
    mine = lambda h, w, b: linear_cross_entropy(  # noqa: E731
        h, w, target, seen=seen, seen_bias=b, label_smoothing=smoothing, **form
    )
    inputs.append(torch.tensor(bias, dtype=torch.float64))
    for got, want in zip(run(mine, inputs, ONE), run(theirs, inputs, ONE), strict=True):
        assert error(got, want) < 1e-12


@forms
def test_the_bias_gets_a_gradient_where_one_is_asked_for(form):
    seen, mask = seen_by([3, 4], 301)
    inputs, target = inputs_of(len(mask))
    inputs.append(ONE)
    whole = run(lambda h, w, b: linear_cross_entropy(h, w, target, seen=seen, seen_bias=b, **form), inputs, ONE)[3]
    bias = ONE.clone().requires_grad_()
    loss = linear_cross_entropy(*inputs[:2], target, seen=seen, seen_bias=bias, **form)
    loss.backward()
    assert error(bias.grad, whole) < 1e-13
    assert not linear_cross_entropy(*inputs[:2], target, seen=seen, seen_bias=ONE, **form).requires_grad


@pytest.mark.parametrize(
    "change, message",
    [
        ({"seen": None}, "come together"),
        ({"seen_bias": None}, "come together"),
        ({"seen_bias": torch.ones(1)}, r"a seen_bias of shape \(\)"),
        ({"seen": seen_by([3, 5], 301)[0]}, "expected a Seen of 7 rows and 301 items"),
        ({"seen": seen_by([3, 4], 300)[0]}, "expected a Seen of 7 rows and 301 items"),
    ],
)
def test_what_was_seen_must_fit(change, message):
    inputs, target = inputs_of(7)
    given = {"seen": seen_by([3, 4], 301)[0], "seen_bias": ONE, **change}
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(*inputs, target, **given)


def test_triton_refuses_what_was_seen():
    seen, mask = seen_by([3, 4], 301)
    inputs, target = inputs_of(len(mask))
    with pytest.raises(RuntimeError, match="add no bias to the logits"):
        linear_cross_entropy(*inputs, target, seen=seen, seen_bias=ONE, backend="triton")
