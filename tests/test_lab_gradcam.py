"GradCAMLab without a browser: every control, any network and image, own files in and out. The everyday path is checked in nbs/42_gradcam_lab.ipynb."
import io

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from PIL import Image
from torch import nn

from cmunext_nb.cam import rank_correlation, seg_cam
from cmunext_nb.data import load_dataset
from cmunext_nb.labs import GradCAMLab, new_figure, png
from cmunext_nb.model import create_model
from cmunext_nb.phantom import make_phantom
from cmunext_nb.predict import predict
from test_labs import alive, arrive, every, leaks, uploader


@pytest.fixture(scope="module")
def scans(): return make_phantom(3, size=96, seed=5)


@pytest.fixture(scope="module")
def model(): return create_model("cmunext_s", pretrained="phantom")


@pytest.fixture
def lab(model, scans): return GradCAMLab(model, *scans, size=96)


def as_file(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("name, value", [("scan", 1), ("layer", "decoder.1"), ("method", "hirescam"), ("region", "true"), ("deletion", True)])
def test_each_control_changes_the_picture(lab, name, value):
    before = lab.picture.value
    lab.controls[name].value = value
    assert lab.picture.value != before and "Not possible" not in lab.sentence.value, lab.sentence.value


@pytest.mark.parametrize("name", ["row", "column"])
def test_the_place_matters_for_a_pixel_alone(lab, name):
    before = lab.picture.value
    lab.controls[name].value = 30
    assert lab.picture.value == before
    lab.controls["region"].value = "pixel"
    before = lab.picture.value
    lab.controls[name].value = 60
    assert lab.picture.value != before and "1 pixel " in lab.sentence.value


def test_the_maps_are_those_of_seg_cam(lab, model, scans):
    for layer, method, region in (("encoder.4", "gradcam", "predicted"), ("decoder.0", "hirescam", "true"), ("encoder.3", "layercam", (40, 50))):
        place = dict(region="pixel", row=region[0], column=region[1]) if isinstance(region, tuple) else dict(region=region)
        cam, twin = lab.maps(**{**lab.state, "layer": layer, "method": method, **place})
        expected = seg_cam(model, scans[0][0], layer, region, method, mask=scans[1][0])
        assert np.allclose(cam.raw, expected.raw, rtol=1e-3, atol=1e-4 * expected.raw_max) and (cam.region == expected.region).all()
        assert (twin.region == cam.region).all() and abs(rank_correlation(cam, twin)) < 1


@pytest.mark.once
def test_every_layer_and_method_of_the_menus_answers(lab):
    for layer in lab.controls["layer"].options: lab.put(layer=layer, method="gradcam")
    lab.put(layer="encoder.4")
    for method in lab.controls["method"].options:
        lab.put(method=method)
        assert "Not possible" not in lab.sentence.value, lab.sentence.value


@pytest.mark.once
def test_the_model_is_left_as_it_was(model, scans):
    model.train()
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    GradCAMLab(model, *scans, size=96).put(deletion=True, method="eigencam")
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items()) and not any(m._forward_hooks for m in model.modules())
    model.eval()


def test_an_own_image_comes_in_and_is_forgotten(lab):
    first, there, content = lab.picture.value, set(alive()), as_file(np.random.default_rng(0).integers(0, 255, (50, 80, 3), dtype=np.uint8))
    lab.put(region="true")
    others = there - {w.model_id for w in every(lab)}
    arrive(uploader(lab), "secret.png", content)
    assert lab.state["scan"] == 3 and lab.state["region"] == "predicted" and len(lab.names) == len(lab.pixels) == len(lab.masks) == 4
    lab.put(region="pixel")
    assert "your image" in lab.sentence.value and lab.shown == png(lab.figure()) and not leaks(others)
    arrive(uploader(lab), "secret.png", content)
    assert len(lab.names) == 4 and lab.names[-1] == "your image" and not leaks(others)
    lab.put(region="fn")
    assert "Not possible" in lab.sentence.value and "true mask" in lab.sentence.value
    shown = lab.shown
    lab.masks[0] = np.zeros((96, 96), bool)  # now the question cannot be answered for the first scan either
    lab.forget()
    assert "Not possible" in lab.sentence.value and lab.picture.value == png(new_figure(*lab.size)) != shown
    lab.put(region="predicted")
    assert len(lab.names) == len(lab.pixels) == 3 and lab.picture.value == first
    assert {kind for kind, _ in leaks(others)} == {"Image"} and set(alive()) == there
    lab.stop_saving()
    lab.forget()
    assert lab.picture.value == b"" and lab.shown == first and not leaks(others)


