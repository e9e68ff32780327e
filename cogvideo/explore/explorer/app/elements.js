// Small builders of elements. All text enters by textContent or as a string child: nothing is ever parsed as markup.

/** @param {number} share */
export const digits = (share) =>
  Number.isFinite(share) ? (100 * share).toFixed(Math.abs(share) < 0.0995 ? 2 : 1) : "–";
/** @param {number} share */
export const percent = (share) => `${digits(share)} %`;
/** @param {number} value */
export const nats = (value) => (Number.isFinite(value) ? `${value.toFixed(Math.abs(value) < 9.95 ? 2 : 1)} nats` : "–");

/** An element with properties (data-, aria- and style ones by name), and children; strings become text.
 *  @param {string} tag @param {Record<string, any>} [properties] @param {...(Node | string)} children @returns {any} */
export function make(tag, properties = {}, ...children) {
  const element = /** @type {any} */ (document.createElement(tag));
  for (const [name, value] of Object.entries(properties)) {
    if (name === "style") for (const [key, one] of Object.entries(value)) element.style.setProperty(key, one);
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.includes("-") || ["for", "role"].includes(name)) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

/** @param {string | number} value @param {string} text */
export const option = (value, text) => make("option", { value, textContent: text });

/** A label with its inputs. @param {string} text @param {string} title @param {...Node} inputs */
export const control = (text, title, ...inputs) =>
  make("label", { className: "cv-control", title }, make("span", {}, text), ...inputs);

/** A button. @param {string} text @param {string} title @param {() => void} onclick */
export const button = (text, title, onclick) =>
  make("button", { type: "button", className: "cv-button", title, onclick }, text);

/** One choice of a few, as radio buttons. @param {string} group @param {string} label @param {string[][]} choices
 *  @param {(value: string) => void} choose @returns {{root: any, inputs: HTMLInputElement[]}} */
export function radios(group, label, choices, choose) {
  const labels = choices.map(([value, text, title]) => {
    const input = make("input", { type: "radio", name: group, value, onchange: () => choose(value) });
    return make("label", { title }, input, make("span", {}, text));
  });
  const root = make("div", { className: "cv-radios", role: "radiogroup", "aria-label": label }, ...labels);
  return { root, inputs: labels.map((one) => one.firstChild) };
}
