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

std::unique_ptr<uint8_t, FreeBytes> zeros(int64_t count) {
    const size_t alignment = count < static_cast<int64_t>(2 * kHugePage) ? kAlignment : kHugePage;
    const size_t bytes = (count + kAlignment - 1) / kAlignment * kAlignment;
    void* made = nullptr;
    if (posix_memalign(&made, alignment, std::max(bytes, kAlignment)) != 0) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    // Fewer translations of addresses on the way through a matrix; where the system does not have them, it is as before.
    if (alignment == kHugePage) madvise(made, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
    std::memset(made, 0, bytes);
    return std::unique_ptr<uint8_t, FreeBytes>(static_cast<uint8_t*>(made));
}

// The code at `index`, as a number from 0 to 15.
uint8_t nibble(const uint8_t* codes, int64_t index) {
    const uint8_t both = codes[index / 2];
    return ((index % 2 == 0 ? both : both >> 4) & 15) ^ 8;  // of two's complement: + 8
}

// Of one block of `inputs` from row `first_input` on, kTile columns from `first` on.
struct Piece {
    int first_input, inputs, first, count;
};

void pack_int4(const uint8_t* from, int columns, const Piece& piece, uint8_t* to) {
    for (int input = 0; input < piece.inputs; ++input) {
        uint8_t* group = to + static_cast<int64_t>(input / kStep) * 64;
        const int64_t row = static_cast<int64_t>(piece.first_input + input) * columns;
        const int within = input % kStep;
        for (int column = 0; column < piece.count; ++column) {
            const uint8_t code = nibble(from, row + piece.first + column);
            group[column * 4 + within % 4] |= within < 4 ? code : code << 4;
        }
    }
}

void pack_int8(const uint8_t* from, int columns, const Piece& piece, uint8_t* to) {
    for (int input = 0; input < piece.inputs; ++input) {
        uint8_t* group = to + static_cast<int64_t>(input / 4) * 64;
        const int64_t row = static_cast<int64_t>(piece.first_input + input) * columns;
        for (int column = 0; column < piece.count; ++column) {
            group[column * 4 + input % 4] = from[row + piece.first + column] ^ 128;
        }
    }
}

// One row of float16: kTile of its columns.
void pack_words(const uint16_t* from, int64_t row, int columns, const Piece& piece, uint8_t* to) {
    std::memcpy(to, from + row * columns + piece.first, piece.count * sizeof(uint16_t));
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
    const int count = (columns + kTile - 1) / kTile;
    const int blocks = code == Code::kHalf ? 0 : inputs / block;
    Tiles tiles{nullptr, inputs, columns, block, 0, 0};
    if (code == Code::kHalf) {
        tiles.tile_bytes = static_cast<int64_t>(inputs) * kTile * 2;
    } else {
        tiles.block_bytes = static_cast<int64_t>(block) * kTile / (code == Code::kInt4 ? 2 : 1);
        const int64_t groups = (blocks + kBlocksTogether - 1) / kBlocksTogether;
        tiles.tile_bytes = groups * kScaleBytes + blocks * tiles.block_bytes;
    }
    auto memory = zeros(count * tiles.tile_bytes);
    tiles.bytes = memory.get();
    for (int tile = 0; tile < count; ++tile) {
        uint8_t* to = memory.get() + tile * tiles.tile_bytes;
        Piece piece{0, block, tile * kTile, std::min(kTile, columns - tile * kTile)};
        if (code == Code::kHalf) {
            for (int64_t row = 0; row < inputs; ++row) {
                pack_words(static_cast<const uint16_t*>(codes), row, columns, piece, to + row * kTile * 2);
            }
        }
        for (int number = 0; number < blocks; ++number) {
            piece.first_input = number * block;
            pack_words(scales, number, columns, piece, to + scales_at(tiles, number));
            const auto pack_codes = code == Code::kInt4 ? pack_int4 : pack_int8;
            pack_codes(static_cast<const uint8_t*>(codes), columns, piece, to + codes_at(tiles, number));
        }
    }
    return Matrix{code, tiles, count, std::move(memory)};
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
