// Attention for x86-64 with AVX-512; see products_avx512.cpp.
#include <immintrin.h>

#include "attention.h"

namespace sdrpn {
namespace {

struct Vector {
    __m512 value;
};

inline Vector operator+(Vector a, Vector b) { return {_mm512_add_ps(a.value, b.value)}; }
inline Vector operator-(Vector a, Vector b) { return {_mm512_sub_ps(a.value, b.value)}; }
inline Vector operator*(Vector a, Vector b) { return {_mm512_mul_ps(a.value, b.value)}; }
inline Vector zero() { return {_mm512_setzero_ps()}; }
inline Vector all(float x) { return {_mm512_set1_ps(x)}; }
inline Vector load(const float* from) { return {_mm512_loadu_ps(from)}; }
inline Vector load(const uint16_t* from) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)))};
}
inline void store(float* to, Vector v) { _mm512_storeu_ps(to, v.value); }
inline Vector larger(Vector a, Vector b) { return {_mm512_max_ps(a.value, b.value)}; }
inline Vector where_above(Vector x, float least, Vector v) {
    return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.value, _mm512_set1_ps(least), _CMP_NLE_UQ), v.value)};
}
inline Vector nearest(Vector v) {
    return {_mm512_roundscale_ps(v.value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline Vector power_of_two(Vector v) {
    const __m512i exponent = _mm512_add_epi32(_mm512_cvtps_epi32(v.value), _mm512_set1_epi32(127));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23))};
}

inline __m128 quarter_of(Vector v) {
    const __m512d both = _mm512_castps_pd(v.value);
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v.value), _mm256_castpd_ps(_mm512_extractf64x4_pd(both, 1)));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

inline void sums_of(const Vector vectors[4], float sums[4]) {
    __m128 a = quarter_of(vectors[0]), b = quarter_of(vectors[1]);
    __m128 c = quarter_of(vectors[2]), d = quarter_of(vectors[3]);
    _MM_TRANSPOSE4_PS(a, b, c, d);
    _mm_storeu_ps(sums, _mm_add_ps(_mm_add_ps(a, c), _mm_add_ps(b, d)));
}

#include "attention_loop.h"

}  // namespace

AttentionLoops avx512_attention_loops() { return {attend_to<uint16_t>, attend_to<float>}; }

}  // namespace sdrpn
