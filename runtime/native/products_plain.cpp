// Number by number: what the other versions are compared with, and what runs where there is none.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "half.h"
#include "products.h"

namespace sdrpn {
namespace {

void code(const float* numbers, int count, int8_t* codes, float& scale, int32_t& sum) {
    float most = 0.0f;
    bool finite = true;
    for (int i = 0; i < count; ++i) {
        const float size = std::fabs(numbers[i]);
        most = std::max(most, size);
        finite &= size <= std::numeric_limits<float>::max();
    }
    sum = 0;
    if (!finite || most < kLeast) {
        std::memset(codes, 0, count);
        scale = finite ? 0.0f : std::numeric_limits<float>::quiet_NaN();
        return;
    }
    scale = most / 127.0f;
    const float inverse = 127.0f / most;
    for (int i = 0; i < count; ++i) {
        const int nearest = static_cast<int>(std::nearbyintf(numbers[i] * inverse));
        codes[i] = static_cast<int8_t>(std::clamp(nearest, -127, 127));
        sum += codes[i];
    }
}

// The sum of one block: `code_at` gives a code of the matrix, from 0 on, `offset` what was added to it.
template <typename CodeAt>
void coded(const Part& part, const CodedRows& rows, int offset, CodeAt code_at) {
    const Tiles& matrix = part.matrix;
    const int blocks = matrix.inputs / matrix.block;
    for (int row = 0; row < part.rows; ++row) {
        for (int column = part.first * kTile; column < std::min(part.last * kTile, matrix.columns); ++column) {
            const uint8_t* tile = matrix.bytes + column / kTile * matrix.tile_bytes;
            float result = 0.0f;
            for (int block = 0; block < blocks; ++block) {
                const int64_t at = static_cast<int64_t>(row) * blocks + block;
                const uint8_t* codes = tile + codes_at(matrix, block);
                const auto* scales = reinterpret_cast<const uint16_t*>(tile + scales_at(matrix, block));
                const int8_t* left = rows.codes + static_cast<int64_t>(row) * matrix.inputs +
                                     static_cast<int64_t>(block) * matrix.block;
                int32_t sum = -offset * rows.sums[at];
                for (int input = 0; input < matrix.block; ++input) {
                    sum += code_at(codes, column % kTile, input) * left[input];
                }
                const float scale = float_of(scales[column % kTile]);
                result = std::fma(static_cast<float>(sum) * rows.scales[at], scale, result);
            }
            part.out[static_cast<int64_t>(row) * matrix.columns + column] = result;
        }
    }
}

void int4(const Part& part, const CodedRows& rows) {
    coded(part, rows, 8, [](const uint8_t* codes, int column, int input) {
        const uint8_t both = codes[static_cast<int64_t>(input / kStep) * 64 + column * 4 + input % 4];
        return static_cast<int32_t>(input % kStep < 4 ? both & 15 : both >> 4);
    });
}

void int8(const Part& part, const CodedRows& rows) {
    coded(part, rows, 128, [](const uint8_t* codes, int column, int input) {
        return static_cast<int32_t>(codes[static_cast<int64_t>(input / 4) * 64 + column * 4 + input % 4]);
    });
}

void half(const Part& part, const float* rows) {
    const Tiles& matrix = part.matrix;
    for (int row = 0; row < part.rows; ++row) {
        for (int column = part.first * kTile; column < std::min(part.last * kTile, matrix.columns); ++column) {
            const auto* numbers =
                reinterpret_cast<const uint16_t*>(matrix.bytes + column / kTile * matrix.tile_bytes);
            float sums[4] = {};
            for (int input = 0; input < matrix.inputs; ++input) {
                float& sum = sums[input % 4];
                sum = std::fma(float_of(numbers[static_cast<int64_t>(input) * kTile + column % kTile]),
                               rows[static_cast<int64_t>(row) * matrix.inputs + input], sum);
            }
            part.out[static_cast<int64_t>(row) * matrix.columns + column] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
        }
    }
}

}  // namespace

ProductLoops plain_product_loops() { return {code, int4, int8, half}; }

}  // namespace sdrpn
