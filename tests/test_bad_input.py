"""Everything that can be wrong with what a user gives, from end to end: one clear error that names the file and the remedy, and nothing is lost.

Each `Case` is one way to be wrong. Its function breaks something in a small world (a folder of images, a network, its weights) and returns the call
that must be refused. The test then compares files and network before and after.
"""
import contextlib
import errno
import io
import os
import re
import tempfile
from pathlib import Path
from typing import Callable, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import cmunext_nb as cn
from cmunext_nb import weights
from cmunext_nb.files import read_image, read_mask
from cmunext_nb.metrics import reduce_counts
from cmunext_nb.model import create_model
from cmunext_nb.phantom import write_phantoms
from cmunext_nb.weights import load_upstream, load_weights, preprocess, read_metadata, save_weights, upstream_name

TINY = dict(dims=(4, 8, 8), depths=(1, 1, 1), kernel_sizes=(3, 3, 5))


def tiny(**overrides):
    torch.manual_seed(0)
    return create_model("cmunext_s", **{**TINY, **overrides})


class World:
    "A folder with eight images and masks, a network, and a file of its weights."
    def __init__(self, root):
        self.root, self.model = root, tiny().eval()
        images, masks = cn.make_phantom(8, size=40, seed=0)
        for i in range(8):
            self.write(f"data/images/scan_{i}.png", images[i, 0].numpy())
            self.write(f"data/masks/scan_{i}.png", masks[i, 0].numpy() * 255)
        self.images, self.masks = images, masks
        self.weights = save_weights(self.model, root / "net.safetensors")

    def path(self, name): return self.root / name

    def write(self, name, pixels, **options):
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(pixels)).save(path, **options)
        return path

    def cut(self, name, share=0.5):
        path = self.path(name)
        path.write_bytes(path.read_bytes()[:int(path.stat().st_size * share)])
        return path

    def load(self, **options): return cn.load_dataset("folder", root=self.root / "data", size=32, progress=False, **options)
    def predict(self, image, **options): return cn.predict(self.model, image, **{**dict(size=32), **options})
    def fit(self, images=None, masks=None, **options):
        data = (self.images if images is None else images, self.masks if masks is None else masks)
        return cn.fit(self.model, data, progress=False, **{**dict(epochs=1, batch_size=4, amp=False), **options})

    def files(self): return {str(p.relative_to(self.root)): p.read_bytes() for p in sorted(self.root.rglob("*")) if p.is_file()}
    def state(self): return {k: v.clone() for k, v in self.model.state_dict().items()}


