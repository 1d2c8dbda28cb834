"""How long one movement of a control takes in the labs (training_lab.py has that of training), on this machine: python benchmarks/labs.py [--repeats 7] [--out FILE]

Each of these controls is moved to values that it has not had yet, so that nothing comes out of a cache unless a reader would get it from there
too; a movement is everything from the new value to the bytes of the picture. Medians in milliseconds, CMUNeXt-S at 256 px.
"""
import argparse, json, statistics, time
from pathlib import Path

import cmunext_nb as cn
from machine import machine

ROOT = Path(__file__).resolve().parent.parent
# lab -> control -> values to visit
MOVES = {
    "BlockLab": dict(row=(1, 2, 3, 4, 6, 7, 8), kernel_size=(3, 7, 9)),
    "ReceptiveFieldLab": dict(layer=("encoder.3", "decoder.0", "encoder.2", "decoder.1"), row=range(40, 200, 16)),
    "GradCAMLab": dict(layer=("encoder.3", "decoder.0", "encoder.2", "decoder.1"), method=("hirescam", "layercam", "gradcam++", "xgradcam"), scan=(1, 2, 3, 4)),
    "PredictLab": dict(threshold=(0.1, 0.2, 0.3, 0.4, 0.6, 0.7), scan=(1, 2, 3, 4)),
    "AblationLab": dict(row=("unet", "reduced_unet", "cmunext_no_fusion", "cmunext_no_block"), show=("parameters", "macs"), dataset=("bus", "tus", "tnscui")),
}


def visit(lab, control, values, repeats):
    "Milliseconds of each movement."
    taken = []
    for value in list(values)[:repeats]:
        start = time.perf_counter()
        lab.controls[control].value = value
        taken.append(1000 * (time.perf_counter() - start))
        assert "Not possible" not in lab.sentence.value, lab.sentence.value
    return taken


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/labs.json")
    args, found = parser.parse_args(), {}
    for name, moves in MOVES.items():
        for control, values in moves.items():
            lab = getattr(cn.labs, name)()
            if control not in lab.controls: raise SystemExit(f"{name} has no control {control!r}; it has {', '.join(lab.controls)}.")
            taken = visit(lab, control, values, args.repeats)
            found[f"{name}.{control}"] = dict(median_ms=round(statistics.median(taken)), slowest_ms=round(max(taken)), n=len(taken))
    model = cn.create_model("cmunext_s", pretrained="phantom")
    images, _ = cn.make_phantom(16, size=256, seed=1)
    start = time.perf_counter()
    cn.effective_receptive_field(model, images, "encoder.4")
    found["effective_receptive_field, 16 images"] = dict(seconds=round(time.perf_counter() - start, 2))
    result = dict(machine=machine(), model="cmunext_s", size=256, movements=found)
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__": main()
