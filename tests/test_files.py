"Reading pictures and masks of every kind; downloads over a bad line; archives that mean harm. Network: this machine's loopback only."
import hashlib
import http.server
import re
import threading
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from cmunext_nb import files
from cmunext_nb.files import ResumableDownload, cache_dir, fetch, quiet, read_image, read_mask, resize_square, unzip

CONTENT = np.random.default_rng(0).bytes(300_000)
MD5 = "md5:" + hashlib.md5(CONTENT).hexdigest()


def scan(h=40, w=50): return (np.indices((h, w)).sum(0) * 255 / (h + w)).astype(np.uint8)


def lesion(h=40, w=50):
    y, x = np.mgrid[:h, :w]
    return ((y - h / 2) ** 2 + (x - w / 2) ** 2 < (h / 4) ** 2).astype(np.uint8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(path, **options)
    return path


# images

@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P"])
@pytest.mark.parametrize("kind", ["png", "tif", "bmp"])
def test_every_mode_gives_the_same_grey(tmp_path, mode, kind):
    if kind == "bmp" and mode in ("LA", "RGBA"): pytest.skip("BMP has no such mode")
    picture = Image.fromarray(scan())
    path = save(tmp_path / f"a.{kind}", picture.convert(mode))
    got = read_image(path)
    assert got.dtype == np.uint8 and got.shape == (1, 40, 50) and (got[0] == scan()).all()


def test_colour_is_kept(tmp_path):
    colour = np.stack([scan(), scan() // 2, 255 - scan()], 2)
    assert (read_image(save(tmp_path / "c.png", colour)) == np.moveaxis(colour, 2, 0)).all()


def test_see_through_pixels_are_black(tmp_path):
    rgba = np.full((4, 4, 4), 255, np.uint8); rgba[:2, :, 3] = 0
    assert read_image(save(tmp_path / "a.png", rgba))[0].tolist() == [[0] * 4] * 2 + [[255] * 4] * 2
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P"); palette.putpalette([255, 0, 0, 0, 0, 255])
    assert read_image(save(tmp_path / "p.png", palette, transparency=0))[:, 0].T.tolist() == [[0, 0, 0], [0, 0, 255]]


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_deep_pictures_fill_the_range(tmp_path, bits):
    deep = np.linspace(0, 2**bits - 1, 2000).reshape(40, 50).astype(np.uint16)
    got = read_image(save(tmp_path / "d.png", deep))[0]
    assert got.min() == 0 and got.max() == 255 and (got == deep >> (bits - 8)).all()


@pytest.mark.parametrize("source", [scan(), scan()[None], scan()[..., None], torch.from_numpy(scan()), torch.from_numpy(scan())[None], scan() / 255.0,
                                    scan().astype(np.int64), Image.fromarray(scan())])
def test_arrays_tensors_and_pictures(source): assert (read_image(source)[0] == scan()).all()


def test_channel_axis_is_guessed_by_kind():
    assert read_image(torch.rand(3, 7, 3)).shape == (3, 7, 3) and read_image(np.random.rand(3, 7, 3)).shape == (3, 3, 7)
    assert read_image(np.random.rand(3, 7, 5)).shape == (3, 7, 5) and read_image(torch.rand(7, 5, 3)).shape == (3, 7, 5)


def test_one_pixel(tmp_path):
    path = save(tmp_path / "dot.png", np.full((1, 1), 9, np.uint8))
    assert read_image(path).tolist() == [[[9]]] and read_mask(path).tolist() == [[1]]


@pytest.mark.parametrize("keep", [9, 40, 0.3, 0.9])
def test_truncated_png_names_the_file(tmp_path, keep):
    whole = save(tmp_path / "whole.png", np.random.default_rng(0).integers(0, 255, (40, 50), dtype=np.uint8)).read_bytes()
    cut = tmp_path / "cut.png"; cut.write_bytes(whole[:keep if keep > 1 else int(len(whole) * keep)])
    with pytest.raises(ValueError, match="cut.png"): read_image(cut)


def test_wrong_files(tmp_path):
    (tmp_path / "a.png").write_text("hello"); (tmp_path / "b.png").write_bytes(b"")
    for name in "ab":
        with pytest.raises(ValueError, match=f"{name}.png is not an image"): read_image(tmp_path / f"{name}.png")
    with pytest.raises(FileNotFoundError, match="c.png"): read_image(tmp_path / "c.png")
    with pytest.raises((IsADirectoryError, PermissionError)): read_image(tmp_path)


@pytest.mark.parametrize("array, word", [(np.full((3, 3), np.nan), "NaN"), (-np.ones((3, 3)), "negative"), (np.full((3, 3), 1e4), "10000"),
                                         (np.zeros((2, 5, 6)), "shape"), (np.zeros((1, 3, 5, 6)), "shape"), (np.zeros((0, 3)), "no pixels"), (np.zeros(7), "shape")])
def test_wrong_arrays(array, word):
    with pytest.raises(ValueError, match=word): read_image(array)


# masks

@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "P"])
@pytest.mark.parametrize("value", [1, 128, 255])
def test_mask_modes(tmp_path, mode, value):
    if mode == "1" and value != 255: pytest.skip("one bit")
    path = save(tmp_path / "m.png", Image.fromarray(lesion() * value).convert(mode))
    got = read_mask(path)
    assert got.dtype == np.uint8 and (got == lesion()).all()


@pytest.mark.parametrize("quality", [30, 60, 95])
def test_jpeg_mask(tmp_path, quality):
    big = lesion(200, 240)
    assert (read_mask(save(tmp_path / "m.jpg", big * 255, quality=quality)) == big).mean() > 0.995


def test_empty_and_full_masks(tmp_path):
    for name in ("e.png", "e.jpg"): assert not read_mask(save(tmp_path / name, np.zeros((20, 20), np.uint8))).any()
    for name in ("f.png", "f.jpg"): assert read_mask(save(tmp_path / name, np.full((20, 20), 255, np.uint8))).all()


def test_soft_edges_are_cut_at_half(tmp_path):
    big = lesion(200, 240)
    soft = Image.fromarray(big * 255).resize((120, 100), Image.Resampling.BILINEAR)
    assert abs(read_mask(save(tmp_path / "soft.png", soft)).mean() - big.mean()) < 0.002


@pytest.mark.parametrize("kind", ["one stray pixel", "one in the lesion", "a dim frame", "four times as large"])
def test_a_little_grey_is_no_third_class(kind):
    mask = np.zeros((256, 256), np.uint8); mask[80:140, 60:190] = 255
    whole = mask > 0
    if kind == "one stray pixel": mask[3, 3] = 7
    if kind == "one in the lesion": mask[100, 100] = 100; whole[100, 100] = False
    if kind == "a dim frame": mask[0] = 10
    if kind == "four times as large":
        band = np.zeros((256, 256), np.uint8); band[80:140] = 255
        mask, whole = np.asarray(Image.fromarray(band).resize((1024, 1024), Image.Resampling.BILINEAR)), np.kron(band > 0, np.ones((4, 4), bool))
    assert 2 < len(np.unique(mask)) <= 8 and (read_mask(mask) == whole).all()


@pytest.mark.parametrize("level", [60, 100, 128, 200])
@pytest.mark.parametrize("place", [(5, 5), (90, 90)])
def test_a_small_third_class_is_a_class(level, place):
    mask = np.zeros((256, 256), np.uint8); mask[80:140, 60:190] = 255
    mask[place[0]:place[0] + 16, place[1]:place[1] + 16] = level
    with pytest.raises(ValueError, match="3 levels"): read_mask(mask)


@pytest.mark.parametrize("pixels", [np.linspace(-0.5, 0.5, 6)[None], np.array([[-0.4, -0.1]]), np.array([[-0.3, 0, 0.2]]), np.array([[-1.0, 1.0]])])
def test_centred_floats_are_no_overshoot(pixels):
    with pytest.raises(ValueError, match="negative"): read_image(pixels)


def three_levels(kind):
    m = lesion(100, 120); m[80:95, 80:110] = 2
    return {"labels": m, "grey": m * 127, "colour": np.stack([(m == 1) * 255, (m == 2) * 255, m * 0], 2).astype(np.uint8)}[kind]


@pytest.mark.parametrize("kind, name", [("labels", "m.png"), ("grey", "m.png"), ("grey", "m.jpg"), ("colour", "m.png")])
def test_class_maps_are_refused(tmp_path, kind, name):
    with pytest.raises(ValueError, match=name): read_mask(save(tmp_path / name, three_levels(kind)))


def test_a_photograph_is_no_mask(tmp_path):
    for name in ("scan.png", "scan.jpg"):
        with pytest.raises(ValueError, match=f"{name} is not binary"): read_mask(save(tmp_path / name, scan()))
    with pytest.raises(ValueError, match="dark.jpg"): read_mask(save(tmp_path / "dark.jpg", lesion() * 4))


def test_resize():
    assert resize_square(scan(), 8).shape == (8, 8) and resize_square(np.stack([scan()] * 3, 2), 8).shape == (8, 8, 3)
    assert set(np.unique(resize_square(lesion(), 7, mask=True))) == {0, 1}
    assert resize_square(scan(30, 30), 30) is not None and resize_square(np.ones((1, 1), np.uint8), 16).shape == (16, 16)


# downloads

class Server:
    "A file server on the loopback whose line can be cut and whose ranges can be switched off."
    def __init__(self):
        self.visits, self.cut, self.ranges, self.status = [], {}, True, None
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *args): pass

            def do_GET(self):
                asked = self.headers.get("Range")
                outer.visits.append(asked)
                if outer.status: return self.send_error(outer.status)
                start = int(re.search(r"=(\d+)-", asked)[1]) if asked and outer.ranges else 0
                if asked and outer.ranges and start >= len(CONTENT):  # as the standard has it: nothing begins there
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
                    self.send_header("Content-Length", "0")
                    return self.end_headers()
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(CONTENT) - start))
                self.end_headers()
                self.wfile.write(CONTENT[start:start + outer.cut.get(len(outer.visits), len(CONTENT))])

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/set.zip"


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"): monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    s = Server()
    yield s
    s.server.shutdown(); s.server.server_close()


