
// The page around `NPDraw` (model.js): two drawings, the image of the first, the bank, and edits.
(() => {
  const find = (id) => document.getElementById(id);
  const spec = JSON.parse(find("model").textContent);
  const {grid} = spec, MARK = "#ff5a3c", EASE = 1400; // ms for which a change is marked
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  const counted = (n) => n === 1 ? "1 part" : `${n} parts`;
  let model = null, brush = 0, timer = 0;
  const drawings = {a: null, b: null}; // {z, canvas, u}; u: the model's Gaussian latents, null if it has none
  const past = [], future = [];
  let frames = []; // of A, by the number of parts, as far as they have been shown

  function tell(text, ms = 5000) {
    find("message").textContent = text; find("message").hidden = false;
    clearTimeout(tell.timer); tell.timer = setTimeout(() => { find("message").hidden = true; }, ms);
  }

  // ---------------------------------------------------------------- pixels
  function pixelsOf({channels, height, width, data}) { // planes in [0, 1] -> ImageData
    const size = height * width, pixels = new Uint8ClampedArray(4 * size);
    for (let i = 0; i < size; i += 1) {
      for (let c = 0; c < 3; c += 1) pixels[4 * i + c] = Math.round(255 * data[(channels === 1 ? 0 : c * size) + i]);
      pixels[4 * i + 3] = 255;
    }
    return new ImageData(pixels, width, height);
  }
  function picture(planes) { // a canvas of their size
    const canvas = document.createElement("canvas");
    canvas.width = planes.width; canvas.height = planes.height;
    canvas.getContext("2d").putImageData(pixelsOf(planes), 0, 0);
    return canvas;
  }

  class View { // a pixel of the image is a square of screen pixels
    constructor(canvas) {
      this.canvas = canvas; this.marks = [];
      new ResizeObserver(() => this.paint()).observe(canvas.parentElement);
    }
    show(image, marks = [], fade = false) {
      this.image = image; this.marks = marks; this.paint(); clearTimeout(this.fading);
      if (fade) this.fading = setTimeout(() => { this.marks = []; this.paint(); }, EASE);
    }
    paint() {
      if (!this.image) return;
      const {canvas, image} = this, ratio = window.devicePixelRatio || 1, side = canvas.parentElement.clientWidth;
      this.scale = Math.max(1, Math.floor(side * ratio / Math.max(image.width, image.height)));
      canvas.width = image.width * this.scale; canvas.height = image.height * this.scale;
      canvas.style.width = canvas.width / ratio + "px"; canvas.style.height = canvas.height / ratio + "px";
      const pen = canvas.getContext("2d"); pen.imageSmoothingEnabled = false;
      pen.drawImage(image, 0, 0, canvas.width, canvas.height);
      this.overlay(pen, Math.max(1, Math.round(ratio)));
    }
    overlay() {}
  }

  class GridView extends View {
    constructor(name, act) {
      super(find("canvas-" + name)); Object.assign(this, {name, act, cursor: 0, anchor: null, drag: null, holding: false, focused: false});
      const on = (kind, run) => this.canvas.addEventListener(kind, run);
      on("pointerdown", (e) => { if (e.button || !e.isPrimary) return; this.canvas.setPointerCapture(e.pointerId); this.cursor = this.at(e); this.drag = [this.cursor, this.cursor]; this.paint(); });
      on("pointermove", (e) => { if (!e.isPrimary) return; this.say(this.at(e)); if (this.drag) { this.drag[1] = this.at(e); this.paint(); } });
      on("pointerup", (e) => { if (!e.isPrimary) return; const {drag} = this; this.drag = null; this.paint(); if (drag) this.act(...drag); });
      on("pointercancel", () => { this.drag = null; this.paint(); });
      on("pointerleave", () => { if (!this.drag) this.say(null); });
      on("keydown", (e) => this.key(e));
      on("focus", () => { this.focused = this.canvas.matches(":focus-visible"); this.paint(); });
      on("blur", () => { this.focused = false; this.anchor = null; this.holding = false; this.paint(); });
    }
    at(event) { // the place whose cell holds the pointer
      const box = this.canvas.getBoundingClientRect(), limit = (n, most) => Math.min(Math.max(Math.floor(n), 0), most - 1);
      const column = limit(((event.clientX - box.left) / box.width * grid.width + grid.left) / grid.stride, grid.columns);
      const row = limit(((event.clientY - box.top) / box.height * grid.height + grid.top) / grid.stride, grid.rows);
      return row * grid.columns + column;
    }
    key(event) {
      const step = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]}[event.key];
      if (step) {
        const row = Math.floor(this.cursor / grid.columns) + step[0], column = this.cursor % grid.columns + step[1];
        if (row >= 0 && row < grid.rows && column >= 0 && column < grid.columns) {
          if (event.shiftKey) this.anchor ??= this.cursor; else if (!this.holding) this.anchor = null;
          this.cursor = row * grid.columns + column;
        }
      } else if (event.key === "Enter") {
        if (this.name === "a" && tool() === "move" && !this.holding) { this.anchor = this.cursor; this.holding = true; }
        else { this.act(this.anchor ?? this.cursor, this.cursor); this.anchor = null; this.holding = false; }
      } else if (event.key === "Escape") { this.anchor = null; this.holding = false;
      } else if ((event.key === "Delete" || event.key === "Backspace") && this.name === "a") {
        erase(places(this.anchor ?? this.cursor, this.cursor)); this.anchor = null;
      } else return;
      event.preventDefault(); this.focused = true; this.say(this.cursor, true); this.paint();
    }
    say(place, aloud = false) {
      this.told = place;
      const z = drawings[this.name]?.z;
      const text = place === null || !z ? "" : `row ${Math.floor(place / grid.columns) + 1}, column ${place % grid.columns + 1}: `
        + (model.held(z, place).map((part) => "part " + part).join(", ") || "empty");
      find("readout-" + this.name).textContent = text;
      if (aloud) find("live").textContent = text;
    }
    overlay(pen, line) {
      const {stride, patch, rows, columns, width: w, height: h, left: x0, top: y0} = grid, s = this.scale;
      const box = (first, last, grow = 0) => {
        const [top, bottom] = [first, last].map((p) => Math.floor(p / columns)).sort((x, y) => x - y);
        const [left, right] = [first, last].map((p) => p % columns).sort((x, y) => x - y);
        const x = Math.max(left * stride - x0, 0) * s, y = Math.max(top * stride - y0, 0) * s;
        return [x + grow, y + grow, Math.min(right * stride + patch - x0, w) * s - x - 2 * grow, Math.min(bottom * stride + patch - y0, h) * s - y - 2 * grow];
      };
      pen.fillStyle = "#8a8a8a59";
      for (let i = 1; i < columns; i += 1) pen.fillRect((i * stride - x0) * s, 0, line, h * s);
      for (let i = 1; i < rows; i += 1) pen.fillRect(0, (i * stride - y0) * s, w * s, line);
      pen.strokeStyle = MARK; pen.lineWidth = 2 * line;
      if (this.marks.length) pen.strokeRect(...box(this.marks[0], this.marks[this.marks.length - 1], line));
      const chosen = this.drag || (this.anchor !== null ? [this.anchor, this.cursor] : null);
      if (chosen) {
        const spots = this.name === "a" && tool() === "move" ? chosen.map((place) => [place, place]) : [chosen];
        for (const spot of spots) { pen.fillStyle = MARK + "40"; pen.fillRect(...box(...spot)); pen.strokeRect(...box(...spot, line)); }
      }
      if (this.focused) { pen.setLineDash([4 * line, 3 * line]); pen.strokeRect(...box(this.cursor, this.cursor, line)); pen.setLineDash([]); }
    }
  }

  const tool = () => document.querySelector("[name=tool]:checked").value;
  function places(first, last) { // of the rectangle between two corners
    const [top, bottom] = [first, last].map((p) => Math.floor(p / grid.columns)).sort((x, y) => x - y), found = [];
    const [left, right] = [first, last].map((p) => p % grid.columns).sort((x, y) => x - y);
    for (let r = top; r <= bottom; r += 1) for (let c = left; c <= right; c += 1) found.push(r * grid.columns + c);
    return found;
  }

  // ---------------------------------------------------------------- the two drawings
  const views = {
    a: new GridView("a", (first, last) => {
      if (tool() === "erase") erase(places(first, last));
      else if (tool() === "put") change((z) => places(first, last).reduce((now, place) => model.put(now, place, brush), z), places(first, last));
      else if (first !== last) change((z) => model.move(z, first, last), [last]);
    }),
    b: new GridView("b", (first, last) => {
      const chosen = places(first, last);
      if (drawings.a) setA(model.composed(drawings.a, drawings.b, chosen), chosen);
    }),
    image: new View(find("canvas-image")),
  };
  const erase = (where) => change((z) => model.remove(z, where), where);
  const drawn = (z) => model.listed(z);

  function change(edit, marks) {
    if (drawings.a) setA(model.redrawn(edit(drawings.a.z), drawings.a), marks);
  }
  function setA(drawing, marks = [], remember = true) {
    if (remember && drawings.a) { past.push(drawings.a); if (past.length > 200) past.shift(); future.length = 0; }
    stop(); drawings.a = drawing; frames = [];
    const count = drawn(drawing.z).length, logP = model.logProbs(drawing.z).reduce((sum, x) => sum + x, 0);
    const slider = find("step"); slider.max = count; slider.value = count;
    showStep(count);
    views.a.show(views.a.image, marks, true); views.a.say(views.a.told ?? null);
    find("facts").textContent = `${counted(count)}, log p(z) ${logP.toFixed(1)} nats`;
    find("undo").disabled = !past.length; find("redo").disabled = !future.length;
    find("canvas-image").dataset.version = Number(find("canvas-image").dataset.version || 0) + 1;
  }
  function setB(drawing) {
    drawings.b = drawing;
    const small = find("image-b"), image = picture(model.decode(drawing.canvas, drawing.u));
    views.b.show(picture(drawing.canvas)); views.b.say(null);
    small.width = image.width; small.height = image.height; small.getContext("2d").drawImage(image, 0, 0);
    find("canvas-b").dataset.version = Number(find("canvas-b").dataset.version || 0) + 1;
  }
  function stepBack(from, to) { if (from.length) { to.push(drawings.a); setA(from.pop(), [], false); } }
  const undo = () => stepBack(past, future), redo = () => stepBack(future, past);

  function condition() { // the text of the field, in the form that the prior takes; undefined if it does not know the text
    const text = spec.condition.kind === "none" ? "" : find("words").value.trim();
    try { return text ? {tokens: model.tokens(text), guidance: spec.condition.guidance} : null; } catch (error) { tell(error.message); return undefined; }
  }
  function sampled(seed) {
    const random = new NPDraw.Random(seed), z = model.sample(random, Number(find("temperature").value), {condition: condition() ?? null});
    return model.drawn(random, z);
  }
  function drawAsked(event) {
    event.preventDefault();
    if (condition() !== undefined) { otherSeed("a"); sampleA(true); }
  }
  const seedOf = (name) => Number(find("seed-" + name).value) >>> 0;
  const otherSeed = (name) => { find("seed-" + name).value = Math.floor(Math.random() * 100000); };
  const sampleA = (replay) => { setA(sampled(seedOf("a"))); if (replay && !calm.matches) play(); };
  const sampleB = () => setB(sampled(seedOf("b")));
  function finish() { // keeps what is drawn up to the slider; the prior draws on
    const {z} = drawings.a, count = Number(find("step").value), kept = count ? drawn(z)[count - 1].step + 1 : 0;
    const random = new NPDraw.Random(Math.floor(Math.random() * 2 ** 32)), warmth = Number(find("temperature").value);
    setA(model.redrawn(model.sample(random, warmth, {start: z, kept, condition: condition() ?? null}), drawings.a));
    play(count);
  }

  // ---------------------------------------------------------------- the bank
  function showBank() {
    const [count, channels, patch] = model.bank.shape, size = channels * patch * patch, box = find("parts");
    const columns = Math.ceil(Math.sqrt(count)), sheet = document.createElement("canvas"), pen = sheet.getContext("2d");
    sheet.width = columns * patch; sheet.height = Math.ceil(count / columns) * patch;
    for (let part = 0; part < count; part += 1) {
      const planes = new NPDraw.Planes(channels, patch, patch, model.bank.data.subarray(part * size, (part + 1) * size));
      pen.putImageData(pixelsOf(planes), part % columns * patch, Math.floor(part / columns) * patch);
    }
    const factor = Math.max(1, Math.round((matchMedia("(pointer: coarse)").matches ? 40 : 30) / patch)), side = patch * factor, address = sheet.toDataURL();
    const items = document.createDocumentFragment();
    for (let part = 0; part < count; part += 1) {
      const button = document.createElement("button");
      Object.assign(button.style, {width: side + "px", height: side + "px", backgroundImage: `url(${address})`,
        backgroundSize: `${sheet.width * factor}px ${sheet.height * factor}px`,
        backgroundPosition: `-${part % columns * side}px -${Math.floor(part / columns) * side}px`});
      button.tabIndex = -1; button.setAttribute("role", "radio"); button.setAttribute("aria-checked", false); button.setAttribute("aria-label", "part " + part); button.title = "part " + part;
      button.addEventListener("click", () => choose(part, true));
      items.append(button);
    }
    box.append(items);
    box.addEventListener("keydown", (e) => {
      const move = {ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1}[e.key];
      if (move) { e.preventDefault(); choose((brush + move + count) % count, true); box.children[brush].focus(); }
    });
    const inks = Array.from({length: count}, (_, part) => model.bank.data.subarray(part * size, (part + 1) * size)
      .reduce((sum, value) => sum + Math.abs(value - grid.background), 0));
    choose(inks.indexOf(Math.max(...inks)), false); // one that shows
  }
  function choose(part, put) {
    const {children} = find("parts");
    children[brush].setAttribute("aria-checked", false); children[brush].tabIndex = -1;
    brush = part;
    children[part].setAttribute("aria-checked", true); children[part].tabIndex = 0;
    if (put) document.querySelector("[name=tool][value=put]").checked = true;
    toolChanged();
  }
  function toolChanged() {
    find("canvas-a").dataset.tool = tool();
    find("hint").textContent = {erase: "Click or drag to erase", move: "Drag a part elsewhere", put: `Click to put part ${brush}`}[tool()];
  }
  function markPart(part) { // in the bank, which scrolls to it
    find("parts").querySelector(".drawn")?.classList.remove("drawn");
    find("hint-bank").textContent = part === null ? "Choose one to put" : `Drawing part ${part}`;
    if (part === null) return;
    const box = find("parts"), button = box.children[part], top = button.offsetTop - box.offsetTop;
    button.classList.add("drawn");
    if (top < box.scrollTop || top + button.offsetHeight > box.scrollTop + box.clientHeight) box.scrollTop = top - box.clientHeight / 2;
  }

  // ---------------------------------------------------------------- the replay
  function frame(count) { // canvas and image after `count` parts
    const {z, u} = drawings.a, all = drawn(z);
    if (!frames[count]) {
      const canvas = model.render(z, count ? all[count - 1].step + 1 : 0);
      frames[count] = {canvas: picture(canvas), image: picture(model.decode(canvas, u)), last: count ? all[count - 1] : null, of: all.length};
    }
    return frames[count];
  }
  function showStep(count) {
    const {canvas, image, last, of} = frame(count), whole = count === of && !timer;
    views.a.show(canvas, whole || !last ? [] : [last.where]); views.image.show(image);
    markPart(whole || !last ? null : last.what);
    find("step-text").textContent = count === of ? counted(of) : `${count} of ${of}`;
    find("canvas-image").setAttribute("aria-label", `Image after ${counted(count)}`);
  }
  function stop() {
    clearTimeout(timer); timer = 0;
    find("play").textContent = "▶"; find("play").setAttribute("aria-label", "Replay the drawing");
  }
  function play(from = 0) {
    const slider = find("step"), most = Number(slider.max), wait = Math.min(Math.max(5000 / (most + 1), 70), 300);
    stop();
    find("play").textContent = "❚❚"; find("play").setAttribute("aria-label", "Pause");
    const advance = (count) => {
      slider.value = count;
      if (count > most) { stop(); slider.value = most; showStep(most); return; }
      timer = setTimeout(() => advance(count + 1), count === most ? 3 * wait : wait);
      showStep(count);
    };
    advance(Math.min(from, most));
  }

  function toggle() { // from the slider on; from the start if it is at the end
    const {value, max} = find("step");
    if (timer) stop(); else play(value === max ? 0 : Number(value));
  }

  // ---------------------------------------------------------------- controls
  function save() {
    const link = document.createElement("a");
    link.href = frame(Number(find("step").value)).image.toDataURL(); link.download = "image.png"; link.click();
  }
  function controls() {
    const press = (id, run) => find(id).addEventListener("click", run);
    press("sample-a", () => { otherSeed("a"); sampleA(true); }); press("sample-b", () => { otherSeed("b"); sampleB(); });
    find("seed-a").addEventListener("change", () => sampleA(true)); find("seed-b").addEventListener("change", sampleB);
    find("ask").hidden = spec.condition.kind === "none"; find("ask").addEventListener("submit", drawAsked);
    find("words").placeholder = spec.condition.kind === "class" ? `${spec.condition.entries.slice(0, 3).join(", ")} …` : "what to draw";
    press("play", toggle); press("finish", finish); press("save", save);
    press("undo", undo); press("redo", redo);
    find("step").addEventListener("input", () => { stop(); showStep(Number(find("step").value)); });
    const warmth = find("temperature"), told = () => { find("temperature-text").textContent = Number(warmth.value).toFixed(2); };
    [warmth.min, warmth.max] = [Math.min(0.1, spec.temperature), Math.max(2, spec.temperature)];
    warmth.value = spec.temperature; told();
    warmth.addEventListener("input", told); warmth.addEventListener("change", () => { sampleA(false); sampleB(); });
    for (const radio of document.querySelectorAll("[name=tool]")) radio.addEventListener("change", toolChanged);
    press("theme", () => {
      const now = document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
      document.documentElement.dataset.theme = now === "dark" ? "light" : "dark";
    });
    document.addEventListener("keydown", (e) => {
      const key = e.key.toLowerCase();
      if ((e.ctrlKey || e.metaKey) && !e.target.matches("input[type=number], input[type=text]") && (key === "z" || key === "y")) {
        e.preventDefault();
        if (key === "y" || e.shiftKey) redo(); else undo();
      } else if (key === " " && !e.target.matches("button, input, summary, a")) { e.preventDefault(); toggle(); }
    });
  }
  function words() {
    const [channels, height, width] = spec.image, kind = channels === 1 ? "grey" : "colour";
    find("name").textContent = spec.name;
    find("about").textContent = `${spec.name}: ${height} × ${width} ${kind} images${spec.source ? ` of ${spec.source}` : ""}, ${spec.parts} parts at `
      + `${grid.rows} × ${grid.columns} places, at most ${spec.steps} steps in order ${spec.order}. Licence of the model: ${spec.license}. `
      + `It runs in this page alone; made by npdraw_dist ${spec.version}.`;
    document.documentElement.style.setProperty("--well", grid.background ? "#fff" : "#000");
    const keys = `${grid.rows} by ${grid.columns} places. Arrow keys choose a place, with Shift several`;
    find("canvas-a").setAttribute("aria-label", `Your drawing, ${keys}. Enter uses the tool, Delete erases`);
    find("canvas-b").setAttribute("aria-label", `The second drawing, ${keys}. Enter copies the parts to yours`);
    for (const [name, title] of [["a", "your drawing"], ["b", "the second drawing"]]) {
      find("sample-" + name).setAttribute("aria-label", `New sample: ${title}`); find("seed-" + name).setAttribute("aria-label", `Seed of ${title}`);
    }
  }

  try {
    words(); controls();
    model = new NPDraw.Model(spec, find("weights").textContent);
    showBank();
    find("seed-a").value = spec.seed; find("seed-b").value = (spec.seed + 1) % 2 ** 32;
    sampleB(); sampleA(true);
    window.demo = {model, spec, drawings};
    setTimeout(() => { // after the first picture
      const problem = model.problem(spec.reference);
      document.documentElement.dataset.checked = problem || "right";
      if (problem) tell(`This browser draws this model wrongly: ${problem}`, 60000);
    });
  } catch (error) {
    tell(`This browser cannot draw the model: ${error.message}`, 60000);
    throw error;
  }
})();
