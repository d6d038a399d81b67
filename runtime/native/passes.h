// The two passes over one box on the CPU: rows to a strip of bytes, columns of the strip to the normalised result.
#pragma once

#include <cstdint>
#include <vector>

#include "resample.h"

namespace sdrpn {

// A picture in memory: interleaved bytes R, G, B, with `row_stride` bytes from row to row.
struct Picture {
    const uint8_t* data;
    int64_t row_stride;
    int width;
    int height;
};

// The row windows of one axis in the layout of this processor's loops: whole blocks of pixels inside the picture.
struct Blocks {
    int limit = 0;           // entries of `weights` per position
    std::vector<Window> of;  // first pixel, number of blocks; empty where the picture is too narrow for blocks
    std::vector<int32_t> weights;
};

// The windows of all result positions of one axis. `weights` has `limit` entries per position, unused ones are zero.
struct Windows {
    int limit = 0;
    std::vector<Window> windows;
    std::vector<int32_t> weights;
    std::vector<int32_t> outside;
    Blocks blocks;  // only for rows
};

// The destination of a result: `values` maps each byte to its value, 256 per channel.
struct Result {
    void* data;
    const void* values;
    int value_bytes;  // 4: float32, 2: float16
    int width;
    int height;
};

constexpr int kRowsAtOnce = 4;
constexpr int kStripAlignment = 32;

// Bytes from row to row of a strip, with space for one byte after the last pixel.
inline int64_t strip_stride(int width) {
    return (int64_t{width} * kChannels + 1 + kStripAlignment - 1) / kStripAlignment * kStripAlignment;
}

Windows windows_of(const AxisShape& axis);

// Adds the block layout that `shrink_rows` reads where it does not work value by value.
void add_blocks(Windows& windows, int picture_width);

// Rows `first` to `last` of the picture -> the same rows of a strip, from `first` on. Value by value, like the CUDA
// kernels, where the windows have no blocks.
void shrink_rows(const Picture& picture, int left, const Windows& windows, const uint8_t colour[3], int first, int last,
                 uint8_t* strip);

// Rows of bytes that are resized by columns: `stride` apart, `bytes` of each. Reads no byte beyond these.
struct ColumnPass {
    const uint8_t* data;
    int64_t stride;
    int64_t bytes;
    const uint8_t* outside_row;  // the colour outside the picture, again and again: at least `bytes`
    bool plain;                  // value by value
};

// Row `row` of the result of such a pass.
void column_row(const ColumnPass& pass, const Windows& windows, int row, uint8_t* to);

// Rows `first` to `last` of the result from the strip, whose first row is picture row `top`. `plain`: value by value.
void shrink_columns(const uint8_t* strip, const Windows& windows, const uint8_t colour[3], int first, int last,
                    const Result& result, bool plain);

}  // namespace sdrpn
