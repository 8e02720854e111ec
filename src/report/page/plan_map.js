// The map of a plan's densities: layer by step; a cell's heads; a head's mask.

// What can be shown in the map: title, unit and [step][layer]; null in steps without a forward.
function metricsOf(plan) {
  const metrics = [{ title: "Density", values: plan.density_map, text: (value) => percent(value), edge: (value) => percent(value, 0), short: (value) => value.toFixed(2).replace(/^0/, ""), ends: true }];
  for (const each of plan.measured || []) {
    if (each.kind === "error") metrics.push({ title: each.title, values: each.map, text: (value) => percent(value, 2), edge: (value) => percent(value, 2), short: (value) => (100 * value).toFixed(2).replace(/^0/, "") });
    else metrics.push({ title: each.title, values: each.map, text: (value) => percent(value, 1), edge: (value) => percent(value, 0), short: (value) => (100 * value).toFixed(0), ends: true, fromLeast: true });
  }
  return metrics;
}
const runs = (plan, step) => plan.reuse[step] === undefined || plan.reuse[step] === "forward";

function showPlan(parent, plan) {
  const steps = plan.density_map.length, layers = plan.density_map[0].length, metrics = metricsOf(plan);
  const state = { step: [...Array(steps).keys()].find((step) => runs(plan, step)) || 0, layer: 0, head: 0, metric: metrics[0] };
  const map = make("div", { class: "map", role: "grid", "aria-label": "Layers (down) by steps (right). Arrow keys move, the heads of a cell are beside it.", style: `--steps:${steps}` });
  const side = make("div"), scale = make("div", { class: "scale" }), masks = make("div", { class: "masks" });
  const readout = make("output", { class: "muted" }), accuracy = make("p", { class: "muted" }, accuracyText(plan));
  const choices = metrics.length < 2 ? null : make("label", {}, "Colour", make("select", { change: (event) => { state.metric = metrics[event.target.value]; draw(); } },
    ...metrics.map((metric, i) => make("option", { value: i }, metric.title))));
  parent.replaceChildren(make("p", { class: "muted" }, "Each cell is a layer (down) at a step (right, the noisiest first)." + (plan.reuse.some((way) => way !== "forward") ? " Hatched steps run no forward." : "")),
    make("div", { class: "row" }, choices, scale),
    make("div", { class: "map-area" }, make("div", {}, map, readout, accuracy), side), masks);
  const heads = plan.head_density ? headList(plan, state, side, masks) : null;
  const cells = buildCells(map, plan, state, (step, layer, focus) => select(step, layer, focus));

  function draw() {
    paintMap(map, cells, plan, state.metric);
    drawScale(scale, plan, state.metric);
  }
  function select(step, layer, focus) {
    cells[state.step][state.layer].tabIndex = -1;
    cells[state.step][state.layer].setAttribute("aria-selected", "false");
    Object.assign(state, { step, layer });
    const cell = cells[step][layer];
    cell.tabIndex = 0;
    cell.setAttribute("aria-selected", "true");
    if (focus) cell.focus();
    readout.textContent = cellText(plan, step, layer, metrics);
    if (heads) heads.show();
    else side.replaceChildren(make("p", { class: "muted" }, "The heads are in the plan's file, which this page was made without."));
  }
  state.select = select;
  drawAgain(map, draw);
  select(state.step, state.layer, false);
}

// How far the whole plan is from dense attention.
function accuracyText(plan) {
  const errors = plan.errors || {}, parts = [];
  const basis = { measured: "measured in runs with the plan", "held out": "predicted on prompts that chose no blocks", "not held out": "predicted on the very prompts that chose the blocks" };
  if (typeof errors.attention === "number") parts.push(`Error of the attention's output ${percent(errors.attention, 2)}, ${basis[errors.attention_basis]}.`);
  if (errors.end_of_run) parts.push(`${errors.end_of_run[0].toUpperCase()}${errors.end_of_run.slice(1)}.`);
  return parts.join(" ");
}

function cellText(plan, step, layer, metrics) {
  if (!runs(plan, step)) return `step ${step} runs no forward: its prediction is made from earlier steps (${plan.reuse[step]})`;
  return `step ${step}, layer ${layer}: ` + metrics.map((metric) => `${metric.title.toLowerCase()} ${metric.text(metric.values[step][layer])}`).join(", ");
}

