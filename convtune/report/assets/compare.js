// The comparison: of each target and origin a summary, the table of layers, their ratios; and one layer in detail.
const WORDS = { win: "win", loss: "loss", no_difference: "no difference" };
const verdictText = (verdict) => WORDS[verdict] ?? verdict;
const sideRank = (side) => side.us ?? side.cost;
const between = (r) => (r.lower === null ? NOTHING : `${r.lower.toFixed(2)} to ${r.upper.toFixed(2)}`);

function fact(title, value, note = null) {
  return el("div", {}, el("dt", {}, title), el("dd", {}, value, note ? el("small", {}, note) : null));
}

function facts(group) {
  const count = (verdict) => (group.verdicts[verdict] ?? 0).toLocaleString("en");
  const timed = hasTimes(group.origin);
  const failed = group.layers.filter((r) => [r.a.status, r.b.status].includes("failed")).length;
  const alone = ["a", "b"].map((side) => group.layers.filter((r) => r[side].status === "missing").length);
  return el("dl", { class: "facts" },
    fact("B wins", count("win"), timed ? "layers, beyond the spread" : "layers"),
    fact("B loses", count("loss"), timed ? "layers, beyond the spread" : "layers"),
    fact("no difference", count("no_difference"), timed ? "within the spread, or 2 %" : "equal costs"),
    fact("A over B", ratio(group.ratio_geometric_mean), "geometric mean; above 1, B is better"),
    fact("not compared", (failed + alone[0] + alone[1]).toLocaleString("en"), `${alone[1]} only in A, ${alone[0]} only in B, ${failed} failed`),
  );
}

function columns(group) {
  const { origin } = group;
  const unit = unitOf(group.layers.flatMap((r) => [sideRank(r.a), sideRank(r.b)]), origin);
  const side = (name) => ({ title: rankTitle(name.toUpperCase(), unit, origin), csv: rankField(name, origin), value: (r) => sideRank(r[name]), text: (r) => (r[name].status === "ok" ? rankNumber(sideRank(r[name]), unit) : r[name].status), kind: () => "time" });
  const interval = { title: "95 % interval", csv: "lower", value: (r) => r.lower, text: between, hint: "of the ratio of the medians" };
  return [
    { title: "layer", value: (r) => r.name, text: (r) => r.name, left: true },
    side("a"), side("b"),
    { title: "A/B", csv: "ratio", value: (r) => r.ratio, text: (r) => ratio(r.ratio), hint: "above 1, B is better" },
    ...(hasTimes(origin) ? [interval] : []),
    { title: "B", csv: "verdict", value: (r) => r.verdict, text: (r) => verdictText(r.verdict), left: true, kind: (r) => ({ win: "win", loss: "loss" })[r.verdict] ?? "" },
    { title: "what differs", csv: "differing", value: differingText, text: differingText, left: true, kind: () => "wrap" },
  ];
}

function differingText(row) {
  const entries = Object.entries(row.differing);
  const shown = row.differing.space ? entries.filter(([name]) => name === "space") : entries;
  return shown.map(([name, [a, b]]) => `${name === "space" ? "" : `${name} `}${a ?? NOTHING} → ${b ?? NOTHING}`).join(", ") || NOTHING;
}

function groupView(group) {
  const more = [{ title: "upper", value: (r) => r.upper }, { title: "spec", value: (r) => r.spec }, { title: "target", value: () => group.target.fingerprint }, { title: "origin", value: () => group.origin }];
  group.table = new Table(columns(group), group.layers, {
    noun: "layer", file: `comparison-${group.origin}.csv`, href: (r) => r.href, title: (r) => r.spec, more,
    words: (r) => [r.name, r.spec, r.variant, verdictText(r.verdict), differingText(r)].join(" "), pick: { title: "verdict", value: (r) => verdictText(r.verdict) },
  });
  group.detail = el("div", { class: "layer", hidden: "" });
  group.picture = el("div", { class: "picture roofline" });
  return el("section", { id: group.id, class: `of-${group.origin}` },
    el("h2", {}, group.target.name, " ", originBadge(group.origin)), el("p", { class: "faint" }, group.target.model), originNotice(group.origin),
    facts(group), el("h3", {}, "Layers"), group.table.element, el("h3", {}, "How much better B is"),
    el("p", { class: "small faint" }, `Each mark is a layer${hasTimes(group.origin) ? ", its line the 95 % interval" : ""}; above 1, B is better. Click one to see it below.`), group.picture, group.detail);
}

