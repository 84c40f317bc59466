
// The drawings A and B: edits of A, undo, what is drawn by hand, the address, and the replay.
const drawings = {a: null, b: null};
const past = [], future = [];           // drawings of A, for undo and redo
let frames = null;                      // steps of A for the replay; null until they are requested
let playing = 0;                        // number of the replay that runs; 0 if none does

const views = {
  a: new GridView("a", {
    act: (first, last) => {
      if (openPanel() === "next") return showNext(last);
      if (tool() === "erase") return erase(places(first, last));
      if (tool() === "move") return first !== last && change(() => ["edit", {z: drawings.a.z, edit: {kind: "move", source: first, target: last}}], [last]);
      places(first, last).forEach((place, index) => put(place, brush, index === 0));
    },
    stroke: (line) => drawStroke(line),
    tap: () => widen("a"),
  }),
  b: new GridView("b", {act: (first, last) => take(places(first, last)), tap: () => widen("b")}),
};
const result = new View(find("canvas-image"));
function widen(name) { document.querySelector(".stage").dataset.wide = name; hints(); views.a.paint(); views.b.paint(); }

const put = (place, part, remember = true) => change(() => ["edit", {z: drawings.a.z, edit: {kind: "put", place, part}}], [place], remember);
const erase = (where) => change(() => ["edit", {z: drawings.a.z, edit: {kind: "remove", places: where}}], where);
function take(where) {
  if (drawings.b) change(() => ["compose", {a: drawings.a.z, b: drawings.b.z, places: where}], where);
}
// One edit of A. `request()` is called when its turn comes; `marks` are framed afterwards.
const change = (request, marks, remember = true) => inTurn(async () => {
  if (!drawings.a) return;
  stop();
  const drawing = await json(...request());
  if (drawing.dropped) tell(`${counted(drawing.dropped)} of A removed: a drawing has at most ${model.steps}`);
  drawing.sketched = (drawings.a.sketched ?? []).filter((place) => !marks.includes(place));   // what else put a part there
  await setA(drawing, marks, remember);
});

// A stroke is put on A's canvas and the picture parsed. Only the places that it touches change.
const drawStroke = (line) => inTurn(async () => {
  stop();
  try {
    const {image_width: width, image_height: height, rows, columns} = model, sheet = document.createElement("canvas");
    Object.assign(sheet, {width, height});
    const pen = sheet.getContext("2d"); pen.imageSmoothingEnabled = false;
    pen.drawImage(await picture(drawings.a.canvas), 0, 0, width, height);
    trace(pen, line, width, height);
    const {z} = drawings.a, parsed = await json("parse", {z, image: sheet.toDataURL("image/png").split(",")[1], invert: "no"});
    const [touched, others] = [true, false].map((wanted) => places(0, rows * columns - 1).filter((place) => touches(line, place) === wanted));
    const same = others.every((place) => String(held(z, place)) === String(held(parsed.z, place)));
    const next = same ? parsed : await json("compose", {a: z, b: parsed.z, places: touched});
    next.sketched = [...new Set([...(drawings.a.sketched ?? []), ...touched])];
    views.a.waiting.shift();
    await setA(next);
  } catch (error) { views.a.waiting.shift(); views.a.paint(); throw error; }
});
function touches({points, pen}, place) {
  const [x, y, w, h] = rectangle(place), {canvas_width: width, canvas_height: height} = model;
  const reach = pen.width / 200 * width;
  const near = ([px, py]) => Math.hypot(Math.max(x - px * width, 0, px * width - x - w), Math.max(y - py * height, 0, py * height - y - h)) < reach;
  return points.some((point, i) => {      // and between two points that are far apart
    const [px, py] = points[Math.max(i - 1, 0)], n = Math.ceil(Math.hypot(point[0] - px, point[1] - py) * 64) + 1;
    return Array.from({length: n}, (_, k) => [px + (point[0] - px) * (k + 1) / n, py + (point[1] - py) * (k + 1) / n]).some(near);
  });
}

async function setA(drawing, marks = [], remember = true) {
  if (remember && drawings.a) { invite(false); past.push(drawings.a); if (past.length > 200) past.shift(); future.length = 0; }
  stop(); frames = null; drawings.a = drawing; tally(drawing.z);
  const [canvas, image] = await Promise.all([picture(drawing.canvas), picture(drawing.image)]);
  views.a.show(canvas, marks, true); result.show(image);
  facts(drawing); hints();
  const slider = find("step"); slider.max = drawing.parts; slider.value = drawing.parts; find("step-text").textContent = counted(drawing.parts);
  find("undo").disabled = !past.length; find("redo").disabled = !future.length;
  link(); count("image"); changedA();
}
function facts(drawing) {
  find("fact-parts").textContent = `${drawing.parts} of ${model.steps}`;
  find("fact-prior").textContent = drawing.log_prior.toFixed(1).replace("-", "−");
}
async function setB(drawing) {
  drawings.b = drawing; tally(drawing.z); views.b.show(await picture(drawing.canvas));
  link(); count("b"); changedB();
}
const set = (name, drawing) => name === "a" ? setA(drawing) : setB(drawing);
function count(name) { const {dataset} = find("canvas-" + name); dataset.version = Number(dataset.version || 0) + 1; }
const step = (from, to) => inTurn(async () => {
  if (!from.length) return;
  to.push(drawings.a); await setA(from.pop(), [], false);
});
const undo = () => step(past, future), redo = () => step(future, past);
const blank = () => change(() => ["decode", {z: empty()}], []);
const exchange = () => inTurn(async () => { const {a, b} = drawings; await setA(b); await setB(a); });

