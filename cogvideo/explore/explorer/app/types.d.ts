// The shapes of what the parts of the explorer hand to each other; the check in `make lint` reads them.

type Channel = "spatial" | "temporal";
type Shown = Channel | "mixed";
type Head = number | "mean" | "max";
type Color = [number, number, number];
type Box = [number, number, number, number];
type Grid = { width: number; height: number };
type ByChannel = { spatial: Float32Array; temporal: Float32Array };
type Row = { heads: ByChannel[]; values: ByChannel[]; norms: { spatial: number; temporal: number } };
type Column = { heads: ByChannel[] };
type Reading = { words: Float32Array; keys: Float32Array };
type Sizes = { l: number; n: number; places: number };
type Silence = { parts: [string, number, number | null][]; words: number[] };
type Sheet = { image: HTMLImageElement; row: number; rows: number } | null;

/** What both ways of drawing know: a canvas's context, and the one that writes SVG. */
type Brush = Pick<
  CanvasRenderingContext2D,
  | "save" | "restore" | "beginPath" | "rect" | "clip" | "fill" | "stroke" | "moveTo" | "lineTo" | "fillRect"
  | "strokeRect" | "setLineDash" | "fillStyle" | "strokeStyle" | "lineWidth" | "imageSmoothingEnabled"
> & { drawImage(image: CanvasImageSource, x: number, y: number, width: number, height: number): void };

interface Source {
  row(scene: number, layer: number, place: number): Promise<Row>;
  column(scene: number, layer: number, key: number): Promise<Column>;
  rollout(scene: number, place: number): Promise<Float32Array>;
  silence(scene: number, silence: Silence): Promise<Float32Array>;
  pictures(scene: number, patch: number): Promise<Sheet>;
}

interface WidgetModel {
  get(name: string): any;
  set(name: string, value: any): void;
  save_changes(): void;
  send(message: object): void;
  on(name: string, hear: (...message: any[]) => void): void;
  off(name: string, hear: (...message: any[]) => void): void;
}

type SceneInfo = {
  title: string;
  prompt: string;
  about: string;
  stage: string;
  words: { text: string; hint: string }[];
  frames: { image: string; seconds: string; given: boolean }[];
  steps: number[];
  gates: { mean: number; low: number; high: number }[];
  tokens: string;
  silences: Silence[];
  maps: string[];
  rollout: string;
  losses: string;
  sheet: string;
};

type Info = {
  prompt: string;
  about: string;
  layers: number[];
  heads: number[];
  height: number;
  width: number;
  start: { patch: number; layer: number };
  masks: Record<string, { spatial: string; temporal: string[] }>;
  scenes: SceneInfo[];
  live: boolean;
  asks?: { seconds: number; seed: number } | null;
  spans?: number[];
};

type State = {
  scene: number;
  layer: number;
  head: Head;
  channel: Shown;
  scale: string;
  word: number | null;
  patch: number;
  weights: "raw" | "value" | "rollout";
  reverse: boolean;
  layerOf: "attention" | "entropy" | "surprise" | "silence";
  silence: Silence | null;
  beside: number | null;
  besideLayer: number | null;
  tab: string;
};

/** The likeliest tokens of all places; see payload.py. */
type Tokens = {
  count: number;
  ids: Int32Array;
  model: Float32Array;
  sampler: Float32Array;
  of: { entropy: Float32Array; surprise: Float32Array; rank: Int32Array }[];
};

/** What is drawn: fetched for what was chosen then. */
type View = Sizes & {
  scene: number;
  layer: number;
  head: Head;
  patch: number;
  query: number;
  word: number | null;
  mask: any;
  tokens: Tokens;
  reading?: Record<Shown, Reading>;
  readers?: Record<Shown, Float32Array>;
  norms?: { spatial: number; temporal: number };
  values?: Float32Array;
  other?: View;
};