def get(server, folder, known=MD5, **options): return fetch(server.url, known, folder / "set.zip", progress=False, **{"wait": 0, **options})


def test_download_once(server, tmp_path):
    path = get(server, tmp_path)
    assert path.read_bytes() == CONTENT and server.visits == [None]
    assert get(server, tmp_path) == path and len(server.visits) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["set.zip"]


def test_wrong_hash_removes_the_file(server, tmp_path):
    with pytest.raises(ValueError, match="hash is not md5:0000"): get(server, tmp_path, "md5:" + "0" * 32)
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_fetched_again(server, tmp_path):
    (tmp_path / "set.zip").write_bytes(b"old")
    assert get(server, tmp_path).read_bytes() == CONTENT


def test_broken_line_is_resumed_by_itself(server, tmp_path):
    server.cut = {1: 100_000, 2: 50_000}
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.visits == [None, "bytes=100000-", "bytes=150000-"]


def test_broken_line_is_resumed_by_the_next_call(server, tmp_path):
    server.cut = {1: 100_000}
    with pytest.raises(ConnectionError, match="100000 of 300000 bytes.*call again"): get(server, tmp_path, tries=1)
    assert (tmp_path / "set.zip.part").stat().st_size == 100_000 and not (tmp_path / "set.zip").exists()
    assert get(server, tmp_path).read_bytes() == CONTENT and server.visits == [None, "bytes=100000-"]
    assert not (tmp_path / "set.zip.part").exists()