// ---------------------------------------------------------------- the address

let linked = "";
function link() {
  if (!drawings.a || !drawings.b) return;
  const {hash, name} = ownModel();
  linked = `#of=${hash}.${encodeURIComponent(name)}&z=${pack(drawings.a.z)}&b=${pack(drawings.b.z)}`;
  history.replaceState(null, "", linked);
}
// The drawings of the address, or null where it names none.
async function fromAddress(text) {
  const named = new URLSearchParams(text.slice(1)), [hash, ...name] = (named.get("of") ?? "").split("."), found = {};
  if (named.has("z") || named.has("b")) requireOwn("link", {hash, name: name.join(".")});
  for (const [name, key] of [["a", "z"], ["b", "b"]]) if (named.has(key)) found[name] = await json("decode", {z: unpack(named.get(key))});
  return found;
}
addEventListener("hashchange", () => {
  if (new URLSearchParams(location.hash.slice(1)).has("token")) return location.reload();
  if (location.hash === linked || !model) return;
  inTurn(async () => { for (const [name, drawing] of Object.entries(await fromAddress(location.hash))) await set(name, drawing); });
});
async function share() {
  try { await navigator.clipboard.writeText(location.href); tell("The link is copied. It shows these two drawings"); }
  catch { tell("Copy the address of this page: it shows these two drawings"); }
}

// ---------------------------------------------------------------- the replay

let loading = null;                     // {z, done}: the steps of z that are requested
async function loadFrames() {
  const {z} = drawings.a;
  if (loading?.z !== z) loading = {z, done: json("steps", {z}).then(async ({frames: found}) => {
    const ready = await Promise.all(found.map(async (f) => ({...f, canvas: await picture(f.canvas), image: await picture(f.image)})));
    if (drawings.a.z === z) frames = ready;
  }).finally(() => { if (loading?.z === z) loading = null; })};
  return loading.done;
}
async function slideTo() {               // where the slider is once the steps are there
  if (!frames) await loadFrames();
  return showStep(Number(find("step").value));
}
async function showStep(index) {
  if (!frames) return;
  const frame = frames[Math.min(index, frames.length - 1)], last = frame === frames[frames.length - 1];
  views.a.show(frame.canvas, frame.place === null || last ? [] : [frame.place]); result.show(frame.image);
  find("step-text").textContent = last ? counted(frames.length - 1) : `${index} of ${frames.length - 1}`;
}
function playButton(on) { find("play").textContent = on ? "❚❚" : "▶"; find("play").setAttribute("aria-label", on ? "Pause" : "Replay the drawing"); }
function stop() {
  if (!playing) return;
  playing = 0; playButton(false);
  document.querySelectorAll(".flying").forEach((one) => one.remove());
}
// Stops a replay and shows the whole drawing.
async function halt() {
  if (!playing) return;
  stop();
  const {canvas, image} = drawings.a, [whole, decoded] = await Promise.all([picture(canvas), picture(image)]);
  views.a.show(whole); result.show(decoded);
  find("step").value = find("step").max; find("step-text").textContent = counted(drawings.a.parts);
}
// Draws A again, part by part; each part flies from the bank to its place.
async function play() {
  if (playing) { stop(); return; }
  const run = playing = performance.now(), slider = find("step"), held = drawings.a.z;
  playButton(true); slider.value = 0;
  try { if (!frames) await loadFrames(); } catch (error) { stop(); throw error; }
  const going = () => playing === run && drawings.a.z === held && frames;
  if (!going()) return;
  await showStep(0);
  const wait = Math.min(Math.max(5200 / frames.length, 45), 260);
  for (let index = 1; going() && index < frames.length; index += 1) {
    const {place, part} = frames[index];
    if (still()) await pause(wait); else await fly(part, place, wait);
    if (!going()) return;
    slider.value = index; await showStep(index);
  }
  if (going()) stop();
}
async function fly(part, place, ms) {
  const button = partButton(part);
  if (!button || openPanel() !== "bank") return pause(ms);
  const from = button.getBoundingClientRect(), box = find("canvas-a").getBoundingClientRect(), scale = box.width / model.canvas_width;
  const [x, y] = rectangle(place), ghost = document.createElement("div"), side = model.patch * scale, factor = from.width / side;
  ghost.className = "flying"; showPart(ghost, part, side);
  Object.assign(ghost.style, {left: "0", top: "0", transformOrigin: "0 0"}); document.body.append(ghost);
  const at = (left, top, size) => `translate(${left}px, ${top}px) scale(${size})`;
  const flight = ghost.animate([{transform: at(from.left, from.top, factor)}, {transform: at(box.left + x * scale, box.top + y * scale, 1)}],
    {duration: Math.max(ms, 130), easing: "cubic-bezier(.4,0,.3,1)", fill: "forwards"});
  flight.finished.then(() => ghost.remove(), () => {});
  await pause(ms);
}
