"""The look of the verdict's page. Outcomes differ in word and shade as well as in hue; dark follows the reader's theme."""

STYLE = """
:root {
  --ink: #1c2430; --soft: #667080; --line: #dfe3e8; --paper: #ffffff; --panel: #f5f6f8; --beyond: #fbeeec;
  --pass: #0b7a6b; --block: #b3261e; --inconclusive: #a86a00; --before: #8b94a1; --after: #2456c8;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e6e9ee; --soft: #9aa4b2; --line: #323a45; --paper: #14181e; --panel: #1c222a; --beyond: #2c1c1c;
    --pass: #3cc4b0; --block: #ff8a80; --inconclusive: #f0b352; --before: #8b94a1; --after: #86aaff;
  }
}
* { box-sizing: border-box }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif;
}
main { max-width: 1008px; margin: 0 auto; padding: 32px 24px 56px }
h1 { font-size: 15px; font-weight: 500; color: var(--soft); margin: 0 }
h2, summary { font-size: 17px; font-weight: 600; margin: 40px 0 4px }
p { margin: 4px 0 12px; max-width: 76ch }
p.note { color: var(--soft); font-size: 13px; max-width: 110ch }
p.said { font-size: 17px; max-width: 72ch }
.word { font-size: 34px; font-weight: 700; line-height: 1.2; margin: 6px 0 }
.word.pass { color: var(--pass) }
.word.block { color: var(--block) }
.word.inconclusive { color: var(--inconclusive) }
dl { display: grid; grid-template-columns: repeat(5, 1fr); margin: 24px 0 0; padding: 8px 0; border-radius: 8px;
  background: var(--panel) }
dl div { padding: 7px 16px }
dt { color: var(--soft); font-size: 12px }
dd { margin: 0; font-variant-numeric: tabular-nums }
code { font-size: 13px }
@media (max-width: 700px) { dl { grid-template-columns: repeat(2, 1fr) } }
.scroll { overflow-x: auto }
.key { white-space: nowrap }
.key i { display: inline-block; width: 10px; height: 10px; border-radius: 50%; margin: 0 6px 0 14px }
svg { display: block; width: 100%; min-width: 760px; height: auto; margin-top: 8px }
svg text { fill: var(--ink); font-size: 13px }
svg .small { fill: var(--soft); font-size: 11.5px }
svg .name { font-weight: 600 }
svg .light { font-weight: 400 }
svg .strong { font-weight: 600; fill: var(--ink) }
svg .number { font-variant-numeric: tabular-nums }
svg .bar { fill: var(--after) }
svg .axis { stroke: var(--soft) }
svg .grid, svg .rule { stroke: var(--line) }
svg .beyond { fill: var(--beyond) }
svg .limit { stroke: var(--block); stroke-width: 1.5; stroke-dasharray: 5 4 }
svg .outcome { font-weight: 700 }
svg .pass { fill: var(--pass); stroke: var(--pass) }
svg .block { fill: var(--block); stroke: var(--block) }
svg .inconclusive { fill: var(--inconclusive); stroke: var(--inconclusive) }
svg .before { fill: var(--before); stroke: var(--before) }
svg .after { fill: var(--after); stroke: var(--after) }
svg .outcome { stroke: none }
svg .whisker { stroke-width: 2; fill: none }
svg .dot { stroke: var(--paper); stroke-width: 1.5 }
svg .hollow { fill: var(--paper); stroke-width: 2 }
svg .hollow.pass { stroke: var(--pass) }
svg .hollow.block { stroke: var(--block) }
svg .hollow.inconclusive { stroke: var(--inconclusive) }
table { border-collapse: collapse; width: 100%; font-size: 13px; margin-top: 12px; font-variant-numeric: tabular-nums }
th, td { padding: 5px 10px 5px 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap }
th:first-child, td:first-child { text-align: left }
th { color: var(--soft); font-weight: 500 }
td.first { font-weight: 600 }
th.text, td.text { text-align: left }
ul { padding-left: 20px }
summary { cursor: pointer }
ol { padding-left: 20px }
li { margin: 3px 0 }
"""
