// Where answers come from: unpacked from the page (PackedMaps) or asked of Python (LiveMaps). Both give, for one layer,
// rows (what a place reads) and columns (who reads a key: a word or a place), for all heads at once:
//   row    heads [{spatial: [L+N], temporal: [L+T*N]}], values alike but [L+T*N] both, norms {spatial, temporal}
//   column heads [{spatial: [T*N], temporal: [T*N]}]
// and what the model's silence costs, what tokens would draw, and the rollout through all layers.
// Letters: L text slots, T frames, N places a frame. Place p of the clip is place p % N of frame floor(p / N).

/** @param {string} base64 @returns {Promise<Uint8Array>} */
export async function inflate(base64) {
  const packed = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Maps inside the page; payload.py says how they are packed. @implements {Source} */
export class PackedMaps {
  /** @param {Info} info */
  constructor(info) {
    this.info = info;
    /** @type {Map<string, Promise<any>>} */
    this.unpacked = new Map();
  }

  /** Unpack once. @param {string} name @param {() => Promise<any>} make @returns {Promise<any>} */
  once(name, make) {
    if (!this.unpacked.has(name)) this.unpacked.set(name, make());
    return this.unpacked.get(name);
  }

  /** @param {number} scene */
  sizes(scene) {
    const { words, frames } = this.info.scenes[scene];
    const [n, heads] = [this.info.height * this.info.width, this.info.heads.length];
    return { heads, n, l: words.length, places: frames.length * n };
  }

  /** @param {number} scene @param {number} layer */
  layer(scene, layer) {
    return this.once(`${scene}/${layer}`, async () => {
      const { heads, n, l, places } = this.sizes(scene);
      const keys = { spatial: l + n, temporal: l + places };
      const bytes = await inflate(this.info.scenes[scene].maps[layer]);
      let at = 0;
      const floats = (/** @type {number} */ count) =>
        new Float32Array(bytes.buffer, (at += 4 * count) - 4 * count, count);
      const scales = { spatial: floats(heads * places), temporal: floats(heads * places) };
      const norms = { spatial: floats(places), temporal: floats(places) };
      const values = { spatial: floats(heads * (l + places)), temporal: floats(heads * (l + places)) };
      const codes = {
        spatial: bytes.subarray(at, (at += heads * places * keys.spatial)),
        temporal: bytes.subarray(at),
      };
      // Codes stand for the square root of a weight, as a share of the largest in its row.
      const weight = (/** @type {Channel} */ channel, /** @type {number} */ row, /** @type {number} */ key) =>
        scales[channel][row] * (codes[channel][row * keys[channel] + key] / 255) ** 2;
      return { heads, n, l, places, keys, norms, values, weight };
    });
  }

  /** @param {number} scene @param {number} layer @param {number} place @returns {Promise<Row>} */
  async row(scene, layer, place) {
    const { heads, l, places, keys, norms, values, weight } = await this.layer(scene, layer);
    const read = (/** @type {Channel} */ channel, /** @type {number} */ head) =>
      Float32Array.from({ length: keys[channel] }, (_, key) => weight(channel, head * places + place, key));
    const own = (/** @type {Channel} */ channel, /** @type {number} */ head) =>
      values[channel].subarray(head * (l + places), (head + 1) * (l + places));
    return {
      heads: Array.from({ length: heads }, (_, h) => ({ spatial: read("spatial", h), temporal: read("temporal", h) })),
      values: Array.from({ length: heads }, (_, h) => ({ spatial: own("spatial", h), temporal: own("temporal", h) })),
      norms: { spatial: norms.spatial[place], temporal: norms.temporal[place] },
    };
  }

  /** @param {number} scene @param {number} layer @param {number} key @returns {Promise<Column>} */
  async column(scene, layer, key) {
    const { heads, n, l, places, weight } = await this.layer(scene, layer);
    const frame = key < l ? null : Math.floor((key - l) / n); // only its own frame sees a place in the spatial channel
    const read = (/** @type {number} */ head, /** @type {Channel} */ channel) =>
      Float32Array.from({ length: places }, (_, place) => {
        if (channel === "temporal" || frame === null) return weight(channel, head * places + place, key);
        const inside = Math.floor(place / n) === frame;
        return inside ? weight(channel, head * places + place, key - frame * n) : 0;
      });
    return {
      heads: Array.from({ length: heads }, (_, h) => ({ spatial: read(h, "spatial"), temporal: read(h, "temporal") })),
    };
  }

  /** The rollout of a place. @param {number} scene @param {number} place @returns {Promise<Float32Array>} */
  async rollout(scene, place) {
    const { l, places } = this.sizes(scene);
    const bytes = await this.once(`${scene}/rollout`, () => inflate(this.info.scenes[scene].rollout));
    const largest = new Float32Array(bytes.buffer, 0, places)[place];
    const codes = bytes.subarray(4 * places + place * (l + places), 4 * places + (place + 1) * (l + places));
    return Float32Array.from(codes, (code) => largest * (code / 255) ** 2);
  }

  /** Nats more at every place. @param {number} scene @param {Silence} silence @returns {Promise<Float32Array>} */
  async silence(scene, silence) {
    const { places } = this.sizes(scene);
    const index = this.info.scenes[scene].silences.findIndex((one) => JSON.stringify(one) === JSON.stringify(silence));
    if (index < 0) throw new Error("The page holds heads, channels and words one at a time: silence one of them.");
    const bytes = await this.once(`${scene}/losses`, () => inflate(this.info.scenes[scene].losses));
    return new Float32Array(bytes.buffer, 4 * places * index, places);
  }

  /** Where a patch's token pictures lie. @param {number} scene @param {number} patch */
  async pictures(scene, patch) {
    const { sheet, frames } = this.info.scenes[scene];
    if (!sheet) return null;
    const image = await this.once(`${scene}/sheet`, () => load(sheet));
    const { n } = this.sizes(scene);
    const made = frames.flatMap((frame, time) => (frame.given ? [] : [time]));
    return { image, row: made.indexOf(Math.floor(patch / n)) * n + (patch % n), rows: made.length * n };
  }
}

/** @param {string} url @returns {Promise<HTMLImageElement>} */
function load(url) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error("A picture of this page cannot be shown."));
    image.src = url;
  });
}

