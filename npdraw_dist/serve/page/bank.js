
// The bank: all parts as buttons, in an order and a choice by looks or by use.
let bank = null;                        // from /v1/bank, with the address of its sheet and the looks of each part
let brush = 0;                          // the part that the tool Part puts
const uses = new Map();                 // part -> how often drawings on this page use it
let fresh = new Set();                  // parts of the drawing that was loaded last

function tally(z) { for (const [, what] of steps(z)) uses.set(what, (uses.get(what) || 0) + 1); }

// Makes an element show a part, `side` CSS pixels wide.
function showPart(element, part, side) {
  const factor = side / bank.patch;
  Object.assign(element.style, {width: side + "px", height: side + "px", backgroundImage: `url(${bank.address})`,
    backgroundSize: `${bank.width * factor}px ${bank.height * factor}px`,
    backgroundPosition: `-${part % bank.columns * side}px -${Math.floor(part / bank.columns) * side}px`});
}

async function showBank(answer) {
  bank = await answer;
  const sheet = await picture(bank.sheet), board = document.createElement("canvas"), box = find("parts");
  Object.assign(bank, {address: URL.createObjectURL(pngBlob(bank.sheet)), width: sheet.width, height: sheet.height});
  Object.assign(board, {width: sheet.width, height: sheet.height});
  const pen = board.getContext("2d", {willReadFrequently: true}); pen.drawImage(sheet, 0, 0);
  const {data} = pen.getImageData(0, 0, sheet.width, sheet.height), side = touch() ? 40 : 34;
  bank.looks = Array.from({length: bank.size}, (_, part) => looks(data, part));
  bank.buttons = bank.looks.map((_, part) => {
    const button = document.createElement("button");
    showPart(button, part, side);
    button.setAttribute("role", "radio"); button.setAttribute("aria-label", "part " + part); button.title = "part " + part;
    button.addEventListener("click", () => choosePart(part, true));
    return button;
  });
  const shades = model.channels === 3 ? ["grey", ...HUES] : [];
  for (const name of ["dark", "middle", "bright", ...shades]) find("bank-filter").append(new Option(name, name));
  box.addEventListener("keydown", (e) => {
    const move = {ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1}[e.key], shown = [...box.children];
    if (!move || !shown.length) return;
    e.preventDefault();
    const next = shown[(shown.indexOf(bank.buttons[brush]) + move + shown.length) % shown.length];
    choosePart(bank.buttons.indexOf(next), true); next.focus();
  });
  find("bank-sort").addEventListener("change", arrange);
  find("bank-filter").addEventListener("change", arrange);
  arrange(); choosePart(0, false);
}

const HUES = ["red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink"];
const HUE_ENDS = [15, 42, 70, 165, 200, 262, 300, 340];
// pixels of a part, its brightness in [0, 1] and the name of its hue.
function looks(data, part) {
  const {patch, columns, width} = bank, left = part % columns * patch, top = Math.floor(part / columns) * patch;
  const pixels = [], mean = [0, 0, 0];
  let tint = [0, 0], chroma = 0;
  for (let y = top; y < top + patch; y += 1) {
    for (let x = left; x < left + patch; x += 1) {
      const at = 4 * (y * width + x), rgb = [data[at], data[at + 1], data[at + 2]].map((v) => v / 255), [r, g, b] = rgb;
      pixels.push(...rgb); rgb.forEach((v, c) => { mean[c] += v / patch ** 2; });
      tint = [tint[0] + r - (g + b) / 2, tint[1] + (g - b) * Math.sqrt(3) / 2];
      chroma += (Math.max(r, g, b) - Math.min(r, g, b)) / patch ** 2;
    }
  }
  const degrees = (Math.atan2(tint[1], tint[0]) * 180 / Math.PI + 360) % 360, end = HUE_ENDS.findIndex((one) => degrees < one);
  return {pixels, bright: 0.299 * mean[0] + 0.587 * mean[1] + 0.114 * mean[2], hue: chroma < 0.08 ? "grey" : HUES[Math.max(end, 0)]};
}
const distance = (p, q) => bank.looks[p].pixels.reduce((sum, v, i) => sum + (v - bank.looks[q].pixels[i]) ** 2, 0);
function passes(part, filter) {
  const {bright, hue} = bank.looks[part];
  return {all: true, dark: bright < 1 / 3, middle: bright >= 1 / 3 && bright < 2 / 3, bright: bright >= 2 / 3}[filter] ?? hue === filter;
}
function arrange() {
  if (!bank) return;
  const sort = find("bank-sort").value, filter = find("bank-filter").value, all = bank.looks.map((_, part) => part);
  const rank = new Map(bank.by_looks.map((part, index) => [part, index])), by = (key) => all.sort((p, q) => key(p) - key(q) || rank.get(p) - rank.get(q));
  if (sort === "used") by((p) => fresh.has(p) ? 0 : 1);
  if (sort === "looks") by(() => 0);
  if (sort === "use") by((p) => -(uses.get(p) || 0));
  if (sort === "similar") { const away = all.map((p) => distance(p, brush)); by((p) => away[p]); }
  const shown = all.filter((part) => passes(part, filter)), box = find("parts");
  box.replaceChildren(...shown.map((part) => bank.buttons[part])); box.scrollTop = 0;
  if (!shown.includes(brush) && shown.length) bank.buttons[shown[0]].tabIndex = 0;
  find("bank-count").textContent = shown.length === bank.size ? counted(bank.size) : `${shown.length} of ${counted(bank.size)}`;
}
// The parts of a drawing that was just loaded come first, so that the replay shows where they come from.
function freshen(z) { fresh = new Set(steps(z).map(([, what]) => what)); if (find("bank-sort").value === "used") arrange(); }
const partButton = (part) => bank?.buttons[part].isConnected ? bank.buttons[part] : null;

function choosePart(part, paint) {
  bank.buttons[brush].setAttribute("aria-checked", "false"); bank.buttons[brush].tabIndex = -1;
  brush = part;
  bank.buttons.forEach((button, index) => { button.setAttribute("aria-checked", index === part); button.tabIndex = index === part ? 0 : -1; });
  if (paint) { document.querySelector("[name=tool][value=paint]").checked = true; toolChanged(); widen("a"); }
}
