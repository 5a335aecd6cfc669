"use strict";
// The table of predictions: sorted by a column, filtered by text and by correctness, in pages. Data
// is inserted as text, never as HTML.
for (const box of document.querySelectorAll(".predictions")) {
  const { columns, rows, verdicts } = JSON.parse(box.querySelector("script").textContent);
  const PAGE = 100;
  const texts = rows.map((row) => row.filter((v) => v !== null).join("\n").toLowerCase());
  let order = rows.map((_, i) => i);
  let sorted = null, descending = false, first = 0;

  const make = (tag, fields = {}, ...inside) => {
    const element = Object.assign(document.createElement(tag), fields);
    element.append(...inside);
    return element;
  };
  const search = make("input", { type: "search", autocomplete: "off" });
  const kinds = [["", "all"], ["right", "correct"], ["partly", "partly correct"], ["wrong", "wrong"]];
  const kind = make("select", {}, ...kinds.map(([value, text]) => new Option(text, value)));
  const status = make("span", { className: "note" });
  status.setAttribute("role", "status");
  const heads = columns.map((name, c) => {
    const head = make("th", { scope: "col" });
    const button = make("button", { type: "button" }, name);
    button.addEventListener("click", () => {
      descending = sorted === c ? !descending : false;
      sorted = c;
      first = 0;
      sort();
      show();
    });
    head.append(button);
    return head;
  });
  const body = make("tbody");
  const table = make("table", { className: "all" }, make("thead", {}, make("tr", {}, ...heads)), body);
  const before = make("button", { type: "button" }, "Previous");
  const after = make("button", { type: "button" }, "Next");

  function sort() {
    const rank = (i) => rows[i][sorted];
    const sign = descending ? -1 : 1;
    order.sort((a, b) => {
      const x = rank(a), y = rank(b);
      if (x === null || y === null) return (x === null) - (y === null) || a - b;
      const numbers = typeof x === "number" && typeof y === "number";
      const by = numbers ? x - y : String(x).localeCompare(String(y));
      return sign * by || a - b;
    });
    heads.forEach((head, c) => {
      if (c === sorted) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
  }

  function cell(value, c) {
    const short = typeof value === "number";
    const text = value === null ? "" : short ? String(Number(value.toPrecision(4))) : value;
    const element = make("td", { className: short ? "short" : "" }, make("bdi", {}, text));
    element.dataset.label = columns[c];
    return element;
  }

  function show() {
    const wanted = search.value.toLowerCase();
    const matching = order.filter(
      (i) => (!kind.value || verdicts[i] === kind.value) && texts[i].includes(wanted));
    const shown = matching.slice(first, first + PAGE);
    body.replaceChildren(
      ...shown.map((i) => make("tr", { className: verdicts[i] }, ...rows[i].map(cell))));
    const from = shown.length ? first + 1 : 0;
    status.textContent = `${from} to ${first + shown.length} of ${matching.length}`;
    before.disabled = first === 0;
    after.disabled = first + PAGE >= matching.length;
  }

  const turn = (by) => () => { first += by; show(); table.scrollIntoView(); };
  before.addEventListener("click", turn(-PAGE));
  after.addEventListener("click", turn(PAGE));
  for (const input of [search, kind]) {
    input.addEventListener("input", () => { first = 0; show(); });
  }
  const scored = verdicts.some((verdict) => verdict !== "none");
  const filters = make("div", { className: "filters" }, make("label", {}, "Search", search));
  if (scored) filters.append(make("label", {}, "Show", kind));
  box.append(filters, table, make("div", { className: "pages" }, before, after, status));
  show();
}