def test_server_without_ranges_starts_again(server, tmp_path):
    server.cut, server.ranges = {1: 100_000}, False
    assert get(server, tmp_path).read_bytes() == CONTENT and server.visits == [None, "bytes=100000-"]


def test_a_part_that_is_too_long_is_thrown_away(server, tmp_path):
    (tmp_path / "set.zip.part").write_bytes(CONTENT + b"more")
    assert get(server, tmp_path).read_bytes() == CONTENT


def test_a_foreign_part_is_caught_by_the_hash(server, tmp_path):
    (tmp_path / "set.zip.part").write_bytes(b"x" * 1000)
    with pytest.raises(ValueError, match="hash"): get(server, tmp_path)
    assert get(server, tmp_path).read_bytes() == CONTENT


def test_missing_at_the_source(server, tmp_path):
    server.status = 404
    with pytest.raises(ConnectionError, match="404"): get(server, tmp_path)
    assert len(server.visits) == 1
    server.status = 503
    with pytest.raises(ConnectionError, match="503"): get(server, tmp_path, tries=3)
    assert len(server.visits) == 4


def test_no_server(tmp_path):
    with pytest.raises(ConnectionError, match="failed"): fetch("http://127.0.0.1:9/x", MD5, tmp_path / "x", progress=False, tries=2, wait=0)


