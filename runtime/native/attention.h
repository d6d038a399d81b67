// Attention of one new row of each sequence over its cached rows, which are in pages.
#pragma once

#include <cstdint>

namespace sdrpn {

constexpr int kPageRows = 32;  // rows of a head in a block of a cache
constexpr int kChunkPages = 4; // that are attended to together, by whichever thread: sums do not depend on the threads
constexpr int kVector = 16;    // numbers that are added up side by side
constexpr int kWidest = 512;   // channels of a head

// Queries (batch, heads * width), new keys and values (batch, kv_heads * width) and the result, as queries. A cache is
// (batch * blocks, kv_heads, kPageRows, width), in float16 or float32; a query head uses the keys of head
// number * kv_heads / heads.
struct AttentionJob {
    const float *queries, *new_keys, *new_values;
    void *keys, *values;
    float* out;
    const int32_t* past;  // (batch,): rows in the caches; the new one goes behind them
    bool half;            // float16
    int batch, heads, kv_heads, width, blocks;
    int window;  // how many rows a row sees, itself included; 0: all
    float scale;
};

// Some neighbouring pages of one sequence, whose new row is in its cache: as they are in memory, so that they are read in
// one stream. What a query gets from them alone is put where `Merged` finds it.
struct Chunk {
    const void *keys, *values;  // of the first page
    const float* queries;       // of `heads` times `group` heads
    int heads, group, width, pages;
    int first, end;  // rows [first, end) of these pages are seen
    float scale;
    float* scores;                 // room: (queries, pages * kPageRows)
    float *out, *largest, *sums;  // (queries, width), weighted and not yet divided by the sum of the weights; (queries,)
};

// All chunks of one sequence, each with the largest score and the sum of the weights of its own.
struct Merged {
    int chunks, queries, width;
    const float *parts, *sums;  // (chunks, queries, width), (chunks, queries)
    float* largest;             // (chunks, queries), replaced by the factors of the parts
    float* out;                 // (queries, width)
};

// One version for each instruction set; all give the same bits.
struct AttentionLoops {
    void (*half)(const Chunk& chunk);
    void (*full)(const Chunk& chunk);
    void (*merge)(const Merged& merged);
};

AttentionLoops plain_attention_loops();
#ifdef SDRPN_X86_STEPS
AttentionLoops avx2_attention_loops();
AttentionLoops avx512_attention_loops();
#endif

// Writes the new rows into the caches, and attends to them and the rows before.
void attend(const AttentionJob& job, int threads, const char* instructions);

}  // namespace sdrpn
