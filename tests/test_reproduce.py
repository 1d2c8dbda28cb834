"Runs that can be had again: packing, resuming, lines, and the bare machine. The everyday path is checked in nbs/49_reproduce.ipynb."
import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from cmunext_nb import reproduce
from cmunext_nb.data import data_roots, load_dataset
from cmunext_nb.augment import Augment, augmentations
from cmunext_nb.reproduce import SYSTEMS, add_result, build_system, load_packed, load_results, main, pack_dataset, results_table, run_name, run_system, summarise
from cmunext_nb.train import Recipe, get_recipe
from cmunext_nb.weights import save_weights


@pytest.fixture(scope="module")
def packed(tmp_path_factory): return pack_dataset("phantom", tmp_path_factory.mktemp("packed") / "phantom.npz", size=32, splits=(1,))


def line(model="cmunext_s", split=1, seed=41, iou=0.5, **more):
    scores = dict(iou=iou, f1=iou, n=4)
    return dict(name=f"{model}{split}{seed}{more}", model=model, data="busi", split=split, seed=seed, size=256, recipe="paper", changes={}, epochs=3, parameters=1,
                minutes=1.0, hardware="a card", best=scores, last=scores, **more)


def test_colour_survives_packing(tmp_path):
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"): (tmp_path / "set" / kind).mkdir(parents=True)
    for i in range(6):
        shape = (40, 48, 3) if i % 2 else (40, 48)
        Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)).save(tmp_path / f"set/images/{i}.png")
        Image.fromarray((rng.random((40, 48)) > 0.5).astype(np.uint8) * 255).save(tmp_path / f"set/masks/{i}.png")
    path = pack_dataset("folder", tmp_path / "set.npz", root=tmp_path / "set", size=48, splits=(1, 2))
    for split in (1, 2):
        for mine, there in zip(load_packed(path, split), load_dataset("folder", root=tmp_path / "set", split=split, size=48)):
            assert mine.images.equal(there.images) and mine.masks.equal(there.masks) and mine.names == there.names and mine.meta["part"] == there.meta["part"]


@pytest.mark.skipif(not any(r.is_dir() for r in data_roots("busi")), reason="BUSI is not here")
def test_busi_packs_below_45_megabytes(tmp_path):
    path = pack_dataset("busi", tmp_path / "busi.npz")
    assert path.stat().st_size < 45e6
    for mine, there in zip(load_packed(path, 2), load_dataset("busi", split=2)):
        assert mine.images.equal(there.images) and mine.masks.equal(there.masks) and mine.names == there.names and mine.meta["dataset"] == "busi"


@pytest.mark.parametrize("content", [b"", b"PK not a zip", json.dumps({}).encode()])
def test_what_is_no_packed_file_is_said(tmp_path, content):
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(ValueError, match="no packed dataset.*--pack"): load_packed(tmp_path / "x.npz")


@pytest.mark.parametrize("key", ["splits", "names", "dataset", "masks"])
def test_a_packed_file_that_lacks_something(tmp_path, packed, key):
    with np.load(packed) as file: arrays = {k: file[k] for k in file.files if k != key}
    about = {k: v for k, v in json.loads(str(arrays["about"])).items() if k != key}
    np.savez(tmp_path / "x.npz", **{**arrays, "about": np.array(json.dumps(about))})
    with pytest.raises(ValueError, match=f"x.npz is no packed dataset.*{key}"): load_packed(tmp_path / "x.npz")


def test_the_size_of_a_packed_file_is_its_own(packed, tmp_path):
    with pytest.raises(ValueError, match="holds 32 px, not 64: pack it again with --size 64"): main(command(packed, tmp_path, "--size", "64"))
    main(command(packed, tmp_path, "--size", "32", "--minutes", "0"))


@pytest.mark.parametrize("splits, held", [([], "1"), (["--splits", "1"], "1")])
def test_the_splits_of_a_packed_file(tmp_path, splits, held):
    main(["--data", "phantom", "--size", "32", "--pack", str(tmp_path / "p.npz"), *splits])
    with pytest.raises(ValueError, match=f"has the splits {held}, not 9"): load_packed(tmp_path / "p.npz", 9)
    assert load_packed(tmp_path / "p.npz")[0].images.shape[-1] == 32


