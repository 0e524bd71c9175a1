// A table that a reader can sort, filter and download.
const MOST_ROWS = 500; // drawn at once; the others on demand

/**
 * columns: {title, value(row), text(row), left, kind(row), hint}. options: {href(row), words(row), pick, name, tools}.
 * pick: {title, value(row)} for a choice of rows besides the search.
 */
class Table {
  constructor(columns, rows, options) {
    Object.assign(this, { columns, rows, options, sorted: null, falling: false, all: false, current: null });
    this.search = el("input", { type: "search", placeholder: "filter: name, shape, space …", "aria-label": "filter the rows", oninput: () => this.draw() });
    this.picker = options.pick ? this.choices() : null;
    this.count = el("span", { class: "faint small", role: "status" });
    const save = el("button", { type: "button", onclick: () => this.save() }, "download CSV");
    this.body = el("tbody");
    this.headers = columns.map((column, n) => this.header(column, n));
    this.more = el("button", { type: "button", onclick: () => { this.all = true; this.draw(); } });
    const table = el("table", {}, el("thead", {}, el("tr", {}, ...this.headers)), this.body);
    const tools = [...(rows.length > 1 ? [this.search, this.picker] : []), this.count, save, ...(options.tools ?? [])];
    this.element = el("div", {}, el("div", { class: "tools" }, ...tools), el("div", { class: "scroll tall", tabindex: "0" }, table), this.more);
    this.draw();
  }

  header(column, n) {
    const sort = () => this.sortBy(n);
    const onkeydown = (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); sort(); }
    };
    return el("th", { scope: "col", tabindex: "0", class: column.left ? "left" : null, title: column.hint ?? null, onclick: sort, onkeydown }, column.title);
  }

  choices() {
    const values = [...new Set(this.rows.map(this.options.pick.value))].sort();
    const options = [el("option", { value: "" }, `all ${this.options.pick.title}s`), ...values.map((value) => el("option", { value }, value))];
    return values.length > 1 ? el("select", { "aria-label": this.options.pick.title, onchange: () => this.draw() }, ...options) : null;
  }

  sortBy(n) {
    // numbers are asked for from the largest, texts from the first
    this.falling = this.sorted === n ? !this.falling : !this.columns[n].left;
    this.sorted = n;
    this.headers.forEach((header, i) => {
      if (i === n) header.setAttribute("aria-sort", this.falling ? "descending" : "ascending");
      else header.removeAttribute("aria-sort");
    });
    this.draw();
  }

  chosen() {
    const words = this.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const picked = this.picker?.value ?? "";
    const found = this.rows.filter((row) => {
      if (picked && this.options.pick.value(row) !== picked) return false;
      const text = words.length ? this.options.words(row).toLowerCase() : "";
      return words.every((word) => text.includes(word));
    });
    if (this.sorted === null) return found;
    const { value } = this.columns[this.sorted];
    const missing = (v) => v === null || v === undefined;
    return found.sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (missing(x) || missing(y)) return missing(x) - missing(y); // what is not known comes last, either way
      const order = typeof x === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true });
      return this.falling ? -order : order;
    });
  }

  draw() {
    const rows = this.chosen();
    const shown = this.all ? rows : rows.slice(0, MOST_ROWS);
    this.body.replaceChildren(...shown.map((row) => this.row(row)));
    if (!rows.length) this.body.append(el("tr", {}, el("td", { class: "left faint", colspan: this.columns.length }, "nothing matches")));
    this.count.textContent = rows.length === this.rows.length ? plural(rows.length, this.options.noun) : `${rows.length} of ${plural(this.rows.length, this.options.noun)}`;
    this.more.hidden = shown.length === rows.length;
    this.more.textContent = `show all ${rows.length}`;
  }

  row(row) {
    const cells = this.columns.map((column, n) => {
      const text = column.text(row);
      const href = n === 0 ? this.options.href?.(row) : null;
      const classes = [column.left ? "left" : "", n === 0 ? "name" : "", column.kind?.(row) ?? ""].join(" ").trim();
      return el("td", { class: classes || null, title: n === 0 ? this.options.title?.(row) ?? null : null }, href ? el("a", { href }, text) : text);
    });
    return el("tr", { "aria-current": row === this.current ? "true" : null }, ...cells);
  }

  mark(row) {
    this.current = row;
    this.draw();
  }

  save() {
    const columns = [...this.columns, ...(this.options.more ?? [])];
    download(this.options.file, csv(columns.map((c) => c.csv ?? c.title), this.chosen().map((row) => columns.map((c) => c.value(row)))));
  }
}
