// The side's panels besides the numbers: what was nearly drawn here, what silence costs, and all heads at a glance.
import { button, digits, make, nats, percent } from "./elements.js";
import { most, readingOf, total } from "./reading.js";
import { brightness, css, hatch, paint, viridis } from "./draw.js";
import { drawnAnew } from "./anew.js";

/** The likeliest tokens of the patch, with what they would draw. @param {any} explorer */
export async function drawTokens(explorer) {
  const { shown, parts: p, scene } = explorer;
  const { patch, tokens } = shown;
  if (!scene.steps[patch]) {
    p.tokens.replaceChildren(
      make("p", { className: "cv-note" }, "This patch is given: the model does not draw it here."),
    );
    return;
  }
  const first = patch * tokens.count;
  const sampler = Number.isFinite(tokens.sampler[first]);
  const [model, drawn] = tokens.of;
  const facts = [
    `Drawn: the ${ordinal(model.rank[patch])} likeliest, ${percent(Math.exp(-model.surprise[patch]))} (${nats(model.surprise[patch])})`,
    `Undecided: ${nats(model.entropy[patch])} of entropy`,
  ];
  if (sampler)
    facts.push(
      `To the sampler: ${ordinal(drawn.rank[patch])} likeliest, ${percent(Math.exp(-drawn.surprise[patch]))}, ${nats(drawn.entropy[patch])} of entropy`,
    );
  const own = scene.steps && explorer.drawnToken(patch);
  const rows = Array.from({ length: tokens.count }, (_, k) => {
    const canvas = make("canvas", { className: "cv-token", "aria-hidden": "true" });
    const bar = (/** @type {string} */ name, /** @type {number} */ share) =>
      make("i", { className: name, style: { width: `${100 * share}%` } });
    const chance = tokens.model[first + k];
    const row = make(
      "div",
      {
        className: `cv-token-row${own === k ? " cv-chosen" : ""}`,
        title: `Token ${tokens.ids[first + k]}${own === k ? ", which was drawn" : ""}`,
      },
      canvas,
      make(
        "span",
        { className: "cv-bars" },
        bar("cv-model", chance),
        ...(sampler ? [bar("cv-sampler", tokens.sampler[first + k])] : []),
      ),
      make("span", {}, percent(chance)),
      make("span", {}, sampler ? percent(tokens.sampler[first + k]) : ""),
    );
    return { row, canvas };
  });
  const head = make(
    "div",
    { className: "cv-token-row cv-quiet" },
    make("span", {}, ""),
    make("span", {}, "likeliest tokens"),
    make("span", { title: "Teacher-forced: the model's own, over the finished clip" }, "model"),
    make(
      "span",
      { title: "What the sampler draws from: with temperature, candidates, guidance and text bonus" },
      sampler ? "sampler" : "",
    ),
  );
  p.tokens.replaceChildren(
    ...facts.map((text) => make("p", { className: "cv-note" }, text)),
    head,
    ...rows.map(({ row }) => row),
  );
  const sheet = await explorer.maps.pictures(shown.scene, patch).catch(() => /** @type {Sheet} */ (null));
  if (!sheet || explorer.shown !== shown) return;
  const [wide, high] = [sheet.image.naturalWidth / tokens.count, sheet.image.naturalHeight / sheet.rows];
  rows.forEach(({ canvas }, k) => {
    const cut = document.createElement("canvas");
    [cut.width, cut.height] = [wide, high];
    cut.getContext("2d").drawImage(sheet.image, k * wide, sheet.row * high, wide, high, 0, 0, wide, high);
    paint(canvas, (context) => {
      context.imageSmoothingEnabled = false;
      context.drawImage(cut, 0, 0, canvas.width, canvas.height);
    });
  });
}

/** @param {number} number */
const ordinal = (number) =>
  `${number}${number % 100 > 10 && number % 100 < 14 ? "th" : (["th", "st", "nd", "rd"][number % 10] ?? "th")}`;

/** A silence in words. @param {any} explorer @param {Silence | null} silence */
export function silenceName(explorer, silence) {
  if (!silence) return "nothing";
  const words = silence.words.map((slot) => `the word “${explorer.scene.words[slot]?.text ?? slot}”`);
  const parts = silence.parts.map(([channel, layer, head]) =>
    head === null ? `the ${channel} channel of layer ${layer}` : `${channel} head ${layer}.${head}`,
  );
  return [...words, ...parts].join(" and ") || "nothing";
}

/** Buttons for all that can be silenced. @param {any} explorer */
export function drawSilence(explorer) {
  const { parts: p, state, info, scene } = explorer;
  const name = `${state.scene}/${info.live}`;
  if (explorer.silenceMade !== name) {
    explorer.silenceMade = name;
    const one = (/** @type {Silence} */ silence, /** @type {string} */ text) => {
      const made = button(text, `Silence ${silenceName(explorer, silence)}`, () => explorer.silence(silence));
      made.dataset.silence = JSON.stringify(silence);
      return made;
    };
    /** @type {Record<string, any[]>} */
    const lines = { words: [] };
    for (const silence of scene.silences) {
      if (silence.words.length) lines.words.push(one(silence, scene.words[silence.words[0]].text));
      else {
        const [channel, layer, head] = silence.parts[0];
        (lines[`${channel} ${layer}`] ??= []).push(one(silence, head === null ? "all" : String(head)));
      }
    }
    p.silenced = make("p", { className: "cv-note", "aria-live": "polite" });
    p.anew = make("div", {});
    p.silence.replaceChildren(
      make(
        "p",
        { className: "cv-note" },
        info.live
          ? "Choose one or more; again, to let it speak."
          : "Choose one: this page holds the results of each alone, not of several; the notebook's explorer makes those.",
      ),
      ...Object.entries(lines).map(([line, buttons]) =>
        make("div", { className: "cv-line", role: "group", "aria-label": line }, make("span", {}, line), ...buttons),
      ),
      p.silenced,
      p.anew,
    );
  }
  for (const made of p.silence.querySelectorAll("[data-silence]"))
    made.setAttribute("aria-pressed", String(isIn(state.silence, JSON.parse(made.dataset.silence))));
  p.silenced.textContent = state.silence ? `Silent: ${silenceName(explorer, state.silence)}.` : "Nothing is silent.";
  drawnAnew(explorer);
}

