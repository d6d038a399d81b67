// For x86-64 with AVX2, FMA and F16C: compiled for it, and called only where the processor has it. Everything has internal
// linkage, so that the linker cannot use code compiled for it in other files.
#include <immintrin.h>

#include <cstring>
#include <limits>

#include "products.h"

namespace sdrpn {
namespace {

constexpr int kLanes = 8;                 // columns in a register
constexpr int kHalves = kTile / kLanes;   // registers for a tile

__m256i bytes_of(const uint8_t* from) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(from)); }

const uint16_t* words_of(const uint8_t* bytes) { return reinterpret_cast<const uint16_t*>(bytes); }

__m256 floats_of(const uint16_t* halves) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(halves)));
}

void store(const Part& part, int row, int first_column, __m256 values) {
    const int left = part.matrix.columns - first_column;
    float* to = part.out + static_cast<int64_t>(row) * part.matrix.columns + first_column;
    if (left >= kLanes) {
        _mm256_storeu_ps(to, values);
    } else if (left > 0) {
        float all[kLanes];
        _mm256_storeu_ps(all, values);
        for (int lane = 0; lane < left; ++lane) to[lane] = all[lane];
    }
}

// Four codes of a row, for each column.
__m256i four_of(const int8_t* codes) {
    int32_t four;
    __builtin_memcpy(&four, codes, sizeof four);
    return _mm256_set1_epi32(four);
}

// The sums of four products: codes from 0 to 15, so that sums of two fit in 16 bits.
__m256i sums_of(__m256i codes, __m256i left) {
    return _mm256_madd_epi16(_mm256_maddubs_epi16(codes, left), _mm256_set1_epi16(1));
}

void code(const float* numbers, int count, int8_t* codes, float& scale, int32_t& sum) {
    const __m256 sign = _mm256_set1_ps(-0.0f), finite = _mm256_set1_ps(std::numeric_limits<float>::max());
    // A block is a multiple of 4 numbers long; zeros behind it change nothing.
    const auto load = [&](int i) {
        const __m128 first = _mm_loadu_ps(numbers + i);
        return _mm256_set_m128(i + 4 < count ? _mm_loadu_ps(numbers + i + 4) : _mm_setzero_ps(), first);
    };
    __m256 largest = _mm256_setzero_ps(), strange = _mm256_setzero_ps();
    for (int i = 0; i < count; i += kLanes) {
        const __m256 size = _mm256_andnot_ps(sign, load(i));
        largest = _mm256_max_ps(largest, size);
        strange = _mm256_or_ps(strange, _mm256_cmp_ps(size, finite, _CMP_NLE_UQ));
    }
    float each[kLanes];
    _mm256_storeu_ps(each, largest);
    float most = 0.0f;
    for (const float size : each) most = size > most ? size : most;
    const bool usual = _mm256_movemask_ps(strange) == 0;
    sum = 0;
    if (!usual || most < kLeast) {
        std::memset(codes, 0, count);
        scale = usual ? 0.0f : std::numeric_limits<float>::quiet_NaN();
        return;
    }
    scale = most / 127.0f;
    const __m256 inverse = _mm256_set1_ps(127.0f / most);
    const __m256i bound = _mm256_set1_epi32(127), lower = _mm256_set1_epi32(-127);
    __m256i total = _mm256_setzero_si256();
    for (int i = 0; i < count; i += kLanes) {
        const __m256i wide = _mm256_cvtps_epi32(_mm256_mul_ps(load(i), inverse));
        const __m256i nearest = _mm256_max_epi32(_mm256_min_epi32(wide, bound), lower);
        total = _mm256_add_epi32(total, nearest);
        const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(nearest), _mm256_extracti128_si256(nearest, 1));
        const __m128i bytes = _mm_packs_epi16(words, words);
        std::memcpy(codes + i, &bytes, count - i < kLanes ? count - i : kLanes);
    }
    int32_t sums[kLanes];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums), total);
    for (const int32_t part : sums) sum += part;
}

struct Sums {
    __m256i low, high;
};

