"""Several networks as one: corner cases. The everyday path is checked in nbs/16b_ensemble.ipynb."""
import types

import numpy as np
import pytest
import torch
from torch import nn

from cmunext_nb import Ensemble, coverage_curve, create_model, load_weights, predict, save_weights
from cmunext_nb.predict import Prediction, TTAWrapper, average_views
from cmunext_nb.train import evaluate, fit


def network(seed, **config):
    torch.manual_seed(seed)
    return create_model("cmunext_s", **config).eval()


@pytest.fixture(scope="module")
def pair(): return [network(0), network(1)]


@pytest.fixture(scope="module")
def scan(): return np.random.default_rng(0).integers(0, 255, (40, 50)).astype(np.uint8)


def test_a_config_of_another_kind_is_none(scan):
    member = nn.Conv2d(3, 1, 1)
    member.config = types.SimpleNamespace(width=8)
    assert Ensemble([member, member]).config is None and predict(Ensemble([member, member]), scan).mask.shape == (40, 50)


def test_mean_and_spread_are_those_of_the_members(pair, scan):
    together, apart = predict(Ensemble(pair), scan, size=32), np.stack([predict(m, scan, size=32).probability for m in pair])
    assert np.allclose(together.probability, apart.mean(0), atol=1e-5)
    assert apart.std(0).max() > 1e-4 and together.spread.shape == (40, 50)
    assert predict(Ensemble(pair[:1]), scan, size=32).spread is None  # one answer has no spread


def test_views_and_members_count_alike(pair):
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        mean, spread = average_views(Ensemble(pair), x, "mirror")
        looks = torch.stack([torch.sigmoid(m(x)) for m in pair] + [torch.sigmoid(m(x.flip(-1))).flip(-1) for m in pair])
        wrapped = torch.sigmoid(TTAWrapper(Ensemble(pair), "mirror")(x))
    assert torch.allclose(mean, looks.mean(0), atol=1e-5) and torch.allclose(wrapped, looks.mean(0), atol=1e-5)
    assert torch.allclose(spread, looks.std(0, unbiased=False), atol=1e-5)


def test_inside_torchs_wrappers_too(pair, scan):
    inside = nn.DataParallel(Ensemble(pair))
    assert np.allclose(predict(inside, scan, size=32).spread, predict(Ensemble(pair), scan, size=32).spread, atol=1e-6)


def test_modes_are_restored(pair):
    pair[0].train()
    try:
        evaluate(Ensemble(pair), (torch.zeros(2, 1, 32, 32, dtype=torch.uint8), torch.zeros(2, 1, 32, 32, dtype=torch.uint8)))
        assert pair[0].training and not pair[1].training
    finally: pair[0].eval()


def test_files_and_plain_callables(pair, scan, tmp_path):
    files = [save_weights(m, tmp_path / f"{i}.safetensors") for i, m in enumerate(pair)]
    assert np.allclose(predict(Ensemble(files), scan, size=32).probability, predict(Ensemble(pair), scan, size=32).probability, atol=1e-6)
    assert predict(Ensemble([str(f) for f in files]), scan, size=32).mask.shape == (40, 50)
    plain = [lambda x: x.mean(1, keepdim=True), lambda x: 2 * x.mean(1, keepdim=True)]
    assert predict(Ensemble(plain), scan, size=32).spread.max() > 0


def test_is_not_saved_as_one_file(pair, tmp_path):
    with pytest.raises(ValueError, match="each of its members"): save_weights(Ensemble(pair), tmp_path / "all.safetensors")
    assert not list(tmp_path.iterdir())
    for m in Ensemble(pair).members: save_weights(m, tmp_path / "one.safetensors")
    assert load_weights(tmp_path / "one.safetensors").config == pair[1].config


@pytest.mark.parametrize("other, word", [(dict(num_classes=2), "num_classes=2"), (dict(in_channels=1), "in_channels=1")])
def test_members_that_differ_are_refused(pair, other, word):
    with pytest.raises(ValueError, match=f"Network 2 of 2 has {word}, network 1"): Ensemble([pair[0], network(0, **other)])


def test_other_preprocessing_or_size_is_refused(pair):
    other = network(2)
    other.preprocess = "upstream"
    with pytest.raises(ValueError, match="preprocess=upstream"): Ensemble([pair[0], other])
    other.preprocess, other.trained_size, third = pair[0].preprocess, (96, 96), network(3)
    third.trained_size = (64, 64)
    with pytest.raises(ValueError, match="Network 3 of 3 has trained_size=.64, 64., network 2"): Ensemble([pair[0], other, third])


