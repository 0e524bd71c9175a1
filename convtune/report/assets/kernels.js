// Kernels: the instructions of their assembly, their loop nests, and two of them side by side.
const KIND_NOTES = { "multiply-add": "what is loaded by the same instruction included", scalar: "addresses, counters, checks of arguments" };

/** A table of instructions by kind. sides: {title: mix or null}. */
function mixTable(sides) {
  const known = Object.entries(sides).filter(([, mix]) => mix);
  if (!known.length) return null;
  const kinds = Object.keys(known[0][1].kinds);
  const line = (title, value, note = null) => el("tr", {}, el("td", { class: "left", title: note }, title), ...known.map(([, mix]) => el("td", {}, String(value(mix)))));
  const lines = [
    line("instructions", (mix) => mix.instructions),
    ...kinds.filter((kind) => known.some(([, mix]) => mix.kinds[kind])).map((kind) => line(kind, (mix) => mix.kinds[kind], KIND_NOTES[kind] ?? null)),
    line("vector registers used", (mix) => mix.vector_registers),
    line("vectors put on the stack", (mix) => mix.stack_stores, "spills, and arrays that are not in registers"),
    line("vectors taken from the stack", (mix) => mix.stack_loads),
  ];
  const head = el("tr", {}, ...["", ...known.map(([title]) => title)].map((title, n) => el("th", { scope: "col", class: n ? null : "left" }, title)));
  return el("div", { class: "scroll narrow" }, el("table", { class: "mix" }, el("thead", {}, head), el("tbody", {}, ...lines)));
}

const bytesText = (count) => (count < 1024 ? `${count} B` : count < 2 ** 20 ? `${(count / 2 ** 10).toFixed(1)} KiB` : `${(count / 2 ** 20).toFixed(1)} MiB`);
const TRAFFIC = { l1_bytes: "into the L1 caches", l2_bytes: "into the L2 caches", l3_bytes: "from memory" };

/** Instructions executed in emulation by kind, and the bytes that a model of the caches says are moved. sides: {title: counts or null}. */
function countsTable(sides) {
  const known = Object.entries(sides).filter(([, counts]) => counts);
  const kinds = [...new Set(known.flatMap(([, counts]) => Object.keys(counts)))].filter((kind) => !kind.endsWith("_bytes"));
  const sum = (counts) => kinds.reduce((total, kind) => total + (counts[kind] ?? 0), 0);
  const share = (counts, kind) => `${(counts[kind] ?? 0).toLocaleString("en")} (${percent((counts[kind] ?? 0) / Math.max(sum(counts), 1))})`;
  const line = (title, value) => el("tr", {}, el("td", { class: "left" }, title), ...known.map(([, counts]) => el("td", {}, value(counts))));
  const lines = [
    ...kinds.map((kind) => line(kind.replaceAll("_", " "), (counts) => share(counts, kind))),
    ...Object.entries(TRAFFIC).filter(([name]) => known.some(([, counts]) => name in counts)).map(([name, title]) => line(`${title}, by the model`, (counts) => bytesText(counts[name] ?? 0))),
  ];
  const head = el("tr", {}, ...["executed in emulation", ...known.map(([title]) => title)].map((title, n) => el("th", { scope: "col", class: n ? null : "left" }, title)));
  return el("div", { class: "scroll narrow" }, el("table", { class: "mix counts" }, el("thead", {}, head), el("tbody", {}, ...lines)));
}

const kernelMix = ({ instructions }) => (instructions ? mixTable({ "in the whole kernel": instructions.kernel, "in its busiest innermost loop": instructions.loop }) : null);

/** What a call moves by the cache model. sides: {title: traffic or null}. */
function trafficTable(sides) {
  const known = Object.entries(sides).filter(([, traffic]) => traffic);
  if (!known.length) return null;
  const lines = Object.entries(TRAFFIC).map(([name, title]) => el("tr", {}, el("td", { class: "left" }, title), ...known.map(([, traffic]) => el("td", {}, bytesText(Math.round(traffic[name]))))));
  const head = el("tr", {}, ...["fetched in a call", ...known.map(([title]) => title)].map((title, n) => el("th", { scope: "col", class: n ? null : "left" }, title)));
  return el("div", {}, el("p", { class: "small faint" }, "What an analytic model of the caches says, from the loop nest; not measured."),
    el("div", { class: "scroll narrow" }, el("table", { class: "mix traffic" }, el("thead", {}, head), el("tbody", {}, ...lines))));
}

function kernelView(kernel) {
  const { script, why, left_out: leftOut } = kernel;
  const cut = leftOut ? `\n… ${plural(leftOut, "further line")}` : "";
  return el("div", {},
    el("h3", {}, "The winner's kernel"),
    why ? el("p", { class: "notice" }, `Not shown whole: ${why}.`) : null,
    kernelMix(kernel),
    kernel.traffic ? el("h3", {}, "Cache model") : null, trafficTable({ "the winner": kernel.traffic }), noTraffic(kernel, ""),
    script ? el("details", {}, el("summary", {}, "Its loop nest as TVM script"), el("pre", { tabindex: "0" }, script + cut)) : null);
}

const noTraffic = (kernel, side) => (kernel.no_traffic ? el("p", { class: "notice" }, `No cache model${side}: ${kernel.no_traffic}.`) : null);

function differenceView({ a, b, diff }) {
  const why = [["A", a.why], ["B", b.why]].filter(([, text]) => text).map(([side, text]) => el("p", { class: "notice" }, `${side} could not be built: ${text}.`));
  const loops = mixTable({ "A's busiest loop": a.instructions?.loop, "B's busiest loop": b.instructions?.loop, "A's kernel": a.instructions?.kernel, "B's kernel": b.instructions?.kernel });
  const classes = { "-": "removed", "+": "added", "~": "changed" };
  const rows = diff.map(([mark, left, right]) => (mark === "…"
    ? el("tr", {}, el("td", { class: "left faint", colspan: "2" }, "…"))
    : el("tr", { class: classes[mark] ?? null }, ...[left, right].map((text) => el("td", { class: "left code" }, text ?? "")))));
  const head = el("tr", {}, ...["A", "B"].map((side) => el("th", { class: "left", scope: "col" }, side)));
  const table = diff.length ? el("div", { class: "scroll tall", tabindex: "0" }, el("table", { class: "diff" }, el("thead", {}, head), el("tbody", {}, ...rows))) : null;
  const traffic = trafficTable({ A: a.traffic, B: b.traffic });
  return el("div", {}, ...why, ...(loops ? [el("h3", {}, "Instructions"), loops] : []), ...(traffic ? [el("h3", {}, "Cache model"), traffic] : []), noTraffic(a, " of A"), noTraffic(b, " of B"), ...(table ? [el("h3", {}, "Loop nests"), table] : []));
}
