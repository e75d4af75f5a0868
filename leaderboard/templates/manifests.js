// Two runs' settings side by side. The choice is kept in the address, so that it can be sent; text is only set as text.
"use strict";
(() => {
  const told = JSON.parse(document.getElementById("packed").textContent);
  const [first, second] = ["first", "second"].map((id) => document.getElementById(id));
  const differing = document.getElementById("differing");
  const groups = [...new Set(told.rows.map((row) => row.group))];
  const text = (run, name) => (told.runs[run][name] < 0 ? "not set" : told.texts[told.runs[run][name]]);
  const cell = (kind, words, set) => {
    const made = document.createElement(kind);
    made.textContent = words;
    if (!set) made.className = "missing";
    return made;
  };

  for (const select of [first, second]) {
    for (const group of groups) {
      const part = document.createElement("optgroup");
      part.label = group;
      told.rows.forEach((row, i) => row.group === group && part.append(new Option(row.label, String(i))));
      select.append(part);
    }
  }

  function show() {
    const [a, b] = [Number(first.value), Number(second.value)];
    const differs = told.names.map((_, name) => told.runs[a][name] !== told.runs[b][name]);
    const n = differs.filter(Boolean).length;
    const rows = told.names.flatMap((name, i) => {
      const [set, other] = [told.runs[a][i] >= 0, told.runs[b][i] >= 0];
      if ((differing.checked && !differs[i]) || !(set || other)) return [];
      const row = document.createElement("tr");
      const heading = cell("th", name, true);
      heading.scope = "row";
      if (differs[i]) row.className = "differs";
      row.append(heading, cell("td", text(a, i), set), cell("td", text(b, i), other));
      return [row];
    });
    document.getElementById("settings").replaceChildren(...rows);
    document.getElementById("name-a").textContent = told.rows[a].label;
    document.getElementById("name-b").textContent = told.rows[b].label;
    document.getElementById("sides").hidden = rows.length === 0;
    document.getElementById("told").textContent = n === 0 ? "These two differ in no setting." : `${n} setting${n === 1 ? " differs" : "s differ"}.`;
    history.replaceState(null, "", `#${told.rows[a].slug}..${told.rows[b].slug}`);
  }

  // A slug holds no dot, so that two of them can be told apart in the address.
  const asked = location.hash.slice(1).split("..").map((slug) => told.rows.findIndex((row) => row.slug === slug));
  first.value = String(asked[0] >= 0 ? asked[0] : 0);
  second.value = String(asked.length > 1 && asked[1] >= 0 ? asked[1] : Math.min(1, told.rows.length - 1));
  for (const control of [first, second, differing]) control.addEventListener("change", show);
  document.getElementById("pick").addEventListener("submit", (event) => event.preventDefault());
  document.getElementById("pick").hidden = false;
  show();
})();
