"The demo: corner cases. The everyday path is checked in nbs/18_demo.ipynb."
import pytest
import torch

from cmunext_nb import create_model, demo, load_dataset, plot
from cmunext_nb.train import evaluate


def test_an_interrupted_demo_is_no_finished_one(tmp_path):
    def ctrl_c(run): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt, match="interrupted in epoch 1 of 2"): demo.run_demo("phantom", epochs=2, out=tmp_path, device="cpu", size=32, on_step=ctrl_c)
    assert not (tmp_path / "report.json").exists() and (tmp_path / "interrupted.safetensors").exists()


@pytest.mark.parametrize("trained", [None, (32, 32)])
def test_the_picture_shows_what_the_figures_measure(tmp_path, monkeypatch, trained):
    model, (_, valid), seen = create_model("cmunext_s", pretrained="phantom").eval(), load_dataset("phantom", size=64), {}
    model.trained_size = trained
    show = plot.show_predictions
    monkeypatch.setattr(plot, "show_predictions", lambda *a, **k: seen.update(k) or show(*a, **k))
    demo.draw(model, valid, tmp_path / "demo.png", rows=len(valid))
    each = sorted(evaluate(model, valid, per_image=True)["per_image"]["iou"], reverse=True)
    assert seen["scores"] == pytest.approx(each, abs=0.02)


def test_no_epoch_is_not_the_usual_number(tmp_path):
    with pytest.raises(ValueError, match="epochs must be at least 1"): demo.run_demo("phantom", epochs=0, out=tmp_path, device="cpu", size=32)
