"""Muon and the beginning with the lesions' share: corner cases. The everyday path is checked in nbs/14c_optimizer.ipynb and nbs/15_train.ipynb."""
import copy

import pytest
import torch
from torch import nn

import cmunext_nb as cn
from cmunext_nb.optim import Muon, matrix_weights, orthogonalise
from cmunext_nb.train import _begin_with_share, get_recipe, start_run


@pytest.mark.parametrize("shape", [(1, 7), (7, 1), (5, 5), (3, 40), (40, 3), (2, 6, 4)])
def test_orthogonalise_keeps_directions_and_evens_out_lengths(shape):
    torch.manual_seed(0)
    m = torch.randn(shape, dtype=torch.float64)
    u, s, vt = torch.linalg.svd(m, full_matrices=False)
    even = orthogonalise(m)
    inner = u.mT @ even.double() @ vt.mT
    lengths = inner.diagonal(dim1=-2, dim2=-1)
    assert even.dtype == torch.float32 and even.shape == m.shape
    assert 0.6 < lengths.min() and lengths.max() < 1.3
    assert (inner - torch.diag_embed(lengths)).abs().max() < 1e-3


def test_tiny_and_huge_gradients_step_the_same_length():
    m = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    for scale in (1e-4, 1e6): torch.testing.assert_close(orthogonalise(scale * m), orthogonalise(m), atol=1e-2, rtol=0)
    assert orthogonalise(1e-30 * m).isfinite().all()


class Odd(nn.Module):
    "Layers of every kind, frozen and unused ones among them."
    def __init__(self):
        super().__init__()
        self.first, self.deep, self.grouped = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1, groups=2)
        self.up, self.line, self.frozen, self.unused = nn.ConvTranspose2d(8, 4, 2, stride=2), nn.Conv1d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.norm, self.scale, self.last = nn.BatchNorm2d(8), nn.Parameter(torch.ones(())), nn.Conv2d(4, 1, 1)
        self.frozen.requires_grad_(False)

    def forward(self, x):
        x = self.up(self.grouped(self.norm(self.deep(self.first(x)))))
        return self.last(self.frozen(self.line(x.flatten(2)).view_as(x)) * self.scale)


def test_layers_of_every_kind():
    model = Odd()
    found = matrix_weights(model)
    names = {n for n, p in model.named_parameters() if p in found}
    assert names == {"grouped.weight", "line.weight", "unused.weight"} and found[model.grouped.weight] == 2
    before, optimizer = copy.deepcopy(model.state_dict()), Muon(model)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(2, 3, 8, 8)).square().mean().backward()
        optimizer.step()
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {n for n, _ in model.named_parameters()} - {"frozen.weight", "frozen.bias", "unused.weight", "unused.bias"}


def test_a_network_without_matrices_is_trained_by_adamw():
    torch.manual_seed(0)
    a = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    b = copy.deepcopy(a)
    for model, optimizer in ((a, Muon(a, weight_decay=0.0)), (b, torch.optim.AdamW(b.parameters(), 4e-3, weight_decay=0.0))):
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(2, 4)).square().sum().backward()
            optimizer.step()
    for p, q in zip(a.parameters(), b.parameters()): torch.testing.assert_close(p, q)


def test_a_single_row_is_no_matrix():
    "Of the four heads of U-Net++ only one is the last layer; the gates of Attention U-Net answer with one channel."
    for name in ("unetpp", "attention_unet"):
        found = matrix_weights(cn.create_model(name))
        assert len(found) > 20 and all(len(weight) > parts and weight.shape[1] > 1 for weight, parts in found.items()), name


def test_ends_that_are_not_first_or_last():
    "MedT has a stem for each branch and an unused layer behind its head; U-Net++ has four heads."
    medt, many = cn.create_model("medt", num_classes=2), cn.create_model("unetpp", num_classes=2)
    ends = [medt.whole.stem[0].weight, medt.near.stem[0].weight, medt.head.weight, *(head.weight for head in many.heads)]
    found = {*matrix_weights(medt), *matrix_weights(many)}
    assert len(found) > 100 and not found & set(ends)


def test_as_many_classes_as_inner_channels_change_no_choice():
    names = lambda model: [n for n, p in model.named_parameters() if p in matrix_weights(model)]
    assert names(cn.create_model("cmunext_s", num_classes=8, in_channels=16)) == names(cn.create_model("cmunext_s"))


def test_the_closure_is_called_once_and_its_loss_returned():
    model, calls = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3))), []
    optimizer = Muon(model)

    def closure():
        calls.append(1)
        optimizer.zero_grad()
        loss = model(torch.ones(2, 4)).square().sum()
        loss.backward()
        return loss

    before = copy.deepcopy(model[1].weight)
    assert optimizer.step(closure).item() > 0 and len(calls) == 1 and not torch.equal(before, model[1].weight)
    assert len(optimizer.param_groups) == 3  # all are there again


