// The leaderboard's picture: points, intervals, frontiers, arrows. Text from runs is only ever set as text.
"use strict";
(() => {
  const picture = Ranking.board;
  const scored = ([value, low, high]) => ({ value, low, high });
  // What a point lacks it does not say.
  const lacking = { rank: null, ranks: null, p: null, parameters: null, partial: false, control: false, prompt: null };
  const allPoints = picture.points.map((point) => ({
    ...lacking, ...point, group: picture.groups[point.group], harmlessness: scored(point.harmlessness), helpfulness: scored(point.helpfulness),
  }));
  for (const frontier of picture.frontiers) frontier.group = picture.groups[frontier.group];
  let points = allPoints;
  const { COLOURS, percent } = Chart;
  const interval = (score) => `${percent(score.value)}  (${percent(score.low)} to ${percent(score.high)})`;

  // -- the scatter ---------------------------------------------------------------------------------------------------

  const FONT = 12;
  const MARGIN = { top: 16, right: 18, bottom: 44, left: 52 };
  const SYMBOLS = [d3.symbolCircle, d3.symbolSquare, d3.symbolTriangle, d3.symbolDiamond, d3.symbolStar, d3.symbolWye];
  // In the table's order.
  const groups = picture.groups;
  // More names than these cover the points, and placing them takes longer than a reader waits.
  const MOST_NAMES = 40;
  const MOST_TOLD = 300;
  // Pixels from a point to its name, at most.
  const FARTHEST = 28;
  const x = (point) => point.harmlessness.value;
  const y = (point) => point.helpfulness.value;
  // Without the organisation, which the tooltip and the table have.
  const shortened = (name) => {
    const last = name.split("/").filter(Boolean).pop() ?? name;
    return last.length > 30 ? `${last.slice(0, 29)}\u2026` : last;
  };

  // Each name goes where it covers no point and no other name; where there is no such place the tooltip has it.
  function placeLabels(width, height) {
    const context = document.createElement("canvas").getContext("2d");
    context.font = `600 ${FONT}px system-ui, sans-serif`;
    const px = (value) => MARGIN.left + value * (width - MARGIN.left - MARGIN.right);
    const py = (value) => height - MARGIN.bottom - value * (height - MARGIN.top - MARGIN.bottom);
    const taken = points.map((p) => ({ x0: px(x(p)) - 6, x1: px(x(p)) + 6, y0: py(y(p)) - 6, y1: py(y(p)) + 6 }));
    const crosses = points.flatMap((p) => [
      { x0: px(p.harmlessness.low), x1: px(p.harmlessness.high), y0: py(y(p)) - 1, y1: py(y(p)) + 1 },
      { x0: px(x(p)) - 1, x1: px(x(p)) + 1, y0: py(p.helpfulness.high), y1: py(p.helpfulness.low) },
    ]);
    for (const { from, to } of arrows) {
      for (const t of [0.2, 0.35, 0.5, 0.65, 0.8]) {
        const [cx, cy] = [px(x(from) + t * (x(to) - x(from))), py(y(from) + t * (y(to) - y(from)))];
        crosses.push({ x0: cx - 3, x1: cx + 3, y0: cy - 3, y1: cy + 3 });
      }
    }
    const meets = (a) => (b) => a.x0 < b.x1 && b.x0 < a.x1 && a.y0 < b.y1 && b.y0 < a.y1;
    const labels = [];
    // The runs of the frontier first, then in the table's order.
    const named = [...points].sort((a, b) => onFrontier(b) - onFrontier(a)).slice(0, MOST_NAMES);
    for (const point of named) {
      const text = shortened(point.model);
      const w = context.measureText(text).width + 4;
      const h = FONT + 3;
      // What lies further off than any of its places reaches is in none's way.
      const off = FARTHEST + 6;
      const reach = { x0: px(x(point)) - w - off, x1: px(x(point)) + w + off, y0: py(y(point)) - h - off, y1: py(y(point)) + h + off };
      const [takenNear, crossesNear] = [taken, crosses].map((boxes) => boxes.filter(meets(reach)));
      const pointsNear = points.filter((p) => p !== point && meets(reach)({ x0: px(x(p)), x1: px(x(p)), y0: py(y(p)), y1: py(y(p)) }));
      let best = null;
      for (const away of [10, 18, FARTHEST]) {
        for (const [sx, sy] of [[1, -1], [-1, -1], [1, 1], [-1, 1], [0, -1], [0, 1]]) {
          const dx = sx * (away - 3);
          const dy = sy * away;
          const x0 = px(x(point)) + dx - (sx < 0 ? w : sx === 0 ? w / 2 : 0);
          const y0 = py(y(point)) + dy - h / 2;
          const box = { x0, x1: x0 + w, y0, y1: y0 + h, text, dx, dy, point, anchor: ["end", "middle", "start"][sx + 1] };
          const outside = x0 < MARGIN.left || box.x1 > width || y0 < 0 || box.y1 > height - MARGIN.bottom;
          if (outside || takenNear.some(meets(box))) continue;
          // A name that is nearer to another point reads as that point's.
          const distance = (p) => Math.hypot(Math.max(x0 - px(x(p)), px(x(p)) - box.x1, 0), Math.max(y0 - py(y(p)), py(y(p)) - box.y1, 0));
          const nearer = pointsNear.filter((p) => distance(p) < distance(point) + 6).length;
          const cost = 4 * nearer + crossesNear.filter(meets(box)).length + away / 100;
          if (best === null || cost < best.cost) best = { ...box, cost };
        }
      }
      if (best !== null) {
        labels.push(best);
        taken.push(best);
      }
    }
    return labels;
  }

  // From each model to what was trained from it, both points of the picture.
  const bySlug = new Map(points.map((point) => [point.slug, point]));
  const allArrows = points.filter((point) => point.base !== undefined).map((point) => ({ to: point, from: bySlug.get(point.base) }));
  let arrows = allArrows;

  // -- the frontiers -------------------------------------------------------------------------------------------------

  const corners = new Set(picture.frontiers.flatMap(({ group, corners: list }) => list.map(([u, v]) => `${group} ${u} ${v}`)));
  const onFrontier = (point) => point.rank !== null && corners.has(`${point.group} ${x(point)} ${y(point)}`);
  // What a group's runs reach: level to each corner, then down; the corners begin with the most harmless run.
  const steps = picture.frontiers.flatMap(({ group, corners: list }) => {
    const up = [...list].reverse();
    const path = [[0, up[0][1]]];
    up.forEach(([u, v], i) => path.push([u, v], [u, i + 1 < up.length ? up[i + 1][1] : 0]));
    return path.map(([u, v]) => ({ group, u, v }));
  });
  const bands = picture.frontiers.flatMap(({ group, band }) => band.map(([u, low, high]) => ({ group, u, low, high })));
  // Goes with the cube root: from 100 million parameters to 100 billion a point grows tenfold, not thirtyfold.
  const known = points.map((point) => point.parameters).filter((n) => n !== null);
  const most = Math.max(...known);
  const radius = (point) => (point.parameters === null ? 5.5 : Math.max(3.5, 7 * Math.cbrt(point.parameters / most)));
  // A point's two intervals as pieces of one line.
  const arms = (point) => {
    const [u, v, group] = [x(point), y(point), point.group];
    const ends = [[point.harmlessness.low, v], [point.harmlessness.high, v], [NaN, NaN], [u, point.helpfulness.low], [u, point.helpfulness.high], [NaN, NaN]];
    return ends.map(([end, other]) => ({ group, u: end, v: other }));
  };
  const surely = (point) => (point.p === null ? 1 : 0.3 + 0.7 * point.p);

  const step = (before, after) => `${after < before ? "\u2212" : "+"}${(100 * Math.abs(after - before)).toFixed(1)} points`;
  const told = (arrow) => `${arrow.to.model} was trained from ${arrow.from.model}: harmlessness ${step(x(arrow.from), x(arrow.to))}, helpfulness ${step(y(arrow.from), y(arrow.to))}`;

  function draw(container, width) {
    const height = Math.round(Math.max(320, Math.min(450, 0.64 * width)));
    const series = groups.length > 1 ? (point) => point.group : () => groups[0];
    const equalMean = [0.25, 0.5, 0.75].map((mean) => ({
      x1: Math.max(0, 2 * mean - 1), y1: Math.min(1, 2 * mean), x2: Math.min(1, 2 * mean), y2: Math.max(0, 2 * mean - 1),
    }));
    const crowded = points.length > MOST_TOLD;
    const cross = { stroke: series, strokeWidth: 1.5, strokeOpacity: 0.55 };
    // One path a group, with gaps: two lines a point would be most of what a browser has to lay out.
    const crosses = crowded
      ? [Plot.line(points.flatMap(arms), { x: "u", y: "v", z: "group", stroke: "group", strokeWidth: 0.75, strokeOpacity: 0.2, ariaHidden: true })]
      : [
          Plot.ruleY(points, { ...cross, y, x1: (p) => p.harmlessness.low, x2: (p) => p.harmlessness.high }),
          Plot.ruleX(points, { ...cross, x, y1: (p) => p.helpfulness.low, y2: (p) => p.helpfulness.high }),
        ];
    const link = (point) => `runs/${point.slug}.html`;
    const axis = { domain: [0, 1], ticks: width < 420 ? 5 : 10, tickFormat: (value) => `${Math.round(100 * value)}%` };
    const dot = { x, y, r: crowded ? (point) => radius(point) / 2 : radius, symbol: series, href: link, ariaLabel: (p) => `${p.model}, harmlessness ${percent(x(p))}, helpfulness ${percent(y(p))}` };
    const title = (point) => [
      point.rank === null ? point.model : `${point.rank}. ${point.model}`,
      `harmlessness  ${interval(point.harmlessness)}`,
      `helpfulness  ${interval(point.helpfulness)}`,
      ...(point.ranks === null ? [] : [`rank ${point.ranks[0]} to ${point.ranks[1]}, on the frontier in ${Math.round(100 * point.p)}% of draws`]),
      ...(point.prompt === null ? [] : [`system prompt: ${point.prompt}`]),
      ...(point.parameters === null ? [] : [`${d3.format(".3~s")(point.parameters).replace("G", "B")} parameters`]),
      ...arrows.filter((arrow) => arrow.to === point).map((arrow) => `trained from ${arrow.from.model}`),
      [point.group, ...(point.control ? ["control"] : []), ...(point.partial ? ["partial run"] : [])].join(", "),
    ].join("\n");
    const plot = Plot.plot({
      width, height,
      marginTop: MARGIN.top, marginRight: MARGIN.right, marginBottom: MARGIN.bottom, marginLeft: MARGIN.left,
      style: { fontSize: `${FONT}px`, fontFamily: "inherit", background: "none", "--plot-background": "var(--surface)" },
      x: { ...axis, label: "Harmlessness \u2192", labelAnchor: "center", labelArrow: "none" },
      y: { ...axis, label: "Helpfulness \u2192", labelAnchor: "center", labelArrow: "none" },
      r: { type: "identity" },
      color: { domain: groups, range: groups.map((_, i) => COLOURS[i % COLOURS.length]) },
      symbol: { domain: groups, range: groups.map((_, i) => SYMBOLS[i % SYMBOLS.length]) },
      marks: [
        Plot.gridX({ ticks: axis.ticks, stroke: "var(--line)", strokeOpacity: 1 }),
        Plot.gridY({ ticks: axis.ticks, stroke: "var(--line)", strokeOpacity: 1 }),
        Plot.link(equalMean, { x1: "x1", y1: "y1", x2: "x2", y2: "y2", stroke: "var(--muted)", strokeOpacity: 0.7, strokeDasharray: "1,5", strokeLinecap: "round" }),
        Plot.text(["better \u2197"], { frameAnchor: "top-right", dx: -8, dy: 8, fill: "var(--muted)", fontStyle: "italic" }),
        Plot.areaY(bands, { x: "u", y1: "low", y2: "high", z: "group", fill: (d) => d.group, fillOpacity: 0.13, ariaHidden: true }),
        Plot.line(steps, { x: "u", y: "v", z: "group", stroke: (d) => d.group, strokeWidth: 3, strokeOpacity: 0.45, ariaHidden: true }),
        Plot.dot(picture.published, { x: (d) => d.harmlessness, y: (d) => d.helpfulness, r: 5, symbol: "times", stroke: "var(--muted)", strokeWidth: 2 }),
        Plot.text(picture.published, { x: (d) => d.harmlessness, y: (d) => d.helpfulness, dx: 9, textAnchor: "start", text: (d) => shortened(d.model), fill: "var(--muted)", stroke: "var(--surface)", strokeWidth: 3 }),
        ...crosses,
        Plot.arrow(arrows, {
          x1: (a) => x(a.from), y1: (a) => y(a.from), x2: (a) => x(a.to), y2: (a) => y(a.to), inset: 8, headLength: 9,
          stroke: "currentColor", strokeOpacity: 0.65, strokeWidth: 1.5, ariaLabel: told,
        }),
        Plot.dot(points.filter((p) => !p.partial), { ...dot, fill: series, fillOpacity: surely, stroke: series, strokeWidth: 1 }),
        Plot.dot(points.filter((p) => p.partial), { ...dot, stroke: series, fill: "var(--surface)", strokeWidth: 2 }),
        ...placeLabels(width, height).map((label) =>
          Plot.text([label.point], {
            x, y, text: () => label.text, dx: label.dx, dy: label.dy, textAnchor: label.anchor,
            fill: "currentColor", fontWeight: 600, fontStyle: label.point.control ? "italic" : "normal", stroke: "var(--surface)", strokeWidth: 3, pointerEvents: "none",
          })),
        Plot.tip(points, Plot.pointer({ x, y, title, fill: "var(--surface)", stroke: "var(--muted)", lineWidth: 40, lineHeight: 1.4, textPadding: 10 })),
      ],
    });
    container.replaceChildren(...(groups.length > 1 ? [legend()] : []), Chart.spoken(plot));
  }

  function legend() {
    const list = d3.create("ul").attr("class", "legend");
    const items = list.selectAll("li").data(groups).join("li");
    items.append("svg").attr("viewBox", "-8 -8 16 16").attr("aria-hidden", "true").append("path")
      .attr("d", (_, i) => d3.symbol(SYMBOLS[i % SYMBOLS.length], 95)()).attr("fill", (_, i) => COLOURS[i % COLOURS.length]);
    items.append("span").text((group) => group);
    return list.node();
  }

  const container = document.getElementById("chart");
  if (allPoints.length === 0) {
    container.className = "note";
    container.textContent = "No run has both a harmlessness and a helpfulness score, so there is nothing to draw.";
  } else {
    let drawn = 0;
    new ResizeObserver(() => {
      const width = Math.floor(container.clientWidth);
      if (width > 0 && width !== drawn) draw(container, (drawn = width));
    }).observe(container);
    // The picture shows what the table shows.
    document.getElementById("leaderboard").addEventListener("found", ({ detail: slugs }) => {
      const wanted = (point) => slugs === null || slugs.has(point.slug);
      const before = points.length;
      points = allPoints.filter(wanted);
      arrows = allArrows.filter((arrow) => wanted(arrow.from) && wanted(arrow.to));
      if (drawn > 0 && (points.length !== before || slugs !== null)) draw(container, drawn);
    });
  }

})();
