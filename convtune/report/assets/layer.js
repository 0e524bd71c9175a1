// One layer in detail: its schedule, finalists, convergence, the spread of its candidates and the effect of each knob.

/** The candidates that worked, with their ranks, in the order in which they were tried. */
function timedTrials(layer) {
  const { spaces, trials } = layer.tried;
  const names = spaces.map((space) => Object.entries(space.knobs));
  return trials.map((row, n) => ({ row, trial: n + 1 })).filter(({ row }) => row[2] !== null).map(({ row, trial }) => ({
    trial, rank: row[2], second: row[5], space: spaces[row[0]].name, row, what: trialText(layer, row, names),
  }));
}

function knobValues(layer, row) {
  return Object.entries(layer.tried.spaces[row[0]].knobs).map(([name, values], n) => [name, row[6 + n] === null ? null : values[row[6 + n]]]);
}

function trialText(layer, row) {
  const knobs = knobValues(layer, row).filter(([, value]) => value !== null);
  return `${layer.tried.spaces[row[0]].name}(${knobs.map(([k, v]) => `${k}=${v}`).join(", ")})`;
}

/** What is said of a layer in words: a list of titles and texts. */
function layerFacts(layer) {
  const { section } = layer;
  const origin = section.origin;
  const lines = [
    ["spec", el("code", {}, layer.spec)],
    layer.names.length > 1 ? ["also", layer.names.slice(1).join(", ")] : null,
    ["tuned", layer.best === null ? "no candidate works" : [rankText(layer.best, origin), ...rates(layer), `error ${errorText(layer.error)}`].join(", ")],
    layer.candidate ? ["schedule", el("code", {}, candidateText(layer.candidate))] : null,
    ["default", layer.usual === null ? "not told by the log" : `${rankText(layer.usual, origin)}${layer.speedup ? `; tuning gained ${ratio(layer.speedup)}` : ""}`],
    layer.default_candidate && candidateText(layer.default_candidate) !== candidateText(layer.candidate) ? ["its schedule", el("code", {}, candidateText(layer.default_candidate))] : null,
    ...benchLines(layer),
    ["search", `${plural(layer.trials, "trial")} in ${durationText(layer.elapsed_s)}${layer.failed ? `; failed: ${kindsText(layer.failures)}` : ""}`],
    ...resourceLines(layer),
  ].filter(Boolean);
  return el("dl", { class: "plain" }, ...lines.flatMap(([title, text]) => [el("dt", {}, title), el("dd", {}, text)]));
}

function countsView(layer) {
  return layer.counts ? el("div", {}, el("h3", {}, "What the winner executes"), countsTable({ winner: layer.counts })) : null;
}

function layerView(layer) {
  const save = el("button", { type: "button", onclick: () => saveTrials(layer) }, "download its candidates as CSV");
  return [
    layerFacts(layer), el("p", { class: "no-print" }, save), finalsView(layer), countsView(layer), failuresView(layer),
    el("div", { class: "pictures", id: `${layer.id}-pictures` }), el("div", { id: `${layer.id}-knobs` }),
    layer.kernel ? kernelView(layer.kernel) : layer.best === null ? null : el("p", { class: "small faint no-print" }, "Its loop nest, instructions and cache model: make the report with ", el("code", {}, "--kernels"), "."),
  ].filter(Boolean);
}

function rates(layer) {
  if (!hasTimes(layer.section.origin)) return [];
  return [`${number(layer.gflops)} GFLOP/s`, ...(layer.section.roof ? [`${percent(layer.roofline_share)} of the roofline`] : [])];
}

function benchLines(layer) {
  const bench = layer.bench;
  if (!bench) return [];
  const peers = Object.entries(bench.peers_us).map(([name, us]) => `${name} ${rankText(us)}`).join(", ");
  const compared = bench.ratio ? `; the best library's time over ours: ${ratio(bench.ratio.median)} (${bench.ratio.lower.toFixed(2)} to ${bench.ratio.upper.toFixed(2)})` : "";
  return [["libraries", `${peers || "none has a right result"}; convtune in the same run ${rankText(bench.ours_us)}${compared}`]];
}

function resourceLines(layer) {
  return Object.entries(layer.resources ?? {}).map(([kernel, used]) => [kernel, Object.entries(used).map(([name, value]) => `${name.replaceAll("_", " ")} ${value}`).join(", ")]);
}