@pytest.mark.parametrize("members", ["weights.safetensors", nn.Identity(), [3], {"a": nn.Identity()}, [nn.Identity]])
def test_what_is_no_list_of_networks(members):
    with pytest.raises(TypeError, match="made of"): Ensemble(members)


def test_an_empty_list():
    with pytest.raises(ValueError, match="at least one"): Ensemble([])


def test_agreement_of_two_answers_is_their_iou(scan):
    two = [lambda x: x.mean(1, keepdim=True), lambda x: 0.8 - x[:, :1] ** 2]
    masks = [predict(m, scan, size=None).mask for m in two]
    overlap, union = (masks[0] & masks[1]).sum(), (masks[0] | masks[1]).sum()
    assert 0 < overlap < union and predict(Ensemble(two), scan, size=None).agreement == pytest.approx(overlap / union, abs=2e-3)  # rounding: single pixels


def several(probability, spread, **more): return Prediction(np.zeros((1, 4, 4), np.uint8), np.asarray(probability, np.float32), spread=np.asarray(spread, np.float32), **more)


def test_agreement_by_hand():
    p = np.repeat([0.9, 0.6, 0.4, 0.1], 4).reshape(4, 4)
    assert several(p, 0.2 * np.ones((4, 4))).agreement == pytest.approx(1 / 3)  # sure: the first row; perhaps: three rows
    assert several(p, 0 * p).agreement == 1 and several(0 * p, 0 * p).agreement == 1  # nothing, and nothing perhaps
    assert several(0 * p + 0.45, 0 * p + 0.1).agreement == 0
    assert several(p, 0.2 * np.ones((4, 4)), threshold=0.05).agreement == pytest.approx(3 / 4)
    assert several([p, 0 * p], 0.2 * np.ones((2, 4, 4))).agreement == pytest.approx([1 / 3, 1])
    assert Prediction(np.zeros((1, 4, 4), np.uint8), p).agreement is None


def test_coverage_curve():
    assert coverage_curve([0.2, 1.0, 0.6], [1, 3, 2]).tolist() == pytest.approx([1.0, 0.8, 0.6])
    assert coverage_curve([0.2, 1.0], [1, 1]).tolist() == pytest.approx([0.2, 0.6])  # equal trust keeps the order
    assert coverage_curve([0.5], [0]).tolist() == [0.5]


@pytest.mark.parametrize("scores, trust, word", [([1, 2], [1], "expected one number"), ([], [], "expected one number"), ([[1]], [[1]], "expected one number"),
                                                 ([1, float("nan")], [1, 2], "NaN")])
def test_coverage_curve_of_nonsense(scores, trust, word):
    with pytest.raises(ValueError, match=word): coverage_curve(scores, trust)


def test_a_network_beside_a_plain_callable_rests(scan):
    fresh = network(0).train()
    key = next(k for k in fresh.state_dict() if "running_mean" in k)
    before, together = fresh.state_dict()[key].clone(), Ensemble([fresh, lambda x: x.mean(1, keepdim=True)])
    predict(together, scan, size=32)
    assert fresh.training and torch.equal(before, fresh.state_dict()[key]) and list(together.parameters())


