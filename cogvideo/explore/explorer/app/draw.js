// Colours and canvases. A canvas has as many pixels as the screen shows, whatever its size. What was painted on one
// last is remembered, so that it can be painted again into a picture file (share.js).

/** @type {WeakMap<HTMLCanvasElement, (context: Brush) => void>} */
export const PAINTED = new WeakMap();

// Viridis at every 15th of its 256 colours: brightness grows evenly, for all kinds of colour vision and in grey.
const VIRIDIS =
  "440154 481769 472a7a 433d84 3d4e8a 355e8d 2e6d8e 297b8e 23898e 1f978b 21a585 2eb37c 46c06f 65cb5e 89d548 b0dd2f d8e219 fde725"
    .split(" ")
    .map((hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)));
const MARK = "#ff5a1f"; // the chosen patch: on no place of viridis, light or dark
const HATCH = { ground: "#eceae4", line: "#a9a59b" };

/** Brightness 0..1 of a weight: "root" shows small weights beside a large one, "linear" does not.
 *  @param {number} weight @param {number} largest @param {string} scale */
export function brightness(weight, largest, scale) {
  const share = largest > 0 ? Math.min(1, weight / largest) : 0;
  return scale === "root" ? Math.sqrt(share) : share;
}

/** @param {number} share 0..1 @returns {Color} */
export function viridis(share) {
  const at = Math.round(255 * share) / 15;
  const [low, high] = [VIRIDIS[Math.floor(at)], VIRIDIS[Math.ceil(at)]];
  return /** @type {Color} */ (low.map((value, c) => Math.round(value + (high[c] - value) * (at - Math.floor(at)))));
}

/** Blue for less, white for none, red for more. @param {number} share -1..1 @returns {Color} */
export function diverging(share) {
  const end = share < 0 ? [5, 80, 160] : [178, 24, 43];
  const part = Math.min(1, Math.abs(share));
  return /** @type {Color} */ (end.map((value) => Math.round(247 + (value - 247) * part)));
}

/** @param {Color} color */
export const css = ([r, g, b]) => `rgb(${r}, ${g}, ${b})`;

/** Black or white, whichever is easier to read on a colour. @param {Color} color */
export function ink([r, g, b]) {
  const [x, y, z] = [r, g, b].map((v) => (v / 255) ** 2.2);
  return 0.2126 * x + 0.7152 * y + 0.0722 * z > 0.18 ? "#111" : "#fff";
}

/** Give a canvas the pixels it is shown with and paint it; does nothing while it is not shown.
 *  @param {HTMLCanvasElement} canvas @param {(context: Brush) => void} draw @returns {boolean} whether it is shown */
export function paint(canvas, draw) {
  const ratio = window.devicePixelRatio || 1;
  const [width, height] = [Math.round(canvas.clientWidth * ratio), Math.round(canvas.clientHeight * ratio)];
  if (!width || !height) return false;
  if (canvas.width !== width) canvas.width = width;
  if (canvas.height !== height) canvas.height = height;
  PAINTED.set(canvas, draw);
  draw(canvas.getContext("2d"));
  return true;
}

/** The rectangle of cell (row, column) in a grid that fills the canvas.
 *  @param {HTMLCanvasElement} canvas @param {Grid} grid @param {number} row @param {number} column @returns {Box} */
function cell(canvas, { width, height }, row, column) {
  const x = Math.round((column * canvas.width) / width);
  const y = Math.round((row * canvas.height) / height);
  const right = Math.round(((column + 1) * canvas.width) / width);
  const bottom = Math.round(((row + 1) * canvas.height) / height);
  return [x, y, right - x, bottom - y];
}

/** @param {Brush} context @param {number} x @param {number} y @param {number} width @param {number} height @param {number} step */
export function hatch(context, x, y, width, height, step) {
  context.save();
  context.beginPath();
  context.rect(x, y, width, height);
  context.clip();
  context.fillStyle = HATCH.ground;
  context.fill();
  context.strokeStyle = HATCH.line;
  context.lineWidth = Math.max(1, step / 6);
  context.beginPath();
  // Lines x + y = a multiple of step: they run on through neighbouring cells.
  for (let line = Math.ceil((x + y) / step) * step; line < x + y + width + height; line += step) {
    context.moveTo(line - y, y);
    context.lineTo(line - y - height, y + height);
  }
  context.stroke();
  context.restore();
}

