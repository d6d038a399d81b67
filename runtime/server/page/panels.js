// The parts beside the picture: answer, regions, crops, times, history. Text from the server and from people is only ever
// set as text.

import { cropCanvas } from "./view.js";

const CROP_MOST_PX = 640;
const THUMBNAIL_PX = 112;
// Key of a reply's stages -> its name and colour, in order. Colours are told apart by brightness too.
const STAGES = [
  ["preprocess_s", "Read and resize", "#5b6c86"],
  ["vision_s", "Vision", "#3f7fbf"],
  ["trunk_s", "Layers below the tap", "#5aa7d9"],
  ["rpn_s", "Region proposal", "#b04a9a"],
  ["roi_decode_s", "Map to boxes", "#d98bc8"],
  ["crop_preprocess_s", "Crop and resize", "#a8741a"],
  ["crop_vision_s", "Vision of the crop", "#d29a2e"],
  ["crop_trunk_s", "Crop and question", "#e8c267"],
  ["tail_prefill_s", "Layers above the tap", "#3d9a6c"],
  ["decode_s", "Words", "#84cba4"],
];
const QUEUED = ["Waiting for a place", "#c0c3cb"];
const OTHER = ["The rest", "#8d919c"];

export function element(tag, text = "", className = "") {
  const made = document.createElement(tag);
  if (text) made.textContent = text;
  if (className) made.className = className;
  return made;
}

export function milliseconds(seconds) {
  return seconds < 1 ? `${(1000 * seconds).toFixed(1)} ms` : `${seconds.toFixed(2)} s`;
}

/** Stages of several calls, added up. */
export function addedStages(...all) {
  const sum = {};
  for (const stages of all) {
    for (const [name, seconds] of Object.entries(stages ?? {})) sum[name] = (sum[name] ?? 0) + seconds;
  }
  return sum;
}

/** The bar and the table of stages. */
export function showStages(bar, body, stages) {
  const rows = STAGES.map(([key, name, colour]) => [name, colour, stages[key] ?? 0]).filter(([, , s]) => s > 0);
  const rest = (stages.total_s ?? 0) - rows.reduce((sum, [, , seconds]) => sum + seconds, 0);
  if (stages.queued_s > 0.0005) rows.unshift([...QUEUED, stages.queued_s]);
  if (rest > 0.0005) rows.push([...OTHER, rest]);
  const total = rows.reduce((sum, [, , seconds]) => sum + seconds, 0);
  bar.replaceChildren(
    ...rows.map(([, colour, seconds]) => {
      const part = element("span");
      part.style.width = `${(100 * seconds) / total}%`;
      part.style.background = colour;
      return part;
    }),
  );
  body.replaceChildren(
    ...rows.map(([name, colour, seconds]) => stageRow(name, seconds, colour)),
    stageRow("All", total),
  );
}

function stageRow(name, seconds, colour) {
  const row = element("tr");
  const head = element("th");
  head.scope = "row";
  if (colour) {
    const swatch = element("span", "", "swatch");
    swatch.style.background = colour;
    head.append(swatch);
  }
  head.append(name);
  row.append(head, element("td", milliseconds(seconds)));
  return row;
}

/** The list of regions; shown: {boxes: [{box, max}], leftOut: [{box, reason}]} in pixels. */
export function showRegions(list, note, { boxes, leftOut }, words) {
  const items = boxes.map(({ box, max }, index) => {
    const item = element("li");
    item.append(element("span", String(index + 1), "mark"), boxText(box), element("span", `highest ${max.toFixed(2)}`));
    return item;
  });
  const others = leftOut.map(({ box, reason }) => {
    const item = element("li");
    item.append(element("span", "–", "mark left-out"), box ? boxText(box) : element("span", "padding"), reason);
    return item;
  });
  list.replaceChildren(...items, ...others);
  note.hidden = boxes.length > 0 && !words;
  note.textContent = words || "No region: no cell of the map is above the threshold.";
}

function boxText([x1, y1, x2, y2]) {
  return element("span", `${x2 - x1} × ${y2 - y1} px at ${x1}, ${y1}`);
}

/** The crops of a picture, at full resolution. */
export function showCrops(place, picture, boxes) {
  place.replaceChildren(
    ...boxes.map((box, index) => {
      const figure = element("figure");
      const canvas = cropCanvas(picture, box, CROP_MOST_PX);
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `Crop ${index + 1}`);
      const [x1, y1, x2, y2] = box;
      figure.append(canvas, element("figcaption", `${x2 - x1} × ${y2 - y1} px at ${x1}, ${y1}`));
      return figure;
    }),
  );
}

/** The gate's decision in words; empty where no gate was asked. gate: {score, looks_again}. */
export function gateText(gate, threshold) {
  if (!gate) return "";
  const decision = gate.looks_again ? "it looks again" : "the first look is enough";
  const limit = typeof threshold === "number" ? ` (from ${threshold.toFixed(2)} on it looks again)` : "";
  return `Gate: ${gate.score.toFixed(2)}, ${decision}${limit}`;
}

/** What was asked in this session, newest first; kept in memory alone. */
export class History {
  #entries = [];

  constructor(list, part, restore) {
    Object.assign(this, { list, part, restore });
  }

  add(entry) {
    this.#entries.unshift(entry);
    const item = element("li");
    const button = element("button");
    button.type = "button";
    const thumbnail = entry.picture ? squareThumbnail(entry.picture) : element("canvas");
    button.append(thumbnail, element("span", entry.question, "question"), element("span", entry.text || "no words"));
    button.addEventListener("click", () => this.restore(entry));
    item.append(button);
    this.list.prepend(item);
    this.part.hidden = false;
  }

  clear() {
    this.#entries = [];
    this.list.replaceChildren();
    this.part.hidden = true;
  }
}

function squareThumbnail(picture) {
  const side = Math.min(picture.width, picture.height);
  const [x, y] = [(picture.width - side) / 2, (picture.height - side) / 2];
  const canvas = element("canvas");
  canvas.width = canvas.height = THUMBNAIL_PX;
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, x, y, side, side, 0, 0, THUMBNAIL_PX, THUMBNAIL_PX);
  return canvas;
}
