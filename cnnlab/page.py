"""One HTML file: its parts, its style, and that nothing in it is anybody else's code.

The file needs no network and no script, follows the reader's choice of dark or light, and prints.
"""

import html
import io
import re
from base64 import b64encode
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

# What may stand in a page but means nothing in it; HTML forbids most of it, and a lone surrogate can't be written.
_NO_TEXT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
_VOID = {"br", "img", "meta"}


class Html(str):
    """Text that is HTML already. All other text is escaped where it enters a page."""


def text(content: object) -> Html:
    """Return text as HTML that shows it, whatever it holds."""
    if isinstance(content, Html):
        return content
    return Html(html.escape(_NO_TEXT.sub("�", str(content)), quote=True))


def tag(element: str, /, *children: object, **attributes: object) -> Html:
    """Return an element; children that are no `Html` are shown as the text that they are.

    Args:
        element: Its name.
        children: What stands in it; None is left out.
        attributes: Its attributes, None left out; `class_` is `class`, other underscores are hyphens.
    """
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    start = element + "".join(f' {key}="{text(value)}"' for key, value in given.items())
    if element in _VOID:
        return Html(f"<{start}>")
    return Html(f"<{start}>{''.join(text(child) for child in children if child is not None)}</{element}>")


def joined(parts: Iterable[Html]) -> Html:
    """Return parts one behind the other."""
    return Html("".join(parts))


def section(title: str, *parts: Html | None) -> Html:
    """Return a section under its heading, or nothing where it has no part."""
    there = [part for part in parts if part]
    if not there:
        return Html()
    name = re.sub(r"\W+", "-", title.lower())
    return tag("section", tag("h2", title), *there, id=name)


def facts(rows: Iterable[tuple[str, object]]) -> Html:
    """Return names and what they are, a line each; a value of None is left out."""
    there = [(name, value) for name, value in rows if value is not None]
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in there)) if there else Html()


def table(header: Sequence[str], rows: Iterable[Sequence[object]], words: int = 1, caption: str | None = None) -> Html:
    """Return a table that scrolls by itself where it is wider than the screen.

    Args:
        header: The columns' names.
        rows: The cells.
        words: So many of the first columns hold words, the rest numbers.
        caption: What it says.
    """

    def line(cells: Sequence[object], kind: str) -> Html:
        return tag(
            "tr",
            *(
                tag("th" if kind == "th" or number == 0 else "td", cell, class_=None if number < words else "number",
                    scope="col" if kind == "th" else "row" if number == 0 else None)
                for number, cell in enumerate(cells)
            ),
        )  # fmt: skip

    # Reachable by the keyboard, so that it can be scrolled without a mouse.
    return tag(
        "div",
        tag(
            "table",
            tag("caption", caption) if caption else None,
            tag("thead", line(header, "th")),
            tag("tbody", *(line(cells, "td") for cells in rows)),
        ),
        class_="wide",
        tabindex="0",
    )


def picture(image: UInt8[np.ndarray, "height width channel"], alternative: str) -> Html:
    """Return an image inside the page, its pixels kept apart when it is shown larger than it is."""
    pixels = image[:, :, 0] if image.shape[2] == 1 else image
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG", optimize=True)
    return png(content.getvalue(), alternative, class_="pixels", width=image.shape[1], height=image.shape[0])


def png(content: bytes, alternative: str, **attributes: object) -> Html:
    """Return a PNG file's content as an image inside the page."""
    return tag("img", src=f"data:image/png;base64,{b64encode(content).decode()}", alt=alternative, **attributes)


def gallery(items: Iterable[tuple[Html, object]], small: bool = False) -> Html:
    """Return images with a caption under each, as many in a row as there is room for."""
    shown = (tag("figure", image, tag("figcaption", caption)) for image, caption in items)
    return tag("div", *shown, class_="gallery small" if small else "gallery")


def code(content: str) -> Html:
    """Return text as it would be typed."""
    return tag("pre", tag("code", content))


def document(title: str, kind: str, badge: tuple[str, str] | None, *sections: Html) -> str:
    """Return the whole page.

    Args:
        title: What it is about.
        kind: What stands above the title.
        badge: A word beside the title, and whether it is `good`, `bad` or `plain`.
        sections: Its parts; empty ones are left out.
    """
    there = [part for part in sections if part]
    names = [re.search(r'id="([^"]*)"><h2>(.*?)</h2>', part) for part in there]
    links = [tag("a", Html(found[2]), href=f"#{found[1]}") for found in names if found]
    mark = tag("span", badge[0], class_=f"badge {badge[1]}") if badge else None
    # No script, no font, no picture from anywhere: the browser is told so, in case anything ever slips in.
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("title", f"{title} · {kind}"),
        tag("style", Html(STYLE)),
    )
    body = tag(
        "body",
        tag("header", tag("p", kind, class_="kind"), tag("h1", title, " ", mark), tag("nav", *links)),
        tag("main", *there),
    )
    return f'<!DOCTYPE html>\n<html lang="en">{head}{body}</html>\n'


