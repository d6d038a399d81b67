// Plan one box, distribute its rows and columns over threads in either order, and put every row into its patches.
#include "patches.h"

#include <algorithm>

#include "pool.h"

namespace sdrpn {
namespace {

constexpr int64_t kTaskValues = 1 << 17;
constexpr int64_t kThreadValues = 1 << 20;

// Rows of bytes, each with space for a whole number of vectors.
struct Strip {
    std::vector<uint8_t> bytes;
    int64_t stride;

    Strip(int rows, int width) : bytes(rows * strip_stride(width)), stride(strip_stride(width)) {}
    uint8_t* row(int at) { return bytes.data() + at * stride; }
    const uint8_t* row(int at) const { return bytes.data() + at * stride; }
};

// One row of resized pixels to the patches that it crosses.
void write_row(const uint8_t* bytes, int row, const PatchJob& job, const float* values) {
    const int side = job.patch, cell = side * job.merge, area = side * side;
    const int patches = job.merge * job.merge, tokens = job.job.width / cell;
    const int64_t numbers = int64_t{kChannels} * area;
    float* out = static_cast<float*>(job.job.out) + int64_t{row / cell} * tokens * patches * numbers +
                 int64_t{row % cell / side} * job.merge * numbers + row % side * side;
    for (int token = 0; token < tokens; ++token, out += patches * numbers) {
        for (int across = 0; across < job.merge; ++across, bytes += side * kChannels) {
            float* to = out + across * numbers;
            for (int x = 0; x < side; ++x) {
                for (int c = 0; c < kChannels; ++c) to[c * area + x] = values[c * 256 + bytes[x * kChannels + c]];
            }
        }
    }
}

// Numbers from 0 to `count` in tasks of about kTaskValues values, whole groups of rows each.
Phase phase_of(int count, int width, const std::function<void(int, int)>& work) {
    const int64_t rows = std::clamp<int64_t>(kTaskValues / (int64_t{width} * kChannels), 1, 256);
    const int step = static_cast<int>((rows + kRowsAtOnce - 1) / kRowsAtOnce * kRowsAtOnce);
    const auto task = [=](int number) { work(number * step, std::min((number + 1) * step, count)); };
    return {(count + step - 1) / step, task};
}

}  // namespace

void write_patches(const PatchJob& patches, const std::function<void()>& poll) {
    const Job& job = patches.job;
    const Box& box = job.boxes.front();
    const int width = box.x2 - box.x1, height = box.y2 - box.y1;
    Windows across = windows_of(axis_of(box.x1, box.x2, job.picture.width, job.width, job.filter));
    const Windows down = windows_of(axis_of(box.y1, box.y2, job.picture.height, job.height, job.filter));
    if (!job.plain) add_blocks(across, width);
    const std::vector<uint8_t> table = value_table(job);
    const auto* values = reinterpret_cast<const float*>(table.data());
    const std::array<uint8_t, kChannels> black{};  // a box inside the picture has nothing outside
    const int64_t work = (int64_t{height} * width + int64_t{job.height} * job.width) * kChannels;
    const int threads = static_cast<int>(std::min<int64_t>(job.threads, work / kThreadValues + 1));
    const std::vector<uint8_t> outside(strip_stride(std::max(width, job.width)));
    if (patches.columns_first) {
        const Picture& from = job.picture;
        const uint8_t* corner = from.data + box.y1 * from.row_stride + int64_t{box.x1} * kChannels;
        Strip strip(job.height, width);
        const Picture strip_picture{strip.row(0), strip.stride, width, job.height};
        const auto columns = [&](int first, int last) {
            const ColumnPass pass{corner, from.row_stride, int64_t{width} * kChannels, outside.data(), job.plain};
            for (int row = first; row < last; ++row) column_row(pass, down, row, strip.row(row));
        };
        const auto rows = [&](int first, int last) {
            Strip result(kRowsAtOnce, job.width);
            for (int row = first; row < last; row += kRowsAtOnce) {
                const int end = std::min(row + kRowsAtOnce, last);
                shrink_rows(strip_picture, 0, across, black.data(), row, end, result.row(0));
                for (int at = row; at < end; ++at) write_row(result.row(at - row), at, patches, values);
            }
        };
        share({phase_of(job.height, width, columns), phase_of(job.height, width + job.width, rows)}, threads, poll);
        return;
    }
    Strip strip(height, job.width);
    const auto rows = [&](int first, int last) {
        shrink_rows(job.picture, box.x1, across, black.data(), box.y1 + first, box.y1 + last, strip.row(first));
    };
    const auto columns = [&](int first, int last) {
        const ColumnPass pass{strip.row(0), strip.stride, strip.stride, outside.data(), job.plain};
        std::vector<uint8_t> bytes(strip.stride);
        for (int row = first; row < last; ++row) {
            column_row(pass, down, row, bytes.data());
            write_row(bytes.data(), row, patches, values);
        }
    };
    share({phase_of(height, width, rows), phase_of(job.height, job.width * 4, columns)}, threads, poll);
}

}  // namespace sdrpn
