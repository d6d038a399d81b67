#include "gpu.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace sdrpn {
namespace {

constexpr size_t kAlignment = 256;  // of CUDA's allocations

// Allocates pieces of one block of memory; without a block it only counts bytes.
class Arena {
public:
    explicit Arena(void* block) : block_(static_cast<uint8_t*>(block)) {}

    template <typename Value>
    Value* take(size_t count) {
        void* at = block_ == nullptr ? nullptr : block_ + used_;
        used_ += (count * sizeof(Value) + kAlignment - 1) / kAlignment * kAlignment;
        return static_cast<Value*>(at);
    }

    size_t used() const { return used_; }

private:
    uint8_t* block_;
    size_t used_ = 0;
};

DeviceWindows take_windows(Arena& arena, const AxisShape& axis) {
    const int limit = std::max(1, std::min(window_limit(axis), axis.end - axis.begin));
    return {axis, limit, arena.take<Window>(axis.result), arena.take<int32_t>(axis.result),
            arena.take<int32_t>(size_t(axis.result) * limit)};
}

// One box in the arena's memory.
struct DevicePlan {
    DeviceWindows rows, columns;
    uint8_t* strip;
    int top, bottom;
};

DevicePlan plan_in(Arena& arena, const Job& job, const Box& box) {
    const int top = inside_begin(box.y1), bottom = inside_end(box.y2, job.picture.height);
    return {take_windows(arena, axis_of(box.x1, box.x2, job.picture.width, job.width, job.filter)),
            take_windows(arena, axis_of(box.y1, box.y2, job.picture.height, job.height, job.filter)),
            arena.take<uint8_t>(size_t(bottom - top) * job.width * kChannels), top, bottom};
}

void require(cudaError_t status) {
    if (status != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(status));
}

}  // namespace

size_t workspace_bytes(const Job& job) {
    size_t most = 0;
    for (const Box& box : job.boxes) {
        Arena counted(nullptr);
        plan_in(counted, job, box);
        most = std::max(most, counted.used());
    }
    return most;
}

void prepare_on_gpu(const Job& job, void* workspace, cudaStream_t stream) {
    const DeviceColour colour{{job.colour[0], job.colour[1], job.colour[2]}};
    DeviceResult result{nullptr, job.value_bytes, job.width, job.height, {}, {}};
    std::copy(job.mean.begin(), job.mean.end(), result.mean);
    std::copy(job.deviation.begin(), job.deviation.end(), result.deviation);
    const int64_t result_bytes = int64_t{kChannels} * job.height * job.width * job.value_bytes;
    for (size_t i = 0; i < job.boxes.size(); ++i) {
        const Box& box = job.boxes[i];
        Arena arena(workspace);
        const DevicePlan plan = plan_in(arena, job, box);
        result.data = static_cast<uint8_t*>(job.out) + i * result_bytes;
        require(launch_windows(plan.rows, stream));
        require(launch_windows(plan.columns, stream));
        require(launch_rows(job.picture, inside_begin(box.x1), plan.top, plan.bottom - plan.top, plan.rows, colour,
                            plan.strip, stream));
        require(launch_columns(plan.strip, plan.columns, colour, result, stream));
    }
}

}  // namespace sdrpn
