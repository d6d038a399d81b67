// Attention of one new row of each sequence over its cached rows, which are in pages.
#pragma once

#include <cstdint>

namespace sdrpn {

constexpr int kPageRows = 32;  // rows of a head in a block of a cache
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

// Neighbouring heads of the keys of one sequence, whose new row is in the cache.
struct HeadsOfKeys {
    const void *keys, *values;  // of their first block
    int64_t block_stride;       // numbers from one block to the next
    const float* queries;       // of `heads` times `group` heads
    float* out;
    float *scores, *sums;  // room: for each query the rows of whole blocks; one for each query
    int heads, group, width, first, end;  // rows [first, end)
    float scale;
};

// One version for each instruction set; all give the same bits.
struct AttentionLoops {
    void (*half)(const HeadsOfKeys& job);
    void (*full)(const HeadsOfKeys& job);
};

AttentionLoops plain_attention_loops();
#ifdef SDRPN_X86_STEPS
AttentionLoops avx2_attention_loops();
AttentionLoops avx512_attention_loops();
#endif

// Writes the new rows into the caches, and attends to them and the rows before.
void attend(const AttentionJob& job, int threads, const char* instructions);

}  // namespace sdrpn
