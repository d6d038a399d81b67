// Products of a few rows with a matrix whose numbers are kept in 4, 8 or 16 bits. Where one row is asked for, time goes
// into reading the matrix: it is packed so that it is read once, from its first byte to its last, whatever the rows.
#pragma once

#include <cstdint>
#include <memory>

namespace sdrpn {

constexpr int kTile = 16;        // columns that are computed together
constexpr int kRowsTogether = 4; // of the left side, for one reading of the matrix
constexpr float kLeast = 1e-36f; // a block in 8 bits whose largest number is below it is all zeros: 127 / kLeast is finite
constexpr int kStep = 8;         // numbers of a column whose codes in 4 bits are in one group of 64 bytes
constexpr int kBlocksTogether = 4;  // whose scales lie before their codes
constexpr int kScaleBytes = kBlocksTogether * kTile * 2;

enum class Code { kInt4, kInt8, kHalf };

// A packed matrix as the loops read it: (inputs, columns), in tiles of kTile columns, the last one filled up with zeros. A
// tile of kHalf holds for every input the kTile numbers, as float16. One of codes holds, for every kBlocksTogether blocks
// of inputs, kTile scales of each as float16, and then their codes: memory is read faster in one stream than in two.
// - kInt4: for every kStep inputs 64 bytes, four for each column: the codes + 8 of inputs 0 to 3 in their lower halves,
//   those of inputs 4 to 7 in the upper ones
// - kInt8: for every 4 inputs 64 bytes, four for each column: the codes + 128
struct Tiles {
    const uint8_t* bytes;
    int inputs, columns, block;       // block: 0 for kHalf
    int64_t tile_bytes, block_bytes;  // from one tile to the next; of the codes of a block
};

// Where the blocks of a tile begin whose scales lie together with those of a block. Of internal linkage, as the loops.
static inline int64_t together_at(const Tiles& matrix, int block) {
    return block / kBlocksTogether * (kScaleBytes + kBlocksTogether * matrix.block_bytes);
}

// Where a tile has the scales of a block.
static inline int64_t scales_at(const Tiles& matrix, int block) {
    return together_at(matrix, block) + block % kBlocksTogether * (kScaleBytes / kBlocksTogether);
}

// Where it has its codes.
static inline int64_t codes_at(const Tiles& matrix, int block) {
    return together_at(matrix, block) + kScaleBytes + block % kBlocksTogether * matrix.block_bytes;
}

struct FreeBytes {
    void operator()(void* bytes) const;
};

// A packed matrix and its memory.
struct Matrix {
    Code code;
    Tiles tiles;
    int count;  // of the tiles
    std::unique_ptr<uint8_t, FreeBytes> memory;

    int64_t bytes() const { return count * tiles.tile_bytes; }
};

// Left sides, with inputs in 8 bits: in each block a number is about code * scale.
struct CodedRows {
    const int8_t* codes;   // (rows, inputs)
    const float* scales;   // (rows, inputs / block)
    const int32_t* sums;   // (rows, inputs / block), of the codes
};

// Tiles `first` to `last` of up to kRowsTogether rows -> (rows, columns) from `out` on, `columns` apart.
struct Part {
    Tiles matrix;
    int rows, first, last;
    float* out;
};

// One version for each instruction set; all give the same bits. A block in 8 bits is coded to the nearest code, halves to
// even; where it is all but zero, or has NaN or infinity, its codes are zeros and its scale is 0 or NaN. A sum is taken
// block by block in whole numbers, and over the blocks in the order of the inputs; one of float16 in four parts, of every
// fourth input. Products of floats are added with one rounding.
struct ProductLoops {
    void (*code)(const float* numbers, int count, int8_t* codes, float& scale, int32_t& sum);
    void (*int4)(const Part& part, const CodedRows& rows);
    void (*int8)(const Part& part, const CodedRows& rows);
    void (*half)(const Part& part, const float* rows);
};

ProductLoops plain_product_loops();
#ifdef SDRPN_X86_STEPS
ProductLoops avx2_product_loops();
ProductLoops avx512_product_loops();
#endif

// From row-major codes (inputs, columns): two's complement, in 4 bits two in a byte, the lower half first; float16 bits
// for kHalf, without scales. `scales`: float16 bits, (inputs / block, columns).
Matrix pack(Code code, const void* codes, const uint16_t* scales, int inputs, int columns, int block);

// rows (count, inputs) x matrix -> out (count, columns). A row with NaN or infinity becomes NaN where the block that has
// it counts. `instructions`: one of instructions.h that this processor has.
void multiply(const Matrix& matrix, const float* rows, int count, float* out, int threads, const char* instructions);

}  // namespace sdrpn
