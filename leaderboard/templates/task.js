// A task's page: bars of every run's score, over all its samples or in one category. Text is only ever set as text.
"use strict";
(() => {
  const told = JSON.parse(document.getElementById("scores").textContent);
  const MOST = 40;
  const { COLOURS, percent } = Chart;
  const groups = told.groups;
  const container = document.getElementById("chart");
  const form = document.getElementById("choose");
  const category = document.getElementById("category");
  const whole = document.getElementById("whole");
  const shortened = (name, most) => (name.length > most ? `${name.slice(0, most - 1)}\u2026` : name);

  // The best first in each group; a run without a score has no bar.
  function bars() {
    const index = category === null || category.value === "" ? -1 : Number(category.value);
    const measured = told.runs.map((run) => ({ ...run, key: run.slug, figures: index < 0 ? run.score : run.categories[index] }));
    const cited = index < 0 ? told.published.map((row, i) => ({ ...row, key: `published ${i}`, group: null, figures: row.score })) : [];
    const found = [...measured.filter((run) => run.figures !== null), ...cited].map(({ figures: [value, low, high, n], ...run }) => ({ ...run, value, low, high, n }));
    const place = (run) => (run.group === null ? groups.length : run.group);
    found.sort((a, b) => place(a) - place(b) || b.value - a.value || (a.key < b.key ? -1 : 1));
    return whole.checked ? found : found.slice(0, MOST);
  }

  function draw(width) {
    const data = bars();
    const narrow = width < 520;
    const marginLeft = Math.min(narrow ? 120 : 260, 14 + 7 * Math.max(6, ...data.map((run) => run.model.length)));
    const names = new Map(data.map((run) => [run.key, shortened(run.model, Math.floor((marginLeft - 12) / 6.5))]));
    const said = (run) => `${run.model}: ${percent(run.value)}${run.low === null ? "" : `, ${percent(run.low)} to ${percent(run.high)}`}${run.n === null ? "" : `, n ${run.n}`}`;
    const colour = (run) => (run.group === null ? "var(--muted)" : COLOURS[run.group % COLOURS.length]);
    const bar = { x: "value", y: "key", insetTop: 2, insetBottom: 2, ariaLabel: said };
    const sure = data.filter((run) => run.low !== null);
    const plot = Plot.plot({
      width, height: 56 + 24 * Math.max(1, data.length), marginLeft, marginRight: 18, marginTop: 28, marginBottom: 28,
      style: { fontSize: "12px", fontFamily: "inherit", background: "none", "--plot-background": "var(--surface)" },
      x: { domain: [0, 1], ticks: narrow ? 5 : 10, tickFormat: (value) => `${Math.round(100 * value)}%`, label: null, axis: "both" },
      y: { domain: data.map((run) => run.key), tickFormat: (key) => names.get(key), label: null, tickSize: 0 },
      marks: [
        Plot.gridX({ stroke: "var(--line)", strokeOpacity: 1 }),
        // Constant colours are per bar: one mark each would be slow for many, so groups go one after another.
        ...[...new Set(data.map(colour))].flatMap((fill) => {
          const mine = data.filter((run) => colour(run) === fill);
          return [
            Plot.barX(mine.filter((run) => run.group !== null), { ...bar, fill, fillOpacity: 0.55, href: (run) => `../runs/${run.slug}.html` }),
            Plot.barX(mine.filter((run) => run.group === null), { ...bar, fill: "none", stroke: fill, strokeDasharray: "3,3" }),
          ];
        }),
        Plot.ruleY(sure, { y: "key", x1: "low", x2: "high", stroke: "var(--text)", strokeWidth: 1.5, pointerEvents: "none" }),
        Plot.tickX(sure.flatMap((run) => [{ key: run.key, at: run.low }, { key: run.key, at: run.high }]), { x: "at", y: "key", insetTop: 7, insetBottom: 7, stroke: "var(--text)", strokeWidth: 1.5, pointerEvents: "none" }),
        ...(told.chance === null ? [] : [Plot.ruleX([told.chance], { stroke: "var(--muted)", strokeDasharray: "4,4" })]),
        Plot.ruleX([0], { stroke: "var(--muted)" }),
        Plot.tip(data, Plot.pointerY({ x: "value", y: "key", title: said, fill: "var(--surface)", stroke: "var(--muted)" })),
      ],
    });
    container.replaceChildren(Chart.spoken(plot));
  }

  if (category !== null) {
    told.categories.forEach((name, i) => category.append(new Option(name, String(i))));
    category.addEventListener("change", () => draw(drawn));
  }
  whole.parentElement.hidden = told.runs.length + told.published.length <= MOST;
  whole.addEventListener("change", () => draw(drawn));
  form.hidden = category === null && whole.parentElement.hidden;
  form.addEventListener("submit", (event) => event.preventDefault());
  let drawn = 0;
  new ResizeObserver(() => {
    const width = Math.floor(container.clientWidth);
    if (width > 0 && width !== drawn) draw((drawn = width));
  }).observe(container);
})();
