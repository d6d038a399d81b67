#include "attention.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "half.h"
#include "instructions.h"
#include "team.h"

namespace sdrpn {
namespace {

constexpr int kPartsPerThread = 2;

AttentionLoops loops_of(const char* instructions) {
#ifdef SDRPN_X86_STEPS
    if (std::strcmp(instructions, kAvx512) == 0) return avx512_attention_loops();
    if (std::strcmp(instructions, kAvx2) == 0) return avx2_attention_loops();
#endif
    static_cast<void>(instructions);
    return plain_attention_loops();
}

void put_row(const float* row, void* cache, int64_t at, bool half, int width) {
    if (!half) {
        std::memcpy(static_cast<float*>(cache) + at, row, width * sizeof(float));
        return;
    }
    auto* to = static_cast<uint16_t*>(cache) + at;
    for (int i = 0; i < width; ++i) to[i] = half_of(row[i]);
}

const void* numbers_at(const void* cache, int64_t at, bool half) {
    if (half) return static_cast<const uint16_t*>(cache) + at;
    return static_cast<const float*>(cache) + at;
}

}  // namespace

void attend(const AttentionJob& job, int threads, const char* instructions) {
    const AttentionLoops loops = loops_of(instructions);
    const int64_t page = static_cast<int64_t>(kPageRows) * job.width, block = page * job.kv_heads;
    const int group = job.heads / job.kv_heads;
    const int parts = std::min(job.kv_heads, threads == 1 ? 1 : threads * kPartsPerThread);
    // Room for the scores of every part, and their sums; a task must not run out of memory.
    std::vector<std::unique_ptr<float[]>> room(static_cast<size_t>(job.batch) * parts);
    for (int number = 0; number < job.batch * parts; ++number) {
        const int64_t heads = job.kv_heads / parts + 1, rows = job.past[number / parts] + 1 + 2 * kPageRows;
        room[number].reset(new float[heads * group * (rows + 1)]);  // whose content does not matter
    }
    const auto task = [&](int number) {
        const int sequence = number / parts, part = number % parts, past = job.past[sequence];
        const int head = job.kv_heads * part / parts, heads = job.kv_heads * (part + 1) / parts - head;
        const int64_t first = sequence * block * job.blocks + head * page;
        const int64_t row = (static_cast<int64_t>(sequence) * job.kv_heads + head) * job.width;
        for (int each = 0; each < heads; ++each) {
            const int64_t place = first + each * page + past / kPageRows * block + past % kPageRows * job.width;
            put_row(job.new_keys + row + each * job.width, job.keys, place, job.half, job.width);
            put_row(job.new_values + row + each * job.width, job.values, place, job.half, job.width);
        }
        const int seen = job.window == 0 || job.window > past ? past + 1 : job.window;
        const int64_t queries = static_cast<int64_t>(heads) * group;
        float* scores = room[number].get();
        const HeadsOfKeys of{numbers_at(job.keys, first, job.half),
                             numbers_at(job.values, first, job.half),
                             block,
                             job.queries + row * group,
                             job.out + row * group,
                             scores,
                             scores + queries * (seen + 2 * kPageRows),
                             heads,
                             group,
                             job.width,
                             past + 1 - seen,
                             past + 1,
                             job.scale};
        (job.half ? loops.half : loops.full)(of);
    };
    share_ready(job.batch * parts, task, threads);
}

}  // namespace sdrpn