def test_a_set_without_lists_is_packed_with_three_splits(tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / "set" / kind).mkdir(parents=True)
        for i in range(6): Image.fromarray(np.full((32, 32), 255 * (i % 2), np.uint8)).save(tmp_path / f"set/{kind}/{i}.png")
    path = pack_dataset("folder", tmp_path / "set.npz", root=tmp_path / "set", size=32)
    assert all(load_packed(path, split) for split in (1, 2, 3))


def test_a_split_that_did_not_travel_is_said(packed):
    with pytest.raises(ValueError, match="has the splits 1, not 3"): load_packed(packed, 3)


def test_an_object_array_is_not_unpickled(tmp_path):
    np.savez(tmp_path / "x.npz", about=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="no packed dataset"): load_packed(tmp_path / "x.npz")


def test_an_unknown_system_offers_the_nearest():
    with pytest.raises(ValueError, match="cmunext_no_fusion"): build_system("cmunext_no_fusio")


@pytest.mark.parametrize("name", SYSTEMS)
def test_systems_run(name):
    assert build_system(name)(torch.zeros(1, 3, 32, 32)).shape == (1, 1, 32, 32)


def test_building_leaves_the_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    build_system("cmunext_s", seed=5)
    assert torch.rand(1) == expected


def test_names_differ_where_figures_could():
    base = dict(model="cmunext_s", data="busi", split=1, recipe=get_recipe("fast"), size=256, seed=41, changes={})
    others = [dict(model="cmunext"), dict(data="tn3k"), dict(split=2), dict(recipe=get_recipe("fast", 9)), dict(size=128), dict(seed=1), dict(changes=dict(ema=0.9))]
    assert len({run_name(**{**base, **o}) for o in [{}, *others]}) == len(others) + 1


def test_shipped_names_can_be_had_again():
    for r in load_results():
        changes = {k: v for k, v in r["changes"].items() if k != "start"}
        recipe = get_recipe(r["recipe"], r["epochs"], **changes)
        assert reproduce._differences(recipe) == changes
        assert run_name(r["model"], r["data"], r["split"], recipe, r["size"], r["seed"], reproduce._marked(changes, r["changes"].get("start"))) == r["name"]


def test_a_recipe_does_not_lose_its_changes():
    differs = reproduce._differences
    assert differs(get_recipe("fast")) == {} == differs(get_recipe("paper", 7)) and differs(get_recipe("fast", lr=0.1)) == dict(lr=0.1)
    assert differs(get_recipe("fast", augment=augmentations["fast"])) == {} and differs(get_recipe("fast", augment=None)) == dict(augment=None)
    for given in (dict(scale=0.6), Augment(**{**vars(augmentations["fast"]), "scale": 0.6})): assert differs(get_recipe("fast", augment=given)) == dict(augment=dict(scale=0.6))
    assert differs(Recipe("mine", lr=0.1, augment="fast")) == dict(lr=0.1, augment="fast")
    assert len(run_name("cmunext_s", "busi", 1, get_recipe("fast", augment=Augment()), 256, 41, differs(get_recipe("paper", augment=augmentations["strong"])))) < 256


def test_recipes_and_augmentations_as_objects_become_lines(packed, tmp_path):
    train, valid = load_packed(packed)
    run = lambda recipe, **more: run_system("cmunext_s", train, valid, recipe, out=tmp_path / "runs", device="cpu", progress=False, epochs=1, sizes=None, **more)
    lines = [run("fast", augment=augmentations["strong"]), run(get_recipe("fast", lr=1e-3)), run("fast", lr=1e-3)]
    for r in lines: add_result(r, tmp_path / "lines.jsonl")
    assert len(load_results(tmp_path / "lines.jsonl")) == 2 and lines[1]["changes"] == lines[2]["changes"] == dict(lr=1e-3, sizes=None)
    assert summarise([r | dict(name=str(i)) for i, r in enumerate(load_results(tmp_path / "lines.jsonl") + lines)])[0]["runs_each"] == [2]


@pytest.mark.parametrize("a, b", [(dict(ema=0.9, clip=None), dict(clip=None, ema=0.9)), (dict(sizes=((0, 0.5),)), dict(sizes=[[0, 0.5]]))])
def test_the_same_changes_are_one_row(a, b):
    assert len(summarise([line() | dict(changes=a), line(seed=42) | dict(changes=b)])) == 1


