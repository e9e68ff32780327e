// What is drawn of a view: frames, the map, words, numbers, the mask. All of it is made anew from the explorer's view.
import { CHANNELS, keyOf, mean, most, total } from "./reading.js";
import { css, diverging, drawFrame, drawHeat, drawMask, ink, brightness, viridis } from "./draw.js";
import { digits, make, nats, percent } from "./elements.js";
import { LAYERS_OF } from "./names.js";

/** The number of a patch in the map, or null where there is none. @param {any} explorer @param {View} view
 *  @param {number} patch @param {Shown} [channel] @returns {number | null} */
export function heatOf(explorer, view, patch, channel = explorer.state.channel) {
  const { reading, readers, values, mask, query, n, places } = view;
  const reader = explorer.reader(patch, view.scene);
  if (values) return explorer.scenes(view.scene).steps[patch] ? values[patch] : null;
  if (readers) return reader === null ? null : readers[channel][reader];
  const key = keyOf(patch, n);
  if (key === null) return null;
  if (explorer.state.weights === "rollout") return reading[channel].keys[key] || null;
  const layer = explorer.info.layers[view.layer];
  return mask.sees(channel, layer, query, key, n, places) ? reading[channel].keys[key] : null;
}

/** The end of the map's scale. @param {any} explorer @param {View} view */
export function largestOf(explorer, view) {
  const { reading, readers, values } = view;
  if (values)
    return Math.max(
      1e-6,
      most(Array.from(values, (value, patch) => (explorer.scenes(view.scene).steps[patch] ? Math.abs(value) : 0))),
    );
  const channel = /** @type {Shown} */ (explorer.state.channel);
  if (readers) return most(readers[channel]);
  const { words, keys } = reading[channel];
  return Math.max(most(words), most(keys));
}

/** @param {any} explorer @param {number | null} value @returns {Color | null} */
export function colorOf(explorer, value) {
  if (value === null) return null;
  if (explorer.state.layerOf === "silence") return diverging(value / explorer.largest);
  return viridis(brightness(value, explorer.largest, explorer.state.scale));
}

/** @param {any} explorer @param {number} value */
export const told = (explorer, value) => (explorer.state.layerOf === "attention" ? percent(value) : nats(value));

/** @param {any} explorer */
export function drawControls(explorer) {
  const { parts: p, state, shown, scene } = explorer;
  p.scene.value = state.scene;
  p.layer.value = state.layer;
  p.layerText.textContent = explorer.info.layers[state.layer];
  p.head.value = state.head;
  p.weights.value = state.weights;
  p.layerOf.value = state.layerOf;
  p.beside.value =
    state.beside !== null ? `scene ${state.beside}` : state.besideLayer !== null ? `layer ${state.besideLayer}` : "";
  for (const input of p.channel) input.checked = input.value === state.channel;
  for (const input of p.scaleInputs) input.checked = input.value === state.scale;
  p.reads.setAttribute("aria-pressed", String(state.reverse));
  const step = scene.steps[shown.patch];
  p.step.value = scene.steps[explorer.patch] || 1;
  p.stepText.textContent = step ? `step ${step} of ${explorer.waves.length}` : "given, not made here";
  p.play.textContent = explorer.playing ? "❚❚" : "▶";
  p.play.setAttribute("aria-label", explorer.playing ? "Pause" : "Play through the order of decoding");
  p.seen.textContent = whatIsShown(explorer, step);
  p.seen.title = p.seen.textContent;
  const silent = state.layerOf === "silence";
  p.legend.classList.toggle("cv-diverging", silent);
  p.least.textContent = silent ? `-${nats(explorer.largest)}` : told(explorer, 0);
  p.largest.textContent = told(explorer, explorer.largest);
  p.middle.textContent = silent ? "" : told(explorer, (state.scale === "root" ? 0.25 : 0.5) * explorer.largest);
  for (const tab of p.tabs) {
    tab.setAttribute("aria-selected", String(tab.dataset.tab === state.tab));
    tab.tabIndex = tab.dataset.tab === state.tab ? 0 : -1;
  }
  for (const [name, group] of Object.entries(p.groups)) /** @type {any} */ (group).hidden = name !== state.tab;
}