/** @param {Silence | null} all @param {Silence} one */
export function isIn(all, one) {
  const has = (/** @type {any[]} */ list, /** @type {any} */ item) =>
    list.some((other) => JSON.stringify(other) === JSON.stringify(item));
  return (
    Boolean(all) && one.words.every((word) => has(all.words, word)) && one.parts.every((part) => has(all.parts, part))
  );
}

/** With one more silent, or one fewer; the page holds one at a time. @param {Silence | null} all @param {Silence} one @param {boolean} several @returns {Silence | null} */
export function toggled(all, one, several) {
  if (isIn(all, one)) {
    const key = JSON.stringify(one);
    const rest = {
      parts: all.parts.filter((part) => JSON.stringify({ parts: [part], words: [] }) !== key),
      words: all.words.filter((word) => JSON.stringify({ parts: [], words: [word] }) !== key),
    };
    return rest.parts.length + rest.words.length ? rest : null;
  }
  return several && all ? { parts: [...all.parts, ...one.parts], words: [...all.words, ...one.words] } : one;
}

/** A grid of layers and heads: each a small map of the chosen patch. @param {any} explorer */
export async function drawGlance(explorer) {
  const { shown, info, state, parts: p, scene } = explorer;
  const { channel } = state;
  const rows = await Promise.all(
    info.layers.map((/** @type {number} */ _, /** @type {number} */ layer) =>
      explorer.maps.row(shown.scene, layer, shown.query),
    ),
  );
  if (explorer.shown !== shown) return;
  const name = `${info.layers.length}/${info.heads.length}`;
  if (explorer.glanceMade !== name) {
    explorer.glanceMade = name;
    p.glance.style.setProperty("--heads", info.heads.length);
    p.glance.replaceChildren(
      make("span", {}),
      ...info.heads.map((/** @type {number} */ head) => make("b", {}, `head ${head}`)),
      ...info.layers.flatMap((/** @type {number} */ layer, /** @type {number} */ i) => [
        make("b", {}, `layer ${layer}`),
        ...info.heads.map((/** @type {number} */ head, /** @type {number} */ h) =>
          make(
            "button",
            {
              type: "button",
              title: `Open head ${head} of layer ${layer}`,
              "aria-label": `layer ${layer}, head ${head}`,
              onclick: () => explorer.set({ layer: i, head: h }),
            },
            make("canvas", { "aria-hidden": "true" }),
          ),
        ),
      ]),
    );
  }
  const tiles = [...p.glance.querySelectorAll("button")];
  const { l, n, places, query } = shown;
  const frames = Array.from({ length: places / n }, (_, frame) => frame);
  explorer.glanced = [["layer", "head", "words", ...frames.map((frame) => `frame ${frame}`)]];
  rows.forEach((row, layer) =>
    info.heads.forEach((/** @type {number} */ _, /** @type {number} */ head) => {
      const tile = tiles[layer * info.heads.length + head];
      const share = scene.gates[layer].mean;
      const reading = readingOf(row, head, share, query, { l, n, places }, state.weights === "value")[
        /** @type {Shown} */ (channel)
      ];
      tile.setAttribute("aria-pressed", String(shown.layer === layer && shown.head === head));
      const sums = frames.map((frame) => total(reading.keys.subarray(frame * n, (frame + 1) * n)));
      explorer.glanced.push([info.layers[layer], info.heads[head], total(reading.words), ...sums]);
      tile.title = `Layer ${info.layers[layer]}, head ${info.heads[head]}: ${digits(total(reading.words))} % on words`;
      drawTile(tile.firstChild, explorer, reading);
    }),
  );
}

/** Frames side by side in one small canvas, with the words' sum as a bar at the left. @param {HTMLCanvasElement} canvas @param {any} explorer @param {Reading} reading */
function drawTile(canvas, explorer, reading) {
  const { grid, n, shown } = explorer;
  const frames = shown.places / n;
  const largest = Math.max(most(reading.words), most(reading.keys));
  paint(canvas, (context) => {
    const [wide, high] = [canvas.width, canvas.height];
    const bar = Math.max(2, Math.round(wide / 16));
    hatch(context, 0, 0, wide, high, 4);
    context.fillStyle = css(viridis(brightness(most(reading.words), largest, "root")));
    context.fillRect(0, 0, bar, high);
    const size = (wide - bar) / (frames * grid.width);
    const tall = high / grid.height;
    for (let key = 0; key < reading.keys.length; key++) {
      if (!reading.keys[key] || key % n === 0) continue;
      const patch = (key % n) - 1;
      const x = bar + (Math.floor(key / n) * grid.width + (patch % grid.width)) * size;
      context.fillStyle = css(viridis(brightness(reading.keys[key], largest, "root")));
      context.fillRect(x, Math.floor(patch / grid.width) * tall, size + 0.5, tall + 0.5);
    }
  });
}
