"""The style sheet and the script of a run's page: text here, because the page is one file that loads nothing."""

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src 'self' data:"
"""What a browser may do for the page: nothing over the network."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #f6f7f9; --card: #ffffff; --ink: #1a212c; --quiet: #647084; --line: #e4e8ee; --grid: #edf0f4;
  --main: #2563c9; --eval: #d9541c; --rate: #76839a; --third: #12876f; --soft: #eef3fc;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #10141b; --card: #181e27; --ink: #e6eaf1; --quiet: #93a0b4; --line: #29313d; --grid: #232b36;
    --main: #6ea3ff; --eval: #ff8f5a; --rate: #8b98ae; --third: #4fc4a8; --soft: #1c2636;
  }
}
* { box-sizing: border-box }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 64px }
header { margin-bottom: 28px }
h1 { font-size: 30px; line-height: 1.2; letter-spacing: -.02em; margin: 0 0 6px; overflow-wrap: anywhere }
h2 { font-size: 18px; letter-spacing: -.01em; margin: 40px 0 12px }
header p, .quiet { color: var(--quiet); margin: 0 }
.figures { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 12px; margin: 0 0 16px }
.figures div, .card, .chart { background: var(--card); border: 1px solid var(--line); border-radius: 10px }
.figures div { padding: 12px 16px 13px }
.figures dt { color: var(--quiet); font-size: 13px }
.figures dd { margin: 0; font-size: 22px; font-weight: 600; letter-spacing: -.02em; font-variant-numeric: tabular-nums }
.figures small { display: block; font-size: 12.5px; font-weight: 400; letter-spacing: 0; color: var(--quiet) }
.charts { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 16px }
.charts .tall { grid-column: 1 / -1 }
.chart { margin: 0; padding: 16px 20px 38px }
.chart figcaption { display: flex; flex-wrap: wrap; gap: 2px 18px; justify-content: space-between; font-weight: 600;
  margin-bottom: 14px }
.legend { display: flex; flex-wrap: wrap; gap: 2px 18px; font-weight: 400; color: var(--quiet); font-size: 13.5px }
.legend b { color: var(--ink); font-variant-numeric: tabular-nums }
.key::before { content: ""; display: inline-block; width: 16px; height: 3px; border-radius: 2px; margin: 0 7px 3px 0;
  background: var(--shade) }
.main { --shade: var(--main) } .eval { --shade: var(--eval) } .rate { --shade: var(--rate) }
.third { --shade: var(--third) }
.plot { position: relative; height: 170px; margin-left: 50px; outline-offset: 6px }
.tall .plot { height: 320px }
.plot svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible }
.plot path { fill: none; stroke: var(--shade); stroke-width: 2px; stroke-linejoin: round; stroke-linecap: round;
  vector-effect: non-scaling-stroke }
.plot .raw { stroke-width: 1px; opacity: .33 }
.plot .grid { stroke: var(--grid); stroke-width: 1px }
.plot .dots { stroke-width: 8px }
.plot .x, .plot .y { position: absolute; font-size: 12px; color: var(--quiet); font-variant-numeric: tabular-nums;
  white-space: nowrap; pointer-events: none }
.plot .y { right: 100%; margin-right: 10px; transform: translateY(-50%) }
.plot .x { top: 100%; margin-top: 7px; transform: translateX(-50%) }
.hair { position: absolute; top: 0; bottom: 0; width: 1px; background: var(--quiet); opacity: .5; pointer-events: none }
.spot { position: absolute; width: 9px; height: 9px; margin: -5px 0 0 -5px; border-radius: 50%; pointer-events: none;
  background: var(--shade); border: 2px solid var(--card) }
.tip { position: absolute; top: 6px; z-index: 1; padding: 6px 10px; border-radius: 7px; font-size: 12.5px;
  pointer-events: none; background: var(--ink); color: var(--card); white-space: nowrap;
  font-variant-numeric: tabular-nums }
.card { padding: 4px 20px; overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-size: 14px }
th, td { text-align: left; vertical-align: top; padding: 8px 16px 8px 0; overflow-wrap: anywhere }
tr + tr > * { border-top: 1px solid var(--line) }
th { font-weight: 400; color: var(--quiet); width: 32% }
td { font-variant-numeric: tabular-nums; white-space: pre-line }
.halves { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 0 16px; align-items: start }
.sample { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 20px;
  margin: 0 0 10px }
.sample p { margin: 0; font-weight: 600; overflow-wrap: anywhere }
.sample dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 8px 14px; margin: 10px 0 0 }
.sample dt { color: var(--quiet); font-size: 13px; padding-top: 1px; font-variant-numeric: tabular-nums }
.sample dd { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere }
.sample dd:last-child { background: var(--soft); border-radius: 6px; padding: 2px 10px; margin-left: -10px }
details { margin-top: 40px } summary { cursor: pointer; font-size: 18px; font-weight: 600; letter-spacing: -.01em }
details .card { margin-top: 12px }
.files { display: flex; flex-wrap: wrap; gap: 8px; padding: 0; list-style: none }
a { color: var(--main) }
.files a { display: block; padding: 6px 14px; border: 1px solid var(--line); border-radius: 8px;
  background: var(--card); text-decoration: none }
footer { margin-top: 48px; color: var(--quiet); font-size: 13px }
@media (max-width: 720px) {
  main { padding: 24px 14px 40px } h1 { font-size: 24px }
  .charts, .halves { grid-template-columns: minmax(0, 1fr) }
  .figures { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 8px }
  .figures div { padding: 10px 13px } .figures dd { font-size: 19px }
  .chart { padding: 14px 14px 36px } .plot { margin-left: 42px } .tall .plot { height: 230px }
  .sample dl { grid-template-columns: minmax(0, 1fr); gap: 2px } .sample dd { margin-bottom: 8px }
  .sample dd:last-child { margin-left: 0 }
  th { width: 45% }
}
@media print { body { background: #fff } .chart, .sample { break-inside: avoid } }
"""

