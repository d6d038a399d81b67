// Turn what Python passes into a Job, or say in one line what is wrong with it.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "patches.h"

namespace sdrpn {

namespace nb = nanobind;

// All arguments of `prepare` from Python besides memory.
struct Request {
    nb::handle boxes, filter, colour, mean, deviation;
};

// The arguments of `write_patches` besides those.
struct PatchRequest {
    nb::handle size_wh;
    int patch, merge;
};

// A picture in host memory.
Picture picture_of(nb::handle array);

// A picture of which only the size is known, with contiguous rows.
Picture picture_of_size(int64_t height, int64_t width);

// The boxes, filter, colour and normalisation, checked against the picture.
void read_request(const Request& request, Job& job);

// The result's memory: (boxes, 3, height, width), float32 or float16.
void read_result(nb::handle array, Job& job);

// The memory of patches: (height / patch * width / patch, 3 * patch * patch), float32.
void read_patches(nb::handle array, const PatchRequest& request, PatchJob& patches);

// `size` as a result's side, in pixels.
void check_result_side(int64_t size);

}  // namespace sdrpn
