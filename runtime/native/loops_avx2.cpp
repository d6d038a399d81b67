// For x86-64 with AVX2: compiled for it, and called only where the processor has it. Everything has internal linkage
// and no template is used, so that the linker cannot use code compiled for AVX2 in other files.
//
// One instruction multiplies 16-bit numbers and adds neighbours to 32 bits. So a weight is split into its low 15 bits
// and the rest; the two sums are combined at the end, which is exact, because 32-bit sums may wrap in between.
#include <immintrin.h>

#include "loops.h"

namespace sdrpn {
namespace {

constexpr int kLowBits = 15;
constexpr int32_t kLowMask = (1 << kLowBits) - 1;
constexpr int kBlockPixels = 4;
constexpr int kBlockWeights = 16;  // of 32 bits, each a pair: eight upper parts, eight lower parts

// A block's 12 bytes are loaded as 16. The other four precede it, or follow it at the start of a row.
constexpr int kLead = 4;
constexpr int kLeadPixels = 2;

int32_t pair_of(int32_t first, int32_t second) {
    return static_cast<int32_t>((static_cast<uint32_t>(first) & 0xffffu) | (static_cast<uint32_t>(second) << 16));
}

// A block is four pixels p, in 32-bit lanes the pairs (p0, p1) of R, G and B, nothing, (p2, p3) of R, G and B, nothing.
void put_weight(int32_t* block, int pixel, int32_t weight) {
    const auto with = [&](int32_t pair, int32_t part) {
        return pixel % 2 == 0 ? pair_of(part, pair >> 16) : pair_of(pair, part);
    };
    for (int lane = pixel / 2 * 4; lane < pixel / 2 * 4 + kChannels; ++lane) {
        block[lane] = with(block[lane], weight >> kLowBits);
        block[lane + 8] = with(block[lane + 8], weight & kLowMask);
    }
}

__m256i load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }

// The shuffle that makes 16-bit pairs of 16 bytes; the block starts at byte `lead`.
__m256i spread_from(int lead) {
    alignas(32) int8_t order[32];
    for (int i = 0; i < 32; ++i) {
        const int lane = i / 4, channel = lane % 4, pixel = lane / 4 * 2 + i % 4 / 2;
        const bool empty = channel == kChannels || i % 2 == 1;
        order[i] = static_cast<int8_t>(empty ? -1 : lead + pixel * kChannels + channel);
    }
    return load(order);
}

__m256i joined(__m256i upper, __m256i lower) {
    return _mm256_add_epi32(_mm256_slli_epi32(upper, kLowBits), lower);
}

// The sums of one window in each of four rows.
struct FourSums {
    __m256i upper[4] = {}, lower[4] = {};

    // `from` is where the window's blocks begin in each row.
    void add_blocks(const uint8_t* const from[4], int64_t offset, int blocks, const int32_t* weights, __m256i spread) {
        for (int i = 0; i < blocks; ++i, offset += kBlockPixels * kChannels, weights += kBlockWeights) {
            const __m256i upper_weights = load(weights), lower_weights = load(weights + 8);
            for (int row = 0; row < 4; ++row) {
                const auto* at = reinterpret_cast<const __m128i*>(from[row] + offset);
                const __m256i pairs = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128(at)), spread);
                upper[row] = _mm256_add_epi32(upper[row], _mm256_madd_epi16(pairs, upper_weights));
                lower[row] = _mm256_add_epi32(lower[row], _mm256_madd_epi16(pairs, lower_weights));
            }
        }
    }

    // Bytes of two neighbouring rows, in 32 bits each, the first row's in the lower half.
    __m256i pixels_of(int row, __m256i start) const {
        const __m256i first = joined(upper[row], lower[row]), second = joined(upper[row + 1], lower[row + 1]);
        const __m256i sums = _mm256_add_epi32(_mm256_permute2x128_si256(first, second, 0x20),
                                              _mm256_permute2x128_si256(first, second, 0x31));
        return _mm256_srai_epi32(_mm256_add_epi32(sums, start), kFractionBits);
    }
};

void put_pixel(uint8_t* to, int pixel) { memcpy(to, &pixel, sizeof pixel); }

