// The pictures, as Vega-Lite specifications. Colours are the page's, so a theme needs no drawing again.
const COLOURS = ["--c1", "--c2", "--c3", "--c4", "--c5", "--c6"].map((name) => `var(${name})`);
const FONT = "system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif";
const MOST_POINTS = 1500; // in one picture; beyond that a reader sees no difference

const CONFIG = {
  background: "transparent",
  font: FONT,
  view: { stroke: "transparent" },
  axis: {
    labelColor: "var(--text)", titleColor: "var(--text)", gridColor: "var(--line)", domainColor: "var(--faint)", tickColor: "var(--faint)",
    labelFontSize: 11, titleFontSize: 12, titleFontWeight: "normal", gridOpacity: 0.6, labelOverlap: true,
  },
  legend: { labelColor: "var(--text)", titleColor: "var(--text)", labelFontSize: 11, titleFontSize: 12, titleFontWeight: "normal", orient: "bottom", columns: 4, symbolStrokeWidth: 2 },
  text: { color: "var(--text)", fontSize: 11 },
  title: { color: "var(--text)" },
};

/** Draws a specification into an element. follow: what to do with the datum that was clicked. */
async function draw(place, spec, follow = null) {
  const legend = { ...CONFIG.legend, columns: Math.max(1, Math.floor(place.clientWidth / 150)) };
  const whole = { width: "container", autosize: { type: "fit", contains: "padding", resize: true }, config: { ...CONFIG, legend }, ...spec };
  const result = await window.vegaEmbed(place, whole, { renderer: "svg", actions: false, tooltip: { theme: "custom" } });
  if (follow) result.view.addEventListener("click", (event, item) => item?.datum && follow(item.datum));
  return result.view;
}

/** Lets the browser show what was drawn and answer its reader. */
draw.turn = () => new Promise((resolve) => { setTimeout(resolve); });

/** At most so many of the items, evenly. */
function thinned(items, most = MOST_POINTS) {
  if (items.length <= most) return items;
  return Array.from({ length: most }, (_, n) => items[Math.floor((n * items.length) / most)]);
}

const logScale = { type: "log", nice: false };
/** Round values for the axis of a logarithmic scale, as few as can be read. */
function ticks([from, to]) {
  if (to / from < 5) {
    const rough = (to - from) / 7;
    const decade = 10 ** Math.floor(Math.log10(rough));
    const step = decade * [1, 2, 5, 10].find((n) => n * decade >= rough);
    const first = Math.ceil(from / step);
    return Array.from({ length: Math.floor(to / step) - first + 1 }, (_, n) => Number(((first + n) * step).toPrecision(12)));
  }
  for (const steps of [[1, 2, 3, 4, 5, 6, 7, 8, 9], [1, 2, 3, 5, 7], [1, 2, 5], [1, 3], [1]]) {
    const found = [];
    for (let decade = Math.floor(Math.log10(from)); decade <= Math.log10(to); decade++) {
      found.push(...steps.map((step) => step * 10 ** decade).filter((value) => value >= from && value <= to));
    }
    if (found.length <= 7) return found;
  }
  return undefined; // more than seven decades: as Vega thinks best
}
const logAxis = (domain, more = {}) => ({ values: ticks(domain), format: ",~g", ...more });
const logScaled = (domain, more) => ({ scale: { ...logScale, domain }, axis: logAxis(domain, more) });
const padded = (values, factor = 1.15) => [least(values) / factor, most(values) * factor];
const least = (values) => values.reduce((a, b) => Math.min(a, b), Infinity);
const most = (values) => values.reduce((a, b) => Math.max(a, b), -Infinity);

/** The unit for these points' ranks, the title of their axis, and the points with their ranks in it. */
function inUnits(points, origin) {
  const unit = unitOf(points.map((p) => p.rank), origin);
  return { unit, title: `${unit.short} (${origin})`, scaled: points.map((p) => ({ ...p, row: null, rank: p.rank / unit.size })) };
}

/** How the ranks of an origin look: measured ones are filled dots, others hollow and of their own shape. */
const MARKS = {
  measured: { shape: "circle", filled: true },
  emulated: { shape: "square", filled: false },
  estimated: { shape: "diamond", filled: false },
};

