// What the page is made of: its elements, once. What they show is said by the modules that fill them; what happens when
// they are touched, by the Explorer that they are made for.
import { button, control, make, option, radios } from "./elements.js";
import { css, viridis } from "./draw.js";
import { HEAD_NAMES, KEYS, LAYERS_OF, TABS, WEIGHTS } from "./names.js";
import { panelButtons } from "./share.js";

/** The elements whose contents change. @param {any} explorer */
function parts(explorer) {
  const { info } = explorer;
  const select = (/** @type {any} */ set, /** @type {Record<string, string>} */ choices, /** @type {string} */ label) =>
    make(
      "select",
      { "aria-label": label, onchange: (/** @type {any} */ event) => set(event.target.value) },
      ...Object.entries(choices).map(([value, text]) => option(value, text)),
    );
  const heads = {
    ...HEAD_NAMES,
    ...Object.fromEntries(info.heads.map((/** @type {number} */ h, /** @type {number} */ i) => [i, `head ${h}`])),
  };
  const scenes = Object.fromEntries(
    info.scenes.map((/** @type {SceneInfo} */ scene, /** @type {number} */ i) => [i, scene.title]),
  );
  const p = {
    scene: select((/** @type {string} */ v) => explorer.set({ scene: Number(v) }), scenes, "Generation"),
    layer: make("input", {
      type: "range",
      min: 0,
      max: info.layers.length - 1,
      step: 1,
      "aria-label": "Layer",
      oninput: (/** @type {any} */ event) => explorer.set({ layer: Number(event.target.value) }),
    }),
    layerText: make("output"),
    head: make("select", {
      "aria-label": "Head",
      onchange: (/** @type {any} */ { target: { value } }) =>
        explorer.set({ head: value in HEAD_NAMES ? value : Number(value) }),
    }),
    weights: select((/** @type {string} */ weights) => explorer.set({ weights }), WEIGHTS, "Weights"),
    layerOf: select((/** @type {string} */ layerOf) => explorer.set({ layerOf }), LAYERS_OF, "Map"),
    beside: select((/** @type {string} */ v) => explorer.setBeside(v), {}, "Beside"),
    step: make("input", {
      type: "range",
      min: 1,
      step: 1,
      "aria-label": "Step of decoding",
      oninput: (/** @type {any} */ event) => explorer.choose(explorer.waves[Number(event.target.value) - 1][0]),
    }),
    stepText: make("output", { className: "cv-step" }),
    play: make("button", {
      type: "button",
      className: "cv-play",
      onclick: () => explorer.play(),
      title: "Play through the order in which patches are made (space)",
    }),
    seen: make("p", { className: "cv-seen" }),
    status: make("p", { className: "cv-status", "aria-live": "polite" }),
    clip: make("div", {
      className: "cv-frames",
      tabIndex: 0,
      role: "application",
      "aria-label": "Generated frames: arrow keys choose a patch",
      onpointerleave: () => explorer.peek(null),
    }),
    heat: make("div", { className: "cv-frames", onpointerleave: () => explorer.inspect(null) }),
    other: make("div", { className: "cv-others" }),
    words: make("div", { className: "cv-words", role: "group", "aria-label": "Words of the prompt" }),
    numbers: make("table"),
    gates: make("div", { className: "cv-gates", tabIndex: 0, role: "group", "aria-label": "Gates of the layers" }),
    norms: make("p", { className: "cv-note" }),
    mask: make("canvas", {
      className: "cv-mask",
      onclick: (/** @type {any} */ event) => explorer.chooseInMask(event),
      onpointermove: (/** @type {any} */ event) => explorer.tellMask(event),
      onpointerleave: () => explorer.tellMask(null),
    }),
    maskMark: make("div", { className: "cv-mask-mark" }),
    maskTitle: make("span"),
    tokens: make("div", { className: "cv-tokens" }),
    silence: make("div", { className: "cv-silence" }),
    glance: make("div", { className: "cv-glance" }),
    looksTitle: make("span"),
    tip: make("div", { className: "cv-tip", hidden: true, role: "tooltip" }),
    largest: make("span"),
    middle: make("span"),
    least: make("span"),
    ask: make("form", {
      className: "cv-ask",
      hidden: !info.asks,
      onsubmit: (/** @type {any} */ event) => explorer.askFor(event),
    }),
    card: make("div", { className: "cv-card", hidden: true, role: "dialog", "aria-label": "Tour" }),
    legend: make("span", { className: "cv-ramp" }),
  };
  for (const [value, text] of Object.entries(heads).sort(
    (a, b) => Number(a[0] in HEAD_NAMES ? 0 : 1) - Number(b[0] in HEAD_NAMES ? 0 : 1),
  ))
    p.head.append(option(value, text));
  return p;
}

/** A part of the page with its title and the buttons that save it. @param {any} explorer @param {string} name
 *  @param {any} heading @param {string} title @param {...any} children */
export function panel(explorer, name, heading, title, ...children) {
  const section = make("section", { title, "data-panel": name });
  section.append(
    make("div", { className: "cv-heading" }, make("h3", {}, heading), panelButtons(explorer, name, section)),
    ...children,
  );
  return section;
}