def test_full_disk_is_named(server, tmp_path, monkeypatch):
    def full(*args): raise OSError(28, "No space left on device")
    monkeypatch.setattr(files, "_transfer", full)
    with pytest.raises(OSError, match="set.zip.part.*Free some space"): get(server, tmp_path)


def test_progress_bar_counts_what_was_there(server, tmp_path, capfd, monkeypatch):
    monkeypatch.delenv("CMUNEXT_QUIET", raising=False)
    assert quiet(True)  # stderr is no terminal here: a bar would leave control characters in a log file
    monkeypatch.setattr(files, "_bars_move", lambda: True)
    (tmp_path / "set.zip.part").write_bytes(CONTENT[:100_000])
    fetch(server.url, MD5, tmp_path / "set.zip")
    assert "100%" in capfd.readouterr().err
    for value, wanted in (("1", True), ("yes", True), ("0", False), ("", False)):
        monkeypatch.setenv("CMUNEXT_QUIET", value)
        assert quiet(True) == wanted and quiet(False)


@pytest.mark.parametrize("terminal", [True, False])
def test_bars_are_for_terminals(monkeypatch, terminal):
    monkeypatch.delenv("CMUNEXT_QUIET", raising=False)
    monkeypatch.setattr("sys.stderr", SimpleNamespace(isatty=lambda: terminal))
    assert quiet(True) != terminal
    monkeypatch.setattr("sys.stderr", None)  # a program without a console
    assert quiet(True)


def test_a_part_that_is_whole_is_not_fetched_again(server, tmp_path):
    (tmp_path / "set.zip.part").write_bytes(CONTENT)  # the last call was killed between the last byte and the renaming
    assert get(server, tmp_path).read_bytes() == CONTENT and server.visits == [f"bytes={len(CONTENT)}-"]


def test_nothing_came_so_nothing_is_kept(server, tmp_path):
    server.status = 404
    with pytest.raises(ConnectionError, match="404.*Check the address") as error: get(server, tmp_path)
    assert ".part" not in str(error.value)


# archives

def zipped(path, **members):
    with zipfile.ZipFile(path, "w") as z:
        for name, text in members.items(): z.writestr(name, text)
    return path


def test_unzip(tmp_path):
    assert (unzip(zipped(tmp_path / "a.zip", **{"set/a..b.txt": "hi"}), tmp_path / "out") / "set" / "a..b.txt").read_text() == "hi"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip", "out"]