def test_python_s_spelling_of_a_setting(packed, tmp_path):
    assert reproduce._changes(["prior=False", "ema=None", "prior=True", "amp=auto"]) == dict(prior=True, ema=None, amp="auto")
    main(command(packed, tmp_path, "--epochs", "1", "--set", "prior=False", "ema=None", "sizes=None"))
    assert load_results(tmp_path / "lines.jsonl")[0]["changes"] == dict(ema=None, sizes=None)  # without a beginning at the share is what fast does anyway


def test_two_folders_do_not_pass_for_each_other(tmp_path):
    rng = np.random.default_rng(0)
    for name in "AB":
        for kind in ("images", "masks"): (tmp_path / name / kind).mkdir(parents=True)
        for i in range(6):
            for kind in ("images", "masks"): Image.fromarray((rng.random((32, 32)) > 0.5).astype(np.uint8) * 255).save(tmp_path / name / kind / f"{i}.png")
    words = lambda name, *more: ["--data", "folder", "--root", str(tmp_path / name), "--size", "32", *command("", tmp_path, "--epochs", "1")[2:], *more]
    main(words("A"))
    before = (tmp_path / "lines.jsonl").read_bytes()
    with pytest.raises(ValueError, match="other images.*--results"): main(words("B"))
    main(words("A"))
    assert (tmp_path / "lines.jsonl").read_bytes() == before
    old = load_results(tmp_path / "lines.jsonl")[0]
    del old["data_checksum"]
    add_result(old, tmp_path / "lines.jsonl")
    main(words("B"))  # a line of an older version does not say
    assert load_results(tmp_path / "lines.jsonl") == [old]


def command(packed, tmp_path, *more):
    return ["--data", str(packed), "--recipe", "fast", "--epochs", "3", "--set", "sizes=null", "validate_every=1", "--device", "cpu",
            "--out", str(tmp_path / "runs"), "--results", str(tmp_path / "lines.jsonl"), *more]


def test_a_killed_run_goes_on_to_the_same_figures(packed, tmp_path):
    kill = "import os, signal, sys; from cmunext_nb import reproduce as r; f = r.fit\n" \
           "r.fit = lambda *a, **k: f(*a, **{**k, 'on_epoch': lambda run: run.epoch < 2 or os.kill(os.getpid(), signal.SIGKILL)})\nr.main(sys.argv[1:])"
    one, other = tmp_path / "one", tmp_path / "other"
    threads = dict(os.environ, OMP_NUM_THREADS=str(torch.get_num_threads()))  # a sum in another order is another sum
    killed = subprocess.run([sys.executable, "-c", kill, *command(packed, one)], capture_output=True, env=threads)
    assert killed.returncode != 0 and not (one / "lines.jsonl").exists() and list((one / "runs").iterdir())
    main(command(packed, one))
    main(command(packed, other))
    a, b = load_results(one / "lines.jsonl")[0], load_results(other / "lines.jsonl")[0]
    assert a["best"] == b["best"] and a["last"] == b["last"] and a["curve"]["loss"] == b["curve"]["loss"]


def test_weights_to_begin_with(packed, tmp_path):
    file = save_weights(build_system("cmunext_s", start="phantom"), tmp_path / "mine.safetensors")
    same = lambda a, b: all(map(torch.equal, a.state_dict().values(), b.state_dict().values()))
    assert same(build_system("cmunext_s", start="phantom"), build_system("cmunext_s", seed=7, start=file)) and not same(build_system("cmunext_s"), build_system("cmunext_s", start=str(file)))
    for start in ("phantom", str(file)): main(command(packed, tmp_path, "--epochs", "1", "--start", start))
    main(command(packed, tmp_path, "--epochs", "1"))
    named, other, new = load_results(tmp_path / "lines.jsonl")
    assert named["last"] == other["last"] != new["last"] and named["changes"]["start"] == "phantom" and other["changes"]["start"].startswith("mine-")
    assert len(summarise([named, other, new])) == 3 and "start=phantom" in results_table([named])
    save_weights(build_system("cmunext_s", seed=7), file)  # other weights under the same name are another run
    main(command(packed, tmp_path, "--epochs", "1", "--start", str(file)))
    assert len(load_results(tmp_path / "lines.jsonl")) == 4


def test_weights_that_have_seen_the_validation_images_are_refused():
    _, valid = load_dataset("phantom", size=32)
    valid.meta.update(dataset="busi", split=2)
    with pytest.raises(ValueError, match="have seen scans that are validated on"): run_system("cmunext_s", valid, valid, start="busi")


