"""What a built site must hold, whatever built it: every link and anchor leads somewhere, every picture says what it shows, no page is too heavy.

python .ci/links.py FOLDER
"""
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

MAX_PAGE = 1_500_000  # bytes of one page, its pictures included where they are written into it


class Page(HTMLParser):
    "Ids, links, addresses and pictures of one page."
    def __init__(self, path):
        super().__init__(convert_charrefs=True)
        self.ids, self.links, self.files, self.silent, self.pictures = set(), [], [], [], 0
        self.size = path.stat().st_size
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.ids.update(filter(None, (a.get("id"), a.get("name") if tag == "a" else None)))
        if tag == "a" and a.get("href"): self.links.append(a["href"])
        if tag == "img":
            self.pictures += 1
            if not (a.get("alt") or "").strip(): self.silent.append((a.get("src") or "?")[:60])
        for key in ("src", "href") if tag in ("img", "script", "link", "source", "iframe", "video") else ():
            if a.get(key): self.files.append(a[key])

    handle_startendtag = handle_starttag


def inside(here, address):
    "File and anchor that an address means, seen from page `here` (a path below the site's top); None for what lies outside of the site."
    split = urlsplit(address)
    if split.scheme or split.netloc: return None
    path = unquote(urlsplit(urljoin(f"https://site/{here}", address)).path).lstrip("/")
    return (path + "index.html" if not path or path.endswith("/") else path), unquote(split.fragment)


def check(folder):
    "Problems of a built site as sentences, and what was counted."
    folder = Path(folder)
    pages = {p.relative_to(folder).as_posix(): Page(p) for p in sorted(folder.rglob("*.html")) if "site_libs" not in p.parts}
    bad, count = [], dict(pages=len(pages), links=0, anchors=0, files=0, pictures=0, outside=0)
    for name, page in pages.items():
        count["pictures"] += page.pictures
        bad += [f"{name}: a picture without a description: {src}" for src in page.silent]
        if page.size > MAX_PAGE: bad.append(f"{name}: {page.size:,} bytes, at most {MAX_PAGE:,}")
        for address in (*page.links, *page.files):
            found = inside(name, address)
            if found is None:
                count["outside"] += not address.startswith(("data:", "javascript:"))
                continue
            path, anchor = found
            count["links" if address in page.links else "files"] += 1
            if not (folder / path).is_file(): bad.append(f"{name}: {address} leads to {path}, which is not there")
            elif anchor and path in pages:
                count["anchors"] += 1
                if anchor not in pages[path].ids: bad.append(f"{name}: {address} leads to an anchor that {path} does not have")
    heavy = sorted(((p.size, n) for n, p in pages.items()), reverse=True)[:3]
    return bad, count, heavy


def main(folder):
    bad, count, heavy = check(folder)
    print("\n".join(bad[:40] + [f"... and {len(bad) - 40} more"] * (len(bad) > 40)))
    print(", ".join(f"{v:,} {k}" for k, v in count.items()), "checked; the heaviest:", ", ".join(f"{n} {s / 1e6:.2f} MB" for s, n in heavy))
    return bad


if __name__ == "__main__": sys.exit(bool(main(sys.argv[1])))
