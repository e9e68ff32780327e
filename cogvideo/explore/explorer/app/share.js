// To take away: the state in the page's address, tables as CSV, and every panel as SVG (drawn again, not copied) or PNG.
import { PAINTED } from "./draw.js";
import { make } from "./elements.js";
import { CHANNELS } from "./reading.js";
import { heatOf, numberRows } from "./show.js";
import { differenceOf } from "./beside.js";

const TEXTS = ["channel", "scale", "weights", "layerOf", "tab"];

/** @param {State} state */
export function toHash(state) {
  const plain = Object.entries(state).filter(
    ([name, value]) => name !== "silence" && value !== null && value !== false,
  );
  if (state.silence) plain.push(["silence", JSON.stringify(state.silence)]);
  return `#${new URLSearchParams(plain.map(([name, value]) => [name, String(value)]))}`;
}

/** What an address says of the state; what it does not understand is left out. @param {string} hash @param {Info} info @returns {Partial<State>} */
export function fromHash(hash, info) {
  /** @type {any} */
  const found = {};
  const ends = {
    scene: info.scenes.length,
    beside: info.scenes.length,
    layer: info.layers.length,
    besideLayer: info.layers.length,
  };
  for (const [name, text] of new URLSearchParams(hash.slice(1))) {
    const number = Number(text);
    if (TEXTS.includes(name)) found[name] = text;
    else if (name === "reverse") found[name] = text === "true";
    else if (name === "head" && ["mean", "max"].includes(text)) found[name] = text;
    else if (name === "silence" && text.startsWith("{")) found[name] = JSON.parse(text);
    else if (Number.isInteger(number) && number >= 0 && number < (ends[/** @type {"scene"} */ (name)] ?? 1e6))
      found[name] = number;
  }
  return found;
}

/** The tables of a panel, as rows. @param {any} explorer @param {string} name @returns {(string | number)[][]} */
export function tableOf(explorer, name) {
  const { shown, scene, info, state, grid, n } = explorer;
  const place = (/** @type {number} */ patch) => [
    Math.floor(patch / n),
    Math.floor((patch % n) / grid.width),
    patch % grid.width,
  ];
  const patches = Array.from({ length: shown.places }, (_, patch) => patch);
  if (name === "heads") return explorer.glanced ?? []; // null until they are drawn
  if (name === "silence") {
    const lost = state.layerOf === "silence" ? patches : [];
    const silent = explorer.silenceName(state.silence);
    return [
      ["silent", "frame", "row", "column", "nats lost"],
      ...lost.map((one) => [silent, ...place(one), heatOf(explorer, shown, one) ?? ""]),
    ];
  }
  if (name === "words")
    return [
      ["slot", "word", ...CHANNELS],
      ...scene.words.map((/** @type {any} */ word, /** @type {number} */ i) => [
        i,
        word.text,
        ...CHANNELS.map((channel) => shown.reading?.[channel].words[i] ?? ""),
      ]),
    ];
  if (name === "looks")
    return [["part", ...CHANNELS], ...numberRows(explorer).map(([part, values]) => [part, ...values])];
  if (name === "gates")
    return [
      ["layer", "mean", "low", "high"],
      ...scene.gates.map((/** @type {any} */ { mean, low, high }, /** @type {number} */ i) => [
        info.layers[i],
        mean,
        low,
        high,
      ]),
    ];
  if (name === "tokens") {
    const { tokens, patch } = shown;
    const rows = Array.from({ length: tokens.count }, (_, k) => patch * tokens.count + k);
    return [["token", "model", "sampler"], ...rows.map((at) => [tokens.ids[at], tokens.model[at], tokens.sampler[at]])];
  }
  if (name === "mask")
    return [
      ["reader", "key", "sees"],
      ...patches.flatMap((query) =>
        patches.map((key) => [
          query,
          key,
          Number(shown.mask.sees(state.channel, explorer.layerNumber, query, key, n, shown.places)),
        ]),
      ),
    ];
  if (name === "frames")
    return [
      ["frame", "row", "column", "step", "entropy", "surprise", "rank"],
      ...patches.map((one) => [
        ...place(one),
        scene.steps[one],
        shown.tokens.of[0].entropy[one],
        shown.tokens.of[0].surprise[one],
        shown.tokens.of[0].rank[one],
      ]),
    ];
  const beside = shown.other ? ["beside", "difference"] : [];
  return [
    ["frame", "row", "column", state.layerOf, ...beside],
    ...patches.map((one) => [
      ...place(one),
      heatOf(explorer, shown, one) ?? "",
      ...(shown.other ? [heatOf(explorer, shown.other, one) ?? "", differenceOf(explorer, one) ?? ""] : []),
    ]),
  ];
}