@pytest.mark.parametrize("start, error, words", [("phantoms", ValueError, "phantom"), ("nothing.safetensors", FileNotFoundError, "nothing.safetensors")])
def test_weights_that_are_not_there_are_said(packed, tmp_path, start, error, words):
    with pytest.raises(error, match=words): build_system("cmunext_s", start=start)
    with pytest.raises(error, match=words): main(command(packed, tmp_path, "--start", start))


def test_time_that_is_over_is_said(packed, tmp_path, capsys):
    main(command(packed, tmp_path, "--minutes", "0"))
    assert "not finished, the time is over" in capsys.readouterr().out and load_results(tmp_path / "lines.jsonl") == []


@pytest.mark.parametrize("pair", ["ema", "lr:1"])
def test_a_setting_without_a_value_is_said(packed, tmp_path, pair):
    with pytest.raises(ValueError, match="FIELD=VALUE"): main(["--data", str(packed), "--set", pair])


@pytest.mark.parametrize("pair, words", [("epochs=3", "give it as --epochs"), ("name=fast", "give it as --recipe")])
def test_fields_that_have_an_option_of_their_own(packed, pair, words):
    with pytest.raises(ValueError, match=words): main(["--data", str(packed), "--set", pair])


def test_a_size_of_numpy_can_be_packed(tmp_path):
    assert load_packed(pack_dataset("phantom", tmp_path / "p.npz", size=np.int64(32)))[0].images.shape[-1] == 32


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / "lines.jsonl").write_text(json.dumps(line()) + "\n{\"name\": ")
    with pytest.raises(ValueError, match="line 2 of .*delete it"): load_results(tmp_path / "lines.jsonl")


@pytest.mark.parametrize("text, lacking", [("{}", "best, changes, data"), ("[1]", "every field"), ('{"name": "x"}', "best, changes, data")])
def test_a_line_that_is_no_run_is_named(tmp_path, text, lacking):
    (tmp_path / "lines.jsonl").write_text(json.dumps(line()) + "\n\n" + text)
    with pytest.raises(ValueError, match=f"line 3 of .*lines.jsonl is no run, it lacks {lacking}"): main(["--table", "--results", str(tmp_path / "lines.jsonl")])


def test_two_commands_share_a_file(tmp_path):
    code = "import sys; from test_reproduce import add_result, line\nfor i in range(30): add_result(line(model=f'{sys.argv[1]}_{i}'), 'lines.jsonl')"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path(reproduce.__file__).parents[1])])}
    both = [subprocess.Popen([sys.executable, "-c", code, who], cwd=tmp_path, env=env) for who in "ab"]
    assert [p.wait() for p in both] == [0, 0] and len(load_results(tmp_path / "lines.jsonl")) == 60


def test_results_that_cannot_be_written_are_found_out_first(packed, tmp_path, monkeypatch):
    (tmp_path / "afile").write_text("")
    monkeypatch.setattr(reproduce, "run_system", lambda *a, **k: pytest.fail("trained first"))
    with pytest.raises(OSError, match="Could not write .*lines.jsonl.*another"): main(command(packed, tmp_path, "--results", str(tmp_path / "afile" / "lines.jsonl")))


@pytest.mark.parametrize("words, said", [("--data phanton", "phanton.*phantom"), ("--data phantom --size 32 --set lr=abc", "lr must be a number, not 'abc'"), ("--data none.npz", "none.npz")])
def test_a_wrong_command_is_one_line(tmp_path, words, said):
    done = subprocess.run([sys.executable, "-m", "cmunext_nb.reproduce", *words.split(), "--results", str(tmp_path / "l.jsonl")], capture_output=True, text=True)
    assert done.returncode == 1 and re.fullmatch(f"error: .*{said}.*\n", done.stderr)


def test_lines_without_weights_are_named(packed, tmp_path, capsys):
    whole = line(last_mirror={}, last_scales={}, last_zoom={})
    for entry in (line(), whole): add_result(entry, tmp_path / "lines.jsonl")
    with pytest.raises(FileNotFoundError, match="0 scored again, 1 complete, 1 without weights: check --out"): main([*command(packed, tmp_path), "--rescore"])
    assert f"{line()['name']}: no weights at {tmp_path / 'runs'}" in capsys.readouterr().out
    (tmp_path / "lines.jsonl").unlink()
    add_result(whole, tmp_path / "lines.jsonl")
    main([*command(packed, tmp_path), "--rescore"])
    assert capsys.readouterr().out == "0 scored again, 1 complete, 0 without weights\n"