STYLE = """
:root {
  color-scheme: light dark;
  --ground: #ffffff; --panel: #f5f6f7; --ink: #24282c; --soft: #5c646c; --line: #d9dde1;
  --blue: #0072b2; --vermilion: #c04f00; --good: #00694b; --bad: #a83200; --shade: 0 114 178;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #14171a; --panel: #1e2327; --ink: #e4e7ea; --soft: #a3acb4; --line: #3a4249;
    --blue: #56b4e9; --vermilion: #f08b45; --good: #4cc9a0; --bad: #ff9866; --shade: 86 180 233;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 1.25rem 1rem 4rem; max-width: 72rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif;
  overflow-wrap: anywhere;
}
.kind { margin: 0; color: var(--soft); font-size: .875rem; }
h1 { margin: 0 0 .5rem; font-size: 1.5rem; line-height: 1.25; }
h2 { margin: 2.5rem 0 .75rem; padding-bottom: .25rem; border-bottom: 1px solid var(--line); font-size: 1.15rem; }
h3 { margin: 1.5rem 0 .5rem; font-size: 1rem; }
p { max-width: 44rem; }
a { color: var(--blue); }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1rem; font-size: .9rem; }
.badge {
  display: inline-block; padding: .05rem .6rem; border: 1px solid; border-radius: 1rem; color: var(--soft);
  font-size: .8rem; font-weight: 600; vertical-align: middle;
}
.good { color: var(--good); } .bad { color: var(--bad); }
.soft { color: var(--soft); }
.numbers { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .75rem; margin: 1rem 0; }
.numbers div { padding: .7rem .9rem; border-radius: .5rem; background: var(--panel); }
.numbers strong { display: block; font-size: 1.4rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.numbers span { color: var(--soft); font-size: .85rem; }
dl { margin: .5rem 0; }
dl div { display: grid; grid-template-columns: minmax(7rem, 12rem) 1fr; gap: .1rem 1rem; padding: .2rem 0; }
dt { color: var(--soft); } dd { margin: 0; }
.wide { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { padding-bottom: .4rem; color: var(--soft); text-align: left; }
th, td { padding: .25rem .6rem; text-align: left; overflow-wrap: normal; }
thead th { border-bottom: 1px solid var(--line); color: var(--soft); font-weight: 600; white-space: nowrap; }
tbody th { font-weight: 600; white-space: nowrap; }
tbody tr + tr > * { border-top: 1px solid var(--line); }
.number { text-align: right; white-space: nowrap; }
.matrix td { min-width: 2.4rem; padding: .3rem .35rem; border: 1px solid var(--ground); text-align: center;
  background: rgb(var(--shade) / calc(var(--share) * 70%)); }
.matrix td.none { color: var(--soft); background: none; }
.matrix thead th { padding: .3rem .2rem; vertical-align: bottom; text-align: center; }
.matrix thead span { writing-mode: vertical-rl; transform: rotate(180deg); }
.matrix tbody tr + tr > * { border-top-color: var(--ground); }
.bar { display: inline-block; width: 5rem; height: .6rem; margin-right: .6rem; background: var(--line); }
.bar i { display: block; height: 100%; background: var(--blue); }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); gap: 1.25rem 2rem; }
figure { margin: 0; }
.chart svg { display: block; width: 100%; height: auto; font-size: 12px; }
.chart figcaption { margin-bottom: .25rem; font-size: .9rem; font-weight: 600; }
.chart svg text { fill: var(--soft); }
.grid { stroke: var(--line); stroke-width: 1; }
.a, .b, .pale { fill: none; stroke-width: 2; stroke-linejoin: round; }
.a { stroke: var(--blue); } .b { stroke: var(--vermilion); stroke-dasharray: 6 3; }
.pale { stroke: var(--soft); stroke-width: 1; opacity: .55; }
.dots-a { fill: var(--blue); } .dots-b { fill: var(--vermilion); }
.key { margin-left: 1rem; font-weight: 400; white-space: nowrap; }
.key svg { display: inline; width: 1.6rem; height: .6rem; margin-right: .3rem; vertical-align: middle; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(6rem, 1fr)); gap: .9rem .75rem; }
.gallery.small { grid-template-columns: repeat(auto-fill, minmax(4.5rem, 1fr)); }
.gallery figcaption { font-size: .82rem; line-height: 1.3; }
img { max-width: 100%; height: auto; }
.pixels { display: block; width: 100%; image-rendering: pixelated; border-radius: 2px; }
figure > .paper + figcaption { margin-top: .3rem; color: var(--soft); font-size: .85rem; }
.paper { display: block; background: #fff; border-radius: .4rem; }
pre {
  margin: .5rem 0; padding: .75rem .9rem; border-radius: .5rem; background: var(--panel); white-space: pre-wrap;
  font: .85rem/1.45 ui-monospace, "SFMono-Regular", Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
summary { cursor: pointer; color: var(--blue); }
:focus-visible { outline: 2px solid var(--blue); outline-offset: 2px; }
@media (max-width: 30rem) {
  dl div { grid-template-columns: 1fr; }
  body { padding-inline: .85rem; }
  table { font-size: .82rem; }
  th, td { padding: .25rem .35rem; }
  .bar { display: none; }
  .matrix { font-size: .68rem; }
  .matrix th { padding: .2rem .15rem; }
  .matrix td { min-width: 1.5rem; padding: .25rem .05rem; }
}
@media print {
  :root {
    --ground: #fff; --panel: #f5f6f7; --ink: #000; --soft: #444; --line: #bbb; --blue: #0072b2; --vermilion: #c04f00;
    --good: #00694b; --bad: #a83200; --shade: 0 114 178;
  }
  body { max-width: none; padding: 0; font-size: 9.5pt; -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  nav, details { display: none; }
  h2 { break-after: avoid; margin-top: 1.25rem; }
  figure, tr, .numbers, dl div, pre { break-inside: avoid; }
  .wide { overflow: visible; }
  .charts { grid-template-columns: 1fr 1fr; }
}
"""