function rooflineSpec(section) {
  const points = section.layers.filter((layer) => layer.best !== null).map((layer) => ({
    layer: layer.name, variant: layer.variant, intensity: layer.flops / layer.bytes, gflops: layer.gflops, time: rankText(layer.best, section.origin),
    "of roofline": percent(layer.roofline_share), href: layer.href,
  }));
  const variants = [...new Set(points.map((p) => p.variant))].sort();
  const x = { field: "intensity", type: "quantitative", ...logScaled(padded(points.map((p) => p.intensity), 1.6)), title: "FLOP per byte of its tensors" };
  const ys = points.map((p) => p.gflops);
  const roof = section.roof && roofFor(section);
  const top = roof ? Math.max(roof.tensor_gflops ?? 0, roof.gflops, most(ys)) * 1.5 : most(ys) * 1.5;
  const y = { field: "gflops", type: "quantitative", ...logScaled([least(ys) / 1.6, top]), title: `GFLOP/s (${section.origin})` };
  const mark = { type: "point", ...MARKS[section.origin], size: points.length > 150 ? 30 : 60, opacity: 0.85, cursor: "pointer", strokeWidth: 1.5 };
  const tooltip = ["layer", "variant", "time", "of roofline"].map((field) => ({ field, type: "nominal" })).concat([{ field: "gflops", title: "GFLOP/s", format: ".1f" }, { field: "intensity", title: "FLOP/B", format: ".1f" }]);
  const colour = { field: "variant", type: "nominal", scale: { domain: variants, range: variants.map((_, n) => COLOURS[n % COLOURS.length]) }, title: null };
  const encoding = { x, y, color: colour, tooltip };
  if (variants.length > COLOURS.length) {
    const [usual, other] = section.origin === "measured" ? ["circle", "triangle-up"] : [MARKS[section.origin].shape, "triangle-up"];
    encoding.shape = { field: "variant", type: "nominal", scale: { domain: variants, range: variants.map((_, n) => (n < COLOURS.length ? usual : other)) }, title: null };
    delete mark.shape;
  }
  const layers = roof ? roofLayers(roof, x, y) : [];
  return { height: 380, layer: [...layers, { data: { values: points }, mark, encoding }] };
}

/** The section's roof; that of Tensor Cores only where a layer is of their dtype. */
function roofFor(section) {
  const half = section.layers.some((layer) => layer.dtype === "float16");
  return { ...section.roof, tensor_gflops: half ? section.roof.tensor_gflops : null };
}

function roofLayers(roof, x, y) {
  const [from, to] = x.scale.domain;
  const knee = roof.gflops / roof.memory_gbs;
  const at = (intensity) => Math.min(roof.gflops, intensity * roof.memory_gbs);
  const line = [...new Set([from, Math.min(Math.max(knee, from), to), to])].map((intensity) => ({ intensity, gflops: at(intensity) })).filter((p) => p.gflops >= y.scale.domain[0]);
  const labels = [{ intensity: to, gflops: at(to), text: knee < to ? `${roof.gflops.toFixed(0)} GFLOP/s` : `${roof.memory_gbs.toFixed(0)} GB/s` }];
  const style = { color: "var(--text)", strokeWidth: 1.5 };
  const tensor = roof.tensor_gflops;
  const tensorLine = tensor ? [Math.max(from, Math.min(tensor / roof.memory_gbs, to)), to].map((intensity) => ({ intensity, gflops: Math.min(tensor, intensity * roof.memory_gbs) })) : [];
  if (tensor && knee < to) tensorLine.unshift({ intensity: Math.max(from, knee), gflops: Math.max(from, knee) * roof.memory_gbs });
  if (tensor) labels.push({ ...tensorLine.at(-1), text: `${tensor.toFixed(0)} GFLOP/s, float16 by Tensor Cores` });
  const found = [
    { data: { values: line }, mark: { type: "line", ...style, clip: true }, encoding: { x, y } },
    { data: { values: tensorLine }, mark: { type: "line", ...style, strokeDash: [5, 3], clip: true }, encoding: { x, y } },
    { data: { values: labels }, mark: { type: "text", align: "right", dy: -9, dx: -6 }, encoding: { x, y, text: { field: "text" } } },
  ];
  if (knee < to && knee > from) {
    const start = line[0].intensity;
    const slope = { intensity: start, gflops: at(start), text: `${roof.memory_gbs.toFixed(0)} GB/s` };
    found.push({ data: { values: [slope] }, mark: { type: "text", align: "left", dx: 16, dy: 2 }, encoding: { x, y, text: { field: "text" } } });
  }
  return found;
}

/** Best rank so far against trials or seconds: `field` of the points. */
function convergenceSpec(timed, origin, field, title) {
  const { title: yTitle, scaled: points } = inUnits(timed, origin);
  const best = [];
  for (const p of points) {
    if (!best.length || p.rank < best.at(-1).rank) best.push(p);
  }
  const last = points.at(-1);
  const steps = [...best, { ...last, rank: best.at(-1).rank }];
  const x = { field, type: "quantitative", title, scale: { nice: false, domainMin: 0 }, axis: { tickCount: 6, grid: false } };
  const y = { field: "rank", type: "quantitative", ...logScaled(padded(points.map((p) => p.rank), 1.1)), title: yTitle };
  const tooltip = [{ field: "trial", title: "trial" }, { field: "second", title: "after s", format: ".1f" }, { field: "rank", title: yTitle, format: ".4~g" }, { field: "what", title: "candidate" }];
  const line = { type: "line", interpolate: "step-after", color: "var(--best)", strokeWidth: 2.2, strokeDash: origin === "measured" ? [1, 0] : [6, 3] };
  return {
    height: 220,
    layer: [
      { data: { values: thinned(points) }, mark: { type: "point", ...MARKS[origin], size: 18, color: "var(--c1)", opacity: 0.6 }, encoding: { x, y, tooltip } },
      { data: { values: steps }, mark: line, encoding: { x, y } },
      { data: { values: best }, mark: { type: "point", filled: true, size: 30, color: "var(--best)", opacity: 1 }, encoding: { x, y, tooltip } },
    ],
  };
}

