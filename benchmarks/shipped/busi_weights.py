"""Train CMUNeXt-S on the training half of BUSI's official split 1 and write the weights that `pretrained="busi"` loads.

    python benchmarks/shipped/busi_weights.py [--root FOLDER]      # cmunext_nb/assets/cmunext_s_busi.safetensors

Starts from the weights that were trained on synthetic scans (`pretrained="phantom"`, see phantom_weights.py) and trains on 452 images
with the recipe `fast`, changed as RECIPE says; the last weights (their running average) are shipped, not the best on validation. The
195 validation images are never trained on; figures are given for all of them and for the 118 of the clean subset, which have no
near-duplicate in the training half. Kill it and call it again: it resumes. The weights are stored in half precision.
"""
import argparse, json
from pathlib import Path

import torch

import cmunext_nb as cn
from cmunext_nb.data import clean_subset

ROOT = Path(__file__).resolve().parents[2]
RECIPE = dict(epochs=56, warmup=0.15, sizes=((0.0, 0.5), (0.5, 0.75), (0.85, 1.0)), validate_every=4)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--root", help="folder of BUSI, as in load_dataset")
    a = p.parse_args()
    path = ROOT / "cmunext_nb/assets/cmunext_s_busi.safetensors"
    train, valid = cn.load_dataset("busi", root=a.root, split=1, size=256)
    model = cn.create_model("cmunext_s", pretrained="phantom")
    history = cn.fit(model, train, valid, "fast", seed=41, out=ROOT / "runs/busi_s", **RECIPE)
    about = dict(data="BUSI (Al-Dhabyani et al. 2020), training half of the official split 1, 452 images, 256 px", start="phantom", recipe="fast",
                 changed={k: v for k, v in RECIPE.items()}, seed=41, hardware=f"CPU, {torch.get_num_threads()} threads, torch {torch.__version__}",
                 minutes=round(sum(r["seconds"] for r in history.rows) / 60, 1), command="python benchmarks/shipped/busi_weights.py",
                 licence="weights: MIT, as this package; BUSI's licence is stated differently by its mirrors (CC0, CC BY 4.0): cite Al-Dhabyani et al. 2020",
                 limits="one hospital's scans, lesion always present, near-duplicates between the split's halves; below the paper's 68.84 / 77.33. For learning and research, not a medical device")
    cn.save_weights(model, path, dtype=torch.float16, **about)
    shipped = cn.load_weights(path)  # measured as shipped: after rounding to half precision
    scores = {name: {k: round(v, 4) for k, v in cn.evaluate(shipped, data).items()} for name, data in (("valid", valid), ("valid_clean", clean_subset(valid, "busi")))}
    scores["best_epoch_on_valid"] = {k: round(v, 4) if isinstance(v, float) else v for k, v in history.best.items() if k in ("epoch", "iou", "f1")}
    cn.save_weights(model, path, dtype=torch.float16, **about, scores=scores)
    (ROOT / "nbs/results/busi_s_shipped.json").write_text(json.dumps(dict(**about, **scores, rows=history.rows), indent=2) + "\n")
    print(json.dumps(dict(file=str(path.relative_to(ROOT)), kilobytes=round(path.stat().st_size / 1024), **scores), indent=2))


if __name__ == "__main__": main()
