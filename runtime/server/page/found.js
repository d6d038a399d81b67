// What a look found, under any threshold: regions decided again from the map where that is exact. Knows no page.

import { SquareGrid } from "./grid.js";
import { decide, readMap, scores } from "./roi.js";

/** A reply of POST /v1/look about one question. */
export class Found {
  constructor(reply) {
    const [look] = reply.looks;
    this.reply = reply;
    this.look = look;
    this.policy = reply.policy;
    this.imageWh = reply.image_wh;
    this.map = look.map ? readMap(look.map) : null;
    const side = reply.input_side_px;
    this.grid = this.map && side ? new SquareGrid(this.imageWh, side, this.map.h, reply.fit) : null;
  }

  /** Whether a threshold can be tried: of maps of the model's raw scores a threshold is a share of the highest. */
  get canMove() {
    return this.map !== null && this.policy.threshold > 0;
  }

  /** Whether `under` is exact for every threshold; otherwise only the server can say. */
  get decidesHere() {
    return this.canMove && this.grid !== null;
  }

  /** The part of the picture that the map covers: x, y, width, height. */
  get covered() {
    if (this.grid === null) return [0, 0, ...this.imageWh];
    const [x, y, side] = this.grid.coveredSquare;
    return [x, y, side, side];
  }

  /** {boxes: [{box, max}], leftOut: [{box, reason}], note} in pixels, under a threshold. */
  under(threshold) {
    if (!this.decidesHere || Math.abs(threshold - this.policy.threshold) < 1e-9) return this.#ofServer();
    const { crops, leftOut } = decide(this.map, this.grid, { ...this.policy, threshold });
    return {
      boxes: crops.map((box) => ({ box, max: scores(this.map, this.grid.boxCellsFromPx(box)).max })),
      leftOut: leftOut.map(({ box, reason }) => ({ box: this.grid.boxPxFromCells(box), reason })),
      note: "",
    };
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
