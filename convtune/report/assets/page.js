// What every page has: its data, elements, numbers in words, the theme, and files made from the data.
// Text goes into the page as text only: nothing from a log is ever read as markup.
const DATA = JSON.parse(document.getElementById("data").textContent);

/** An element with these properties and children; a property of null is left out. */
function el(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (value === null || value === undefined) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const NOTHING = "–";
const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
const number = (value, digits = 1) => (value === null || value === undefined ? NOTHING : value.toFixed(digits));
const percent = (value) => (value === null || value === undefined ? NOTHING : `${(100 * value).toFixed(0)} %`);
const ratio = (value) => (value === null || value === undefined ? NOTHING : `${value.toFixed(2)}×`);
const errorText = (value) => (value === null || value === undefined ? NOTHING : value.toExponential(1));

// Ranks: what candidates of one origin are compared by, a time in microseconds or a cost in weighted instructions.
const isMissing = (value) => value === null || value === undefined;
/** The largest unit of the origin of which the least of these ranks is at least one. */
function unitOf(ranks, origin) {
  const known = ranks.filter((rank) => !isMissing(rank));
  const least = known.reduce((a, b) => Math.min(a, b), Infinity);
  return DATA.units[origin].findLast((unit) => unit.size <= least && least < Infinity) ?? DATA.units[origin][0];
}
const hasTimes = (origin) => DATA.timed.includes(origin);
const gainWord = (origin) => (hasTimes(origin) ? "speed-up" : "default/tuned"); // fewer instructions are not surely faster
const rankWord = (origin) => (hasTimes(origin) ? "time" : "cost");
/** The name of a field of these ranks in a file: such as best_us or best_cost, in the smallest unit. */
const rankField = (name, origin) => `${name}_${hasTimes(origin) ? "us" : "cost"}`;
const rankOf = (row, name, origin) => row[rankField(name, origin)];
const rankNumber = (rank, unit) => (isMissing(rank) ? NOTHING : number(rank / unit.size, rank / unit.size < 10 ? 2 : 1));
const rankTitle = (title, unit, origin) => `${title} ${unit.short}${origin === "measured" ? "" : ` (${origin})`}`;

/** Such as 12.3 µs or 4.56 ms, and where it comes from unless it was measured. */
function rankText(rank, origin = "measured") {
  if (isMissing(rank)) return NOTHING;
  const unit = unitOf([rank], origin);
  return `${rankNumber(rank, unit)} ${unit.name}${origin === "measured" ? "" : ` ${origin}`}`;
}

/** What a section of this origin should say of itself; null where its times were measured. */
function originNotice(origin) {
  if (origin === "measured") return null;
  const text = hasTimes(origin)
    ? `All times of this section are ${origin}, none was measured on the device. They compare with each other only.`
    : "This section has no times. Its kernels ran in emulation, and are compared by the instructions that they executed, weighted by kind, and by what a model of the caches adds. Such costs compare with each other only.";
  return el("p", { class: "notice" }, text);
}

function durationText(seconds) {
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return `${minutes} min ${whole % 60} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

const kindsText = (byKind) => Object.entries(byKind).map(([kind, count]) => `${count} ${kind.replaceAll("_", " ")}`).join(", ");
const originBadge = (origin) => el("span", { class: `origin origin-${origin}` }, origin);

const candidateText = (candidate) =>
  candidate === null ? NOTHING : `${candidate.space}(${Object.entries(candidate.knobs).map(([k, v]) => `${k}=${v}`).join(", ")})`;

/** One field of a CSV file; a text that a spreadsheet would take for a formula is marked as text. */
function csvField(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return String(value);
  const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

const csv = (header, rows) => [header, ...rows].map((row) => row.map(csvField).join(",")).join("\r\n") + "\r\n";

function download(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: "text/csv;charset=utf-8" }));
  const link = el("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

function setUpTheme() {
  const button = document.getElementById("theme");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const choices = ["auto", "light", "dark"];
  let chosen = "auto";
  try {
    chosen = localStorage.getItem("convtune-theme") ?? "auto";
  } catch { /* a page from a file may have no storage; the choice is then forgotten with it */ }
  if (!choices.includes(chosen)) chosen = "auto";
  const show = () => {
    document.documentElement.dataset.theme = chosen === "auto" ? (dark.matches ? "dark" : "light") : chosen;
    button.textContent = `theme: ${chosen}`;
  };
  button.addEventListener("click", () => {
    chosen = choices[(choices.indexOf(chosen) + 1) % choices.length];
    try {
      localStorage.setItem("convtune-theme", chosen);
    } catch { /* as above */ }
    show();
  });
  dark.addEventListener("change", show);
  show();
}
setUpTheme();
