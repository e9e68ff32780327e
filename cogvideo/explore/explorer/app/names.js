// What there is to choose from, under the names that are shown.

/** @type {Record<string, string>} */
export const HEAD_NAMES = { mean: "mean of heads", max: "maximum over heads" };
export const WEIGHTS = { raw: "raw", value: "by value", rollout: "rollout" };
export const LAYERS_OF = {
  attention: "attention",
  entropy: "how undecided",
  surprise: "how surprising",
  silence: "lost in silence",
};
export const KEYS = [
  ["← ↑ → ↓", "patch"],
  ["PgUp PgDn", "frame"],
  [", .", "back, on in the order of decoding"],
  ["space", "play"],
  ["[ ]", "layer"],
  ["h H", "head"],
  ["c", "channel"],
  ["w W", "word"],
  ["r", "what reads this patch"],
  ["m", "what the map shows"],
  ["b", "side by side"],
  ["t", "the side's next panel"],
  ["Esc", "back to the patch"],
  ["g G", "generation"],
];
export const TABS = [
  ["looks", "Looks", "Where it looks, the gates and the masks"],
  ["tokens", "Tokens", "What it nearly drew at this patch"],
  ["silence", "Silence", "Does a head, a channel or a word matter?"],
  ["heads", "Heads", "The maps of all layers and heads for this patch"],
];
