// Attention number by number: what the other versions are compared with, and what runs where there is none.
#include <cmath>

#include "attention.h"
#include "half.h"

namespace sdrpn {
namespace {

struct Vector {
    float values[kVector];
};

template <typename Operation>
Vector made_of(Operation number) {
    Vector made;
    for (int i = 0; i < kVector; ++i) made.values[i] = number(i);
    return made;
}

Vector operator+(const Vector& a, const Vector& b) {
    return made_of([&](int i) { return a.values[i] + b.values[i]; });
}
Vector operator-(const Vector& a, const Vector& b) {
    return made_of([&](int i) { return a.values[i] - b.values[i]; });
}
Vector operator*(const Vector& a, const Vector& b) {
    return made_of([&](int i) { return a.values[i] * b.values[i]; });
}
Vector multiplied_and_added(const Vector& a, const Vector& b, const Vector& c) {
    return made_of([&](int i) { return std::fma(a.values[i], b.values[i], c.values[i]); });
}
Vector all(float x) {
    return made_of([&](int) { return x; });
}
Vector zero() { return all(0.0f); }
Vector load(const float* from) {
    return made_of([&](int i) { return from[i]; });
}
Vector load(const uint16_t* from) {
    return made_of([&](int i) { return float_of(from[i]); });
}
void store(float* to, const Vector& v) {
    for (int i = 0; i < kVector; ++i) to[i] = v.values[i];
}
Vector larger(const Vector& a, const Vector& b) {  // b where either is NaN, as the instructions have it
    return made_of([&](int i) { return a.values[i] > b.values[i] ? a.values[i] : b.values[i]; });
}
Vector where_above(const Vector& x, float least, const Vector& v) {
    return made_of([&](int i) { return !(x.values[i] <= least) ? v.values[i] : 0.0f; });
}
Vector nearest(const Vector& v) {
    return made_of([&](int i) { return std::nearbyintf(v.values[i]); });
}
Vector power_of_two(const Vector& v) {
    return made_of([&](int i) { return std::ldexp(1.0f, static_cast<int>(v.values[i])); });
}

void sums_of(const Vector vectors[4], float sums[4]) {
    const auto four = [](const float* v) { return (v[0] + v[2]) + (v[1] + v[3]); };
    for (int vector = 0; vector < 4; ++vector) {
        const float* v = vectors[vector].values;
        const float fours[4] = {four(v), four(v + 4), four(v + 8), four(v + 12)};
        sums[vector] = four(fours);
    }
}

#include "attention_loop.h"

}  // namespace

AttentionLoops plain_attention_loops() { return {attend_to<uint16_t>, attend_to<float>, merge}; }

}  // namespace sdrpn
