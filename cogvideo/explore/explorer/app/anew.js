// Frames drawn once more with something silent, beside the old ones; and the box for a new prompt. Both need a kernel.
import { button, make } from "./elements.js";

/** The button and the frames under it. @param {any} explorer */
export function drawnAnew(explorer) {
  const { parts: p, state, info } = explorer;
  const name = JSON.stringify([state.scene, state.silence]);
  if (explorer.anewMade === name) return;
  explorer.anewMade = name;
  p.anew.replaceChildren();
  if (!info.live || !info.asks || !state.silence) return;
  const frames = make("div", { className: "cv-anew" });
  const note = make("p", { className: "cv-note", "aria-live": "polite" });
  const show = (/** @type {string[]} */ images) =>
    frames.replaceChildren(...images.map((src, time) => make("img", { src, alt: `frame ${time}, drawn anew` })));
  const draw = button("Draw the frames anew", "Decode them once more by the same random numbers", async () => {
    draw.disabled = true;
    note.textContent = "Drawing …";
    try {
      const answer = await explorer.maps.ask({ scene: state.scene, anew: state.silence }, show);
      show(answer.frames);
      note.textContent = `${answer.changed} tokens differ. Below, as it was.`;
      frames.append(
        ...explorer.scene.frames.map((/** @type {any} */ { image }, /** @type {number} */ time) =>
          make("img", { src: image, alt: `frame ${time}, as it was` }),
        ),
      );
    } catch (error) {
      note.textContent = String(error);
    }
    draw.disabled = false;
  });
  p.anew.replaceChildren(draw, note, frames);
}

/** The box for a prompt, filled once. @param {any} explorer */
export function fillAsk(explorer) {
  const { info, parts: p } = explorer;
  if (!info.asks || p.ask.childElementCount) return;
  const field = (/** @type {string} */ label, /** @type {any} */ input) =>
    make("label", { className: "cv-control" }, make("span", {}, label), input);
  p.ask.append(
    field("Prompt", make("input", { name: "prompt", value: info.prompt, required: true, size: 40 })),
    field("Seed", make("input", { name: "seed", type: "number", min: 0, step: 1, value: info.asks.seed })),
    field(
      "Seconds",
      make(
        "select",
        { name: "seconds" },
        ...info.spans.map((/** @type {number} */ span) =>
          make("option", { value: span, selected: span === info.asks.seconds }, `${span} s`),
        ),
      ),
    ),
    make("button", { className: "cv-button" }, "Make the clip"),
    make("output", { className: "cv-note" }),
  );
}

/** Have another clip made; its frames appear while they are decoded. @param {any} explorer @param {SubmitEvent} event */
export async function askFor(explorer, event) {
  event.preventDefault();
  const form = /** @type {HTMLFormElement} */ (event.target);
  const said = form.querySelector("output");
  const { prompt, seed, seconds } = Object.fromEntries(new FormData(form));
  const send = form.querySelector("button");
  send.disabled = true;
  said.textContent = "Drawing …";
  const watch = (/** @type {string[]} */ frames) => {
    explorer.images = frames.map((src) => {
      const image = new Image();
      image.onload = () => explorer.draw();
      image.src = src;
      return image;
    });
  };
  try {
    await explorer.maps.ask({ prompt, seed: Number(seed), seconds: Number(seconds) }, watch);
    said.textContent = "";
  } catch (error) {
    said.textContent = String(error);
  }
  send.disabled = false;
}