// [step][layer] → element.
function buildCells(map, plan, state, select) {
  const steps = plan.density_map.length, layers = plan.density_map[0].length, metrics = metricsOf(plan);
  const cells = Array.from({ length: steps }, () => []);
  const row = (...children) => map.append(make("div", { role: "row" }, ...children));
  row(make("span", { class: "label side", role: "columnheader" }, "layer"), ...cells.map((_, step) => make("span", { class: "label", role: "columnheader", "data-step": step }, String(step))), make("span", { class: "label", role: "columnheader" }, "mean"));
  for (let layer = 0; layer < layers; ++layer) {
    for (let step = 0; step < steps; ++step) {
      cells[step][layer] = make("div", { role: "gridcell", class: runs(plan, step) ? "cell" : "cell reused", tabindex: -1, "aria-selected": "false",
        "aria-label": cellText(plan, step, layer, metrics), title: cellText(plan, step, layer, metrics), "data-step": step, "data-layer": layer });
    }
    row(make("span", { class: "label side", role: "rowheader", "data-layer": layer }, String(layer)), ...cells.map((column) => column[layer]), make("div", { role: "gridcell", class: "cell mean", "data-mean": "layer" }));
  }
  row(make("span", { class: "label side", role: "rowheader" }, "mean"), ...cells.map((_, step) => make("div", { role: "gridcell", class: `cell mean below${runs(plan, step) ? "" : " reused"}`, "data-mean": "step" })),
    make("span", { role: "gridcell" }));
  map.addEventListener("click", (event) => {
    const cell = event.target.closest("[data-layer].cell");
    if (cell) select(Number(cell.dataset.step), Number(cell.dataset.layer), true);
  });
  map.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], Home: [-steps, 0], End: [steps, 0], PageUp: [0, -layers], PageDown: [0, layers] };
    const move = moves[event.key], inside = (value, count) => Math.min(Math.max(value, 0), count - 1);
    if (!move) return;
    event.preventDefault();
    select(inside(state.step + move[0], steps), inside(state.layer + move[1], layers), true);
  });
  return cells;
}

// [least, most] of the colours: round shares, or from nothing to the largest error.
function rangeOf(plan, metric) {
  const values = metric.values.filter((_, step) => runs(plan, step)).flat(), most = Math.max(...values);
  if (!metric.ends) return [0, most || 1];
  const end = Math.min(Math.max(Math.ceil(most * 10 - 1e-9) / 10, 0.1), 1);
  return [metric.fromLeast ? Math.min(Math.floor(Math.min(...values) * 10) / 10, end - 0.1) : 0, end];
}

function paintMap(map, cells, plan, metric) {
  const steps = cells.length, layers = cells[0].length, [least, most] = rangeOf(plan, metric);
  const width = (map.clientWidth - 80) / steps, height = Math.round(Math.min(Math.max(420 / layers, 7), 30));
  map.style.setProperty("--cell", `${height}px`);
  map.style.setProperty("--gap", width > 12 && height > 10 ? "1px" : "0px");
  const paint = (cell, value, numbers) => {
    const colour = rampColour((value - least) / (most - least));
    cell.style.background = rgb(colour);
    cell.style.color = inkOn(colour);
    cell.textContent = numbers ? metric.short(value) : "";
  };
  const numbers = width >= 27 && height >= 18, below = map.querySelectorAll("[data-mean=step]"), beside = map.querySelectorAll("[data-mean=layer]");
  for (let step = 0; step < steps; ++step) {
    if (!runs(plan, step)) continue;
    metric.values[step].forEach((value, layer) => paint(cells[step][layer], value, numbers));
    paint(below[step], mean(metric.values[step]), width >= 27);
  }
  for (let layer = 0; layer < layers; ++layer) paint(beside[layer], mean(metric.values.filter((_, step) => runs(plan, step)).map((row) => row[layer])), height >= 13);
  const every = (room, needed) => [1, 2, 5, 10, 20, 50].find((count) => count * room >= needed) || 100;
  for (const label of map.querySelectorAll(".label[data-step]")) label.style.visibility = label.dataset.step % every(width, 24) ? "hidden" : "";
  for (const label of map.querySelectorAll(".label[data-layer]")) label.style.visibility = label.dataset.layer % every(height, 13) ? "hidden" : "";
}

function drawScale(parent, plan, metric) {
  const [least, most] = rangeOf(plan, metric);
  const canvas = make("canvas", { width: 144, height: 1, "aria-hidden": "true" }), context = canvas.getContext("2d");
  for (let x = 0; x < 144; ++x) {
    context.fillStyle = rgb(rampColour(x / 143));
    context.fillRect(x, 0, 1, 1);
  }
  parent.replaceChildren(make("span", {}, `${metric.title}: ${metric.edge(least)}`), canvas, make("span", {}, metric.edge(most)));
}