/** @param {Brush} context @param {Box} box @param {{dashed?: boolean}} [how] */
function outline(context, [x, y, width, height], { dashed = false } = {}) {
  const ratio = window.devicePixelRatio || 1;
  context.save();
  if (dashed) context.setLineDash([3 * ratio, 2 * ratio]);
  const stroke = (/** @type {string} */ color, /** @type {number} */ thick) => {
    context.strokeStyle = color;
    context.lineWidth = thick * ratio;
    context.strokeRect(x + 1, y + 1, width - 2, height - 2);
  };
  if (!dashed) stroke("#fff", 4);
  stroke(MARK, dashed ? 1.5 : 2.5);
  context.restore();
}

/** One generated frame. veiled(patch): not made yet; marked: the patch that reads, or null; dashed: others to point at.
 *  @param {HTMLCanvasElement} canvas @param {HTMLImageElement} image @param {Grid} grid
 *  @param {{veiled: (patch: number) => boolean, marked: number | null, dashed: number[]}} marks */
export function drawFrame(canvas, image, grid, { veiled, marked, dashed }) {
  const at = (/** @type {number} */ patch) => cell(canvas, grid, Math.floor(patch / grid.width), patch % grid.width);
  paint(canvas, (context) => {
    context.imageSmoothingEnabled = false;
    if (image.complete && image.naturalWidth) context.drawImage(image, 0, 0, canvas.width, canvas.height);
    context.fillStyle = "rgba(246, 245, 242, 0.78)";
    for (let patch = 0; patch < grid.width * grid.height; patch++) if (veiled(patch)) context.fillRect(...at(patch));
    for (const patch of dashed) outline(context, at(patch), { dashed: true });
    if (marked !== null) outline(context, at(marked));
  });
}

/** Heat of one frame: color(patch) is [r,g,b], or null where there is none.
 *  @param {HTMLCanvasElement} canvas @param {Grid} grid @param {(patch: number) => Color | null} color
 *  @param {number | null} marked @param {number | null} hovered */
export function drawHeat(canvas, grid, color, marked, hovered) {
  const at = (/** @type {number} */ patch) => cell(canvas, grid, Math.floor(patch / grid.width), patch % grid.width);
  paint(canvas, (context) => {
    const step = Math.max(4, Math.round(canvas.width / grid.width / 3));
    for (let patch = 0; patch < grid.width * grid.height; patch++) {
      const value = color(patch);
      if (value === null) hatch(context, ...at(patch), step);
      else {
        context.fillStyle = css(value);
        context.fillRect(...at(patch));
      }
    }
    if (hovered !== null) outline(context, at(hovered), { dashed: true });
    if (marked !== null) outline(context, at(marked));
  });
}

/** The whole mask: readers from top to bottom, what they may read from left to right, text first. Returns the text's share, 0 while it is not shown.
 *  @param {HTMLCanvasElement} canvas @param {Sizes} sizes @param {(query: number, key: number) => boolean} sees */
export function drawMask(canvas, { l, n, places }, sees) {
  let text = 0;
  const draw = (/** @type {Brush} */ context) => {
    const [wide, high] = [canvas.width, canvas.height];
    hatch(context, 0, 0, wide, high, Math.max(6, Math.round(wide / 36)));
    // At most one line of cells for each pixel: a mask of 2000 places is drawn at every few of them.
    text = Math.max(4, Math.round((wide * l) / (l + places)));
    const [rows, columns] = [Math.min(high, places), Math.min(wide - text, places)];
    const x = (/** @type {number} */ column) => text + Math.round((column * (wide - text)) / columns);
    const y = (/** @type {number} */ row) => Math.round((row * high) / rows);
    context.fillStyle = css(viridis(0));
    context.fillRect(0, 0, text, high);
    for (let row = 0; row < rows; row++) {
      const reader = Math.floor(((row + 0.5) * places) / rows);
      const seen = (/** @type {number} */ column) =>
        column < columns && sees(reader, Math.floor(((column + 0.5) * places) / columns));
      for (let first = 0; first < columns; first++) {
        if (!seen(first)) continue;
        let end = first;
        while (seen(end)) end++;
        context.fillRect(x(first), y(row), x(end) - x(first), y(row + 1) - y(row));
        first = end;
      }
    }
    context.fillStyle = "#fff";
    const ratio = Math.ceil(window.devicePixelRatio || 1);
    for (let frame = 0; frame < places / n; frame++) {
      context.fillRect(text + Math.round((frame * n * (wide - text)) / places), 0, ratio, high);
      if (frame) context.fillRect(0, Math.round((frame * n * high) / places), wide, ratio);
    }
  };
  return paint(canvas, draw) ? text / canvas.width : 0;
}
