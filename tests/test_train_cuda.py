"Training on a GPU: recorded steps give what launched ones give. Skipped where there is none."
import pytest
import torch
from torch import nn

from cmunext_nb.model import create_model
from cmunext_nb.train import fit, start_run
from test_train import blobs, tiny

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def train(model=None, **kwargs):
    model = tiny() if model is None else model
    settings = {**dict(recipe="fast", batch_size=4, amp=False, progress=False, validate_every=1, device="cuda"), **kwargs}
    return model, fit(model, blobs(30, 64), blobs(6, 64, seed=1), **{"epochs": 4, **settings})


def watched(runs):
    def hook(run): runs.append((run.cuda_graph, len([r for r in run.recorded.values() if not isinstance(r, int)])))
    return hook


@pytest.fixture
def exact():
    "Convolutions and products in full float32: TF32's rounding differs from call to call, and training magnifies it."
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("settings", [dict(recipe="paper", lr=1e-3), dict(recipe="paper", lr=1e-3, clip=0.5, ema=0.9, weight_decay=0.1),
                                      dict(lr=1e-4, sizes=None), dict(lr=1e-4, weight_decay=0.5),
                                      dict(recipe="muon", lr=1e-4, sizes=None)], ids=str)
def test_recorded_steps_are_the_launched_ones(settings, exact):
    seen, seen_launched, losses = [], [], dict(recorded=[], launched=[])
    model, _ = train(on_step=lambda run: (watched(seen)(run), losses["recorded"].append(run.loss)), epochs=3, **settings)
    other, _ = train(cuda_graph=False, on_step=lambda run: (watched(seen_launched)(run), losses["launched"].append(run.loss)), epochs=3, **settings)
    assert max(n for _, n in seen) >= 1 and max(n for _, n in seen_launched) == 0
    torch.testing.assert_close(*(torch.tensor(v) for v in losses.values()), rtol=1e-3, atol=0)
    start, moved, apart = tiny().state_dict(), 0.0, 0.0
    for k, v in model.state_dict().items():
        if "num_batches" in k: assert torch.equal(v, other.state_dict()[k]), k
        elif v.is_floating_point():
            moved += (v.cpu() - start[k]).square().sum().item()
            apart += (v - other.state_dict()[k]).square().sum().item()
    assert apart**0.5 < 0.02 * moved**0.5, (apart**0.5, moved**0.5)  # the two end far closer to each other than to where they began


def test_recorded_steps_in_mixed_precision_learn():
    seen = []
    _, history = train(amp="auto", on_step=watched(seen), epochs=6)
    assert max(n for _, n in seen) >= 1 and history.rows[-1]["loss"] < history.rows[0]["loss"] - 0.05


def test_it_goes_on_from_a_folder_and_on_the_cpu(tmp_path):
    settings = dict(recipe="paper", batch_size=4, progress=False, epochs=4)
    data = blobs(30, 64), blobs(6, 64, seed=1)
    fit(tiny(), *data, out=tmp_path, device="cuda", on_step=lambda run: run.step < 13, **settings)
    state = fit(tiny(), *data, out=tmp_path, device="cuda", on_step=lambda run: run.step < 21, **settings)
    assert "stopped after step 21" in state.message
    assert len(fit(tiny(), *data, resume=state, device="cpu", **settings).rows) == 4
    assert len(fit(tiny(), *data, out=tmp_path, device="cuda", **settings).rows) == 4


class Asks(nn.Module):
    "A network that asks the GPU for a value."
    def __init__(self):
        super().__init__()
        self.net = tiny()

    def forward(self, x): return self.net(x) * (1.0 if x.sum().item() > -1e30 else 2.0)


def test_a_network_that_cannot_be_recorded_is_trained_all_the_same():
    seen = []
    _, history = train(Asks(), on_step=watched(seen), epochs=3)
    assert seen[1][0] and not seen[-1][0] and len(history.rows) == 3 and history.rows[-1]["loss"] < history.rows[0]["loss"]
    _, again = train(epochs=3)  # and the next training records again
    assert len(again.rows) == 3


def test_a_network_with_dropout_is_not_recorded():
    seen = []
    _, history = train(nn.Sequential(tiny(), nn.Dropout(0.1)), on_step=watched(seen), epochs=2)
    assert max(n for _, n in seen) == 0 and len(history.rows) == 2


def test_a_loss_that_is_no_number_leaves_the_last_epoch():
    kept = {}
    def spoil(run):
        if run.epoch == 2 and run.step == 20: run.model.head.bias.data.fill_(float("nan"))
        if run.epoch == 2 and not kept: kept.update({k: v.clone() for k, v in run.saved["model"].items()})
    model = tiny()
    with pytest.raises(FloatingPointError, match="epoch 3, step"): train(model, recipe="paper", on_step=spoil)
    assert all(torch.equal(v.cpu(), kept[k]) for k, v in model.state_dict().items())


def test_without_a_graph_where_it_was_not_asked_for():
    run = start_run(create_model("cmunext_s"), blobs(4, 64), device="cuda")
    assert not run.cuda_graph and isinstance(run.optimizer.param_groups[0]["lr"], float)