def test_others_may_read_what_was_unpacked(tmp_path):
    (tmp_path / "usual").mkdir()
    unpacked = unzip(zipped(tmp_path / "a.zip", a="hi"), tmp_path / "out")
    assert unpacked.stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("field, value, word", [(6, 1, "encrypted"), (8, 99, "compression")])
def test_archives_that_python_does_not_unpack(tmp_path, field, value, word):
    "A password, and a way of packing that zipfile does not know, written into both headers of a member."
    whole = bytearray(zipped(tmp_path / "a.zip", a="hi").read_bytes())
    whole[field] = whole[whole.index(b"PK\x01\x02") + field + 2] = value
    (tmp_path / "odd.zip").write_bytes(whole)
    with pytest.raises(ValueError, match=f"odd.zip cannot be unpacked.*{word}.*by hand"): unzip(tmp_path / "odd.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../evil.txt", "a/../../evil.txt", "/evil.txt", "..\\evil.txt", "C:\\evil.txt", "\\evil.txt"])
def test_members_that_would_land_outside(tmp_path, name):
    with pytest.raises(ValueError, match="would land outside"): unzip(zipped(tmp_path / "a.zip", **{"fine.txt": "hi", name: "boo"}), tmp_path / "sub" / "out")
    assert not list(tmp_path.rglob("*.txt")) and not list((tmp_path / "sub").iterdir())


