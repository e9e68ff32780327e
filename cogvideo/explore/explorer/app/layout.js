// What the page is made of: its elements, once (`layout`), and those that change with the generation (`fill`). What they
// show, and what happens when they are touched, is said by the Explorer that they are made for.

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

/** All elements of an explorer: {root, parts}. */
function layout(explorer) {
  const { info } = explorer;
  const group = Math.random().toString(36).slice(2); // several explorers may lie in one notebook
  const option = (value, text) => make("option", { value, textContent: text });
  const control = (text, title, ...inputs) =>
    make("label", { className: "cv-control", title }, make("span", {}, text), ...inputs);
  const p = {
    scene: make("select", { onchange: (event) => explorer.set({ scene: Number(event.target.value) }) }),
    layer: make("input", {
      type: "range",
      min: 0,
      max: info.layers.length - 1,
      step: 1,
      oninput: (event) => explorer.set({ layer: Number(event.target.value) }),
    }),
    layerText: make("output"),
    head: make("select", {
      onchange: ({ target: { value } }) => explorer.set({ head: value in HEAD_NAMES ? value : Number(value) }),
    }),
    step: make("input", {
      type: "range",
      min: 1,
      step: 1,
      "aria-label": "Step of decoding",
      oninput: (event) => explorer.choose(explorer.waves[Number(event.target.value) - 1][0]),
    }),
    stepText: make("output", { className: "cv-step" }),
    play: make("button", {
      type: "button",
      className: "cv-play",
      title: "Play through the order in which patches are made (space)",
      onclick: () => explorer.play(),
    }),
    seen: make("p", { className: "cv-seen" }),
    status: make("p", { className: "cv-status", "aria-live": "polite" }),
    clip: make("div", {
      className: "cv-frames",
      tabIndex: 0,
      role: "application",
      "aria-label": "Generated frames: arrow keys choose a patch",
      onpointerleave: () => explorer.peek(null),
    }),
    heat: make("div", { className: "cv-frames", onpointerleave: () => explorer.inspect(null) }),
    words: make("div", { className: "cv-words", role: "group", "aria-label": "Words of the prompt" }),
    numbers: make("table"),
    gates: make("div", { className: "cv-gates" }),
    norms: make("p", { className: "cv-note" }),
    mask: make("canvas", { className: "cv-mask", onclick: (event) => explorer.chooseInMask(event) }),
    maskMark: make("div", { className: "cv-mask-mark" }),
    maskTitle: make("h3"),
    tip: make("div", { className: "cv-tip", hidden: true, role: "tooltip" }),
    largest: make("span"),
    middle: make("span"),
  };
  info.scenes.forEach((scene, index) => p.scene.append(option(index, scene.title)));
  for (const [value, text] of Object.entries(HEAD_NAMES)) p.head.append(option(value, text));
  info.heads.forEach((head, index) => p.head.append(option(index, `head ${head}`)));
  const radios = (name, choices, label) => {
    const inputs = choices.map(([value, text, title]) =>
      make(
        "label",
        { title },
        make("input", {
          type: "radio",
          name: `${name}-${group}`,
          value,
          onchange: () => explorer.set({ [name]: value }),
        }),
        make("span", {}, text),
      ),
    );
    p[name] = inputs.map((one) => one.firstChild);
    return make("div", { className: "cv-radios", role: "radiogroup", "aria-label": label }, ...inputs);
  };
  const channel = radios(
    "channel",
    [
      ["spatial", "Spatial", "The image model's attention: the text and the patch's own frame"],
      ["temporal", "Temporal", "The added attention: the text and the patches of all frames"],
      ["mixed", "Mixed", "Both, weighted by the layer's gate (its mean over dimensions)"],
    ],
    "Channel",
  );
  const scale = radios(
    "scale",
    [
      ["root", "Root", "Brightness by the square root of the weight: small weights stay visible"],
      ["linear", "Linear", "Brightness by the weight itself"],
    ],
    "Scale of brightness",
  );
  const ramp = make("span", {
    className: "cv-ramp",
    style: {
      background: `linear-gradient(90deg, ${VIRIDIS.map(css).join(", ")})`,
    },
  });
  const root = make(
    "div",
    {
      className: "cv-explorer",
      tabIndex: -1,
      "data-lm-suppress-shortcuts": "true",
      onkeydown: (event) => explorer.key(event),
    },
    make("header", {}, make("h2", {}, `“${info.prompt}”`), make("p", {}, info.about)),
    make(
      "div",
      { className: "cv-controls" },
      control(
        "Generation",
        "Which sequence of five frames: the key frames, or three frames and the two between them",
        p.scene,
      ),
      control("Layer", "Layer of the transformer, from 0 ([ and ])", p.layer, p.layerText),
      control("Head", "One attention head, or all of them together (h)", p.head),
      make("div", { className: "cv-control" }, make("span", {}, "Channel"), channel),
      make("div", { className: "cv-control" }, make("span", {}, "Scale"), scale),
    ),
    make(
      "div",
      { className: "cv-body" },
      make(
        "main",
        {},
        make(
          "div",
          { className: "cv-line" },
          make("h3", {}, "Generated frames"),
          make("div", { className: "cv-player" }, p.play, p.step, p.stepText),
        ),
        p.clip,
        make("div", { className: "cv-line" }, make("h3", {}, "Heat"), p.seen),
        p.heat,
        make(
          "div",
          { className: "cv-legend" },
          make("span", {}, "0 %"),
          make("span", { className: "cv-scale" }, ramp, p.middle),
          p.largest,
          make(
            "span",
            { className: "cv-key", title: "The mask allows it, but the weight is next to nothing" },
            make("i", { className: "cv-dark" }),
            "does not attend",
          ),
          make(
            "span",
            { className: "cv-key", title: "The mask forbids it: not made yet, another window, or another frame" },
            make("i", { className: "cv-hatched" }),
            "cannot attend",
          ),
        ),
        make(
          "div",
          { className: "cv-line" },
          make("h3", {}, "Prompt"),
          make("p", { className: "cv-hint" }, "Click a word to see which patches read it."),
        ),
        p.words,
        p.status,
      ),
      make(
        "aside",
        {},
        make(
          "section",
          { title: "Attention weights summed over the words and over each frame, its start included" },
          make("h3", {}, "Where it looks, in %"),
          p.numbers,
        ),
        make(
          "section",
          {
            title:
              "The learned gate mixes the channels in every dimension: mean share, with the range of the middle 80 % of dimensions as a line",
          },
          make(
            "h3",
            {},
            "Gate: ",
            make("b", { className: "cv-blue" }, "spatial"),
            " or ",
            make("b", { className: "cv-red" }, "temporal"),
          ),
          p.gates,
          p.norms,
        ),
        make(
          "section",
          {
            title:
              "Rows: the patch that is made. Columns: the words, then the places of all frames. Click to choose a row",
          },
          p.maskTitle,
          make("div", { className: "cv-mask-box" }, p.mask, p.maskMark),
        ),
      ),
    ),
    make(
      "footer",
      { "aria-label": "Keys" },
      ...KEYS.map(([keys, what]) =>
        make("span", {}, ...keys.split(" ").map((key) => make("kbd", {}, key)), ` ${what}`),
      ),
    ),
    p.tip,
  );
  return { root, parts: p };
}

