// Boxes of one picture to normalised planes: does not check arguments, knows nothing about Python.
#pragma once

#include <algorithm>
#include <array>
#include <functional>
#include <vector>

#include "passes.h"

namespace sdrpn {

// A box in pixels of the picture; may extend beyond it, where `colour` is used.
struct Box {
    int x1, y1, x2, y2;
};

struct Job {
    Picture picture;
    std::vector<Box> boxes;
    Filter filter;
    std::array<uint8_t, 3> colour;
    std::array<float, 3> mean;
    std::array<float, 3> deviation;
    void* out;  // (boxes, 3, height, width)
    int value_bytes;
    int height;
    int width;
    int threads;
    bool plain;
};

// Rows or columns of the picture inside the box.
inline int inside_begin(int from) { return std::max(0, from); }
inline int inside_end(int to, int picture_size) { return std::min(to, picture_size); }

inline AxisShape axis_of(int from, int to, int picture_size, int result, Filter filter) {
    return {to - from, result, inside_begin(from) - from, inside_end(to, picture_size) - from, filter};
}

// The value for each byte of each channel, (3, 256).
std::vector<uint8_t> value_table(const Job& job);

// `poll` is called from the calling thread repeatedly, and may throw.
void prepare(const Job& job, const std::function<void()>& poll);

}  // namespace sdrpn
