"""Autocast in training: which type, on which device, and gradients clipped at their true size."""

from contextlib import nullcontext

import pytest
import torch

from recbole_ssd import Config, Trainer, create_dataset, data_preparation, get_model, init_seed
from recbole_ssd.precision import Precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def build(run_folder, tiny):
    """A function that gives a trainer and its training data."""

    def make(model="SSD4Rec", **settings):
        config = Config(model, config_dict={**tiny, "epochs": 2, **settings})
        init_seed(config["seed"], config["reproducibility"])
        train, valid, _ = data_preparation(config, create_dataset(config))
        return Trainer(config, get_model(model)(config, train.dataset)), train, valid

    return make


@pytest.mark.parametrize("model", ["SSD4Rec", "MambaRec", "PackedSASRec", "MoEMaTrRec"])
def test_bfloat16_trains_on_a_cpu_near_float32(build, model):
    losses, types = [], set()
    for amp in (False, True):
        trainer, train, valid = build(model, enable_amp=amp)
        *_, linear = (part for part in trainer.model.modules() if isinstance(part, torch.nn.Linear))
        linear.register_forward_hook(lambda module, _, y, amp=amp: types.add((amp, module.training, y.dtype)))
        trainer.fit(train, valid, verbose=False, saved=False)
        losses.append(trainer.train_loss_dict)
        assert {weight.dtype for weight in trainer.model.parameters()} == {torch.float32}
    assert types == {
        (False, True, torch.float32),
        (False, False, torch.float32),
        (True, True, torch.bfloat16),
        (True, False, torch.float32),  # scores are float32, as in RecBole
    }
    whole, half = losses
    assert half != whole and half == pytest.approx(whole, rel=0.01)
    assert half[1] < half[0]


def test_float16_on_a_cpu_is_refused_when_training_starts(build):
    trainer, train, valid = build(enable_amp=True, amp_dtype="float16")  # such a checkpoint can be evaluated here
    assert trainer.evaluate(valid, load_best_model=False)
    with pytest.raises(RuntimeError, match="'amp_dtype: float16' trains on a GPU .* set amp_dtype to bfloat16"):
        trainer.fit(train, verbose=False, saved=False)


@pytest.fixture
def gpu(monkeypatch):
    """A function that makes torch answer as on a machine with a GPU, with bfloat16 or without."""

    def pretend(bfloat16):  # in its own arithmetic; torch emulates it on any
        monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True: bfloat16 or including_emulation
        )
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
        monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        monkeypatch.setattr(torch.amp.grad_scaler.torch.cuda, "is_available", lambda: True)

    return pretend


def test_bfloat16_on_a_gpu_without_it_is_refused(gpu):
    gpu(bfloat16=False)
    with pytest.raises(RuntimeError, match="capability 8.0 or newer, this one is a Tesla T4: set amp_dtype to float16"):
        Precision(CUDA, "bfloat16")
    Precision(CUDA, None)


@pytest.mark.parametrize(("amp_dtype", "scales"), [(None, False), ("bfloat16", False), ("float16", True)])
def test_only_float16_scales_its_loss(gpu, amp_dtype, scales):
    gpu(bfloat16=True)
    assert Precision(CUDA, amp_dtype).scaler.is_enabled() == scales


def test_an_autocast_that_names_no_type_takes_ours_inside_and_its_own_again_outside(gpu):
    gpu(bfloat16=True)
    with pytest.raises(KeyError), Precision(CUDA, "bfloat16").by_default():
        assert torch.autocast("cuda").fast_dtype == torch.bfloat16
        raise KeyError
    assert torch.autocast("cuda").fast_dtype == torch.float16
    with Precision(CUDA, None).by_default():
        assert torch.autocast("cuda").fast_dtype == torch.float16


def test_recboles_loop_takes_our_type(build, monkeypatch):
    monkeypatch.setattr("recbole_ssd.precision._check", lambda *args: None)
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *args, **kwargs: None)
    trainer, train, _ = build("GRU4Rec", enable_amp=True, amp_dtype="float16")
    seen = set()
    weight = trainer.model.dense.weight

    def loss(batch):
        seen.add((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
        return weight.sum()

    monkeypatch.setattr(trainer.model, "calculate_loss", loss)
    trainer._train_epoch(train, 0)
    assert seen == {(True, torch.float16)}


@pytest.mark.parametrize("clip", [None, {"max_norm": 0.5}], ids=["whole", "clipped"])
def test_a_scaled_loss_gives_the_step_of_the_plain_one(clip):
    weights = []
    for scale in (None, 1024.0):  # a power of two changes no digit
        layer = torch.nn.Linear(4, 3)
        torch.nn.init.constant_(layer.weight, 0.5)
        torch.nn.init.zeros_(layer.bias)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        precision = Precision(CPU, None)
        if scale:
            precision.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        loss = layer(torch.arange(8.0).view(2, 4)).pow(2).sum()
        precision.step(loss, optimizer, list(layer.parameters()), clip)
        weights.append(layer.weight)
    assert torch.equal(*weights)
    assert not torch.equal(weights[0], torch.full((3, 4), 0.5))


def test_a_step_with_gradients_too_large_for_float16_is_left_out():
    layer = torch.nn.Linear(2, 1)
    before = layer.weight.detach().clone()
    precision = Precision(CPU, None)
    precision.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    optimizer = torch.optim.Adam(layer.parameters(), fused=True)
    precision.step(layer.weight.sum() * float("inf"), optimizer, list(layer.parameters()), {"max_norm": 1.0})
    assert torch.equal(layer.weight, before) and precision.scaler.get_scale() == 2.0
    optimizer.zero_grad()
    precision.step(layer.weight.sum(), optimizer, list(layer.parameters()), {"max_norm": 1.0})
    assert not torch.equal(layer.weight, before)
