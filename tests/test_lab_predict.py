"PredictLab without a browser: every control, any image, own files in and masks out. The everyday path is checked in nbs/44_predict_lab.ipynb."
import base64
import io
import re

import matplotlib.figure
import numpy as np
import pytest
import torch
from PIL import Image

from cmunext_nb.data import load_dataset
from cmunext_nb.labs import PredictLab
from cmunext_nb.labs import png
from cmunext_nb.labs.predict import _histogram
from cmunext_nb.model import create_model
from cmunext_nb.phantom import make_phantom
from cmunext_nb.plot import _at_home
from test_labs import alive, arrive, every, leaks, sent_by, uploader


@pytest.fixture(scope="module")
def scans(): return make_phantom(3, size=256, seed=21)


@pytest.fixture
def lab(scans): return PredictLab(images=scans[0], masks=scans[1])


def as_file(pixels, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("name, value", [("scan", 2), ("threshold", 0.02), ("mirror", True), ("truth", False)])
def test_each_control_changes_the_picture(lab, name, value):
    before = lab.picture.value
    lab.controls[name].value = value
    assert lab.picture.value != before and "Not possible" not in lab.sentence.value


def test_the_pixel_size_changes_the_words(lab):
    before = lab.sentence.value
    lab.controls["pixel_size"].value = 0.25
    assert "mm" in lab.sentence.value and "mm" not in before


def test_the_network_runs_once_an_image_and_ahead_of_the_reader(scans):
    calls, model = [], create_model("cmunext_s", pretrained="phantom").eval()
    def counted(x):
        calls.append(len(x))
        return model(x)
    counted.config, counted.preprocess = model.config, model.preprocess
    lab = PredictLab(counted, *scans)
    ahead = len(calls)
    assert 1 <= ahead <= 3  # as many as a second allows
    for t in (0.1, 0.3, 0.9): lab.controls["threshold"].value = t
    assert len(calls) == ahead
    lab.put(scan=1, mirror=True)
    assert len(calls) == ahead + 2  # the image and its mirror image


def test_the_model_is_left_as_it_was(scans):
    model = create_model("cmunext_s").train()
    PredictLab(model, *scans, predict_size=32).put(threshold=0.3)
    assert model.training and all(p.grad is None for p in model.parameters())


def test_masks_equal_those_of_predict(lab, scans):
    from cmunext_nb.predict import predict
    expected = predict(lab.model, scans[0][1], threshold=0.3)
    assert (lab.result(1, 0.3).mask == expected.mask).all()
    assert f"IoU {expected.score(scans[1][1])['iou']:.3f}" in lab.words(**{**lab.state, "scan": 1, "threshold": 0.3})


@pytest.mark.parametrize("pixels", [np.random.default_rng(0).integers(0, 255, (61, 133), dtype=np.uint8), np.random.default_rng(0).integers(0, 255, (40, 33, 3), dtype=np.uint8),
                                    np.random.default_rng(0).integers(0, 60000, (50, 50)).astype(np.uint16), np.random.default_rng(0).integers(0, 255, (64, 64, 4), dtype=np.uint8)],
                         ids=["grey", "colour", "16 bits", "alpha"])
def test_an_own_image_comes_in_and_is_forgotten(lab, pixels):
    first, content, there = lab.picture.value, as_file(pixels), set(alive())
    others = there - {w.model_id for w in every(lab)}
    arrive(uploader(lab), "secret.png", content)
    assert lab.state["scan"] == 3 and lab.shown == png(lab.figure()) and not leaks(others) and "your image" in lab.sentence.value and lab.result().mask.shape == pixels.shape[:2]
    assert "no true mask" in lab.sentence.value or "No pixel" in lab.sentence.value
    arrive(uploader(lab), "secret two.png", as_file(pixels[::-1].copy()))
    assert len(lab.scans) == 4 and "two" in lab.scans[-1]["file"]  # one own image at a time
    for move in (dict(threshold=0.2), dict(scan=0), dict(mirror=True), dict(scan=3)):
        lab.put(**move)
        assert lab.shown == png(lab.figure()) and not leaks(others)
    sent = sent_by(lab)
    offer(lab)
    assert not leaks(others) and [c for c, _ in sent] == [dict(file="secret_two_mask.png")] and ((np.asarray(Image.open(io.BytesIO(sent[0][1]))) > 0) == lab.result().mask).all()
    assert "saves the mask" in lab.link.value
    lab.put(mirror=False, threshold=0.5)
    lab.forget()
    assert len(lab.scans) == 3 and lab.state["scan"] == 0 and lab.picture.value == lab.shown == first and not any(k[0] == 3 for k in lab._answers)
    assert {kind for kind, _ in leaks(others)} == {"Image"} and lab.link.value == "" and set(alive()) == there


def test_what_is_no_image_is_said_and_nothing_changes(lab):
    before = lab.picture.value
    arrive(uploader(lab), "notes.txt", b"no picture")
    assert "Not possible" in lab.sentence.value and "The file is not an image" in lab.sentence.value and lab.picture.value == before and len(lab.scans) == 3


def offer(lab): next(w for w in every(lab) if getattr(w, "description", "") == "Make a PNG").click()


def test_the_mask_goes_out(lab, tmp_path):
    mask = lab.result().mask
    saved = np.asarray(Image.open(lab.save(tmp_path / "m.png")))
    assert ((saved > 0) == mask).all()
    offer(lab)
    name, data = re.search(r'download="([^"]+)" href="data:image/png;base64,([^"]+)"', lab.link.value).groups()
    assert name == "scan_1_mask.png" and ((np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) > 0) == mask).all()


