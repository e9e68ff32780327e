// A tour of three minutes through the clip at hand: what both channels do here, with its own numbers.
import { button, make, percent } from "./elements.js";
import { total } from "./reading.js";

/** Stops: which panel, what to show, and what to say about it. @param {any} explorer @returns {{panel: string, state: object, say: () => string}[]} */
function stops(explorer) {
  const { info } = explorer;
  const scene = /** @type {SceneInfo} */ (explorer.scenes(0));
  const layer = info.start.layer;
  const patch = scene.steps[info.start.patch]
    ? info.start.patch
    : scene.steps.findIndex((/** @type {number} */ step) => step > 0);
  /** @type {any} */
  const base = {
    scene: 0,
    layer,
    patch,
    head: "mean",
    channel: "mixed",
    word: null,
    reverse: false,
    weights: "raw",
    layerOf: "attention",
    silence: null,
    beside: null,
    besideLayer: null,
    tab: "looks",
  };
  const sum = (/** @type {Shown} */ channel, /** @type {"words" | "keys"} */ what) =>
    percent(total(explorer.shown.reading[channel][what]));
  const share = () => scene.gates[layer].mean;
  const word = Math.min(3, scene.words.length - 1);
  const silence =
    scene.silences.find((/** @type {Silence} */ one) => one.parts[0]?.[0] === "temporal" && one.parts[0][2] === null) ??
    null;
  return [
    {
      panel: "frames",
      state: base,
      say: () =>
        `The model draws a clip patch by patch. The orange patch is ${explorer.name(patch)}: it was made in step ${scene.steps[patch]} of ${explorer.waves.length}. What is pale was not there yet.`,
    },
    {
      panel: "map",
      state: base,
      say: () =>
        `Before it drew this patch the model looked around. Bright patches below are what it looked at in layer ${explorer.layerNumber}; hatched ones it could not see.`,
    },
    {
      panel: "map",
      state: { ...base, channel: "spatial" },
      say: () =>
        `One channel, the spatial one, comes from an image model and sees this frame and the words alone. Here ${sum("spatial", "words")} of its look goes to the words and ${sum("spatial", "keys")} to the frame.`,
    },
    {
      panel: "map",
      state: { ...base, channel: "temporal" },
      say: () =>
        `The other, the temporal one, was added for video. It sees the frames before as well: of its look ${sum("temporal", "keys")} goes to frames. This is how a clip remembers what has happened.`,
    },
    {
      panel: "gates",
      state: base,
      say: () =>
        `A learned gate mixes the two, in every layer and dimension. Layer ${explorer.layerNumber} takes ${percent(share())} from the spatial channel and the rest from the temporal one.`,
    },
    {
      panel: "words",
      state: { ...base, word },
      say: () => `A click on a word turns the question round: which patches read “${scene.words[word].text}”?`,
    },
    {
      panel: "heads",
      state: { ...base, tab: "heads" },
      say: () =>
        `Each channel has ${info.heads.length} heads in each layer, and each looks in its own way. Here are all of them for this patch; a click opens one.`,
    },
    {
      panel: "tokens",
      state: { ...base, tab: "tokens" },
      say: () =>
        "What was nearly drawn: the likeliest tokens here, as pictures. Where one has all the probability the patch was copied; where many share it, it was a decision.",
    },
    {
      panel: "map",
      state: { ...base, tab: "tokens", layerOf: "entropy" },
      say: () => "The same of the whole clip: bright patches were decisions, dark ones copies.",
    },
    ...(silence
      ? [
          {
            panel: "silence",
            state: { ...base, tab: "silence", silence, layerOf: "silence" },
            say: () =>
              `Looking is not mattering. Without ${explorer.silenceName(silence)} red patches cost the model more, blue ones less. Try others, then click about as you like.`,
          },
        ]
      : []),
  ];
}

/** Begin, or end where it runs. @param {any} explorer */
export function tour(explorer) {
  const { card } = explorer.parts;
  if (!card.hidden) return end(explorer);
  card.hidden = false;
  explorer.before = { ...explorer.state };
  visit(explorer, stops(explorer), 0);
}

/** Back to what was chosen before. @param {any} explorer */
function end(explorer) {
  explorer.parts.card.hidden = true;
  explorer.set(explorer.before);
  explorer.root
    .querySelectorAll(".cv-toured")
    .forEach((/** @type {Element} */ one) => one.classList.remove("cv-toured"));
}

/** @param {any} explorer @param {ReturnType<typeof stops>} all @param {number} at */
async function visit(explorer, all, at) {
  const { card } = explorer.parts;
  const { panel, state, say } = all[at];
  await explorer.set(state);
  explorer.root
    .querySelectorAll("[data-panel]")
    .forEach((/** @type {HTMLElement} */ one) => one.classList.toggle("cv-toured", one.dataset.panel === panel));
  explorer.root.querySelector(`[data-panel=${panel}]`).scrollIntoView({ block: "nearest" });
  const go = (/** @type {number} */ to) => () => visit(explorer, all, to);
  const next =
    at + 1 < all.length ? button("Next", "On", go(at + 1)) : button("End", "To the page", () => end(explorer));
  card.replaceChildren(
    make("p", { "aria-live": "polite" }, say()),
    make(
      "div",
      { className: "cv-line" },
      make("span", {}, `${at + 1} of ${all.length}`),
      ...(at ? [button("Back", "Back", go(at - 1))] : []),
      next,
      ...(at + 1 < all.length ? [button("Leave", "Leave the tour", () => end(explorer))] : []),
    ),
  );
  next.focus({ preventScroll: true });
}
