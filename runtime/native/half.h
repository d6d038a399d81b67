// float16 in ordinary instructions.
#pragma once

#include <cstdint>
#include <cstring>

namespace sdrpn {

static inline float float_of(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
    uint32_t exponent = half >> 10 & 31, fraction = half & 0x3ff, bits = sign;
    if (exponent == 31) {
        bits |= 0x7f800000u | fraction << 13;
    } else if (exponent != 0) {
        bits |= (exponent + 112) << 23 | fraction << 13;
    } else if (fraction != 0) {  // subnormal: normal as float
        exponent = 113;
        for (; (fraction & 0x400) == 0; fraction <<= 1) --exponent;
        bits |= exponent << 23 | (fraction & 0x3ff) << 13;
    }
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// To the nearest, halves to even; too large numbers become infinity.
static inline uint16_t half_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
    const uint32_t size = bits & 0x7fffffff;
    if (size > 0x7f800000u) return sign | 0x7e00;   // NaN
    if (size >= 0x477ff000u) return sign | 0x7c00;  // from 65520 on
    if (size < 0x38800000u) {                       // subnormal or 0: in steps of 2^-24
        float magnitude;
        std::memcpy(&magnitude, &size, sizeof magnitude);
        magnitude += 0.5f;  // whose last place is 2^-24
        uint32_t with_half;
        std::memcpy(&with_half, &magnitude, sizeof with_half);
        return sign | static_cast<uint16_t>(with_half - 0x3f000000u);
    }
    const uint32_t rounded = size + 0xfff + (size >> 13 & 1);
    return sign | static_cast<uint16_t>((rounded - (112u << 23)) >> 13);
}

}  // namespace sdrpn
