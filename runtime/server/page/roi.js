// From an RoI map to regions and crops: the arithmetic of sdrpn/method/roi.py and sdrpn/families/qwen/zoom.py, in float32
// step by step, so that the slider needs no second pass of the model. Knows no page.

const f32 = Math.fround;
// exp(-1/2) and 1, divided by their sum, in float32.
const SIDE = f32(0.27406862378120422);
const CENTRE = f32(0.45186275243759155);
const MOST_BBOX_CROPS = 2;
const EXPANDED_BELOW_CELLS = 4;
const LEAST_BOX_SIDE_CELLS = 3;

/** A map of a reply, {encoding: "float32", shape: [h, w], data: base64}, as {h, w, values: Float32Array in rows}. */
export function readMap(map) {
  if (map.encoding !== "float32") throw new Error(`a map in ${map.encoding}; expected float32`);
  const [h, w] = map.shape;
  const bytes = Uint8Array.from(atob(map.data), (character) => character.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const values = Float32Array.from({ length: h * w }, (_, index) => view.getFloat32(4 * index, true));
  return { h, w, values };
}

/** A 3 x 3 Gaussian of sigma 1 with mirrored borders; (h, w) in rows. */
export function blur({ h, w, values }) {
  const edge = Math.min(h, w) === 1; // nothing to mirror: the border is repeated
  const mirrored = (index, size) => {
    if (edge) return Math.min(Math.max(index, 0), size - 1);
    return index < 0 ? -index : index >= size ? 2 * size - 2 - index : index;
  };
  const sum = (before, here, after) => f32(f32(f32(SIDE * before) + f32(CENTRE * here)) + f32(SIDE * after));
  const at = (y, x) => values[mirrored(y, h) * w + mirrored(x, w)];
  const rows = new Float32Array((h + 2) * w);
  for (let y = -1; y <= h; y++) {
    for (let x = 0; x < w; x++) rows[(y + 1) * w + x] = sum(at(y, x - 1), at(y, x), at(y, x + 1));
  }
  const blurred = new Float32Array(h * w);
  for (let index = 0; index < h * w; index++) {
    blurred[index] = sum(rows[index], rows[index + w], rows[index + 2 * w]);
  }
  return { h, w, values: blurred };
}

/** The 8-connected regions of cells that fire, in the raster order of their first cells: {cells, area, box}. */
export function findComponents(fired, h, w) {
  const open = Uint8Array.from(fired);
  const components = [];
  for (let start = 0; start < h * w; start++) {
    if (!open[start]) continue;
    open[start] = 0;
    const cells = [start];
    for (let next = 0; next < cells.length; next++) {
      const y = Math.floor(cells[next] / w);
      const x = cells[next] % w;
      for (let ny = Math.max(y - 1, 0); ny <= Math.min(y + 1, h - 1); ny++) {
        for (let nx = Math.max(x - 1, 0); nx <= Math.min(x + 1, w - 1); nx++) {
          if (open[ny * w + nx]) {
            open[ny * w + nx] = 0;
            cells.push(ny * w + nx);
          }
        }
      }
    }
    components.push({ cells, area: cells.length, box: boxAround(cells, w) });
  }
  return components;
}

function boxAround(cells, w) {
  const box = [Infinity, Infinity, 0, 0];
  for (const cell of cells) {
    const x = cell % w;
    const y = Math.floor(cell / w);
    box[0] = Math.min(box[0], x);
    box[1] = Math.min(box[1], y);
    box[2] = Math.max(box[2], x + 1);
    box[3] = Math.max(box[3], y + 1);
  }
  return box;
}

/**
 * Choose the crops, as `decide_cells` does.
 *
 * map: {h, w, values} in 0..1, before the blur. grid: see grid.js. policy: of a reply of /v1/look, threshold above 0.
 * Returns {boxes, crops, leftOut}: boxes of cells within the limits; crops in pixels; [{box, reason}] of cells.
 */
export function decide(map, grid, policy) {
  const { h, w } = map;
  const threshold = f32(policy.threshold);
  const fired = blur(map).values.map((value) => (value > threshold ? 1 : 0));
  const most = Math.floor(policy.max_share * (h * w));
  const components = findComponents(fired, h, w);
  const kept = components.filter((part) => policy.min_cells <= part.area && part.area <= most);
  const boxes = kept.map((part) => expandedBox(part, h, w));
  let crops = [];
  if (boxes.length === 1 || (policy.upscale === "bbox" && boxes.length <= MOST_BBOX_CROPS)) {
    crops = boxes.map((box) => grid.boxPxFromCells(box)).filter((box) => box !== null);
  } else if (boxes.length && policy.upscale !== "bbox") {
    const oversize = components.filter((part) => part.area > most);
    crops = maskCrop(fired, oversize, grid, h, w);
  }
  return { boxes, crops, leftOut: leftOut(components, boxes, crops, grid, policy, most) };
}

/**
 * Choose the crop of models that look at all cells above the threshold together, as `decide_zoom` does.
 *
 * map, threshold: as in `decide`. grid: see resized.js. sinks: cells that are never chosen. masked: whether the crop's cells
 * are those above the threshold. Returns {boxes, crops, leftOut, note}; note: why there is no crop although cells fire.
 */
export function decideAround({ h, w, values }, grid, { threshold, sinks, masked }) {
  const kept = Float32Array.from(values);
  for (const cell of sinks) kept[cell] = 0;
  const limit = f32(threshold);
  const fired = Uint8Array.from(blur({ h, w, values: kept }).values, (value) => (value > limit ? 1 : 0));
  const cells = [...fired.keys()].filter((cell) => fired[cell]);
  if (!cells.length) return { boxes: [], crops: [], leftOut: [], note: "" };
  const box = boxAround(cells, w);
  const px = grid.boxPxFromCells(box, !masked); // Q-Zoom slides boxes, SD-RPN, which masks, does not
  let why = grid.refusal(px);
  if (why === null && masked && !keepsCells(fired, w, box, grid.cropHw(px))) {
    why = "no cell of the mask is left on the crop's grid";
  }
  return { boxes: [box], crops: why === null ? [px] : [], leftOut: [], note: why === null ? "" : `nothing inserted: ${why}` };
}

/** The box of a region; for a tiny one at least 3 x 3 cells, where the grid has room. */
function expandedBox({ area, box: [x1, y1, x2, y2] }, h, w) {
  if (area >= EXPANDED_BELOW_CELLS) return [x1, y1, x2, y2];
  const [left, right] = expandedSpan(x1, x2, w);
  const [top, bottom] = expandedSpan(y1, y2, h);
  return [left, top, right, bottom];
}

function expandedSpan(low, high, cells) {
  const centre = (low + high) / 2;
  const size = Math.max(LEAST_BOX_SIDE_CELLS, high - low + 1);
  const first = Math.max(0, Math.trunc(centre - size / 2));
  const last = Math.min(cells - 1, Math.trunc(centre + size / 2));
  return [Math.min(first, low), Math.max(last, high)];
}

/** One crop around all cells that fire, apart from those of regions above the limit. */
function maskCrop(fired, oversize, grid, h, w) {
  const mask = Uint8Array.from(fired);
  for (const part of oversize) for (const cell of part.cells) mask[cell] = 0;
  const cells = [...mask.keys()].filter((cell) => mask[cell]);
  const box = boxAround(cells, w);
  const boxPx = grid.boxPxFromCells(box);
  if (boxPx === null) return [];
  return keepsCells(mask, w, box, grid.cropHw(boxPx)) ? [boxPx] : [];
}

/** Whether a cell of the mask is left when it is resized bilinearly to the crop's grid. */
function keepsCells(mask, w, [x1, y1, x2, y2], [rows, columns]) {
  const down = bilinearTaps(y2 - y1, rows);
  const across = bilinearTaps(x2 - x1, columns);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      let value = 0;
      for (const [y, high] of down[row]) {
        for (const [x, wide] of across[column]) {
          value = f32(value + f32(f32(high * wide) * mask[(y1 + y) * w + x1 + x]));
        }
      }
      if (value > 0.5) return true;
    }
  }
  return false;
}