void rows(const Rows& rows, const Windows& windows, const uint8_t colour[3]) {
    static_assert(kRowsAtOnce == 4);
    const auto [from, to] = pointers_to(rows);
    const Blocks& blocks = windows.blocks;
    const __m256i spread[2] = {spread_from(0), spread_from(kLead)};
    const __m128i colours = _mm_setr_epi32(colour[0], colour[1], colour[2], 0);
    const int width = static_cast<int>(blocks.of.size());
    for (int x = 0; x < width; ++x) {
        const Window block = blocks.of[x];
        const bool leads = block.first >= kLeadPixels;
        FourSums sums;
        sums.add_blocks(from, int64_t{block.first} * kChannels - (leads ? kLead : 0), block.count,
                        blocks.weights.data() + int64_t{x} * blocks.limit, spread[leads]);
        const __m128i outside = _mm_mullo_epi32(_mm_set1_epi32(windows.outside[x]), colours);
        const __m256i start = _mm256_broadcastsi128_si256(_mm_add_epi32(outside, _mm_set1_epi32(kHalf)));
        const __m256i words = _mm256_packs_epi32(sums.pixels_of(0, start), sums.pixels_of(2, start));
        const __m256i pixels = _mm256_packus_epi16(words, words);  // rows 0 and 2, then 1 and 3
        put_pixel(to[0] + x * kChannels, _mm256_extract_epi32(pixels, 0));
        put_pixel(to[1] + x * kChannels, _mm256_extract_epi32(pixels, 4));
        put_pixel(to[2] + x * kChannels, _mm256_extract_epi32(pixels, 1));
        put_pixel(to[3] + x * kChannels, _mm256_extract_epi32(pixels, 5));
    }
}

// The sums of 32 neighbouring columns.
struct ColumnSums {
    __m256i upper[4] = {};
    __m256i lower[4] = {_mm256_set1_epi32(kHalf), _mm256_set1_epi32(kHalf), _mm256_set1_epi32(kHalf),
                        _mm256_set1_epi32(kHalf)};

    void add_rows(__m256i first, __m256i second, int64_t two_weights) {
        const __m256i zero = _mm256_setzero_si256(), weights = _mm256_set1_epi64x(two_weights);
        const __m256i low = _mm256_unpacklo_epi8(first, second), high = _mm256_unpackhi_epi8(first, second);
        const __m256i words[4] = {_mm256_unpacklo_epi8(low, zero), _mm256_unpackhi_epi8(low, zero),
                                  _mm256_unpacklo_epi8(high, zero), _mm256_unpackhi_epi8(high, zero)};
        const __m256i upper_weights = _mm256_srai_epi32(weights, kLowBits);
        const __m256i lower_weights = _mm256_and_si256(weights, _mm256_set1_epi32(kLowMask));
        const __m256i upper_pairs = _mm256_packs_epi32(upper_weights, upper_weights);
        const __m256i lower_pairs = _mm256_packs_epi32(lower_weights, lower_weights);
        for (int part = 0; part < 4; ++part) {
            upper[part] = _mm256_add_epi32(upper[part], _mm256_madd_epi16(words[part], upper_pairs));
            lower[part] = _mm256_add_epi32(lower[part], _mm256_madd_epi16(words[part], lower_pairs));
        }
    }

    __m256i bytes() const {
        __m256i values[4];
        for (int part = 0; part < 4; ++part) {
            values[part] = _mm256_srai_epi32(joined(upper[part], lower[part]), kFractionBits);
        }
        // Packing restores the order that unpacking changed.
        return _mm256_packus_epi16(_mm256_packs_epi32(values[0], values[1]), _mm256_packs_epi32(values[2], values[3]));
    }
};

int64_t two_weights(const int32_t* weights) {
    int64_t two;
    memcpy(&two, weights, sizeof two);
    return two;
}

void column(const Lines& lines, int64_t bytes, const int32_t* weights, const uint8_t* outside_row, int32_t outside,
            uint8_t* to) {
    static_assert(kStripAlignment == 32);
    const int paired = lines.count / 2 * 2;
    const bool alone = lines.count > paired;
    const int32_t rest[2] = {alone ? weights[paired] : 0, outside};  // the last row, if unpaired, and the colour
    for (int64_t at = 0; at < bytes; at += 32) {
        const uint8_t* from = lines.data + at;
        ColumnSums sums;
        for (int i = 0; i < paired; i += 2, from += 2 * lines.stride) {
            sums.add_rows(load(from), load(from + lines.stride), two_weights(weights + i));
        }
        if (alone || outside != 0) {
            const __m256i colours = load(outside_row + at);
            sums.add_rows(alone ? load(from) : colours, colours, two_weights(rest));
        }
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + at), sums.bytes());
    }
}

}  // namespace

Loops avx2_loops() { return {{kBlockPixels, kBlockWeights, kLeadPixels + 1, put_weight}, rows, column}; }

}  // namespace sdrpn
