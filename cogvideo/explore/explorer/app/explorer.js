// The explorer itself: what is chosen, what is fetched for it, and who draws it.
import { keyOf, readerOf } from "./reading.js";
import { layout } from "./layout.js";
import { HEAD_NAMES } from "./names.js";
import { fill } from "./fill.js";
import { fetchView } from "./view.js";
import { drawControls, drawFrames, drawMaskPanel, drawNumbers, drawWords, largestOf } from "./show.js";
import { drawGlance, drawSilence, drawTokens, silenceName, toggled } from "./sides.js";
import { drawBeside, fetchOther } from "./beside.js";
import { chooseInMask, inspect, key, play, step, tellMask } from "./hands.js";
import { say, strongest } from "./telling.js";
import { fromHash } from "./share.js";
import { askFor, fillAsk } from "./anew.js";
import { tour } from "./tour.js";

export class Explorer {
  /** @param {HTMLElement} host @param {Info} info @param {any} maps @param {{address?: boolean, tell?: (selection: object) => void}} [ways] */
  constructor(host, info, maps, { address = false, tell } = {}) {
    this.host = host;
    this.maps = maps;
    this.address = address; // whether the page's address is this explorer's
    this.tellOthers = tell;
    /** @type {number | null} the patch under the pointer, shown instead of the chosen one */
    this.preview = null;
    /** @type {number | null} the patch of the map under the pointer */
    this.inspected = null;
    /** @type {any} */
    this.playing = null;
    this.take(info);
    if (address) Object.assign(this.state, fromHash(location.hash, info));
    this.build();
    if (address && new URLSearchParams(location.search).has("tour")) this.refreshed.then(() => this.tour());
  }

  /** @param {Info} info */
  take(info) {
    this.info = info;
    this.grid = { width: info.width, height: info.height };
    this.n = info.width * info.height;
    /** @type {State} */
    this.state = {
      scene: 0,
      head: "mean",
      channel: "mixed",
      scale: "root",
      word: null,
      weights: "raw",
      reverse: false,
      layerOf: "attention",
      silence: null,
      beside: null,
      besideLayer: null,
      tab: "looks",
      ...info.start,
    };
    /** @type {Record<string, object>} */
    this.masks = {};
    /** @type {Record<number, Promise<Tokens>>} */
    this.tokens = {};
    this.maskDrawn = this.silenceMade = this.glanceMade = this.glanced = this.besideMade = this.anewMade = null;
    this.shown = null;
  }

  build() {
    Object.assign(this, layout(this));
    /** @type {any} */
    this.parts;
    /** @type {HTMLElement} */
    this.root;
    this.host.classList.add("cv-host"); // sizes follow its width
    this.host.replaceChildren(this.root);
    fill(this);
    fillAsk(this);
    this.resized = new ResizeObserver(() => this.draw());
    this.resized.observe(this.root);
    this.refresh();
  }

  // ---- what is chosen

