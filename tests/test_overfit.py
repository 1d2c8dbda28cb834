"Every variant can learn eight scans by heart: the cheapest proof that network, loss, optimiser and metric fit together."
import pytest
import torch

import cmunext_nb as cn


@pytest.mark.parametrize("name", ["cmunext_s", "cmunext", "cmunext_l"])
def test_eight_phantoms_learnt_by_heart(name):
    scans = cn.make_phantom(8, size=32, seed=3)  # small and all at once, for CI's time: the largest variant still needs half a minute
    torch.manual_seed(41)
    model, enough = cn.create_model(name), 0.96

    def stop_when_learnt(run): return run.history.best.get("iou", 0) < enough

    history = cn.fit(model, scans, scans, recipe="fast", epochs=150, batch_size=8, augment="none", sizes=None, ema=None, lr=4e-3,
                     validate_every=5, amp=False, on_epoch=stop_when_learnt, device="cpu", progress=False)
    reached = cn.evaluate(model, scans)["iou"]
    print(f"{name}: IoU {reached:.3f} after {len(history.rows)} epochs")
    assert reached > 0.95