SCRIPT = """
for (const plot of document.querySelectorAll(".plot")) {
  const data = JSON.parse(plot.querySelector("script").textContent);
  let shown = [];
  const add = (name) => {
    const made = document.createElement("div");
    made.className = name; plot.append(made); shown.push(made);
    return made;
  };
  const clear = () => { shown.forEach((made) => made.remove()); shown = [] };
  const nearest = (steps, wanted) => {
    let low = 0, high = steps.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (steps[middle] < wanted) low = middle + 1; else high = middle;
    }
    return low > 0 && wanted - steps[low - 1] < steps[low] - wanted ? low - 1 : low;
  };
  const read = (share) => {
    clear();
    const lead = data.lines[0], wanted = Math.min(1, Math.max(0, share)) * data.last;
    const step = lead.step[nearest(lead.step, wanted)], place = 100 * step / data.last;
    add("hair").style.left = place + "%";
    const tip = add("tip");
    const words = ["step " + step.toLocaleString("en")];
    for (const line of data.lines) {
      const index = nearest(line.step, step);
      const spot = add("spot " + line.style), other = line.step[index] === step ? "" : ` (step ${line.step[index]})`;
      spot.style.left = 100 * line.step[index] / data.last + "%"; spot.style.top = line.at[index] / 10 + "%";
      words.push(`${line.name} ${line.value[index]}${other}`);
    }
    tip.textContent = words.join("  ·  ");
    if (place > 50) tip.style.right = 100 - place + 1 + "%"; else tip.style.left = place + 1 + "%";
  };
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect(); read((event.clientX - box.left) / box.width);
  });
  plot.addEventListener("pointerleave", clear);
  plot.addEventListener("blur", clear);
  let at = 1;
  plot.addEventListener("keydown", (event) => {
    const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (way) { at = Math.min(1, Math.max(0, at + way / 50)); read(at); event.preventDefault() }
  });
}
"""