/** For each new index both old ones with their weights. */
function bilinearTaps(size, newSize) {
  const ratio = f32(size / newSize);
  return Array.from({ length: newSize }, (_, index) => {
    const position = Math.max(0, f32(ratio * (index + 0.5) - 0.5));
    const first = Math.min(Math.trunc(position), size - 1);
    const weight = f32(Math.min(Math.max(position - first, 0), 1));
    return [
      [first, f32(1 - weight)],
      [Math.min(first + 1, size - 1), weight],
    ];
  });
}

/** What fired and is in no crop, and why. */
function leftOut(components, boxes, crops, grid, policy, most) {
  const merged = crops.length > 0 && policy.upscale === "mask" && boxes.length > 1;
  const large = components.filter((part) => part.area > most);
  const found = large.map(({ box }) => ({ box, reason: `more than ${most} cells` }));
  if (merged) return found;
  for (const { area, box } of components) {
    if (area < policy.min_cells) found.push({ box, reason: `fewer than ${policy.min_cells} cells` });
  }
  for (const box of boxes) {
    if (grid.boxPxFromCells(box) === null) found.push({ box, reason: "only padding" });
    else if (!crops.length) {
      const few = `upscale="bbox" shows at most ${MOST_BBOX_CROPS} regions`;
      found.push({ box, reason: policy.upscale === "bbox" ? few : "no cell is left on the crop's grid" });
    }
  }
  return found;
}

/** The highest value and the mean of a map under a box of cells. */
export function scores({ w, values }, [x1, y1, x2, y2]) {
  let highest = 0;
  let sum = 0;
  for (let y = y1; y < y2; y++) {
    for (let x = x1; x < x2; x++) {
      highest = Math.max(highest, values[y * w + x]);
      sum += values[y * w + x];
    }
  }
  return { max: highest, mean: sum / ((x2 - x1) * (y2 - y1)) };
}