/** Answers computed by the kernel: every question has a number, and its answer comes with that number. Numbers are
 *  random: other views of the same widget, and other browsers, ask the same kernel and hear its answers as well.
 *  @implements {Source} */
export class LiveMaps {
  /** @param {WidgetModel} model */
  constructor(model) {
    this.model = model;
    /** @type {Map<number, {resolve: (answer: any) => void, reject: (error: Error) => void, watch?: (frames: string[]) => void}>} */
    this.open = new Map();
    /** @type {Map<string, Promise<any>>} */
    this.answers = new Map();
    this.hear = (/** @type {any} */ message, /** @type {DataView[]} */ buffers) => {
      const question = this.open.get(message.number);
      if (!question) return;
      if (message.frames && !message.done) return question.watch?.(message.frames); // while it is decoded
      this.open.delete(message.number);
      if (message.error) question.reject(new Error(message.error));
      else question.resolve({ ...message, parts: buffers.map(numbers) });
    };
    model.on("msg:custom", this.hear);
  }

  close() {
    this.model.off("msg:custom", this.hear);
  }

  /** Every answer is kept, but for those with a watch. @param {object} question @param {(frames: string[]) => void} [watch] @returns {Promise<any>} */
  ask(question, watch) {
    const name = JSON.stringify(question);
    if (!watch && this.answers.has(name)) return this.answers.get(name);
    const number = Math.floor(Math.random() * Number.MAX_SAFE_INTEGER);
    const answer = new Promise((resolve, reject) => this.open.set(number, { resolve, reject, watch }));
    this.model.send({ number, ...question });
    if (watch) return answer;
    this.answers.set(name, answer);
    answer.catch(() => this.answers.delete(name));
    if (this.answers.size > 400) this.answers.delete(this.answers.keys().next().value);
    return answer;
  }

  /** @param {number} scene @param {number} layer @param {number} place @returns {Promise<Row>} */
  async row(scene, layer, place) {
    const { parts, heads, norms } = await this.ask({ scene, layer, place });
    return { heads: byHead(parts.slice(0, 2), heads), values: byHead(parts.slice(2), heads), norms };
  }

  /** @param {number} scene @param {number} layer @param {number} key @returns {Promise<Column>} */
  async column(scene, layer, key) {
    const { parts, heads } = await this.ask({ scene, layer, key });
    return { heads: byHead(parts, heads) };
  }

  /** @param {number} scene @param {number} rollout */
  async rollout(scene, rollout) {
    return (await this.ask({ scene, rollout })).parts[0];
  }

  /** @param {number} scene @param {Silence} silence */
  async silence(scene, silence) {
    return (await this.ask({ scene, silence })).parts[0];
  }

  /** @param {number} scene @param {number} patch */
  async pictures(scene, patch) {
    const { sheet } = await this.ask({ scene, pictures: patch });
    return sheet ? { image: await load(sheet), row: 0, rows: 1 } : null;
  }
}

/** @param {DataView} part */
function numbers(part) {
  return new Float32Array(part.buffer.slice(part.byteOffset, part.byteOffset + part.byteLength));
}

/** @param {Float32Array[]} parts @param {number} heads @returns {ByChannel[]} */
function byHead([spatial, temporal], heads) {
  const cut = (/** @type {Float32Array} */ all, /** @type {number} */ head) =>
    all.subarray((head * all.length) / heads, ((head + 1) * all.length) / heads);
  return Array.from({ length: heads }, (_, head) => ({ spatial: cut(spatial, head), temporal: cut(temporal, head) }));
}