function ratiosSpec(group) {
  const rows = group.layers.filter((r) => r.ratio !== null).sort((a, b) => a.ratio - b.ratio);
  const values = rows.map((r, n) => ({ rank: n + 1, layer: r.name, ratio: r.ratio, lower: r.lower ?? r.ratio, upper: r.upper ?? r.ratio, B: verdictText(r.verdict), interval: between(r), href: r.href }));
  const domain = padded(values.flatMap((v) => [v.lower, v.upper, 1]), 1.1);
  const x = { field: "rank", type: "quantitative", title: "layers, by ratio", scale: { domain: [0, values.length + 1] }, axis: { grid: false, tickMinStep: 1, format: "d" } };
  if (values.length <= 20) x.axis.values = values.map((v) => v.rank);
  const y = { field: "ratio", type: "quantitative", ...logScaled(domain), title: `A's ${rankWord(group.origin)} over B's (${group.origin})` };
  const colour = { field: "B", type: "nominal", scale: { domain: Object.values(WORDS), range: ["var(--good)", "var(--bad)", "var(--faint)"] }, title: "B" };
  const tooltip = ["layer", "B", "interval"].map((field) => ({ field, type: "nominal" })).concat([{ field: "ratio", title: "A/B", format: ".3f" }]);
  return {
    height: 320,
    layer: [
      { data: { values: [{ ratio: 1 }] }, mark: { type: "rule", color: "var(--text)", strokeWidth: 1.2 }, encoding: { y } },
      { data: { values }, mark: { type: "rule", strokeWidth: 1.5, opacity: 0.6 }, encoding: { x, y: { ...y, field: "lower" }, y2: { field: "upper" }, color: colour } },
      { data: { values }, mark: { type: "point", ...MARKS[group.origin], size: 50, opacity: 0.95, cursor: "pointer" }, encoding: { x, y, color: colour, tooltip } },
    ],
  };
}

/** All repeats of both sides. */
function repeatsSpec(row, origin) {
  const timed = ["a", "b"].flatMap((side) => row[side].times_us.map((us, n) => ({ side: side.toUpperCase(), us, n: n + 1 })));
  const unit = unitOf(timed.map((p) => p.us), origin);
  const values = timed.map((p) => ({ ...p, us: p.us / unit.size }));
  const medians = ["a", "b"].filter((side) => row[side].us !== null).map((side) => ({ side: side.toUpperCase(), us: row[side].us / unit.size }));
  const x = { field: "us", type: "quantitative", ...logScaled(padded(values.map((v) => v.us), 1.05)), title: `${unit.name} (${origin})` };
  const y = { field: "side", type: "nominal", title: null };
  const tooltip = [{ field: "n", title: "repeat" }, { field: "us", title: unit.name, format: ".4~g" }];
  return {
    height: 110,
    layer: [
      { data: { values }, mark: { type: "point", ...MARKS[origin], size: 40, opacity: 0.5, color: "var(--c1)" }, encoding: { x, y, tooltip } },
      { data: { values: medians }, mark: { type: "tick", thickness: 3, size: 26, color: "var(--best)" }, encoding: { x, y } },
    ],
  };
}

function sidesTable(row) {
  const knobs = (side) => row[side].candidate?.knobs ?? {};
  const names = [...new Set([...Object.keys(knobs("a")), ...Object.keys(knobs("b"))])];
  const origin = row.group.origin;
  const lines = [
    [hasTimes(origin) ? "median" : "cost", ...["a", "b"].map((side) => (row[side].status === "ok" ? rankText(sideRank(row[side]), origin) : row[side].status))],
    ["error", errorText(row.a.error), errorText(row.b.error)],
    ["space", row.a.candidate?.space ?? NOTHING, row.b.candidate?.space ?? NOTHING],
    ...names.map((name) => [name, String(knobs("a")[name] ?? NOTHING), String(knobs("b")[name] ?? NOTHING)]),
  ];
  const differs = (title) => title in row.differing;
  const tr = ([title, a, b]) => el("tr", {}, el("td", { class: "left" }, title), ...[a, b].map((text) => el("td", { class: differs(title) ? "left differs" : "left" }, text)));
  const head = el("tr", {}, ...["", "A", "B"].map((text) => el("th", { class: "left", scope: "col" }, text)));
  return el("div", { class: "scroll" }, el("table", { class: "sides" }, el("thead", {}, head), el("tbody", {}, ...lines.map(tr))));
}

