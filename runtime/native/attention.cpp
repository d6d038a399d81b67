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

// Room for what the chunks of all sequences give, one chunk after the other; a task must not run out of memory.
class Room {
public:
    Room(int64_t chunks, int64_t queries, int64_t width)
        : queries_(queries), width_(width), scores_(make(chunks * queries * kChunkPages * kPageRows)),
          out_(make(chunks * queries * width)), largest_(make(chunks * queries)), sums_(make(chunks * queries)) {}

    float* scores(int64_t chunk) const { return scores_.get() + chunk * queries_ * kChunkPages * kPageRows; }
    float* out(int64_t chunk) const { return out_.get() + chunk * queries_ * width_; }
    float* largest(int64_t chunk) const { return largest_.get() + chunk * queries_; }
    float* sums(int64_t chunk) const { return sums_.get() + chunk * queries_; }

private:
    using Floats = std::unique_ptr<float[]>;
    static Floats make(int64_t count) { return Floats(new float[count]); }  // whose content does not matter

    int64_t queries_, width_;
    Floats scores_, out_, largest_, sums_;
};

// The pages of one sequence that have rows that it sees, and its chunks among those of all.
struct Pages {
    int first, end, first_chunk;

    int chunks() const { return (end - first + kChunkPages - 1) / kChunkPages; }
};

// The first row that the new one sees.
int first_seen(const AttentionJob& job, int sequence) {
    const int past = job.past[sequence];
    return job.window == 0 || job.window > past ? 0 : past + 1 - job.window;
}

std::vector<Pages> pages_of(const AttentionJob& job) {
    std::vector<Pages> all;
    int chunks = 0;
    for (int sequence = 0; sequence < job.batch; ++sequence) {
        all.push_back({first_seen(job, sequence) / kPageRows, job.past[sequence] / kPageRows + 1, chunks});
        chunks += all.back().chunks();
    }
    return all;
}

void put_rows(const AttentionJob& job, int sequence) {
    const int64_t page = static_cast<int64_t>(kPageRows) * job.width;
    const int past = job.past[sequence];
    for (int head = 0; head < job.kv_heads; ++head) {
        const int64_t row = (static_cast<int64_t>(sequence) * job.kv_heads + head) * job.width;
        const int64_t of = (static_cast<int64_t>(sequence) * job.blocks + past / kPageRows) * job.kv_heads + head;
        const int64_t place = of * page + static_cast<int64_t>(past % kPageRows) * job.width;
        put_row(job.new_keys + row, job.keys, place, job.half, job.width);
        put_row(job.new_values + row, job.values, place, job.half, job.width);
    }
}

}  // namespace

void attend(const AttentionJob& job, int threads, const char* instructions) {
    const AttentionLoops loops = loops_of(instructions);
    const std::vector<Pages> sequences = pages_of(job);
    const int chunks = sequences.back().first_chunk + sequences.back().chunks();
    const Room room(chunks, job.heads, job.width);
    const int64_t page = static_cast<int64_t>(kPageRows) * job.width * job.kv_heads;
    const int64_t row = static_cast<int64_t>(job.heads) * job.width;
    const auto task = [&](int number) {
        int sequence = job.batch - 1;
        while (sequences[sequence].first_chunk > number) --sequence;
        const Pages& of = sequences[sequence];
        const int first = of.first + (number - of.first_chunk) * kChunkPages;
        const int pages = std::min(kChunkPages, of.end - first);
        if (first + pages == of.end) put_rows(job, sequence);
        const int64_t place = (static_cast<int64_t>(sequence) * job.blocks + first) * page;
        const Chunk chunk{numbers_at(job.keys, place, job.half),
                          numbers_at(job.values, place, job.half),
                          job.queries + sequence * row,
                          job.kv_heads,
                          job.heads / job.kv_heads,
                          job.width,
                          pages,
                          first_seen(job, sequence) - first * kPageRows,
                          job.past[sequence] + 1 - first * kPageRows,
                          job.scale,
                          room.scores(number),
                          room.out(number),
                          room.largest(number),
                          room.sums(number)};
        (job.half ? loops.half : loops.full)(chunk);
    };
    share_ready(chunks, task, threads);
    for (int sequence = 0; sequence < job.batch; ++sequence) {
        const Pages& of = sequences[sequence];
        const int64_t first = of.first_chunk;
        loops.merge({of.chunks(), job.heads, job.width, room.out(first), room.sums(first), room.largest(first),
                     job.out + sequence * row});
    }
}

}  // namespace sdrpn