// `bits`: 4, where the upper half of a byte is of another input, or 8, where it is 16 times as much.
template <int kRows, int kBits>
void coded_rows(const Part& part, const CodedRows& rows) {
    constexpr int kInputs = kBits == 4 ? kStep : 4;  // in 64 bytes
    constexpr int kOffset = kBits == 4 ? 8 : 128;
    const Tiles& matrix = part.matrix;
    const int blocks = matrix.inputs / matrix.block, steps = matrix.block / kInputs;
    const __m256i lower = _mm256_set1_epi8(15);
    for (int number = part.first * kHalves; number < part.last * kHalves; ++number) {
        const int tile = number / kHalves, half = number % kHalves;
        const uint8_t* from = matrix.bytes + tile * matrix.tile_bytes;
        __m256 result[kRows];
        for (auto& each : result) each = _mm256_setzero_ps();
        for (int block = 0; block < blocks; ++block) {
            Sums sums[kRows];
            for (int row = 0; row < kRows; ++row) {
                sums[row].low = _mm256_set1_epi32(-kOffset * rows.sums[static_cast<int64_t>(row) * blocks + block]);
                sums[row].high = _mm256_setzero_si256();
            }
            const uint8_t* at = from + codes_at(matrix, block) + half * 32;
            for (int step = 0; step < steps; ++step, at += 64) {
                const __m256i both = bytes_of(at);
                const __m256i first = _mm256_and_si256(both, lower);
                const __m256i second = _mm256_and_si256(_mm256_srli_epi16(both, 4), lower);
                for (int row = 0; row < kRows; ++row) {
                    const int8_t* left = rows.codes + static_cast<int64_t>(row) * matrix.inputs +
                                         static_cast<int64_t>(block) * matrix.block + step * kInputs;
                    const __m256i with_first = four_of(left);
                    const __m256i with_second = kBits == 4 ? four_of(left + 4) : with_first;
                    sums[row].low = _mm256_add_epi32(sums[row].low, sums_of(first, with_first));
                    sums[row].high = _mm256_add_epi32(sums[row].high, sums_of(second, with_second));
                }
            }
            const __m256 scale = floats_of(words_of(from + scales_at(matrix, block)) + half * kLanes);
            for (int row = 0; row < kRows; ++row) {
                const __m256i high = kBits == 4 ? sums[row].high : _mm256_slli_epi32(sums[row].high, 4);
                const __m256 sum = _mm256_cvtepi32_ps(_mm256_add_epi32(sums[row].low, high));
                const __m256 left = _mm256_set1_ps(rows.scales[static_cast<int64_t>(row) * blocks + block]);
                result[row] = _mm256_fmadd_ps(_mm256_mul_ps(sum, left), scale, result[row]);
            }
        }
        for (int row = 0; row < kRows; ++row) store(part, row, number * kLanes, result[row]);
    }
}

template <int kRows>
void half_rows(const Part& part, const float* rows) {
    const Tiles& matrix = part.matrix;
    for (int number = part.first * kHalves; number < part.last * kHalves; ++number) {
        const uint16_t* numbers =
            words_of(matrix.bytes + number / kHalves * matrix.tile_bytes) + number % kHalves * kLanes;
        __m256 sums[kRows][4];
        for (auto& of_row : sums) {
            for (auto& each : of_row) each = _mm256_setzero_ps();
        }
        const auto add = [&](int input, int quarter) {
            const __m256 column = floats_of(numbers + static_cast<int64_t>(input) * kTile);
            for (int row = 0; row < kRows; ++row) {
                const __m256 left = _mm256_set1_ps(rows[static_cast<int64_t>(row) * matrix.inputs + input]);
                sums[row][quarter] = _mm256_fmadd_ps(column, left, sums[row][quarter]);
            }
        };
        int input = 0;
        for (; input + 4 <= matrix.inputs; input += 4) {
            for (int quarter = 0; quarter < 4; ++quarter) add(input + quarter, quarter);
        }
        for (int quarter = 0; input + quarter < matrix.inputs; ++quarter) add(input + quarter, quarter);
        for (int row = 0; row < kRows; ++row) {
            const __m256* four = sums[row];
            store(part, row, number * kLanes,
                  _mm256_add_ps(_mm256_add_ps(four[0], four[1]), _mm256_add_ps(four[2], four[3])));
        }
    }
}

template <int kBits>
void coded(const Part& part, const CodedRows& rows) {
    void (*const by_count[])(const Part&, const CodedRows&) = {coded_rows<1, kBits>, coded_rows<2, kBits>,
                                                               coded_rows<3, kBits>, coded_rows<4, kBits>};
    by_count[part.rows - 1](part, rows);
}

void half(const Part& part, const float* rows) {
    void (*const by_count[])(const Part&, const float*) = {half_rows<1>, half_rows<2>, half_rows<3>, half_rows<4>};
    by_count[part.rows - 1](part, rows);
}

}  // namespace

ProductLoops avx2_product_loops() { return {code, coded<4>, coded<8>, half}; }

}  // namespace sdrpn