// The side panel: numbers of the cell, and its heads; below them the mask of one.
function headList(plan, state, side, masks) {
  const densities = numbersOf(plan.head_density), reader = maskReader(plan);
  const density = (head) => densities[(plan.entry[state.step] * plan.layers + state.layer) * plan.heads + head] / 65535;
  const stepper = (title, key, count) => make("label", {}, title, make("input", { type: "number", min: 0, max: count - 1, value: state[key],
    change: (event) => { const value = Math.min(Math.max(Math.round(Number(event.target.value)) || 0, 0), count - 1); state.select(key === "step" ? value : state.step, key === "layer" ? value : state.layer, false); } }));
  const inputs = { step: stepper("Step", "step", plan.steps), layer: stepper("Layer", "layer", plan.layers) };
  const facts = make("dl", { class: "pairs" }), list = make("div", { class: "heads", role: "group", "aria-label": "Heads of the cell, with their densities" });
  side.replaceChildren(make("div", { class: "row" }, inputs.step, inputs.layer), facts, make("h3", {}, "Heads"), list);
  const view = plan.key_block ? maskView(plan, state, reader, masks) : null;
  const pair = (name, value) => facts.append(make("dt", {}, name), make("dd", {}, value));

  function show() {
    inputs.step.lastChild.value = state.step;
    inputs.layer.lastChild.value = state.layer;
    facts.replaceChildren();
    pair("Noise level", plan.sigmas[state.step].toFixed(3));
    const running = runs(plan, state.step);
    if (running) {
      for (const metric of metricsOf(plan)) pair(metric.title, metric.text(metric.values[state.step][state.layer]));
      if (plan.energy[state.step] !== null) pair("Energy to keep", percent(plan.energy[state.step], 2));
    } else {
      pair("Prediction", `from earlier steps (${plan.reuse[state.step]})`);
    }
    list.replaceChildren(...Array.from({ length: running ? plan.heads : 0 }, (_, head) => {
      const kind = reader.kindOf(state.step, state.layer, head), anchored = Boolean(kind & 2);
      const meter = make("span");
      meter.style.width = `${100 * density(head)}%`;
      return make("button", { type: "button", class: "head", "aria-pressed": String(head === state.head), "aria-label": `Head ${head}, density ${percent(density(head))}${anchored ? ", anchored" : ""}`,
        click: () => { state.head = head; show(); list.children[head].focus(); } },
      make("span", {}, String(head)), make("span", { class: anchored ? "meter anchored" : "meter" }, meter), make("span", { class: "n" }, percent(density(head))));
    }));
    if (view) view.show(running);
  }
  return { show };
}

function maskView(plan, state, reader, parent) {
  const title = make("h3"), matrix = make("canvas", { class: "matrix", role: "img" });
  const words = make("p", { class: "muted", "aria-live": "polite" }), legend = make("p", { class: "muted" });
  const grid = new TokenGrid(plan, () => {
    words.textContent = grid.text();
    grid.canvas.setAttribute("aria-label", `${grid.text()} Arrow keys move the query, Page Up and Page Down its frame, Escape takes all queries.`);
    drawMatrix(matrix, grid.mask, grid.row());
  });
  const figures = [make("figure", {}, make("figcaption", {}, "Blocks: queries down, keys right"), matrix, legend),
    make("figure", {}, make("figcaption", {}, "Keys on the token grid: how often each is computed. Click a token to see what its queries attend to."), grid.box, words,
      make("button", { type: "button", click: () => grid.ask(null) }, "All queries"))];
  dark.addEventListener("change", () => grid.mask && drawMatrix(matrix, grid.mask, grid.row()));

  function nearest() {
    const buttons = reader.steps.map((step) => make("button", { type: "button", click: () => state.select(step, state.layer, true) }, `Step ${step}`));
    return [make("div", { class: "whole row" }, make("span", { class: "muted" }, reader.steps.length ? "This page holds the masks of some steps:" : "This page does not hold the plan's masks; calibatt inspect draws them."), ...buttons)];
  }
  function show(running) {
    title.textContent = `Step ${state.step}, layer ${state.layer}, head ${state.head}`;
    const mask = running ? reader.read(state.step, state.layer, state.head) : null;
    if (!mask) return parent.replaceChildren(title, ...(running ? nearest() : [make("p", { class: "muted whole" }, "A step without a forward computes no attention.")]));
    if (!figures[0].isConnected) parent.replaceChildren(title, ...figures);
    const anchored = Boolean(reader.kindOf(state.step, state.layer, state.head) & 2), { query, key, query_tokens: q, key_tokens: k, order } = plan.blocks;
    legend.textContent = `${mask.blocks}×${key} blocks of ${q}×${k} tokens, ${order}; blue is computed` + (anchored ? `; queries of the anchor rows alone (all: ${query} blocks)` : "") +
      (plan.masks.exact ? "." : `; shown as ${mask.rows}×${mask.columns} shares.`);
    matrix.setAttribute("aria-label", `Mask of head ${state.head}: ${legend.textContent}`);
    matrix.style.aspectRatio = `${mask.columns} / ${mask.rows}`;
    grid.show(mask, anchored);
  }
  return { show };
}

(function start() {
  const plans = [...model.plans, ...model.maps], parent = document.getElementById("plan-map");
  if (!plans.length) return;
  const body = make("div");
  if (plans.length > 1) {
    parent.append(make("div", { class: "row" }, make("label", {}, "Plan", make("select", { change: (event) => showPlan(body, plans[event.target.value]) }, ...plans.map((plan, i) => make("option", { value: i }, plan.name))))));
  }
  parent.append(body);
  showPlan(body, plans[0]);
})();