def test_plain_callables_are_scored():
    images = torch.randint(0, 255, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    dark = lambda x: -x.mean(1, keepdim=True)
    assert evaluate(Ensemble([dark, dark]), (images, (images[:, :1] < 100).byte()))["n"] == 3


def test_members_in_wrappers_say_what_they_are():
    inside = network(0)
    inside.preprocess, inside.trained_size = "upstream", (32, 32)
    for outside in (nn.DataParallel(inside), TTAWrapper(nn.DataParallel(inside))):
        both = Ensemble([outside])
        assert both.trained_size == (32, 32) and both.preprocess == "upstream" and both.config == inside.config


def test_a_size_that_members_learn_later_counts(pair):
    both = Ensemble([network(4), network(5)])
    for m in both.members: m.trained_size = (48, 48)
    assert both.trained_size == (48, 48) and TTAWrapper(both).trained_size == (48, 48)


def test_neither_saved_inside_a_wrapper_nor_trained_into_files(pair, tmp_path):
    with pytest.raises(ValueError, match="each of its members"): save_weights(TTAWrapper(Ensemble(pair)), tmp_path / "all.safetensors")
    data = torch.zeros(4, 1, 32, 32, dtype=torch.uint8), torch.zeros(4, 1, 32, 32, dtype=torch.uint8)
    with pytest.raises(ValueError, match="each of its members"): fit(Ensemble([network(0)]), data, epochs=1, out=tmp_path / "run", device="cpu", progress=False)
    with pytest.raises(ValueError, match="no weights of its own"): save_weights(TTAWrapper(pair[0]), tmp_path / "looks.safetensors")
    with pytest.raises(ValueError, match="network inside it"): fit(TTAWrapper(network(0)), data, epochs=1, out=tmp_path / "run", device="cpu", progress=False)
    assert not list(tmp_path.glob("**/*.safetensors"))


def test_its_receptive_field_is_that_of_its_members(pair):
    from cmunext_nb import receptive_field
    one, both = receptive_field(pair[0]), receptive_field(Ensemble(pair))
    assert (one.height, one.width) == (both.height, both.width) and not both.unbounded


def test_is_exported_as_one_network(pair, tmp_path):
    from cmunext_nb import deploy
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode(): want = Ensemble(pair)(x)
    assert np.allclose(np.asarray(deploy(Ensemble(pair), backend="torch")(x)), want, atol=1e-3)


def run_benchmark(tmp_path, monkeypatch, side, trained, recipe="fast", six="scales"):
    "What benchmarks/ensemble.py writes about two networks trained at one size and four phantoms of another; networks and phantoms."
    import json, sys
    from pathlib import Path
    benchmarks = Path(__file__).resolve().parent.parent / "benchmarks"
    monkeypatch.syspath_prepend(str(benchmarks))
    monkeypatch.setattr(sys, "argv", ["ensemble.py", "--runs", str(tmp_path), "--recipe", recipe, "--six", six, "--out", str(tmp_path / "out.json")])
    for name in ("ensemble", "machine"): sys.modules.pop(name, None)
    import ensemble as benchmark
    images, masks = benchmark.cn.make_phantom(4, size=side, seed=3)
    valid = benchmark.cn.SegmentationData(images, masks, [str(i) for i in range(4)])
    monkeypatch.setattr(benchmark.cn, "load_dataset", lambda *a, **k: (None, valid))
    models = [create_model("cmunext_s", pretrained="phantom").eval(), network(2)]
    for seed, model in enumerate(models, 1):
        model.trained_size = (trained, trained)
        (folder := tmp_path / f"busi_split1_cmunext_s_{recipe}_200epochs_256px_seed{seed}").mkdir()
        save_weights(model, folder / "last.safetensors")
    benchmark.main()
    return json.loads((tmp_path / "out.json").read_text())["splits"][0], models, valid


def test_the_benchmark_counts_what_it_says(tmp_path, monkeypatch):
    split, models, valid = run_benchmark(tmp_path, monkeypatch, 192, 192)
    for looks, network in (("one", Ensemble(models)), ("scales", TTAWrapper(Ensemble(models), "scales"))):
        want = 100 * evaluate(network, valid)["iou"]
        assert next(r["iou"] for r in split["scores"] if len(r["seeds"]) == 2 and r["looks"] == looks) == pytest.approx(want, abs=0.1)
    views = predict(models[0], list(valid.images[:, 0].numpy()), size=None, tta="mirror")
    assert split["doubts"]["two views"][0]["trust"] == pytest.approx([r.agreement for r in views], abs=0.02)
    assert sum(split["reliability"]["one look"]["n"]) == 4 * 192 * 192 and sum(split["reliability"]["one look"]["true"]) == int(valid.masks.sum())


def test_the_benchmark_sees_as_evaluate_does(tmp_path, monkeypatch):
    split, models, valid = run_benchmark(tmp_path, monkeypatch, 192, 128, "half", "zoom")
    said = {(tuple(r["seeds"]), r["looks"]): r["iou"] for r in split["scores"]}
    for tta in (False, "mirror", "zoom"):
        assert said[(1,), tta or "one"] == pytest.approx(100 * evaluate(TTAWrapper(models[0], tta), valid)["iou"], abs=0.05)
    assert said[(1,), "zoom"] != said[(1,), "mirror"] and list(split["sides"]) == ["96", "112", "128", "144", "160"] and split["sides"]["128"][0] == said[(1,), "one"]


def test_a_map_is_of_one_network(pair, scan):
    from cmunext_nb import seg_cam
    for several in (Ensemble(pair), torch.optim.swa_utils.AveragedModel(Ensemble(pair))):
        with pytest.raises(ValueError, match="its members one by one"): seg_cam(several, scan)


def test_views_are_not_exported(pair):
    from cmunext_nb import export_program
    with pytest.raises(TypeError, match="Deploy the network inside it"): export_program(TTAWrapper(pair[0]))


def test_an_ensemble_becomes_one_program(pair):
    from cmunext_nb import export_program
    x = torch.randn(2, 3, 64, 96)
    with torch.inference_mode(): want, got = Ensemble(pair)(x), export_program(Ensemble(pair)).module()(x)
    assert torch.allclose(got, want, atol=1e-3)
