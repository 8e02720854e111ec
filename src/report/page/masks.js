// One head's mask: as blocks, and on the grid of tokens.

// Where each head's picture begins in the plan's masks: heads without intervals, dense ones, have none.
function maskReader(plan) {
  const { masks, layers, heads } = plan;
  const kinds = bytesOf(plan.head_kind);
  const kindOf = (step, layer, head) => kinds[(plan.entry[step] * layers + layer) * heads + head];
  if (!masks) return { steps: [], kindOf, read: () => null };
  const data = bytesOf(masks.data), cells = masks.rows * masks.columns;
  const size = masks.exact ? Math.ceil(cells / 8) : Math.ceil(cells / 2);
  const starts = new Map();
  let next = 0;
  for (const step of masks.steps) {
    for (let at = plan.entry[step] * layers * heads, end = at + layers * heads; at < end; ++at) {
      if (!(kinds[at] & 1)) continue;
      starts.set(at, next);
      next += size;
    }
  }
  const stored = new Set(masks.steps.map((step) => plan.entry[step]));
  // {rows, columns, value(row, column) from 0 to 1, blocks}: null where the page does not hold it.
  const read = (step, layer, head) => {
    if (!stored.has(plan.entry[step])) return null;
    const at = (plan.entry[step] * layers + layer) * heads + head, kind = kinds[at];
    const blocks = kind & 2 ? plan.blocks.anchored : plan.blocks.query;
    const rows = Math.min(masks.rows, blocks), columns = masks.columns;
    if (!(kind & 1)) return { rows, columns, blocks, value: () => 1 };
    const start = starts.get(at);
    const value = masks.exact
      ? (row, column) => { const bit = row * columns + column; return (data[start + (bit >> 3)] >> (bit & 7)) & 1; }
      : (row, column) => { const cell = row * columns + column; return ((data[start + (cell >> 1)] >> (cell % 2 ? 4 : 0)) & 15) / 15; };
    return { rows, columns, blocks, value };
  };
  return { steps: masks.steps, stored, kindOf, read };
}

// Query blocks down, key blocks right.
function drawMatrix(canvas, mask, marked) {
  canvas.width = mask.columns;
  canvas.height = mask.rows;
  const context = canvas.getContext("2d"), image = context.createImageData(mask.columns, mask.rows);
  const amber = themeColour("--amber");
  for (let row = 0, i = 0; row < mask.rows; ++row) {
    for (let column = 0; column < mask.columns; ++column, i += 4) {
      let colour = rampColour(0.72 * mask.value(row, column));
      if (row === marked) colour = colour.map((part, k) => Math.round(0.35 * part + 0.65 * (mask.value(row, column) ? amber[k] : part)));
      image.data.set([...colour, 255], i);
    }
  }
  context.putImageData(image, 0, 0);
}

