// The keys, and moves from patch to patch.
import { CHANNELS } from "./reading.js";
import { HEAD_NAMES, LAYERS_OF, TABS } from "./names.js";
import { drawFrames } from "./show.js";
import { maskTold, patchTold } from "./telling.js";

/** One row or column further; past the left or right edge lies the neighbouring frame.
 *  @param {any} explorer @param {number} down @param {number} right */
export function move(explorer, down, right) {
  const { width, height } = explorer.grid;
  const { patch } = explorer.state;
  const frames = explorer.scene.frames.length;
  const [time, place] = [Math.floor(patch / explorer.n), patch % explorer.n];
  const row = Math.max(0, Math.min(height - 1, Math.floor(place / width) + down));
  const across = Math.max(0, Math.min(frames * width - 1, time * width + (place % width) + right));
  explorer.choose(Math.floor(across / width) * explorer.n + row * width + (across % width));
}

/** Go through the order of decoding until its end, or stop. @param {any} explorer */
export function play(explorer) {
  clearInterval(explorer.playing);
  const last = explorer.waves.length;
  if (explorer.playing) explorer.playing = null;
  else {
    if (explorer.scene.steps[explorer.state.patch] === last) explorer.choose(explorer.waves[0][0]);
    explorer.playing = setInterval(() => {
      if (explorer.busy) return; // no step is left out where answers take long
      if (!explorer.root.isConnected || explorer.scene.steps[explorer.state.patch] >= explorer.waves.length)
        play(explorer);
      else explorer.step(1);
    }, 140);
  }
  explorer.draw();
}

const around = (/** @type {number} */ value, /** @type {number} */ by, /** @type {number} */ count) =>
  (value + by + count) % count;
/** @template T @param {T[]} list @param {T} value @param {number} by @returns {T} */
const turn = (list, value, by) => list[around(list.indexOf(value), by, list.length)];

/** @param {any} explorer @returns {Record<string, () => void>} */
function actions(explorer) {
  const { state, info } = explorer;
  const heads = [...Object.keys(HEAD_NAMES), ...info.heads.keys()];
  const words = explorer.scene.words.length;
  const tabs = TABS.map(([name]) => name);
  const beside = [...explorer.parts.beside.options].map((one) => one.value);
  return {
    ArrowLeft: () => move(explorer, 0, -1),
    ArrowRight: () => move(explorer, 0, 1),
    ArrowUp: () => move(explorer, -1, 0),
    ArrowDown: () => move(explorer, 1, 0),
    PageUp: () => move(explorer, 0, -explorer.grid.width),
    PageDown: () => move(explorer, 0, explorer.grid.width),
    ",": () => explorer.step(-1),
    ".": () => explorer.step(1),
    " ": () => play(explorer),
    "[": () => explorer.set({ layer: Math.max(0, state.layer - 1) }),
    "]": () => explorer.set({ layer: Math.min(info.layers.length - 1, state.layer + 1) }),
    h: () => explorer.set({ head: turn(heads, state.head, 1) }),
    H: () => explorer.set({ head: turn(heads, state.head, -1) }),
    c: () => explorer.set({ channel: turn(CHANNELS, state.channel, 1) }),
    w: () => explorer.set({ word: state.word === null ? 0 : around(state.word, 1, words) }),
    W: () => explorer.set({ word: state.word === null ? words - 1 : around(state.word, -1, words) }),
    r: () => explorer.set({ reverse: !state.reverse, word: null }),
    m: () => explorer.set({ layerOf: turn(Object.keys(LAYERS_OF), state.layerOf, 1) }),
    b: () => explorer.setBeside(turn(beside, explorer.parts.beside.value, 1)),
    t: () => explorer.set({ tab: turn(tabs, state.tab, 1) }),
    Escape: () => explorer.set({ word: null, reverse: false }),
    g: () => explorer.set({ scene: around(state.scene, 1, info.scenes.length) }),
    G: () => explorer.set({ scene: around(state.scene, -1, info.scenes.length) }),
  };
}

/** @param {any} explorer @param {KeyboardEvent} event */
export function key(explorer, event) {
  const target = /** @type {HTMLElement} */ (event.target);
  if (event.ctrlKey || event.metaKey || event.altKey || event.key === "Tab") return;
  event.stopPropagation(); // Jupyter has commands of its own on keys, such as x, which cuts the cell
  if (target.matches("input:not([type=range]):not([type=radio]), textarea")) return;
  const own = target.matches("select, input")
    ? ["Arrow", "Page", "Home", "End", " "]
    : target.matches("button")
      ? [" ", "Enter"]
      : [];
  if (own.some((start) => event.key.startsWith(start))) return;
  const action = actions(explorer)[event.key];
  if (!action) return;
  event.preventDefault();
  explorer.preview = null;
  action();
}

/** On (or back) in the order of decoding. @param {any} explorer @param {number} by */
export function step(explorer, by) {
  const to = Math.max(1, Math.min(explorer.waves.length, explorer.scene.steps[explorer.state.patch] + by));
  explorer.choose(explorer.waves[to - 1][0]);
}

/** Show a tip under the pointer, or none. @param {any} explorer @param {string | null} text @param {any} [event] */
export function tell(explorer, text, event) {
  const { tip } = explorer.parts;
  tip.hidden = text === null;
  if (text === null) return;
  tip.textContent = text;
  const box = explorer.root.getBoundingClientRect();
  const left = Math.min(event.clientX - box.left + 14, box.width - tip.offsetWidth - 4);
  tip.style.left = `${Math.max(0, left)}px`;
  tip.style.top = `${event.clientY - box.top + 18}px`;
}

/** @param {any} explorer @param {number | null} patch @param {any} [event] */
export function inspect(explorer, patch, event) {
  if (explorer.inspected !== patch) {
    explorer.inspected = patch;
    if (explorer.shown) drawFrames(explorer);
  }
  tell(explorer, patch === null || !explorer.shown ? null : patchTold(explorer, patch), event);
}

/** @param {any} explorer @param {any} event null once the pointer has left */
export function tellMask(explorer, event) {
  if (event === null) return tell(explorer, null);
  const box = event.target.getBoundingClientRect();
  const [x, y] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
  tell(explorer, maskTold(explorer, x, y), event);
}

/** @param {any} explorer @param {any} event */
export function chooseInMask(explorer, event) {
  const box = event.target.getBoundingClientRect();
  const share = (event.clientY - box.top) / box.height;
  const place = Math.max(0, Math.min(explorer.places - 1, Math.floor(share * explorer.places)));
  explorer.choose(
    explorer.scene.frames[Math.floor(place / explorer.n)].given && place % explorer.n ? place - 1 : place,
  );
}
