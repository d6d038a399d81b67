// What a look found, under any threshold: regions decided again from the map, by the rules of the reply. Knows no page.

import { SquareGrid } from "./grid.js";
import { ResizedGrid } from "./resized.js";
import { decide, decideAround, readMap, scores } from "./roi.js";

/** A reply of POST /v1/look about one question. */
export class Found {
  constructor(reply) {
    const [look] = reply.looks;
    this.reply = reply;
    this.look = look;
    this.policy = reply.policy;
    this.imageWh = reply.image_wh;
    this.map = readMap(look.map);
    this.grid = gridOf(reply, this.map);
  }

  /** Whether a threshold can be tried: of maps of the model's raw scores a threshold is a share of the highest. */
  get canMove() {
    return this.policy.threshold > 0;
  }

  /** The part of the picture that the map covers: x, y, width, height. */
  get covered() {
    return this.grid.covered;
  }

  /** {boxes: [{box, max}], leftOut: [{box, reason}], note} in pixels, under a threshold. */
  under(threshold) {
    if (!this.canMove || Math.abs(threshold - this.policy.threshold) < 1e-9) return this.#ofServer();
    const { crops, leftOut, note } = this.#decided(threshold);
    return {
      boxes: crops.map((box) => ({ box, max: scores(this.map, this.grid.boxCellsFromPx(box)).max })),
      leftOut: leftOut.map(({ box, reason }) => ({ box: this.grid.boxPxFromCells(box), reason })),
      note,
    };
  }

  #decided(threshold) {
    const { regions, masked } = this.reply.rules;
    if (regions === "around") return decideAround(this.map, this.grid, { threshold, sinks: this.look.sinks, masked });
    return { ...decide(this.map, this.grid, { ...this.policy, threshold }), note: "" };
  }

  #ofServer() {
    const { boxes, dropped, note } = this.look;
    return {
      boxes: boxes.map((region) => ({ box: region.xyxy_px, max: region.score_max })),
      leftOut: dropped.map((region) => ({ box: region.xyxy_px, reason: region.reason })),
      note: note ?? "",
    };
  }
}

function gridOf({ rules, image_wh: imageWh, fit }, { h, w }) {
  const { cells } = rules;
  return cells.kind === "square" ? new SquareGrid(imageWh, cells.side_px, h, fit) : new ResizedGrid(imageWh, [h, w], cells);
}
