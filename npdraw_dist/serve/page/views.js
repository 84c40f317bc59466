
// Canvases: a picture in squares of screen pixels, and for A and B the grid of places over it.
class View {
  constructor(canvas) {
    this.canvas = canvas; this.image = null; this.marks = []; this.drag = null; this.cursor = 0; this.anchor = null;
    new ResizeObserver(() => this.paint()).observe(canvas.parentElement);
  }
  // marks: places to frame; with `fade` the frame disappears after a while.
  show(image, marks = [], fade = false) {
    this.image = image; this.marks = marks; this.paint(); clearTimeout(this.fading);
    if (fade) this.fading = setTimeout(() => { this.marks = []; this.paint(); }, 1600);
  }
  side() { const well = this.canvas.parentElement; return Math.min(well.clientWidth, well.clientHeight); }
  paint() {
    if (!this.image) return;
    const {canvas, image} = this, ratio = window.devicePixelRatio || 1;
    this.scale = Math.max(1, Math.floor(this.side() * ratio / Math.max(image.width, image.height)));
    canvas.width = image.width * this.scale; canvas.height = image.height * this.scale;
    canvas.style.width = canvas.width / ratio + "px"; canvas.style.height = canvas.height / ratio + "px";
    const pen = canvas.getContext("2d"); pen.imageSmoothingEnabled = false;
    pen.drawImage(image, 0, 0, canvas.width, canvas.height);
    this.overlay(pen, Math.max(1, Math.round(ratio)));
  }
  overlay() {}
}

const CELL = 40;                        // least side of a place under a finger, in CSS pixels

