#include "products.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

#include "instructions.h"
#include "team.h"

namespace sdrpn {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kHugePage = size_t{2} << 20;
constexpr int kTasksPerThread = 4;  // so that a thread that is held up leaves its share to the others

template <typename Value>
std::unique_ptr<Value, FreeBytes> zeros(int64_t count) {
    const size_t alignment = count * sizeof(Value) < 2 * kHugePage ? kAlignment : kHugePage;
    const size_t bytes = (count * sizeof(Value) + kAlignment - 1) / kAlignment * kAlignment;
    void* made = nullptr;
    if (posix_memalign(&made, alignment, std::max(bytes, kAlignment)) != 0) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    // Fewer translations of addresses on the way through a matrix; where the system does not have them, it is as before.
    if (alignment == kHugePage) madvise(made, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
    std::memset(made, 0, bytes);
    return std::unique_ptr<Value, FreeBytes>(static_cast<Value*>(made));
}

// The code at `index`, as a number from 0 to 15.
uint8_t nibble(const uint8_t* codes, int64_t index) {
    const uint8_t both = codes[index / 2];
    return ((index % 2 == 0 ? both : both >> 4) & 15) ^ 8;  // of two's complement: + 8
}

void pack_int4(const uint8_t* from, int inputs, int columns, int first, uint8_t* to) {
    const int count = std::min(kTile, columns - first);
    for (int input = 0; input < inputs; ++input) {
        uint8_t* group = to + static_cast<int64_t>(input / kStep) * 64;
        const int within = input % kStep;
        for (int column = 0; column < count; ++column) {
            const uint8_t code = nibble(from, static_cast<int64_t>(input) * columns + first + column);
            group[column * 4 + within % 4] |= within < 4 ? code : code << 4;
        }
    }
}

void pack_int8(const uint8_t* from, int inputs, int columns, int first, uint8_t* to) {
    const int count = std::min(kTile, columns - first);
    for (int input = 0; input < inputs; ++input) {
        for (int column = 0; column < count; ++column) {
            to[static_cast<int64_t>(input / 4) * 64 + column * 4 + input % 4] =
                from[static_cast<int64_t>(input) * columns + first + column] ^ 128;
        }
    }
}

void pack_words(const uint16_t* from, int rows, int columns, int first, uint16_t* to) {
    const int count = std::min(kTile, columns - first);
    for (int row = 0; row < rows; ++row) {
        std::copy_n(from + static_cast<int64_t>(row) * columns + first, count, to + static_cast<int64_t>(row) * kTile);
    }
}

struct RowBuffers {
    std::vector<int8_t> codes;
    std::vector<float> scales;
    std::vector<int32_t> sums;
};

RowBuffers code_rows(const ProductLoops& loops, const Tiles& matrix, const float* rows, int count) {
    const int blocks = matrix.inputs / matrix.block;
    RowBuffers made{std::vector<int8_t>(static_cast<size_t>(count) * matrix.inputs),
                    std::vector<float>(static_cast<size_t>(count) * blocks),
                    std::vector<int32_t>(static_cast<size_t>(count) * blocks)};
    for (int block = 0; block < count * blocks; ++block) {
        const int64_t start = static_cast<int64_t>(block) * matrix.block;
        loops.code(rows + start, matrix.block, made.codes.data() + start, made.scales[block], made.sums[block]);
    }
    return made;
}

ProductLoops loops_of(const char* instructions) {
#ifdef SDRPN_X86_STEPS
    if (std::strcmp(instructions, kAvx512) == 0) return avx512_product_loops();
    if (std::strcmp(instructions, kAvx2) == 0) return avx2_product_loops();
#endif
    static_cast<void>(instructions);
    return plain_product_loops();
}

}  // namespace

void FreeBytes::operator()(void* bytes) const { std::free(bytes); }

Matrix pack(Code code, const void* codes, const uint16_t* scales, int inputs, int columns, int block) {
    const int64_t numbers = static_cast<int64_t>(inputs) * kTile;
    const int64_t tile_bytes = code == Code::kInt4 ? numbers / 2 : code == Code::kInt8 ? numbers : numbers * 2;
    const int blocks = code == Code::kHalf ? 0 : inputs / block;
    const int64_t tile_scales = static_cast<int64_t>(blocks) * kTile;
    const int count = (columns + kTile - 1) / kTile;
    auto packed = zeros<uint8_t>(count * tile_bytes);
    auto packed_scales = zeros<uint16_t>(count * tile_scales);
    for (int tile = 0; tile < count; ++tile) {
        uint8_t* to = packed.get() + tile * tile_bytes;
        const int first = tile * kTile;
        if (code == Code::kInt4) {
            pack_int4(static_cast<const uint8_t*>(codes), inputs, columns, first, to);
        } else if (code == Code::kInt8) {
            pack_int8(static_cast<const uint8_t*>(codes), inputs, columns, first, to);
        } else {
            pack_words(static_cast<const uint16_t*>(codes), inputs, columns, first, reinterpret_cast<uint16_t*>(to));
        }
        if (blocks != 0) pack_words(scales, blocks, columns, first, packed_scales.get() + tile * tile_scales);
    }
    const Tiles tiles{packed.get(), packed_scales.get(), inputs, columns, block, tile_bytes, tile_scales};
    return Matrix{code, tiles, count, std::move(packed), std::move(packed_scales)};
}

void multiply(const Matrix& matrix, const float* rows, int count, float* out, int threads, const char* instructions) {
    const ProductLoops loops = loops_of(instructions);
    const Tiles& tiles = matrix.tiles;
    const bool coded = matrix.code != Code::kHalf;
    const RowBuffers codes = coded ? code_rows(loops, tiles, rows, count) : RowBuffers{};
    const int blocks = coded ? tiles.inputs / tiles.block : 0;
    const int tasks = threads == 1 ? 1 : std::min(matrix.count, threads * kTasksPerThread);
    const auto task = [&](int number) {
        const int first = static_cast<int64_t>(matrix.count) * number / tasks;
        const int last = static_cast<int64_t>(matrix.count) * (number + 1) / tasks;
        for (int64_t row = 0; row < count; row += kRowsTogether) {
            const int together = std::min<int64_t>(kRowsTogether, count - row);
            const Part part{tiles, together, first, last, out + row * tiles.columns};
            const CodedRows left{codes.codes.data() + row * tiles.inputs, codes.scales.data() + row * blocks,
                                 codes.sums.data() + row * blocks};
            if (matrix.code == Code::kInt4) {
                loops.int4(part, left);
            } else if (matrix.code == Code::kInt8) {
                loops.int8(part, left);
            } else {
                loops.half(part, rows + row * tiles.inputs);
            }
        }
    };
    share_ready(tasks, task, threads);
}

}  // namespace sdrpn
