
// The panels under the drawings: proposals, next part, gallery, from A to B, open, save.
const tabs = [...document.querySelectorAll("[role=tab]")];
const choosers = [...tabs, find("tab-open"), find("tab-save")];   // the last two are in the header
let shownPanel = "bank";
const openPanel = () => shownPanel;
function showPanel(name) {
  if (openPanel() === "morph" && name !== "morph") restoreA();
  shownPanel = name;
  for (const one of choosers) {
    const chosen = one.id === "tab-" + name, tab = one.role === "tab";
    one.setAttribute(tab ? "aria-selected" : "aria-pressed", chosen); find("panel-" + one.id.slice(4)).hidden = !chosen;
    if (tab) one.tabIndex = chosen ? 0 : -1;
    if (chosen) (tab ? one : find("panel-" + name)).scrollIntoView({block: "nearest", inline: "nearest"});
  }
  if (tabs.every((tab) => tab.tabIndex)) tabs[0].tabIndex = 0;
  views.a.heat = null; views.a.paint(); hints();
  if (surprised() && name !== "next") guarded(showSurprise)();
  if (name === "next") showNext(null);
  if (name === "gallery" && !find("gallery").children.length) showGallery();
  if (name === "morph") showMorph();
}
tabs.forEach((tab, index) => {
  tab.tabIndex = index ? -1 : 0;
  tab.addEventListener("keydown", (e) => {
    const move = {ArrowLeft: -1, ArrowRight: 1}[e.key];
    if (!move) return;
    const next = tabs[(index + move + tabs.length) % tabs.length];
    e.preventDefault(); next.focus(); next.click();
  });
});
for (const one of choosers) one.addEventListener("click", () => showPanel(one.id.slice(4)));
function changedA() {
  if (!views.a.image || openPanel() !== "next" || playing) views.a.heat = null;
  if (surprised() && openPanel() !== "next" && !playing) guarded(showSurprise)();
  if (openPanel() === "next") showNext(showNext.place ?? null);
  if (openPanel() === "morph") showMorph();
}
function changedB() { if (openPanel() === "morph") showMorph(); }

// A button with canvas and image of a drawing.
function card(drawing, label, click) {
  const button = document.createElement("button"), pair = document.createElement("span"), text = document.createElement("span");
  pair.className = "pair"; text.textContent = `log p ${drawing.log_prior.toFixed(0).replace("-", "−")}`;
  for (const data of [drawing.canvas, drawing.image]) { const image = new Image(); image.src = png(data); image.alt = ""; pair.append(image); }
  button.setAttribute("aria-label", label); button.append(pair, text); button.addEventListener("click", click);
  return button;
}
// Puts a drawing on A, or on B, and draws it part by part where it may.
const load = (drawing, target = checked("target"), replay = true) => inTurn(async () => {
  invite(false); await set(target, drawing);
  if (target === "a") { freshen(drawing.z); widen("a"); if (replay && !still()) play(); }
});

// ---------------------------------------------------------------- proposals

let proposed = 0;                         // seed of the proposals
const finish = (keep) => inTurn(async () => {
  await halt(); invite(false);
  const {z, sketched = []} = drawings.a, sketch = keep ? [] : drawn(z).filter((place) => sketched.includes(place));
  finish.keep = keep ?? (finish.base === z ? finish.keep : drawn(z).filter((place) => !sketch.includes(place))); finish.base = z;
  proposed += 1;
  const request = {z, keep: finish.keep, sketch, n: small() || model.steps > 64 ? 4 : 6, seed: proposed, temperature: Number(find("temperature").value), ...conditioned()};
  showPanel("finish");
  find("finish-hint").textContent = "The model draws …";
  find("proposals").replaceChildren(...Array.from({length: request.n}, () => Object.assign(document.createElement("span"), {className: "ghost"})));
  const found = (await json("complete", request).catch((error) => { find("proposals").replaceChildren(); find("finish-hint").textContent = ""; throw error; })).drawings;
  find("proposals").replaceChildren(...found.map((drawing, i) => card(drawing, `idea ${i + 1}`, () => load(drawing, "a", false))));
  const rest = drawn(z).length - sketch.length;
  find("finish-hint").textContent = (sketch.length ? "The model follows your sketch. " : "") + (rest ? `${counted(rest)} stay; the model draws the rest. ` : "") + "Choose one.";
});
// ---------------------------------------------------------------- asking