@pytest.fixture
def world(tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("CMUNEXT_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("CMUNEXT_QUIET", "1")
    return World(tmp_path)


class Case(NamedTuple):
    "One way to be wrong."
    line: str # the line of the issue that it belongs to
    breaks: Callable # function of the World: breaks it, and returns the call to be refused
    error: type # what is raised
    says: str # words of the message, in order, apart from what lies between: file, what is wrong, remedy


CASES = []


def case(line, error, says):
    "Decorator: one more row of the table."
    def add(breaks):
        CASES.append(Case(line, breaks, error, says))
        return breaks
    return add


# missing file

@case("missing file", FileNotFoundError, "no_such.png ... Check the path")
def image(w): return lambda: w.predict(w.path("no_such.png"))

@case("missing file", FileNotFoundError, "no_such.png ... Check the path")
def image_among_good_ones(w): return lambda: w.predict([w.path("data/images/scan_0.png"), str(w.path("no_such.png"))])

@case("missing file", FileNotFoundError, "no_such ... Check the path")
def folder(w): return lambda: cn.load_dataset("folder", root=w.path("no_such"))

@case("missing file", FileNotFoundError, "images/NAME.png")
def folder_without_images(w): return lambda: cn.load_dataset("folder", root=w.path("."))

@case("missing file", FileNotFoundError, "scan_99")
def image_of_a_split_list(w):
    w.path("data/train.txt").write_text("scan_0\nscan_99\n")
    w.path("data/valid.txt").write_text("scan_1\n")
    return lambda: w.load()

@case("missing file", FileNotFoundError, "no_such.safetensors ... check the path")
def weights_file(w): return lambda: load_weights(w.path("no_such.safetensors"))

@case("missing file", FileNotFoundError, "no_such.pth ... check the path")
def upstream_file(w): return lambda: load_upstream(w.model, w.path("no_such.pth"))

@case("missing file", FileNotFoundError, "no_such.safetensors ... check the path")
def pretrained_file(w): return lambda: create_model("cmunext_s", pretrained=w.path("no_such.safetensors"))


# not an image

@case("not an image", ValueError, "notes.png is not an image ... PNG")
def text_with_a_picture_s_name(w):
    w.path("notes.png").write_text("not a picture")
    return lambda: w.predict(w.path("notes.png"))

@case("not an image", ValueError, "empty.png is not an image ... PNG")
def file_without_content(w):
    w.path("empty.png").touch()
    return lambda: w.predict(w.path("empty.png"))

@case("not an image", ValueError, "scan_3.png is not an image ... PNG")
def text_in_a_set(w):
    w.path("data/images/scan_3.png").write_text("not a picture")
    return lambda: w.load()

@case("not an image", ValueError, "scan_3.png is not an image ... PNG")
def text_for_a_mask(w):
    w.path("data/masks/scan_3.png").write_text("not a picture")
    return lambda: w.load()

@case("not an image", TypeError, "NoneType ... Give a path")
def nothing(w): return lambda: w.predict(None)

@case("not an image", OSError, "data/images")
def a_folder(w): return lambda: w.predict(w.path("data/images"))


# truncated PNG

@case("truncated PNG", ValueError, "scan_2.png ... Copy or download")
def one_image(w): return lambda path=w.cut("data/images/scan_2.png"): w.predict(path)

@case("truncated PNG", ValueError, "scan_2.png ... Copy or download")
def last_of_a_list(w):
    w.cut("data/images/scan_2.png", 0.95)
    return lambda: w.predict([w.path(f"data/images/scan_{i}.png") for i in range(3)])

@case("truncated PNG", ValueError, "scan_2.png ... Copy or download")
def image_in_a_set(w):
    w.cut("data/images/scan_2.png")
    return lambda: w.load()

@case("truncated PNG", ValueError, "masks/scan_2.png ... Copy or download")
def mask_in_a_set(w):
    w.cut("data/masks/scan_2.png", 0.6)
    return lambda: w.load()

@case("truncated PNG", ValueError, "scan_2.png cannot be decoded ... truncated ... Copy or download")
def picture_opened_earlier(w): return lambda path=w.cut("data/images/scan_2.png"): w.predict(Image.open(path))


# image without mask, mask of another size, mask that is not binary

@case("image without mask", FileNotFoundError, "1 of 8 images ... scan_5.png ... all-black mask")
def no_mask(w):
    w.path("data/masks/scan_5.png").unlink()
    return lambda: w.load()

@case("mask of another size", ValueError, "masks/scan_4.png is 40 x 39 ... images/scan_4.png 40 x 40 ... Save the mask")
def one_row_less(w):
    w.write("data/masks/scan_4.png", w.masks[4, 0, :39].numpy() * 255)
    return lambda: w.load()

@case("mask of another size", ValueError, "(39, 40) ... own size")
def truth_of_another_size(w): return lambda r=w.predict(w.images[4, 0]): r.score(w.masks[4, 0, :39])

@case("mask of another size", ValueError, "training ... must agree")
def masks_for_fit(w): return lambda: w.fit(masks=w.masks[..., :32])

def stripes(): return np.repeat(np.uint8([0, 100, 255, 0, 100, 255, 0, 255]), 5)[None].repeat(40, 0)

@case("mask that is not binary", ValueError, "scan_1.png has 3 levels ([0, 100, 255]) ... mask of its own")
def classes(w):
    w.write("data/masks/scan_1.png", stripes())
    return lambda: w.load()

@case("mask that is not binary", ValueError, "scan_1.jpg is not binary ... mask of its own")
def classes_as_jpeg(w):
    w.path("data/masks/scan_1.png").unlink()
    w.write("data/masks/scan_1.jpg", stripes(), quality=95)
    return lambda: w.load()

@case("mask that is not binary", ValueError, "scan_1.png is not binary")
def photograph(w):
    w.write("data/masks/scan_1.png", w.images[1, 0].numpy())
    return lambda: w.load()

@case("mask that is not binary", ValueError, "mask of '2' ... 255 ... only 0 and 1")
def tensor_of_0_and_255(w):
    masks = w.masks.clone()
    masks[2, :, :9] = 255
    return lambda: w.fit(masks=masks)


# 1x1 image

@case("1x1 image", ValueError, "1 x 1 pixels ... 16 x 16 ... Give a size")
def at_its_own_size(w): return lambda: w.predict(np.zeros((1, 1), np.uint8), size=None)

@case("1x1 image", ValueError, "at least 16 pixels. Resize or pad")
def in_the_network(w): return lambda: w.model(torch.zeros(1, 3, 1, 1))

@case("1x1 image", ValueError, "training ... 16 x 16 is the least")
def in_a_training(w): return lambda: w.fit(torch.zeros(4, 1, 1, 1, dtype=torch.uint8), torch.zeros(4, 1, 1, 1, dtype=torch.uint8))


# wrong number of channels

@case("wrong number of channels", ValueError, "(2, 30, 30) ... 1, 3 or 4 channels")
def two_in_predict(w): return lambda: w.predict(torch.zeros(2, 30, 30))

@case("wrong number of channels", ValueError, "takes 3 channels ... in_channels=5")
def five_in_the_network(w): return lambda: w.model(torch.zeros(1, 5, 32, 32))

@case("wrong number of channels", ValueError, "3 channels ... network takes 5")
def colour_for_a_network_of_five(w): return lambda: cn.predict(tiny(in_channels=5), np.random.default_rng(0).integers(0, 255, (20, 20, 3), np.uint8))

@case("wrong number of channels", ValueError, "takes 3 channels ... have 2 ... in_channels=2")
def two_in_a_training(w): return lambda: w.fit(w.images.repeat(1, 2, 1, 1))

@case("wrong number of channels", ValueError, "channels must be 1 or 3")
def two_asked_of_the_loader(w): return lambda: w.load(channels=2)

@case("wrong number of channels", ValueError, "1 classes ... 2 channel(s) ... num_classes=2")
def two_masks_for_one_class(w): return lambda: w.fit(masks=w.masks.repeat(1, 2, 1, 1))


# NaN in a batch

def with_nan(n=3):
    batch = torch.rand(n, 1, 40, 40)
    batch[1, 0, 3, 4] = float("nan")
    return batch

@case("NaN in a batch", ValueError, "image 2 of 3 ... NaN ... Replace")
def in_predict(w): return lambda: w.predict(with_nan())

@case("NaN in a batch", ValueError, "nan ... replace NaN")
def in_preprocess(w): return lambda: preprocess(with_nan())

@case("NaN in a batch", TypeError, "training ... float32 ... uint8")
def in_training_images(w): return lambda: w.fit(with_nan(8))

@case("NaN in a batch", FloatingPointError, "epoch 1 ... images ... lower lr")
def in_the_loss(w):
    w.model.head.register_forward_hook(lambda module, inputs, out: out * float("nan") if module.training else out)
    return lambda: w.fit()

@case("NaN in a batch", ValueError, "NaN ... diverged")
def in_the_metrics(w): return lambda: cn.iou(with_nan(), w.masks[:3])

@case("NaN in a batch", ValueError, "NaN ... Load earlier weights")
def in_the_answer(w):
    w.model.head.register_forward_hook(lambda module, inputs, out: out * float("nan"))
    return lambda: w.predict(w.images)


# unknown names

@case("unknown name", ValueError, "'cmunxet_s' ... 'cmunext_s'")
def model_name(w): return lambda: create_model("cmunxet_s")

@case("unknown name", ValueError, "'kernel_size' ... 'kernel_sizes'")
def override(w): return lambda: create_model("cmunext_s", kernel_size=(3, 3, 3, 3, 3))

@case("unknown name", ValueError, "'bussi' ... 'busi'")
def dataset_name(w): return lambda: cn.load_dataset("bussi")

@case("unknown name", ValueError, "'phantoms' ... 'phantom'")
def dataset_name_in_the_plural(w): return lambda: cn.load_dataset("phantoms")

@case("unknown name", ValueError, "'papper' ... 'paper'")
def recipe(w): return lambda: w.fit(recipe="papper")

@case("unknown name", ValueError, "'learning_rat' ... lr")
def recipe_field(w): return lambda: w.fit(learning_rat=1)

@case("unknown name", ValueError, "'imagnet' ... 'imagenet'")
def preprocessing(w): return lambda: w.predict(w.images, preprocess="imagnet")

@case("unknown name", ValueError, "'mirrors' ... 'mirror'")
def views(w): return lambda: w.predict(w.images, tta="mirrors")

@case("unknown name", AttributeError, "'create_modle' ... create_model")
def attribute(w): return lambda: cn.create_modle


# checkpoints

def upstream_of(model): return {upstream_name(k, len(model.encoder)): v for k, v in model.state_dict().items()}

@case("checkpoint of another network", ValueError, "net.safetensors does not fit ... saved from ... [4, 8, 8] ... build that network")
def other_dims(w): return lambda: load_weights(w.weights, create_model("cmunext_s"))

@case("checkpoint of another network", ValueError, "two.safetensors does not fit ... head")
def other_classes(w):
    path = save_weights(tiny(num_classes=2), w.path("two.safetensors"))
    return lambda: load_weights(path, w.model)

@case("checkpoint of another network", ValueError, "wide.pth does not fit ... Build the variant")
def upstream_of_another_variant(w):
    torch.save(upstream_of(create_model("cmunext_s")), w.path("wide.pth"))
    return lambda: load_upstream(w.model, w.path("wide.pth"))

@case("checkpoint of another network", ValueError, "unet.pth does not fit ... unexpected")
def of_another_architecture(w):
    torch.save(nn.Sequential(nn.Conv2d(3, 4, 3)).state_dict(), w.path("unet.pth"))
    return lambda: load_upstream(w.model, w.path("unet.pth"))

@case("checkpoint of another network", ValueError, "state.pt belongs to another training ... resume=False")
def resume_of_another_training(w):
    cn.fit(tiny(), (w.images, w.masks), epochs=1, batch_size=4, amp=False, progress=False, out=w.path("run"))
    return lambda: w.fit(out=w.path("run"), lr=0.5)

@case("checkpoint cut short", ValueError, "net.safetensors ... cut short ... again")
def ours(w): return lambda path=w.cut("net.safetensors"): load_weights(path, w.model)

@case("checkpoint cut short", ValueError, "net.safetensors ... cut short ... again")
def ours_by_a_few_bytes(w): return lambda path=w.cut("net.safetensors", 0.99): load_weights(path)

@case("checkpoint cut short", ValueError, "net.safetensors ... cut short ... again")
def what_it_says_about_itself(w): return lambda path=w.cut("net.safetensors", 0.01): read_metadata(path)

@case("checkpoint cut short", ValueError, "theirs.pth ... cut short ... again")
def upstream(w):
    torch.save(upstream_of(w.model), w.path("theirs.pth"))
    return lambda path=w.cut("theirs.pth"): load_upstream(w.model, path)

@case("checkpoint cut short", ValueError, "state.pt ... cut short ... resume=False")
def state_of_a_training(w):
    cn.fit(tiny(), (w.images, w.masks), epochs=1, batch_size=4, amp=False, progress=False, out=w.path("run"))
    w.cut("run/state.pt")
    return lambda: w.fit(out=w.path("run"))


def in_order(words, message):
    "Whether the pieces of `words`, split at ` ... `, all stand in the message, one after the other."
    return re.search(".*?".join(re.escape(p) for p in words.split(" ... ")), message, re.S | re.I)


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.line}: {c.breaks.__name__}".replace(" ", "_"))
def test_refused_and_nothing_lost(case, world):
    call = case.breaks(world)
    files, state, mode = world.files(), world.state(), world.model.training
    with pytest.raises(case.error) as caught: call()
    message = str(caught.value)
    assert in_order(case.says, message), f"expected {case.says!r} in: {message}"
    assert "\n" not in message.strip() and len(message) < 900, f"not one clear sentence: {message}"
    assert world.files() == files, "a file was changed, lost or left behind"
    assert all(torch.equal(v, state[k]) for k, v in world.model.state_dict().items()), "the weights were changed"
    assert world.model.training == mode


def test_every_line_of_the_issue_has_a_case():
    assert {c.line for c in CASES} == {
        "missing file", "not an image", "truncated PNG", "image without mask", "mask of another size", "mask that is not binary", "1x1 image", "wrong number of channels",
        "NaN in a batch", "unknown name", "checkpoint of another network", "checkpoint cut short"}
    assert len({c.breaks.__name__ for c in CASES}) == len(CASES), "two cases of one name: one hides the other"


# what looks wrong and is not

def test_jpeg_masks_are_cut_at_half_their_range(world):
    from cmunext_nb.phantom import make_phantom
    image, mask = (t[0, 0].numpy() for t in make_phantom(1, size=256, seed=3))
    for quality in (40, 75, 95):
        path = world.write("mask.jpg", mask * 255, quality=quality)
        assert len(np.unique(np.asarray(Image.open(path)))) > 2, "this JPEG has no soft edges to cut"
        assert (read_mask(path) != mask).mean() < 0.002
    result = cn.predict(world.model, image, size=32)
    assert result.score(path)["iou"] == pytest.approx(result.score(mask)["iou"], abs=0.01)


def test_an_empty_mask_is_a_healthy_image(world):
    world.write("data/masks/scan_0.png", np.zeros((40, 40), np.uint8))
    train, _ = world.load(split="all")
    assert train.masks[train.names.index("scan_0")].sum() == 0 and train.masks.sum() > 0
    history = cn.fit(world.model, train, train, epochs=2, batch_size=4, amp=False, progress=False)
    assert all(np.isfinite(v) for row in history.rows for v in row.values() if isinstance(v, float))
    assert all(v.isfinite().all() for v in world.model.state_dict().values())
    nothing = torch.full((1, 1, 40, 40), -9.0)
    assert cn.iou(nothing, torch.zeros(1, 1, 40, 40)) == 1 and cn.iou(-nothing, torch.zeros(1, 1, 40, 40)) == 0


def test_only_empty_masks_train_too(world):
    history = world.fit(masks=torch.zeros_like(world.masks), valid=(world.images, torch.zeros_like(world.masks)))
    assert np.isfinite(history.last["loss"])


def test_one_pixel_is_enlarged(world):
    world.write("data/images/dot.png", np.uint8([[7]]))
    world.write("data/masks/dot.png", np.uint8([[0]]))
    train, _ = world.load(split="all")
    assert (train.images[train.names.index("dot")] == 7).all()
    result = world.predict(world.path("data/images/dot.png"))
    assert result.mask.shape == (1, 1) and read_mask(result.save(world.path("dot.png"))).shape == (1, 1)


def test_a_second_try_after_the_remedy_works(world):
    good = world.path("data/images/scan_2.png").read_bytes()
    world.cut("data/images/scan_2.png")
    with pytest.raises(ValueError): world.load()
    world.path("data/images/scan_2.png").write_bytes(good)
    assert sum(map(len, world.load())) == 8
    assert read_image(world.path("data/images/scan_2.png")).shape == (1, 40, 40)


# full disk, no permission

@contextlib.contextmanager
def full_disk(folder):
    "No file may grow beyond a few bytes: the system itself refuses, also root."
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, hard))
    try: yield
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def no_permission(folder, rights=0o555):
    "The folder belongs to somebody else. Root may write anywhere, so root becomes `nobody` for a moment."
    if not hasattr(os, "geteuid"): pytest.skip("no users of this kind")
    user, mode = os.geteuid(), folder.stat().st_mode
    folder.chmod(rights)
    if user == 0: os.seteuid(65534)
    try: yield
    finally:
        if user == 0: os.seteuid(user)
        folder.chmod(mode)


