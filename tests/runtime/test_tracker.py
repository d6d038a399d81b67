"""Boxes over time: steadier than those of each frame, never far behind, and fresh after a cut."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from sdrpn.errors import BadInput
from sdrpn.method.geometry import PaddedGrid
from sdrpn.method.grids import ImageGrid
from sdrpn.method.roi import RoiPolicy, blur, decide_cells
from sdrpn.runtime.answer import Timings
from sdrpn.runtime.look import Look
from sdrpn.runtime.pictures.picture import open_picture
from sdrpn.runtime.regions import dropped_regions, regions_of
from sdrpn.runtime.tracker import Tracker, TrackerOptions
from sdrpn.tags.motion import moving_scene
from tests.tolerances import SAME_MATH_ABS

Float32 = npt.NDArray[np.float32]
SIDE_PX, CELLS = 840, 12
CELL_PX = SIDE_PX / CELLS
FPS = 10
POLICY = RoiPolicy(0.3, max_share=1.0)
PICTURE = open_picture(np.zeros((SIDE_PX, SIDE_PX, 3), np.uint8))


def grid_over(image_wh: tuple[int, int]) -> ImageGrid:
    return PaddedGrid(image_wh, CELLS * 7, CELLS)


def look_of(roi_map: Float32, image_wh: tuple[int, int] = (SIDE_PX, SIDE_PX)) -> Look:
    """What a session makes of a map."""
    grid, blurred = grid_over(image_wh), blur(roi_map)
    decision = decide_cells(blurred > POLICY.threshold, blurred, POLICY.threshold, grid, POLICY)
    boxes, dropped = regions_of(decision, roi_map, grid), dropped_regions(decision, roi_map, grid)
    return Look("?", image_wh, boxes, roi_map, dropped, decision.note, Timings(), PICTURE)


def bump(centre_xy_px: tuple[float, float], height: float = 0.9) -> Float32:
    """A map that is high around a place."""
    row, column = (np.mgrid[0:CELLS, 0:CELLS] + 0.5) * CELL_PX
    distance = ((column - centre_xy_px[0]) ** 2 + (row - centre_xy_px[1]) ** 2) / CELL_PX**2
    return np.asarray(height * np.exp(-distance / 2), np.float32)


def blob(x: int, y: int, side: int = 3) -> Float32:
    """A square of high cells whose first is (x, y)."""
    roi_map = np.full((CELLS, CELLS), 0.02, np.float32)
    roi_map[y : y + side, x : x + side] = 0.9
    return roi_map


def middles(looks: list[Look]) -> npt.NDArray[np.float64]:
    """(n, 2): the middle of the first box; NaN without one."""
    found = [look.boxes_xyxy_px[0] if look.boxes else (np.nan,) * 4 for look in looks]
    return np.array([((x1 + x2) / 2, (y1 + y2) / 2) for x1, y1, x2, y2 in found])


class TestMovingTag:
    """A tag of the moving scene, and maps of it with the noise that a network has from frame to frame."""

    @pytest.fixture(params=[3, 4, 5])
    def truth(self, request: pytest.FixtureRequest) -> npt.NDArray[np.float64]:
        scene = moving_scene(request.param)
        boxes = [scene.boxes(number / FPS)[scene.tags[1].colour] for number in range(300)]
        return np.array([((x1 + x2) / 2, (y1 + y2) / 2) for x1, y1, x2, y2 in boxes])

    @pytest.fixture
    def looks(self, truth: npt.NDArray[np.float64]) -> list[Look]:
        rng = np.random.default_rng(0)
        maps = [bump((x, y), rng.uniform(0.45, 0.95)) + rng.normal(0, 0.1, (CELLS, CELLS)) for x, y in truth]
        return [look_of(np.clip(each, 0, 1).astype(np.float32)) for each in maps]

    @pytest.fixture
    def tracked(self, looks: list[Look]) -> list[Look]:
        tracker = Tracker(grid_over, POLICY)
        return [tracker.update(look) for look in looks]

    def test_less_jitter(self, truth: npt.NDArray[np.float64], looks: list[Look], tracked: list[Look]) -> None:
        """How far the box moves against the tag from one frame to the next."""

        def jitter(found: list[Look]) -> float:
            steps = np.diff(middles(found) - truth, axis=0)
            return float(np.nanmean(np.linalg.norm(steps, axis=1)))

        assert jitter(tracked) < 0.8 * jitter(looks)

    def test_less_flicker(self, looks: list[Look], tracked: list[Look]) -> None:
        without = [sum(not look.boxes for look in found) for found in (looks, tracked)]
        assert without[0] >= 5  # or there was nothing to make steady
        assert without[1] <= without[0] // 5

    def test_no_lag_beyond_one_frame(self, truth: npt.NDArray[np.float64], tracked: list[Look]) -> None:
        """The part of a frame's way by which boxes trail behind the tag, by least squares over all frames."""
        beside, way = middles(tracked) - truth, np.gradient(truth, axis=0)
        known = np.isfinite(beside[:, 0])
        late = -(beside[known] * way[known]).sum() / (way[known] ** 2).sum()
        assert late <= 1