function finalsView(layer) {
  const finals = layer.tried.finals;
  if (!finals.length) return null;
  const of = layer.section.origin;
  const timed = hasTimes(of);
  const middle = (ranks) => [...ranks].sort((a, b) => a - b)[Math.floor(ranks.length / 2)];
  const rows = finals.map(([trial, ranks]) => {
    const row = trial === null ? null : layer.tried.trials[trial];
    const role = [trial === layer.tried.best ? "winner" : "", trial === layer.tried.default ? "default" : ""].filter(Boolean).join(", ");
    const spread = timed ? [rankText(least(ranks)), rankText(most(ranks)), String(ranks.length)] : [];
    const texts = [role || NOTHING, timed ? rankText(middle(ranks)) : rankText(ranks[0], of), ...spread, row ? trialText(layer, row) : "not in the log"];
    return el("tr", {}, ...texts.map((text, n) => el("td", { class: n === 0 ? "left" : n === texts.length - 1 ? "left wrap" : "time" }, text)));
  });
  const titles = ["", ...(timed ? [`median (${of})`, "least", "most", "repeats"] : [`cost (${of})`]), "schedule"];
  const head = el("tr", {}, ...titles.map((title, n) => el("th", { class: n === 0 || n === titles.length - 1 ? "left" : null, scope: "col" }, title)));
  return el("div", {}, el("h3", {}, timed ? "Finalists, measured in turn" : "Finalists, verified whole"), el("div", { class: "scroll" }, el("table", { class: "finals" }, el("thead", {}, head), el("tbody", {}, ...rows))));
}

function failuresView(layer) {
  const { messages, other_messages: others } = layer.tried;
  if (!messages.length) return null;
  const items = messages.map(([status, text, count]) => el("li", {}, `${count} × ${status.replaceAll("_", " ")}: `, el("code", {}, text || "no message")));
  if (others) items.push(el("li", {}, `${others} others`));
  return el("details", messages.length && layer.best === null ? { open: "" } : {}, el("summary", {}, `Why ${plural(layer.failed, "candidate")} failed`), el("ul", { class: "messages" }, ...items));
}

function saveTrials(layer) {
  const names = [...new Set(layer.tried.spaces.flatMap((space) => Object.keys(space.knobs)))];
  const rows = layer.tried.trials.map((row, n) => {
    const values = Object.fromEntries(knobValues(layer, row));
    return [layer.name, layer.spec, layer.section.target.fingerprint, layer.section.origin, n + 1, row[5], layer.tried.spaces[row[0]].name, DATA.statuses[row[1]], row[2], row[3], row[4], ...names.map((name) => values[name] ?? null)];
  });
  const header = ["layer", "spec", "target", "origin", "trial", "second", "space", "status", hasTimes(layer.section.origin) ? "median_us" : "cost", "error", "build_s", ...names];
  download(`candidates-${layer.id}.csv`, csv(header, rows));
}

function picture(place, title, note) {
  const drawing = el("div", { class: "picture" });
  place.append(el("figure", {}, el("figcaption", {}, title, note ? el("small", {}, note) : null), drawing));
  return drawing;
}

async function drawLayer(layer) {
  const origin = layer.section.origin;
  const place = document.getElementById(`${layer.id}-pictures`);
  const points = timedTrials(layer);
  if (!points.length) {
    place.append(el("p", { class: "faint" }, "No candidate works, so there is nothing to draw."));
    return;
  }
  const drawn = points.length > MOST_POINTS ? `${MOST_POINTS} of ${points.length} candidates drawn` : "each dot a candidate";
  await draw(picture(place, `Best ${rankWord(origin)} over trials`, drawn), convergenceSpec(points, origin, "trial", "trial"));
  await draw(picture(place, `Best ${rankWord(origin)} over seconds`, "of tuning, pauses over ten minutes left out"), convergenceSpec(points, origin, "second", "seconds"));
  const best = least(points.map((p) => p.rank));
  await draw(picture(place, "Spread of the candidates", `best ${rankText(best, origin)} in the search, worst ${rankText(most(points.map((p) => p.rank)), origin)}; the line is the best`), spreadSpec(points, origin, best));
  await drawKnobs(layer, points);
}

async function drawKnobs(layer, points) {
  const place = document.getElementById(`${layer.id}-knobs`);
  const space = layer.candidate?.space ?? points[0].space;
  const mine = points.filter((p) => p.space === space);
  const knobs = Object.entries(layer.tried.spaces.find((s) => s.name === space)?.knobs ?? {});
  const varied = knobs.map(([name, values], n) => ({ name, values, n })).filter(({ values }) => values.length > 1);
  if (!mine.length || !varied.length) return;
  const fixed = knobs.filter(([, values]) => values.length === 1).map(([name, values]) => `${name}=${values[0]}`);
  place.append(el("h3", {}, `Effect of each knob of ${space}`), el("p", { class: "small faint" }, `Each dot is a candidate, each bar the best of a value; the winner's values are highlighted.${fixed.length ? ` Never varied: ${fixed.join(", ")}.` : ""}`));
  const grid = el("div", { class: "pictures knobs" });
  place.append(grid);
  for (const { name, values, n } of varied) {
    const shown = mine.filter((p) => p.row[6 + n] !== null).map((p, i) => ({ rank: p.rank, order: p.row[6 + n], value: String(values[p.row[6 + n]]), jitter: ((i * 0.618034) % 1) * 1.4 - 0.7 }));
    const winner = layer.candidate ? String(layer.candidate.knobs[name]) : null;
    await draw(picture(grid, name, null), knobSpec(shown, layer.section.origin, name, winner));
  }
}

await main();
