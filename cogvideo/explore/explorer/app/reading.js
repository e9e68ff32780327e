// What is made of rows and columns: heads and channels combined, values weighed in, and which patch is which place.
import { inflate } from "./maps.js";

/** @type {Shown[]} */
export const CHANNELS = ["spatial", "temporal", "mixed"];

/** Who may see whom among frame places: bits of [T*N, N] (spatial) and [T*N, T*N] (temporal, one for layers of a parity). */
export class Masks {
  /** @param {{spatial: string, temporal: string[]}} packed */
  static async of(packed) {
    return new Masks(await inflate(packed.spatial), await Promise.all(packed.temporal.map(inflate)));
  }

  /** @param {Uint8Array} spatial @param {Uint8Array[]} temporal */
  constructor(spatial, temporal) {
    this.spatial = spatial;
    this.temporal = temporal;
  }

  /** May the place `query` attend to the place `key` of the clip? N places a frame, T*N in all.
   *  @param {string} channel @param {number} layerNumber @param {number} query @param {number} key
   *  @param {number} n @param {number} places @returns {boolean} */
  sees(channel, layerNumber, query, key, n, places) {
    const bit = (/** @type {Uint8Array} */ bytes, /** @type {number} */ index) =>
      (bytes[index >> 3] >> (7 - (index & 7))) & 1;
    if (channel === "mixed")
      return ["spatial", "temporal"].some((one) => this.sees(one, layerNumber, query, key, n, places));
    if (channel === "temporal")
      return Boolean(bit(this.temporal[layerNumber % this.temporal.length], query * places + key));
    return Math.floor(query / n) === Math.floor(key / n) && Boolean(bit(this.spatial, query * n + (key % n)));
  }
}

/** One array out of those of all heads: one head's own, or their mean or maximum at every key.
 *  @param {Float32Array[]} arrays @param {Head} head */
export function overHeads(arrays, head) {
  if (typeof head === "number") return arrays[head];
  const combined = new Float32Array(arrays[0].length);
  for (const array of arrays)
    for (let key = 0; key < combined.length; key++)
      combined[key] = head === "max" ? Math.max(combined[key], array[key]) : combined[key] + array[key] / arrays.length;
  return combined;
}

/** Weights times the lengths of the values they fetch, as shares. @param {Float32Array} weights @param {Float32Array} values */
function weighed(weights, values) {
  const products = weights.map((weight, key) => weight * values[key]);
  const sum = products.reduce((total, value) => total + value, 0);
  return products.map((value) => value / sum);
}

/** A row by channel: {words [L], keys [T*N]} each. share: of the spatial channel, the mean of its gate.
 *  @param {Row} row @param {Head} head @param {number} share @param {number} query @param {Sizes} sizes
 *  @param {boolean} byValue weigh in how long the values are @returns {Record<Shown, Reading>} */
export function readingOf(row, head, share, query, sizes, byValue = false) {
  const { l, n, places } = sizes;
  const own = Math.floor(query / n) * n;
  const spread = row.heads.map(({ spatial, temporal }, index) => {
    const wide = new Float32Array(l + places);
    wide.set(spatial.subarray(0, l));
    wide.set(spatial.subarray(l), l + own);
    const value = row.values[index];
    const [near, far] = byValue ? [weighed(wide, value.spatial), weighed(temporal, value.temporal)] : [wide, temporal];
    return { spatial: near, temporal: far, mixed: near.map((one, key) => share * one + (1 - share) * far[key]) };
  });
  const of = (/** @type {Shown} */ channel) =>
    split(
      overHeads(
        spread.map((one) => one[channel]),
        head,
      ),
      l,
    );
  return { spatial: of("spatial"), temporal: of("temporal"), mixed: of("mixed") };
}

/** @param {Float32Array} keys @param {number} l @returns {Reading} */
export function split(keys, l) {
  return { words: keys.subarray(0, l), keys: keys.subarray(l) };
}

/** A column by channel: [T*N] each. @param {Column} column @param {Head} head @param {number} share @returns {Record<Shown, Float32Array>} */
export function readersOf(column, head, share) {
  const spread = column.heads.map(({ spatial, temporal }) => ({
    spatial,
    temporal,
    mixed: spatial.map((value, place) => share * value + (1 - share) * temporal[place]),
  }));
  const of = (/** @type {Shown} */ channel) =>
    overHeads(
      spread.map((one) => one[channel]),
      head,
    );
  return { spatial: of("spatial"), temporal: of("temporal"), mixed: of("mixed") };
}

/** The place that holds patch `patch` of a clip: one later in its frame; null for a frame's last patch, which none holds.
 *  @param {number} patch @param {number} n */
export function keyOf(patch, n) {
  return patch % n === n - 1 ? null : patch + 1;
}

/** The place whose reading is a patch's own: where it is made, or in a given frame where it is held (null: nowhere).
 *  @param {number} patch @param {number} n @param {boolean} given */
export function readerOf(patch, n, given) {
  return given ? keyOf(patch, n) : patch;
}

/** The largest of many numbers, NaN aside. @param {Iterable<number>} values */
export function most(values) {
  let largest = -Infinity;
  for (const value of values) if (value > largest) largest = value;
  return largest;
}

/** @param {ArrayLike<number>} array */
export const total = (array) => Array.from(array).reduce((sum, value) => sum + value, 0);
/** @param {ArrayLike<number>} array */
export const mean = (array) => total(array) / array.length;