def test_a_run_is_kept_once(tmp_path):
    for entry in (line(), line(split=2), line(iou=0.7)): add_result({**entry, "name": str(entry["split"])}, tmp_path / "lines.jsonl")
    assert [(r["name"], r["best"]["iou"]) for r in load_results(tmp_path / "lines.jsonl")] == [("1", 0.7), ("2", 0.5)]  # in its old place


def test_a_mean_is_one_over_all_runs_or_none():
    rows = [line(iou=0.4) | dict(last_scales=dict(iou=0.61, f1=0.7)), line(split=2, iou=0.8)]
    assert summarise(rows)[0]["last_scales_iou"] is None and "61.00" not in results_table(rows)
    rows[1].update(last_scales=dict(iou=0.69, f1=0.8), last_zoom=dict(iou=0.77, f1=0.8))
    rows[0]["last_zoom"] = dict(iou=0.75, f1=0.9)
    head, row = (re.split(r"  +", text) for text in results_table(rows).splitlines())
    assert row[head.index("zoomed")] == "76.00 / 85.00"
    assert summarise(rows)[0]["last_scales_iou"] == pytest.approx(65) and "65.00 / 75.00" in results_table(rows)


@pytest.mark.parametrize("lacking", [["last_scales"], ["last_zoom"], ["last_mirror", "last_zoom"]])
def test_only_the_weights_of_the_line_are_scored_again(packed, tmp_path, lacking, monkeypatch):
    words, path = command(packed, tmp_path, "--epochs", "1"), tmp_path / "lines.jsonl"
    main(words)
    whole = load_results(path)[0]
    bare = {k: v for k, v in whole.items() if k not in lacking}
    add_result(bare, path)
    asked, wrapper = [], reproduce.TTAWrapper
    monkeypatch.setattr(reproduce, "TTAWrapper", lambda model, tta: asked.append(tta) or wrapper(model, tta))
    main([*words, "--rescore"])
    assert load_results(path) == [whole] and [f"last_{tta}" for tta in asked] == lacking
    add_result(dict(bare, last=dict(bare["last"], iou=bare["last"]["iou"] + 0.01)), path)
    with pytest.raises(ValueError, match="other weights"): main([*words, "--rescore"])
    assert not set(lacking) & set(load_results(path)[0])


def test_each_split_counts_once():
    row = summarise([line(iou=0.4), line(seed=42, iou=0.6), line(split=2, iou=0.8)])[0]
    assert row["best_iou"] == pytest.approx(65) and row["splits"] == [1, 2] and row["seeds"] == [41, 42] and row["spread"] == pytest.approx(14.142, abs=1e-3)


def test_other_schedules_stand_apart():
    results = [line(), line(seed=42) | dict(epochs=4), line(seed=43) | dict(size=128), line(seed=44) | dict(changes=dict(ema=0.9))]
    assert len(summarise(results)) == 4 and results_table(results).count("cmunext_s") == 4


def test_missing_protocols_are_dashes():
    text = results_table([line()])
    assert "-" in text.splitlines()[1] and "50.00 / 50.00" in text


def test_shipped_lines_say_where_they_come_from():
    for r in load_results():
        assert r["hardware"] and r["torch"] and r["settings"]["epochs"] == r["epochs"] == len(r["curve"]["loss"]) and r["n_train"] > r["n_valid"]


