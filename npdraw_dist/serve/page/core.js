
"use strict";
// What all parts of the page share: elements, requests, pictures, and a drawing as text in the address.
const find = (id) => document.getElementById(id);
const png = (base64) => "data:image/png;base64," + base64;
const counted = (number) => number === 1 ? "1 part" : `${number} parts`;
const pngBlob = (base64) => new Blob([Uint8Array.from(atob(base64), (c) => c.charCodeAt(0))], {type: "image/png"});
const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
const small = () => matchMedia("(max-width: 760px)").matches;
const touch = () => small() || matchMedia("(pointer: coarse)").matches;
const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const checked = (name) => document.querySelector(`[name=${name}]:checked`).value;
const tool = () => checked("tool");
let model = null;                       // sizes of the model, from /v1/model

// The first fragment: #of= the model, #z= a drawing, #b= the other one, #token= the password of the server, which no link repeats.
const address = new URLSearchParams(location.hash.slice(1).replaceAll("+", "%2B"));  // a plus is no space in a token
let token = address.get("token");
try { if (token) sessionStorage.setItem("token", token); else token = sessionStorage.getItem("token"); } catch { /* private window */ }

// ---------------------------------------------------------------- requests

let busy = 0;
async function ask(path, body, form) {
  busy += 1; document.body.dataset.busy = "";
  const headers = token ? {Authorization: "Bearer " + token} : {};
  const request = form ? {method: "POST", body: form, headers}
    : body ? {method: "POST", headers: {...headers, "Content-Type": "application/json"}, body: JSON.stringify(body)} : {headers};
  try {
    for (let attempt = 0; ; attempt += 1) {
      const answer = await fetch("/v1/" + path, request);
      if ((answer.status === 503 || answer.status === 429) && attempt < 4) {        // the queue is full
        await pause(400 * 2 ** attempt);
        continue;
      }
      if (answer.ok) return answer;
      const problem = await answer.json().catch(() => ({}));
      if (answer.status === 401) throw new Error("This server wants a token: open the link with #token= that it printed");
      throw new Error(problem.detail || (answer.status === 503 ? "The server is busy. Try again in a moment" : `The server answered with status ${answer.status}`));
    }
  } catch (error) {
    throw error instanceof TypeError ? new Error("No answer from the server. Is it running?") : error;
  } finally {
    busy -= 1; if (!busy) delete document.body.dataset.busy;
  }
}
const json = async (...request) => (await ask(...request)).json();

function tell(text, ms = 5000) {
  find("message").textContent = text; find("message").hidden = false;
  clearTimeout(tell.timer); tell.timer = setTimeout(() => { find("message").hidden = true; }, ms);
}
// Changes of A run one after another, so that quick clicks are not lost.
let queue = Promise.resolve();
const inTurn = (work) => { queue = queue.then(work).catch((error) => tell(error.message)); return queue; };
const guarded = (run) => (event) => Promise.resolve(event).then(run).catch((error) => tell(error.message));

async function picture(base64) {
  const image = new Image(); image.src = png(base64); await image.decode(); return image;
}

// ---------------------------------------------------------------- places and drawings

function places(first, last) {            // all places of the rectangle between two corners
  const rows = [first, last].map((p) => Math.floor(p / model.columns)).sort((x, y) => x - y);
  const columns = [first, last].map((p) => p % model.columns).sort((x, y) => x - y), found = [];
  for (let r = rows[0]; r <= rows[1]; r += 1) for (let c = columns[0]; c <= columns[1]; c += 1) found.push(r * model.columns + c);
  return found;
}
// The rectangle of the places between two corners in pixels of the canvas: left, top, width, height.
function rectangle(first, last = first) {
  const {stride, patch, columns, canvas_width: w, canvas_height: h, margin_left: x0, margin_top: y0} = model;
  const corner = (place) => [Math.floor(place / columns), place % columns], [[r0, c0], [r1, c1]] = [corner(first), corner(last)];
  const x = Math.max(Math.min(c0, c1) * stride - x0, 0), y = Math.max(Math.min(r0, r1) * stride - y0, 0);
  return [x, y, Math.min(Math.max(c0, c1) * stride + patch - x0, w) - x, Math.min(Math.max(r0, r1) * stride + patch - y0, h) - y];
}
const steps = (z) => z.whether.flatMap((drawn, t) => drawn ? [[z.where[t], z.what[t]]] : []);
const drawn = (z) => [...new Set(steps(z).map(([where]) => where))];
const held = (z, place) => steps(z).filter(([where]) => where === place).map(([, what]) => what);
function empty() {
  const zeros = () => Array(model.steps).fill(0), where = model.order === "aligned" ? zeros().map((_, t) => t) : zeros();
  return {whether: zeros().map(() => false), where, what: zeros()};
}

// What links and saved drawings say of their model, and the refusal of another model's: the numbers would show another picture.
const ownModel = () => ({hash: model.hash, name: model.name});
function requireOwn(what, of) {
  if (of?.hash === model.hash) return;
  if (!of?.hash) throw new Error(`The ${what} does not say which model it was made with`);
  const name = String(of.name).slice(0, 60);
  throw new Error(`The ${what} was made with ${name === model.name ? `another bank or other settings of ${name}` : `the model ${name}, not with ${model.name}`}`);
}

// z as text for addresses: the steps that draw in varints of 7 bits; then u, if known, with the upper half of
// each number, which the eye does not tell from the whole.
const toAddress = (bytes) => btoa(bytes).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
const ofAddress = (text) => atob(text.replaceAll("-", "+").replaceAll("_", "/"));
function pack(z) {
  const bytes = [], put = (n) => { for (; n > 127; n >>= 7) bytes.push(n & 127 | 128); bytes.push(n); };
  for (const [where, what] of steps(z)) { put(where); put(what); }
  const u = z.u ? "." + toAddress(atob(z.u).replace(/..(..)/gs, "$1")) : "";
  return toAddress(String.fromCharCode(...bytes)) + u;
}
function unpack(text) {
  let numbers, u;
  try {
    const [drawn, rest] = text.split(".");
    u = rest ? btoa(ofAddress(rest).replace(/../gs, "\0\0$&")) : null;
    numbers = []; let value = 0, shift = 0;
    for (const c of ofAddress(drawn)) {
      const byte = c.charCodeAt(0); value |= (byte & 127) << shift; shift += 7;
      if (byte < 128) { numbers.push(value); value = shift = 0; }
    }
  } catch { throw new Error("The link holds no drawing"); }
  const z = empty(), given = model.order === "aligned";
  if (numbers.length % 2 || numbers.length > 2 * model.steps) throw new Error("The link holds no drawing");
  for (let i = 0; i < numbers.length; i += 2) {
    const t = given ? numbers[i] : i / 2;
    if (t >= model.steps) throw new Error("The link holds no drawing");
    z.whether[t] = true; z.where[t] = numbers[i]; z.what[t] = numbers[i + 1];
  }
  return {...z, u};
}
