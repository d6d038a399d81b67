// The cells of a picture that was resized to whole cells: the arithmetic of sdrpn/families/qwen/grid.py and resize.py, in
// its precision. Knows no page.

const f32 = Math.fround;

/** h x w cells over a picture, each a share of it. rules: `cells` of a reply's rules, of the kind "resized". */
export class ResizedGrid {
  constructor(imageWh, [rows, columns], rules) {
    Object.assign(this, { imageWh, rows, columns, rules });
  }

  /** What the map covers, in source pixels: x, y, width, height. */
  get covered() {
    return [0, 0, ...this.imageWh];
  }

  /**
   * The source pixels under a box of cells, grown to the least side of a crop where the picture has room. slid: also
   * sides that did not grow are slid into the picture.
   */
  boxPxFromCells([x1, y1, x2, y2], slid = true) {
    const [width, height] = this.imageWh;
    const across = this.#edges(x1, x2, this.columns, width);
    const down = this.#edges(y1, y2, this.rows, height);
    const [left, right] = grownSpan(...across, width, this.rules.least_crop_px, slid);
    const [top, bottom] = grownSpan(...down, height, this.rules.least_crop_px, slid);
    return [left, top, right, bottom];
  }

  /** The smallest box of cells that contains a box of source pixels. */
  boxCellsFromPx([x1, y1, x2, y2]) {
    const [width, height] = this.imageWh;
    return [
      Math.floor((x1 * this.columns) / width),
      Math.floor((y1 * this.rows) / height),
      Math.ceil((x2 * this.columns) / width),
      Math.ceil((y2 * this.rows) / height),
    ];
  }

  /** Why a crop is not encoded: its size. Null: it is. */
  refusal([x1, y1, x2, y2]) {
    const size = [x2 - x1, y2 - y1];
    const [shorter, longer] = [Math.min(...size), Math.max(...size)];
    const { smallest_side_px: smallest, most_ratio: ratio } = this.rules;
    if (shorter >= smallest && longer <= ratio * shorter) return null;
    return `the region is ${size[0]} x ${size[1]} px, which is too small or too long to be resized`;
  }

  /** Rows and columns of a crop, which has the whole budget for itself. */
  cropHw([x1, y1, x2, y2]) {
    const { cell_px: cell, least_px: least, most_px: most } = this.rules;
    const [width, height] = [x2 - x1, y2 - y1];
    const [rows, columns] = [halfToEven(height / cell), halfToEven(width / cell)];
    const pixels = rows * columns * cell ** 2;
    if (pixels > most) {
      const shrink = Math.sqrt((height * width) / most);
      return [height, width].map((side) => Math.max(1, Math.floor(side / shrink / cell)));
    }
    if (pixels < least) {
      const grow = Math.sqrt(least / (height * width));
      return [height, width].map((side) => Math.ceil((side * grow) / cell));
    }
    return [rows, columns];
  }

  /** Both edges of cells in source pixels, by way of the resized picture. */
  #edges(low, high, cells, length) {
    const cell = this.rules.cell_px;
    const ratio = f32(length / (cells * cell));
    return [low, high].map((edge) => f32(f32(edge * cell) * ratio));
  }
}

/** Whole pixels: a span that is too short grows about its centre; that one, and with `slid` any, is slid into the picture. */
function grownSpan(low, high, length, least, slid) {
  const missing = f32(least - f32(high - low));
  if (missing > 0) {
    [low, high] = [f32(low - f32(missing / 2)), f32(high + f32(missing / 2))];
  }
  if (missing > 0 || slid) {
    if (low < 0) [low, high] = [0, f32(high - low)];
    if (high > length) [low, high] = [f32(low - f32(high - length)), length];
  }
  return [low, high].map((edge) => Math.trunc(Math.min(Math.max(edge, 0), length)));
}

function halfToEven(value) {
  const below = Math.floor(value);
  const rest = value - below;
  if (rest !== 0.5) return Math.round(value);
  return below % 2 ? below + 1 : below;
}