def test_it_runs_on_a_bare_machine(packed, tmp_path):
    "Without matplotlib, scipy, pooch and all that is not torch, numpy, pillow, tqdm and safetensors."
    bare = "import sys\nfor m in ('matplotlib', 'scipy', 'pooch', 'IPython', 'ipywidgets', 'torchvision', 'timm', 'torchinfo', 'pytorch_grad_cam'): sys.modules[m] = None\n" \
           "from cmunext_nb.reproduce import main; main(sys.argv[1:])"
    done = subprocess.run([sys.executable, "-c", bare, *command(packed, tmp_path, "--models", "cmunext_s", "unext")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [r["model"] for r in load_results(tmp_path / "lines.jsonl")] == ["cmunext_s", "unext"]


# Several at a time

def test_side_by_side_is_one_after_the_other(packed, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))  # a sum in another order is another sum
    many = ["--seeds", "1", "2", "--epochs", "1"]
    for folder, jobs in ((tmp_path / "one", "1"), (tmp_path / "two", "2")): main(command(packed, folder, *many, "--jobs", jobs))
    one, two = (sorted(load_results(tmp_path / f / "lines.jsonl"), key=lambda r: r["seed"]) for f in ("one", "two"))
    assert [r["seed"] for r in two] == [1, 2] and [r["last"] for r in one] == [r["last"] for r in two]
    assert "2 runs, 2 at a time" in capsys.readouterr().out and len(list((tmp_path / "two/runs").glob("*.log"))) == 2
    monkeypatch.setattr(reproduce, "_start", lambda *a: pytest.fail("a finished run was begun again"))
    main(command(packed, tmp_path / "two", *many, "--jobs", "2"))


def child(code):
    "A stand-in for a training: what `_start` gives, with a process that runs this code."
    def start(a, run, end, folder):
        log = Path(folder).parent / "a.log"
        return run[0], subprocess.Popen([sys.executable, "-S", "-c", code], stdout=open(log, "w"), stderr=subprocess.STDOUT), Path(folder) / "none.jsonl", log
    return start


def test_one_that_fails_is_named_after_the_others(packed, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "_start", child("raise OSError('the disk is full')"))
    with pytest.raises(RuntimeError, match="2 of 2 runs failed, see .*a.log.*the disk is full"): main(command(packed, tmp_path, "--seeds", "1", "2", "--jobs", "2"))


def test_children_end_with_their_parent(monkeypatch):
    started = []
    def start(*given):
        started.append(child("import time\ntime.sleep(60)")(*given))
        return started[-1]
    monkeypatch.setattr(reproduce, "_start", start)
    def ctrl_c(seconds): raise KeyboardInterrupt
    monkeypatch.setattr(reproduce, "time", SimpleNamespace(sleep=ctrl_c, monotonic=time.monotonic))
    monkeypatch.setattr(subprocess.Popen, "wait", lambda self, timeout=None, wait=subprocess.Popen.wait: wait(self, timeout and timeout / 10))
    with pytest.raises(KeyboardInterrupt): reproduce._side_by_side(argparse.Namespace(jobs=2, out="runs"), [("a",), ("b",), ("c",)], None)
    assert len(started) == 2 and all(p.poll() is not None for _, p, *_ in started)


@pytest.mark.skipif(os.name == "nt", reason="no SIGINT for one process on this system")
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_an_interrupted_command_says_how_to_go_on(packed, tmp_path, jobs):
    "As from a terminal, where Ctrl-C reaches the whole group."
    words = [sys.executable, "-m", "cmunext_nb.reproduce", *command(packed, tmp_path, "--epochs", "400", "--jobs", jobs)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    begun = time.monotonic()
    while not list((tmp_path / "runs").glob("*/last.safetensors")) and time.monotonic() - begun < 120: time.sleep(0.2)
    for _ in range(3):  # once more, as a person would, where Python was just where an exception is only noted
        os.killpg(process.pid, signal.SIGINT)
        try: said = process.communicate(timeout=40)[1]
        except subprocess.TimeoutExpired: continue
        break
    assert process.returncode == 1 and "the same c" in said and "Traceback" not in said, said
    assert list((tmp_path / "runs").glob("*/interrupted.safetensors"))


@pytest.mark.skipif(os.name == "nt", reason="a process keeps its parent's number on this system")
def test_a_run_whose_parent_was_killed_stops_by_itself(packed, tmp_path):
    parent = subprocess.Popen([sys.executable, "-m", "cmunext_nb.reproduce", *command(packed, tmp_path, "--epochs", "4000", "--jobs", "2")], stdout=subprocess.DEVNULL)
    begun, said = time.monotonic(), lambda: "".join(log.read_text() for log in (tmp_path / "runs").glob("*.log"))
    try:
        while not list((tmp_path / "runs").glob("*/last.safetensors")) and time.monotonic() - begun < 120: time.sleep(0.2)
        assert "not finished" not in said()
    finally:
        parent.kill()
        parent.wait()
    while "not finished" not in said() and time.monotonic() - begun < 180: time.sleep(0.2)
    assert "not finished" in said() and list((tmp_path / "runs").glob("*/state.pt"))


def test_time_that_is_over_begins_nothing(packed, tmp_path, capsys):
    main(command(packed, tmp_path, "--seeds", "1", "2", "--jobs", "2", "--minutes", "0"))
    assert "2 runs were not begun" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--jobs 0: expected 1 or more"): main(command(packed, tmp_path, "--jobs", "0"))
