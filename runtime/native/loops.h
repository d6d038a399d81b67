// The inner loops, in one version per instruction set; all give the same bytes.
#pragma once

#include "passes.h"

namespace sdrpn {

// Rows of bytes, `stride` apart.
struct Lines {
    const uint8_t* data;
    int64_t stride;
    int count;
};

// Up to kRowsAtOnce rows of the picture, and as many rows of a strip. A row of a strip has space for a fourth byte
// after its last pixel.
struct Rows {
    Lines from;
    uint8_t* to;
    int64_t to_stride;
};

// The same as pointers, with the last row in place of missing ones.
struct RowPointers {
    const uint8_t* from[kRowsAtOnce];
    uint8_t* to[kRowsAtOnce];
};

static inline RowPointers pointers_to(const Rows& rows) {
    RowPointers made;
    for (int row = 0; row < kRowsAtOnce; ++row) {
        const int there = row < rows.from.count ? row : rows.from.count - 1;
        made.from[row] = rows.from.data + there * rows.from.stride;
        made.to[row] = rows.to + there * rows.to_stride;
    }
    return made;
}

// How `rows` reads row windows: in whole blocks of pixels.
struct BlockShape {
    int pixels;   // 0: not in blocks
    int weights;  // number of weights per block
    int spare;    // pixels that a row must have beyond the longest window, in whole blocks
    void (*put_weight)(int32_t* block, int pixel, int32_t weight);
};

struct Loops {
    BlockShape block;
    void (*rows)(const Rows& rows, const Windows& windows, const uint8_t colour[3]);
    // The rows in one window, and one row of the colour outside -> one row of the result. `bytes` of each are read and
    // written: a multiple of kStripAlignment, except by the plain loop, which takes any number.
    void (*column)(const Lines& lines, int64_t bytes, const int32_t* weights, const uint8_t* outside_row,
                   int32_t outside, uint8_t* to);
};

Loops plain_loops();  // value by value, like the CUDA kernels
#ifdef SDRPN_HAS_AVX2_LOOPS
Loops avx2_loops();
#endif
#ifdef SDRPN_HAS_NEON_LOOPS
Loops neon_loops();
#endif

}  // namespace sdrpn
