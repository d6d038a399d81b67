// Plan the boxes, then distribute their rows and columns over threads.
#include "prepare.h"

#include <algorithm>

#include "pool.h"

namespace sdrpn {
namespace {

constexpr int64_t kStripBytes = 64 << 20;  // boxes are processed together up to this size
constexpr int64_t kTaskValues = 1 << 17;    // read or written: large enough for a task, small enough to distribute
constexpr int64_t kThreadValues = 1 << 20;  // at least this many per thread: about half a millisecond

// The plan of one box.
struct Plan {
    Windows rows, columns;  // along rows; along columns
    int left, top, bottom, width;  // of the picture
    int64_t strip_at;
    uint8_t* out;
};

// One task: some rows of one box.
struct Piece {
    const Plan* plan;
    int first, last;
};

Plan plan_of(const Job& job, const Box& box, uint8_t* out) {
    Plan plan;
    plan.rows = windows_of(axis_of(box.x1, box.x2, job.picture.width, job.width, job.filter));
    plan.columns = windows_of(axis_of(box.y1, box.y2, job.picture.height, job.height, job.filter));
    plan.left = inside_begin(box.x1);
    plan.top = inside_begin(box.y1);
    plan.bottom = inside_end(box.y2, job.picture.height);
    plan.width = inside_end(box.x2, job.picture.width) - plan.left;
    if (!job.plain) add_blocks(plan.rows, plan.width);
    plan.out = out;
    return plan;
}

int worthwhile_threads(const Job& job, const std::vector<Plan>& plans) {
    int64_t values = 0;
    for (const Plan& plan : plans) {
        values += (int64_t{plan.bottom - plan.top} * plan.width + int64_t{job.height} * job.width) * kChannels;
    }
    return static_cast<int>(std::min<int64_t>(job.threads, values / kThreadValues + 1));
}

// `width` pixels are in a row.
void add_pieces(std::vector<Piece>& pieces, const Plan& plan, int first, int last, int width) {
    const int64_t rows = std::clamp<int64_t>(kTaskValues / (int64_t{width} * kChannels), 1, 256);
    const int step = static_cast<int>((rows + kRowsAtOnce - 1) / kRowsAtOnce * kRowsAtOnce);
    for (int at = first; at < last; at += step) pieces.push_back({&plan, at, std::min(at + step, last)});
}

void prepare_together(const Job& job, std::vector<Plan>& plans, const std::vector<uint8_t>& values,
                      const std::function<void()>& poll) {
    const int64_t stride = strip_stride(job.width);
    int64_t strip_bytes = 0;
    std::vector<Piece> rows, columns;
    for (Plan& plan : plans) {
        plan.strip_at = strip_bytes;
        strip_bytes += (plan.bottom - plan.top) * stride;
        add_pieces(rows, plan, plan.top, plan.bottom, plan.width);
        add_pieces(columns, plan, 0, job.height, job.width * 4);  // a result value takes longer
    }
    std::vector<uint8_t> strip(strip_bytes);
    const auto shrink_rows_of = [&](int i) {
        const auto& [plan, first, last] = rows[i];
        uint8_t* to = strip.data() + plan->strip_at + (first - plan->top) * stride;
        shrink_rows(job.picture, plan->left, plan->rows, job.colour.data(), first, last, to);
    };
    const auto shrink_columns_of = [&](int i) {
        const auto& [plan, first, last] = columns[i];
        const Result result{plan->out, values.data(), job.value_bytes, job.width, job.height};
        shrink_columns(strip.data() + plan->strip_at, plan->columns, job.colour.data(), first, last, result, job.plain);
    };
    share({{static_cast<int>(rows.size()), shrink_rows_of}, {static_cast<int>(columns.size()), shrink_columns_of}},
          worthwhile_threads(job, plans), poll);
}

}  // namespace

std::vector<uint8_t> value_table(const Job& job) {
    std::vector<uint8_t> table(size_t{kChannels} * 256 * job.value_bytes);
    for (int i = 0; i < kChannels * 256; ++i) {
        const float value = normalised(i % 256, job.mean[i / 256], job.deviation[i / 256]);
        const uint16_t bits = half_bits(value);
        const void* from = job.value_bytes == 4 ? static_cast<const void*>(&value) : &bits;
        memcpy(table.data() + size_t{1} * i * job.value_bytes, from, job.value_bytes);
    }
    return table;
}

void prepare(const Job& job, const std::function<void()>& poll) {
    const std::vector<uint8_t> values = value_table(job);
    const int64_t result_bytes = int64_t{kChannels} * job.height * job.width * job.value_bytes;
    auto* out = static_cast<uint8_t*>(job.out);
    std::vector<Plan> plans;
    int64_t strips = 0;
    for (size_t i = 0; i < job.boxes.size(); ++i) {
        plans.push_back(plan_of(job, job.boxes[i], out + i * result_bytes));
        strips += (plans.back().bottom - plans.back().top) * strip_stride(job.width);
        if (strips < kStripBytes && i + 1 < job.boxes.size()) continue;
        prepare_together(job, plans, values, poll);
        plans.clear();
        strips = 0;
        poll();
    }
}

}  // namespace sdrpn
