"""Several networks as one: corner cases. The everyday path is checked in nbs/16b_ensemble.ipynb."""
import numpy as np
import pytest
import torch
from torch import nn

from cmunext_nb import Ensemble, coverage_curve, create_model, load_weights, predict, save_weights
from cmunext_nb.predict import Prediction, TTAWrapper, average_views
from cmunext_nb.train import evaluate


def network(seed, **config):
    torch.manual_seed(seed)
    return create_model("cmunext_s", **config).eval()


@pytest.fixture(scope="module")
def pair(): return [network(0), network(1)]


@pytest.fixture(scope="module")
def scan(): return np.random.default_rng(0).integers(0, 255, (40, 50)).astype(np.uint8)


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
    with pytest.raises(ValueError, match=f"Network 2 of 2 has {word}"): Ensemble([pair[0], network(0, **other)])


def test_other_preprocessing_or_size_is_refused(pair):
    other = network(2)
    other.preprocess = "upstream"
    with pytest.raises(ValueError, match="preprocess=upstream"): Ensemble([pair[0], other])
    other.preprocess, other.trained_size = pair[0].preprocess, (96, 96)
    with pytest.raises(ValueError, match="trained_size"): Ensemble([pair[0], other])


@pytest.mark.parametrize("members", ["weights.safetensors", nn.Identity(), [3]])
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
