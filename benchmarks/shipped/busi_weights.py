"""Make the weights that `pretrained="busi"` loads out of a finished run of the reproduction command.

    python -m cmunext_nb.reproduce --data busi --models cmunext_s --splits 1 --recipe fast --epochs 200
    python benchmarks/shipped/busi_weights.py [--run FOLDER] [--root FOLDER]      # cmunext_nb/assets/cmunext_s_busi.safetensors

CMUNeXt-S, trained on the 452 images of the training half of BUSI's official split 1; the last weights (their running average) are
shipped, not the best on validation. The 195 validation images are never trained on; figures are given for all of them and for the 118 of
the clean subset, which have no near-duplicate in the training half. Card, minutes and versions come from the run's line in
cmunext_nb/assets/runs.jsonl. The weights are stored in half precision, and measured as stored.
"""
import argparse, json
from pathlib import Path

import torch

import cmunext_nb as cn
from cmunext_nb.data import clean_subset
from cmunext_nb.reproduce import load_results

ROOT = Path(__file__).resolve().parents[2]
NAME = "busi_split1_cmunext_s_fast_200epochs_256px_seed41"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--run", type=Path, default=ROOT / "runs/reproduce" / NAME, help=f"folder of the run (default: runs/reproduce/{NAME})")
    p.add_argument("--root", help="folder of BUSI, as in load_dataset")
    a = p.parse_args()
    line = next((r for r in load_results() if r["name"] == NAME), None)
    if line is None: raise SystemExit(f"no line {NAME} in cmunext_nb/assets/runs.jsonl: merge that of the run first")
    path, model = ROOT / "cmunext_nb/assets/cmunext_s_busi.safetensors", cn.load_weights(a.run / "last.safetensors")
    _, valid = cn.load_dataset("busi", root=a.root, split=1, size=256)
    about = dict(data="BUSI (Al-Dhabyani et al. 2020), training half of the official split 1, 452 images, 256 px", start="random weights", recipe="fast", changed=dict(epochs=200),
                 seed=line["seed"], hardware=f"{line['hardware']}, torch {line['torch']}", precision=line["precision"], minutes=line["minutes"], date=line["date"],
                 command="python -m cmunext_nb.reproduce --data busi --models cmunext_s --splits 1 --recipe fast --epochs 200",
                 licence="weights: MIT, as this package; BUSI's licence is stated differently by its mirrors (CC0, CC BY 4.0): cite Al-Dhabyani et al. 2020",
                 limits="one hospital's scans, lesion always present, near-duplicates between the split's halves. For learning and research, not a medical device")
    cn.save_weights(model, path, dtype=torch.float16, **about)
    shipped = cn.load_weights(path)  # measured as shipped: after rounding to half precision
    scores = {name: {k: round(v, 4) for k, v in cn.evaluate(shipped, data).items()} for name, data in (("valid", valid), ("valid_clean", clean_subset(valid, "busi")))}
    scores["best_epoch_on_valid"] = dict(epoch=line["best_epoch"], **{k: round(line["best"][k], 4) for k in ("iou", "f1")})
    cn.save_weights(model, path, dtype=torch.float16, **about, scores=scores)
    (ROOT / "nbs/results/busi_s_shipped.json").write_text(json.dumps(dict(**about, **scores, curve=line["curve"]), indent=2) + "\n")
    print(json.dumps(dict(file=str(path.relative_to(ROOT)), kilobytes=round(path.stat().st_size / 1024), **scores), indent=2))


if __name__ == "__main__": main()
