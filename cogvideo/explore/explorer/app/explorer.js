// The explorer itself: what is chosen, what is shown, and the hands on it. All text enters by textContent.

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

  /** Of what is shown, which follows what is chosen as soon as it is there. */
  get layerNumber() {
    return this.info.layers[this.shown.layer];
  }

  get headName() {
    return HEAD_NAMES[this.shown.head] ?? `head ${this.info.heads[this.shown.head]}`;
  }

  /** The patch that reads: the chosen one, or the one under the pointer. */
  get patch() {
    return this.preview ?? this.state.patch;
  }

  reader(patch) {
    return readerOf(patch, this.n, this.scene.frames[Math.floor(patch / this.n)].given);
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
      this.state.patch = this.readable(Math.min(this.state.patch, this.places - 1));
      this.state.word = this.state.word === null ? null : Math.min(this.state.word, this.scene.words.length - 1);
      fill(this);
    }
    this.refresh();
  }

  /** The patch, or the one before it if no place reads for it: the last one of a given frame. */
  readable(patch) {
    return this.reader(patch) === null ? patch - 1 : patch;
  }

  /** Choose a patch as the reader. */
  choose(patch) {
    this.preview = null;
    this.set({ patch: this.readable(patch), word: null });
  }

  build() {
    Object.assign(this, layout(this));
    this.host.classList.add("cv-host"); // sizes follow its width
    this.host.replaceChildren(this.root);
    fill(this);
    this.resized = new ResizeObserver(() => this.draw());
    this.resized.observe(this.root);
    this.refresh();
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
    const { patch } = this;
    const query = this.reader(patch);
    const { stage, words, gates } = this.scene; // now: another may be chosen while answers are under way
    const sizes = { l: words.length, n: this.n, places: this.places };
    const share = gates[layer].mean;
    this.masks[stage] ??= await Masks.of(this.info.masks[stage]);
    const shown = { ...sizes, patch, query, word, mask: this.masks[stage], layer, scene, head };
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
    this.root.dataset.shown = [shown.scene, this.layerNumber, shown.head, state.channel, target].join("/");
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
    if (readers) return this.reader(patch) === null ? null : readers[channel][this.reader(patch)];
    const key = keyOf(patch, n);
    return key !== null && mask.sees(channel, this.layerNumber, query, key, n, places)
      ? reading[channel].keys[key]
      : null;
  }

  color(weight) {
    return weight === null ? null : viridis(brightness(weight, this.largest, this.state.scale));
  }

  drawControls() {
    const { parts: p, state, shown } = this;
    p.scene.value = state.scene;
    p.layer.value = state.layer;
    p.layerText.textContent = this.info.layers[state.layer];
    p.head.value = state.head;
    for (const name of ["channel", "scale"]) for (const input of p[name]) input.checked = input.value === state[name];
    const { patch, word } = shown;
    const step = this.scene.steps[patch];
    p.step.value = this.scene.steps[this.patch] || 1;
    p.stepText.textContent = step ? `step ${step} of ${this.waves.length}` : "given, not made here";
    p.play.textContent = this.playing ? "❚❚" : "▶";
    p.play.setAttribute("aria-label", this.playing ? "Pause" : "Play through the order of decoding");
    const where = `${state.channel} channel${state.channel === "mixed" ? "s" : ""} of layer ${this.layerNumber}, ${this.headName}`;
    const reader = `what ${this.name(patch)} ${step ? "read when it was made" : "reads; it is given"}`;
    p.seen.textContent = `${word === null ? reader : `how much each patch read “${this.scene.words[word].text}”`} (${where})`;
    p.largest.textContent = percent(this.largest);
    const half = state.scale === "root" ? 0.25 : 0.5;
    p.middle.textContent = percent(half * this.largest);
  }

  drawFrames() {
    const { n, patch, query, word, reading, mask, places } = this.shown;
    const { channel } = this.state;
    const step = this.scene.steps[patch];
    const inside = (one, frame) => (one !== null && Math.floor(one / n) === frame ? one % n : null);
    const chosen = word === null ? patch : null;
    // Pointed at: what the pointer is on in the heat, and other patches made in the same step.
    const others = chosen !== null && step ? this.waves[step - 1].filter((one) => one !== patch) : [];
    const dashed = [...others, this.inspected];
    this.clip.forEach(({ canvas }, frame) =>
      drawFrame(canvas, this.images[frame], this.grid, {
        veiled: (one) => chosen !== null && step > 0 && this.scene.steps[frame * n + one] > step,
        marked: inside(chosen, frame),
        dashed: dashed.map((one) => inside(one, frame)).filter((one) => one !== null),
      }),
    );
    this.heat.forEach(({ canvas, start, caption, sum }, frame) => {
      drawHeat(
        canvas,
        this.grid,
        (one) => this.color(this.weight(frame * n + one)),
        inside(chosen, frame),
        inside(this.inspected, frame),
      );
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
      const share = (channel) =>
        reading ? reading[channel].words[index] : index === word ? mean(this.shown.readers[channel]) : null;
      for (const [span, channel, letter] of [
        [spatial, "spatial", "S"],
        [temporal, "temporal", "T"],
      ])
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
    const cell = (tag, channel, text) =>
      make(tag, { className: channel === this.state.channel ? "cv-chosen" : "" }, text);
    this.parts.numbers.replaceChildren(
      make("thead", {}, make("tr", {}, make("th", {}), ...CHANNELS.map((channel) => cell("th", channel, channel)))),
      make(
        "tbody",
        {},
        ...rows.map(([name, value]) =>
          make(
            "tr",
            {},
            make("th", {}, name),
            ...CHANNELS.map((channel) => cell("td", channel, digits(value(channel)))),
          ),
        ),
      ),
    );
    this.parts.norms.textContent = norms
      ? `Output: spatial ${norms.spatial.toPrecision(3)}, temporal ${norms.temporal.toPrecision(3)}`
      : "";
    [...this.parts.gates.children].forEach((button, layer) =>
      button.setAttribute("aria-pressed", String(layer === this.shown.layer)),
    );
    this.parts.status.textContent = this.strongest();
  }

  /** What is read most, or who reads the word most, in words. */
  strongest() {
    const { reading, readers, word, n } = this.shown;
    const { channel } = this.state;
    const most = (found) =>
      found
        .sort((a, b) => b[0] - a[0])
        .slice(0, 3)
        .filter(([weight], rank) => !rank || weight >= 0.0005)
        .map(([weight, name]) => `${name} ${percent(weight)}`)
        .join("; ");
    if (readers) {
      const patches = Array.from(readers[channel].keys()).filter((patch) => this.reader(patch) !== null);
      const found = patches.map((patch) => [readers[channel][this.reader(patch)], this.name(patch)]);
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
      this.maskText = drawMask(p.mask, shown, (query, key) =>
        mask.sees(state.channel, this.layerNumber, query, key, n, places),
      );
      this.maskDrawn = this.maskText ? name : null;
    }
    p.maskTitle.textContent =
      state.channel === "mixed" ? "Mask of both channels" : `Mask of the ${state.channel} channel`;
    const word = shown.word !== null;
    p.maskMark.style.top = word ? "0" : `${(100 * shown.query) / shown.places}%`;
    p.maskMark.style.left = word ? `${(100 * this.maskText * shown.word) / shown.l}%` : "0";
    p.maskMark.style.width = word ? "3px" : "100%";
    p.maskMark.style.height = word ? "100%" : "2px";
  }

  // ---- hands

  peek(patch) {
    const preview = patch === null ? null : this.readable(patch);
    if (this.playing || preview === this.preview || this.state.word !== null) return;
    this.preview = preview;
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
    const { word, n } = this.shown;
    const weight = this.weight(patch);
    const name = this.name(patch);
    if (word !== null && weight === null) return `${name}: no place holds the last patch of a given frame`;
    if (word !== null) return `${name}: ${percent(weight)} of its reading went to “${this.scene.words[word].text}”`;
    if (weight !== null) return `${name}: ${percent(weight)}`;
    if (patch % n === n - 1) return `${name}: cannot be attended; the last patch of a frame is never an input`;
    const own = Math.floor(patch / n) === Math.floor(this.shown.patch / n);
    if (!own && this.state.channel === "spatial")
      return `${name}: cannot be attended; the spatial channel sees its own frame alone`;
    const later = this.scene.steps[patch] >= (this.scene.steps[this.shown.patch] || Infinity);
    return `${name}: cannot be attended; ${later ? "it was not made yet" : "the mask of this layer hides it"}`;
  }

  chooseInMask(event) {
    const box = event.target.getBoundingClientRect();
    const place = Math.max(
      0,
      Math.min(this.places - 1, Math.floor(((event.clientY - box.top) / box.height) * this.places)),
    );
    this.choose(this.scene.frames[Math.floor(place / this.n)].given && place % this.n ? place - 1 : place);
  }

  play() {
    clearInterval(this.playing);
    const last = this.waves.length;
    if (this.playing) this.playing = null;
    else {
      if (this.scene.steps[this.state.patch] === last) this.choose(this.waves[0][0]);
      this.playing = setInterval(() => {
        if (this.busy) return; // no step is left out where answers take long
        if (!this.root.isConnected || this.scene.steps[this.state.patch] >= this.waves.length) this.play();
        else this.step(1);
      }, 140);
    }
    this.draw();
  }

  /** On (or back) in the order of decoding. */
  step(by) {
    const step = Math.max(1, Math.min(this.waves.length, this.scene.steps[this.state.patch] + by));
    this.choose(this.waves[step - 1][0]);
  }

  /** One row or column further; past the left or right edge lies the neighbouring frame. */
  move(down, right) {
    const { width, height } = this.grid;
    const frames = this.scene.frames.length;
    const [time, place] = [Math.floor(this.state.patch / this.n), this.state.patch % this.n];
    const row = Math.max(0, Math.min(height - 1, Math.floor(place / width) + down));
    const across = Math.max(0, Math.min(frames * width - 1, time * width + (place % width) + right));
    this.choose(Math.floor(across / width) * this.n + row * width + (across % width));
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const { key, target } = event;
    const own = target.matches("select, input")
      ? ["Arrow", "Page", "Home", "End", " "]
      : target.matches("button")
        ? [" ", "Enter"]
        : [];
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
  const maps = new LiveMaps(model);
  const explorer = new Explorer(el, model.get("info"), maps);
  return () => {
    explorer.close();
    maps.close();
  };
}

export default { render };
