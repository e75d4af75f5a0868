// A run's page: finds and shows its samples. Text from runs is only ever set as text, and never comes as a script:
// a data file is a page in a sandboxed frame that posts its text (viewer.py says why).
"use strict";
(() => {
  const ROW = 64;
  const AROUND = 8;
  // Less than the height that any browser allows an element.
  const MOST = Math.floor(15e6 / ROW);
  const CUT = 4000;
  const READERS = 3;
  const KEPT = 12;
  const OUTCOMES = [
    "refused", "safe", "harmful", "passed", "failed", "score 1", "0.5 \u2264 score < 1", "0 < score < 0.5", "score 0",
    "no answer", "not run",
  ];
  const ALSO = { "verdicts differ": "verdicts differ", unscored: "unscored", truncated: "truncated", empty: "empty" };
  const FLIPS = {
    flipped: "flipped", worse: "good there, bad here", better: "bad there, good here", absent: "not asked there",
  };
  const SLUG = /^[a-z0-9-]+$/;
  const LETTERS = "bfpo_bench-letters";

  const field = (id) => document.getElementById(id);
  const root = field("viewer");
  const number = (value) => value.toLocaleString("en");

  function element(name, className, text) {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function button(text, action) {
    const made = element("button", "", text);
    made.type = "button";
    made.addEventListener("click", () => action(made));
    return made;
  }

  // -- data files ----------------------------------------------------------------------------------------------------

  const asked = [];
  const reading = new Map();

  addEventListener("message", (event) => {
    for (const [frame, job] of reading) {
      if (event.source === frame.contentWindow && typeof event.data === "string") {
        end(frame, () => job.resolve(JSON.parse(event.data)));
        return;
      }
    }
  });

  function end(frame, finish) {
    const job = reading.get(frame);
    if (job === undefined) return;
    reading.delete(frame);
    frame.remove();
    start();
    try {
      finish();
    } catch (error) {
      job.reject(new Error(`${job.path} cannot be read: ${error.message}`));
    }
  }

  function start() {
    while (reading.size < READERS && asked.length > 0) {
      // The latest first: what a reader has just asked for goes before a search.
      const job = asked.pop();
      const frame = document.createElement("iframe");
      frame.sandbox = "allow-scripts";
      frame.hidden = true;
      frame.title = "data";
      frame.src = job.path;
      const lost = () => job.reject(new Error(`${job.path} is not beside this page, or its server forbids frames.`));
      frame.addEventListener("load", () => setTimeout(() => end(frame, lost), 5000));
      reading.set(frame, job);
      document.body.append(frame);
    }
  }

  function read(path) {
    return new Promise((resolve, reject) => {
      asked.push({ path, resolve, reject });
      start();
    });
  }

  class Run {
    constructor(slug) {
      this.slug = slug;
      this.files = new Map();
    }

    list() {
      this.listed ??= read(`${this.slug}/list.html`).then((list) => {
        list.starts = [0];
        for (const count of list.files) list.starts.push(list.starts.at(-1) + count);
        list.index = [];
        for (const [first, count] of list.indices) for (let i = 0; i < count; i += 1) list.index.push(first + i);
        return list;
      });
      return this.listed;
    }

    // Where each id is: made when first asked for.
    async places() {
      const list = await this.list();
      list.places ??= new Map(list.ids.map((id, i) => [id, i]));
      return list.places;
    }

    static fileOf(list, i) {
      let low = 0;
      let high = list.files.length - 1;
      while (low < high) {
        const middle = (low + high + 1) >> 1;
        if (list.starts[middle] <= i) low = middle;
        else high = middle - 1;
      }
      return low;
    }

    // A search reads every file once: it takes what is kept, and keeps nothing.
    file(k, { keep = true } = {}) {
      const kept = this.files.get(k);
      if (kept !== undefined || !keep) return kept ?? read(`${this.slug}/${this.name(k)}`);
      const promise = read(`${this.slug}/${this.name(k)}`);
      this.files.set(k, promise);
      promise.catch(() => this.files.delete(k));
      if (this.files.size > KEPT) this.files.delete(this.files.keys().next().value);
      return promise;
    }

    name(k) {
      return `${String(k + 1).padStart(4, "0")}.html`;
    }

    async sample(i) {
      const list = await this.list();
      const k = Run.fileOf(list, i);
      return (await this.file(k))[i - list.starts[k]];
    }
  }

  // -- one sample ----------------------------------------------------------------------------------------------------

  function longText(text) {
    const box = element("div", "text");
    const shown = element("pre", "");
    box.append(shown);
    if (text.length <= CUT) {
      shown.textContent = text;
    } else {
      shown.textContent = `${text.slice(0, whole(text, CUT))}\u2026`;
      box.append(button(`show all ${number(text.length)} characters`, (self) => {
        shown.replaceChildren(...blocks(text));
        self.remove();
      }));
    }
    return box;
  }

  // Not between the halves of a surrogate pair.
  const whole = (text, end) => (/[\uD800-\uDBFF]/.test(text[end - 1]) ? end - 1 : end);

  // A browser lays out the blocks that are on the screen; one block of a million characters holds it up for seconds.
  function blocks(text) {
    const made = [];
    for (let from = 0; from < text.length;) {
      const line = text.lastIndexOf("\n", from + CUT) + 1;
      const to = from + CUT >= text.length ? text.length : line > from ? line : whole(text, from + CUT);
      made.push(element("div", "block", text.slice(from, to)));
      from = to;
    }
    return made;
  }

  function folded(title, text) {
    const details = element("details", "");
    details.append(element("summary", "", title), longText(text));
    return details;
  }

  function part(title, content) {
    const box = element("div", "part");
    box.append(element("h4", "", title), content);
    return box;
  }

  function choices(record) {
    const table = element("table", "choices");
    const head = table.createTHead().insertRow();
    for (const title of ["Choice", "Log-probability", "Note"]) {
      const cell = element("th", title === "Log-probability" ? "number" : "", title);
      cell.scope = "col";
      head.append(cell);
    }
    const body = table.createTBody();
    for (const choice of record.choices) {
      const row = body.insertRow();
      row.className = choice.gold ? "gold" : "";
      row.append(element("td", "choice", choice.text));
      row.append(element("td", "number", choice.logprob === null ? "\u2013" : choice.logprob.toFixed(3)));
      const notes = [choice.gold && "right", choice.likeliest && "likeliest"].filter(Boolean);
      row.append(element("td", "", notes.join(", ")));
    }
    const scroll = element("div", "scroll");
    scroll.tabIndex = 0;
    scroll.setAttribute("role", "region");
    scroll.setAttribute("aria-label", "Choices");
    scroll.append(table);
    return scroll;
  }

  // 1 only for a whole 1, 0 only for nothing.
  function scoreWords(score) {
    const rounded = score === 0 || score === 1 ? score : Math.min(0.999, Math.max(0.001, score));
    return `score ${Number(rounded.toFixed(3))}`;
  }

  function verdictWords(verdict) {
    if (verdict.score !== null) return scoreWords(verdict.score);
    return verdict.label ?? `unscored (${verdict.unscored})`;
  }

  function verdict(item) {
    const box = element("div", "verdict");
    const line = element("p", "");
    line.append(element("strong", "", item.judge), ` ${verdictWords(item)} `, element("span", "small", `version ${item.version}`));
    box.append(line);
    const metrics = Object.entries(item.metrics).map(([name, value]) => `${name} ${value}`);
    if (metrics.length > 0) box.append(longText(metrics.join("\n")));
    if (item.detail) box.append(longText(item.detail));
    if (item.raw) box.append(folded("the judge's reply", item.raw));
    return box;
  }

  function question(record) {
    return record.prompt.map((message) => part(message.role === "prompt" ? "Prompt" : message.role, longText(message.text)));
  }

  function answer(record) {
    const parts = [];
    if (record.choices) parts.push(part("Choices", choices(record)));
    if (record.reference !== undefined) parts.push(part("Reference", longText(record.reference)));
    if (record.thinking !== undefined) parts.push(part("Thinking", folded("not judged; show", record.thinking)));
    if (record.answer !== undefined) parts.push(part("Answer", longText(record.answer)));
    else if (record.marks.includes("empty")) parts.push(part("Answer", element("p", "small", "empty")));
    if (record.failure) parts.push(part("No answer", longText([record.failure, record.detail].filter(Boolean).join(": "))));
    if (record.verdicts) {
      const box = element("div", "");
      box.append(...record.verdicts.map(verdict));
      parts.push(part("Verdicts", box));
    }
    return parts;
  }

  // The first mark is the outcome, and what that is worth depends on the task's axis.
  function tone(kind, mark, i) {
    if (i === 0 && typeof kind.passed === "boolean") return kind.passed ? "good" : "bad";
    if (i === 0 && mark.includes("score")) return "";
    return mark === "no answer" || mark === "not run" ? "bad" : "warn";
  }

  function tags(kind, score) {
    return kind.marks.map((mark, i) => {
      const words = i === 0 && score !== undefined ? scoreWords(score) : mark;
      return element("span", `tag ${tone(kind, mark, i)}`.trim(), words);
    });
  }

  // -- what is asked for ---------------------------------------------------------------------------------------------

  const mine = new Run(root.dataset.run);
  const NOTHING = { sample: "", task: "", category: "", mark: "", also: "", text: "", against: "", flip: "" };
  const state = { ...NOTHING };
  let list;
  let runs = { groups: [], runs: [] };
  // The run to compare with: its list, and for each sample of ours its place there.
  let other = null;
  let shown = [];
  let active = -1;

  function fromAddress() {
    const told = new URLSearchParams(location.hash.slice(1));
    if (![...told.keys()].some((key) => Object.hasOwn(NOTHING, key))) return false;
    for (const key of Object.keys(NOTHING)) state[key] = told.get(key) ?? "";
    // The others are looked up among what there is.
    state.also = state.also.split(",").filter((mark) => Object.hasOwn(ALSO, mark)).join(",");
    if (!SLUG.test(state.against) || state.against === mine.slug) state.against = state.flip = "";
    return true;
  }

  let writing = 0;
  function toAddress() {
    clearTimeout(writing);
    // Browsers limit how often an address may change, and a key that is held down would exceed that.
    writing = setTimeout(() => {
      const told = new URLSearchParams(Object.entries(state).filter(([, value]) => value !== "")).toString();
      history.replaceState(null, "", told === "" ? location.pathname + location.search : `#${told}`);
    }, 250);
  }

  // -- filters -------------------------------------------------------------------------------------------------------

  function offer(id, all, values) {
    const options = [["", all], ...values].map(([value, words]) => {
      const option = element("option", "", words);
      option.value = value;
      return option;
    });
    field(id).replaceChildren(...options);
  }

  const counted = (words, count) => `${words} (${number(count)})`;

  function offerAll() {
    const tasks = list.tasks.map(() => 0);
    for (const task of list.task) tasks[task] += 1;
    offer("task", "all", list.tasks.map(({ name }, i) => [name, counted(name, tasks[i])]));
    if (!list.tasks.some(({ name }) => name === state.task)) state.task = "";
    offerWithin();
  }

  // Categories and outcomes of the chosen task.
  function offerWithin() {
    const task = list.tasks.findIndex(({ name }) => name === state.task);
    const categories = list.categories.map(() => 0);
    const kinds = list.kinds.map(() => 0);
    for (let i = 0; i < list.task.length; i += 1) {
      if (task !== -1 && list.task[i] !== task) continue;
      if (list.category[i] !== -1) categories[list.category[i]] += 1;
      kinds[list.kind[i]] += 1;
    }
    const some = list.categories.map((name, i) => [name, categories[i]]).filter(([, count]) => count > 0);
    offer("category", "all", some.map(([name, count]) => [name, counted(name, count)]));
    field("category").parentElement.hidden = list.categories.length === 0;
    const having = (test) => list.kinds.reduce((sum, kind, i) => sum + (test(kind.marks) ? kinds[i] : 0), 0);
    const outcomes = OUTCOMES.map((mark) => [mark, having((marks) => marks[0] === mark)]).filter(([, count]) => count > 0);
    offer("mark", "all", outcomes.map(([mark, count]) => [mark, counted(mark, count)]));
    if (!some.some(([name]) => name === state.category)) state.category = "";
    if (!outcomes.some(([mark]) => mark === state.mark)) state.mark = "";
    const chosen = new Set(state.also.split(","));
    field("also").replaceChildren(...Object.entries(ALSO).flatMap(([mark, words]) => {
      const count = having((marks) => marks.includes(mark));
      if (count === 0 && !chosen.has(mark)) return [];
      const made = button(counted(words, count), (self) => {
        const pressed = self.getAttribute("aria-pressed") !== "true";
        self.setAttribute("aria-pressed", String(pressed));
        const now = new Set(state.also.split(",").filter(Boolean));
        if (pressed) now.add(mark);
        else now.delete(mark);
        state.also = Object.keys(ALSO).filter((name) => now.has(name)).join(",");
        refresh();
      });
      made.setAttribute("aria-pressed", String(chosen.has(mark)));
      return [made];
    }));
  }

  function toFields() {
    for (const id of ["task", "category", "mark", "text", "against", "flip"]) field(id).value = state[id];
  }

  const WORTH = (passed) => (passed === true ? 1 : passed === false ? 0 : -1);

  function flipsOf(i) {
    const j = other.places[i];
    if (j === -1) return ["absent"];
    const [before, now] = [WORTH(other.list.kinds[other.list.kind[j]].passed), WORTH(list.kinds[list.kind[i]].passed)];
    if (before === -1 || now === -1 || before === now) return [];
    return ["flipped", now === 1 ? "better" : "worse"];
  }

  function matching() {
    const task = list.tasks.findIndex(({ name }) => name === state.task);
    const category = list.categories.indexOf(state.category);
    const also = state.also.split(",").filter(Boolean);
    const kinds = list.kinds.map(({ marks }) =>
      (state.mark === "" || marks[0] === state.mark) && also.every((mark) => marks.includes(mark)));
    const found = [];
    for (let i = 0; i < list.ids.length; i += 1) {
      if (!kinds[list.kind[i]]) continue;
      if (state.task !== "" && list.task[i] !== task) continue;
      if (state.category !== "" && list.category[i] !== category) continue;
      if (other !== null && state.flip !== "" && !flipsOf(i).includes(state.flip)) continue;
      found.push(i);
    }
    return found;
  }

  function contains(record, words) {
    const parts = [record.answer, record.thinking, record.reference, record.category, record.id, ...record.prompt.map((m) => m.text)];
    for (const choice of record.choices ?? []) parts.push(choice.text);
    for (const item of record.verdicts ?? []) parts.push(item.detail, item.raw);
    return parts.some((text) => text !== undefined && text.toLowerCase().includes(words));
  }

  let searching = 0;

  // File after file, the next ones on their way meanwhile; what is found is shown as it comes.
  async function search(candidates, words) {
    const turn = searching;
    const files = [...Map.groupBy(candidates, (i) => Run.fileOf(list, i))];
    const ahead = [];
    const found = [];
    let told = performance.now();
    for (let k = 0; k < files.length; k += 1) {
      while (ahead.length < READERS && k + ahead.length < files.length) {
        const promise = mine.file(files[k + ahead.length][0], { keep: false });
        promise.catch(() => {});
        ahead.push(promise);
      }
      const records = await ahead.shift();
      if (turn !== searching) return;
      const [file, indices] = files[k];
      for (const i of indices) if (contains(records[i - list.starts[file]], words)) found.push(i);
      field("progress").value = (k + 1) / files.length;
      if (performance.now() - told > 200) {
        told = performance.now();
        show(found, { more: `${number(found.length)} found, ${Math.floor((100 * (k + 1)) / files.length)} % searched` });
      }
    }
    field("progress").hidden = true;
    show(found);
  }

  function refresh() {
    searching += 1;
    toAddress();
    const words = state.text.trim().toLowerCase();
    const found = matching();
    field("progress").hidden = words === "";
    if (words === "") {
      show(found);
      return;
    }
    field("progress").value = 0;
    show([], { more: "Searching \u2026" });
    search(found, words).catch((error) => {
      field("progress").hidden = true;
      field("shown").setAttribute("aria-busy", "false");
      field("shown").textContent = error.message;
    });
  }

  // -- the list ------------------------------------------------------------------------------------------------------

  const drawn = new Map();

  function show(found, { more } = {}) {
    const grown = shown.length > 0 && found.length >= shown.length && shown.every((i, place) => found[place] === i);
    shown = found.slice(0, MOST);
    const all = number(list.ids.length);
    const cut = found.length > MOST ? `; the first ${number(MOST)} are listed` : "";
    field("shown").textContent = more ?? (found.length === 0 ? `None of ${all} samples.` : `${number(found.length)} of ${all} samples${cut}`);
    // What changes five times a second is not read out before it rests.
    field("shown").setAttribute("aria-busy", String(more !== undefined));
    field("rows").style.height = `${shown.length * ROW}px`;
    active = state.sample === "" ? -1 : shown.findIndex((i) => list.ids[i] === state.sample);
    if (!grown) {
      field("list").scrollTop = active === -1 ? 0 : active * ROW - field("list").clientHeight / 2;
      for (const row of drawn.values()) row.remove();
      drawn.clear();
    }
    for (const row of drawn.values()) row.setAttribute("aria-setsize", String(shown.length));
    draw();
  }

  function draw() {
    const { scrollTop, clientHeight } = field("list");
    const from = Math.max(0, Math.floor(scrollTop / ROW) - AROUND);
    const to = Math.min(shown.length, Math.ceil((scrollTop + clientHeight) / ROW) + AROUND);
    for (const [place, row] of drawn) {
      if (place >= from && place < to) continue;
      row.remove();
      drawn.delete(place);
    }
    const made = [];
    for (let place = from; place < to; place += 1) if (!drawn.has(place)) made.push(rowOf(place));
    field("rows").append(...made);
    const row = drawn.get(active);
    if (row === undefined) field("list").removeAttribute("aria-activedescendant");
    else field("list").setAttribute("aria-activedescendant", row.id);
    if (made.length > 0) fillSoon();
  }

  function rowOf(place) {
    const i = shown[place];
    const row = element("div", "row");
    row.id = `row-${i}`;
    row.setAttribute("role", "option");
    row.setAttribute("aria-setsize", String(shown.length));
    row.setAttribute("aria-posinset", String(place + 1));
    row.setAttribute("aria-selected", String(place === active));
    row.style.transform = `translateY(${place * ROW}px)`;
    row.dataset.place = String(place);
    const head = element("div", "");
    head.append(element("strong", "", nameOf(i)), ...tags(list.kinds[list.kind[i]]));
    row.append(head, element("p", "", categoryOf(i)));
    drawn.set(place, row);
    return row;
  }

  // A prompt that was asked several times has several samples.
  const again = (record) => record.repeat !== undefined && `answer ${record.repeat + 1} to this prompt`;
  const nameOf = (i) => `${list.tasks[list.task[i]].name} #${list.index[i]}`;
  const categoryOf = (i) => list.categories[list.category[i]] ?? "";

  // Once the list rests: the first words of each prompt, and scores as numbers.
  let filling = 0;
  function fillSoon() {
    clearTimeout(filling);
    filling = setTimeout(() => {
      for (const [place, row] of drawn) if (!row.dataset.filled) fill(row, shown[place]);
    }, 120);
  }

  async function fill(row, i) {
    row.dataset.filled = "yes";
    let record;
    try {
      record = await mine.sample(i);
    } catch {
      // Opened, the sample says so.
      return;
    }
    if (!row.isConnected) return;
    const kind = list.kinds[list.kind[i]];
    if (record.score !== undefined) {
      for (const tag of row.querySelectorAll(".tag")) tag.remove();
      row.firstChild.append(...tags(kind, record.score));
    }
    const closed = kind.hidden && !field("reveal").checked;
    const words = closed ? "hidden" : record.prompt.at(-1).text.slice(0, 300).replace(/\s+/g, " ");
    row.lastChild.textContent = [categoryOf(i), again(record), words].filter(Boolean).join(" \u00b7 ");
  }

  let awaited = 0;
  field("list").addEventListener("scroll", () => {
    if (awaited === 0) {
      awaited = requestAnimationFrame(() => {
        awaited = 0;
        draw();
      });
    }
  });

  field("rows").addEventListener("click", (event) => {
    const row = event.target.closest(".row");
    if (row === null) return;
    select(Number(row.dataset.place));
    // Where the sample is below the list and not beside it.
    if (matchMedia("(max-width: 60rem)").matches) field("detail").scrollIntoView();
  });

  function select(place) {
    if (shown.length === 0) return;
    drawn.get(active)?.setAttribute("aria-selected", "false");
    active = Math.min(shown.length - 1, Math.max(0, place));
    const box = field("list");
    if (active * ROW < box.scrollTop) box.scrollTop = active * ROW;
    if ((active + 1) * ROW > box.scrollTop + box.clientHeight) box.scrollTop = (active + 1) * ROW - box.clientHeight;
    state.sample = list.ids[shown[active]];
    draw();
    drawn.get(active)?.setAttribute("aria-selected", "true");
    toAddress();
    open();
  }

  // -- the open sample -----------------------------------------------------------------------------------------------

  let opening = 0;

  async function open() {
    opening += 1;
    const turn = opening;
    const detail = field("detail");
    const waiting = setTimeout(() => detail.replaceChildren(element("p", "small", "Reading \u2026")), 250);
    let parts;
    try {
      parts = await detailOf(state.sample);
    } catch (error) {
      parts = [element("p", "", error.message)];
    }
    clearTimeout(waiting);
    if (turn === opening) {
      detail.replaceChildren(...parts);
      detail.scrollTop = 0;
    }
  }

  async function detailOf(id) {
    if (id === "") return [element("p", "small", "Choose a sample of the list.")];
    const i = (await mine.places()).get(id);
    if (i === undefined) return [element("p", "", `There is no sample ${id} in this run.`)];
    const record = await mine.sample(i);
    const j = other === null ? -1 : other.places[i];
    const theirs = j === -1 ? undefined : await other.run.sample(j);
    const kind = list.kinds[list.kind[i]];

    const head = element("div", "sample-head");
    head.append(element("h3", "", nameOf(i)), ...tags(kind, record.score));
    const facts = [record.category, again(record), record.tokens !== undefined && `${number(record.tokens)} tokens`];
    head.append(element("span", "small", facts.filter(Boolean).join(" \u00b7 ")));
    const link = element("a", "small", "link to this sample");
    link.href = `#sample=${encodeURIComponent(id)}`;
    head.append(link);

    const texts = () => [...question(record), ...answer(record), ...there(id, j, theirs)];
    if (!kind.hidden && !theirs?.hidden) return [head, ...texts()];
    // Built when asked for, so that neither the eye nor the browser's own search meets it before.
    const box = element("div", "");
    const toggle = button("", () => turn(box.childElementCount === 0));
    function turn(opened) {
      box.replaceChildren(...(opened ? texts() : []));
      toggle.textContent = opened ? "hide" : "show text that may be harmful";
      toggle.setAttribute("aria-expanded", String(opened));
    }
    toggle.className = "reveal";
    turn(field("reveal").checked);
    return [head, toggle, box];
  }

  function there(id, j, record) {
    if (record === undefined) return [];
    const box = element("div", "there");
    const head = element("div", "sample-head");
    head.append(element("h3", "", `In ${other.list.label}`), ...tags(other.list.kinds[other.list.kind[j]], record.score));
    const link = element("a", "small", "open it there");
    link.href = `${other.run.slug}.html#sample=${encodeURIComponent(id)}`;
    head.append(link);
    box.append(head, ...answer(record));
    return [box];
  }

  // -- another run ---------------------------------------------------------------------------------------------------

  function offerRuns() {
    const others = runs.runs.filter(({ slug }) => slug !== mine.slug && SLUG.test(slug));
    const own = runs.runs.find(({ slug }) => slug === mine.slug)?.group;
    const select = field("against");
    select.replaceChildren(select.firstElementChild);
    const option = ({ slug, label }) => {
      const made = element("option", "", slug === root.dataset.base ? `${label} (trained from)` : label);
      made.value = slug;
      return made;
    };
    // The base first, then the runs of the same group, then the others by theirs.
    const base = others.filter(({ slug }) => slug === root.dataset.base);
    select.append(...base.map(option));
    const order = [...runs.groups.keys()].sort((a, b) => (b === own) - (a === own));
    for (const group of order) {
      const members = others.filter((run) => run.group === group && !base.includes(run));
      if (members.length === 0) continue;
      const box = element("optgroup", "");
      box.label = group === own ? "the same tasks and judges" : runs.groups[group];
      box.append(...members.map(option));
      select.append(box);
    }
    field("compared").hidden = others.length === 0;
  }

  async function compare() {
    const slug = state.against;
    if (slug === "" || !runs.runs.some((run) => run.slug === slug)) {
      other = null;
      state.against = state.flip = "";
    } else if (other?.run.slug !== slug) {
      const run = new Run(slug);
      const [theirs, places] = await Promise.all([run.list(), run.places()]);
      if (state.against !== slug) return;
      other = { run, list: theirs, places: Int32Array.from(list.ids, (id) => places.get(id) ?? -1) };
    }
    field("changes").hidden = other === null;
    field("unlike").hidden = true;
    if (other === null) return;
    const counts = Object.fromEntries(Object.keys(FLIPS).map((flip) => [flip, 0]));
    for (let i = 0; i < list.ids.length; i += 1) for (const flip of flipsOf(i)) counts[flip] += 1;
    offer("flip", "any", Object.entries(FLIPS).map(([flip, words]) => [flip, counted(words, counts[flip])]));
    if (!Object.hasOwn(FLIPS, state.flip)) state.flip = "";
    warn();
  }

  function warn() {
    const judges = new Map(other.list.tasks.map(({ name, judge }) => [name, judge]));
    const unlike = list.tasks.filter(({ name, judge }) => judges.has(name) && judges.get(name) !== judge);
    if (unlike.length === 0) return;
    const some = unlike.slice(0, 3).map(({ name, judge }) => `${name} (${judges.get(name) || "no judge"} there, ${judge || "no judge"} here)`);
    const more = unlike.length > 3 ? `, and ${unlike.length - 3} more` : "";
    field("unlike").textContent = `Not the same judge: ${some.join(", ")}${more}. A flip may be the judges' doing.`;
    field("unlike").hidden = false;
  }

  async function compareAndShow() {
    try {
      await compare();
    } catch (error) {
      other = null;
      state.against = state.flip = "";
      field("unlike").textContent = error.message;
      field("unlike").hidden = false;
    }
    toFields();
    refresh();
    open();
  }

  // -- what a reader does --------------------------------------------------------------------------------------------

  for (const id of ["category", "mark", "flip"]) {
    field(id).addEventListener("change", () => {
      state[id] = field(id).value;
      refresh();
    });
  }
  field("task").addEventListener("change", () => {
    state.task = field("task").value;
    offerWithin();
    toFields();
    refresh();
  });
  field("against").addEventListener("change", () => {
    state.against = field("against").value;
    compareAndShow();
  });
  field("reveal").addEventListener("change", () => {
    for (const row of drawn.values()) delete row.dataset.filled;
    fillSoon();
    open();
  });
  let typing = 0;
  field("text").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => {
      state.text = field("text").value;
      refresh();
    }, 200);
  });
  field("filters").addEventListener("submit", (event) => event.preventDefault());

  const PAGE = () => Math.max(1, Math.floor(field("list").clientHeight / ROW) - 1);
  const MOVES = {
    ArrowDown: () => active + 1, ArrowUp: () => active - 1, PageDown: () => active + PAGE(), PageUp: () => active - PAGE(),
    Home: () => 0, End: () => shown.length - 1,
  };
  field("list").addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in MOVES) select(MOVES[event.key]());
    else if (event.key === "Enter") field("detail").focus();
    else return;
    event.preventDefault();
  });

  const letters = {
    j: () => move(1),
    k: () => move(-1),
    r: () => field("detail").querySelector(".reveal")?.click(),
    "/": () => field("text").focus(),
    "?": () => field("help").showModal(),
  };

  function move(by) {
    if (!field("detail").contains(document.activeElement)) field("list").focus({ preventScroll: true });
    field("list").scrollIntoView({ block: "nearest" });
    select(active + by);
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || field("help").open || list === undefined) return;
    if (event.key === "Escape") {
      if (root.contains(event.target)) field("list").focus();
      return;
    }
    if (event.target.closest("input, select, textarea") || !field("letters").checked || !(event.key in letters)) return;
    letters[event.key]();
    event.preventDefault();
  });
  field("keys").addEventListener("click", () => field("help").showModal());
  // A page opened as a file may be refused storage; then the choice lasts as long as the page.
  try {
    field("letters").checked = localStorage.getItem(LETTERS) !== "off";
  } catch {}
  field("letters").addEventListener("change", () => {
    try {
      localStorage.setItem(LETTERS, field("letters").checked ? "on" : "off");
    } catch {}
  });

  addEventListener("hashchange", async () => {
    if (list === undefined || !fromAddress()) return;
    offerAll();
    await compareAndShow();
  });

  async function begin() {
    field("needs").textContent = "Reading the list of samples \u2026";
    try {
      list = await mine.list();
    } catch (error) {
      field("needs").textContent = error.message;
      return;
    }
    const told = fromAddress();
    field("needs").hidden = true;
    for (const part of [field("filters"), ...root.querySelectorAll(".told, .panes")]) part.hidden = false;
    offerAll();
    toFields();
    if (state.against === "") {
      refresh();
      if (state.sample !== "") open();
    }
    if (told) root.scrollIntoView();
    try {
      runs = await read("all.runs/list.html");
      offerRuns();
    } catch {
      // Without the others' list there is nothing to compare with, and all else works.
    }
    if (state.against !== "") await compareAndShow();
  }

  begin();
})();
