// One thread per pixel of the strip: neighbouring threads read neighbouring windows of one row.
#include "gpu.h"

namespace sdrpn {
namespace {

__global__ void rows_kernel(const uint8_t* first_row, int64_t row_stride, const DeviceWindows windows,
                            const DeviceColour colour, uint8_t* strip, int rows) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x;
    const int row = blockIdx.y * blockDim.y + threadIdx.y;
    const int width = windows.axis.result;
    if (x >= width || row >= rows) return;
    const Window window = windows.windows[x];
    const int32_t* weights = windows.weights + static_cast<int64_t>(x) * windows.limit;
    const uint8_t* from = first_row + row * row_stride + static_cast<int64_t>(window.first) * kChannels;
    uint8_t* to = strip + (static_cast<int64_t>(row) * width + x) * kChannels;
    for (int c = 0; c < kChannels; ++c) {
        const int32_t start = sum_start(windows.outside[x], colour.of[c]);
        to[c] = settle(window_sum(from + c, kChannels, weights, window.count, start));
    }
}

}  // namespace

cudaError_t launch_rows(const Picture& picture, int left, int top, int rows, const DeviceWindows& windows,
                        DeviceColour colour, uint8_t* strip, cudaStream_t stream) {
    const dim3 threads(32, 8);
    const dim3 blocks((windows.axis.result + threads.x - 1) / threads.x, (rows + threads.y - 1) / threads.y);
    const uint8_t* first = picture.data + top * picture.row_stride + static_cast<int64_t>(left) * kChannels;
    rows_kernel<<<blocks, threads, 0, stream>>>(first, picture.row_stride, windows, colour, strip, rows);
    return cudaGetLastError();
}

}  // namespace sdrpn
