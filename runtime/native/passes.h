// The two passes over one box on the CPU: rows to a strip of bytes, columns of the strip to the normalised result.
#pragma once

#include <cstdint>
#include <vector>

#include "resample.h"

namespace sdrpn {

// A picture in memory: bytes R, G, B side by side, `row_stride` bytes from row to row.
struct Picture {
    const uint8_t* data;
    int64_t row_stride;
    int width;
    int height;
};

// The row windows of one axis as this processor's loops read them: whole blocks of pixels that stay on the picture.
struct Blocks {
    int limit = 0;           // entries of `weights` a position
    std::vector<Window> of;  // first pixel, number of blocks; none where the picture is too narrow for them
    std::vector<int32_t> weights;
};

// The windows of all result positions of one axis. `weights` has `limit` entries a position, the rest zero.
struct Windows {
    int limit = 0;
    std::vector<Window> windows;
    std::vector<int32_t> weights;
    std::vector<int32_t> outside;
    Blocks blocks;  // for rows alone
};

// Where a result goes: `values` is a table of what the bytes become, 256 of each channel.
struct Result {
    void* data;
    const void* values;
    int value_bytes;  // 4: float32, 2: float16
    int width;
    int height;
};

constexpr int kRowsAtOnce = 4;
constexpr int kStripAlignment = 32;

// Bytes from row to row of a strip: there is room for one behind the last pixel.
inline int64_t strip_stride(int width) {
    return (int64_t{width} * kChannels + 1 + kStripAlignment - 1) / kStripAlignment * kStripAlignment;
}

Windows windows_of(const AxisShape& axis);

// Adds what `shrink_rows` reads where it does not go value by value.
void add_blocks(Windows& windows, int picture_width);

// Rows `first` to `last` of the picture -> the same rows of a strip, from `first` on. Value by value, as the CUDA
// kernels go, where the windows have no blocks.
void shrink_rows(const Picture& picture, int left, const Windows& windows, const uint8_t colour[3], int first, int last,
                 uint8_t* strip);

// Rows `first` to `last` of the result from the strip, whose first row is picture row `top`. `plain` goes value by value.
void shrink_columns(const uint8_t* strip, const Windows& windows, const uint8_t colour[3], int first, int last,
                    const Result& result, bool plain);

}  // namespace sdrpn
