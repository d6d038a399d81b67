// One thread per result position: its window and weights.
#include "gpu.h"

namespace sdrpn {
namespace {

__global__ void windows_kernel(const DeviceWindows windows) {
    const int position = blockIdx.x * blockDim.x + threadIdx.x;
    if (position >= windows.axis.result) return;
    int32_t* weights = windows.weights + static_cast<int64_t>(position) * windows.limit;
    windows.windows[position] = window_weights(windows.axis, position, weights, windows.outside + position);
}

}  // namespace

cudaError_t launch_windows(const DeviceWindows& windows, cudaStream_t stream) {
    constexpr int threads = 64;
    windows_kernel<<<(windows.axis.result + threads - 1) / threads, threads, 0, stream>>>(windows);
    return cudaGetLastError();
}

}  // namespace sdrpn
