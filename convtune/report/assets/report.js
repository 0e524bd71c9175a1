// The report: of each target and origin a summary, the table of its layers, the roofline; and one layer in detail.
const STATUS_OK = 0;

function prepare() {
  DATA.sections.forEach((section, s) => {
    section.id = `t${s + 1}`;
    section.layers.forEach((layer, n) => {
      layer.id = `${section.id}-l${n + 1}`;
      layer.href = `#${layer.id}`;
      layer.section = section;
      layer.names ??= [layer.name];
      layer.best = rankOf(layer, "best", section.origin) ?? null;
      layer.usual = rankOf(layer, "default", section.origin) ?? null;
      layer.number = n;
    });
  });
}

function fact(title, value, note = null) {
  return el("div", {}, el("dt", {}, title), el("dd", {}, value, note ? el("small", {}, note) : null));
}

function facts(section) {
  const failed = Object.values(section.failures).reduce((a, b) => a + b, 0);
  const layers = section.layers.length;
  const kernels = section.layers_with_kernel === layers ? "all with a kernel" : `${section.layers_with_kernel} with a kernel`;
  const share = section.trials ? `${((100 * failed) / section.trials).toFixed(1)} % of the trials` : null;
  return el("dl", { class: "facts" },
    fact("layers", layers.toLocaleString("en"), kernels),
    fact(gainWord(section.origin), ratio(section.speedup_geometric_mean), "geometric mean over the layers"),
    fact("trials", section.trials.toLocaleString("en"), `${durationText(section.elapsed_s)} of tuning`),
    fact("failures", failed.toLocaleString("en"), failed ? kindsText(section.failures) : share),
    fact("origin", section.origin, { measured: "times on the device", emulated: "instructions, no times", estimated: "times by a static model" }[section.origin]),
  );
}

function machineText(target) {
  const parts = [target.model, target.mcpu ?? target.arch];
  if (target.threads) parts.push(plural(target.threads, "thread"));
  return [...new Set(parts)].join(", ");
}

function layerColumns(section) {
  const { origin } = section;
  const unit = unitOf(section.layers.flatMap((layer) => [layer.best, layer.usual, ...Object.values(layer.bench?.peers_us ?? {})]), origin);
  const columns = [
    { title: "layer", value: (r) => r.name, text: (r) => r.name + (r.names.length > 1 ? ` +${r.names.length - 1}` : ""), left: true },
    { title: "convolution", csv: "shape", value: (r) => `${r.variant} ${r.shape}`, text: (r) => `${r.variant} ${r.shape}`, left: true, kind: () => "wrap" },
    { title: rankTitle("default", unit, origin), csv: rankField("default", origin), value: (r) => r.usual, text: (r) => rankNumber(r.usual, unit), kind: () => "time", hint: hasTimes(origin) ? "without tuning; measured in turn with the tuned one" : "without tuning" },
    { title: rankTitle("tuned", unit, origin), csv: rankField("tuned", origin), value: (r) => r.best, text: (r) => (r.best === null ? "failed" : rankNumber(r.best, unit)), kind: (r) => (r.best === null ? "loss" : "time") },
    { title: gainWord(origin), csv: "speedup", value: (r) => r.speedup, text: (r) => ratio(r.speedup), hint: hasTimes(origin) ? null : "of the costs: what it means for times is not known" },
  ];
  if (hasTimes(origin)) columns.push({ title: "GFLOP/s", csv: "gflops", value: (r) => r.gflops, text: (r) => number(r.gflops) });
  if (section.roof) columns.push({ title: "of roofline", csv: "roofline_share", value: (r) => r.roofline_share, text: (r) => percent(r.roofline_share), hint: "the time that the roofline allows, by the time taken; above 100 % where tensors stay in a cache" });
  columns.push(...peerColumns(section, unit));
  columns.push(
    { title: "error", value: (r) => r.error, text: (r) => errorText(r.error), hint: "largest difference from the float64 reference over the largest value" },
    { title: "trials", value: (r) => r.trials, text: (r) => String(r.trials) },
    { title: "failed", value: (r) => r.failed, text: (r) => String(r.failed) },
  );
  return columns;
}

function peerColumns(section, unit) {
  const peers = section.peers.map((name) => ({ title: rankTitle(name, unit, "measured"), csv: `${name}_us`, value: (r) => r.bench?.peers_us[name] ?? null, text: (r) => rankNumber(r.bench?.peers_us[name] ?? null, unit) }));
  if (!peers.length) return [];
  const words = { win: "win", loss: "loss", no_difference: "no difference" };
  return [...peers, {
    title: "to best library", csv: "ratio_to_best_library", value: (r) => r.bench?.ratio?.median ?? null,
    text: (r) => (r.bench?.ratio ? `${ratio(r.bench.ratio.median)} ${words[r.bench.verdict] ?? ""}` : NOTHING),
    kind: (r) => ({ win: "win", loss: "loss" })[r.bench?.verdict] ?? "verdict",
    hint: "the fastest library's time over ours, measured in turn by convtune bench; above 1 ours is faster",
  }];
}

