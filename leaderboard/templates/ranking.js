// The ranking's rows that do not stand in the document, made when they are to be shown; they look like index_tables.py's.
// Text is only ever set as text.
"use strict";
const Ranking = (() => {
  const board = JSON.parse(document.getElementById("picture").textContent);
  const { percent, share, whole } = Chart;
  const thousands = (n) => n.toLocaleString("en");

  function element(kind, name, ...children) {
    const made = document.createElement(kind);
    if (name) made.className = name;
    made.append(...children);
    return made;
  }
  const cell = (name, value, ...children) => {
    const made = element("td", name, ...children);
    made.dataset.value = value ?? "";
    return made;
  };
  const interval = (...children) => element("span", "interval", ...children);
  const reason = (...children) => element("span", "reason", ...children);
  const missing = (word) => {
    const dash = element("span", "", "\u2013");
    dash.setAttribute("aria-hidden", "true");
    return [dash, element("span", "unseen", word)];
  };

  function rect(name, attributes) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    for (const [key, value] of Object.entries({ class: name, ...attributes })) made.setAttribute(key, value);
    return made;
  }

  function bar([value, low, high]) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    made.setAttribute("class", "bar");
    made.setAttribute("aria-hidden", "true");
    const range = { x: `${(100 * low).toFixed(2)}%`, width: `${(100 * (high - low)).toFixed(2)}%` };
    made.append(rect("range", range), rect("mark", { x: `${(99 * value - 0.5).toFixed(2)}%` }));
    return made;
  }

  function score(told) {
    if (told === null) return cell("score missing", null, ...missing("not measured"));
    const [value, low, high] = told;
    const bounds = interval(`${percent(low).slice(0, -1)}\u2013${percent(high).slice(0, -1)}`);
    return cell("score", value, element("span", "value", percent(value)), " ", bounds, bar(told));
  }

  const count = (n) => cell(n === 0 ? "number zero" : "number", n, thousands(n));

  function rank(told) {
    if (told.rank === undefined) return cell("number rank", null, ...missing("unranked"));
    const [low, high] = told.ranks ?? [];
    const below = low === undefined ? [] : [interval(low === high ? `${low}` : `${low}\u2013${high}`)];
    return cell("number rank", told.rank, `${told.rank}`, ...below);
  }

  function frontier(told) {
    if (told.p !== undefined) {
      return cell("number frontier", told.p, `${whole(100 * told.p)}%`, ...(told.on ? [interval("on it")] : []));
    }
    if (told.why === undefined) return cell("number frontier missing", null, ...missing("unranked"));
    const again = element("span", "", "score it again");
    again.title = told.why;
    return cell("number frontier missing", null, again);
  }

  // A long name may break behind its organisation.
  const breakable = (name) => name.split("/").flatMap((part, i) => (i === 0 ? [part] : ["/", document.createElement("wbr"), part]));
  const link = (slug, name) => {
    const made = element("a", "", ...breakable(name));
    made.href = `runs/${slug}.html`;
    return made;
  };

  function status(told) {
    const tags = (told.tags ?? []).map(([kind, word]) => element("span", `tag ${kind}`.trim(), word));
    const reasons = (told.reasons ?? []).map((text) => reason(text));
    const folded = reasons.length > 1 ? [element("details", "reason", element("summary", "", told.summary), ...reasons)] : reasons;
    const from = told.from === undefined ? [] : [reason(`${told.from[0]}, from `, ...(told.base === undefined ? breakable(told.from[1]) : [link(told.base, told.from[1])]))];
    const further = (told.further ?? []).map((text) => reason(text));
    return element("div", "status", ...tags.flatMap((tag) => [tag, " "]), ...folded, ...from, ...further);
  }

  function made(told) {
    const row = element("tr", told.rank === undefined ? "unranked" : "");
    row.dataset.slug = told.slug;
    const heading = element("th", "", link(told.slug, told.model), status(told));
    heading.scope = "row";
    heading.dataset.value = told.model;
    const [n, ...counts] = told.counts;
    const coverage = told.coverage === undefined ? cell("number", null, ...missing("not known")) : cell("number", told.coverage, share(told.coverage));
    row.append(rank(told), heading, ...told.axes.map(score), frontier(told), count(n), coverage, ...counts.map(count));
    return row;
  }

  // What a table needs of a row: to find and sort it, it need not be there.
  function row(told) {
    const [n, ...counts] = told.counts;
    const values = [told.rank, told.model, ...told.axes.map((figures) => figures?.[0]), told.p, n, told.coverage, ...counts];
    let element = null;
    return {
      slug: told.slug,
      value: (column) => values[column] ?? "",
      words: () => [told.model, ...(told.tags ?? []).map(([, word]) => word), ...(told.reasons ?? []), ...(told.from ?? []), ...(told.further ?? [])].join(" "),
      element: () => (element ??= made(told)),
    };
  }

  return { board, rows: (group) => (board.others[group] ?? []).map(row) };
})();