def test_names_cannot_break_out_of_the_link(lab):
    arrive(uploader(lab), 'x"><script>.png', as_file(np.zeros((32, 32), np.uint8)))
    sent = sent_by(lab)
    lab._offer()
    assert sent[0][0]["file"] == "xscript_mask.png" and "script" not in lab.link.value + lab.sentence.value
    lab = PredictLab(images=load_dataset("phantom", size=48)[1].images[:1], predict_size=48)
    lab.scans[0]["file"] = 'x"><script>.png'
    lab._offer()
    assert "<script>" not in lab.link.value


@pytest.mark.parametrize("images", [lambda i: i, lambda i: list(i), lambda i: i[:2, 0], lambda i: i[:2, 0].numpy(), lambda i: [i[0, 0].numpy(), i[1, 0, :50].numpy()], lambda i: load_dataset("phantom", size=48)[1]])
def test_images_of_any_kind(images, scans):
    lab = PredictLab(images=images(scans[0]), predict_size=48)
    assert "Not possible" not in lab.sentence.value and len(lab.scans) > 1


@pytest.mark.parametrize("call, word", [
    (lambda s: PredictLab(images=[]), "at least one"), (lambda s: PredictLab(images=s[0], masks=s[1][:2]), "3 images and 2 masks"),
    (lambda s: PredictLab(images=["no_such.png"]).sentence.value, None), (lambda s: PredictLab(create_model("cmunext_s", num_classes=2), s[0], predict_size=32).sentence.value, None)])
def test_mistakes_are_said(call, word, scans):
    if word is None: assert "Not possible" in call(scans)
    else:
        with pytest.raises(ValueError, match=word): call(scans)


def test_the_static_twin(lab): assert png(lab.figure()) == lab.picture.value and png(lab.figure(threshold=0.9)) != lab.picture.value


def test_a_network_that_learned_on_is_asked_again():
    model = create_model("cmunext_s").eval()
    lab = PredictLab(model, images=make_phantom(2, size=64, seed=1)[0], predict_size=64)
    before = lab.result(0).probability
    with torch.no_grad(): model.head.bias.add_(3)
    assert lab.result(0).probability.mean() > before.mean()


