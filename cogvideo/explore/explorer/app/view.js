// What is fetched to be drawn: the rows or columns of a layer, and what is made of them.
import { Masks, keyOf, readersOf, readingOf, split } from "./reading.js";
import { tokensOf } from "./fill.js";

/** All that is to be drawn of a scene and layer. @param {any} explorer @param {number} scene @param {number} layer @param {State} state @param {number} patch @returns {Promise<View>} */
export async function fetchView(explorer, scene, layer, { word, head, reverse, weights, layerOf, silence }, patch) {
  const { stage, words, gates } = explorer.scenes(scene);
  const query = explorer.reader(patch, scene) ?? patch;
  const places = explorer.scenes(scene).frames.length * explorer.n;
  const sizes = { l: words.length, n: explorer.n, places };
  explorer.masks[stage] ??= await Masks.of(explorer.info.masks[stage]);
  const tokens = await (explorer.tokens[scene] ??= tokensOf(explorer.scenes(scene), places));
  /** @type {View} */
  const view = { ...sizes, scene, layer, head, patch, query, word, mask: explorer.masks[stage], tokens };
  const share = gates[layer].mean;
  if (layerOf === "silence") view.values = await explorer.maps.silence(scene, silence);
  else if (layerOf !== "attention") view.values = tokens.of[0][layerOf];
  if (word !== null || (reverse && !view.values)) {
    const column = await explorer.maps.column(scene, layer, word ?? words.length + keyOf(patch, explorer.n));
    view.readers = readersOf(column, head, share);
  } else if (weights === "rollout") {
    const rolled = split(await explorer.maps.rollout(scene, query), words.length);
    view.reading = { spatial: rolled, temporal: rolled, mixed: rolled };
  } else {
    const row = await explorer.maps.row(scene, layer, query);
    view.reading = readingOf(row, head, share, query, sizes, weights === "value");
    view.norms = row.norms;
  }
  return view;
}