/** @param {any} explorer @param {number} step */
function whatIsShown(explorer, step) {
  const { state, shown, scene } = explorer;
  if (state.layerOf === "silence") return `nats lost at every patch without ${explorer.silenceName(state.silence)}`;
  if (state.layerOf !== "attention")
    return `${LAYERS_OF[/** @type {"entropy"} */ (state.layerOf)]} every patch was to the model, in nats`;
  const rolled = state.weights === "rollout" && shown.reading;
  const value = state.weights === "value" && shown.reading ? ", weighed by value" : "";
  const where = rolled
    ? "rollout through all layers"
    : `${state.channel} channel${state.channel === "mixed" ? "s" : ""} of layer ${explorer.layerNumber}, ${explorer.headName}${value}`;
  const name = explorer.name(shown.patch);
  if (shown.word !== null) return `how much each patch read “${scene.words[shown.word].text}” (${where})`;
  if (shown.readers) return `how much each patch reads ${name} (${where})`;
  return `what ${name} ${step ? "read when it was made" : "reads; it is given"} (${where})`;
}

/** @param {any} explorer */
export function drawFrames(explorer) {
  const { scene, shown, state } = explorer;
  const { n, patch, word } = shown;
  const step = scene.steps[patch];
  const inside = (/** @type {number | null} */ one, /** @type {number} */ frame) =>
    one !== null && Math.floor(one / n) === frame ? one % n : null;
  const chosen = word === null ? patch : null;
  // Pointed at: what the pointer is on in the map, and other patches made in the same step.
  const others =
    chosen !== null && step ? explorer.waves[step - 1].filter((/** @type {number} */ one) => one !== patch) : [];
  const dashed = [...others, explorer.inspected];
  const veil = chosen !== null && step > 0 && state.layerOf === "attention" && !state.reverse;
  explorer.clip.forEach((/** @type {any} */ { canvas }, /** @type {number} */ frame) =>
    drawFrame(canvas, explorer.images[frame], explorer.grid, {
      veiled: (one) => veil && scene.steps[frame * n + one] > step,
      marked: inside(chosen, frame),
      dashed: dashed.map((one) => inside(one, frame)).filter((one) => one !== null),
    }),
  );
  explorer.heat.forEach((/** @type {any} */ { canvas, start, caption, sum }, /** @type {number} */ frame) => {
    const color = (/** @type {number} */ one) => colorOf(explorer, heatOf(explorer, shown, frame * n + one));
    drawHeat(canvas, explorer.grid, color, inside(chosen, frame), inside(explorer.inspected, frame));
    captions(explorer, frame, start, caption, sum);
  });
}

/** What stands under a frame of the map. @param {any} explorer @param {number} frame @param {any} start @param {any} caption @param {any} sum */
function captions(explorer, frame, start, caption, sum) {
  const { shown, state } = explorer;
  const { reading, values, mask, query, n, places } = shown;
  start.hidden = !reading || Boolean(values);
  caption.textContent = "";
  if (values) {
    const own = values.subarray(frame * n, (frame + 1) * n);
    sum.textContent = explorer.scene.frames[frame].given ? "given" : `mean ${nats(mean(own))}`;
  } else if (reading) {
    const key = reading[state.channel].keys[frame * n];
    const seen =
      state.weights === "rollout"
        ? key > 0
        : mask.sees(state.channel, explorer.layerNumber, query, frame * n, n, places);
    start.className = seen ? "" : "cv-hatched";
    start.style.background = seen ? css(colorOf(explorer, key)) : "";
    start.title = `Start of frame ${frame}, before its first patch: ${seen ? percent(key) : "cannot be attended"}`;
    caption.textContent = seen ? `start ${percent(key)}` : "start";
    const how = shown.head === "max" ? "most" : "sum";
    sum.textContent = seen ? `${how} ${percent(frameOf(explorer, shown, state.channel, frame))}` : "cannot attend";
  } else sum.textContent = `mean ${percent(frameOf(explorer, shown, state.channel, frame))}`;
}

/** Weight on a frame: the sum over its places, their largest where heads are a maximum (whose sums mean nothing), or the
 *  mean over its readers. @param {any} explorer @param {View} view @param {Shown} channel @param {number} frame */
export function frameOf(explorer, { reading, readers, n, head }, channel, frame) {
  const part = (readers ? readers[channel] : reading[channel].keys).subarray(frame * n, (frame + 1) * n);
  return readers ? mean(part) : head === "max" && explorer.state.weights !== "rollout" ? most(part) : total(part);
}