@contextlib.contextmanager
def refused_when_opened(folder):
    "A read-only file system: nothing new can be opened for writing."
    def read_only(file, mode="r", *args, **kwargs):
        if set(mode) & set("wxa+"): raise OSError(errno.EROFS, "Read-only file system", str(file))
        return io.open(file, mode, *args, **kwargs)
    patch = pytest.MonkeyPatch()
    patch.setattr(weights, "open", read_only, raising=False)
    try: yield
    finally: patch.undo()


@pytest.fixture
def open_folder():
    "A folder that every user can reach, unlike pytest's own: what refuses is then the folder that the test closes."
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder).resolve()


SAVERS = dict(
    weights=("saved/net.safetensors", lambda w, path: save_weights(w.model, path)),
    mask=("saved/mask.png", lambda w, path: w.result.save(path)),
    history=("saved/history.jsonl", lambda w, path: w.history.save(path)),
    training=("saved/last.safetensors", lambda w, path: w.fit(out=path.parent)),
    phantoms=("saved/images/phantom_000.png", lambda w, path: write_phantoms(path.parent.parent, n=2, size=32)))


@pytest.mark.parametrize("trouble", [full_disk, no_permission, refused_when_opened], ids=lambda f: f.__name__)
@pytest.mark.parametrize("kind", SAVERS)
def test_saving_that_fails_keeps_the_old_file(kind, trouble, world, open_folder):
    name, save = SAVERS[kind]
    world.result, world.history = world.predict(world.images[0, 0]), cn.History([dict(epoch=1, loss=0.5, iou=0.5)])
    save(world, world.path("before") / name)  # nothing is left to import or to make when the trouble starts
    path = open_folder / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"the old file")
    with pytest.raises(OSError) as caught:
        with trouble(path.parent): save(world, path)
    message = str(caught.value)
    assert re.search("Could not write " + re.escape(str(path.parent)), message), message
    expected = dict(full_disk=(errno.EFBIG, "Free some space"), no_permission=(errno.EACCES, "may write to"), refused_when_opened=(errno.EROFS, "may write to"))[trouble.__name__]
    assert caught.value.errno == expected[0] and expected[1] in message, message
    assert path.read_bytes() == b"the old file" and not [p for p in open_folder.rglob("*") if p.name.endswith(".tmp")]
    save(world, path)
    assert path.read_bytes() != b"the old file"


