// For x86-64 with AVX-512 and VNNI: compiled for it, and called only where the processor has it. Everything has internal
// linkage, so that the linker cannot use code compiled for it in other files.
#include <immintrin.h>

#include <cstring>
#include <limits>

#include "products.h"

namespace sdrpn {
namespace {

const uint8_t* tile_of(const Tiles& matrix, int number) { return matrix.bytes + number * matrix.tile_bytes; }

const uint16_t* words_of(const uint8_t* bytes) { return reinterpret_cast<const uint16_t*>(bytes); }

__m512 floats_of(const uint16_t* halves) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves)));
}

// Those of the numbers that are left.
__mmask16 lanes_of(int left) { return static_cast<__mmask16>(left >= kTile ? 0xffff : (1 << left) - 1); }

void store(const Part& part, int row, int tile, __m512 values) {
    const int left = part.matrix.columns - tile * kTile;
    _mm512_mask_storeu_ps(part.out + static_cast<int64_t>(row) * part.matrix.columns + tile * kTile, lanes_of(left), values);
}

// Four codes of a row, for each column.
__m512i four_of(const int8_t* codes) {
    int32_t four;
    __builtin_memcpy(&four, codes, sizeof four);
    return _mm512_set1_epi32(four);
}

void code(const float* numbers, int count, int8_t* codes, float& scale, int32_t& sum) {
    __m512 largest = _mm512_setzero_ps();
    __mmask16 strange = 0;
    for (int i = 0; i < count; i += 16) {
        const __m512 size = _mm512_abs_ps(_mm512_maskz_loadu_ps(lanes_of(count - i), numbers + i));
        largest = _mm512_max_ps(largest, size);
        strange |= _mm512_cmp_ps_mask(size, _mm512_set1_ps(std::numeric_limits<float>::max()), _CMP_NLE_UQ);
    }
    const float most = _mm512_reduce_max_ps(largest);
    sum = 0;
    if (strange != 0 || most < kLeast) {
        std::memset(codes, 0, count);
        scale = strange == 0 ? 0.0f : std::numeric_limits<float>::quiet_NaN();
        return;
    }
    scale = most / 127.0f;
    const __m512 inverse = _mm512_set1_ps(127.0f / most);
    const __m512i bound = _mm512_set1_epi32(127), lower = _mm512_set1_epi32(-127);
    __m512i total = _mm512_setzero_si512();
    for (int i = 0; i < count; i += 16) {
        const __mmask16 there = lanes_of(count - i);
        const __m512 wide = _mm512_mul_ps(_mm512_maskz_loadu_ps(there, numbers + i), inverse);
        const __m512i nearest = _mm512_max_epi32(_mm512_min_epi32(_mm512_cvtps_epi32(wide), bound), lower);
        total = _mm512_add_epi32(total, nearest);
        _mm512_mask_cvtepi32_storeu_epi8(codes + i, there, nearest);
    }
    sum = _mm512_reduce_add_epi32(total);
}

template <int kRows>
void int4_rows(const Part& part, const CodedRows& rows) {
    const Tiles& matrix = part.matrix;
    const int blocks = matrix.inputs / matrix.block, steps = matrix.block / kStep;
    const __m512i lower = _mm512_set1_epi8(15);
    for (int number = part.first; number < part.last; ++number) {
        const uint8_t* tile = tile_of(matrix, number);
        __m512 result[kRows];
        for (auto& each : result) each = _mm512_setzero_ps();
        for (int block = 0; block < blocks; ++block) {
            __m512i even[kRows], odd[kRows];
            for (int row = 0; row < kRows; ++row) {
                even[row] = _mm512_set1_epi32(-8 * rows.sums[static_cast<int64_t>(row) * blocks + block]);
                odd[row] = _mm512_setzero_si512();
            }
            const uint8_t* at = tile + codes_at(matrix, block);
            const uint16_t* scales = words_of(tile + scales_at(matrix, block));
            for (int step = 0; step < steps; ++step, at += 64) {
                const __m512i both = _mm512_load_si512(at);
                const __m512i first = _mm512_and_si512(both, lower);
                const __m512i second = _mm512_and_si512(_mm512_srli_epi16(both, 4), lower);
                for (int row = 0; row < kRows; ++row) {
                    const int8_t* left = rows.codes + static_cast<int64_t>(row) * matrix.inputs +
                                         static_cast<int64_t>(block) * matrix.block + step * kStep;
                    even[row] = _mm512_dpbusd_epi32(even[row], first, four_of(left));
                    odd[row] = _mm512_dpbusd_epi32(odd[row], second, four_of(left + 4));
                }
            }
            const __m512 scale = floats_of(scales);
            for (int row = 0; row < kRows; ++row) {
                const __m512 sum = _mm512_cvtepi32_ps(_mm512_add_epi32(even[row], odd[row]));
                const __m512 left = _mm512_set1_ps(rows.scales[static_cast<int64_t>(row) * blocks + block]);
                result[row] = _mm512_fmadd_ps(_mm512_mul_ps(sum, left), scale, result[row]);
            }
        }
        for (int row = 0; row < kRows; ++row) store(part, row, number, result[row]);
    }
}