def test_a_network_that_learned_on_is_asked_anew(scans):
    lab = GradCAMLab(create_model("cmunext_s", pretrained="phantom"), *scans, size=96).put(region="true")
    before = lab.maps(**lab.state)[0].raw_max
    with torch.no_grad(): lab.model.head.weight.mul_(2)
    assert lab.maps(**lab.state)[0].raw_max == pytest.approx(2 * before, rel=1e-3)


def test_a_missing_library_is_said(lab, monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    lab.put(method="hirescam")
    assert "Not possible" in lab.sentence.value and "cmunext_nb[explain]" in lab.sentence.value


def test_an_empty_region_is_said_and_the_picture_stays(model):
    images, masks = make_phantom(2, size=64, seed=1)
    lab = GradCAMLab(model, images, masks * 0, size=64)
    before = lab.picture.value
    lab.put(region="true")
    assert "Not possible" in lab.sentence.value and "true mask has no pixel" in lab.sentence.value and lab.picture.value == before


@pytest.mark.parametrize("region, why", [("predicted", "the highest is"), ("true", "true mask has no pixel"), ("fp", "no false positives"), ("fn", "no false negatives")])
def test_an_empty_region_leads_to_what_the_lab_has(model, region, why):
    "`find_region` offers a threshold and a mask, which a call can give and a menu cannot."
    dark = GradCAMLab(model, torch.full((1, 1, 64, 64), 9, dtype=torch.uint8), torch.zeros(1, 1, 64, 64), size=64).put(region="pixel").put(region=region)
    said = dark.sentence.value
    assert "Not possible" in said and why in said and "Choose another region, a single pixel by its row and column, or another image" in said, said
    assert not any(word in said for word in ("Lower the", "give one pixel", "Try '")) and "no part of the lab; `seg_cam` takes both" in said
    for name in ("region", "row", "column", "scan"): assert name in dark.controls


@pytest.mark.parametrize("region", ["true", "fp", "fn"])
def test_a_question_without_its_true_mask_leads_to_what_the_lab_has(model, scans, region):
    said = GradCAMLab(model, scans[0], size=64).put(region=region).sentence.value
    assert "Not possible" in said and "without a true mask" in said and "GradCAMLab(model, images, masks)" in said and "mask=..." not in said


def deeplab():
    from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large
    torch.manual_seed(0)
    return deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=1)


def smp_unet():
    import segmentation_models_pytorch as smp
    torch.manual_seed(0)
    return smp.Unet("resnet18", encoder_weights=None, classes=1)


@pytest.mark.parametrize("make", [deeplab, smp_unet, lambda: create_model("cmunext_s", in_channels=1), lambda: create_model("cmunext", num_classes=2)],
                         ids=["torchvision", "segmentation_models", "one channel", "two classes"])
@pytest.mark.once
def test_anybody_s_network(make, scans):
    lab = GradCAMLab(make(), *scans, size=64).put(region="true")
    assert "Not possible" not in lab.sentence.value, lab.sentence.value
    assert "Raw maximum" in lab.sentence.value and ("class 0 of" in lab.sentence.value) == (lab.classes > 1)


def test_a_data_set_brings_its_masks_and_names(model):
    _, valid = load_dataset("phantom", size=64)
    lab = GradCAMLab(model, valid, size=64)
    assert lab.names == list(map(str, valid.names)) and (lab.masks[2] == (valid.masks[2, 0].numpy() > 0)).all()


def test_shows_a_network_what_it_was_trained_on(scans):
    small = create_model("cmunext_s", pretrained="phantom").eval()
    small.trained_size = (64, 64)
    assert GradCAMLab(small, *scans).pixels.shape[-2:] == (64, 64) and GradCAMLab(small, *scans, size=96).pixels.shape[-2:] == (96, 96)
    with pytest.raises(ValueError, match="expected 'trained'"): GradCAMLab(small, *scans, size="train")


def test_its_region_is_the_mask_of_predict(scans):
    "Also where the network gives one logit for 4 x 4 pixels: the sigmoid comes before the enlarging."
    torch.manual_seed(2)
    net = nn.Sequential(nn.Conv2d(1, 8, 5, stride=4, padding=2), nn.ReLU(), nn.Conv2d(8, 1, 1)).eval()
    images = scans[0][:, :1]
    with torch.no_grad(): net[2].bias -= net(images[:1] / 255).median()
    lab, drawn = GradCAMLab(net, images, size=None).put(layer="2"), predict(net, images[0], size=None)
    assert 0 < drawn.mask.mean() < 1 and np.array_equal(lab.maps(**lab.state)[0].region, drawn.mask > 0)


