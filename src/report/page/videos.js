// Two videos on top of each other, parted by a slider, with the PSNR of each frame.

function videoElement(video) {
  const element = make("video", { src: video.src, loop: true, playsinline: true, preload: "auto", "aria-label": video.name });
  element.muted = true; // so that browsers let it play
  return element;
}

// One comparison in `parent`.
function showComparison(parent, comparison) {
  const reference = comparison.reference && comparison.reference.src ? videoElement(comparison.reference) : null;
  const video = comparison.video && comparison.video.src ? videoElement(comparison.video) : null;
  const videos = [reference, video].filter(Boolean);
  const frames = comparison.psnr_frames;
  parent.replaceChildren();
  const left = make("div"), right = make("div");
  parent.append(left, right);
  let chart = null, player = null;
  if (videos.length) player = addPlayer(left, videos, comparison, (frame) => chart && chart.show(frame));
  else left.append(make("p", { class: "muted" }, "The videos are not in this page."));
  if (comparison.prompt) right.append(make("blockquote", {}, comparison.prompt));
  if (frames.some((value) => value !== null)) {
    const box = make("div");
    right.append(box);
    chart = frameChart(box, frames, (frame) => player && player.seek(frame));
    right.append(make("p", { class: "muted" }, comparison.psnr_of === "files"
      ? "Between the two files as they are compressed."
      : "Between the frames before compression."));
  } else if (frames.length) {
    right.append(make("p", {}, "All frames are identical."));
  }
}

// Returns {seek(frame)}; onFrame(frame) is called as frames are shown.
function addPlayer(parent, videos, comparison, onFrame) {
  const stage = make("div", { class: "stage", style: "--split:50%" }, ...videos);
  parent.append(stage);
  videos[0].addEventListener("loadedmetadata", () => {
    const { videoWidth: width, videoHeight: height } = videos[0];
    stage.style.aspectRatio = `${width} / ${height}`;
    stage.style.maxWidth = `min(100%, ${Math.max(2 * width, 480)}px, ${(65 * width) / height}vh)`;
  });
  if (videos.length === 2) addSplit(parent, stage, videos[1], comparison.labels);
  // A file does not say its rate to a page; where no report does, frames and seconds do.
  const fps = () => comparison.fps || (videos[0].duration ? comparison.psnr_frames.length / videos[0].duration : 0) || 16;
  const count = () => comparison.psnr_frames.length || Math.max(Math.round((videos[0].duration || 0) * fps()), 1);
  const frameNow = () => Math.min(Math.floor(videos[0].currentTime * fps() + 0.01), count() - 1);
  const slider = make("input", { type: "range", min: 0, max: Math.max(count() - 1, 1), value: 0, "aria-label": "Frame", input: () => seek(Number(slider.value)) });
  const button = make("button", { type: "button", click: () => (videos[0].paused ? play() : pause()) }, "Play");
  const readout = make("output");
  parent.append(make("div", { class: "player" }, button, slider, readout));

  function show() {
    const frame = frameNow(), value = comparison.psnr_frames[frame];
    slider.max = Math.max(count() - 1, 1);
    slider.value = frame;
    readout.textContent = `frame ${frame}` + (value !== undefined ? ` · ${value === null ? "identical" : `${value.toFixed(1)} dB`}` : "");
    onFrame(frame);
  }
  function seek(frame) {
    pause();
    for (const each of videos) each.currentTime = (frame + 0.5) / fps();
  }
  // The second follows the first: they start together, and drift apart by a frame now and then.
  function follow() {
    if (videos[0].paused || !parent.isConnected) return;
    const lead = videos[1] && Math.abs(videos[1].currentTime - videos[0].currentTime);
    if (lead > 0.6 / fps() && !videos[1].seeking) videos[1].currentTime = videos[0].currentTime;
    show();
    requestAnimationFrame(follow);
  }
  function play() {
    button.textContent = "Pause";
    Promise.all(videos.map((each) => each.play())).then(follow, () => pause());
  }
  function pause() {
    button.textContent = "Play";
    for (const each of videos) each.pause();
  }
  for (const event of ["seeked", "loadeddata"]) videos[0].addEventListener(event, show);
  return { seek };
}

function addSplit(parent, stage, over, labels) {
  over.classList.add("over");
  stage.append(make("span", { class: "divider" }), make("span", { class: "badge left" }, labels[0]), make("span", { class: "badge right" }, labels[1]));
  const slider = make("input", { type: "range", min: 0, max: 100, value: 50, step: 0.5, "aria-label": `Where ${labels[0]} ends and ${labels[1]} begins`,
    input: () => stage.style.setProperty("--split", `${slider.value}%`) });
  const drag = (event) => {
    if (event.type === "pointermove" && !(event.buttons & 1)) return;
    const box = stage.getBoundingClientRect();
    slider.value = (100 * (event.clientX - box.left)) / box.width;
    slider.dispatchEvent(new Event("input"));
  };
  stage.addEventListener("pointerdown", drag);
  stage.addEventListener("pointermove", drag);
  parent.append(slider);
}

(function start() {
  const shown = model.comparisons.filter((each) => (each.video && each.video.src) || (each.reference && each.reference.src) || each.psnr_frames.length);
  if (!shown.length) return;
  const section = document.getElementById("videos"), viewer = make("div", { class: "viewer" });
  section.hidden = false;
  if (shown.length > 1) {
    const select = make("select", { change: () => showComparison(viewer, shown[Number(select.value)]) },
      ...shown.map((each, i) => make("option", { value: i }, each.prompt ? `${each.name}: ${each.prompt.slice(0, 60)}` : each.name)));
    section.append(make("div", { class: "row" }, make("label", {}, "Video", select)));
  }
  section.append(viewer);
  showComparison(viewer, shown[0]);
})();