@pytest.mark.parametrize("image", ["path", "str", "pil", "grey", "colour", "tensor"])
def test_one_image_is_one_scan(image, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 33, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "scan.png")
    given = dict(path=tmp_path / "scan.png", str=str(tmp_path / "scan.png"), pil=Image.fromarray(pixels), grey=pixels[..., 0], colour=pixels, tensor=torch.from_numpy(pixels).permute(2, 0, 1))[image]
    lab = PredictLab(images=given, masks=np.ones((40, 33), np.uint8), predict_size=48)
    assert "Not possible" not in lab.sentence.value and len(lab.scans) == 1 and lab.result().mask.shape == (40, 33)
    assert lab.scans[0]["name"] == ("scan.png" if image in ("path", "str") else "scan 1")


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
@pytest.mark.parametrize("pack", [lambda m: m, list])
def test_a_stack_of_grey_images_with_as_many_masks(n, kind, pack):
    "Three grey images look like one in colour, but not where three masks come along."
    images, masks = make_phantom(n, size=48, seed=1)
    lab = PredictLab(images=kind(images[:, 0]), masks=pack(kind(masks[:, 0])), predict_size=48)
    assert len(lab.scans) == n and "Against the true mask" in lab.sentence.value and "Not possible" not in lab.sentence.value


@pytest.mark.parametrize("n", [3, 4])
def test_a_few_grey_images_alone_go_in_as_a_list(n):
    stack = np.asarray(make_phantom(n, size=48, seed=1)[0][:, 0])
    assert len(PredictLab(images=stack, predict_size=48).scans) == 1 and len(PredictLab(images=list(stack), predict_size=48).scans) == n


def test_the_sentence_says_how_sure_the_mask_is():
    lab = PredictLab()
    assert f"Stability {lab.result().stability:.2f}." in lab.words(**lab.state) and "agreement" not in lab.words(**lab.state)
    lab.put(mirror=True)
    assert f"agreement of image and mirror image {lab.result().agreement:.2f}." in lab.words(**lab.state)


def test_an_ensemble_is_not_called_a_mirror_image():
    from cmunext_nb import Ensemble, create_model
    lab = PredictLab(Ensemble([create_model("cmunext_s").eval(), create_model("cmunext_s").eval()]), np.zeros((64, 64), np.uint8))
    assert "agreement of all answers" in lab.words(**lab.state)


def test_masks_as_files(scans, tmp_path):
    for i in range(2):
        Image.fromarray(scans[0][i, 0].numpy()).save(tmp_path / f"{i}.png")
        Image.fromarray(scans[1][i, 0].numpy() * 255).save(tmp_path / f"{i}_mask.png")
    paths, masks = ([str(tmp_path / f"{i}{end}.png") for i in range(2)] for end in ("", "_mask"))
    said = PredictLab(images=scans[0][:2], masks=scans[1][:2]).sentence.value.partition(", ")[2]
    for lab in (PredictLab(images=paths, masks=masks), PredictLab(images=paths, masks=[Image.open(m) for m in masks]), PredictLab(images=paths[0], masks=masks[0])):
        assert lab.sentence.value.partition(", ")[2] == said and "Against the true mask" in said


@pytest.mark.parametrize("move", [dict(threshold=0.51), dict(scan=1), dict(mirror=True)])
def test_a_link_to_another_mask_goes(lab, move):
    offer(lab)
    assert "threshold 0.50" in lab.link.value
    assert lab.put(truth=False, pixel_size=0.5).link.value and not lab.put(**move).link.value


def test_a_link_goes_when_the_network_has_learned_on():
    model = torch.nn.Conv2d(1, 1, 3, padding=1)
    lab = PredictLab(model, make_phantom(1, size=32)[0])
    offer(lab)
    lab.refresh()
    assert lab.link.value
    model.bias.data.add_(1)  # which PyTorch does not count
    lab.refresh()
    assert not lab.link.value


def test_a_mask_that_cannot_be_made_is_said():
    lab = PredictLab(torch.nn.Conv2d(1, 2, 1), make_phantom(1, size=32)[0])
    lab.sentence.value = ""
    offer(lab)
    assert "Not possible" in lab.sentence.value and "one class" in lab.sentence.value and not lab.link.value


