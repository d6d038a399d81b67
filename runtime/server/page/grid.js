// The cells of a model that sees every picture as one square: the arithmetic of sdrpn/method/geometry.py, in its
// precision. Knows no page.

const f32 = Math.fround;

/** G x G cells over a picture that was padded to a square ("pad") or cut to one ("crop"), and scaled to R x R pixels. */
export class SquareGrid {
  constructor(imageWh, sidePx, cells, fit) {
    Object.assign(this, { imageWh, sidePx, cells, fit });
    const nearer = fit === "pad" ? Math.min : Math.max;
    this.scale = nearer(sidePx / imageWh[0], sidePx / imageWh[1]);
    this.cellPx = sidePx / cells;
    this.padding = this.#padding();
  }

  /** Rows and columns of a crop: every one is squashed to R x R. */
  cropHw() {
    return [this.cells, this.cells];
  }

  /** The square that the map covers, in source pixels: x, y, width, height. */
  get covered() {
    const [width, height] = this.imageWh;
    const side = this.fit === "pad" ? Math.max(width, height) : Math.min(width, height);
    return [(width - side) / 2, (height - side) / 2, side, side];
  }

  /** The source pixels under a box of cells; null where it shows nothing but padding. */
  boxPxFromCells(box) {
    const scale = f32(this.scale);
    const cell = f32(this.cellPx);
    const edge = (value, axis) => {
      const exact = f32(f32(f32(value * cell) - f32(this.padding[axis])) / scale);
      return Math.trunc(Math.min(Math.max(exact, 0), f32(this.imageWh[axis])));
    };
    const [x1, y1, x2, y2] = [edge(box[0], 0), edge(box[1], 1), edge(box[2], 0), edge(box[3], 1)];
    if (x1 < x2 && y1 < y2) return [x1, y1, x2, y2];
    if (!this.#showsImage(box)) return null;
    const [left, right] = atLeastOne(x1, x2, this.imageWh[0]);
    const [top, bottom] = atLeastOne(y1, y2, this.imageWh[1]);
    return [left, top, right, bottom];
  }

  /** The smallest box of cells that contains a box of source pixels. */
  boxCellsFromPx(box) {
    const exact = box.map((value, index) => {
      const cells = (value * this.scale + this.padding[index % 2]) / this.cellPx;
      // Within float32 rounding of a border it is on the border.
      return Math.abs(cells - Math.round(cells)) < 1e-5 * this.cells ? Math.round(cells) : cells;
    });
    const low = exact.slice(0, 2).map((value) => Math.min(Math.max(Math.floor(value), 0), this.cells - 1));
    const high = exact.slice(2).map((value) => Math.min(Math.ceil(value), this.cells));
    return [low[0], low[1], Math.max(high[0], low[0] + 1), Math.max(high[1], low[1] + 1)];
  }

  #padding() {
    const side = this.sidePx;
    if (this.fit === "pad") return this.imageWh.map((size) => (side - Math.trunc(size * this.scale)) / 2);
    const [width, height] = this.imageWh;
    const longer = Math.trunc((side * Math.max(width, height)) / Math.min(width, height));
    const resized = Math.min(width, height) === width ? [side, longer] : [longer, side];
    return resized.map((size) => -Math.floor((size - side) / 2));
  }

  /** Whether a box of cells overlaps the picture where it was really pasted. */
  #showsImage(box) {
    if (this.fit === "crop") return true;
    const side = Math.max(...this.imageWh);
    return this.imageWh.every((size, axis) => {
      const before = Math.floor((side - size) / 2);
      const first = (before * this.sidePx) / side;
      const last = ((before + size) * this.sidePx) / side;
      return box[axis + 2] * this.cellPx > first && box[axis] * this.cellPx < last;
    });
  }
}

function atLeastOne(low, high, size) {
  if (low < high) return [low, high];
  const first = Math.min(low, size - 1);
  return [first, first + 1];
}
