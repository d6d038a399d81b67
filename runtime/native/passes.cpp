// Preparation for the loops: windows in their layout, and the choice of loops for this processor.
#include "passes.h"

#include <algorithm>

#include "loops.h"

namespace sdrpn {
namespace {

// The fastest loops that this processor supports.
Loops best_loops() {
#ifdef SDRPN_HAS_AVX2_LOOPS
    static const bool has_avx2 = __builtin_cpu_supports("avx2");
    if (has_avx2) return avx2_loops();
#endif
#ifdef SDRPN_HAS_NEON_LOOPS
    return neon_loops();
#else
    return plain_loops();
#endif
}

template <typename Value>
void write_planes(const uint8_t* bytes, int row, const Result& result) {
    const auto* values = static_cast<const Value*>(result.values);
    const int64_t plane = int64_t{result.width} * result.height;
    Value* to = static_cast<Value*>(result.data) + int64_t{row} * result.width;
    for (int x = 0; x < result.width; ++x, bytes += kChannels, ++to) {
        for (int c = 0; c < kChannels; ++c) to[c * plane] = values[c * 256 + bytes[c]];
    }
}

}  // namespace

Windows windows_of(const AxisShape& axis) {
    Windows made;
    // No window is larger than the picture.
    made.limit = std::max(1, std::min(window_limit(axis), axis.end - axis.begin));
    made.windows.resize(axis.result);
    made.outside.resize(axis.result);
    made.weights.assign(static_cast<size_t>(axis.result) * made.limit, 0);
    for (int i = 0; i < axis.result; ++i) {
        int32_t* weights = made.weights.data() + static_cast<size_t>(i) * made.limit;
        made.windows[i] = window_weights(axis, i, weights, &made.outside[i]);
    }
    return made;
}

void add_blocks(Windows& windows, int picture_width) {
    const BlockShape shape = best_loops().block;
    if (shape.pixels == 0) return;
    const auto blocks_of = [&](int pixels) { return (pixels + shape.pixels - 1) / shape.pixels; };
    int longest = 0;
    for (const Window& window : windows.windows) longest = std::max(longest, window.count);
    if (blocks_of(longest) * shape.pixels + shape.spare > picture_width) return;
    Blocks& made = windows.blocks;
    made.limit = blocks_of(longest) * shape.weights;
    made.weights.assign(windows.windows.size() * made.limit, 0);
    for (size_t x = 0; x < windows.windows.size(); ++x) {
        const Window window = windows.windows[x];
        const int blocks = blocks_of(window.count);
        // At the end of a row a block begins earlier, with leading zero weights.
        const int first = std::min(window.first, picture_width - blocks * shape.pixels);
        made.of.push_back({first, blocks});
        for (int i = 0; i < window.count; ++i) {
            const int pixel = window.first - first + i;
            int32_t* block = made.weights.data() + x * made.limit + pixel / shape.pixels * shape.weights;
            shape.put_weight(block, pixel % shape.pixels, windows.weights[x * windows.limit + i]);
        }
    }
}

void shrink_rows(const Picture& picture, int left, const Windows& windows, const uint8_t colour[3], int first, int last,
                 uint8_t* strip) {
    const Loops loops = windows.blocks.of.empty() ? plain_loops() : best_loops();
    const int64_t to_stride = strip_stride(static_cast<int>(windows.windows.size()));
    for (int row = first; row < last; row += kRowsAtOnce) {
        const uint8_t* from = picture.data + row * picture.row_stride + int64_t{left} * kChannels;
        const Lines lines{from, picture.row_stride, std::min(kRowsAtOnce, last - row)};
        loops.rows({lines, strip + (row - first) * to_stride, to_stride}, windows, colour);
    }
}

void column_row(const ColumnPass& pass, const Windows& windows, int row, uint8_t* to) {
    const Window window = windows.windows[row];
    const int32_t* weights = windows.weights.data() + int64_t{row} * windows.limit;
    const int32_t outside = windows.outside[row];
    const Lines lines{pass.data + window.first * pass.stride, pass.stride, window.count};
    const Loops plain = plain_loops(), best = pass.plain ? plain : best_loops();
    // Vectors take whole blocks of bytes; the rest of a row that ends within one is done byte by byte.
    const int64_t whole = pass.plain ? 0 : pass.bytes / kStripAlignment * kStripAlignment;
    best.column(lines, whole, weights, pass.outside_row, outside, to);
    if (whole == pass.bytes) return;
    const Lines rest{lines.data + whole, lines.stride, lines.count};
    plain.column(rest, pass.bytes - whole, weights, pass.outside_row + whole, outside, to + whole);
}

void shrink_columns(const uint8_t* strip, const Windows& windows, const uint8_t colour[3], int first, int last,
                    const Result& result, bool plain) {
    const int64_t stride = strip_stride(result.width);
    std::vector<uint8_t> bytes(stride), outside_row(stride);
    for (int64_t at = 0; at < stride; ++at) outside_row[at] = colour[at % kChannels];
    const ColumnPass pass{strip, stride, stride, outside_row.data(), plain};
    for (int row = first; row < last; ++row) {
        column_row(pass, windows, row, bytes.data());
        if (result.value_bytes == 4) {
            write_planes<float>(bytes.data(), row, result);
        } else {
            write_planes<uint16_t>(bytes.data(), row, result);
        }
    }
}

}  // namespace sdrpn