const conditioned = () => { const words = find("words").value.trim(); return model.condition === "none" || !words ? {} : {condition: words}; };
let seeds = 0;                            // the same words again draw another one
const drawAsked = async () => {
  seeds += 1;
  await load(await json("sample", {seed: seeds, temperature: Number(find("temperature").value), ...conditioned()}), "a");
};
// Suggestions complete the last word.
function suggest() {
  const text = find("words").value, start = model.condition === "words" ? text.slice(0, text.lastIndexOf(" ") + 1) : "", last = text.slice(start.length).toLowerCase();
  const close = model.vocabulary.filter((word) => word.toLowerCase().startsWith(last) && word.toLowerCase() !== last).slice(0, 12);
  find("known").replaceChildren(...close.map((word) => Object.assign(document.createElement("option"), {value: start + word})));
}

// ---------------------------------------------------------------- surprise

const surprised = () => find("surprise").getAttribute("aria-pressed") === "true";
async function showSurprise() {
  const {z} = drawings.a, {places} = await json("surprise", {z});
  if (!surprised() || drawings.a.z !== z) return;
  views.a.heat = places; views.a.paint();
}
function toggleSurprise() {
  const on = !surprised(); find("surprise").setAttribute("aria-pressed", on);
  if (on) return showSurprise();
  views.a.heat = null; views.a.paint();
}

// The upper half of A stays; the prior draws the lower one, and the page shows what it proposes.
const finishHalf = () => {
  const {rows, columns} = model, half = Math.ceil(rows / 2) * columns;
  erase(places(half, rows * columns - 1));
  return inTurn(() => { finish(places(0, half - 1)); });
};

// ---------------------------------------------------------------- the next part

async function showNext(place) {
  if (!drawings.a) return;
  const {z} = drawings.a, mine = showNext.last = Symbol();
  const answer = await json("next", {z, ...(place === null ? {} : {place}), n: 12}).catch((error) => { tell(error.message); });
  if (!answer || openPanel() !== "next" || drawings.a.z !== z || mine !== showNext.last) return;
  showNext.place = place;
  const at = answer.place, row = Math.floor(at / model.columns) + 1, column = at % model.columns + 1;
  views.a.heat = answer.places; views.a.show(views.a.image, [at]);
  find("next-text").textContent = `Bright places: where the model would draw next (nothing more: ${percent(answer.stop)}). Likeliest parts for row ${row}, column ${column}; click on the canvas for another place.`;
  const list = find("next-parts"), focused = [...list.children].indexOf(document.activeElement);
  list.replaceChildren(...answer.parts.map(({part, probability}) => {
    const button = document.createElement("button"), patch = document.createElement("span"), text = document.createElement("span");
    patch.className = "part"; showPart(patch, part, 48); text.textContent = percent(probability);
    button.setAttribute("aria-label", `put part ${part}, ${percent(probability)}`); button.append(patch, text);
    button.addEventListener("click", () => { showNext.place = null; put(at, part); });
    return button;
  }));
  list.children[focused]?.focus();        // for those who choose by keyboard
}
const percent = (p) => p >= 0.1 ? `${Math.round(100 * p)}%` : p >= 0.001 ? `${(100 * p).toFixed(1)}%` : "< 0.1%";

// ---------------------------------------------------------------- gallery, examples

const showGallery = guarded(async () => {
  const request = {n: 12, seed: Number(find("seed").value), temperature: Number(find("gallery-temperature").value), ...conditioned()};
  const found = (await json("gallery?" + new URLSearchParams(request))).drawings;
  found.forEach((drawing) => tally(drawing.z));
  find("gallery").replaceChildren(...found.map((drawing, i) => card(drawing, `sample ${i + 1}`, () => load(drawing))));
});
// Pictures that the model draws again and samples, in turn; each carries where it comes from.
function mixed(examples) {
  const kinds = new Map();
  for (const {name, drawing} of examples) {
    const kind = name.split(" ")[0];
    kinds.set(kind, [...(kinds.get(kind) ?? []), {name, drawing: {...drawing, name}}]);
  }
  // Varied ones first: a plain square is likely, and dull.
  const varied = ({drawing}) => new Set(steps(drawing.z).map(([, what]) => what)).size / Math.max(drawing.parts, 1);
  const piles = [...kinds.values()].reverse().map((pile) => pile.sort((p, q) => varied(q) - varied(p))), most = Math.max(0, ...piles.map((pile) => pile.length));
  return Array.from({length: most}, (_, i) => piles.flatMap((pile) => pile.slice(i, i + 1))).flat();
}
function showExamples(examples) {
  find("examples").replaceChildren(...examples.map(({name, drawing}) => {
    const button = document.createElement("button"), image = new Image();
    image.src = png(drawing.image); image.alt = ""; button.title = name; button.setAttribute("aria-label", "example " + name);
    button.append(image); button.addEventListener("click", () => { if (openPanel() !== "bank") showPanel("bank"); load(drawing); });
    return button;
  }));
}