/** Frames, words and gates of the explorer's scene. */
function fill(explorer) {
  const { parts: p, scene } = explorer;
  explorer.root.style.setProperty("--frames", scene.frames.length);
  explorer.root.style.setProperty("--aspect", explorer.grid.width / explorer.grid.height);
  explorer.images = scene.frames.map(({ image }) => {
    const picture = new Image();
    picture.onload = () => explorer.draw();
    picture.src = image;
    return picture;
  });
  const patchAt = (event, time) => {
    const box = event.target.getBoundingClientRect();
    const along = (at, size, count) => Math.max(0, Math.min(count - 1, Math.floor((at / size) * count)));
    const row = along(event.clientY - box.top, box.height, explorer.grid.height);
    return (
      time * explorer.n + row * explorer.grid.width + along(event.clientX - box.left, box.width, explorer.grid.width)
    );
  };
  const figures = (over) =>
    scene.frames.map((frame, time) => {
      const canvas = make("canvas", {
        "aria-hidden": "true",
        "data-frame": time,
        onpointermove: (event) => over(patchAt(event, time), event),
        onclick: (event) => {
          explorer.choose(patchAt(event, time));
          p.clip.focus({ preventScroll: true });
        },
      });
      return { canvas, start: make("i"), caption: make("span"), sum: make("span"), frame };
    });
  explorer.clip = figures((patch, event) => event.pointerType === "mouse" && explorer.peek(patch));
  explorer.heat = figures((patch, event) => explorer.inspect(patch, event));
  p.clip.replaceChildren(
    ...explorer.clip.map(({ canvas, frame }, time) =>
      make(
        "figure",
        {},
        make(
          "figcaption",
          {},
          make("b", {}, `Frame ${time}`),
          ` ${frame.seconds} s`,
          make("span", { className: "cv-given" }, frame.given ? "given" : "made here"),
        ),
        canvas,
      ),
    ),
  );
  p.heat.replaceChildren(
    ...explorer.heat.map(({ canvas, start, caption, sum }) =>
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
          title: `Layer ${explorer.info.layers[layer]}: ${percent(mean)} spatial, ${percent(1 - mean)} temporal; 80 % of dimensions lie between ${percent(low)} and ${percent(high)} spatial`,
        },
        make("span", {}, `layer ${explorer.info.layers[layer]}`),
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
}