class TestBeginningAgain:
    def test_the_first_frame_is_as_it_was(self) -> None:
        look = look_of(blob(2, 3))
        tracked = Tracker(grid_over, POLICY).update(look)
        assert tracked == look
        assert tracked.boxes

    def test_maps_are_averaged(self) -> None:
        tracker = Tracker(grid_over, POLICY, TrackerOptions(weight=0.25))
        tracker.update(look_of(blob(2, 3)))
        tracked = tracker.update(look_of(blob(3, 3)))
        assert tracked.roi_map == pytest.approx(0.25 * blob(3, 3) + 0.75 * blob(2, 3), abs=SAME_MATH_ABS)

    def test_a_cell_goes_later_than_it_comes(self) -> None:
        low = np.full((CELLS, CELLS), 0.02, np.float32)
        low[3:8, 3:8] = 0.26  # between the share that is kept and the threshold
        options = TrackerOptions(weight=1)
        fresh, after = Tracker(grid_over, POLICY, options), Tracker(grid_over, POLICY, options)
        after.update(look_of(blob(3, 3, 5)))
        assert not fresh.update(look_of(low)).boxes
        assert after.update(look_of(low)).boxes
        assert not after.update(look_of(low * np.float32(0.5))).boxes

    def test_a_region_that_jumps_leaves_nothing_behind(self) -> None:
        tracker = Tracker(grid_over, POLICY)
        tracker.update(look_of(blob(0, 0)))
        assert tracker.update(look_of(blob(8, 8))) == look_of(blob(8, 8))

    def test_a_region_that_goes_is_gone_soon(self) -> None:
        tracker, nothing = Tracker(grid_over, POLICY), np.full((CELLS, CELLS), 0.02, np.float32)
        tracker.update(look_of(blob(4, 4)))
        assert [bool(tracker.update(look_of(nothing)).boxes) for _ in range(3)][1:] == [False, False]

    def test_a_cut_resets_it(self) -> None:
        """Also where the new scene shows nothing of what is asked for."""
        first, second = (np.asarray(moving_scene(seed).frame(0)) for seed in (1, 2))
        nothing = look_of(np.full((CELLS, CELLS), 0.02, np.float32))
        tracker = Tracker(grid_over, POLICY)
        tracker.update(look_of(blob(4, 4)), first)
        assert tracker.update(nothing, second) == nothing

    def test_a_cut_between_frames_of_floats(self) -> None:
        first, second = (np.asarray(moving_scene(seed).frame(0)) / np.float32(255) for seed in (1, 2))
        nothing = look_of(np.full((CELLS, CELLS), 0.02, np.float32))
        tracker = Tracker(grid_over, POLICY)
        tracker.update(look_of(blob(4, 4)), first)
        assert tracker.update(nothing, second) == nothing

    def test_tags_that_move_are_no_cut(self) -> None:
        scene, tracker = moving_scene(1), Tracker(grid_over, POLICY, TrackerOptions(weight=0.25))
        tracker.update(look_of(blob(4, 4)), np.asarray(scene.frame(0)))
        tracked = tracker.update(look_of(blob(5, 4)), np.asarray(scene.frame(0.2)))
        assert tracked.roi_map[5, 4] > 0.5  # of the frame before

    def test_another_size_resets_it(self) -> None:
        tracker, wide = Tracker(grid_over, POLICY), look_of(blob(4, 4), (1280, 720))
        tracker.update(look_of(blob(5, 5)))
        assert tracker.update(wide) == wide

    def test_reset(self) -> None:
        tracker = Tracker(grid_over, POLICY)
        tracker.update(look_of(blob(4, 4)))
        tracker.reset()
        assert tracker.update(look_of(blob(5, 4))) == look_of(blob(5, 4))


def test_a_threshold_that_is_relative_is_refused() -> None:
    with pytest.raises(BadInput, match=r"the threshold is -0\.5; boxes are tracked with a threshold above 0 only"):
        Tracker(grid_over, RoiPolicy(-0.5))


@pytest.mark.parametrize("name", ["weight", "keep", "cut"])
def test_values_that_cannot_be(name: str) -> None:
    with pytest.raises(BadInput, match=f"{name} is 0; expected a number above 0, at most 1"):
        TrackerOptions(**{name: 0})


def test_what_is_nothing_of_the_kind() -> None:
    with pytest.raises(BadInput, match="grid_over is 3; expected session"):
        Tracker(3, POLICY)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="policy is None; expected a RoiPolicy"):
        Tracker(grid_over, None)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="weight is 'a'; expected a number"):
        TrackerOptions(weight="a")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="cut_levels is 'a'; expected an integer"):
        TrackerOptions(cut_levels="a")  # type: ignore[arg-type]
    tracker, look = Tracker(grid_over, POLICY), look_of(blob(4, 4))
    with pytest.raises(BadInput, match="what grid_over returns is None; expected ImageGrid"):
        Tracker(lambda image_wh: None, POLICY).update(look)  # type: ignore[arg-type,return-value]
    with pytest.raises(BadInput, match=r"pixels is 'x\.png'; expected the frame"):
        tracker.update(look, "x.png")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=r"look is 'x'; expected what Session.look returns"):
        tracker.update("x")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="index is 'a'; expected the number of a box"):
        look.crop("a")  # type: ignore[arg-type]
