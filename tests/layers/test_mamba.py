import pytest
import torch
import torch.nn.functional as F
from torch import nn

from recbole_ssd.layers import mamba
from recbole_ssd.layers.mamba import Mamba
from recbole_ssd.model.abstract_recommender import PackedSequentialRecommender

LENGTHS = (1, 2, 3, 70, 5)
SIZES = {"usual": {"d_state": 8}, "no filter": {"d_conv": 1}, "wide": {"d_state": 3, "d_conv": 6, "expand": 3}}


def definition(m: Mamba, u):
    """Mamba's block written out, one token after the other. u: (l, d)."""
    rank, n = m.dt_proj.in_features, m.d_state
    x, z = (u @ m.in_proj.weight.t()).chunk(2, dim=-1)
    taps = m.conv1d.weight[:, 0]
    padded = F.pad(x, (0, 0, taps.shape[1] - 1, 0))
    x = F.silu(sum(padded[k : k + len(u)] * taps[:, k] for k in range(taps.shape[1])) + m.conv1d.bias)
    state, ys = torch.zeros(x.shape[1], n, dtype=u.dtype), []
    for x_t, z_t in zip(x, z):
        dt, B, C = (m.x_proj.weight @ x_t).split([rank, n, n])
        dt = F.softplus(m.dt_proj.weight @ dt + m.dt_proj.bias)[:, None]
        state = torch.exp(-dt * m.A_log.exp()) * state + dt * x_t[:, None] * B
        ys.append((state @ C + m.D * x_t) * F.silu(z_t))
    return torch.stack(ys) @ m.out_proj.weight.t()


@pytest.mark.parametrize("backend", ["auto", "torch", "reference"])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_block_equals_its_definition_packed_and_dense(sizes, backend):
    m, u = Mamba(24, backend=backend, **sizes).double(), torch.randn(1, sum(LENGTHS), 24, dtype=torch.float64)
    with torch.no_grad():
        m.D.normal_()
        m.dt_proj.bias.normal_()
    cu = torch.tensor([0, *LENGTHS]).cumsum(0)
    want = torch.cat([definition(m, u[0, begin:end]) for begin, end in zip(cu, cu[1:])])
    torch.testing.assert_close(m(u, cu)[0], want, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(m(u[0], cu), want, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(m(u[:, 6:76])[0], want[6:76], rtol=1e-11, atol=1e-12)
    rows = u[0, :80].view(2, 40, 24)
    torch.testing.assert_close(m(rows), torch.stack([definition(m, row) for row in rows]), rtol=1e-11, atol=1e-12)


def test_parameters_have_the_names_and_shapes_of_mamba_ssm():
    shapes = {name: tuple(p.shape) for name, p in Mamba(64, d_state=16).named_parameters()}
    assert shapes == {
        "A_log": (128, 16),
        "D": (128,),
        "in_proj.weight": (256, 64),
        "conv1d.weight": (128, 1, 4),
        "conv1d.bias": (128,),
        "x_proj.weight": (4 + 16 + 16, 128),
        "dt_proj.weight": (128, 4),
        "dt_proj.bias": (128,),
        "out_proj.weight": (64, 128),
    }


def test_initial_decays_are_one_to_n_and_the_skip_is_one():
    m = Mamba(16, d_state=5)
    torch.testing.assert_close(m.A_log.exp(), torch.arange(1.0, 6.0).expand(32, 5))
    assert torch.equal(m.D, torch.ones(32))


def test_initial_step_sizes_are_log_uniform_in_their_range():
    dt = F.softplus(Mamba(512).dt_proj.bias)
    assert 0.00099 < dt.min() < 0.0015 and 0.07 < dt.max() < 0.101
    assert 0.007 < dt.median() < 0.014  # uniform draws would have it at .05


@pytest.fixture
def scanned(monkeypatch):
    """Every call's arguments to the scan: x, dt, A, B, C, D."""
    calls, scan = [], mamba.selective_scan

    def recording(*tensors, **kwargs):
        calls.append(tensors)
        return scan(*tensors, **kwargs)

    monkeypatch.setattr(mamba, "selective_scan", recording)
    return calls


@pytest.mark.parametrize(
    ("dt_init", "low", "high"), [("paper", 0.0009, 0.11), ("authors", 0.68, 0.71)], ids=["paper", "authors"]
)
def test_dt_init_decides_the_step_sizes_after_the_model_has_initialized(scanned, dt_init, low, high):
    m = Mamba(64, dt_init=dt_init)
    own = {name: p.clone() for name, p in m.named_parameters()}
    PackedSequentialRecommender.initialize(nn.Sequential(m), std=0.02)
    m(torch.randn(1, 100, 64))
    dt = scanned[0][1]
    assert low < dt.min() and dt.max() < high
    changed = {name for name, p in m.named_parameters() if not torch.equal(p, own[name])}
    dt_proj = {"dt_proj.weight", "dt_proj.bias"} if dt_init == "authors" else set()
    assert changed == {"in_proj.weight", "x_proj.weight", "out_proj.weight"} | dt_proj


def test_autocast_keeps_the_scan_in_float32(scanned):
    m, u = Mamba(32, d_state=8), torch.randn(1, 50, 32)
    cu = torch.tensor([0, 20, 50])
    plain = m(u, cu)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = m(u, cu)
    assert y.dtype == torch.bfloat16  # out_proj's: autocast was on
    assert {t.dtype for t in scanned[1]} == {torch.float32}
    assert not torch.equal(y.float(), plain)
    torch.testing.assert_close(y.float(), plain, rtol=0, atol=0.02 * plain.abs().max().item())


def test_a_user_gets_bit_identical_output_whoever_the_neighbours_are():
    m, u, cu = Mamba(32), torch.randn(sum(LENGTHS), 32), torch.tensor([0, *LENGTHS]).cumsum(0)
    others = torch.randn_like(u)
    others[6:76] = u[6:76]
    assert torch.equal(m(u, cu)[6:76], m(others, cu)[6:76])


def test_unknown_dt_init_gets_a_sentence():
    with pytest.raises(ValueError, match="dt_init must be one of paper, authors, got 'zero'"):
        Mamba(16, dt_init="zero")


def test_borders_of_another_stream_get_a_sentence():
    with pytest.raises(ValueError, match="those of 5 tokens"):
        Mamba(16)(torch.randn(4, 16), torch.tensor([0, 5]))
