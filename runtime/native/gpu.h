// Boxes of one picture on a GPU: four kernels per box (windows twice, rows, columns), on the caller's stream, in memory
// owned by the caller.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "prepare.h"

namespace sdrpn {

// The windows of one axis in device memory, laid out as in `Windows`.
struct DeviceWindows {
    AxisShape axis;
    int limit;
    Window* windows;
    int32_t* outside;
    int32_t* weights;
};

struct DeviceColour {
    uint8_t of[kChannels];
};

struct DeviceResult {
    void* data;
    int value_bytes, width, height;
    float mean[kChannels], deviation[kChannels];
};

// One kernel per file; each function returns the launch status.
cudaError_t launch_windows(const DeviceWindows& windows, cudaStream_t stream);
cudaError_t launch_rows(const Picture& picture, int left, int top, int rows, const DeviceWindows& windows,
                        DeviceColour colour, uint8_t* strip, cudaStream_t stream);
cudaError_t launch_columns(const uint8_t* strip, const DeviceWindows& windows, DeviceColour colour,
                           const DeviceResult& result, cudaStream_t stream);

// Workspace for the largest of the job's boxes, which use it one after another.
size_t workspace_bytes(const Job& job);

// `job.picture.data`, `job.out` and `workspace` are addresses that the device can access. Returns when the kernels are
// enqueued; throws std::runtime_error for CUDA errors.
void prepare_on_gpu(const Job& job, void* workspace, cudaStream_t stream);

}  // namespace sdrpn