@pytest.mark.parametrize("call, word", [(lambda m, s: GradCAMLab(m, s[0], s[1][:2]), "3 images and 2 masks"), (lambda m, s: GradCAMLab(m, []), "no image"),
                                        (lambda m, s: GradCAMLab(nn.Flatten(), s[0], size=64), "layer|map")])
def test_mistakes_are_named(call, word, model, scans):
    with pytest.raises((ValueError, TypeError, RuntimeError), match=word): call(model, scans)


def test_the_static_twin(lab): assert png(lab.figure()) == lab.picture.value and png(lab.figure(layer="stem")) != lab.picture.value


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_an_image_of_wrong_channels_leaves_the_lab_as_it_was(channels):
    "With another image open: it is forgotten only for one that fits."
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(channels, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 1, 1))
    lab = GradCAMLab(net, torch.randint(0, 255, (2, channels, 32, 32), dtype=torch.uint8), size=32)
    arrive(uploader(lab), "a.png", as_file(np.random.default_rng(0).integers(0, 255, (32, 32), dtype=np.uint8)))
    arrive(uploader(lab), "b.png", as_file(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)))
    assert f"Not possible:</b> the image has 3 channels, the network takes {channels}" in lab.sentence.value and len(lab.names) == len(lab.pixels) == 3
    lab.put(region="pixel")
    assert "Not possible" not in lab.sentence.value and lab.state["scan"] == 2


@pytest.mark.parametrize("classes", [2, 3])
def test_of_masks_of_several_classes_the_first_is_the_true_one(classes, scans):
    "And not their union, which is what a mask in colour would be."
    data = load_dataset("phantom", size=32)[1]
    data.images, data.masks = scans[0], torch.cat([scans[1], *[1 - scans[1]] * (classes - 1)], 1)
    net = nn.Sequential(nn.Conv2d(1, 5, 3, padding=1), nn.Conv2d(5, classes, 1))
    for lab in (GradCAMLab(net, data, size=None), GradCAMLab(net, scans[0], data.masks, size=None), GradCAMLab(net, scans[0], [m.numpy() for m in data.masks], size=None)):
        assert all((mask == m[0].numpy()).all() for mask, m in zip(lab.masks, scans[1]))


def test_masks_as_files_and_one_image_with_its_mask(model, scans, tmp_path):
    for i in range(2):
        Image.fromarray(scans[0][i, 0].numpy()).save(tmp_path / f"{i}.png")
        Image.fromarray(scans[1][i, 0].numpy() * 255).save(tmp_path / f"{i}_mask.png")
    paths, masks = ([tmp_path / f"{i}{end}.png" for i in range(2)] for end in ("", "_mask"))
    one = GradCAMLab(model, str(paths[1]), str(masks[1]), size=96)
    for lab in (GradCAMLab(model, paths, masks, size=96), one, GradCAMLab(model, scans[0][1], scans[1][1], size=96), GradCAMLab(model, scans[0][1], scans[1][1:2], size=96)):
        assert (lab.masks[-1] == scans[1][1, 0].numpy()).all()
    assert len(one.names) == 1 and "the true mask of scan 1" in one.put(region="true").sentence.value


def test_row_and_column_rest_until_a_pixel_is_asked_about(lab):
    for region, rest in (("predicted", True), ("pixel", False), ("predicted", True)):
        lab.put(region=region)
        assert [lab.controls[n].disabled for n in ("row", "column")] == [rest, rest]


def test_the_names_of_the_deletion_curves_lie_on_none_of_them(lab):
    figure = lab.figure(deletion=True)
    ax, = figure.axes
    renderer = FigureCanvasAgg(figure).get_renderer()
    legend, title, axes = (artist.get_window_extent(renderer) for artist in (ax.get_legend(), ax.title, ax))
    assert legend.y0 >= axes.y1 - 1 and title.y0 >= legend.y1 and title.y1 <= 0.385 * 470  # where the maps begin


def test_the_deletion_curve_is_announced(lab):
    said = []
    lab.sentence.observe(lambda change: said.append("Computing ..." in change["new"]), "value")
    lab._took = 0
    lab.put(deletion=True)
    assert said == [True, False]


@pytest.mark.parametrize("place", [(0, 95), (95, 0), (0, 0), (40, 50)])
def test_the_ring_around_a_pixel_stays_in_its_panel(lab, place):
    "A white line beyond the panel is invisible on the page."
    figure = lab.figure(region="pixel", row=place[0], column=place[1])
    rings = [path.vertices for c in figure.artists if isinstance(c, LineCollection) for path in c.get_paths()]
    assert len(rings) == 3 and all(r.min() >= 0 and r.max() <= 95 and np.ptp(r, 0).min() > 1 for r in rings)
