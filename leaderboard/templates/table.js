// Tables that sort, find and show their first hundred rows, or all; knows no page. Rows are moved, never made from text:
// those of a long ranking are made one by one (ranking.js), when they are shown.
"use strict";
(() => {
  const collator = new Intl.Collator("en", { numeric: true });

  function compare(a, b, isText, sign) {
    // What was not measured is last either way: it is neither the best nor the worst.
    if (a === "" || b === "") return (a === "") - (b === "");
    return sign * (isText ? collator.compare(a, b) : Number(a) - Number(b));
  }

  // What a cell shows is its value, unless it says otherwise.
  const there = (row) => ({
    slug: row.dataset.slug,
    value: (column) => row.cells[column].dataset.value ?? row.cells[column].textContent,
    words: () => row.querySelector("th").textContent,
    element: () => row,
  });

  // A body of rows: those in the document, those that lie in its template and those that can be made, below the heading
  // of their group.
  function gather(table, body, group) {
    const template = body.querySelector(":scope > template");
    const rows = [...body.querySelectorAll(":scope > tr:not(.group)")];
    if (template !== null) rows.push(...template.content.querySelectorAll("tr"));
    const others = table.id === "leaderboard" ? Ranking.rows(group) : [];
    return { body, heading: body.querySelector(":scope > tr.group"), rows: [...rows.map(there), ...others], words: null };
  }

  const words = (entry) => (entry.words ??= entry.rows.map((row) => `${row.words()} ${entry.heading?.textContent ?? ""}`.toLowerCase()));

  function manage(table) {
    const bodies = [...table.tBodies].map((body, i) => gather(table, body, i));
    const finder = document.querySelector(`.finder[data-table="${table.id}"]`);
    const total = bodies.reduce((sum, entry) => sum + entry.rows.length, 0);
    // As many as stood in the document: what a browser has to lay out before it answers.
    const page = Number(table.dataset.page ?? 100);
    let limit = page;
    let query = [];

    const matching = (entry) => (query.length === 0 ? entry.rows : entry.rows.filter((_, i) => query.every((word) => words(entry)[i].includes(word))));

    function render() {
      let left = limit;
      const found = bodies.map(matching);
      bodies.forEach(({ body, heading }, i) => {
        const shown = found[i].slice(0, left).map((row) => row.element());
        body.replaceChildren(...(heading === null ? shown : [heading, ...shown]));
        body.hidden = shown.length === 0;
        left -= shown.length;
      });
      describe(found.flat());
    }

    function describe(found) {
      if (finder === null) return;
      const n = found.length;
      const among = n < total ? ` found among ${total.toLocaleString("en")}` : "";
      finder.querySelector("p").textContent = n === 0 ? `None of ${total}.` : `${Math.min(limit, n).toLocaleString("en")} of ${n.toLocaleString("en")}${among}`;
      finder.querySelector(".all").hidden = n <= limit;
      table.dispatchEvent(new CustomEvent("found", { detail: query.length === 0 ? null : new Set(found.map((row) => row.slug)) }));
    }

    function sortBy(headings, heading) {
      const column = headings.indexOf(heading);
      const isText = heading.classList.contains("text");
      const before = heading.getAttribute("aria-sort");
      // Scores begin with the best, everything else with the first.
      const first = heading.classList.contains("score") ? "descending" : "ascending";
      const second = first === "ascending" ? "descending" : "ascending";
      const order = before === first ? second : first;
      for (const other of headings) other.setAttribute("aria-sort", other === heading ? order : "none");
      // Within each group of comparable runs, whose heading stays where it is.
      for (const entry of bodies) {
        entry.rows.sort((a, b) => compare(a.value(column), b.value(column), isText, order === "ascending" ? 1 : -1));
        entry.words = null;
      }
      render();
    }

    const headings = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
    for (const heading of headings) heading.querySelector("button")?.addEventListener("click", () => sortBy(headings, heading));
    if (finder !== null) {
      finder.querySelector("input").addEventListener("input", (event) => {
        query = event.target.value.toLowerCase().split(/\s+/).filter(Boolean);
        limit = page;
        render();
      });
      finder.querySelector(".all").addEventListener("click", () => {
        limit = Infinity;
        render();
      });
      finder.hidden = false;
      // The document shows what it is to show at first: nothing moves.
      describe(bodies.flatMap(matching));
    }
    // On paper there is no button to press.
    addEventListener("beforeprint", () => {
      limit = Infinity;
      render();
    });
  }

  for (const table of document.querySelectorAll("table.sortable")) manage(table);
  // Said to those who cannot ask for the others.
  for (const note of document.querySelectorAll(".few")) note.remove();
})();
