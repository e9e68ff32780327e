// Two things side by side: another clip, checkpoint or layer under the same selection, and the difference of both maps.
import { diverging, drawFrame, drawHeat } from "./draw.js";
import { figures, imagesOf, titled } from "./fill.js";
import { make, percent } from "./elements.js";
import { fetchView } from "./view.js";
import { colorOf, heatOf, told } from "./show.js";

/** Fetch what stands beside the view; nothing where nothing does. @param {any} explorer @param {View} view */
export async function fetchOther(explorer, view) {
  const { beside, besideLayer } = explorer.state;
  if (beside === null && besideLayer === null) return;
  const words = explorer.scenes(beside ?? view.scene).words.length;
  const word = view.word === null ? null : Math.min(view.word, words - 1);
  view.other = await fetchView(
    explorer,
    beside ?? view.scene,
    besideLayer ?? view.layer,
    { ...explorer.state, word },
    view.patch,
  );
}

/** The rows for it, made anew only when another thing is put there. @param {any} explorer */
function rows(explorer) {
  const { shown, parts: p } = explorer;
  const name = shown.other ? `${shown.other.scene}/${shown.scene}` : "";
  if (explorer.besideMade === name) return;
  explorer.besideMade = name;
  p.other.replaceChildren();
  if (!shown.other) return;
  const scene = explorer.scenes(shown.other.scene);
  const quiet = (/** @type {number | null} */ patch, /** @type {any} */ event) => explorer.inspect(patch, event);
  explorer.besideImages = shown.other.scene === shown.scene ? null : imagesOf(explorer, scene);
  const row = (
    /** @type {string} */ label,
    /** @type {any[]} */ made,
    /** @type {(one: any, time: number) => any} */ figure,
  ) => {
    const frames = make("div", { className: "cv-frames", role: "group", "aria-label": label }, ...made.map(figure));
    p.other.append(make("h3", { className: "cv-label" }, label), frames);
    return made;
  };
  const plain = (/** @type {any} */ { canvas, sum }) => make("figure", {}, canvas, make("figcaption", {}, sum));
  explorer.otherClip = explorer.besideImages
    ? row(`Beside: ${scene.title}, “${scene.prompt}”`, figures(explorer, scene, quiet), ({ canvas, frame }, time) =>
        titled(canvas, frame, time, ""),
      )
    : [];
  explorer.otherHeat = row(besideTitle(explorer), figures(explorer, scene, quiet), plain);
  explorer.otherDifference = row(
    "Difference: red where the upper map has more, blue where the lower has",
    figures(explorer, scene, quiet),
    plain,
  );
}

/** @param {any} explorer */
function besideTitle(explorer) {
  const { other } = explorer.shown;
  return `Map of layer ${explorer.info.layers[other.layer]}${explorer.state.beside === null ? "" : ", the same selection"}`;
}

/** Difference of the maps at a patch, or null where either has none. @param {any} explorer @param {number} patch */
export function differenceOf(explorer, patch) {
  const { shown } = explorer;
  const [above, below] = [heatOf(explorer, shown, patch), heatOf(explorer, shown.other, patch)];
  return above === null || below === null ? null : above - below;
}

/** @param {any} explorer */
export function drawBeside(explorer) {
  const { shown, grid } = explorer;
  rows(explorer);
  const extra = !shown.other ? 2 : explorer.besideImages ? 5 : 4;
  explorer.root.style.setProperty("--rows", extra);
  if (!shown.other) return;
  explorer.parts.other.querySelectorAll(".cv-label")[explorer.besideImages ? 1 : 0].textContent = besideTitle(explorer);
  const { n, patch, word } = shown;
  const marked = (/** @type {number} */ frame) => (word === null && Math.floor(patch / n) === frame ? patch % n : null);
  const differences = Array.from({ length: shown.places }, (_, one) => differenceOf(explorer, one));
  const end = Math.max(1e-6, ...differences.map((one) => Math.abs(one ?? 0)));
  explorer.otherClip.forEach((/** @type {any} */ { canvas }, /** @type {number} */ frame) =>
    drawFrame(canvas, explorer.besideImages[frame], grid, { veiled: () => false, marked: marked(frame), dashed: [] }),
  );
  explorer.otherHeat.forEach((/** @type {any} */ { canvas, sum }, /** @type {number} */ frame) => {
    drawHeat(
      canvas,
      grid,
      (one) => colorOf(explorer, heatOf(explorer, shown.other, frame * n + one)),
      marked(frame),
      null,
    );
    sum.textContent = "";
  });
  explorer.otherDifference.forEach((/** @type {any} */ { canvas, sum }, /** @type {number} */ frame) => {
    const own = differences.slice(frame * n, (frame + 1) * n);
    drawHeat(canvas, grid, (one) => (own[one] === null ? null : diverging(own[one] / end)), marked(frame), null);
    const greatest = own.reduce((a, b) => (Math.abs(b ?? 0) > Math.abs(a ?? 0) ? b : a), 0);
    sum.textContent = greatest ? `up to ${greatest > 0 ? "+" : ""}${told(explorer, greatest)}` : "none";
  });
  explorer.parts.other.dataset.most = percent(end);
}
