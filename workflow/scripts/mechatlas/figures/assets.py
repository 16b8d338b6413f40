"""Style and script of the pages, kept as text so that every page carries them."""

from __future__ import annotations

PAGE_STYLE = """
:root { --ink: #1b1f24; --soft: #57606a; --line: #d9dde2; --paper: #ffffff; --panel: #f5f7f9; --link: #0b5cad;
  --query: #9bd0f5; --key: 230, 159, 0; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ec; --soft: #a4adb6; --line: #3a424b; --paper: #15191e; --panel: #1f252c; --link: #7db8f5;
    --query: #1f5f91; --key: 200, 130, 0; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; padding: 1.2rem 1.2rem 4rem; max-width: 84rem; color: var(--ink); background: var(--paper);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: .6rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .5rem; padding-top: .6rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.02rem; margin: 1.4rem 0 .3rem; }
p, ul, ol { max-width: 48rem; }
a { color: var(--link); }
code { font-size: .9em; overflow-wrap: anywhere; }
pre { overflow-x: auto; padding: .7rem; background: var(--panel); border-radius: 6px; font-size: .85rem; }
.mx-scroll { overflow-x: auto; max-width: 100%; }
.mx-table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; margin: .4rem 0; }
.mx-table th, .mx-table td { text-align: left; vertical-align: top; padding: .3rem .6rem; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
.mx-table thead th { background: var(--panel); white-space: normal; vertical-align: bottom; }
.mx-table td.mx-prose { white-space: normal; min-width: 18rem; max-width: 40rem; overflow-wrap: anywhere; }
.mx-table tbody tr:hover { background: var(--panel); }
.mx-sort th { cursor: pointer; }
.mx-sort th[aria-sort="ascending"]::after { content: " \\25B2"; font-size: .7em; }
.mx-sort th[aria-sort="descending"]::after { content: " \\25BC"; font-size: .7em; }
.mx-figure { margin: 1rem 0; }
.mx-figure img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 6px; padding: 4px; }
.mx-figure figcaption { color: var(--soft); font-size: .86rem; max-width: 48rem; margin-top: .3rem; }
.mx-row { display: flex; flex-wrap: wrap; align-items: flex-start; gap: 0 1.6rem; }
.mx-row > .mx-figure { flex: 0 1 auto; max-width: 40rem; }
.mx-cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(11.5rem, 1fr)); gap: .7rem; margin: 1rem 0; }
.mx-card { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: .7rem .9rem; }
.mx-card b { display: block; font-size: 1.45rem; line-height: 1.25; }
.mx-card span { display: block; font-size: .9rem; }
.mx-card small { display: block; color: var(--soft); font-size: .78rem; line-height: 1.35; margin-top: .2rem; }
.mx-example { margin: .45rem 0; padding: .45rem .7rem; background: var(--panel); border-radius: 6px;
  font: .86rem/1.75 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.mx-query { background: var(--query); border-radius: 3px; box-shadow: 0 0 0 1px var(--ink); }
.mx-key { background: rgba(var(--key), var(--a)); border-radius: 3px; border-bottom: 2px solid rgb(var(--key)); }
.mx-where { color: var(--soft); font: .76rem/1.3 system-ui, sans-serif; display: block; }
.mx-gap { color: var(--soft); }
.mx-note { color: var(--soft); font-size: .9rem; }
"""

PAGE_SCRIPT = r"""
for (const table of document.querySelectorAll("table.mx-sort")) {
  const heads = [...table.tHead.rows[0].cells];
  const key = (row, at) => {
    const text = row.cells[at].textContent.trim();
    const unit = text.match(/^L(\d+)\.(?:H|\w+\.F)(\d+)/);
    if (unit) return 1e8 * Number(unit[1]) + Number(unit[2]);
    const value = parseFloat(text.replace("−", "-"));
    return Number.isNaN(value) ? text : value;
  };
  heads.forEach((head, at) => head.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const order = (a, b) => {
      const [x, y] = [key(a, at), key(b, at)];
      if (typeof x !== typeof y) return typeof x === "number" ? -1 : 1;
      const sign = typeof x === "number" ? x - y : x.localeCompare(y);
      return down ? -sign : sign;
    };
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
  }));
}
"""
