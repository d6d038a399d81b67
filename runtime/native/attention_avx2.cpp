// Attention for x86-64 with AVX2, FMA and F16C; see products_avx2.cpp.
#include <immintrin.h>

#include "attention.h"

namespace sdrpn {
namespace {

struct Vector {
    __m256 low, high;
};

inline Vector operator+(Vector a, Vector b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
inline Vector operator-(Vector a, Vector b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
inline Vector operator*(Vector a, Vector b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
inline Vector multiplied_and_added(Vector a, Vector b, Vector c) {
    return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline Vector zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Vector all(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Vector load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
inline Vector load(const uint16_t* from) {
    const auto* eights = reinterpret_cast<const __m128i*>(from);
    return {_mm256_cvtph_ps(_mm_loadu_si128(eights)), _mm256_cvtph_ps(_mm_loadu_si128(eights + 1))};
}
inline void store(float* to, Vector v) {
    _mm256_storeu_ps(to, v.low);
    _mm256_storeu_ps(to + 8, v.high);
}
inline Vector larger(Vector a, Vector b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
inline __m256 where_above(__m256 x, float least, __m256 v) {
    return _mm256_and_ps(_mm256_cmp_ps(x, _mm256_set1_ps(least), _CMP_NLE_UQ), v);
}
inline Vector where_above(Vector x, float least, Vector v) {
    return {where_above(x.low, least, v.low), where_above(x.high, least, v.high)};
}
inline Vector nearest(Vector v) {
    constexpr int kMode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(v.low, kMode), _mm256_round_ps(v.high, kMode)};
}
inline __m256 power_of_two(__m256 v) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(v), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23));
}
inline Vector power_of_two(Vector v) { return {power_of_two(v.low), power_of_two(v.high)}; }

inline __m256 fours_of(__m256 a, __m256 b, __m256 c, __m256 d) {
    const __m256 of_a_b = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));  // a0 + a2, b0 + b2, a1 + a3, ..
    const __m256 of_c_d = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
    return _mm256_add_ps(_mm256_shuffle_ps(of_a_b, of_c_d, _MM_SHUFFLE(1, 0, 1, 0)),
                         _mm256_shuffle_ps(of_a_b, of_c_d, _MM_SHUFFLE(3, 2, 3, 2)));
}

inline void sums_of(const Vector vectors[4], float sums[4]) {
    const __m256 low = fours_of(vectors[0].low, vectors[1].low, vectors[2].low, vectors[3].low);
    const __m256 high = fours_of(vectors[0].high, vectors[1].high, vectors[2].high, vectors[3].high);
    const __m256 eights = _mm256_add_ps(low, high);
    _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(eights), _mm256_extractf128_ps(eights, 1)));
}

#include "attention_loop.h"

}  // namespace

AttentionLoops avx2_attention_loops() { return {attend_to<uint16_t>, attend_to<float>, merge}; }

}  // namespace sdrpn