  /** @param {number} index */
  scenes(index) {
    return this.info.scenes[index];
  }

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
    const named = /** @type {Record<string, string>} */ (HEAD_NAMES)[String(this.shown.head)];
    return named ?? `head ${this.info.heads[Number(this.shown.head)]}`;
  }

  /** The patch that reads: the chosen one, or the one under the pointer. */
  get patch() {
    return this.preview ?? this.state.patch;
  }

  /** @param {number} patch @param {number} [scene] */
  reader(patch, scene = this.state.scene) {
    return readerOf(patch, this.n, this.scenes(scene).frames[Math.floor(patch / this.n)].given);
  }

  /** Steps of decoding: lists of the places made together, from step 1. @returns {number[][]} */
  get waves() {
    /** @type {number[][]} */
    const waves = [];
    this.scene.steps.forEach((step, place) => step && (waves[step - 1] ??= []).push(place));
    return waves;
  }

  /** @param {number} patch */
  name(patch) {
    const [time, place] = [Math.floor(patch / this.n), patch % this.n];
    return `frame ${time}, row ${Math.floor(place / this.grid.width)}, column ${place % this.grid.width}`;
  }

  /** Which of the likeliest tokens stands at a patch, or -1. @param {number} patch */
  drawnToken(patch) {
    const { of, count } = this.shown.tokens;
    const rank = of[0].rank[patch] - 1;
    return rank < count ? rank : -1;
  }

  /** @param {Partial<State>} changes @returns {Promise<void>} done when it is shown */
  set(changes) {
    const moved = "scene" in changes && changes.scene !== this.state.scene;
    Object.assign(this.state, changes);
    const { state } = this;
    if (moved) {
      state.patch = this.readable(Math.min(state.patch, this.places - 1));
      state.word = state.word === null ? null : Math.min(state.word, this.scene.words.length - 1);
      if (state.beside === state.scene) state.beside = null;
      fill(this);
    }
    if (state.layerOf === "silence" && !state.silence)
      [state.silence, state.tab] = [this.scene.silences.at(-1), "silence"];
    if (state.word !== null && state.word >= this.scene.words.length) state.word = null;
    if (state.reverse && keyOf(state.patch, this.n) === null) state.patch -= 1;
    return this.refresh();
  }

  /** @param {string} choice "", "scene 1" or "layer 1" */
  setBeside(choice) {
    const number = choice ? Number(choice.split(" ")[1]) : null;
    this.set(
      choice.startsWith("scene") ? { beside: number, besideLayer: null } : { beside: null, besideLayer: number },
    );
  }

  /** @param {Silence} silence */
  silence(silence) {
    const silent = toggled(this.state.silence, silence, this.info.live);
    this.set({ silence: silent, layerOf: silent ? "silence" : "attention" });
  }

  /** @param {Silence | null} silence */
  silenceName(silence) {
    return silenceName(this, silence);
  }

  /** The patch, or the one before it if no place reads for it: the last one of a given frame. @param {number} patch */
  readable(patch) {
    return this.reader(patch) === null ? patch - 1 : patch;
  }

  /** Choose a patch. @param {number} patch */
  choose(patch) {
    this.preview = null;
    this.set({ patch: this.readable(patch), word: null });
  }

  // ---- showing

  /** Fetch what is chosen and show it; while one answer is under way, only the newest wish waits.
   *  @returns {Promise<void>} done when all wishes are shown */
  refresh() {
    this.stale = true;
    if (!this.busy) {
      this.busy = true;
      /** @type {Promise<void>} */
      this.refreshed = this.follow();
    }
    return this.refreshed;
  }

  async follow() {
    while (this.stale) {
      this.stale = false;
      const waiting = setTimeout(() => this.root.classList.add("cv-waiting"), 150);
      try {
        const view = await fetchView(this, this.state.scene, this.state.layer, { ...this.state }, this.patch);
        await fetchOther(this, view);
        this.shown = view;
      } catch (error) {
        this.parts.status.textContent = error instanceof Error ? error.message : String(error);
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

  draw() {
    const { shown, state } = this;
    if (!shown || shown.scene !== state.scene) return;
    this.largest = largestOf(this, shown);
    if (shown.other) this.largest = Math.max(this.largest, largestOf(this, shown.other));
    drawControls(this);
    drawFrames(this);
    drawBeside(this);
    drawWords(this);
    drawNumbers(this);
    drawMaskPanel(this);
    this.parts.status.textContent = strongest(this);
    if (state.tab === "tokens") drawTokens(this);
    if (state.tab === "silence") drawSilence(this);
    if (state.tab === "heads") drawGlance(this);
    say(this);
  }

  // ---- hands

  /** @param {number | null} patch */
  peek(patch) {
    const preview = patch === null ? null : this.readable(patch);
    if (this.playing || preview === this.preview || this.state.word !== null || this.state.reverse) return;
    this.preview = preview;
    this.refresh();
  }

  /** @param {number | null} patch @param {any} [event] */
  inspect(patch, event) {
    inspect(this, patch, event);
  }

  /** @param {any} event */
  tellMask(event) {
    tellMask(this, event);
  }

  /** @param {any} event */
  chooseInMask(event) {
    chooseInMask(this, event);
  }

  play() {
    play(this);
  }

  /** @param {number} by */
  step(by) {
    step(this, by);
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    key(this, event);
  }

  /** @param {SubmitEvent} event */
  askFor(event) {
    askFor(this, event);
  }

  tour() {
    tour(this);
  }

  close() {
    clearInterval(this.playing);
    this.resized.disconnect();
  }
}