@pytest.mark.parametrize("how", [dict(ratio=0), dict(momentum=1.0), dict(lr=-1.0)], ids=str)
def test_values_that_cannot_work(how):
    with pytest.raises(ValueError, match="ratio|momentum|learning rate"): Muon(nn.Linear(2, 2), **how)


def test_uphill_is_refused():
    with pytest.raises(ValueError, match="maximize=True.*minus the loss"): Muon(nn.Linear(2, 2), maximize=True)


def test_weights_alone_are_refused():
    with pytest.raises(TypeError, match="the network itself, not generator"): Muon(nn.Linear(2, 2).parameters())


def test_a_group_of_the_readers_own_is_adamws():
    model, extra = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3))), nn.Parameter(torch.ones(3))
    optimizer = Muon(model)
    optimizer.add_param_group(dict(params=[extra]))
    (model(torch.ones(2, 4)).sum() + extra.sum()).backward()
    optimizer.step()
    assert (extra != 1).all() and len(optimizer.param_groups) == 4


def scans(): return cn.make_phantom(16, size=32, seed=0)


def trained(out, stop=None):
    torch.manual_seed(41)
    model = cn.create_model("cmunext_s")
    history = cn.fit(model, scans(), recipe="muon", epochs=3, out=out, device="cpu", progress=False, on_step=stop)
    return model, history


def test_an_interrupted_training_goes_on_exactly(tmp_path):
    whole, _ = trained(tmp_path / "whole")

    def stop(run):
        if run.step == 3: raise KeyboardInterrupt

    _, first = trained(tmp_path / "parts", stop)
    assert first.interrupted
    parts, _ = trained(tmp_path / "parts")
    for (name, a), b in zip(whole.state_dict().items(), parts.state_dict().values()): assert torch.equal(a, b), name


def test_a_state_written_before_a_field_was_known_goes_on(tmp_path):
    how = dict(recipe="fast", epochs=2, out=tmp_path, device="cpu", progress=False)
    torch.manual_seed(41)
    cn.fit(cn.create_model("cmunext_s"), scans(), on_epoch=lambda run: False, **how)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    del state["about"]["recipe.prior"]
    torch.save(state, tmp_path / "state.pt")
    assert len(cn.fit(cn.create_model("cmunext_s"), scans(), **how).rows) == 2
    with pytest.raises(ValueError, match="recipe.prior was False and is now True"):
        cn.fit(cn.create_model("cmunext_s"), scans(), **dict(how, recipe=get_recipe("fast", epochs=2, prior=True), epochs=None))


def test_an_augmentation_written_before_a_field_was_known_goes_on(tmp_path):
    how = dict(recipe="fast", augment=dict(scale=0.4), epochs=2, out=tmp_path, device="cpu", progress=False)
    cn.fit(cn.create_model("cmunext_s"), scans(), on_epoch=lambda run: False, **how)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["about"]["recipe.augment"]["scale"] == 0.4
    del state["about"]["recipe.augment"]["cutmix"]
    torch.save(state, tmp_path / "state.pt")
    assert len(cn.fit(cn.create_model("cmunext_s"), scans(), **how).rows) == 2
    with pytest.raises(ValueError, match="recipe.augment was"): cn.fit(cn.create_model("cmunext_s"), scans(), **dict(how, augment=dict(scale=0.5)))


@pytest.mark.parametrize("name", ["cmunext_s", "unext"])
def test_matrices_of_one_shape_step_together_as_each_alone(name):
    model, lr, decay = cn.create_model(name), 1e-3, 0.05
    for p in model.parameters(): p.grad = torch.randn_like(p)
    before = {p: p.detach().clone() for p in matrix_weights(model)}
    Muon(model, lr=lr, weight_decay=decay).step()
    for p, parts in matrix_weights(model).items():
        gradient = p.grad * (0.95 * 0.05 + 0.05)  # after one step the average is a twentieth of the gradient
        each = [orthogonalise(g.flatten(1)) for g in gradient.chunk(parts)]
        rows, columns = each[0].shape
        wanted = before[p] * (1 - lr * decay) - 10 * lr * max(1, rows / columns) ** 0.5 * torch.cat(each).reshape(p.shape)
        torch.testing.assert_close(p.detach(), wanted, atol=2e-6, rtol=1e-4)


def begun(model, prior=True):
    images, masks = scans()
    start_run(model, (images, masks), recipe=get_recipe("muon", prior=prior), device="cpu")
    return model, masks.float().mean().logit().item()