/** @param {any} explorer */
export function drawWords(explorer) {
  const { reading, readers, word } = explorer.shown;
  const attention = explorer.state.layerOf === "attention";
  [...explorer.parts.words.children].forEach((button, index) => {
    const [, spatial, temporal] = button.children;
    button.setAttribute("aria-pressed", String(index === word));
    const color = reading && attention ? colorOf(explorer, reading[explorer.state.channel].words[index]) : null;
    button.style.background = color ? css(color) : "";
    button.style.color = color ? ink(color) : "";
    const share = (/** @type {Shown} */ channel) =>
      reading ? reading[channel].words[index] : readers && index === word ? mean(readers[channel]) : null;
    const write = (/** @type {any} */ span, /** @type {Shown} */ channel, /** @type {string} */ letter) =>
      (span.textContent = share(channel) === null ? "\u00a0" : `${letter} ${percent(share(channel))}`);
    write(spatial, "spatial", "S");
    write(temporal, "temporal", "T");
  });
}

/** The rows of the table: name, and the number of each channel. @param {any} explorer @returns {[string, number[]][]} */
export function numberRows(explorer) {
  const { shown: view, scene, state } = explorer;
  const { reading, readers, head } = view;
  if (!reading && !readers) return [];
  const greatest = head === "max" && reading && state.weights !== "rollout";
  const combine = greatest ? most : total;
  const row = (/** @type {string} */ name, /** @type {(channel: Shown) => number} */ value) =>
    /** @type {[string, number[]]} */ ([name, CHANNELS.map(value)]);
  const frames = scene.frames.map((/** @type {any} */ _, /** @type {number} */ frame) =>
    row(`Frame ${frame}`, (channel) => frameOf(explorer, view, channel, frame)),
  );
  if (!reading) return [...frames, row("Mean", (channel) => mean(readers[channel]))];
  const both = (/** @type {Shown} */ channel) => [combine(reading[channel].words), combine(reading[channel].keys)];
  return [
    row("Words", (channel) => combine(reading[channel].words)),
    ...frames,
    row(greatest ? "Most" : "Sum", (channel) => combine(both(channel))),
  ];
}

/** @param {any} explorer */
export function drawNumbers(explorer) {
  const { shown, parts: p, state, scene } = explorer;
  p.looksTitle.textContent = shown.readers
    ? "Who reads it, in %"
    : shown.head === "max"
      ? "Where some head looks most, in %"
      : "Where it looks, in %";
  const cell = (/** @type {string} */ tag, /** @type {number} */ index, /** @type {string} */ text) =>
    make(tag, { className: CHANNELS[index] === state.channel ? "cv-chosen" : "" }, text);
  p.numbers.replaceChildren(
    make(
      "thead",
      {},
      make(
        "tr",
        {},
        make("th", { textContent: "part", className: "cv-quiet" }),
        ...CHANNELS.map((channel, i) => cell("th", i, channel)),
      ),
    ),
    make(
      "tbody",
      {},
      ...numberRows(explorer).map(([name, values]) =>
        make("tr", {}, make("th", {}, name), ...values.map((value, i) => cell("td", i, digits(value)))),
      ),
    ),
  );
  const share = scene.gates[shown.layer].mean;
  const [s, t] = shown.norms ? [share * shown.norms.spatial, (1 - share) * shown.norms.temporal] : [0, 0];
  p.norms.textContent =
    s + t ? `Of this layer's output here: ${percent(s / (s + t))} spatial, ${percent(t / (s + t))} temporal` : "";
  p.norms.title = "Gate times the length of the vector that each channel puts out";
  [...p.gates.children].forEach((button, layer) => button.setAttribute("aria-pressed", String(layer === shown.layer)));
}

/** @param {any} explorer */
export function drawMaskPanel(explorer) {
  const { parts: p, shown, state } = explorer;
  const name = [explorer.scene.stage, explorer.layerNumber % 2, state.channel, shown.l, p.mask.clientWidth].join("/");
  const { n, places, mask } = shown;
  if (explorer.maskDrawn !== name) {
    explorer.maskText = drawMask(p.mask, shown, (query, key) =>
      mask.sees(state.channel, explorer.layerNumber, query, key, n, places),
    );
    explorer.maskDrawn = explorer.maskText ? name : null;
  }
  p.maskTitle.textContent = state.channel === "mixed" ? "Mask, both channels" : `Mask, ${state.channel} channel`;
  const word = shown.word !== null;
  Object.assign(p.maskMark.style, {
    top: word ? "0" : `${(100 * shown.query) / shown.places}%`,
    left: word ? `${(100 * explorer.maskText * shown.word) / shown.l}%` : "0",
    width: word ? "3px" : "100%",
    height: word ? "100%" : "2px",
  });
}
