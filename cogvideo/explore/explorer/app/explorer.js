// The explorer itself: what is chosen, what is shown, and the hands on it. All text enters by textContent.

const HEAD_NAMES = { mean: "mean of heads", max: "maximum over heads" };
const KEYS = [
  ["← ↑ → ↓", "patch"],
  ["PgUp PgDn", "frame"],
  [", .", "back, on in the order of decoding"],
  ["space", "play"],
  ["[ ]", "layer"],
  ["h H", "head"],
  ["c", "channel"],
  ["w W", "word"],
  ["Esc", "back to the patch"],
  ["g G", "generation"],
];

/** An element with properties (data-, aria- and style ones by name), and children; strings become text. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "style") for (const [key, one] of Object.entries(value)) element.style.setProperty(key, one);
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.includes("-") || ["for", "role"].includes(name)) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

const digits = (share) => (100 * share).toFixed(share < 0.0995 ? 2 : 1);
const percent = (share) => `${digits(share)} %`;

const total = (array) => array.reduce((sum, value) => sum + value, 0);
const mean = (array) => total(array) / array.length;

class Explorer {
  constructor(host, info, maps) {
    this.host = host;
    this.info = info;
    this.maps = maps;
    this.grid = { width: info.width, height: info.height };
    this.n = info.width * info.height;
    this.state = { scene: 0, layer: 0, head: "mean", channel: "mixed", scale: "root", word: null, ...info.start };
    this.preview = null; // the patch under the pointer, shown instead of the chosen one
    this.inspected = null; // the patch of the heat map under the pointer
    this.masks = {};
    this.build();
  }

  // ---- what is chosen

  get scene() {
    return this.info.scenes[this.state.scene];
  }

  get places() {
    return this.scene.frames.length * this.n;
  }

  get layerNumber() {
    return this.info.layers[this.state.layer];
  }

  get query() {
    return this.preview ?? this.state.query;
  }

  get share() {
    return this.scene.gates[this.state.layer].mean;
  }

  get headName() {
    return HEAD_NAMES[this.state.head] ?? `head ${this.info.heads[this.state.head]}`;
  }

  /** Steps of decoding: lists of the places made together, from step 1. */
  get waves() {
    const waves = [];
    this.scene.steps.forEach((step, place) => step && (waves[step - 1] ??= []).push(place));
    return waves;
  }

  name(patch) {
    const [time, place] = [Math.floor(patch / this.n), patch % this.n];
    return `frame ${time}, row ${Math.floor(place / this.grid.width)}, column ${place % this.grid.width}`;
  }

  set(changes) {
    Object.assign(this.state, changes);
    if ("scene" in changes) {
      this.state.query = Math.min(this.state.query, this.places - 1);
      this.state.word = this.state.word === null ? null : Math.min(this.state.word, this.scene.words.length - 1);
      this.fill();
    }
    this.refresh();
  }

  /** Choose a patch as the reader. */
  choose(query) {
    this.preview = null;
    this.set({ query, word: null });
  }

  // ---- the page, once

  build() {
    const { info } = this;
    const option = (value, text) => make("option", { value, textContent: text });
    const control = (text, title, ...inputs) => make("label", { className: "cv-control", title }, make("span", {}, text), ...inputs);
    this.parts = {
      scene: make("select", { onchange: (event) => this.set({ scene: Number(event.target.value) }) }),
      layer: make("input", {
        type: "range", min: 0, max: info.layers.length - 1, step: 1,
        oninput: (event) => this.set({ layer: Number(event.target.value) }),
      }),
      layerText: make("output"),
      head: make("select", {
        onchange: ({ target: { value } }) => this.set({ head: value in HEAD_NAMES ? value : Number(value) }),
      }),
      step: make("input", {
        type: "range", min: 1, step: 1, "aria-label": "Step of decoding",
        oninput: (event) => this.choose(this.waves[Number(event.target.value) - 1][0]),
      }),
      stepText: make("output", { className: "cv-step" }),
      play: make("button", {
        type: "button", className: "cv-play", title: "Play through the order in which patches are made (space)",
        onclick: () => this.play(),
      }),
      seen: make("p", { className: "cv-seen" }),
      status: make("p", { className: "cv-status", "aria-live": "polite" }),
      clip: make("div", {
        className: "cv-frames", tabIndex: 0, role: "application",
        "aria-label": "Generated frames: arrow keys choose a patch", onpointerleave: () => this.peek(null),
      }),
      heat: make("div", { className: "cv-frames", onpointerleave: () => this.inspect(null) }),
      words: make("div", { className: "cv-words", role: "group", "aria-label": "Words of the prompt" }),
      numbers: make("table"),
      gates: make("div", { className: "cv-gates" }),
      norms: make("p", { className: "cv-note" }),
      mask: make("canvas", { className: "cv-mask", onclick: (event) => this.chooseInMask(event) }),
      maskMark: make("div", { className: "cv-mask-mark" }),
      maskTitle: make("h3"),
      tip: make("div", { className: "cv-tip", hidden: true, role: "tooltip" }),
      largest: make("span"),
      middle: make("span"),
    };
    const p = this.parts;
    info.scenes.forEach((scene, index) => p.scene.append(option(index, scene.title)));
    for (const [value, text] of Object.entries(HEAD_NAMES)) p.head.append(option(value, text));
    info.heads.forEach((head, index) => p.head.append(option(index, `head ${head}`)));
    const radios = (name, choices, label) => {
      const inputs = choices.map(([value, text, title]) =>
        make("label", { title },
          make("input", { type: "radio", name: `${name}-${this.host.id || "cv"}`, value, onchange: () => this.set({ [name]: value }) }),
          make("span", {}, text)));
      p[name] = inputs.map((one) => one.firstChild);
      return make("div", { className: "cv-radios", role: "radiogroup", "aria-label": label }, ...inputs);
    };
    const channel = radios("channel", [
      ["spatial", "Spatial", "The image model's attention: the text and the patch's own frame"],
      ["temporal", "Temporal", "The added attention: the text and the patches of all frames"],
      ["mixed", "Mixed", "Both, weighted by the layer's gate (its mean over dimensions)"],
    ], "Channel");
    const scale = radios("scale", [
      ["root", "Root", "Brightness by the square root of the weight: small weights stay visible"],
      ["linear", "Linear", "Brightness by the weight itself"],
    ], "Scale of brightness");
    const ramp = make("span", { className: "cv-ramp", style: {
      background: `linear-gradient(90deg, ${VIRIDIS.map(css).join(", ")})`,
    } });
    this.root = make("div", { className: "cv-explorer", tabIndex: -1, "data-lm-suppress-shortcuts": "true", onkeydown: (event) => this.key(event) },
      make("header", {},
        make("h2", {}, `“${info.prompt}”`),
        make("p", {}, info.about)),
      make("div", { className: "cv-controls" },
        control("Generation", "Which sequence of five frames: the key frames, or three frames and the two between them", p.scene),
        control("Layer", "Layer of the transformer, from 0 ([ and ])", p.layer, p.layerText),
        control("Head", "One attention head, or all of them together (h)", p.head),
        make("div", { className: "cv-control" }, make("span", {}, "Channel"), channel),
        make("div", { className: "cv-control" }, make("span", {}, "Scale"), scale)),
      make("div", { className: "cv-body" },
        make("main", {},
          make("div", { className: "cv-line" }, make("h3", {}, "Generated frames"),
            make("div", { className: "cv-player" }, p.play, p.step, p.stepText)),
          p.clip,
          make("div", { className: "cv-line" }, make("h3", {}, "Heat"), p.seen),
          p.heat,
          make("div", { className: "cv-legend" },
            make("span", {}, "0 %"), make("span", { className: "cv-scale" }, ramp, p.middle), p.largest,
            make("span", { className: "cv-key", title: "The mask allows it, but the weight is next to nothing" },
              make("i", { className: "cv-dark" }), "does not attend"),
            make("span", { className: "cv-key", title: "The mask forbids it: not made yet, another window, or another frame" },
              make("i", { className: "cv-hatched" }), "cannot attend")),
          make("div", { className: "cv-line" }, make("h3", {}, "Prompt"),
            make("p", { className: "cv-hint" }, "Click a word to see which patches read it.")),
          p.words,
          p.status),
        make("aside", {},
          make("section", { title: "Attention weights summed over the words and over each frame, its start included" },
            make("h3", {}, "Where it looks, in %"), p.numbers),
          make("section", { title: "The learned gate mixes the channels in every dimension: mean share, with the range of the middle 80 % of dimensions as a line" },
            make("h3", {}, "Gate: ", make("b", { className: "cv-blue" }, "spatial"), " or ", make("b", { className: "cv-red" }, "temporal")),
            p.gates, p.norms),
          make("section", { title: "Rows: the patch that is made. Columns: the words, then the places of all frames. Click to choose a row" },
            p.maskTitle, make("div", { className: "cv-mask-box" }, p.mask, p.maskMark)))),
      make("footer", { "aria-label": "Keys" },
        ...KEYS.map(([keys, what]) => make("span", {}, ...keys.split(" ").map((key) => make("kbd", {}, key)), ` ${what}`))),
      p.tip);
    this.host.classList.add("cv-host"); // sizes follow its width
    this.host.replaceChildren(this.root);
    this.fill();
    this.resized = new ResizeObserver(() => this.draw());
    this.resized.observe(this.root);
    this.refresh();
  }

  /** What changes with the generation: frames, words, gates. */
  fill() {
    const { parts: p, scene } = this;
    this.root.style.setProperty("--frames", scene.frames.length);
    this.images = scene.frames.map(({ image }) => {
      const picture = new Image();
      picture.onload = () => this.draw();
      picture.src = image;
      return picture;
    });
    const patchAt = (event, time) => {
      const box = event.target.getBoundingClientRect();
      const along = (at, size, count) => Math.max(0, Math.min(count - 1, Math.floor((at / size) * count)));
      const row = along(event.clientY - box.top, box.height, this.grid.height);
      return time * this.n + row * this.grid.width + along(event.clientX - box.left, box.width, this.grid.width);
    };
    const figures = (kind, over) => scene.frames.map((frame, time) => {
      const canvas = make("canvas", {
        "aria-hidden": "true", "data-frame": time,
        onpointermove: (event) => over(patchAt(event, time), event),
        onclick: (event) => {
          this.choose(patchAt(event, time));
          p.clip.focus({ preventScroll: true });
        },
      });
      return { canvas, start: make("i"), caption: make("span"), sum: make("span"), frame };
    });
    this.clip = figures("clip", (patch, event) => event.pointerType === "mouse" && this.peek(patch));
    this.heat = figures("heat", (patch, event) => this.inspect(patch, event));
    p.clip.replaceChildren(...this.clip.map(({ canvas, frame }, time) =>
      make("figure", {}, make("figcaption", {}, make("b", {}, `Frame ${time}`), ` ${frame.seconds} s`,
        make("span", { className: "cv-given" }, frame.given ? "given" : "made here")), canvas)));
    p.heat.replaceChildren(...this.heat.map(({ canvas, start, caption, sum }) =>
      make("figure", {}, canvas, make("figcaption", {}, start, caption, sum))));
    p.words.replaceChildren(...scene.words.map(({ text, hint }, word) => make("button", {
      type: "button", title: hint, onclick: () => this.set({ word: this.state.word === word ? null : word }),
    }, make("b", {}, text), make("span", { className: "cv-blue" }), make("span", { className: "cv-red" }))));
    p.gates.replaceChildren(...scene.gates.map(({ mean, low, high }, layer) => make("button", {
      type: "button", onclick: () => this.set({ layer }),
      title: `Layer ${this.info.layers[layer]}: ${percent(mean)} spatial, ${percent(1 - mean)} temporal; 80 % of dimensions lie between ${percent(low)} and ${percent(high)} spatial`,
    },
    make("span", {}, `layer ${this.info.layers[layer]}`),
    make("span", { className: "cv-bar" },
      make("i", { style: { width: `${100 * mean}%` } }),
      make("u", { style: { left: `${100 * low}%`, width: `${100 * (high - low)}%` } })),
    make("span", {}, percent(mean)))));
    p.step.max = this.waves.length;
  }

  // ---- showing

  /** Fetch what is chosen and show it; while one answer is under way, only the newest wish waits. */
  async refresh() {
    this.stale = true;
    if (this.busy) return;
    this.busy = true;
    while (this.stale) {
      this.stale = false;
      const waiting = setTimeout(() => this.root.classList.add("cv-waiting"), 150);
      try {
        await this.fetch();
      } catch (error) {
        this.parts.status.textContent = error.message;
        this.root.dataset.shown = "error";
        continue;
      } finally {
        clearTimeout(waiting);
        this.root.classList.remove("cv-waiting");
      }
      this.draw();
    }
    this.busy = false;
  }

  async fetch() {
    const { scene, layer, word, head } = this.state;
    const query = this.query;
    this.masks[this.scene.stage] ??= await Masks.of(this.info.masks[this.scene.stage]);
    const sizes = { l: this.scene.words.length, n: this.n, places: this.places };
    const share = this.info.scenes[scene].gates[layer].mean;
    const shown = { ...sizes, query, word, mask: this.masks[this.scene.stage], layer, scene };
    if (word === null) {
      const row = await this.maps.row(scene, layer, query);
      shown.reading = readingOf(row, head, share, query, sizes);
      shown.norms = row.norms;
    } else shown.readers = readersOf(await this.maps.column(scene, layer, word), head, share);
    this.shown = shown;
  }

  draw() {
    const { shown, state } = this;
    if (!shown || shown.scene !== state.scene) return;
    this.largest = this.largestShown();
    this.drawControls();
    this.drawFrames();
    this.drawWords();
    this.drawNumbers();
    this.drawMaskPanel();
    const target = shown.word === null ? `place ${shown.query}` : `word ${shown.word}`;
    // For those who drive the page from outside: what is drawn now.
    this.root.dataset.shown = [state.scene, this.info.layers[shown.layer], state.head, state.channel, target].join("/");
  }

  largestShown() {
    const { reading, readers } = this.shown;
    if (readers) return Math.max(...readers[this.state.channel]);
    const { words, keys } = reading[this.state.channel];
    return Math.max(...words, ...keys);
  }

  /** Weight of a patch in the heat map, or null where the patch cannot be attended to. */
  weight(patch, channel = this.state.channel) {
    const { reading, readers, mask, query, n, places } = this.shown;
    if (readers) return readers[channel][patch];
    const key = keyOf(patch, n);
    return key !== null && mask.sees(channel, this.layerNumber, query, key, n, places) ? reading[channel].keys[key] : null;
  }

  color(weight) {
    return weight === null ? null : viridis(brightness(weight, this.largest, this.state.scale));
  }

  drawControls() {
    const { parts: p, state, shown } = this;
    p.scene.value = state.scene;
    p.layer.value = state.layer;
    p.layerText.textContent = this.layerNumber;
    p.head.value = state.head;
    for (const name of ["channel", "scale"]) for (const input of p[name]) input.checked = input.value === state[name];
    const step = this.scene.steps[shown.query];
    p.step.value = step || 1;
    p.stepText.textContent = step ? `step ${step} of ${this.waves.length}` : "given, not made here";
    p.play.textContent = this.playing ? "❚❚" : "▶";
    p.play.setAttribute("aria-label", this.playing ? "Pause" : "Play through the order of decoding");
    const where = `${state.channel} channel${state.channel === "mixed" ? "s" : ""} of layer ${this.layerNumber}, ${this.headName}`;
    const { query, word, n } = shown;
    const reader = step
      ? `what ${this.name(query)} read when it was made`
      : `in a given frame nothing is made: what the place reads that holds ${query % n ? this.name(query - 1) : "its start"}`;
    p.seen.textContent = `${word === null ? reader : `how much each patch read “${this.scene.words[word].text}”`} (${where})`;
    p.largest.textContent = percent(this.largest);
    const half = state.scale === "root" ? 0.25 : 0.5;
    p.middle.textContent = percent(half * this.largest);
    this.root.classList.toggle("cv-word-mode", shown.word !== null);
  }

  drawFrames() {
    const { n, query, word, reading, mask, places } = this.shown;
    const { channel } = this.state;
    const step = this.scene.steps[query];
    const inside = (patch, frame) => (Math.floor(patch / n) === frame ? patch % n : null);
    const wave = step ? this.waves[step - 1].filter((patch) => patch !== query) : [];
    this.clip.forEach(({ canvas }, frame) => drawFrame(canvas, this.images[frame], this.grid, {
      veiled: (patch) => word === null && step > 0 && this.scene.steps[frame * n + patch] > step,
      marked: word === null ? inside(query, frame) : null,
      // A place of a given frame makes nothing: what it holds is the patch before.
      dashed: word === null && !step && query % n ? inside(query - 1, frame) : null,
      wave: word === null ? wave.filter((patch) => Math.floor(patch / n) === frame).map((patch) => patch % n) : [],
    }));
    this.heat.forEach(({ canvas, start, caption, sum }, frame) => {
      const hovered = this.inspected === null ? null : inside(this.inspected, frame);
      drawHeat(canvas, this.grid, (patch) => this.color(this.weight(frame * n + patch)), word === null ? inside(query, frame) : null, hovered);
      start.hidden = word !== null;
      if (word === null) {
        const first = frame * n;
        const seen = mask.sees(channel, this.layerNumber, query, first, n, places);
        start.className = seen ? "" : "cv-hatched";
        start.style.background = seen ? css(this.color(reading[channel].keys[first])) : "";
        start.title = `Start of frame ${frame}, before its first patch: ${seen ? percent(reading[channel].keys[first]) : "cannot be attended"}`;
        caption.textContent = seen ? `start ${percent(reading[channel].keys[first])}` : "start";
        sum.textContent = seen ? `sum ${percent(this.frameSum(channel, frame))}` : "cannot attend";
      } else {
        caption.textContent = "";
        sum.textContent = `mean ${percent(this.frameSum(channel, frame))}`;
      }
    });
  }

  /** Weight on a frame: the sum over its places, or in word mode the mean over its readers. */
  frameSum(channel, frame) {
    const { reading, readers, n } = this.shown;
    const part = (readers ? readers[channel] : reading[channel].keys).subarray(frame * n, (frame + 1) * n);
    return readers ? mean(part) : total(part);
  }

  drawWords() {
    const { reading, word } = this.shown;
    [...this.parts.words.children].forEach((button, index) => {
      const [, spatial, temporal] = button.children;
      button.setAttribute("aria-pressed", String(index === word));
      const color = reading ? this.color(reading[this.state.channel].words[index]) : null;
      button.style.background = color ? css(color) : "";
      button.style.color = color ? ink(color) : "";
      const share = (channel) => (reading ? reading[channel].words[index] : index === word ? mean(this.shown.readers[channel]) : null);
      for (const [span, channel, letter] of [[spatial, "spatial", "S"], [temporal, "temporal", "T"]])
        span.textContent = share(channel) === null ? "\u00a0" : `${letter} ${percent(share(channel))}`;
    });
  }

  drawNumbers() {
    const { reading, norms } = this.shown;
    const rows = this.scene.frames.map((_, frame) => [`Frame ${frame}`, (channel) => this.frameSum(channel, frame)]);
    if (reading) rows.unshift(["Words", (channel) => total(reading[channel].words)]);
    const all = reading
      ? (channel) => total(reading[channel].words) + total(reading[channel].keys)
      : (channel) => mean(this.shown.readers[channel]);
    rows.push([reading ? "Sum" : "Mean", all]);
    const cell = (tag, channel, text) => make(tag, { className: channel === this.state.channel ? "cv-chosen" : "" }, text);
    this.parts.numbers.replaceChildren(
      make("thead", {}, make("tr", {}, make("th", {}), ...CHANNELS.map((channel) => cell("th", channel, channel)))),
      make("tbody", {}, ...rows.map(([name, value]) => make("tr", {}, make("th", {}, name), ...CHANNELS.map((channel) => cell("td", channel, digits(value(channel))))))));
    this.parts.norms.textContent = norms
      ? `Output: spatial ${norms.spatial.toPrecision(3)}, temporal ${norms.temporal.toPrecision(3)}`
      : "";
    [...this.parts.gates.children].forEach((button, layer) => button.setAttribute("aria-pressed", String(layer === this.shown.layer)));
    this.parts.status.textContent = this.strongest();
  }

  /** What is read most, or who reads the word most, in words. */
  strongest() {
    const { reading, readers, word, n } = this.shown;
    const { channel } = this.state;
    const most = (found) => found.sort((a, b) => b[0] - a[0]).slice(0, 3).map(([weight, name]) => `${name} ${percent(weight)}`).join("; ");
    if (readers) {
      const found = Array.from(readers[channel], (weight, patch) => [weight, this.name(patch)]);
      return `“${this.scene.words[word].text}” is read most by ${most(found)}.`;
    }
    const { words, keys } = reading[channel];
    const held = (key) => (key % n ? this.name(key - 1) : `the start of frame ${key / n}`);
    return `Reads most: ${most([
      ...Array.from(words, (weight, index) => [weight, `“${this.scene.words[index].text}”`]),
      ...Array.from(keys, (weight, key) => [weight, held(key)]),
    ])}.`;
  }

  drawMaskPanel() {
    const { parts: p, shown, state } = this;
    const name = [this.scene.stage, this.layerNumber % 2, state.channel, shown.l, p.mask.clientWidth].join("/");
    if (this.maskDrawn !== name) {
      const { n, places, mask } = shown;
      this.maskText = drawMask(p.mask, shown, (query, key) => mask.sees(state.channel, this.layerNumber, query, key, n, places));
      this.maskDrawn = this.maskText ? name : null;
    }
    p.maskTitle.textContent = state.channel === "mixed" ? "Mask of both channels" : `Mask of the ${state.channel} channel`;
    const word = shown.word !== null;
    p.maskMark.style.top = word ? "0" : `${(100 * shown.query) / shown.places}%`;
    p.maskMark.style.left = word ? `${(100 * this.maskText * shown.word) / shown.l}%` : "0";
    p.maskMark.style.width = word ? "3px" : "100%";
    p.maskMark.style.height = word ? "100%" : "2px";
  }

  // ---- hands

  peek(patch) {
    if (this.playing || patch === this.preview || this.state.word !== null) return;
    this.preview = patch;
    this.refresh();
  }

  inspect(patch, event) {
    const { tip } = this.parts;
    tip.hidden = patch === null || !this.shown;
    if (this.inspected !== patch) {
      this.inspected = patch;
      if (this.shown) this.drawFrames();
    }
    if (tip.hidden) return;
    tip.textContent = this.told(patch);
    const box = this.root.getBoundingClientRect();
    const left = Math.min(event.clientX - box.left + 14, box.width - tip.offsetWidth - 4);
    tip.style.left = `${Math.max(0, left)}px`;
    tip.style.top = `${event.clientY - box.top + 18}px`;
  }

  /** The heat of a patch in a sentence. */
  told(patch) {
    const { word, query, n } = this.shown;
    const weight = this.weight(patch);
    const name = this.name(patch);
    if (word !== null) return `${name}: ${percent(weight)} of its reading went to “${this.scene.words[word].text}”`;
    if (weight !== null) return `${name}: ${percent(weight)}`;
    if (patch % n === n - 1) return `${name}: cannot be attended; the last patch of a frame is never an input`;
    const own = Math.floor(patch / n) === Math.floor(query / n);
    if (!own && this.state.channel === "spatial") return `${name}: cannot be attended; the spatial channel sees its own frame alone`;
    const later = this.scene.steps[patch] >= (this.scene.steps[query] || Infinity);
    return `${name}: cannot be attended; ${later ? "it was not made yet" : "the mask of this layer hides it"}`;
  }

  chooseInMask(event) {
    const box = event.target.getBoundingClientRect();
    this.choose(Math.max(0, Math.min(this.places - 1, Math.floor(((event.clientY - box.top) / box.height) * this.places))));
  }

  play() {
    clearInterval(this.playing);
    const last = this.waves.length;
    if (this.playing) this.playing = null;
    else {
      if (this.scene.steps[this.state.query] === last) this.choose(this.waves[0][0]);
      this.playing = setInterval(() => {
        if (this.busy) return; // no step is left out where answers take long
        if (!this.root.isConnected || this.scene.steps[this.state.query] >= this.waves.length) this.play();
        else this.step(1);
      }, 140);
    }
    this.draw();
  }

  /** On (or back) in the order of decoding. */
  step(by) {
    const step = Math.max(1, Math.min(this.waves.length, this.scene.steps[this.state.query] + by));
    this.choose(this.waves[step - 1][0]);
  }

  /** One row or column further; past the left or right edge lies the neighbouring frame. */
  move(down, right) {
    const { width, height } = this.grid;
    const frames = this.scene.frames.length;
    const [time, place] = [Math.floor(this.state.query / this.n), this.state.query % this.n];
    const row = Math.max(0, Math.min(height - 1, Math.floor(place / width) + down));
    const across = Math.max(0, Math.min(frames * width - 1, time * width + (place % width) + right));
    this.choose(Math.floor(across / width) * this.n + row * width + (across % width));
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { key, target } = event;
    const own = target.matches("select, input") ? ["Arrow", "Page", "Home", "End", " "] : target.matches("button") ? [" ", "Enter"] : [];
    if (own.some((start) => key.startsWith(start))) return;
    const { state, info } = this;
    const around = (value, by, count) => (value + by + count) % count;
    const heads = [...Object.keys(HEAD_NAMES), ...info.heads.keys()];
    const turn = (list, value, by) => list[around(list.indexOf(value), by, list.length)];
    const words = this.scene.words.length;
    const actions = {
      ArrowLeft: () => this.move(0, -1),
      ArrowRight: () => this.move(0, 1),
      ArrowUp: () => this.move(-1, 0),
      ArrowDown: () => this.move(1, 0),
      PageUp: () => this.move(0, -this.grid.width),
      PageDown: () => this.move(0, this.grid.width),
      ",": () => this.step(-1),
      ".": () => this.step(1),
      " ": () => this.play(),
      "[": () => this.set({ layer: Math.max(0, state.layer - 1) }),
      "]": () => this.set({ layer: Math.min(info.layers.length - 1, state.layer + 1) }),
      h: () => this.set({ head: turn(heads, state.head, 1) }),
      H: () => this.set({ head: turn(heads, state.head, -1) }),
      c: () => this.set({ channel: turn(CHANNELS, state.channel, 1) }),
      w: () => this.set({ word: state.word === null ? 0 : around(state.word, 1, words) }),
      W: () => this.set({ word: state.word === null ? words - 1 : around(state.word, -1, words) }),
      Escape: () => this.set({ word: null }),
      g: () => this.set({ scene: around(state.scene, 1, info.scenes.length) }),
      G: () => this.set({ scene: around(state.scene, -1, info.scenes.length) }),
    };
    if (!(key in actions)) return;
    event.preventDefault();
    event.stopPropagation(); // Jupyter has commands of its own on these keys
    this.preview = null;
    actions[key]();
  }

  close() {
    clearInterval(this.playing);
    this.resized.disconnect();
  }
}

/** The page of one file: its payload lies in #payload, the explorer goes into #explorer. */
function open() {
  const info = JSON.parse(document.getElementById("payload").textContent);
  return new Explorer(document.getElementById("explorer"), info, new PackedMaps(info));
}

/** The widget, as anywidget calls it. */
function render({ model, el }) {
  const explorer = new Explorer(el, model.get("info"), new LiveMaps(model));
  return () => explorer.close();
}

export default { render };