/** @param {(string | number)[][]} rows */
const csv = (rows) =>
  rows
    .map((row) =>
      row.map((one) => (/[",\n]/.test(String(one)) ? `"${String(one).replaceAll('"', '""')}"` : one)).join(","),
    )
    .join("\n") + "\n";

/** A context that writes what is drawn as SVG. @implements {Brush} */
class SvgBrush {
  constructor() {
    /** @type {string[]} */
    this.out = [];
    this.path = "";
    this.clips = 0;
    this.depth = [0];
    this.dash = "";
    this.fillStyle = this.strokeStyle = "#000";
    this.lineWidth = 1;
    this.imageSmoothingEnabled = false;
    this.id = Math.random().toString(36).slice(2);
  }
  save() {
    this.depth.push(0);
  }
  restore() {
    this.out.push("</g>".repeat(this.depth.pop()));
    this.dash = "";
  }
  beginPath() {
    this.path = "";
  }
  /** @param {number} x @param {number} y */
  moveTo(x, y) {
    this.path += `M${x} ${y}`;
  }
  /** @param {number} x @param {number} y */
  lineTo(x, y) {
    this.path += `L${x} ${y}`;
  }
  /** @param {number} x @param {number} y @param {number} w @param {number} h */
  rect(x, y, w, h) {
    this.path += `M${x} ${y}h${w}v${h}h${-w}z`;
  }
  clip() {
    const name = `${this.id}-${this.clips++}`;
    this.out.push(`<clipPath id="${name}"><path d="${this.path}"/></clipPath><g clip-path="url(#${name})">`);
    this.depth[this.depth.length - 1]++;
  }
  fill() {
    this.out.push(`<path d="${this.path}" fill="${this.fillStyle}"/>`);
  }
  stroke() {
    this.out.push(`<path d="${this.path}" fill="none" stroke="${this.strokeStyle}" stroke-width="${this.lineWidth}"/>`);
  }
  /** @param {number} x @param {number} y @param {number} w @param {number} h */
  fillRect(x, y, w, h) {
    this.out.push(`<rect x="${x}" y="${y}" width="${w}" height="${h}" fill="${this.fillStyle}"/>`);
  }
  /** @param {number} x @param {number} y @param {number} w @param {number} h */
  strokeRect(x, y, w, h) {
    this.out.push(
      `<rect x="${x}" y="${y}" width="${w}" height="${h}" fill="none" stroke="${this.strokeStyle}" stroke-width="${this.lineWidth}"${this.dash}/>`,
    );
  }
  /** @param {number[]} dash */
  setLineDash(dash) {
    this.dash = ` stroke-dasharray="${dash.join(" ")}"`;
  }
  /** @param {any} image @param {number} x @param {number} y @param {number} w @param {number} h */
  drawImage(image, x, y, w, h) {
    this.out.push(
      `<image href="${image.src ?? image.toDataURL()}" x="${x}" y="${y}" width="${w}" height="${h}" preserveAspectRatio="none" style="image-rendering:pixelated"/>`,
    );
  }
}

/** @param {string} text */
const escaped = (text) => text.replace(/[&<>"]/g, (sign) => `&#${sign.charCodeAt(0)};`);

/** An element as it is laid out, as SVG: boxes, texts, and canvases drawn anew. @param {HTMLElement} panel @returns {string} */
export function toSvg(panel) {
  const frame = panel.getBoundingClientRect();
  /** @type {string[]} */
  const out = [];
  const walk = (/** @type {Element} */ element) => {
    if (element.matches("[data-tools], [hidden]")) return;
    const [box, style] = [element.getBoundingClientRect(), getComputedStyle(element)];
    const [x, y] = [box.left - frame.left, box.top - frame.top];
    const border =
      style.borderTopStyle !== "none" && parseFloat(style.borderTopWidth) ? ` stroke="${style.borderTopColor}"` : "";
    if (style.backgroundColor !== "rgba(0, 0, 0, 0)" || border)
      out.push(
        `<rect x="${x}" y="${y}" width="${box.width}" height="${box.height}" rx="${parseFloat(style.borderRadius) || 0}" fill="${style.backgroundColor}"${border}/>`,
      );
    if (element instanceof HTMLCanvasElement && PAINTED.has(element)) {
      const brush = new SvgBrush();
      PAINTED.get(element)(brush);
      out.push(`<g transform="translate(${x} ${y}) scale(${box.width / element.width})">${brush.out.join("")}</g>`);
    }
    if (element instanceof HTMLImageElement)
      out.push(`<image href="${element.src}" x="${x}" y="${y}" width="${box.width}" height="${box.height}"/>`);
    for (const node of element.childNodes) {
      if (node instanceof Element) walk(node);
      else if (node.textContent.trim()) {
        const range = document.createRange();
        range.selectNodeContents(node);
        const at = range.getBoundingClientRect();
        const size = parseFloat(style.fontSize);
        const [left, top] = [at.left - frame.left, at.top - frame.top + at.height / 2 + size * 0.35];
        const font = `font-family="${escaped(style.fontFamily)}" font-size="${size}" font-weight="${style.fontWeight}"`;
        const text = escaped(node.textContent);
        out.push(`<text x="${left}" y="${top}" ${font} fill="${style.color}">${text}</text>`);
      }
    }
  };
  walk(panel);
  const size = `width="${frame.width}" height="${frame.height}" viewBox="0 0 ${frame.width} ${frame.height}"`;
  return `<svg xmlns="http://www.w3.org/2000/svg" ${size}><rect width="100%" height="100%" fill="#f6f5f2"/>${out.join("")}</svg>`;
}

/** @param {string} svg @returns {Promise<string>} a data URL of twice the size */
async function toPng(svg) {
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(svg)}`;
  await image.decode();
  const canvas = make("canvas", { width: 2 * image.width, height: 2 * image.height });
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/png");
}

/** The buttons of a panel. @param {any} explorer @param {string} name @param {HTMLElement} section */
export function panelButtons(explorer, name, section) {
  const save = (/** @type {string} */ kind, /** @type {() => Promise<string> | string} */ url) =>
    make("button", {
      type: "button",
      textContent: kind,
      title: `Save this panel as ${kind}`,
      "aria-label": `${kind} of ${name}`,
      onclick: async () => make("a", { href: await url(), download: `${name}.${kind.toLowerCase()}` }).click(),
    });
  const text = (/** @type {string} */ type, /** @type {string} */ content) =>
    `data:${type};charset=utf-8,${encodeURIComponent(content)}`;
  const buttons = [
    save("PNG", () => toPng(toSvg(section))),
    save("SVG", () => text("image/svg+xml", toSvg(section))),
    save("CSV", () => text("text/csv", csv(tableOf(explorer, name)))),
  ];
  return make("span", { className: "cv-tools", "data-tools": "" }, ...buttons);
}
