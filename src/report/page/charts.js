// Curves as SVG, drawn anew for every width, so that their text keeps its size on a phone.

// Round numbers from below `low` to above `high`.
function ticksBetween(low, high, count) {
  const raw = (high - low || 1) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((each) => each >= raw);
  const ticks = [];
  for (let tick = Math.floor(low / step) * step; ticks.length < 2 || ticks[ticks.length - 1] < high - 1e-9 * step; tick += step) {
    ticks.push(Number(tick.toPrecision(12)));
  }
  return ticks;
}

// Axes with ticks and their titles, from the first tick to the last, or to `end`; returns where values lie.
function axes(svg, width, height, x, y) {
  const left = 40, right = 12, top = 22, bottom = 38;
  const at = (axis, value, from, to) => from + ((value - axis.ticks[0]) / ((axis.end ?? axis.ticks[axis.ticks.length - 1]) - axis.ticks[0])) * (to - from);
  const place = { x: (value) => at(x, value, left, width - right), y: (value) => at(y, value, height - bottom, top), left, right: width - right, top, bottom: height - bottom };
  for (const tick of y.ticks) {
    svg.append(makeSvg("line", { class: "axis", x1: left, x2: width - right, y1: place.y(tick), y2: place.y(tick) }),
      makeSvg("text", { x: left - 7, y: place.y(tick) + 4, "text-anchor": "end" }, minus(String(tick))));
  }
  for (const tick of x.ticks.filter((each) => each <= (x.end ?? each))) {
    svg.append(makeSvg("text", { x: place.x(tick), y: height - bottom + 17, "text-anchor": "middle" }, minus(String(tick))));
  }
  svg.append(makeSvg("text", { x: 0, y: 11 }, y.title),
    makeSvg("text", { x: width - right, y: height - 3, "text-anchor": "end" }, x.title));
  return place;
}

// values: a number for each frame, null where the frames are identical. Returns {show(frame)}.
function frameChart(parent, values, onPick) {
  const known = values.filter((value) => value !== null);
  const lowest = Math.min(...known), average = mean(known), last = Math.max(values.length - 1, 1);
  const label = `PSNR of each frame against that of the other video, in dB: ${known.length} frames, lowest ${lowest.toFixed(1)}, mean ${average.toFixed(1)}`;
  const svg = makeSvg("svg", { class: "chart", role: "img", "aria-label": label });
  let cursor = null, place = null, frame = 0;
  const show = (next) => {
    frame = next;
    if (!cursor) return;
    cursor.setAttribute("x1", place.x(frame));
    cursor.setAttribute("x2", place.x(frame));
  };
  drawAgain(parent, () => {
    const width = parent.clientWidth, height = 210;
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("height", height);
    place = axes(svg, width, height, { ticks: ticksBetween(0, last, width < 420 ? 4 : 8), end: last, title: "frame" }, { ticks: ticksBetween(lowest, Math.max(...known), 4), title: "PSNR, dB" });
    let path = "", pen = "M";
    values.forEach((value, i) => {
      if (value === null) return void (pen = "M");
      path += `${pen}${place.x(i).toFixed(1)} ${place.y(value).toFixed(1)}`;
      pen = "L";
    });
    cursor = makeSvg("line", { class: "cursor", y1: place.top, y2: place.bottom });
    svg.append(makeSvg("path", { class: "line", d: path }), cursor);
    show(frame);
  });
  svg.addEventListener("pointerdown", (event) => {
    const box = svg.getBoundingClientRect();
    const at = (event.clientX - box.left - place.left) / (place.right - place.left);
    onPick(Math.min(Math.max(Math.round(at * last), 0), values.length - 1));
  });
  parent.append(svg);
  return { show };
}

// points: [{name, speedup, psnr_db, kind}].
function tradeoffChart(parent, points) {
  const label = `Speedup and PSNR of ${points.length} plans; the table below has the numbers`;
  const svg = makeSvg("svg", { class: "chart", role: "img", "aria-label": label });
  const sorted = [...points].sort((a, b) => a.speedup - b.speedup);
  drawAgain(parent, () => {
    const width = parent.clientWidth, height = 260;
    svg.replaceChildren();
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("height", height);
    const speeds = sorted.map((point) => point.speedup), qualities = sorted.map((point) => point.psnr_db);
    const place = axes(svg, width, height,
      { ticks: ticksBetween(Math.min(1, ...speeds), Math.max(...speeds) + 0.1, width < 420 ? 4 : 7), title: "speedup of the transformer, ×" },
      { ticks: ticksBetween(Math.min(...qualities) - 1, Math.max(...qualities) + 1, 5), title: "PSNR to dense, dB" });
    for (const kind of ["measured", "predicted"]) {
      const own = sorted.filter((point) => point.kind === kind);
      if (own.length > 1) {
        const path = own.map((point, i) => `${i ? "L" : "M"}${place.x(point.speedup).toFixed(1)} ${place.y(point.psnr_db).toFixed(1)}`).join("");
        svg.append(makeSvg("path", { class: "line", d: path, "stroke-dasharray": kind === "predicted" ? "3 4" : null, "stroke-opacity": 0.6 }));
      }
    }
    for (const point of sorted) {
      const x = place.x(point.speedup), y = place.y(point.psnr_db), onRight = x < (place.left + place.right) / 2;
      svg.append(makeSvg("circle", { class: point.kind === "measured" ? "dot" : "dot open", cx: x, cy: y, r: 5 },
        makeSvg("title", {}, `${point.name}: ${point.speedup.toFixed(2)}×, ${point.psnr_db.toFixed(1)} dB, ${point.kind}`)));
      const letters = width > 600 ? 44 : 20, name = point.name.length > letters ? `…${point.name.slice(1 - letters)}` : point.name;
      svg.append(makeSvg("text", { class: "strong", x: x + (onRight ? 10 : -10), y: y + 4, "text-anchor": onRight ? "start" : "end" }, name));
    }
  });
  parent.append(svg, make("ul", { class: "legend" }, make("li", {}, "● measured"), make("li", {}, "○ predicted by the calibration")));
}

if (model.tradeoff.length) tradeoffChart(document.getElementById("tradeoff"), model.tradeoff);