function sectionView(section) {
  section.layers.forEach((layer) => { layer.failed = Object.values(layer.failures).reduce((a, b) => a + b, 0); });
  const more = [
    { title: "variant", value: (r) => r.variant },
    { title: "spec", value: (r) => r.spec },
    { title: "space", value: (r) => r.candidate?.space ?? null },
    { title: "knobs", value: (r) => (r.candidate ? JSON.stringify(r.candidate.knobs) : null) },
    { title: "target", value: () => section.target.fingerprint },
    { title: "origin", value: () => section.origin },
  ];
  const table = new Table(layerColumns(section), section.layers, {
    noun: "layer", file: `layers-${section.target.name.replace(/[^\w.-]/g, "_")}-${section.origin}.csv`, href: (r) => r.href, title: (r) => [...r.names, r.spec].join("\n"), more,
    words: (r) => [...r.names, r.spec, r.variant, r.shape, candidateText(r.candidate)].join(" "), pick: { title: "variant", value: (r) => r.variant },
    tools: [printButton(section)],
  });
  section.table = table;
  section.detail = el("div", { class: "layer shown", hidden: "" });
  section.paper = el("div", { class: "paper" });
  const roofline = el("div", { class: "picture roofline" });
  section.roofline = roofline;
  const rooflinePart = hasTimes(section.origin) ? [el("h3", {}, "Roofline"), rooflineWords(section), roofline] : [];
  return el("section", { id: section.id, class: `of-${section.origin}` },
    el("h2", {}, section.target.name, " ", originBadge(section.origin)),
    el("p", { class: "faint" }, machineText(section.target), section.first_utc ? `; ${daysText(section)}` : ""),
    originNotice(section.origin), facts(section), el("h3", {}, "Layers"), table.element, ...rooflinePart, section.detail, section.paper);
}

/** The day on which the records were written, or the first and the last. */
function daysText(section) {
  return [...new Set([section.first_utc, section.last_utc].map((utc) => utc.slice(0, 10)))].join(" to ");
}

function rooflineWords(section) {
  const roof = section.roof;
  const known = roof ? `${roof.gflops.toFixed(0)} GFLOP/s and ${roof.memory_gbs.toFixed(0)} GB/s, ${roof.source}. ` : "What this machine can do at most is not known here, so there is no roof. ";
  return el("p", { class: "small faint" }, known, "Each mark is a layer", el("span", { class: "on-screen" }, "; click one to see it below"), ".");
}

async function drawRoofline(section) {
  if (!hasTimes(section.origin)) return;
  if (section.layers_with_kernel === 0) {
    section.roofline.replaceWith(el("p", { class: "faint" }, "No layer has a time, so there is nothing to draw."));
    return;
  }
  await draw(section.roofline, rooflineSpec(section), (datum) => { if (datum.href) location.hash = datum.href; });
}

function show(layer, scroll) {
  const section = layer.section;
  const shown = section.layers[layer.number + 1];
  const earlier = section.layers[layer.number - 1];
  const go = (to, text) => (to ? el("a", { href: to.href }, text) : null);
  section.detail.replaceChildren(
    el("h2", { id: layer.id }, layer.name, " ", originBadge(section.origin)),
    el("nav", {}, go(earlier, "← previous"), go(shown, "next →"), el("a", { href: `#${section.id}` }, "↑ all layers")),
    ...layerView(layer));
  section.detail.hidden = false;
  section.table.mark(layer);
  if (scroll) section.detail.scrollIntoView();
  return drawLayer(layer);
}

/** Where the address says a layer, that one; otherwise of each section the one that takes longest. */
async function route(first) {
  const asked = DATA.sections.flatMap((section) => section.layers).find((layer) => layer.href === location.hash);
  if (asked) await show(asked, true);
  if (!first) return;
  for (const section of DATA.sections.filter((section) => section !== asked?.section)) {
    const slowest = section.layers.reduce((a, b) => ((b.best ?? -1) > (a.best ?? -1) ? b : a));
    await show(slowest, false);
  }
}

async function main() {
  prepare();
  const place = document.getElementById("report");
  if (DATA.skipped_lines.length) {
    const shown = DATA.skipped_lines.slice(0, 20).map((line) => el("li", {}, line));
    place.append(el("details", { class: "notice" }, el("summary", {}, `${plural(DATA.skipped_lines.length, "line")} of the logs could not be read`), el("ul", {}, ...shown)));
  }
  if (!DATA.sections.length) place.append(el("p", { class: "notice" }, "There is no record in these logs: nothing was tuned, or all was pruned."));
  if (DATA.sections.length > 1) {
    const links = DATA.sections.map((section) => el("li", {}, el("a", { href: `#${section.id}` }, `${section.target.name}, ${machineText(section.target)}`), " ", originBadge(section.origin), ` ${plural(section.layers.length, "layer")}`));
    place.append(el("p", {}, "What was found on different machines, or in different ways, does not compare, so each has its own section:"), el("ul", {}, ...links));
  }
  place.append(...DATA.sections.map(sectionView));
  const written = [...new Set(DATA.sections.flatMap((section) => section.written_with))];
  document.getElementById("colophon").append(
    el("p", {}, `Made by convtune ${DATA.versions.convtune} from ${DATA.logs.join(", ")}.`),
    el("p", {}, written.length ? `Records written by ${written.join("; ")}.` : ""));
  for (const section of DATA.sections) await drawRoofline(section);
  await route(true);
  if (location.hash === "#print") { // for programs that make a PDF
    for (const section of DATA.sections) await fillPaper(section);
  }
  window.addEventListener("hashchange", () => route(false));
  document.documentElement.dataset.ready = "true"; // for tests
}
