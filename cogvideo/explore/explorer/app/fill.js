// Elements that change with the generation: frames, words, gates, and the lists of what can be put beside it.
import { inflate } from "./maps.js";
import { make, option, percent } from "./elements.js";

/** A row of frames: their canvases, and what stands under each. @param {any} explorer
 *  @param {SceneInfo} scene @param {(patch: number | null, event?: any) => void} over */
export function figures(explorer, scene, over) {
  const patchAt = (/** @type {any} */ event, /** @type {number} */ time) => {
    const box = event.target.getBoundingClientRect();
    const along = (/** @type {number} */ at, /** @type {number} */ size, /** @type {number} */ count) =>
      Math.max(0, Math.min(count - 1, Math.floor((at / size) * count)));
    const row = along(event.clientY - box.top, box.height, explorer.grid.height);
    const column = along(event.clientX - box.left, box.width, explorer.grid.width);
    return time * explorer.n + row * explorer.grid.width + column;
  };
  return scene.frames.map((frame, time) => {
    const canvas = make("canvas", {
      "aria-hidden": "true",
      "data-frame": time,
      onpointermove: (/** @type {any} */ event) => over(patchAt(event, time), event),
      onclick: (/** @type {any} */ event) => {
        explorer.choose(patchAt(event, time));
        explorer.parts.clip.focus({ preventScroll: true });
      },
    });
    return { canvas, start: make("i"), caption: make("span"), sum: make("span"), frame };
  });
}

/** A frame with its number above. @param {any} canvas @param {any} frame @param {number} time @param {string} note */
export function titled(canvas, frame, time, note) {
  const given = make("span", { className: "cv-given" }, note);
  return make(
    "figure",
    {},
    make("figcaption", {}, make("b", {}, `Frame ${time}`), ` ${frame.seconds} s`, given),
    canvas,
  );
}

/** @param {any} explorer @param {SceneInfo} scene @returns {HTMLImageElement[]} */
export function imagesOf(explorer, scene) {
  return scene.frames.map(({ image }) => {
    const picture = new Image();
    picture.onload = () => explorer.draw();
    picture.src = image;
    return picture;
  });
}

/** Unpack what payload.describe_tokens packed. @param {SceneInfo} scene @param {number} places @returns {Promise<Tokens>} */
export async function tokensOf(scene, places) {
  const bytes = await inflate(scene.tokens);
  const count = (bytes.length / 4 / places - 6) / 3;
  let at = 0;
  const take = (/** @type {number} */ length) => (at += 4 * length) - 4 * length;
  const floats = (/** @type {number} */ length) => new Float32Array(bytes.buffer, take(length), length);
  const whole = (/** @type {number} */ length) => new Int32Array(bytes.buffer, take(length), length);
  const [ids, model, sampler] = [whole(places * count), floats(places * count), floats(places * count)];
  const one = () => ({ entropy: floats(places), surprise: floats(places), rank: whole(places) });
  return { count, ids, model, sampler, of: [one(), one()] };
}

/** Frames, words and gates of the explorer's scene. @param {any} explorer */
export function fill(explorer) {
  const { parts: p, info } = explorer;
  const scene = /** @type {SceneInfo} */ (explorer.scene);
  p.title.textContent = `“${scene.prompt}”`;
  p.about.textContent = scene.about;
  explorer.root.style.setProperty("--frames", scene.frames.length);
  explorer.root.style.setProperty("--aspect", explorer.grid.width / explorer.grid.height);
  explorer.images = imagesOf(explorer, scene);
  explorer.clip = figures(explorer, scene, (patch, event) => event.pointerType === "mouse" && explorer.peek(patch));
  explorer.heat = figures(explorer, scene, (patch, event) => explorer.inspect(patch, event));
  p.clip.replaceChildren(
    ...explorer.clip.map((/** @type {any} */ { canvas, frame }, /** @type {number} */ time) =>
      titled(canvas, frame, time, frame.given ? "given" : "made here"),
    ),
  );
  p.heat.replaceChildren(
    ...explorer.heat.map((/** @type {any} */ { canvas, start, caption, sum }) =>
      make("figure", {}, canvas, make("figcaption", {}, start, caption, sum)),
    ),
  );
  p.words.replaceChildren(
    ...scene.words.map(({ text, hint }, word) =>
      make(
        "button",
        {
          type: "button",
          title: hint,
          onclick: () => explorer.set({ word: explorer.state.word === word ? null : word }),
        },
        make("b", {}, text),
        make("span", { className: "cv-blue" }),
        make("span", { className: "cv-red" }),
      ),
    ),
  );
  p.gates.replaceChildren(
    ...scene.gates.map(({ mean, low, high }, layer) =>
      make(
        "button",
        {
          type: "button",
          onclick: () => explorer.set({ layer }),
          title: `Layer ${info.layers[layer]}: ${percent(mean)} spatial, ${percent(1 - mean)} temporal; 80 % of dimensions lie between ${percent(low)} and ${percent(high)} spatial`,
        },
        make("span", {}, `layer ${info.layers[layer]}`),
        make(
          "span",
          { className: "cv-bar" },
          make("i", { style: { width: `${100 * mean}%` } }),
          make("u", { style: { left: `${100 * low}%`, width: `${100 * (high - low)}%` } }),
        ),
        make("span", {}, percent(mean)),
      ),
    ),
  );
  p.step.max = explorer.waves.length;
  const others = [["", "nothing"]];
  info.scenes.forEach((/** @type {SceneInfo} */ one, /** @type {number} */ index) => {
    if (index !== explorer.state.scene)
      others.push([`scene ${index}`, one.prompt === scene.prompt ? one.title : `${one.title}: ${one.prompt}`]);
  });
  info.layers.forEach((/** @type {number} */ layer, /** @type {number} */ index) =>
    others.push([`layer ${index}`, `layer ${layer}`]),
  );
  p.beside.replaceChildren(...others.map(([value, text]) => option(value, text)));
}