/** The side: one panel, or a few, behind each tab. @param {any} explorer @param {any} p */
function side(explorer, p) {
  const word = (/** @type {string} */ color, /** @type {string} */ text) => make("b", { className: color }, text);
  const gates = make("span", {}, "Gate: ", word("cv-blue", "spatial"), "/", word("cv-red", "temporal"));
  const gateTitle =
    "The learned gate mixes the channels in every dimension: mean share, with the range of the middle 80 % of dimensions as a line";
  const maskTitle =
    "Rows: the patch that is made. Columns: the words, then the places of all frames. Click to choose a row";
  const groups = {
    looks: [
      panel(explorer, "looks", p.looksTitle, "Weights on the words and on each frame, its start included", p.numbers),
      panel(explorer, "gates", gates, gateTitle, p.gates, p.norms),
      panel(explorer, "mask", p.maskTitle, maskTitle, make("div", { className: "cv-mask-box" }, p.mask, p.maskMark)),
    ],
    tokens: [panel(explorer, "tokens", "What it nearly drew", "The ten likeliest tokens here", p.tokens)],
    silence: [
      panel(explorer, "silence", "Does it matter?", "Silence a part of the model and see what is lost", p.silence),
    ],
    heads: [panel(explorer, "heads", "Heads at a glance", "A click opens a head", p.glance)],
  };
  p.tabs = TABS.map(([name, text, title]) =>
    make("button", {
      type: "button",
      role: "tab",
      title,
      textContent: text,
      "data-tab": name,
      onclick: () => explorer.set({ tab: name }),
    }),
  );
  p.groups = Object.fromEntries(
    Object.entries(groups).map(([name, children]) => [
      name,
      make("div", { className: "cv-group", role: "tabpanel", "aria-label": name }, ...children),
    ]),
  );
  return make(
    "aside",
    {},
    make("div", { className: "cv-tabs", role: "tablist", "aria-label": "Side" }, ...p.tabs),
    ...Object.values(p.groups),
  );
}

/** @param {any} explorer @param {any} p */
function controls(explorer, p) {
  const group = Math.random().toString(36).slice(2); // several explorers may lie in one notebook
  const channel = radios(
    `channel-${group}`,
    "Channel",
    [
      ["spatial", "Spatial", "The image model's attention: the text and the patch's own frame"],
      ["temporal", "Temporal", "The added attention: the text and the patches of all frames"],
      ["mixed", "Both", "Both, mixed by the mean of the layer's gate"],
    ],
    (value) => explorer.set({ channel: value }),
  );
  const scale = radios(
    `scale-${group}`,
    "Scale",
    [
      ["root", "√", "Brightness is the square root of the weight: small weights show"],
      ["linear", "Linear", "Brightness is the weight"],
    ],
    (value) => explorer.set({ scale: value }),
  );
  Object.assign(p, { channel: channel.inputs, scaleInputs: scale.inputs });
  return make(
    "div",
    { className: "cv-controls" },
    control(
      "Generation",
      "Which sequence of frames: the key frames, or three frames and the two between them",
      p.scene,
    ),
    control("Layer", "Layer of the transformer, from 0 ([ and ])", p.layer, p.layerText),
    control("Head", "One attention head, or all of them together (h)", p.head),
    make("div", { className: "cv-control" }, make("span", {}, "Channel"), channel.root),
    make("div", { className: "cv-control" }, make("span", {}, "Scale"), scale.root),
    control(
      "Weights",
      "Raw attention; by value: times the length of what each key adds; rollout: followed back through all layers",
      p.weights,
    ),
    control("Map", "What the lower row shows (m)", p.layerOf),
    control("Beside", "Another clip, checkpoint or layer, with the same selection (b)", p.beside),
  );
}

/** All elements of an explorer: {root, parts}. @param {any} explorer */
export function layout(explorer) {
  const p = /** @type {any} */ (parts(explorer));
  p.legend.style.background = `linear-gradient(to right, ${Array.from({ length: 18 }, (_, i) => css(viridis(i / 17))).join(", ")})`;
  p.title = make("h2");
  p.about = make("p");
  const reads = button("What reads it?", "Which patches read this patch (r)", () =>
    explorer.set({ reverse: !explorer.state.reverse, word: null }),
  );
  p.reads = reads;
  const key = (/** @type {string} */ name, /** @type {string} */ title, /** @type {string} */ text) =>
    make("span", { className: "cv-key", title }, make("i", { className: name }), text);
  const player = make("div", { className: "cv-player" }, p.play, p.step, p.stepText);
  const main = make(
    "main",
    {},
    panel(explorer, "frames", "Generated frames", "", p.clip),
    panel(
      explorer,
      "map",
      "Map",
      "",
      p.heat,
      p.other,
      make(
        "div",
        { className: "cv-legend" },
        p.least,
        make("span", { className: "cv-scale" }, p.legend, p.middle),
        p.largest,
        key("cv-dark", "The mask allows it, but the weight is next to nothing", "does not attend"),
        key("cv-hatched", "The mask forbids it: not made yet, another window, or another frame", "cannot attend"),
      ),
    ),
    panel(explorer, "words", "Prompt", "Click a word to see which patches read it", p.words),
    p.status,
  );
  main.querySelector("[data-panel=frames] .cv-heading h3").after(player);
  main.querySelector("[data-panel=map] .cv-heading h3").after(p.seen, reads);
  const root = make(
    "div",
    {
      className: "cv-explorer",
      tabIndex: -1,
      "data-lm-suppress-shortcuts": "true",
      onkeydown: (/** @type {any} */ event) => explorer.key(event),
    },
    make(
      "header",
      {},
      p.title,
      p.about,
      button("Tour", "Three minutes through this clip", () => explorer.tour()),
    ),
    p.ask,
    controls(explorer, p),
    make("div", { className: "cv-body" }, main, side(explorer, p)),
    make(
      "footer",
      { "aria-label": "Keys" },
      ...KEYS.map(([keys, what]) =>
        make("span", {}, ...keys.split(" ").map((one) => make("kbd", {}, one)), ` ${what}`),
      ),
    ),
    p.tip,
    p.card,
  );
  return { root, parts: p };
}