def test_damaged_archive(tmp_path):
    whole = zipped(tmp_path / "a.zip", a="x" * 9999).read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[:5000])
    with pytest.raises(ValueError, match="cut.zip is not a whole zip"): unzip(tmp_path / "cut.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unzip_of_turned_bytes(tmp_path):
    "Wherever in the compressed data the damage lies it is a ValueError, and nothing is left."
    import zipfile
    with zipfile.ZipFile(tmp_path / "whole.zip", "w", zipfile.ZIP_DEFLATED) as z: z.writestr("a.txt", " ".join(map(str, range(3000))))
    whole = (tmp_path / "whole.zip").read_bytes()
    for at in range(40, 2000, 60):
        (tmp_path / "turned.zip").write_bytes(whole[:at] + bytes(b ^ 255 for b in whole[at:at + 8]) + whole[at + 8:])
        with pytest.raises(ValueError, match="turned.zip"): unzip(tmp_path / "turned.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unzip_into_a_folder_in_use(tmp_path):
    (tmp_path / "out").mkdir()
    archive = zipped(tmp_path / "a.zip", **{"a.txt": "hi"})
    assert (unzip(archive, tmp_path / "out") / "a.txt").exists()
    with pytest.raises(FileExistsError, match="not empty"): unzip(archive, tmp_path / "out")


COLOURS = [("red", "black", True), ("darkred", "black", True), ("white", "black", True), ("red", "white", False), ("white", "red", False), ("red", "blue", False), ("yellow", "blue", False)]


@pytest.mark.parametrize("quality", [75, 95])
@pytest.mark.parametrize("kind, lesion_in, around, told", [(kind, *colours) for kind in ("PNG", "JPEG") for colours in COLOURS] + [("PNG", "yellow", "purple", True)])
def test_masks_in_two_colours(tmp_path, kind, lesion_in, around, told, quality):
    "Of two colours that are equally bright nobody knows which is the lesion; as JPEG they are refused for that too, not for what JPEG mixes along the edge."
    disc = Image.fromarray(255 * lesion(64, 64)).convert("L")
    path = tmp_path / f"mask.{kind.lower()}"
    Image.composite(Image.new("RGB", disc.size, lesion_in), Image.new("RGB", disc.size, around), disc).save(path, kind, quality=quality)
    if told: assert (read_mask(path) == lesion(64, 64)).mean() > 0.97
    else:
        with pytest.raises(ValueError, match=f"mask.{kind.lower()} has two colours that are equally bright"): read_mask(path)


def test_edges_that_jpeg_has_mixed_are_named_with_the_remedy(tmp_path):
    colours = np.where(lesion(64, 64)[..., None], 255, [128, 0, 128]).astype(np.uint8)
    assert (read_mask(save(tmp_path / "m.png", colours)) == lesion(64, 64)).all()
    with pytest.raises(ValueError, match=r"m\.jpg is not binary.*JPEG has mixed them along the edges: save it as PNG, or in grey"): read_mask(save(tmp_path / "m.jpg", colours))
    assert (read_mask(save(tmp_path / "grey.jpg", Image.fromarray(colours).convert("L"))) == lesion(64, 64)).mean() > 0.97
    with pytest.raises(ValueError, match="not binary") as error: read_mask(save(tmp_path / "scan.png", scan()))
    assert "has mixed them" not in str(error.value)


def test_cache_dir(monkeypatch, tmp_path):
    monkeypatch.setenv("CMUNEXT_CACHE", str(tmp_path)); assert cache_dir() == tmp_path
    monkeypatch.delenv("CMUNEXT_CACHE"); assert "cmunext_nb" in str(cache_dir())


@pytest.mark.parametrize("bright", [255, 200, 128])
@pytest.mark.parametrize("quality", [30, 75, 95])
def test_jpeg_masks_of_any_brightness(tmp_path, bright, quality):
    "JPEG rings around an edge, beyond both levels; the mask is still the two levels."
    y, x = np.mgrid[:200, :260]
    lesion = ((x - 120)**2 / 60**2 + (y - 90)**2 / 40**2 < 1).astype(np.uint8)
    Image.fromarray(lesion * np.uint8(bright)).save(tmp_path / "mask.jpg", quality=quality)
    assert (read_mask(tmp_path / "mask.jpg") != lesion).mean() < 1e-3


@pytest.mark.parametrize("levels", [(0, 128, 255), (0, 200, 255), (0, 60, 255)])
def test_jpeg_masks_of_three_levels_are_refused(tmp_path, levels):
    "Also where the third level covers more than the second."
    mask = np.full((200, 260), levels[0], np.uint8)
    mask[40:120, 50:200], mask[150:170] = levels[1], levels[2]
    Image.fromarray(mask).save(tmp_path / "mask.jpg", quality=75)
    with pytest.raises(ValueError, match="mask.jpg.*not binary"): read_mask(tmp_path / "mask.jpg")


# turned pictures

def turned_file(path, pixels, orientation=6, **options):
    "A file whose EXIF tag turns it."
    exif = Image.Exif()
    exif[274] = orientation
    return save(path, pixels, exif=exif, **options)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind, options", [("png", {}), ("jpg", {}), ("tif", dict(compression="tiff_lzw")), ("webp", dict(lossless=True))])
def test_an_opened_picture_is_turned_as_its_file_is(tmp_path, kind, options, orientation):
    path = turned_file(tmp_path / f"e.{kind}", lesion() * 255, orientation, **options)
    assert read_image(path).shape == ((1, 40, 50) if orientation < 5 else (1, 50, 40))
    assert (read_image(Image.open(path)) == read_image(path)).all() and (read_mask(Image.open(path)) == read_mask(path)).all()
    with Image.open(path) as source:
        before = source.load() and source.size
        read_image(source)
        assert source.size == before  # whose picture it is finds it as it was


@pytest.mark.parametrize("kind, options", [("gif", {}), ("pgm", {}), ("tga", {}), ("jp2", {}), ("jp2", dict(quality_mode="rates", quality_layers=[20], irreversible=True))])
def test_masks_of_other_types(tmp_path, kind, options):
    path = save(tmp_path / f"m.{kind}", Image.fromarray(lesion(200, 240) * 255), **options)
    assert (read_mask(path) == lesion(200, 240)).mean() > 0.995