/** How many candidates have which rank, by space. */
function spreadSpec(timed, origin, best_rank) {
  const { unit, title, scaled: points } = inUnits(timed, origin);
  const marks = [{ rank: best_rank / unit.size }];
  const logs = points.map((p) => Math.log10(p.rank));
  const [low, high] = [least(logs), most(logs)];
  const bins = Math.max(1, Math.min(40, Math.ceil(2 * Math.cbrt(points.length))));
  const width = Math.max((high - low) / bins, 1e-3);
  const counts = new Map();
  for (const p of points) {
    const bin = Math.min(bins - 1, Math.floor((Math.log10(p.rank) - low) / width));
    const key = `${bin} ${p.space}`;
    counts.set(key, { bin, space: p.space, count: (counts.get(key)?.count ?? 0) + 1 });
  }
  const spaces = [...new Set([...counts.values()].map((v) => v.space))].sort();
  const height = new Map(); // the stack so far, by bin
  const values = spaces.flatMap((space) => [...counts.values()].filter((v) => v.space === space)).map(({ bin, space, count }) => {
    const bottom = height.get(bin) ?? 0;
    height.set(bin, bottom + count);
    return { space, count, bottom, top: bottom + count, from: 10 ** (low + bin * width), to: 10 ** (low + (bin + 1) * width) };
  });
  const domain = [10 ** (low - width / 2), 10 ** (low + (bins + 0.5) * width)];
  const x = { field: "from", type: "quantitative", ...logScaled(domain, { grid: false }), title };
  const y = { field: "bottom", type: "quantitative", title: "candidates", scale: { nice: true }, axis: { tickMinStep: 1, tickCount: 5, format: "~d" } };
  const colour = { field: "space", type: "nominal", scale: { domain: spaces, range: spaces.map((_, n) => COLOURS[n % COLOURS.length]) }, title: null };
  if (spaces.length === 1) colour.legend = null;
  const tooltip = [{ field: "space" }, { field: "count", title: "candidates" }, { field: "from", title: `from ${unit.name}`, format: ".4~g" }, { field: "to", title: `to ${unit.name}`, format: ".4~g" }];
  const bars = { type: "rect", opacity: origin === "measured" ? 0.9 : 0.45, stroke: "var(--back)", strokeWidth: 1 };
  return {
    height: 220,
    layer: [
      { data: { values }, mark: bars, encoding: { x, x2: { field: "to" }, y, y2: { field: "top" }, color: colour, tooltip } },
      { data: { values: marks }, mark: { type: "rule", strokeWidth: 2, strokeDash: [5, 3], color: "var(--best)" }, encoding: { x: { ...x, field: "rank" } } },
    ],
  };
}

/** Rank against the values of one knob; the best of each value as a bar, the winner's value highlighted. */
function knobSpec(timed, origin, name, winner) {
  const { title, scaled: points } = inUnits(timed, origin);
  const order = [...new Set(points.map((p) => p.order))].sort((a, b) => a - b);
  const text = new Map(points.map((p) => [p.order, p.value]));
  const values = order.map((n) => text.get(n));
  const bests = order.map((n) => ({ value: text.get(n), rank: least(points.filter((p) => p.order === n).map((p) => p.rank)), count: points.filter((p) => p.order === n).length }));
  const x = { field: "value", type: "nominal", sort: values, title: null, axis: { labelAngle: values.join("").length > 24 ? -40 : 0, grid: false, labelLimit: 90 } };
  const y = { field: "rank", type: "quantitative", ...logScaled(padded(points.map((p) => p.rank), 1.1)), title };
  const highlight = { condition: { test: `datum.value === ${JSON.stringify(winner)}`, value: "var(--best)" }, value: "var(--c1)" };
  return {
    height: 150,
    layer: [
      { data: { values: thinned(points, 400) }, mark: { type: "point", ...MARKS[origin], size: 18, opacity: 0.5 }, encoding: { x, y, color: highlight, xOffset: { field: "jitter", type: "quantitative", scale: { domain: [-1, 1] } } } },
      { data: { values: bests }, mark: { type: "tick", thickness: 3, bandSize: 22 }, encoding: { x, y, color: highlight, tooltip: [{ field: "value", title: name }, { field: "rank", title: `best ${title}`, format: ".4~g" }, { field: "count", title: "candidates" }] } },
    ],
  };
}
