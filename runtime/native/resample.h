// One value of a resized picture, rounded as in Pillow: shared by the CPU loops and the CUDA kernels.
//
// A picture is resized along its rows, rounded to bytes, then along its columns. Each result is a sum of a window of
// source values with integer weights (fixed point, 22 fractional bits); outside the picture there is one colour, whose
// weights are summed beforehand. Knows nothing about memory, threads or Python.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define SDRPN_BOTH __host__ __device__
#else
#define SDRPN_BOTH
#endif

namespace sdrpn {

// As in Pillow: 32 bits less 8 of a value, less 2 because negative bicubic weights increase the sum.
constexpr int kFractionBits = 22;
constexpr int kHalf = 1 << (kFractionBits - 1);
constexpr int kChannels = 3;

enum class Filter : int { bilinear = 0, bicubic = 1 };

// How one axis of the canvas (the box, including its part outside the picture) maps to one of the result.
struct AxisShape {
    int canvas;   // source positions
    int result;   // result positions
    int begin;    // start of the picture on the canvas; may be negative
    int end;      // end of the picture on the canvas
    Filter filter;
};

// The part of a window on the picture, in positions relative to the first picture position on the canvas.
struct Window {
    int first;
    int count;
};

SDRPN_BOTH static inline double reach(Filter filter) { return filter == Filter::bilinear ? 1.0 : 2.0; }

// The filter function. Bicubic is Keys' with a = -0.5; the order of operations matches Pillow's results.
SDRPN_BOTH static inline double curve(Filter filter, double x) {
    if (x < 0.0) x = -x;
    if (filter == Filter::bilinear) return x < 1.0 ? 1.0 - x : 0.0;
    constexpr double a = -0.5;
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
    return 0.0;
}

SDRPN_BOTH static inline double step_of(const AxisShape& axis) { return static_cast<double>(axis.canvas) / axis.result; }

// Shrinking widens the filter by the same factor (antialiasing); enlarging does not change it.
SDRPN_BOTH static inline double stretch_of(const AxisShape& axis) {
    const double step = step_of(axis);
    return step < 1.0 ? 1.0 : step;
}

// The largest number of entries in any window of the axis.
SDRPN_BOTH static inline int window_limit(const AxisShape& axis) {
    const double support = reach(axis.filter) * stretch_of(axis);
    const int whole = static_cast<int>(support);
    return (whole + (whole < support ? 1 : 0)) * 2 + 1;
}

// The window of one result position on the canvas, clipped to the canvas.
SDRPN_BOTH static inline Window canvas_window(const AxisShape& axis, int position) {
    const double centre = (position + 0.5) * step_of(axis);
    const double support = reach(axis.filter) * stretch_of(axis);
    int first = static_cast<int>(centre - support + 0.5);
    int last = static_cast<int>(centre + support + 0.5);
    if (first < 0) first = 0;
    if (last > axis.canvas) last = axis.canvas;
    return {first, last - first};
}

SDRPN_BOTH static inline double raw_weight(const AxisShape& axis, int position, int canvas_index) {
    const double centre = (position + 0.5) * step_of(axis);
    return curve(axis.filter, (canvas_index - centre + 0.5) * (1.0 / stretch_of(axis)));
}

SDRPN_BOTH static inline int32_t fixed_point(double weight) {
    const double scaled = weight * (1 << kFractionBits);
    return static_cast<int32_t>(weight < 0.0 ? scaled - 0.5 : scaled + 0.5);
}

// Writes the weights of one result position inside the picture, and sums those outside.
SDRPN_BOTH static inline Window window_weights(const AxisShape& axis, int position, int32_t* weights, int32_t* outside) {
    const Window canvas = canvas_window(axis, position);
    double total = 0.0;
    for (int i = 0; i < canvas.count; ++i) total += raw_weight(axis, position, canvas.first + i);
    Window inside{0, 0};
    *outside = 0;
    for (int i = 0; i < canvas.count; ++i) {
        const int at = canvas.first + i;
        double weight = raw_weight(axis, position, at);
        if (total != 0.0) weight /= total;
        const int32_t fixed = fixed_point(weight);
        if (at < axis.begin || at >= axis.end) {
            *outside += fixed;
        } else {
            if (inside.count == 0) inside.first = at - axis.begin;
            weights[inside.count++] = fixed;
        }
    }
    return inside;
}

// Rounds a sum of weighted bytes to a byte.
SDRPN_BOTH static inline uint8_t settle(int32_t sum) {
    const int32_t value = sum >> kFractionBits;
    return static_cast<uint8_t>(value < 0 ? 0 : value > 255 ? 255 : value);
}

// Adds a window of one channel; neighbours are `stride` bytes apart.
SDRPN_BOTH static inline int32_t window_sum(const uint8_t* source, int64_t stride, const int32_t* weights, int count,
                                     int32_t sum) {
    for (int i = 0; i < count; ++i) sum += weights[i] * static_cast<int32_t>(source[i * stride]);
    return sum;
}

// The initial value of a sum: one half, plus the colour outside the picture.
SDRPN_BOTH static inline int32_t sum_start(int32_t outside, uint8_t colour) {
    return kHalf + outside * static_cast<int32_t>(colour);
}

// One value of the normalised result, in the precision and order of NumPy's computation.
SDRPN_BOTH static inline float normalised(int value, float mean, float deviation) {
    return (static_cast<float>(value / 255.0) - mean) / deviation;
}

// The bits of the nearest float16; ties to even, as in NumPy.
SDRPN_BOTH static inline uint16_t half_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
    const uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return sign | 0x7e00u;   // NaN
    if (magnitude >= 0x477ff000u) return sign | 0x7c00u;  // 65520 and more round to infinity
    const bool subnormal = magnitude < 0x38800000u;       // below 2^-14
    if (subnormal && magnitude < 0x33000000u) return sign;  // below 2^-25
    const uint32_t mantissa = (magnitude & 0x7fffffu) | 0x800000u;
    const int shift = subnormal ? 126 - static_cast<int>(magnitude >> 23) : 13;
    const uint32_t kept = mantissa >> shift, rest = mantissa & ((1u << shift) - 1u), tie = 1u << (shift - 1);
    const uint32_t rounded = kept + ((rest > tie || (rest == tie && (kept & 1u))) ? 1u : 0u);
    // A carry out of the mantissa correctly increments the exponent.
    const uint32_t exponent = subnormal ? 0u : ((magnitude >> 23) - 113u) << 10;
    return static_cast<uint16_t>(sign | (exponent + rounded));
}

}  // namespace sdrpn
