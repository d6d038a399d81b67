// One thread per pixel of the result: sums a column of the strip, normalises, and writes to the three planes.
#include "gpu.h"

namespace sdrpn {
namespace {

__global__ void columns_kernel(const uint8_t* strip, const DeviceWindows windows, const DeviceColour colour,
                               const DeviceResult result) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x;
    const int y = blockIdx.y * blockDim.y + threadIdx.y;
    if (x >= result.width || y >= result.height) return;
    const Window window = windows.windows[y];
    const int32_t* weights = windows.weights + static_cast<int64_t>(y) * windows.limit;
    const int64_t stride = static_cast<int64_t>(result.width) * kChannels;
    const uint8_t* from = strip + window.first * stride + static_cast<int64_t>(x) * kChannels;
    for (int c = 0; c < kChannels; ++c) {
        const int32_t start = sum_start(windows.outside[y], colour.of[c]);
        const uint8_t byte = settle(window_sum(from + c, stride, weights, window.count, start));
        const float value = normalised(byte, result.mean[c], result.deviation[c]);
        const int64_t at = (static_cast<int64_t>(c) * result.height + y) * result.width + x;
        if (result.value_bytes == 4) {
            static_cast<float*>(result.data)[at] = value;
        } else {
            static_cast<uint16_t*>(result.data)[at] = half_bits(value);
        }
    }
}

}  // namespace

cudaError_t launch_columns(const uint8_t* strip, const DeviceWindows& windows, DeviceColour colour,
                           const DeviceResult& result, cudaStream_t stream) {
    const dim3 threads(32, 8);
    const dim3 blocks((result.width + threads.x - 1) / threads.x, (result.height + threads.y - 1) / threads.y);
    columns_kernel<<<blocks, threads, 0, stream>>>(strip, windows, colour, result);
    return cudaGetLastError();
}

}  // namespace sdrpn