template <int kRows>
void int8_rows(const Part& part, const CodedRows& rows) {
    const Tiles& matrix = part.matrix;
    const int blocks = matrix.inputs / matrix.block, steps = matrix.block / 4;
    for (int number = part.first; number < part.last; ++number) {
        const uint8_t* tile = tile_of(matrix, number);
        __m512 result[kRows];
        for (auto& each : result) each = _mm512_setzero_ps();
        for (int block = 0; block < blocks; ++block) {
            __m512i sums[kRows];
            for (int row = 0; row < kRows; ++row) {
                sums[row] = _mm512_set1_epi32(-128 * rows.sums[static_cast<int64_t>(row) * blocks + block]);
            }
            const uint8_t* at = tile + codes_at(matrix, block);
            const uint16_t* scales = words_of(tile + scales_at(matrix, block));
            for (int step = 0; step < steps; ++step, at += 64) {
                const __m512i codes = _mm512_load_si512(at);
                for (int row = 0; row < kRows; ++row) {
                    const int8_t* left = rows.codes + static_cast<int64_t>(row) * matrix.inputs +
                                         static_cast<int64_t>(block) * matrix.block + step * 4;
                    sums[row] = _mm512_dpbusd_epi32(sums[row], codes, four_of(left));
                }
            }
            const __m512 scale = floats_of(scales);
            for (int row = 0; row < kRows; ++row) {
                const __m512 left = _mm512_set1_ps(rows.scales[static_cast<int64_t>(row) * blocks + block]);
                const __m512 sum = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[row]), left);
                result[row] = _mm512_fmadd_ps(sum, scale, result[row]);
            }
        }
        for (int row = 0; row < kRows; ++row) store(part, row, number, result[row]);
    }
}

template <int kRows>
void half_rows(const Part& part, const float* rows) {
    const Tiles& matrix = part.matrix;
    for (int number = part.first; number < part.last; ++number) {
        const uint16_t* numbers = words_of(tile_of(matrix, number));
        __m512 sums[kRows][4];
        for (auto& of_row : sums) {
            for (auto& each : of_row) each = _mm512_setzero_ps();
        }
        const auto add = [&](int input, int quarter) {
            const __m512 column = floats_of(numbers + static_cast<int64_t>(input) * kTile);
            for (int row = 0; row < kRows; ++row) {
                const __m512 left = _mm512_set1_ps(rows[static_cast<int64_t>(row) * matrix.inputs + input]);
                sums[row][quarter] = _mm512_fmadd_ps(column, left, sums[row][quarter]);
            }
        };
        int input = 0;
        for (; input + 4 <= matrix.inputs; input += 4) {
            for (int quarter = 0; quarter < 4; ++quarter) add(input + quarter, quarter);
        }
        for (int quarter = 0; input + quarter < matrix.inputs; ++quarter) add(input + quarter, quarter);
        for (int row = 0; row < kRows; ++row) {
            const __m512* four = sums[row];
            store(part, row, number, _mm512_add_ps(_mm512_add_ps(four[0], four[1]), _mm512_add_ps(four[2], four[3])));
        }
    }
}

void int4(const Part& part, const CodedRows& rows) {
    void (*const by_count[])(const Part&, const CodedRows&) = {int4_rows<1>, int4_rows<2>, int4_rows<3>, int4_rows<4>};
    by_count[part.rows - 1](part, rows);
}

void int8(const Part& part, const CodedRows& rows) {
    void (*const by_count[])(const Part&, const CodedRows&) = {int8_rows<1>, int8_rows<2>, int8_rows<3>, int8_rows<4>};
    by_count[part.rows - 1](part, rows);
}

void half(const Part& part, const float* rows) {
    void (*const by_count[])(const Part&, const float*) = {half_rows<1>, half_rows<2>, half_rows<3>, half_rows<4>};
    by_count[part.rows - 1](part, rows);
}

}  // namespace

ProductLoops avx512_product_loops() { return {code, int4, int8, half}; }

}  // namespace sdrpn