// Frames of the latent grid beside each other; the query is a token of the grid, or none: then all queries count.
class TokenGrid {
  constructor(plan, onChange) {
    Object.assign(this, { plan, onChange, mask: null, query: null });
    this.keyBlock = numbersOf(plan.key_block);
    this.queryBlock = plan.query_block ? numbersOf(plan.query_block) : this.keyBlock;
    this.anchorBlock = plan.anchor_block ? numbersOf(plan.anchor_block) : null;
    this.canvas = make("canvas", { tabindex: 0, role: "application", "aria-roledescription": "token grid",
      keydown: (event) => this.key(event), pointerdown: (event) => this.pick(event) });
    this.box = make("div", {}, this.canvas);
    drawAgain(this.box, () => this.draw());
  }
  show(mask, anchored) {
    this.mask = mask;
    this.rowBlock = anchored ? this.anchorBlock : this.queryBlock;
    this.draw();
    this.onChange();
  }
  // Row of the mask that the query is in; -1 without one.
  row() {
    return this.query === null ? -1 : Math.floor((this.rowBlock[this.query] * this.mask.rows) / this.mask.blocks);
  }
  // Of each column of the mask: the share of queries that attend to it.
  shares() {
    const row = this.row(), shares = new Float32Array(this.mask.columns);
    for (let column = 0; column < this.mask.columns; ++column) {
      if (row >= 0) { shares[column] = this.mask.value(row, column); continue; }
      for (let each = 0; each < this.mask.rows; ++each) shares[column] += this.mask.value(each, column) / this.mask.rows;
    }
    return shares;
  }
  layout() {
    const { frames, height, width } = this.plan.grid, room = Math.max(this.box.clientWidth, 120), gap = 8, title = 15;
    // The largest scale at which no more than so many rows of frames come below each other.
    let best = { scale: 1, across: Math.max(Math.floor((room + gap) / (width + gap)), 1) };
    for (let scale = 1; scale <= 12; ++scale) {
      const across = Math.floor((room + gap) / (width * scale + gap));
      if (across < 1 || Math.ceil(frames / across) * (height * scale + title + gap) > 900) break;
      best = { scale, across: Math.min(across, frames) };
    }
    return { ...best, gap, title, down: Math.ceil(frames / best.across), frameWidth: width * best.scale + gap, frameHeight: height * best.scale + title + gap };
  }
  draw() {
    if (!this.mask || !this.box.clientWidth) return;
    const { frames, height, width } = this.plan.grid, place = (this.place = this.layout()), ratio = devicePixelRatio || 1;
    const cssWidth = place.across * place.frameWidth - place.gap, cssHeight = place.down * place.frameHeight - place.gap;
    Object.assign(this.canvas, { width: Math.round(cssWidth * ratio), height: Math.round(cssHeight * ratio) });
    Object.assign(this.canvas.style, { width: `${cssWidth}px`, height: `${cssHeight}px` });
    const context = this.canvas.getContext("2d");
    context.scale(ratio, ratio);
    context.imageSmoothingEnabled = false;
    context.font = "11px system-ui, sans-serif";
    context.fillStyle = rgb(themeColour("--muted"));
    const shares = this.shares(), row = this.row(), amber = themeColour("--amber");
    const colours = Array.from(shares, (share) => rampColour(0.94 * share));
    const small = new OffscreenCanvas(width, height), pixels = small.getContext("2d"), image = pixels.createImageData(width, height);
    for (let frame = 0, token = 0; frame < frames; ++frame) {
      for (let i = 0; i < width * height; ++i, ++token) {
        const column = Math.floor((this.keyBlock[token] * this.mask.columns) / this.plan.blocks.key);
        const own = row >= 0 && Math.floor((this.rowBlock[token] * this.mask.rows) / this.mask.blocks) === row;
        image.data.set([...(own ? amber : colours[column]), 255], 4 * i);
      }
      pixels.putImageData(image, 0, 0);
      const x = (frame % place.across) * place.frameWidth, y = Math.floor(frame / place.across) * place.frameHeight;
      if (width * place.scale > 16) context.fillText(width * place.scale > 60 ? `frame ${frame}` : frame, x, y + 10);
      context.drawImage(small, x, y + place.title, width * place.scale, height * place.scale);
    }
    if (this.query !== null) this.outline(context, place);
  }
  outline(context, place) {
    const { height, width } = this.plan.grid, frame = Math.floor(this.query / (width * height)), inside = this.query % (width * height);
    const x = (frame % place.across) * place.frameWidth + (inside % width) * place.scale;
    const y = Math.floor(frame / place.across) * place.frameHeight + place.title + Math.floor(inside / width) * place.scale;
    for (const [colour, line] of [["#fff", 4], ["#000", 2]]) {
      context.strokeStyle = colour;
      context.lineWidth = line;
      context.strokeRect(x, y, place.scale, place.scale);
    }
  }
  ask(query) {
    this.query = query;
    this.draw();
    this.onChange();
  }
  pick(event) {
    const { frames, height, width } = this.plan.grid, place = this.place, box = this.canvas.getBoundingClientRect();
    const x = event.clientX - box.left, y = event.clientY - box.top;
    const frame = Math.floor(y / place.frameHeight) * place.across + Math.floor(x / place.frameWidth);
    const column = Math.floor((x % place.frameWidth) / place.scale), row = Math.floor(((y % place.frameHeight) - place.title) / place.scale);
    if (frame < frames && column >= 0 && column < width && row >= 0 && row < height) this.ask((frame * height + row) * width + column);
  }
  key(event) {
    const { frames, height, width } = this.plan.grid, size = height * width, last = frames * size - 1;
    const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -width, ArrowDown: width, PageUp: -size, PageDown: size };
    if (event.key === "Escape") this.ask(null);
    else if (!(event.key in moves)) return;
    else if (this.query === null) this.ask(Math.floor(frames / 2) * size + Math.floor(height / 2) * width + Math.floor(width / 2));
    else this.ask(Math.min(Math.max(this.query + moves[event.key], 0), last));
    event.preventDefault();
  }
  // What is seen, in words.
  text() {
    const share = mean([...this.shares()]);
    if (this.query === null) return `All queries: a key is computed for ${percent(share)} of them on average.`;
    const { height, width } = this.plan.grid, size = height * width;
    return `Queries of the token in frame ${Math.floor(this.query / size)}, row ${Math.floor((this.query % size) / width)}, column ${this.query % width} (amber: ` +
      `${this.plan.masks && this.plan.masks.exact ? `its block, ${this.rowBlock[this.query]}` : "the blocks that are shown together with its own"}): ${percent(share)} of the keys are computed.`;
  }
}
