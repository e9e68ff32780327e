// How the explorer begins: as the page of one file, or as a widget.
import { Explorer } from "./explorer.js";
import { LiveMaps, PackedMaps } from "./maps.js";

/** The page of one file: its payload lies in #payload, the explorer goes into #explorer. */
export function open() {
  const info = JSON.parse(document.getElementById("payload").textContent);
  return new Explorer(document.getElementById("explorer"), info, new PackedMaps(info), { address: true });
}

/** The widget, as anywidget calls it. @param {{model: WidgetModel, el: HTMLElement}} view */
function render({ model, el }) {
  const maps = new LiveMaps(model);
  const tell = (/** @type {object} */ selection) => {
    if (JSON.stringify(model.get("selection")) === JSON.stringify(selection)) return;
    model.set("selection", selection);
    model.save_changes();
  };
  let explorer = new Explorer(el, model.get("info"), maps, { tell });
  const renew = () => {
    explorer.close();
    maps.answers.clear();
    explorer = new Explorer(el, model.get("info"), maps, { tell });
  };
  model.on("change:info", renew);
  return () => {
    model.off("change:info", renew);
    explorer.close();
    maps.close();
  };
}

export default { render };