// ---------------------------------------------------------------- from A to B, part by part

let between = [];                         // drawings from A to B
const showMorph = guarded(async () => {
  const {a, b} = drawings;
  if (!a || !b) return;
  await restoreA();
  between = []; find("morph-keep").disabled = true; find("morph").value = find("morph").max = 0;
  const found = (await json("interpolate", {a: a.z, b: b.z})).drawings;
  if (drawings.a !== a || drawings.b !== b) return;
  between = await Promise.all(found.map(async (one) => ({drawing: one, canvas: await picture(one.canvas), image: await picture(one.image)})));
  const slider = find("morph"); slider.max = between.length - 1; slider.value = 0;
  find("morph-text").textContent = `0 of ${between.length - 1}`;
});
function slide() {
  const at = Number(find("morph").value), shown = between[at];
  if (!shown) return;
  stop(); views.a.show(shown.canvas); result.show(shown.image); facts(shown.drawing);
  find("morph-keep").disabled = at === 0; find("morph-text").textContent = `${at} of ${between.length - 1}`;
}
const keepMorph = () => { const shown = between[Number(find("morph").value)]; if (shown) return inTurn(() => setA(shown.drawing)); };
const restoreA = guarded(async () => {
  if (Number(find("morph").value) === 0 || !drawings.a) return;
  const {a} = drawings, [canvas, image] = await Promise.all([picture(a.canvas), picture(a.image)]);
  if (drawings.a === a) { views.a.show(canvas); result.show(image); facts(a); }
});

// ---------------------------------------------------------------- open and save

let uploaded = null;                      // the picture that was opened last, and where it went
async function open(file, target) {
  if (!file) return;
  if (file.size > 8 << 20) throw new Error("The file is over 8 MiB");
  if (file.name.endsWith(".json")) {
    let saved; try { saved = JSON.parse(await file.text()); } catch { throw new Error("The file is no saved drawing"); }
    requireOwn("drawing", saved?.model);
    return load(await json("decode", {z: saved.z}), target, false);
  }
  uploaded = {file, target}; find("invert").value = find("crop").value = "auto";
  return place();
}
// Sends the picture with the chosen placement, and shows what was chosen.
async function place() {
  if (!uploaded) return;
  const {file, target} = uploaded, form = new FormData(), mine = place.last = Symbol(); form.append("file", file);
  const answer = await json(`encode?invert=${find("invert").value}&crop=${find("crop").value}`, null, form);
  if (mine !== place.last) return;        // another picture or placement was requested since
  if (openPanel() !== "open") showPanel("open");
  find("original").src = png(answer.original); find("placement").hidden = false; find("placement").scrollIntoView({block: "nearest"});
  const {inverted, cropped: [left, top, right, bottom], scaled} = answer.placement;
  find("placement-text").textContent = `${inverted ? "inverted" : "not inverted"}; cropped to ${right - left} × ${bottom - top} pixels; scaled by ${scaled.toFixed(2)}`;
  await load(answer, target, false);
}

const FILES = {image: "image.png", smooth: "smooth.png", canvas: "canvas.png", gif: "drawing.gif", strip: "strip.png", pdf: "drawing.pdf", z: "drawing.json"};
const PATHS = {gif: "steps.gif", strip: "strip.png", pdf: "drawing.pdf"};
const LARGE = 1024;                       // least side of a saved picture, in pixels
async function large(data, smooth) {
  const image = await picture(data), canvas = document.createElement("canvas"), scale = Math.ceil(LARGE / Math.max(image.width, image.height));
  canvas.width = scale * image.width; canvas.height = scale * image.height;
  const pen = canvas.getContext("2d"); pen.imageSmoothingEnabled = smooth; pen.imageSmoothingQuality = "high";
  pen.drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}
async function save(kind) {
  const {z} = drawings.a;
  let blob;
  if (PATHS[kind]) blob = await (await ask(PATHS[kind], {z})).blob();
  else if (kind === "z") blob = new Blob([JSON.stringify({model: ownModel(), z}, null, 1)], {type: "application/json"});
  else blob = await large(drawings.a[kind === "smooth" ? "image" : kind], kind === "smooth");
  const anchor = document.createElement("a"); anchor.href = URL.createObjectURL(blob); anchor.download = FILES[kind]; anchor.click();
  setTimeout(() => URL.revokeObjectURL(anchor.href), 10000);
}
