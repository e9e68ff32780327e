// Where attention maps come from: unpacked from the page (PackedMaps) or asked of Python (LiveMaps), and what is made of
// them. Both give, for one layer, rows (what a place reads) and columns (who reads a word), for all heads at once:
//   row    [{spatial: [L+N], temporal: [L+T*N]} for every head], norms {spatial, temporal}
//   column [{spatial: [T*N], temporal: [T*N]} for every head]
// Letters: L text slots, T frames, N places a frame. Place p of the clip is place p % N of frame floor(p / N).

const CHANNELS = ["spatial", "temporal", "mixed"];

async function inflate(base64) {
  const packed = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Maps inside the page; payload.py says how they are packed. */
class PackedMaps {
  constructor(info) {
    this.info = info;
    this.layers = new Map();
  }

  async layer(scene, layer) {
    const name = `${scene}/${layer}`;
    if (!this.layers.has(name)) {
      const { words, frames } = this.info.scenes[scene];
      const [heads, places] = [this.info.heads.length, frames.length * this.info.height * this.info.width];
      const keys = { spatial: words.length + places / frames.length, temporal: words.length + places };
      const bytes = await inflate(this.info.scenes[scene].maps[layer]);
      let at = 0;
      const floats = (count) => new Float32Array(bytes.buffer, (at += 4 * count) - 4 * count, count);
      const scales = { spatial: floats(heads * places), temporal: floats(heads * places) };
      const norms = { spatial: floats(places), temporal: floats(places) };
      const codes = {
        spatial: bytes.subarray(at, (at += heads * places * keys.spatial)),
        temporal: bytes.subarray(at),
      };
      // Codes stand for the square root of a weight, as a share of the largest in its row.
      const weight = (channel, row, key) =>
        scales[channel][row] * (codes[channel][row * keys[channel] + key] / 255) ** 2;
      this.layers.set(name, { heads, places, keys, norms, weight });
    }
    return this.layers.get(name);
  }

  async row(scene, layer, place) {
    const { heads, places, keys, norms, weight } = await this.layer(scene, layer);
    const read = (channel, head) =>
      Float32Array.from({ length: keys[channel] }, (_, key) => weight(channel, head * places + place, key));
    return {
      heads: Array.from({ length: heads }, (_, h) => ({ spatial: read("spatial", h), temporal: read("temporal", h) })),
      norms: { spatial: norms.spatial[place], temporal: norms.temporal[place] },
    };
  }

  async column(scene, layer, word) {
    const { heads, places, weight } = await this.layer(scene, layer);
    const read = (channel, head) =>
      Float32Array.from({ length: places }, (_, place) => weight(channel, head * places + place, word));
    return {
      heads: Array.from({ length: heads }, (_, h) => ({ spatial: read("spatial", h), temporal: read("temporal", h) })),
    };
  }
}

/** Maps computed by the kernel: every question has a number, and its answer comes with that number. Numbers are random:
 *  other views of the same widget, and other browsers, ask the same kernel and hear its answers as well. */
class LiveMaps {
  constructor(model) {
    this.model = model;
    this.open = new Map();
    this.answers = new Map();
    this.hear = (message, buffers) => {
      const question = this.open.get(message.number);
      if (!question) return;
      this.open.delete(message.number);
      if (message.error) question.reject(new Error(message.error));
      else question.resolve(this.unpack(message, buffers));
    };
    model.on("msg:custom", this.hear);
  }

  close() {
    this.model.off("msg:custom", this.hear);
  }

  unpack({ heads, norms }, buffers) {
    const [spatial, temporal] = buffers.map((part) => {
      const all = new Float32Array(part.buffer.slice(part.byteOffset, part.byteOffset + part.byteLength));
      const size = all.length / heads;
      return Array.from({ length: heads }, (_, head) => all.subarray(head * size, (head + 1) * size));
    });
    return { heads: spatial.map((row, head) => ({ spatial: row, temporal: temporal[head] })), norms };
  }

  ask(question) {
    const name = JSON.stringify(question);
    if (this.answers.has(name)) return this.answers.get(name);
    const number = Math.floor(Math.random() * Number.MAX_SAFE_INTEGER);
    const answer = new Promise((resolve, reject) => this.open.set(number, { resolve, reject }));
    this.model.send({ number, ...question });
    this.answers.set(name, answer);
    answer.catch(() => this.answers.delete(name));
    if (this.answers.size > 400) this.answers.delete(this.answers.keys().next().value);
    return answer;
  }

  row(scene, layer, place) {
    return this.ask({ scene, layer, place });
  }

  column(scene, layer, word) {
    return this.ask({ scene, layer, word });
  }
}

/** Who may see whom among frame places: bits of [T*N, N] (spatial) and [T*N, T*N] (temporal, one for layers of a parity). */
class Masks {
  static async of(packed) {
    const masks = new Masks();
    masks.spatial = await inflate(packed.spatial);
    masks.temporal = await Promise.all(packed.temporal.map(inflate));
    return masks;
  }

  /** May the place `query` attend to the place `key` of the clip? N places a frame, T*N in all. */
  sees(channel, layerNumber, query, key, n, places) {
    const bit = (bytes, index) => (bytes[index >> 3] >> (7 - (index & 7))) & 1;
    if (channel === "mixed")
      return ["spatial", "temporal"].some((one) => this.sees(one, layerNumber, query, key, n, places));
    if (channel === "temporal")
      return Boolean(bit(this.temporal[layerNumber % this.temporal.length], query * places + key));
    return Math.floor(query / n) === Math.floor(key / n) && Boolean(bit(this.spatial, query * n + (key % n)));
  }
}

/** One array out of those of all heads: one head's own, or their mean or maximum at every key. */
function overHeads(arrays, head) {
  if (typeof head === "number") return arrays[head];
  const combined = new Float32Array(arrays[0].length);
  for (const array of arrays)
    for (let key = 0; key < combined.length; key++)
      combined[key] = head === "max" ? Math.max(combined[key], array[key]) : combined[key] + array[key] / arrays.length;
  return combined;
}

/** A row by channel: {words [L], keys [T*N]} each. share: of the spatial channel, the mean of its gate. */
function readingOf(row, head, share, query, sizes) {
  const { l, n, places } = sizes;
  const own = Math.floor(query / n) * n;
  const spread = row.heads.map(({ spatial, temporal }) => {
    const wide = new Float32Array(l + places);
    wide.set(spatial.subarray(0, l));
    wide.set(spatial.subarray(l), l + own);
    return { spatial: wide, temporal, mixed: wide.map((value, key) => share * value + (1 - share) * temporal[key]) };
  });
  return Object.fromEntries(
    CHANNELS.map((channel) => {
      const keys = overHeads(
        spread.map((one) => one[channel]),
        head,
      );
      return [channel, { words: keys.subarray(0, l), keys: keys.subarray(l) }];
    }),
  );
}

/** A column by channel: [T*N] each. */
function readersOf(column, head, share) {
  const mixed = column.heads.map(({ spatial, temporal }) => ({
    spatial,
    temporal,
    mixed: spatial.map((value, place) => share * value + (1 - share) * temporal[place]),
  }));
  return Object.fromEntries(
    CHANNELS.map((channel) => [
      channel,
      overHeads(
        mixed.map((one) => one[channel]),
        head,
      ),
    ]),
  );
}

/** The place that holds patch `patch` of a clip: one later in its frame; null for a frame's last patch, which none holds. */
function keyOf(patch, n) {
  return patch % n === n - 1 ? null : patch + 1;
}

/** The place whose reading is a patch's own: where it is made, or in a given frame where it is held (null: nowhere). */
function readerOf(patch, n, given) {
  return given ? keyOf(patch, n) : patch;
}
