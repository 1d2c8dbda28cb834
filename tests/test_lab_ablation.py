"The ablation lab without a browser: every control moves it, its numbers are those of the networks, and no result is made up. The everyday path is checked in nbs/50_ablation.ipynb."
import io

import pytest
import torch
from PIL import Image

widgets = pytest.importorskip("ipywidgets")

from cmunext_nb.labs import AblationLab, png
from cmunext_nb.labs import ablation as A
from cmunext_nb.labs.ablation import ROWS, build_row, changed_boxes, draw_row, row_facts
from cmunext_nb.model import list_models
from cmunext_nb.paper import TABLE3
from cmunext_nb.receptive_field import receptive_field
from cmunext_nb.reproduce import build_system


def line(model, iou, split=1, seed=41, data="busi", recipe="paper", epochs=300, size=256, **more):
    "A finished run."
    scores = dict(best=dict(iou=iou, f1=iou), last=dict(iou=iou - 0.1, f1=iou))
    return dict(data=data, model=model, recipe=recipe, changes={}, epochs=epochs, size=size, split=split, seed=seed, parameters=1, minutes=1.0, hardware="none", **scores, **more)


@pytest.fixture
def lab(): return AblationLab([])


def said(lab): return lab.sentence.value


def inside(widget):
    "A widget and everything in it."
    yield widget
    for child in getattr(widget, "children", ()): yield from inside(child)


# The rows

def test_rows_are_those_of_table_3_and_the_corner_that_is_missing():
    assert set(TABLE3) == set(ROWS) - {"cmunext_no_block"}
    assert all(network in list_models() for _, network, _ in ROWS.values())


@pytest.mark.once
@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_the_system_that_is_trained(name):
    mine, trained = build_row(name).eval(), build_system(name).eval()
    mine.load_state_dict(trained.state_dict())
    x = torch.randn(1, 3, 48, 64)
    with torch.no_grad(): assert torch.equal(mine(x), trained(x))


@pytest.mark.once
@pytest.mark.parametrize("name", ROWS)
def test_the_numbers_are_those_of_the_network(name):
    net, facts = build_row(name), row_facts(name)
    assert facts.parameters == sum(p.numel() for p in net.parameters()) and facts.bottleneck == receptive_field(net, "encoder.4").height
    assert receptive_field(net).height in facts.logits and len(facts.logits) == 2
    assert sum(box.parameters for box in facts.boxes.values()) == facts.parameters and sum(box.macs for box in facts.boxes.values()) == facts.macs


def test_an_unknown_row_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="cmunext_no_fusion"): build_row("cmunext_nofusion")


def test_what_differs():
    assert changed_boxes("cmunext_no_block", "cmunext") == {f"encoder.{i}": "layers" for i in range(5)}
    assert set(changed_boxes("unet", "reduced_unet").values()) == {"width"} and "head" not in changed_boxes("unet", "reduced_unet")
    for a in ROWS:
        assert not changed_boxes(a, a)
        for b in ROWS: assert changed_boxes(a, b) == changed_boxes(b, a)


def test_words_fit_their_boxes():
    from cmunext_nb.labs.block import _width
    for name in ROWS:
        for box, fact in row_facts(name).boxes.items():
            if box in ("stem", "head"): continue
            for show in ("layers", "parameters", "macs"): assert 10.5 * _width(A._inside(fact, show)) < A._place(box)[2] - 10, (name, box, show)


# The controls

MOVES = [dict(row="unet"), dict(row="reduced_unet"), dict(row="cmunext_no_fusion"), dict(row="cmunext_no_block"), dict(against="unet"), dict(against="cmunext"), dict(show="parameters"),
         dict(show="macs"), dict(dataset="bus"), dict(dataset="tus"), dict(dataset="tnscui")]


@pytest.mark.parametrize("move", MOVES, ids=str)
def test_every_control_changes_picture_and_words(lab, move):
    before = lab.picture.value, said(lab)
    (name, value), = move.items()
    lab.controls[name].value = value
    assert lab.picture.value != before[0] and "Not possible" not in said(lab)
    assert name == "show" or said(lab) != before[1]
    assert Image.open(io.BytesIO(lab.picture.value)).size == (840, 490)


def test_every_control_is_labelled(lab):
    assert all(control.description for control in lab.controls.values())


def test_the_figure_is_the_picture(lab):
    assert png(lab.figure()) == lab.picture.value
    assert png(lab.figure(row="unet")) != lab.picture.value and lab.state["row"] == "cmunext"
    assert len(png(draw_row("cmunext", "unet"))) > 1000


def test_nothing_is_computed_for_a_movement(lab, monkeypatch):
    def never(*a, **k): raise AssertionError("computed again")
    for name in ("create_model", "cost_parts", "receptive_fields", "receptive_field"): monkeypatch.setattr(A, name, never)
    for name in ROWS: lab.put(row=name, against="unet", show="macs")
    assert "Not possible" not in said(lab)


# Results

def test_without_runs_nothing_is_ours(lab):
    assert lab.schedules == {} and "none finished yet" in lab.controls["runs"].options and lab.controls["runs"].disabled
    for name in ROWS:
        for dataset in ("bus", "busi", "tus", "tnscui"): assert lab.ours(name, **{**lab.state, "dataset": dataset}) is None
    for name in TABLE3: assert f"{TABLE3[name]['iou']['busi']:.2f}" not in said(lab).replace(f"the paper&#x27;s {TABLE3[name]['iou']['busi']:.2f}", "")


def test_means_over_splits_and_only_where_it_was_run():
    lab = AblationLab([line("cmunext", 0.70), line("cmunext", 0.60, split=2), line("reduced_unet", 0.55), line("unext", 0.9)])
    assert lab.ours("cmunext", **lab.state) == pytest.approx(65) and lab.ours("cmunext", **{**lab.state, "score": "last"}) == pytest.approx(55)
    assert lab.ours("unet", **lab.state) is None and lab.ours("cmunext", **{**lab.state, "dataset": "tus"}) is None
    assert lab.ours("cmunext", **{**lab.state, "score": "last_clean"}) is None
    assert "ours 65.00 %" in said(lab) and "CMUNeXt blocks: ours not trained yet" in said(lab)


def test_schedules_are_not_mixed():
    lab = AblationLab([line("cmunext", 0.5, epochs=20, recipe="fast"), line("cmunext", 0.7), line("unet", 0.6)])
    assert list(lab.schedules) == ["busi, paper, 300 epochs, 256 px", "busi, fast, 20 epochs, 256 px"] and lab.state["runs"] == "busi, paper, 300 epochs, 256 px"
    before = lab.picture.value
    assert not lab.controls["runs"].disabled
    lab.put(runs="busi, fast, 20 epochs, 256 px")
    assert lab.picture.value != before and lab.ours("cmunext", **lab.state) == pytest.approx(50) and lab.ours("unet", **lab.state) is None


def test_another_score_is_another_picture():
    lab = AblationLab([line("cmunext", 0.7)])
    before = lab.picture.value
    lab.put(score="last")
    assert lab.picture.value != before and "ours 60.00 %" in said(lab)


def test_a_row_nobody_knows_is_refused(lab):
    with pytest.raises(ValueError, match="row='vnet'"): lab.put(row="vnet")
    with pytest.raises(ValueError, match="no control 'network'"): lab.put(network="unet")
