// The picture with heat map and boxes, as sdrpn/method/overlay.py draws them. Knows neither server nor model.

const HEAT = [
  [40, 10, 90],
  [130, 25, 120],
  [215, 60, 80],
  [250, 140, 40],
  [255, 240, 150],
];
const HEAT_OPACITY = 0.6; // what lies below stays readable
const HEAT_FULL = 0.3; // a map with a lower peak stays pale, so that noise is not shown as a region
const DARK = "#18191c";
export const CROP_COLOUR = "#50dcff";
export const DROPPED_COLOUR = "#ffaa3c";
const MOST_STAGE_HEIGHT = 0.72; // of the window

/** Draws on one canvas. picture: an ImageBitmap or null, where a video lies under the canvas. */
export class View {
  constructor(canvas, stage) {
    Object.assign(this, { canvas, stage, scene: null });
    new ResizeObserver(() => this.draw()).observe(stage);
  }

  /** scene: {picture, imageWh, square: [x, y, side] of the map, map, heat, boxes, leftOut, numbered}; null: nothing. */
  show(scene) {
    this.scene = scene;
    this.canvas.hidden = scene === null;
    this.draw();
  }

  draw() {
    if (this.scene === null) return;
    const { picture, imageWh, boxes, leftOut } = this.scene;
    const [width, height] = imageWh;
    const room = [this.stage.clientWidth, Math.max(240, window.innerHeight * MOST_STAGE_HEIGHT)];
    const scale = Math.min(room[0] / width, room[1] / height);
    const density = Math.min(window.devicePixelRatio || 1, 2);
    const { canvas } = this;
    canvas.style.width = `${Math.max(1, Math.round(width * scale))}px`;
    canvas.style.height = `${Math.max(1, Math.round(height * scale))}px`;
    canvas.width = Math.max(1, Math.round(width * scale * density));
    canvas.height = Math.max(1, Math.round(height * scale * density));
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    if (picture) context.drawImage(picture, 0, 0, canvas.width, canvas.height);
    context.setTransform(canvas.width / width, 0, 0, canvas.height / height, 0, 0);
    if (this.scene.heat && this.scene.map) drawHeat(context, this.scene);
    const unit = density / (canvas.width / width); // a CSS pixel
    for (const { box, reason } of leftOut) outline(context, box, DROPPED_COLOUR, reason, unit, this.scene);
    boxes.forEach((box, index) => {
      const label = boxes.length > 1 ? String(index + 1) : "";
      outline(context, box, CROP_COLOUR, label, unit, this.scene);
    });
  }
}

function drawHeat(context, { map, square, imageWh }) {
  const small = new OffscreenCanvas(map.w, map.h);
  const pixels = new ImageData(map.w, map.h);
  const full = map.values.reduce((most, value) => Math.max(most, value), HEAT_FULL);
  map.values.forEach((value, index) => {
    const strength = Math.min(value / full, 1);
    pixels.data.set([...heatColour(strength), Math.round(255 * HEAT_OPACITY * strength)], 4 * index);
  });
  small.getContext("2d").putImageData(pixels, 0, 0);
  context.save();
  context.beginPath();
  context.rect(0, 0, ...imageWh);
  context.clip();
  context.imageSmoothingEnabled = true;
  const [x, y, width, height] = square;
  context.drawImage(small, x, y, width, height);
  context.restore();
}

/** The colour of a strength in 0..1: dark violet over red to pale yellow, with increasing brightness. */
export function heatColour(strength) {
  const position = strength * (HEAT.length - 1);
  const low = Math.min(Math.trunc(position), HEAT.length - 2);
  return HEAT[low].map((value, channel) => Math.round(value + (HEAT[low + 1][channel] - value) * (position - low)));
}

function outline(context, [x1, y1, x2, y2], colour, label, unit, { imageWh }) {
  for (const [style, width] of [[DARK, 5], [colour, 3]]) {
    context.strokeStyle = style;
    context.lineWidth = width * unit;
    context.strokeRect(x1, y1, x2 - x1, y2 - y1);
  }
  if (!label) return;
  const size = 14 * unit;
  context.font = `${size}px system-ui, sans-serif`;
  const width = Math.max(context.measureText(label).width + 10 * unit, 20 * unit);
  const height = 20 * unit;
  const left = Math.max(0, Math.min(x1, imageWh[0] - width));
  const top = Math.max(0, Math.min(y1, imageWh[1] - height));
  context.fillStyle = colour;
  context.fillRect(left, top, width, height);
  context.fillStyle = DARK;
  context.textBaseline = "middle";
  context.fillText(label, left + 5 * unit, top + height / 2);
}

/** A part of a picture on a canvas of its own, at most `mostPx` wide and high; never enlarged beyond twice its pixels. */
export function cropCanvas(picture, [x1, y1, x2, y2], mostPx) {
  const [width, height] = [x2 - x1, y2 - y1];
  const scale = Math.min(mostPx / width, mostPx / height, 2);
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, x1, y1, width, height, 0, 0, canvas.width, canvas.height);
  return canvas;
}
