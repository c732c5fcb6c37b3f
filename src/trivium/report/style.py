"""The page's style sheet: light, dark, phone and paper. No fonts or images are fetched."""

STYLE = """
:root {
  --ground: #fcfbf8; --panel: #f5f3ee; --ink: #1c1c1e; --muted: #66666c; --rule: #dfdcd4;
  --first: #2b5c8a; --second: #b4531f;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  --serif: Charter, "Bitstream Charter", "Iowan Old Style", "Palatino Linotype", Georgia, serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  color-scheme: light dark;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --ground: #141517; --panel: #1c1e21; --ink: #e9e7e2; --muted: #a0a0a6; --rule: #33363b;
    --first: #85b4e3; --second: #eb9f6d;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 3.2rem 1.4rem 4rem; max-width: 61rem;
  background: var(--ground); color: var(--ink); font: 1rem/1.55 var(--sans);
}
h1 { margin: 0; font: 600 2.1rem/1.15 var(--serif); overflow-wrap: anywhere; }
h2 {
  margin: 3rem 0 0.9rem; padding-top: 0.9rem; border-top: 1px solid var(--rule); font: 600 1.3rem/1.3 var(--serif);
}
h3 { margin: 0 0 0.4rem; font: 600 0.95rem/1.4 var(--sans); }
p { margin: 0 0 0.8rem; max-width: 44rem; }
.kicker { margin: 0 0 0.5rem; color: var(--muted); font-size: 0.9rem; overflow-wrap: anywhere; }
.verdict { margin: 0.9rem 0 0; font: 1.2rem/1.5 var(--serif); }
.muted, figcaption, .missing { color: var(--muted); font-size: 0.9rem; }
.missing { font-style: italic; }
.key-figures {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(8.4rem, 1fr)); gap: 1rem 1.2rem;
  margin: 1.8rem 0 0;
}
.key-figures dt { color: var(--muted); font-size: 0.82rem; }
.key-figures dd {
  margin: 0; font: 600 1.3rem/1.3 var(--sans); white-space: nowrap; font-variant-numeric: tabular-nums;
}
.columns {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); gap: 1.6rem 2.4rem;
}
figure + .columns { margin-top: 1.6rem; }
.pile > * + * { margin-top: 1.6rem; }
.columns > * { min-width: 0; }
figure { margin: 0; break-inside: avoid; }
figcaption { margin-top: 0.3rem; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font-family: var(--sans) !important; font-variant-numeric: tabular-nums; }
.on-phone { display: none; }
table { border-collapse: collapse; width: 100%; font-size: 0.92rem; }
th, td { padding: 0.28rem 0; border-bottom: 1px solid var(--rule); text-align: left; vertical-align: top; }
th { padding-right: 1.2rem; font-weight: 400; color: var(--muted); }
td { text-align: right; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
pre {
  margin: 0 0 0.8rem; padding: 0.8rem 1rem; background: var(--panel); border-radius: 6px;
  font: 0.84rem/1.55 var(--mono); white-space: pre-wrap; overflow-wrap: anywhere;
}
.sample { margin: 0 0 1.4rem; break-inside: avoid; }
.sample pre { margin: 0; font-size: 0.86rem; }
.sample .prompt { color: var(--first); font-weight: 600; }
details { margin: 0 0 0.8rem; }
summary { cursor: pointer; color: var(--muted); font-size: 0.92rem; }
details pre { margin-top: 0.7rem; }
ul { margin: 0 0 0.8rem; padding-left: 1.2rem; }
footer { margin-top: 3rem; padding-top: 0.9rem; border-top: 1px solid var(--rule); }
@media (max-width: 40rem) {
  body { padding: 1.6rem 1rem 3rem; }
  h1 { font-size: 1.6rem; }
  .verdict { font-size: 1.08rem; }
  .key-figures { grid-template-columns: 1fr 1fr; gap: 0.8rem 1.2rem; }
  .on-desk { display: none; }
  .on-phone { display: block; }
}
@media print {
  html { font-size: 9.5pt; }
  body { padding: 0; max-width: none; background: none; }
  h2 { margin-top: 1.6rem; }
  .columns { grid-template-columns: 1fr 1fr; gap: 1rem 1.6rem; }
  details::details-content { content-visibility: visible; height: auto; }
  h2, h3 { break-after: avoid; }
  pre { border: 1px solid var(--rule); }
  details pre { font-size: 0.68rem; }
}
"""