def test_a_new_network_begins_with_the_share():
    model, wanted = begun(cn.create_model("cmunext_s"))
    assert model.head.bias.item() == pytest.approx(wanted, abs=1e-5)
    torch.manual_seed(1)
    plain = cn.create_model("cmunext_s")
    bias = plain.head.bias.item()
    assert begun(plain, prior=False)[0].head.bias.item() == bias


def test_a_trained_network_keeps_its_bias():
    model = cn.create_model("cmunext_s", pretrained="phantom")
    bias = model.head.bias.item()
    assert begun(model)[0].head.bias.item() == bias


@pytest.mark.parametrize("masks, wanted", [(torch.zeros, 1e-3), (torch.ones, 1 - 1e-3)])
def test_masks_of_one_kind_give_a_finite_bias(masks, wanted):
    model = cn.create_model("cmunext_s")
    start_run(model, (torch.zeros(2, 1, 32, 32, dtype=torch.uint8), masks(2, 1, 32, 32, dtype=torch.uint8)), recipe="muon", device="cpu")
    assert torch.sigmoid(model.head.bias).item() == pytest.approx(wanted, rel=1e-3)


def test_other_networks_are_left_alone_where_nothing_fits():
    norm = nn.BatchNorm2d(4)
    for model in (nn.Conv2d(1, 1, 1), nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), norm, nn.Conv2d(4, 1, 1, bias=False)), nn.Sequential(norm, nn.Conv2d(4, 2, 1))):
        before = copy.deepcopy(model.state_dict())
        _begin_with_share(model, *scans())
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


class Mixed(nn.Module):
    "The head is declared first; a gate and a second head follow it. The logits are enlarged."
    def __init__(self, classes=1):
        super().__init__()
        self.head, self.body, self.norm = nn.Conv2d(8, classes, 1), nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.gate, self.aux = nn.Conv2d(8, classes, 1), nn.Conv2d(8, classes, 1)

    def forward(self, x):
        y = nn.functional.dropout(self.norm(self.body(x)).relu(), 0.1)  # draws in eval mode too
        y = nn.functional.interpolate(self.head(y * self.gate(y).sigmoid().mean(1, keepdim=True)), size=x.shape[-2:], mode="bilinear")
        return [y, self.aux(x)] if self.training else y


@pytest.mark.parametrize("classes", [1, 2])
def test_the_share_goes_to_the_convolution_that_gives_the_logits(classes):
    images, masks = scans()
    masks, model = masks.repeat(1, classes, 1, 1), Mixed(classes)
    model.body.eval()
    before, numbers = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    start_run(model, (images, masks), recipe="muon", device="cpu")
    changed = [k for k, v in model.state_dict().items() if not torch.equal(v, before[k])]
    assert changed == ["head.bias"] and torch.equal(numbers, torch.get_rng_state())
    torch.testing.assert_close(model.head.bias.detach(), masks.float().mean((0, 2, 3)).logit())
    assert model.training and not model.body.training


@pytest.mark.parametrize("last", [nn.Sigmoid, nn.Softplus])
def test_a_network_that_gives_no_logits_keeps_its_biases(last):
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 1), last())
    before = copy.deepcopy(model.state_dict())
    _begin_with_share(model, *scans())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_the_fused_step_is_the_plain_one(name, monkeypatch):
    "On a CPU with torch 2.4 or later all weights are updated in one call; older ones go weight by weight, to the same place."
    from cmunext_nb import train
    recipe = train.get_recipe("fast", optimizer=name)
    fused, plain = (cn.create_model("cmunext_s", dims=(4,) * 5) for _ in range(2))
    plain.load_state_dict(fused.state_dict())
    one = train._make_optimizer(fused, recipe)
    assert one.defaults["fused"] or not train._fused_on_cpu(list(fused.parameters()))
    monkeypatch.setattr(train.torch, "__version__", "2.3.1")
    two = train._make_optimizer(plain, recipe)
    assert not two.defaults.get("fused")
    for step in range(3):
        for p, q in zip(fused.parameters(), plain.parameters()):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
            q.grad = p.grad.clone()
        one.step(), two.step()
    for (n, p), q in zip(fused.named_parameters(), plain.parameters()): torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6, msg=lambda m: f"{n}: {m}")


def test_the_ends_of_a_network_are_known_inside_a_wrapper_too():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 1))  # the head stands second
    net.config = dict(in_channels=3, num_classes=2)
    assert len(matrix_weights(net)) == len(matrix_weights(torch.optim.swa_utils.AveragedModel(net))) == len(matrix_weights(nn.DataParallel(net)))
