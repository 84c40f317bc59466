"use strict";
// NP-DRAW in plain JavaScript: the prior with its KV cache, the renderer, the decoder and the edits of a drawing.
// It mirrors npdraw_dist/nn (prior, decoder, authors/network, appearance, likelihoods) and
// npdraw_dist/core (paste, editing), and touches no document.
// Shapes: T steps, L places, K parts, C channels, P patch side, h x w canvas, H x W image, W channels of a token.

const NPDraw = (() => {
  const EPSILON = 1e-5; // of LayerNorm and GroupNorm, as torch has it

  // -------------------------------------------------------------- random numbers: sfc32, from one seed
  class Random {
    constructor(seed) {
      let mixed = seed >>> 0;
      const next = () => {
        mixed = (mixed + 0x9e3779b9) | 0;
        let t = Math.imul(mixed ^ (mixed >>> 16), 0x21f0aaad);
        t = Math.imul(t ^ (t >>> 15), 0x735a2d97);
        return (t ^ (t >>> 15)) >>> 0;
      };
      [this.a, this.b, this.c, this.d] = [next(), next(), next(), 1];
      for (let i = 0; i < 12; i += 1) this.uniform();
    }

    uniform() { // in [0, 1)
      const t = (this.a + this.b + this.d) | 0;
      this.d = (this.d + 1) | 0;
      this.a = this.b ^ (this.b >>> 9);
      this.b = (this.c + (this.c << 3)) | 0;
      this.c = ((this.c << 21) | (this.c >>> 11)) + t | 0;
      return (t >>> 0) / 2 ** 32;
    }

    normals(count) { // Box and Muller
      return Float32Array.from({length: count}, () =>
        Math.sqrt(-2 * Math.log(1 - this.uniform())) * Math.cos(2 * Math.PI * this.uniform()));
    }

    categorical(logits, temperature) {
      let most = -Infinity, total = 0;
      for (const value of logits) most = Math.max(most, value);
      const weights = Float64Array.from(logits, (value) => Math.exp((value - most) / temperature));
      for (const weight of weights) total += weight;
      let left = this.uniform() * total, possible = 0;
      for (let i = 0; i < weights.length; i += 1) {
        if (weights[i]) possible = i; // rounding may leave a rest after the last
        left -= weights[i];
        if (left < 0) return i;
      }
      return possible;
    }
  }

  // -------------------------------------------------------------- functions of numbers
  const sigmoid = (x) => 1 / (1 + Math.exp(-x));
  const softplus = (x) => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));
  const silu = (x) => x * sigmoid(x);
  const relu = (x) => Math.max(x, 0);
  const clamp = (x, low, high) => Math.min(Math.max(x, low), high);
  function gelu(x) { // erf by Abramowitz and Stegun 7.1.26, error below 1.5e-7
    const a = Math.abs(x) * Math.SQRT1_2, t = 1 / (1 + 0.3275911 * a);
    const tail = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
    const erf = 1 - tail * Math.exp(-a * a);
    return 0.5 * x * (1 + (x < 0 ? -erf : erf));
  }
  function logSoftmaxAt(logits, index) {
    let most = -Infinity, total = 0;
    for (const value of logits) most = Math.max(most, value);
    for (const value of logits) total += Math.exp(value - most);
    return logits[index] - most - Math.log(total);
  }

  // -------------------------------------------------------------- layers of vectors
  function linear(x, weight, bias) { // x (I), weight (O, I) -> (O)
    const inputs = x.length, outputs = weight.data.length / inputs, y = new Float32Array(outputs), w = weight.data;
    for (let o = 0, at = 0; o < outputs; o += 1) {
      let sum = bias ? bias.data[o] : 0;
      for (let i = 0; i < inputs; i += 1, at += 1) sum += w[at] * x[i];
      y[o] = sum;
    }
    return y;
  }
  function layerNorm(x, weight, bias) {
    let mean = 0, variance = 0;
    for (const value of x) mean += value / x.length;
    for (const value of x) variance += (value - mean) ** 2 / x.length;
    const scale = 1 / Math.sqrt(variance + EPSILON);
    return x.map((value, i) => (value - mean) * scale * weight.data[i] + bias.data[i]);
  }
  const plus = (x, y) => x.map((value, i) => value + y[i]);
  const row = (table, index, width) => table.data.subarray(index * width, (index + 1) * width);

  // -------------------------------------------------------------- layers of maps (channels, height, width)
  class Planes {
    constructor(channels, height, width, data = new Float32Array(channels * height * width)) {
      Object.assign(this, {channels, height, width, data});
    }
    map(change) { return new Planes(this.channels, this.height, this.width, this.data.map((x) => change(x))); }
    plus(other) { return new Planes(this.channels, this.height, this.width, plus(this.data, other.data)); }
    // The rectangle from (top, left); what lies outside of these planes has the value `fill`.
    window(top, left, height, width, fill = 0) {
      if (!top && !left && height === this.height && width === this.width) return this;
      const out = new Planes(this.channels, height, width), inside = Math.min(this.width, left + width);
      if (fill) out.data.fill(fill);
      for (let c = 0; c < this.channels; c += 1) {
        for (let y = Math.max(0, -top); y < height && y + top < this.height; y += 1) {
          const from = (c * this.height + y + top) * this.width;
          out.data.set(this.data.subarray(from + Math.max(left, 0), from + inside), (c * height + y) * width + Math.max(-left, 0));
        }
      }
      return out;
    }
    static cat(...planes) {
      const [{height, width}] = planes, out = new Planes(planes.reduce((n, p) => n + p.channels, 0), height, width);
      let at = 0;
      for (const one of planes) { out.data.set(one.data, at); at += one.data.length; }
      return out;
    }
  }

  function conv(x, weight, bias, stride = 1, padding = 0) { // weight (O, I, k, k)
    const [outputs, inputs, side] = weight.shape;
    const padded = x.window(-padding, -padding, x.height + 2 * padding, x.width + 2 * padding);
    const height = Math.floor((padded.height - side) / stride) + 1, width = Math.floor((padded.width - side) / stride) + 1;
    const out = new Planes(outputs, height, width), size = padded.height * padded.width, w = weight.data;
    for (let o = 0; o < outputs; o += 1) {
      const sum = out.data.subarray(o * height * width, (o + 1) * height * width);
      if (bias) sum.fill(bias.data[o]);
      for (let i = 0; i < inputs; i += 1) {
        const seen = padded.data.subarray(i * size, (i + 1) * size), at = (o * inputs + i) * side * side;
        if (side === 3 && stride === 1) addNine(sum, seen, w, at, height, width, padded.width);
        else addTaps(sum, seen, w, at, {side, stride, height, width, across: padded.width});
      }
    }
    return out;
  }
  // The taps of a 3x3 kernel at once: most of the work of a decoder.
  function addNine(sum, seen, w, at, height, width, across) {
    const a = w[at], b = w[at + 1], c = w[at + 2], d = w[at + 3], e = w[at + 4], f = w[at + 5];
    const g = w[at + 6], h = w[at + 7], k = w[at + 8];
    for (let y = 0; y < height; y += 1) {
      let p = y * across, q = p + across, r = q + across;
      for (let to = y * width, end = to + width; to < end; to += 1, p += 1, q += 1, r += 1) {
        sum[to] += a * seen[p] + b * seen[p + 1] + c * seen[p + 2] + d * seen[q] + e * seen[q + 1] + f * seen[q + 2]
          + g * seen[r] + h * seen[r + 1] + k * seen[r + 2];
      }
    }
  }
  function addTaps(sum, seen, w, at, {side, stride, height, width, across}) {
    for (let dy = 0; dy < side; dy += 1) {
      for (let dx = 0; dx < side; dx += 1) {
        const tap = w[at + dy * side + dx];
        for (let y = 0, to = 0; y < height; y += 1) {
          let from = (y * stride + dy) * across + dx;
          for (let x = 0; x < width; x += 1, to += 1, from += stride) sum[to] += tap * seen[from];
        }
      }
    }
  }
  function convTransposed(x, weight, bias, stride, padding) { // weight (I, O, k, k)
    const [inputs, outputs, side] = weight.shape, size = x.height * x.width;
    const out = new Planes(outputs, (x.height - 1) * stride + side, (x.width - 1) * stride + side);
    for (let o = 0; o < outputs; o += 1) {
      const base = o * out.height * out.width;
      if (bias) out.data.fill(bias.data[o], base, base + out.height * out.width);
      for (let i = 0; i < inputs; i += 1) {
        for (let tap = 0; tap < side * side; tap += 1) {
          const w = weight.data[(i * outputs + o) * side * side + tap], dy = Math.floor(tap / side), dx = tap % side;
          for (let y = 0; y < x.height; y += 1) {
            let to = base + (y * stride + dy) * out.width + dx;
            for (let at = i * size + y * x.width, end = at + x.width; at < end; at += 1, to += stride) out.data[to] += w * x.data[at];
          }
        }
      }
    }
    return out.window(padding, padding, out.height - 2 * padding, out.width - 2 * padding);
  }
  function groupNorm(x, weight, bias) { // gcd(8, channels) groups
    const groups = [8, 4, 2, 1].find((n) => x.channels % n === 0), size = x.data.length / groups, plane = x.height * x.width;
    const out = new Planes(x.channels, x.height, x.width);
    for (let g = 0; g < groups; g += 1) {
      let mean = 0, variance = 0;
      for (let i = g * size; i < (g + 1) * size; i += 1) mean += x.data[i] / size;
      for (let i = g * size; i < (g + 1) * size; i += 1) variance += (x.data[i] - mean) ** 2 / size;
      const scale = 1 / Math.sqrt(variance + EPSILON);
      for (let i = g * size; i < (g + 1) * size; i += 1) {
        const c = Math.floor(i / plane);
        out.data[i] = (x.data[i] - mean) * scale * weight.data[c] + bias.data[c];
      }
    }
    return out;
  }
  function unshuffle(x, factor) { // pixels of a cell become channels
    const out = new Planes(x.channels * factor ** 2, x.height / factor, x.width / factor);
    for (let c = 0, from = 0; c < x.channels; c += 1) {
      for (let y = 0; y < x.height; y += 1) {
        for (let xx = 0; xx < x.width; xx += 1, from += 1) {
          const channel = (c * factor + y % factor) * factor + xx % factor;
          out.data[(channel * out.height + Math.floor(y / factor)) * out.width + Math.floor(xx / factor)] = x.data[from];
        }
      }
    }
    return out;
  }
  function shuffle(x, factor) { // its inverse
    const out = new Planes(x.channels / factor ** 2, x.height * factor, x.width * factor);
    for (let c = 0, to = 0; c < out.channels; c += 1) {
      for (let y = 0; y < out.height; y += 1) {
        for (let xx = 0; xx < out.width; xx += 1, to += 1) {
          const channel = (c * factor + y % factor) * factor + xx % factor;
          out.data[to] = x.data[(channel * x.height + Math.floor(y / factor)) * x.width + Math.floor(xx / factor)];
        }
      }
    }
    return out;
  }
  function nearest(x, height, width) {
    const out = new Planes(x.channels, height, width);
    for (let c = 0, to = 0; c < x.channels; c += 1) {
      for (let y = 0; y < height; y += 1) {
        const from = (c * x.height + Math.floor(y * x.height / height)) * x.width;
        for (let xx = 0; xx < width; xx += 1, to += 1) out.data[to] = x.data[from + Math.floor(xx * x.width / width)];
      }
    }
    return out;
  }
  function bilinear(x, factor) { // centres of pixels are aligned, as by torch's align_corners=False
    const out = new Planes(x.channels, x.height * factor, x.width * factor);
    const between = (to, size) => {
      const at = Math.max((to + 0.5) / factor - 0.5, 0), low = Math.floor(at);
      return [low, Math.min(low + 1, size - 1), at - low];
    };
    for (let c = 0, to = 0; c < x.channels; c += 1) {
      const pixel = (y, xx) => x.data[(c * x.height + y) * x.width + xx];
      for (let y = 0; y < out.height; y += 1) {
        const [y0, y1, fy] = between(y, x.height);
        for (let xx = 0; xx < out.width; xx += 1, to += 1) {
          const [x0, x1, fx] = between(xx, x.width);
          out.data[to] = (pixel(y0, x0) * (1 - fx) + pixel(y0, x1) * fx) * (1 - fy) + (pixel(y1, x0) * (1 - fx) + pixel(y1, x1) * fx) * fy;
        }
      }
    }
    return out;
  }

  // -------------------------------------------------------------- weights
  class Weights {
    constructor(tensors, base64) {
      const text = atob(base64), bytes = new Uint8Array(text.length), halves = new Float32Array(1 << 16);
      for (let i = 0; i < text.length; i += 1) bytes[i] = text.charCodeAt(i);
      for (let bits = 0; bits < halves.length; bits += 1) { // no infinities: the exporter refuses them
        const exponent = bits >> 10 & 31, fraction = bits & 1023;
        halves[bits] = (bits & 0x8000 ? -1 : 1) * (exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24);
      }
      this.unread = new Set(Object.keys(tensors));
      this.tensors = {};
      for (const [name, {shape, type, start}] of Object.entries(tensors)) {
        const count = shape.reduce((n, m) => n * m, 1), data = {
          float16: () => Float32Array.from(new Uint16Array(bytes.buffer, start, count), (bits) => halves[bits]),
          float32: () => new Float32Array(bytes.buffer, start, count),
          bytes: () => Float32Array.from(new Uint8Array(bytes.buffer, start, count), (value) => Math.fround(value / 255)),
        }[type]();
        this.tensors[name] = {shape, data};
      }
    }
    get(name) {
      if (!this.tensors[name]) throw new Error(`the page holds no weights ${name}`);
      this.unread.delete(name);
      return this.tensors[name];
    }
    maybe(name) { return this.tensors[name] ? this.get(name) : null; }
    pair(name) { return [this.get(`${name}.weight`), this.maybe(`${name}.bias`)]; }
    linear(name) { const pair = this.pair(name); return (x) => linear(x, ...pair); }
    layerNorm(name) { const pair = this.pair(name); return (x) => layerNorm(x, ...pair); }
    conv(name, stride = 1, padding = 0) { const pair = this.pair(name); return (x) => conv(x, ...pair, stride, padding); }
    transposed(name, stride, padding) { const pair = this.pair(name); return (x) => convTransposed(x, ...pair, stride, padding); }
    groupNorm(name) { const pair = this.pair(name); return (x) => groupNorm(x, ...pair); }
    residual(name) { // nn/blocks.py, ResidualBlock
      const norms = [1, 2].map((i) => this.groupNorm(`${name}.norm${i}`)), convs = [1, 2].map((i) => this.conv(`${name}.conv${i}`, 1, 1));
      return (x) => x.plus(convs[1](norms[1](convs[0](norms[0](x).map(silu))).map(silu)));
    }
  }
  const chain = (layers) => (x) => layers.reduce((value, layer) => layer(value), x);
  const eachPixel = (change) => (x) => x.map(change);

  // -------------------------------------------------------------- canvas: places, parts, ink
  class Canvas {
    constructor(spec, bank) {
      this.spec = spec; this.grid = spec.grid; this.bank = bank;
      [, this.channels, this.patch] = bank.shape;
    }
    blank(channels, value) {
      const out = new Planes(channels, this.grid.height, this.grid.width);
      return new Planes(channels, out.height, out.width, out.data.fill(value));
    }
    // Calls run(pixel of the canvas, pixel of the part) for the pixels of a place that are on the canvas.
    each(place, run) {
      const {height, width, stride, columns, top, left} = this.grid, {patch} = this;
      const y0 = Math.floor(place / columns) * stride - top, x0 = place % columns * stride - left;
      for (let y = Math.max(0, -y0); y < patch && y + y0 < height; y += 1) {
        for (let x = Math.max(0, -x0); x < patch && x + x0 < width; x += 1) run((y + y0) * width + x + x0, y * patch + x);
      }
    }
    // The canvas of the first `steps` steps of z: the most ink of all parts and of the background.
    render(z, steps = z.whether.length) {
      const {background, height, width} = this.grid, out = this.blank(this.channels, background);
      const more = background ? Math.min : Math.max, side = this.patch ** 2;
      for (let t = 0; t < steps; t += 1) {
        if (!z.whether[t]) continue;
        const part = row(this.bank, z.what[t], this.channels * side);
        this.each(z.where[t], (pixel, own) => {
          for (let c = 0; c < this.channels; c += 1) {
            const at = c * height * width + pixel;
            out.data[at] = more(out.data[at], part[c * side + own]);
          }
        });
      }
      return out;
    }
    // Ink and covered pixels (C + 1, h, w): what the stems of canvases see.
    seen(z) {
      const covered = this.blank(1, 0), {background} = this.grid;
      z.whether.forEach((drawn, t) => { if (drawn) this.each(z.where[t], (pixel) => { covered.data[pixel] = 1; }); });
      return Planes.cat(background ? this.render(z).map((x) => 1 - x) : this.render(z), covered);
    }
  }

  // -------------------------------------------------------------- prior
  class Block { // nn/blocks.py, TransformerBlock.step
    constructor(weights, name, spec, last) {
      this.heads = spec.attention_heads; this.size = spec.head_width;
      this.norm1 = weights.layerNorm(`${name}.norm1`); this.norm2 = weights.layerNorm(`${name}.norm2`);
      this.qkv = weights.linear(`${name}.qkv`); this.out = weights.linear(`${name}.out`);
      this.first = weights.linear(`${name}.mlp.0`); this.last = weights.linear(`${name}.mlp.${last}`);
    }
    step(x, cache) {
      const {heads, size} = this, wide = heads * size, qkv = this.qkv(this.norm1(x));
      cache.push([qkv.subarray(wide, 2 * wide), qkv.subarray(2 * wide)]);
      const merged = new Float32Array(wide);
      for (let h = 0; h < heads; h += 1) {
        const from = h * size, scores = cache.map(([keys]) => {
          let sum = 0;
          for (let d = from; d < from + size; d += 1) sum += qkv[d] * keys[d];
          return sum / Math.sqrt(size);
        });
        const most = Math.max(...scores), weights = scores.map((score) => Math.exp(score - most));
        const total = weights.reduce((sum, weight) => sum + weight, 0);
        cache.forEach(([, values], t) => {
          const share = weights[t] / total;
          for (let d = from; d < from + size; d += 1) merged[d] += share * values[d];
        });
      }
      const y = plus(x, this.out(merged));
      return plus(y, this.last(this.first(this.norm2(y)).map(gelu)));
    }
  }

  class StepPrior { // nn/prior.py, StepPrior
    constructor(spec, weights, canvas) {
      this.spec = spec; this.canvas = canvas; this.width = spec.prior.width;
      this.position = weights.get("prior.position");
      const last = spec.authors ? 3 : 2;
      this.blocks = Array.from({length: spec.prior.depth}, (_, i) => new Block(weights, `prior.blocks.${i}`, spec.prior, last));
    }
    // The logits before each step. The caller fills the step in z before it asks for the next.
    // condition: {tokens, guidance} as in GivenPrior of nn/prior.py, or null.
    * states(z, condition = null) {
      if (!condition) { yield* this.walk(z); return; }
      const pairs = [this.walk(z, condition.tokens), this.walk(z)], mixed = (c, u) => u + condition.guidance * (c - u);
      const all = (c, u) => c.map((value, i) => mixed(value, u[i]));
      for (let found = pairs.map((walk) => walk.next()); !found[0].done; found = pairs.map((walk) => walk.next())) {
        const [given, free] = found.map(({value}) => value);
        yield {whether: mixed(given.whether, free.whether), where: given.where && all(given.where, free.where), what: (where) => all(given.what(where), free.what(where))};
      }
    }
    * walk(z, told = []) {
      const caches = this.blocks.map(() => []);
      for (const [token, ahead] of this.tokens(z, told)) {
        let x = token;
        this.blocks.forEach((block, i) => { x = block.step(x, caches[i]); });
        if (!ahead) yield this.logits(x);
      }
    }
  }

  class Prior extends StepPrior { // nn/prior.py, Prior
    constructor(spec, weights, canvas) {
      super(spec, weights, canvas);
      this.blank = weights.get("prior.blank").data;
      this.last = weights.linear("prior.last"); this.norm = weights.layerNorm("prior.norm");
      if (spec.prior.table === "joint") this.table = weights.get("prior.table");
      else {
        this.codes = weights.get("prior.codes"); this.places = weights.get("prior.places");
        this.out = weights.linear("prior.drawn.out");
        this.part = weights.get("prior.part.weight"); this.place = weights.get("prior.place.weight");
      }
      this.whether = weights.linear("prior.whether_head");
      this.where = spec.where_given ? null : weights.linear("prior.where_head");
      this.state = weights.linear("prior.what_state"); this.what = weights.linear("prior.what_head");
      this.chosen = weights.maybe("prior.chosen_place.weight"); this.scale = weights.maybe("prior.head_place");
      this.entry = weights.maybe("prior.told.entry"); this.ahead = weights.maybe("prior.told.position");
    }
    added(where, what) { // what a part at a place adds to the running sum
      const {width} = this, parts = this.spec.parts;
      if (this.table) return row(this.table, where * parts + what, width);
      const rank = this.codes.shape[1], place = row(this.places, where, rank);
      const product = row(this.codes, what, rank).map((code, i) => code * place[i]);
      return plus(plus(this.out(product), row(this.part, what, width)), row(this.place, where, width));
    }
    * tokens(z, told) { // told: entries of the vocabulary from 1 on
      for (let t = 0; this.ahead && t < this.ahead.shape[0]; t += 1) {
        yield [plus(row(this.entry, told[t] || 0, this.width), row(this.ahead, t, this.width)), true];
      }
      const nothing = new Float32Array(this.width);
      let before = nothing, canvas = nothing;
      for (let t = 0; t < this.spec.steps; t += 1) {
        let token = plus(plus(canvas, this.last(before)), row(this.position, t, this.width));
        if (t && !z.whether[t - 1]) token = plus(token, this.blank);
        yield [token, false];
        before = z.whether[t] ? this.added(z.where[t], z.what[t]) : nothing;
        canvas = plus(canvas, before);
      }
    }
    logits(x) {
      const h = this.norm(x), state = this.state(h);
      const what = (where) => {
        const known = (this.chosen ? plus(state, row(this.chosen, where, this.width)) : state).map(gelu);
        const scale = this.scale && row(this.scale, where, this.width);
        return this.what(scale ? known.map((value, i) => value * scale[i]) : known);
      };
      return {whether: this.whether(h)[0], where: this.where && this.where(h), what};
    }
  }

  class CanvasPrior extends StepPrior { // nn/authors/network.py
    constructor(spec, weights, canvas) {
      super(spec, weights, canvas);
      this.first = weights.get("prior.first").data;
      const convs = [weights.conv("prior.stem.0", 2, 1), eachPixel(relu), weights.conv("prior.stem.2")];
      const flat = weights.linear("prior.stem.4");
      this.embedded = (z) => flat(chain(convs)(this.canvas.seen(z)).data);
      const head = (name) => {
        const layers = [0, 2].map((i) => weights.linear(`prior.${name}_head.${i}`));
        return (h) => layers[1](layers[0](h).map(relu));
      };
      this.whether = head("whether"); this.where = spec.where_given ? null : head("where"); this.what = head("what");
    }
    * tokens(z) {
      yield [plus(this.first, row(this.position, 0, this.width)), true];
      for (let t = 0; t < this.spec.steps; t += 1) yield [plus(this.embedded(z), row(this.position, 1 + t, this.width)), false];
    }
    logits(h) { return {whether: this.whether(h)[0], where: this.where && this.where(h), what: () => this.what(h)}; }
  }

  // -------------------------------------------------------------- decoder: canvas and features -> parameters
  function cellsDecoder(spec, weights) { // nn/decoder.py
    const {downscale: upscale} = spec, inlet = weights.conv("decoder.inlet", 1, 1);
    const blocks = Array.from({length: spec.decoder_depth}, (_, i) => weights.residual(`decoder.blocks.${i}`));
    const outlet = [weights.groupNorm("decoder.outlet.0"), eachPixel(silu), weights.conv("decoder.outlet.2")];
    const last = weights.conv("decoder.last", 1, 1);
    return (canvas, added) => {
      let h = inlet(cells(canvas, spec.grid.background));
      if (added) h = h.plus(added);
      h = shuffle(chain([...blocks, ...outlet])(h), 2 * upscale);
      h = h.window(0, 0, canvas.height * upscale, canvas.width * upscale).map(silu);
      const near = canvas.map((x) => 2 * x - 1);
      return last(Planes.cat(h, upscale > 1 ? bilinear(near, upscale) : near));
    };
  }
  function cells(canvas, background) { // in [-1, 1], on cells of 2x2 pixels
    const even = canvas.window(0, 0, canvas.height + canvas.height % 2, canvas.width + canvas.width % 2, background);
    return unshuffle(even.map((x) => 2 * x - 1), 2);
  }
  function stridedDecoder(spec, weights) { // nn/authors/network.py
    const {downscale: upscale} = spec, layers = [];
    let index = 0;
    const name = () => `decoder.layers.${index++}`;
    const normed = (layer) => { layers.push(layer, weights.groupNorm(name()), eachPixel(relu)); index += 1; };
    for (let i = 0; i < 2; i += 1) normed(weights.conv(name(), 2, 1));
    for (let i = 0; i < spec.decoder_depth; i += 1) {
      const own = name() + ".layers.", inner = chain([weights.conv(own + 0, 1, 1), weights.groupNorm(own + 1), eachPixel(relu), weights.conv(own + 3), weights.groupNorm(own + 4)]);
      layers.push((x) => { const h = x.map(relu); return h.plus(inner(h)); });
    }
    for (let i = 0; i < 2; i += 1) normed(weights.transposed(name(), 2, 1));
    if (upscale > 1) { normed(weights.transposed(name(), upscale, 0)); layers.push(weights.conv(name())); }
    layers.push(weights.conv(name()));
    return (canvas) => {
      const {height, width} = canvas, ink = spec.grid.background ? canvas.map((x) => 1 - x) : canvas;
      const output = chain(layers)(ink.window(0, 0, height + (4 - height % 4) % 4, width + (4 - width % 4) % 4));
      return output.window(0, 0, height * upscale, width * upscale);
    };
  }

  // -------------------------------------------------------------- appearance: Gaussians u that the decoder also sees
  function makeAppearance(spec, weights) { // nn/appearance.py; noise: u in standard deviations from its mean; null: the mean
    if (!spec.appearance) return null;
    const {kind, latents, size, coarse_size: coarse, log_std: [least, most]} = spec.appearance;
    if (kind === "global") {
      const spread = weights.linear("appearance.spread"), out = weights.conv("appearance.out", 1, 1), count = spread(new Float32Array(latents)).length;
      const features = (u) => out(nearest(new Planes(count / (coarse[0] * coarse[1]), ...coarse, spread(u).map(silu)), ...size));
      return {count: latents, features, u: (canvas, noise) => noise || new Float32Array(latents), joined: (canvas, [{u}]) => u};
    }
    const name = "appearance.of_canvas.", encode = chain([weights.conv(name + 0, 2, 1), weights.residual(name + 1), weights.groupNorm(name + 2), eachPixel(silu), weights.conv(name + 4, 1, 1)]);
    const spread = weights.conv("appearance.spread", 1, 1), out = weights.transposed("appearance.out", 2, 1);
    const u = (canvas, noise) => {
      const {data} = encode(cells(canvas, spec.grid.background)), half = data.length / 2;
      return data.subarray(0, half).map((mean, i) => mean + (noise ? Math.exp(clamp(data[half + i], least, most)) * noise[i] : 0));
    };
    return {
      count: latents * coarse[0] * coarse[1], u,
      // Each cell of 4x4 pixels has u of the first donor whose canvas is the same there, else the mean.
      // own: the pixels that may be the donor's own; undefined: all.
      joined(canvas, donors) {
        const out = u(canvas, null), {channels, height, width, data} = canvas, cells = coarse[0] * coarse[1];
        for (const {u, canvas: other, own} of [...donors].reverse()) {
          const differs = new Uint8Array(cells);
          for (let i = 0; i < channels * height * width; i += 1) {
            const pixel = i % (height * width), row = Math.floor(pixel / width);
            if (data[i] !== other.data[i] || (own && !own[pixel])) differs[Math.floor(row / 4) * coarse[1] + Math.floor(pixel % width / 4)] = 1;
          }
          for (let i = 0; i < out.length; i += 1) if (!differs[i % cells]) out[i] = u[i];
        }
        return out;
      },
      features: (u) => out(spread(new Planes(latents, ...coarse, u)).map(silu)).window(0, 0, ...size),
    };
  }

  // -------------------------------------------------------------- likelihood: parameters -> mean image in [0, 1]
  function meanOf(spec, output) { // nn/likelihoods.py, Likelihood.mean
    const {name, components, start, min_log_scale: least, max_log_scale: most} = spec.likelihood, channels = spec.image[0];
    if (name === "bernoulli") return output.map(sigmoid);
    const shift = Math.log(Math.expm1(start - least)), logScale = (raw) => Math.min(least + softplus(raw + shift), most);
    const clipped = (location, raw) => { // E[clip(y, -1, 1)] of a logistic y
      const scale = Math.exp(logScale(raw));
      return clamp(1 - scale * (softplus((1 - location) / scale) - softplus((-1 - location) / scale)), -1, 1);
    };
    const size = output.height * output.width, out = new Planes(channels, output.height, output.width), {data} = output;
    if (name === "logistic") {
      for (let i = 0; i < out.data.length; i += 1) out.data[i] = (clipped(data[i], data[out.data.length + i]) + 1) / 2;
      return out;
    }
    const at = (group, component, pixel) => data[(group * components + component) * size + pixel];
    const spread = (component) => (component + 0.5) * 2 / components - 1;
    for (let pixel = 0; pixel < size; pixel += 1) {
      let peak = -Infinity, total = 0;
      const sums = new Float64Array(channels), means = new Float64Array(channels);
      for (let m = 0; m < components; m += 1) peak = Math.max(peak, at(0, m, pixel));
      for (let m = 0; m < components; m += 1) {
        const weight = Math.exp(at(0, m, pixel) - peak);
        total += weight;
        for (let c = 0; c < channels; c += 1) {
          let location = at(1 + c, m, pixel) + spread(m);
          for (let e = 0; e < c; e += 1) location += Math.tanh(at(1 + 2 * channels + c * (c - 1) / 2 + e, m, pixel)) * means[e];
          means[c] = clipped(location, at(1 + channels + c, m, pixel));
          sums[c] += weight * means[c];
        }
      }
      for (let c = 0; c < channels; c += 1) out.data[c * size + pixel] = (clamp(sums[c] / total, -1, 1) + 1) / 2;
    }
    return out;
  }

  // -------------------------------------------------------------- the model
  // A drawing z is {whether, where, what}, arrays of T steps.
  class Model {
    constructor(spec, base64) {
      const weights = new Weights(spec.tensors, base64);
      this.spec = spec; this.bank = weights.get("bank"); this.canvas = new Canvas(spec, this.bank);
      this.prior = spec.authors ? new CanvasPrior(spec, weights, this.canvas) : new Prior(spec, weights, this.canvas);
      this.appearance = makeAppearance(spec, weights);
      this.decoder = (spec.authors ? stridedDecoder : cellsDecoder)(spec, weights);
      if (weights.unread.size) throw new Error(`the page does not know the weights ${[...weights.unread].join(", ")}`);
    }
    empty() {
      const zeros = () => new Array(this.spec.steps).fill(0);
      return {whether: zeros().map(() => false), where: zeros(), what: zeros()};
    }
    // The entries that a text names, from 1 on. Throws an error that names what is not known (core/vocabulary.py).
    tokens(text) {
      const {kind, entries} = this.spec.condition, words = kind === "class" ? [text.trim()] : text.toLowerCase().match(/[\p{L}\p{N}_]+/gu) || [];
      const most = this.prior.ahead.shape[0];
      if (!words.length) throw new Error(`“${text}” has no word`);
      if (words.length > most) throw new Error(`more than ${most} words`);
      // The number of each class is its name if all names are numbers, else its place.
      const numbered = entries.every((entry) => /^\d+$/.test(entry) && String(Number(entry)) === entry);
      const labels = entries.map((entry, place) => numbered ? Number(entry) : place);
      return words.map((word) => {
        const byNumber = kind === "class" && /^\d+$/.test(word) && !entries.includes(word);
        const index = byNumber ? labels.indexOf(Number(word)) : entries.indexOf(word);
        if (index < 0) throw new Error(`the model does not know “${word}”`);
        return index + 1;
      });
    }
    // z ~ p(z), or p(z|condition), see `states`. start: a drawing whose first `kept` steps are kept.
    sample(random, temperature = 1, {start = null, kept = 0, condition = null} = {}) {
      const z = this.empty(), {where_given: given, steps} = this.spec;
      let t = 0;
      for (const logits of this.prior.states(z, condition)) {
        if (t < kept) [z.whether[t], z.where[t], z.what[t]] = [start.whether[t], start.where[t], start.what[t]];
        else {
          z.whether[t] = random.uniform() < sigmoid(logits.whether / temperature);
          z.where[t] = given ? t : random.categorical(logits.where, temperature);
          z.what[t] = random.categorical(logits.what(z.where[t]), temperature);
        }
        t += 1;
        if (t === steps) break;
      }
      return given ? z : this.canonical(z);
    }
    canonical({whether, where, what}) { // 0 where nothing is drawn
      return {whether: whether.slice(), where: where.map((x, t) => whether[t] ? x : 0), what: what.map((x, t) => whether[t] ? x : 0)};
    }
    logProbs(z, condition = null) { // (T): log p of each step given those before it, in nats; condition: see `states`
      const found = new Float64Array(this.spec.steps), fed = this.empty();
      let t = 0;
      for (const logits of this.prior.states(fed, condition)) {
        found[t] = -softplus(z.whether[t] ? -logits.whether : logits.whether);
        if (z.whether[t]) {
          if (logits.where) found[t] += logSoftmaxAt(logits.where, z.where[t]);
          found[t] += logSoftmaxAt(logits.what(z.where[t]), z.what[t]);
        }
        [fed.whether[t], fed.where[t], fed.what[t]] = [z.whether[t], z.where[t], z.what[t]];
        t += 1;
        if (t === this.spec.steps) break;
      }
      return found;
    }
    render(z, steps) { return this.canvas.render(z, steps); }
    // What parts cannot say, u ~ p(u|canvas), null if the model has no such latent; noise: its standard normals.
    appearanceOf(canvas, noise) { return this.appearance && this.appearance.u(canvas, noise); }
    drawn(random, z) {
      const canvas = this.render(z);
      return {z, canvas, u: this.appearanceOf(canvas, this.appearance && random.normals(this.appearance.count))};
    }
    // The drawing z, made of those of `donors`, with the u that they have where nothing changed.
    redrawn(z, ...donors) {
      const canvas = this.render(z);
      return {z, canvas, u: this.appearance && this.appearance.joined(canvas, donors)};
    }
    // The mean image. u: null is its mean, as NPDraw.decode takes it.
    decode(canvas, u = null) {
      const added = this.appearance && this.appearance.features(u || this.appearanceOf(canvas, null));
      return meanOf(this.spec, this.decoder(canvas, added));
    }

    // ------------------------------------------------------------ edits, as nn/editing.py has them
    listed(z) { return z.whether.flatMap((drawn, step) => drawn ? [{where: z.where[step], what: z.what[step], step}] : []); }
    held(z, place) { return this.listed(z).filter((one) => one.where === place).map((one) => one.what); }
    // If both have more than T steps, the last of `old` are dropped.
    merged(old, added) {
      const {steps, order, aligned} = this.spec, all = [...old.slice(0, Math.max(steps - added.length, 0)), ...added];
      const key = {aligned: () => 0, raster: (one) => one.where, ranked: (one) => one.step, path: () => 0}[order];
      const z = this.empty();
      if (aligned) z.where = z.where.map((_, t) => t);
      all.map((one, index) => ({...one, index})).sort((x, y) => key(x) - key(y) || x.index - y.index).forEach((one, index) => {
        const t = aligned ? one.where : index;
        [z.whether[t], z.where[t], z.what[t]] = [true, one.where, one.what];
      });
      return z;
    }
    put(z, place, part) {
      return this.merged(this.listed(z).filter((one) => one.where !== place), [{where: place, what: part, step: this.spec.steps}]);
    }
    remove(z, places) { return this.merged(this.listed(z).filter((one) => !places.includes(one.where)), []); }
    move(z, source, target) {
      const all = this.listed(z), moved = all.filter((one) => one.where === source).map((one) => ({...one, where: target}));
      return this.merged(all.filter((one) => one.where !== source && one.where !== target), moved);
    }
    compose(a, b, places) {
      const inside = (one) => places.includes(one.where);
      return this.merged(this.listed(a).filter((one) => !inside(one)), this.listed(b).filter(inside));
    }
    // The drawing a with b's parts at `places`; blank cells there have b's u.
    composed(a, b, places) {
      const {height, width, rows, columns} = this.spec.grid, own = new Uint8Array(height * width);
      for (let place = 0; place < rows * columns; place += 1) {
        if (!places.includes(place)) this.canvas.each(place, (pixel) => { own[pixel] = 1; });
      }
      return this.redrawn(this.compose(a.z, b.z, places), {...a, own}, b, a);
    }
    // Whether this browser computes what torch computed: null, or what differs.
    problem({whether, where, what, log_prob: logProb, pixels}) {
      const z = {whether, where, what}, found = this.logProbs(z).reduce((sum, x) => sum + x, 0);
      if (!(Math.abs(found - logProb) < 0.5 + 0.005 * Math.abs(logProb))) return `log p(z) is ${found}, not ${logProb}`;
      const {data} = this.decode(this.render(z)), every = Math.floor(data.length / pixels.length);
      const far = pixels.findIndex((value, i) => !(Math.abs(data[i * every] - value) < 0.03));
      return far < 0 ? null : `pixel ${far} is ${data[far * every]}, not ${pixels[far]}`;
    }
  }

  return {Model, Random, Planes};
})();
