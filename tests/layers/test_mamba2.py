import pytest
import torch
import torch.nn.functional as F

from recbole_ssd.layers import mamba2
from recbole_ssd.layers.mamba2 import Mamba2
from recbole_ssd.ops.packing import Segments

LENGTHS = (1, 2, 3, 70, 5)


def block(**kwargs):
    return Mamba2(16, d_state=8, headdim=8, **kwargs).double()


def definition(m: Mamba2, u):
    """Mamba-2's block written out, one token after the other. u: (l, d)."""
    heads, p, g = len(m.A_log), m.headdim, m.ngroups
    n = (m.conv1d.in_channels - m.d_inner) // (2 * g)
    z, xBC, dt = (u @ m.in_proj.weight.t()).split([m.d_inner, m.conv1d.in_channels, heads], dim=-1)
    padded = F.pad(xBC, (0, 0, m.conv1d.kernel_size[0] - 1, 0))
    taps = m.conv1d.weight[:, 0]
    xBC = F.silu(sum(padded[k : k + len(u)] * taps[:, k] for k in range(taps.shape[1])) + m.conv1d.bias)
    x, B, C = xBC.split([m.d_inner, g * n, g * n], dim=-1)
    dt, state, ys = F.softplus(dt + m.dt_bias), torch.zeros(heads, p, n, dtype=u.dtype), []
    for t in range(len(u)):
        B_t, C_t = (v[t].view(g, n).repeat_interleave(heads // g, 0) for v in (B, C))
        x_t = x[t].view(heads, p)
        state = torch.exp(-dt[t] * m.A_log.exp())[:, None, None] * state
        state = state + (dt[t][:, None] * x_t)[..., None] * B_t[:, None]
        ys.append((state * C_t[:, None]).sum(-1) + m.D[:, None] * x_t)
    y = torch.stack(ys).flatten(1) * F.silu(z)
    groups = y.view(len(y), g, -1)
    normed = groups / (groups.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return (normed.flatten(1) * m.norm.weight) @ m.out_proj.weight.t()


@pytest.mark.parametrize("groups", [1, 2])
def test_block_equals_its_definition_packed_and_dense(groups):
    m, u = block(ngroups=groups), torch.randn(1, sum(LENGTHS), 16, dtype=torch.float64)
    cu = torch.tensor([0, *LENGTHS]).cumsum(0)
    want = torch.cat([definition(m, u[0, begin:end]) for begin, end in zip(cu, cu[1:])])
    torch.testing.assert_close(m(u, cu)[0], want, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(m(u[:, 6:76])[0], want[6:76], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 2])
def test_readout_is_the_block_on_every_flipped_prefix(groups):
    m, u = block(ngroups=groups), torch.randn(sum(LENGTHS), 16, dtype=torch.float64)
    cu = torch.tensor([0, *LENGTHS]).cumsum(0)
    projected, segments = m.project(u), Segments(cu)
    both = m.scan_and_read_out(projected, segments, 0.5)
    got = m.out_proj(2 * (both - m.scan(projected, segments)))
    for begin, end in zip(cu, cu[1:]):
        for t in range(begin + 1, end + 1):
            want = definition(m, u[begin:t].flip(0))[-1]
            torch.testing.assert_close(got[t - 1], want, rtol=1e-11, atol=1e-12)


def test_parameters_have_the_names_and_shapes_of_mamba_ssm():
    shapes = {name: tuple(p.shape) for name, p in Mamba2(64, d_state=32, headdim=16).named_parameters()}
    assert shapes == {
        "dt_bias": (8,),
        "A_log": (8,),
        "D": (8,),
        "in_proj.weight": (128 + 128 + 64 + 8, 64),
        "conv1d.weight": (192, 1, 4),
        "conv1d.bias": (192,),
        "norm.weight": (128,),
        "out_proj.weight": (64, 128),
    }


def test_initial_step_sizes_and_decays_are_in_their_ranges():
    m = Mamba2(256, headdim=8)
    dt = F.softplus(m.dt_bias)
    assert 0.00099 < dt.min() and dt.max() < 0.101
    assert m.A_log.exp().min() >= 1 and m.A_log.exp().max() <= 16


def test_autocast_keeps_the_scan_in_float32():
    m, u = Mamba2(16, d_state=8, headdim=8), torch.randn(1, 20, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = m.scan(m.project(u[0]), Segments(torch.tensor([0, 20])))
    assert y.dtype == torch.float32
    torch.testing.assert_close(m.out_proj(y), m(u)[0], rtol=0.1, atol=0.1)


@pytest.mark.parametrize(("kwargs", "sentence"), [({"headdim": 7}, "headdim"), ({"ngroups": 3}, "ngroups")])
def test_sizes_that_do_not_fit_get_a_sentence(kwargs, sentence):
    with pytest.raises(ValueError, match=sentence):
        Mamba2(16, **({"headdim": 8} | kwargs))


@pytest.mark.parametrize("settings", [{}, {"backend": "torch"}, {"headdim": 256, "expand": 16}], ids=str)
def test_half_precision_stays_where_our_kernels_take_it(monkeypatch, settings):
    dtypes = {}

    def look(name, op):
        def looked(*args, **kwargs):
            dtypes[name] = next(t.dtype for t in (*args, *kwargs.values()) if torch.is_tensor(t))
            wide = {key: t.float() if torch.is_tensor(t) else t for key, t in kwargs.items()}
            return op(*(t.float() if torch.is_tensor(t) else t for t in args), **wide).to(dtypes[name])

        monkeypatch.setattr(f"recbole_ssd.layers.mamba2.{name}", looked)

    for name in ("conv_ssd", "gated_rms_norm"):
        look(name, getattr(mamba2, name))
    monkeypatch.setattr(mamba2, "refusal", lambda x: None)  # as on a GPU
    m = Mamba2(16, **{"d_state": 8, "headdim": 8, **settings})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        m(torch.randn(1, 9, 16))
    assert set(dtypes.values()) == {torch.float32 if settings else torch.bfloat16} and len(dtypes) == 2
