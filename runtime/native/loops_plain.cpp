// Value by value: the arithmetic of the CUDA kernels, for comparison, for other processors, and for narrow pictures.
#include "loops.h"

namespace sdrpn {
namespace {

void rows(const Rows& rows, const Windows& windows, const uint8_t colour[3]) {
    const int width = static_cast<int>(windows.windows.size());
    for (int row = 0; row < rows.from.count; ++row) {
        uint8_t* to = rows.to + row * rows.to_stride;
        for (int x = 0; x < width; ++x) {
            const Window window = windows.windows[x];
            const uint8_t* from = rows.from.data + row * rows.from.stride + int64_t{window.first} * kChannels;
            const int32_t* weights = windows.weights.data() + int64_t{x} * windows.limit;
            for (int c = 0; c < kChannels; ++c) {
                const int32_t start = sum_start(windows.outside[x], colour[c]);
                *to++ = settle(window_sum(from + c, kChannels, weights, window.count, start));
            }
        }
    }
}

void column(const Lines& lines, int64_t bytes, const int32_t* weights, const uint8_t* outside_row, int32_t outside,
            uint8_t* to) {
    for (int64_t at = 0; at < bytes; ++at) {
        const int32_t start = sum_start(outside, outside_row[at]);
        to[at] = settle(window_sum(lines.data + at, lines.stride, weights, lines.count, start));
    }
}

}  // namespace

Loops plain_loops() { return {{}, rows, column}; }

}  // namespace sdrpn
