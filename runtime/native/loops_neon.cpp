// For aarch64: every such processor has NEON, which loads R, G and B of neighbouring pixels into separate registers.
#include <arm_neon.h>

#include "loops.h"

namespace sdrpn {
namespace {

constexpr int kBlockPixels = 8;

void put_weight(int32_t* block, int pixel, int32_t weight) { block[pixel] = weight; }

int32x4_t widened(uint16x4_t words) { return vreinterpretq_s32_u32(vmovl_u16(words)); }

// The sums of one window in one row: every fourth value of a channel.
struct PixelSums {
    int32x4_t of[kChannels] = {vdupq_n_s32(0), vdupq_n_s32(0), vdupq_n_s32(0)};

    void add(uint8x8x3_t pixels, int32x4_t first_weights, int32x4_t last_weights) {
        for (int c = 0; c < kChannels; ++c) {
            const uint16x8_t words = vmovl_u8(pixels.val[c]);
            of[c] = vmlaq_s32(of[c], widened(vget_low_u16(words)), first_weights);
            of[c] = vmlaq_s32(of[c], widened(vget_high_u16(words)), last_weights);
        }
    }

    // Three bytes, and one unused byte.
    uint32_t bytes(int32x4_t start) const {
        const int32x4_t sums = vpaddq_s32(vpaddq_s32(of[0], of[1]), vpaddq_s32(of[2], of[2]));
        const uint16x4_t words = vqmovun_s32(vshrq_n_s32(vaddq_s32(sums, start), kFractionBits));
        return vget_lane_u32(vreinterpret_u32_u8(vqmovn_u16(vcombine_u16(words, words))), 0);
    }
};

void rows(const Rows& rows, const Windows& windows, const uint8_t colour[3]) {
    const RowPointers row_pointers = pointers_to(rows);
    const Blocks& blocks = windows.blocks;
    const int width = static_cast<int>(blocks.of.size());
    for (int x = 0; x < width; ++x) {
        const int32_t* weights = blocks.weights.data() + int64_t{x} * blocks.limit;
        int64_t offset = int64_t{blocks.of[x].first} * kChannels;
        PixelSums sums[kRowsAtOnce];
        for (int i = 0; i < blocks.of[x].count; ++i, weights += kBlockPixels, offset += kBlockPixels * kChannels) {
            const int32x4_t first_weights = vld1q_s32(weights), last_weights = vld1q_s32(weights + 4);
            for (int row = 0; row < kRowsAtOnce; ++row) {
                sums[row].add(vld3_u8(row_pointers.from[row] + offset), first_weights, last_weights);
            }
        }
        int32_t start[4] = {};
        for (int c = 0; c < kChannels; ++c) start[c] = sum_start(windows.outside[x], colour[c]);
        for (int row = 0; row < kRowsAtOnce; ++row) {
            const uint32_t bytes = sums[row].bytes(vld1q_s32(start));
            memcpy(row_pointers.to[row] + x * kChannels, &bytes, sizeof bytes);
        }
    }
}

// The sums of 16 neighbouring columns.
struct ColumnSums {
    int32x4_t of[4] = {vdupq_n_s32(kHalf), vdupq_n_s32(kHalf), vdupq_n_s32(kHalf), vdupq_n_s32(kHalf)};

    void add_row(uint8x16_t bytes, int32_t weight) {
        const uint16x8_t low = vmovl_u8(vget_low_u8(bytes)), high = vmovl_u8(vget_high_u8(bytes));
        of[0] = vmlaq_n_s32(of[0], widened(vget_low_u16(low)), weight);
        of[1] = vmlaq_n_s32(of[1], widened(vget_high_u16(low)), weight);
        of[2] = vmlaq_n_s32(of[2], widened(vget_low_u16(high)), weight);
        of[3] = vmlaq_n_s32(of[3], widened(vget_high_u16(high)), weight);
    }

    uint8x16_t bytes() const {
        uint16x4_t words[4];
        for (int part = 0; part < 4; ++part) words[part] = vqmovun_s32(vshrq_n_s32(of[part], kFractionBits));
        return vcombine_u8(vqmovn_u16(vcombine_u16(words[0], words[1])), vqmovn_u16(vcombine_u16(words[2], words[3])));
    }
};

void column(const Lines& lines, int64_t bytes, const int32_t* weights, const uint8_t* outside_row, int32_t outside,
            uint8_t* to) {
    static_assert(kStripAlignment % 16 == 0);
    for (int64_t at = 0; at < bytes; at += 16) {
        ColumnSums sums;
        for (int i = 0; i < lines.count; ++i) sums.add_row(vld1q_u8(lines.data + i * lines.stride + at), weights[i]);
        if (outside != 0) sums.add_row(vld1q_u8(outside_row + at), outside);
        vst1q_u8(to + at, sums.bytes());
    }
}

}  // namespace

Loops neon_loops() { return {{kBlockPixels, kBlockPixels, 0, put_weight}, rows, column}; }

}  // namespace sdrpn
