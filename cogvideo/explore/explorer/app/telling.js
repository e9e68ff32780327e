// What is shown, in words: the line under the words, and the tips under the pointer.
import { keyOf } from "./reading.js";
import { nats, percent } from "./elements.js";
import { heatOf } from "./show.js";
import { toHash } from "./share.js";

/** What is read most, or who reads most, in words. @param {any} explorer @returns {string} */
export function strongest(explorer) {
  const { shown, state, scene } = explorer;
  const { reading, readers, values, word, n } = shown;
  const { channel } = state;
  const patches = Array.from({ length: shown.places }, (_, patch) => patch);
  const three = (/** @type {[number, string][]} */ found, /** @type {(value: number) => string} */ say) =>
    found
      .sort((a, b) => b[0] - a[0])
      .slice(0, 3)
      .filter(([weight], rank) => !rank || weight >= 0.0005)
      .map(([weight, name]) => `${name} ${say(weight)}`)
      .join("; ");
  if (values) {
    const made = patches.filter((patch) => scene.steps[patch]);
    const found = made.map((patch) => /** @type {[number, string]} */ ([values[patch], explorer.name(patch)]));
    const whole = made.reduce((sum, patch) => sum + values[patch], 0);
    const each = `${nats(whole / made.length)} a patch, ${nats(whole)} in all`;
    return `${state.layerOf === "silence" ? "Lost" : "Mean"}: ${each}. Most: ${three(found, nats)}.`;
  }
  if (readers) {
    const who = word === null ? explorer.name(shown.patch) : `“${scene.words[word].text}”`;
    const found = patches
      .filter((patch) => explorer.reader(patch) !== null)
      .map(
        (patch) => /** @type {[number, string]} */ ([readers[channel][explorer.reader(patch)], explorer.name(patch)]),
      );
    return `${who} is read most by ${three(found, percent)}.`;
  }
  const { words, keys } = reading[channel];
  const held = (/** @type {number} */ key) => (key % n ? explorer.name(key - 1) : `the start of frame ${key / n}`);
  /** @type {[number, string][]} */
  const found = [
    ...Array.from(words, (weight, index) => /** @type {[number, string]} */ ([weight, `“${scene.words[index].text}”`])),
    ...Array.from(
      /** @type {Float32Array} */ (keys),
      (weight, key) => /** @type {[number, string]} */ ([weight, held(key)]),
    ),
  ];
  return `Reads most: ${three(found, percent)}.`;
}

/** The map at a patch in a sentence. @param {any} explorer @param {number} patch @returns {string} */
export function patchTold(explorer, patch) {
  const { shown, state, scene } = explorer;
  const { word, n, values, readers } = shown;
  const weight = heatOf(explorer, shown, patch);
  const name = explorer.name(patch);
  if (values) return weight === null ? `${name}: given, not made here` : `${name}: ${nats(weight)}`;
  if (readers) {
    const what = word === null ? explorer.name(shown.patch) : `“${scene.words[word].text}”`;
    if (weight === null) return `${name}: no place holds the last patch of a given frame`;
    return `${name}: ${percent(weight)} of its reading went to ${what}`;
  }
  if (weight !== null) return `${name}: ${percent(weight)}`;
  if (keyOf(patch, n) === null) return `${name}: cannot be attended; the last patch of a frame is never an input`;
  const own = Math.floor(patch / n) === Math.floor(shown.patch / n);
  if (!own && state.channel === "spatial")
    return `${name}: cannot be attended; the spatial channel sees its own frame alone`;
  const later = scene.steps[patch] >= (scene.steps[shown.patch] || Infinity);
  return `${name}: cannot be attended; ${later ? "it was not made yet" : "the mask of this layer hides it"}`;
}

/** A point of the mask in a sentence; x and y are shares of it. @param {any} explorer @param {number} x @param {number} y */
export function maskTold(explorer, x, y) {
  const { shown, scene, state, maskText } = explorer;
  const { l, n, places, mask } = shown;
  const at = (/** @type {number} */ share, /** @type {number} */ count) =>
    Math.max(0, Math.min(count - 1, Math.floor(share * count)));
  const query = at(y, places);
  const given = scene.frames[Math.floor(query / n)].given;
  const held = (/** @type {number} */ place) =>
    place % n ? explorer.name(place - 1) : `the start of frame ${place / n}`;
  const reader = given ? held(query) : explorer.name(query);
  if (x < maskText) return `${reader} may read the word “${scene.words[at(x / maskText, l)].text}”`;
  const key = at((x - maskText) / (1 - maskText), places);
  const sees = mask.sees(state.channel, explorer.layerNumber, query, key, n, places);
  return `${reader} ${sees ? "may" : "cannot"} read ${held(key)}`;
}

/** Tell those outside what is drawn now: who drives the page, its address, the notebook. @param {any} explorer */
export function say(explorer) {
  const { shown, state } = explorer;
  const target = shown.word !== null ? `word ${shown.word}` : `${shown.readers ? "readers" : "place"} ${shown.query}`;
  const modes = [state.layerOf, state.weights].filter((mode) => !["attention", "raw"].includes(mode));
  explorer.root.dataset.shown = [shown.scene, explorer.layerNumber, shown.head, state.channel, target, ...modes].join(
    "/",
  );
  if (explorer.preview !== null) return;
  if (explorer.address)
    try {
      history.replaceState(null, "", toHash(state));
    } catch {
      explorer.address = false;
    }
  const place = state.patch % explorer.n;
  const patch = [
    Math.floor(state.patch / explorer.n),
    Math.floor(place / explorer.grid.width),
    place % explorer.grid.width,
  ];
  const head = typeof state.head === "number" ? explorer.info.heads[state.head] : state.head;
  explorer.tellOthers?.({
    scene: state.scene,
    layer: explorer.layerNumber,
    head,
    channel: state.channel,
    patch,
    word: state.word,
    silence: state.silence,
  });
}