@pytest.mark.parametrize("kind", ["weights", "mask", "history"])
def test_a_closed_folder_further_up(kind, world, open_folder):
    name, save = SAVERS[kind]
    world.result, world.history = world.predict(world.images[0, 0]), cn.History([dict(epoch=1, loss=0.5, iou=0.5)])
    save(world, world.path("before") / name)
    path = open_folder / "closed" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"the old file")
    with pytest.raises(OSError, match="Could not write .*" + re.escape(path.name) + ".*may write to"):
        with no_permission(open_folder / "closed", 0o000): save(world, path)
    assert path.read_bytes() == b"the old file" and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["weights", "mask", "history"])
def test_a_folder_in_the_file_s_place(kind, world):
    world.result, world.history = world.predict(world.images[0, 0]), cn.History([dict(epoch=1, loss=0.5)])
    name, save = SAVERS[kind]
    path = world.path(name)
    path.mkdir(parents=True)
    (path / "precious.txt").write_text("mine")
    with pytest.raises(OSError, match="Could not write.*" + re.escape(path.name)): save(world, path)
    assert (path / "precious.txt").read_text() == "mine" and [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_file_in_the_folder_s_place(world):
    world.path("out").write_text("mine")
    for call in (lambda: save_weights(world.model, world.path("out/net.safetensors")), lambda: world.fit(out=world.path("out"))):
        state = world.state()
        with pytest.raises(OSError, match="out"): call()
        assert all(torch.equal(v, state[k]) for k, v in world.model.state_dict().items())
    assert world.path("out").read_text() == "mine"


def test_a_cache_that_cannot_be_written_costs_only_time(world, monkeypatch):
    monkeypatch.setenv("CMUNEXT_CACHE", str(world.path("net.safetensors")))  # a file where the folder should be
    before = world.files()
    with pytest.warns(UserWarning, match="could not be kept"): train, valid = world.load()
    assert len(train) + len(valid) == 8 and world.files() == before


def test_the_result_of_a_failed_save_can_be_saved_elsewhere(world):
    result = world.predict(world.images[0, 0])
    with pytest.raises(OSError):
        with full_disk(world.root): result.save(world.path("mask.png"))
    assert np.array_equal(read_mask(result.save(world.path("other.png"))) > 0, result.mask)


def test_scores_of_an_unknown_metric_name_the_known_ones():
    counts = [torch.ones(1, 1, dtype=torch.int64)] * 4
    with pytest.raises(ValueError, match="'iuo'.*'iou'"): reduce_counts(*counts, "iuo")
    with pytest.raises(ValueError, match="'images'.*'image'"): reduce_counts(*counts, "iou", "images")
