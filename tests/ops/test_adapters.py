"""What the adapters to causal-conv1d and mamba-ssm refuse. What they compute is in tests/oracle/test_adapters.py."""

import pytest
import torch

from recbole_ssd.ops import causal_conv1d_package, ssd_mamba


class OnGPU(torch.Tensor):
    """A tensor that says it lies on a GPU; of shape and strides alone, on the device meta."""

    is_cuda = True


def gpu(*shape, dtype=torch.float32):
    return torch.empty(*shape, dtype=dtype, device="meta").as_subclass(OnGPU)


@pytest.fixture(autouse=True)
def fresh_kernels():
    for adapter in (causal_conv1d_package, ssd_mamba):
        adapter.load_kernel.cache_clear()
    yield
    for adapter in (causal_conv1d_package, ssd_mamba):
        adapter.load_kernel.cache_clear()


def test_the_convolution_names_what_does_not_suit_it(monkeypatch):
    monkeypatch.setattr(causal_conv1d_package, "load_kernel", lambda: (None, None))
    stream, four = gpu(1, 50, 64), gpu(64, 4)
    assert causal_conv1d_package.refusal(stream, four) is None
    for sentence, x, weight in (
        ("CUDA device and the tensors are on cpu", torch.ones(1, 5, 64), four),
        ("x is torch.float64", gpu(1, 5, 64, dtype=torch.float64), four),
        ("filters of 2 to 4 taps and this one has 5", stream, gpu(64, 5)),
        ("filters of 2 to 4 taps and this one has 1", stream, gpu(64, 1)),
        ("multiple of 8 channels and x has 12", gpu(1, 5, 12), gpu(12, 4)),
        ("reach 3728269 tokens of this width and x has 3728270", gpu(1, 3728270, 1152)[..., :64], four),
        ("reach 4194240 tokens of this width and x has 4194241", gpu(1, 4194241, 8), gpu(8, 4)),
    ):
        assert sentence in causal_conv1d_package.refusal(x, weight)
    assert causal_conv1d_package.refusal(gpu(1, 3728269, 1152)[..., :64], four) is None


def test_the_convolution_names_a_package_that_is_absent_or_too_old(monkeypatch):
    monkeypatch.setattr(causal_conv1d_package, "find_spec", lambda name: None)
    assert "not installed (pip install" in causal_conv1d_package.refusal(gpu(1, 5, 8), gpu(8, 4))
    causal_conv1d_package.load_kernel.cache_clear()
    monkeypatch.setattr(causal_conv1d_package, "find_spec", lambda name: name)
    monkeypatch.setattr(causal_conv1d_package, "version", lambda name: "1.6.2.post1")
    sentence = causal_conv1d_package.refusal(gpu(1, 5, 8), gpu(8, 4))
    assert sentence == "causal-conv1d 1.6.2.post1 reads seq_idx out of bounds: install 1.7.0 or later"


def test_the_scan_names_what_does_not_suit_it(monkeypatch):
    monkeypatch.setattr(ssd_mamba, "load_kernel", lambda: (None, None))

    def refusal(tokens, chunk_size=None, heads=16, groups=1, dtype=torch.float32):
        width = heads * 64 + 2 * groups * 64 + 8
        row = gpu(1, tokens, width, dtype=dtype)
        x, B, C, _ = row.split([heads * 64, groups * 64, groups * 64, 8], dim=-1)
        B, C = (t.unflatten(-1, (groups, 64)) for t in (B, C))
        return ssd_mamba.refusal(x.unflatten(-1, (heads, 64)), B, C, chunk_size)

    assert refusal(1851278) is None
    assert "reach 1851278 tokens of this width and x has 1851279" in refusal(1851279)
    assert "reach 1048560 tokens" in refusal(1048561, chunk_size=16, heads=2)  # 65535 chunks
    assert "reach 524272 tokens" in refusal(1048561, chunk_size=16, heads=2, groups=2)
    assert "reach 131071 tokens" in refusal(131072, chunk_size=4)  # 16384 numbers a token in the states of its chunks
    assert "x is torch.float64" in refusal(9, dtype=torch.float64)
    x = torch.ones(1, 5, 2, 4)
    assert "CUDA device and the tensors are on cpu" in ssd_mamba.refusal(x, x, x)


def test_the_scan_names_a_package_that_is_absent(monkeypatch):
    monkeypatch.setattr(ssd_mamba, "find_spec", lambda name: None)
    x = gpu(1, 5, 2, 4)
    assert "mamba-ssm is not installed (pip install" in ssd_mamba.refusal(x, x, x)