class GridView extends View {
  // act(first, last): a rectangle of places was chosen. stroke({points, pen}): a line was drawn, in shares of the canvas.
  constructor(name, {act, stroke, tap}) {
    super(find("canvas-" + name)); this.name = name; this.act = act; this.stroke = stroke; this.tap = tap;
    this.heat = null; this.line = null; this.waiting = []; this.focused = false; this.picked = null;
    const on = (kind, run) => this.canvas.addEventListener(kind, run);
    on("pointerdown", (e) => {
      if (e.button || !e.isPrimary || this.folded() || this.zoomed()) return;
      this.canvas.setPointerCapture(e.pointerId); this.cursor = this.at(e);
      if (this.draws()) this.line = {points: [this.share(e)], pen: penNow()}; else this.drag = [this.at(e), this.at(e)];
      this.paint();
    });
    on("pointermove", (e) => {
      if (!e.isPrimary) return;
      this.say(this.at(e));
      if (this.line) this.line.points.push(...(e.getCoalescedEvents?.() ?? []).map((one) => this.share(one)), this.share(e));
      if (this.drag) this.drag[1] = this.at(e);
      if (this.line || this.drag) this.paint();
    });
    on("pointerup", (e) => {
      if (!e.isPrimary) return;
      const {drag, line} = this; this.drag = this.line = null;
      if (line) { this.waiting.push(line); this.stroke(line); }
      if (drag) this.act(...drag);
      this.paint();
    });
    on("pointercancel", () => { this.drag = this.line = null; this.paint(); });
    on("pointerleave", () => { if (!this.drag && !this.line) this.say(null); });
    on("click", (e) => {
      if (this.folded()) return this.tap();
      if (this.zoomed()) this.choose(this.at(e));
    });
    on("keydown", (e) => this.key(e));
    on("focus", () => { this.focused = this.canvas.matches(":focus-visible"); this.paint(); });
    on("blur", () => { this.focused = false; this.anchor = null; this.paint(); });
  }
  draws() { return this.name === "a" && tool() === "draw" && openPanel() !== "next"; }
  folded() { return small() && document.querySelector(".stage").dataset.wide !== this.name; }
  // Under a finger the places are large enough to hit, if need be in a canvas that scrolls.
  zoomed() { return touch() && !this.folded() && !this.draws() && super.side() / Math.max(model.rows, model.columns) < CELL - 2; }
  side() {
    const zoom = this.zoomed();
    this.canvas.parentElement.toggleAttribute("data-zoom", zoom);
    return zoom ? CELL * Math.max(model.rows, model.columns) : super.side();
  }
  choose(place) {                       // by a tap or by Enter; Move takes two of them
    const moving = this.name === "a" && tool() === "move" && openPanel() !== "next";
    this.cursor = place;
    if (moving && this.picked === null) this.picked = place;
    else { this.act(this.picked ?? this.anchor ?? place, place); this.picked = this.anchor = null; }
    this.paint();
  }
  share(event) {
    const box = this.canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  }
  at(event) {
    const [x, y] = this.share(event), limit = (n, most) => Math.min(Math.max(Math.floor(n), 0), most - 1);
    const column = limit((x * model.canvas_width + model.margin_left) / model.stride, model.columns);
    return limit((y * model.canvas_height + model.margin_top) / model.stride, model.rows) * model.columns + column;
  }
  key(event) {
    const moves = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]}, step = moves[event.key];
    if (step) {
      const row = Math.floor(this.cursor / model.columns) + step[0], column = this.cursor % model.columns + step[1];
      if (row >= 0 && row < model.rows && column >= 0 && column < model.columns) {
        if (event.shiftKey) this.anchor ??= this.cursor; else this.anchor = null;
        this.cursor = row * model.columns + column;
      }
    } else if (event.key === "Enter" || event.key === " ") this.choose(this.cursor);
    else if (event.key === "Escape") this.anchor = this.picked = null;
    else if ((event.key === "Delete" || event.key === "Backspace") && this.name === "a") {
      erase(places(this.anchor ?? this.cursor, this.cursor)); this.anchor = null;
    } else return;
    event.preventDefault(); this.focused = true; this.paint();
    if (step || event.key === "Escape") this.say(this.cursor, true);
    else inTurn(() => this.say(this.cursor, true));  // after the edit
  }
  say(place, aloud = false) {
    const z = drawings[this.name]?.z;
    if (place === null || !z) return hints();
    const parts = held(z, place).map((part) => "part " + part).join(", ") || "empty";
    const text = `row ${Math.floor(place / model.columns) + 1}, column ${place % model.columns + 1}: ${parts}`;
    find("hint-" + this.name).textContent = text;
    if (aloud) find("live").textContent = text;
  }
  overlay(pen, line) {
    const {rows, columns} = model, s = this.scale, mark = "#ff5a3c";
    const box = (first, last, grow = 0) => {
      const [x, y, w, h] = rectangle(first, last).map((n) => n * s);
      return [x + grow, y + grow, w - 2 * grow, h - 2 * grow];
    };
    if (this.heat) {                      // where the prior would draw next
      const most = Math.max(...this.heat, 1e-9);
      this.heat.forEach((p, place) => { pen.fillStyle = `rgb(255 90 60 / ${0.75 * Math.sqrt(p / most)})`; pen.fillRect(...box(place)); });
    }
    pen.fillStyle = "#8a8a8a4d";
    const [right, bottom] = [columns - 1, (rows - 1) * columns];
    for (let c = 1; c <= right; c += 1) pen.fillRect(box(c)[0], 0, line, this.canvas.height);
    for (let r = columns; r <= bottom; r += columns) pen.fillRect(0, box(r)[1], this.canvas.width, line);
    pen.strokeStyle = mark; pen.lineWidth = 2 * line;
    if (this.marks.length) pen.strokeRect(...box(this.marks[0], this.marks[this.marks.length - 1], line));
    const moving = this.name === "a" && tool() === "move";
    const chosen = this.drag ?? (this.anchor !== null ? [this.anchor, this.cursor] : this.picked !== null ? [this.picked, this.picked] : null);
    for (const pair of !chosen ? [] : moving ? [[chosen[0], chosen[0]], [chosen[1], chosen[1]]] : [chosen]) {
      pen.fillStyle = "#ff5a3c40"; pen.fillRect(...box(...pair)); pen.strokeRect(...box(...pair, line));
    }
    if (this.focused) { pen.setLineDash([4 * line, 3 * line]); pen.strokeRect(...box(this.cursor, this.cursor, line)); pen.setLineDash([]); }
    for (const one of [...this.waiting, ...(this.line ? [this.line] : [])]) trace(pen, one, this.canvas.width, this.canvas.height);
  }
}

// A line by hand, with the pen of its time. points in shares of width and height, the pen's width in percent.
const penNow = () => ({colour: inkColour(), width: Number(find("pen-width").value)});
function trace(context, {points, pen: {colour, width: thick}}, width, height) {
  Object.assign(context, {strokeStyle: colour, lineWidth: thick / 100 * width, lineCap: "round", lineJoin: "round"});
  context.beginPath(); context.moveTo(points[0][0] * width, points[0][1] * height);
  for (const [x, y] of points) context.lineTo(x * width, y * height);
  if (points.length === 1) context.lineTo(points[0][0] * width + 0.01, points[0][1] * height);
  context.stroke();
}
const inkColour = () => model.channels === 3 ? find("pen-colour").value : model.background === "white" ? "#000" : "#fff";
