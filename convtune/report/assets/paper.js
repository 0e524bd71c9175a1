// On paper: every layer that the tables show, in words and two pictures each; on the screen one layer is enough.
const [PAPER_WIDTH, PAPER_HEIGHT] = [300, 150]; // of a picture, two of which stand side by side on a sheet

function paperView(layer) {
  const pictures = el("div", { class: "pictures" });
  layer.paperPictures = pictures;
  return el("article", { class: "layer" },
    el("h3", {}, layer.name, " ", originBadge(layer.section.origin)), layerFacts(layer), finalsView(layer), countsView(layer), layer.kernel ? kernelMix(layer.kernel) : null,
    layer.kernel ? trafficTable({ "the winner": layer.kernel.traffic }) : null, pictures);
}

async function drawPaper(layer) {
  const { origin } = layer.section;
  const points = timedTrials(layer);
  if (points.length < 2) return; // one dot says nothing that the words do not
  const sized = (spec) => ({ ...spec, width: PAPER_WIDTH, height: PAPER_HEIGHT });
  await draw(picture(layer.paperPictures, `Best ${rankWord(origin)} over trials`, null), sized(convergenceSpec(points, origin, "trial", "trial")));
  await draw(picture(layer.paperPictures, "Spread of the candidates", null), sized(spreadSpec(points, origin, least(points.map((p) => p.rank)))));
}

/** Puts the layers that the section's table shows below it, where only paper has them. say: told how far it is. */
async function fillPaper(section, say = () => {}) {
  const layers = section.table.chosen();
  section.paper.replaceChildren(...layers.map(paperView));
  for (const [n, layer] of layers.entries()) {
    say(`drawing ${n + 1} of ${layers.length} …`);
    await draw.turn();
    await drawPaper(layer);
  }
}

function clearPaper() {
  for (const section of DATA.sections) section.paper.replaceChildren();
}

/** A button that prints the page with the layers that the section's table shows. */
function printButton(section) {
  const usual = "print these layers";
  const button = el("button", { type: "button", class: "print", title: "the page on paper, with each layer that this table shows", onclick: async () => {
    button.disabled = true;
    await fillPaper(section, (text) => { button.textContent = text; });
    button.disabled = false;
    button.textContent = usual;
    window.print();
  } }, usual);
  return button;
}

window.addEventListener("afterprint", clearPaper);