function said(row) {
  if (row.ratio === null) return `They do not compare: ${row.verdict}.`;
  if (!hasTimes(row.group.origin)) return saidOfCosts(row);
  const way = row.in_turn ? "measured in turn, pair by pair" : "measured at different times: what changed in the machine between them is not in the interval";
  const percentFaster = row.ratio >= 1 ? `B is ${((row.ratio - 1) * 100).toFixed(1)} % faster` : `B takes ${((1 / row.ratio - 1) * 100).toFixed(1)} % longer`;
  const judged = row.verdict === "no_difference" ? `No difference beyond the spread, though by the medians ${percentFaster}` : `A ${row.verdict}: ${percentFaster}`;
  return `${judged}; A over B is ${row.ratio.toFixed(3)} (${between(row)}); ${way}.`;
}

function saidOfCosts(row) {
  const percent = row.ratio >= 1 ? `B executes ${((1 - 1 / row.ratio) * 100).toFixed(1)} % fewer weighted instructions` : `B executes ${((1 / row.ratio - 1) * 100).toFixed(1)} % more weighted instructions`;
  return row.verdict === "no_difference" ? "No difference: both have the same cost." : `A ${row.verdict}: ${percent}; A over B is ${row.ratio.toFixed(3)}. Costs are counts, the same at each run, so there is no spread.`;
}

async function show(row, scroll) {
  const { group } = row;
  const hasRepeats = row.a.times_us.length + row.b.times_us.length > 0;
  const place = el("figure", {}, el("figcaption", {}, "All repeats", el("small", {}, "the bar is the median")));
  const drawing = el("div", { class: "picture" });
  group.detail.replaceChildren(
    el("h2", { id: row.id }, row.name, " ", originBadge(group.origin)), el("p", {}, el("code", {}, row.spec)), el("p", {}, said(row)),
    sidesTable(row), row.a.counts || row.b.counts ? countsTable({ A: row.a.counts, B: row.b.counts }) : "", hasRepeats ? place : "", row.kernels ? differenceView(row.kernels) : "");
  place.append(drawing);
  group.detail.hidden = false;
  group.table.mark(row);
  if (scroll) group.detail.scrollIntoView();
  if (hasRepeats) await draw(drawing, repeatsSpec(row, group.origin));
}

const mostDifferent = (group) => group.layers.reduce((a, b) => (Math.abs(Math.log(b.ratio ?? 1)) > Math.abs(Math.log(a.ratio ?? 1)) ? b : a));

async function route(first) {
  const asked = DATA.groups.flatMap((group) => group.layers).find((row) => row.href === location.hash);
  if (asked) await show(asked, true);
  if (!first) return;
  for (const group of DATA.groups.filter((group) => group !== asked?.group)) await show(mostDifferent(group), false);
}

async function main() {
  DATA.groups.forEach((group, g) => {
    group.id = `t${g + 1}`;
    group.layers.forEach((row, n) => Object.assign(row, { id: `${group.id}-l${n + 1}`, href: `#${group.id}-l${n + 1}`, group }));
  });
  const place = document.getElementById("report");
  place.append(el("dl", { class: "plain" }, el("dt", {}, "A"), el("dd", {}, DATA.a), el("dt", {}, "B"), el("dd", {}, DATA.b)));
  if (DATA.fail_on !== null) {
    const names = DATA.regressions.map((row) => row.name);
    const what = names.length ? `${plural(names.length, "layer")} lost more than ${(100 * DATA.fail_on).toFixed(1)} %: ${names.join(", ")}` : `No layer lost more than ${(100 * DATA.fail_on).toFixed(1)} %.`;
    place.append(el("p", { class: "notice" }, what));
  }
  place.append(...DATA.groups.map(groupView));
  document.getElementById("colophon").append(el("p", {}, `Made by convtune ${DATA.versions.convtune}.`));
  for (const group of DATA.groups) {
    if (group.layers.some((row) => row.ratio !== null)) await draw(group.picture, ratiosSpec(group), (datum) => { if (datum.href) location.hash = datum.href; });
  }
  await route(true);
  window.addEventListener("hashchange", () => route(false));
  document.documentElement.dataset.ready = "true"; // for tests
}

await main();
