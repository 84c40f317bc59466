
// Buttons, keys, theme, and the start: a drawing that draws itself, then the invitation.
function hints() {
  const named = drawings.a?.name && tool() === "draw" && `${drawings.a.name}, in ${counted(drawings.a.parts)}`;
  find("hint-a").textContent = named && openPanel() !== "next" && document.querySelector(".stage").dataset.wide === "a" ? named : openPanel() === "next" ? "click on a place" : small() && document.querySelector(".stage").dataset.wide !== "a" ? ""
    : {draw: "draw with the pen", erase: "click or drag to erase", move: "drag a part to another place", paint: `click to put part ${brush}`}[tool()];
  find("hint-b").textContent = small() && document.querySelector(".stage").dataset.wide !== "b" ? "" : "click or drag: parts go to the canvas";
}
function toolChanged() {
  document.body.dataset.tool = tool(); views.a.picked = null;
  if (openPanel() === "next") showPanel("bank");
  views.a.paint(); hints();
}
function theme(next) { document.documentElement.dataset.theme = next; try { localStorage.setItem("theme", next); } catch { /* private window */ } }
try { const kept = localStorage.getItem("theme"); if (kept) theme(kept); } catch { /* private window */ }
function invite(on) { find("invite").hidden = !on; }

const press = (id, run) => find(id).addEventListener("click", guarded(run));
press("theme", () => {
  const now = document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  theme(now === "dark" ? "light" : "dark");
});
press("undo", undo); press("redo", redo); press("share", share);
press("play", () => { invite(false); return play(); });
press("finish", () => finish()); press("again", () => finish());
press("clear", () => { invite(false); return blank(); });
press("swap", exchange); press("surprise", toggleSurprise);
find("ask").addEventListener("submit", (e) => { e.preventDefault(); guarded(drawAsked)(); });
find("words").addEventListener("input", suggest);
press("start-blank", () => { invite(false); document.querySelector("[name=tool][value=draw]").checked = true; toolChanged(); return blank(); });
press("start-half", finishHalf);
press("start-again", async () => { invite(false); await play(); });
press("invite-close", () => invite(false));
press("more", () => { find("seed").value = Math.floor(Math.random() * 100000); return showGallery(); });
press("morph-keep", keepMorph);
press("test", async () => load(await json("test/" + Number(find("test-index").value)), checked("target"), false));
find("seed").addEventListener("change", showGallery);
const heats = ["temperature", "gallery-temperature"];
const told = (id) => { document.querySelector(`output[for=${id}]`).textContent = Number(find(id).value).toFixed(2); };
for (const id of heats) find(id).addEventListener("input", () => told(id));
find("temperature").addEventListener("change", () => finish());
find("gallery-temperature").addEventListener("change", showGallery);
find("morph").addEventListener("input", slide);
find("step").addEventListener("input", guarded(() => { stop(); return slideTo(); }));
find("file").addEventListener("change", guarded((e) => { const [file] = find("file").files; const done = open(file, checked("target")); e.target.value = ""; return done; }));
for (const id of ["invert", "crop"]) find(id).addEventListener("change", guarded(place));
for (const button of document.querySelectorAll("[data-save]")) button.addEventListener("click", guarded(() => save(button.dataset.save)));
for (const radio of document.querySelectorAll("[name=tool]")) radio.addEventListener("change", toolChanged);
for (const name of ["a", "b"]) {
  const box = find("card-" + name);
  box.addEventListener("dragover", (e) => { e.preventDefault(); box.classList.add("drop"); });
  box.addEventListener("dragleave", () => box.classList.remove("drop"));
  box.addEventListener("drop", (e) => { e.preventDefault(); box.classList.remove("drop"); guarded(() => open(e.dataTransfer.files[0], name))(); });
}
document.addEventListener("keydown", (e) => {
  if (!(e.ctrlKey || e.metaKey) || e.target.matches("input[type=number], input[type=text]")) return;
  if (e.key.toLowerCase() === "z") { e.preventDefault(); e.shiftKey ? redo() : undo(); }
  if (e.key.toLowerCase() === "y") { e.preventDefault(); redo(); }
});
find("canvas-a").addEventListener("pointerdown", () => invite(false));

function fit() {                          // sizes of the page that depend on the model
  const style = document.documentElement.style, places = Math.max(model.rows, model.columns);
  style.setProperty("--well", model.background);
  style.setProperty("--wide", Math.min(Math.max(places * CELL + 4, 236), 264) + "px");
  for (const [key, has] of [["colour", model.channels === 3], ["test", model.test_images > 0], ["asked", model.condition !== "none"]]) {
    for (const one of document.querySelectorAll(`[data-only=${key}]`)) one.hidden = !has;
  }
  find("words").placeholder = model.condition === "class" ? `${model.vocabulary.slice(0, 3).join(", ")} …` : "what to draw"; suggest();
  find("test-index").max = model.test_images - 1;
  const keys = `${model.rows} by ${model.columns} places. Arrow keys choose a place, with Shift several`;
  find("canvas-b").setAttribute("aria-label", `Drawing to borrow from, ${keys}. Enter copies the parts to the canvas`);
  find("canvas-a").setAttribute("aria-label", `Canvas, ${keys}. Enter uses the tool, Delete erases`);
}
const PATIENCE = 400;                     // ms that the first picture waits for the examples
async function firstDrawings(answer) {
  const named = address.has("z") ? await fromAddress("#" + address).catch((error) => { tell(error.message, 10000); return {}; }) : {};
  const listed = answer.then(({examples}) => {
    const found = mixed(examples);
    showExamples(found); found.forEach(({drawing}) => tally(drawing.z));
    return found;
  });
  listed.catch((error) => tell(error.message));
  // Right after its start the server still looks for the examples; a sample is sooner there.
  const examples = await Promise.race([listed, pause(PATIENCE).then(() => [])]);
  const first = async (index) => examples[index]?.drawing ?? json("sample", {seed: index});
  return {a: named.a ?? await first(0), b: named.b ?? await first(1), linked: Boolean(named.a)};
}
(async () => {
  try {
    const [sizes, parts, examples] = ["model", "bank", "examples"].map((path) => json(path));
    for (const one of [parts, examples]) one.catch(() => {});      // told where it is awaited
    model = await sizes; fit(); hints();
    for (const id of heats) {
      const heat = find(id);
      [heat.min, heat.max] = [Math.min(0.1, model.temperature), Math.max(2, model.temperature)];
      heat.value = model.temperature; told(id);
    }
    const [{a, b, linked: named}] = await Promise.all([firstDrawings(examples), showBank(parts)]);
    await Promise.all([setA(a), setB(b)]);
    freshen(a.z);
    if (named) return;
    if (!still()) {
      const shown = pause(500);
      await loadFrames(); await shown;
      if (!playing && drawings.a === a) await play();
    }
    if (!past.length && drawings.a === a) invite(true);
  } catch (error) { tell(error.message, 60000); }
})();