@pytest.mark.parametrize("error, words", [(AssertionError(), "</b> AssertionError<"), (KeyError("mask"), "</b> KeyError: "), (IndexError("too deep"), "</b> IndexError: too deep")])
def test_every_error_of_a_network_is_said(error, words):
    "An image with which the network fails must not stand under the sentence of another."
    def net(x):
        if x.shape[-1] != 32: raise error
        return x.mean(1, keepdim=True)
    lab = PredictLab(net, make_phantom(1, size=32)[0], predict_size=None)
    arrive(uploader(lab), "a.png", as_file(np.zeros((40, 50), np.uint8)))
    assert words in lab.sentence.value and lab.controls["scan"].label == "your image"


def test_given_images_can_be_kept_out_of_the_notebook(scans):
    before = set(alive())
    lab = PredictLab(images=scans[0][:1])
    assert leaks(before)
    lab.stop_saving()
    lab.put(threshold=0.3)
    sent = sent_by(lab)
    offer(lab)
    assert not leaks(before) and sent
    messenger = lab.messenger
    lab.forget()
    offer(lab)
    assert not leaks(before) and lab.picture.value == b"" and lab.shown == png(lab.figure()) and lab.messenger is messenger


def test_a_link_made_before_goes_when_saving_stops(scans):
    before = set(alive())
    lab = PredictLab(images=scans[0][:1])
    offer(lab)
    assert "data:image/png" in lab.link.value
    lab.stop_saving()
    assert lab.link.value == "" and not leaks(before)


def test_the_names_of_files_without_their_folders():
    from cmunext_nb.labs.predict import _scans
    assert [s["name"] for s in _scans([r"C:\scans\a.png", "/home/me/b.png", "c.png"], None)] == ["a.png", "b.png", "c.png"]


@pytest.mark.parametrize("shape", [(90, 100), (256, 256), (500, 700), (1100, 1200), (3300, 3300)])
def test_the_number_of_pixels_is_not_cut(shape):
    with _at_home():
        figure = matplotlib.figure.Figure(figsize=PredictLab.size, layout="none")
        _histogram(figure.add_axes((0.9, 0.14, 0.09, 0.74)), np.linspace(0, 1, shape[0] * shape[1], dtype=np.float32).reshape(shape), 0.5)  # as in `draw`
        figure.draw_without_rendering()
    one, most = figure.axes[0].get_xticklabels()
    assert most.get_text() == f"{10 ** int(np.log10(shape[0] * shape[1])):,}"
    assert most.get_window_extent().x1 <= figure.bbox.x1 and one.get_window_extent().x1 < most.get_window_extent().x0


@pytest.mark.parametrize("pixel_size, words", [(0.0, "covers 12,000 px²"), (0.1, "covers 120 mm²"), (0.01, "covers 1.20 mm²"), (0.001, "covers 0.0120 mm²"), (1.0, "covers 12,000 mm²")])
def test_an_area_has_three_digits_or_whole_pixels(pixel_size, words):
    def net(x): return torch.where((torch.arange(120)[:, None] >= 0) & (torch.arange(150) < 100), 9.0, -9.0)[None, None].expand(len(x), 1, 120, 150)
    lab = PredictLab(net, [np.zeros((120, 150), np.uint8)])
    assert words in lab.put(pixel_size=pixel_size).sentence.value, lab.sentence.value


def test_the_size_of_a_pixel_is_not_kept_for_another_image(lab):
    lab._take("a.png", np.zeros((1, 40, 40), np.uint8))
    assert "forgotten" not in lab.sentence.value
    lab.put(pixel_size=0.1)
    lab._take("b.png", np.full((1, 40, 40), 9, np.uint8))
    assert lab.state["pixel_size"] == 0 and "The 0.1 mm per pixel of the image before are forgotten." in lab.sentence.value
    lab.put(pixel_size=0.2)
    lab.forget()
    assert lab.state["pixel_size"] == 0 and "0.2 mm per pixel" in lab.sentence.value
    assert lab.put(pixel_size=0.3).put(scan=1).state["pixel_size"] == 0.3 and "forgotten" not in lab.sentence.value  # images given together


def test_the_link_looks_like_one(lab):
    offer(lab)
    assert "text-decoration: underline" in lab.link.value and re.search(r">Click to save [^<]+_mask.png</a> \(", lab.link.value)
