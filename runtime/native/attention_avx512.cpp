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
inline Vector multiplied_and_added(Vector a, Vector b, Vector c) {
    return {_mm512_fmadd_ps(a.value, b.value, c.value)};
}
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

inline void sums_of(const Vector vectors[4], float sums[4]) {
    const __m512 a = vectors[0].value, b = vectors[1].value, c = vectors[2].value, d = vectors[3].value;
    const __m512 of_a_b = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));  // a0 + a2, b0 + b2, a1 + a3, ..
    const __m512 of_c_d = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    const __m512 fours = _mm512_add_ps(_mm512_shuffle_ps(of_a_b, of_c_d, _MM_SHUFFLE(1, 0, 1, 0)),
                                       _mm512_shuffle_ps(of_a_b, of_c_d, _MM_SHUFFLE(3, 2, 3, 2)));
    const __m256 upper = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(fours), 1));
    const __m256 eights = _mm256_add_ps(_mm512_castps512_ps256(fours), upper);
    _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(eights), _mm256_extractf128_ps(eights, 1)));
}

#include "attention_loop.h"

}  // namespace

AttentionLoops avx512_attention_loops() { return {attend_to<uint16_t>, attend_to<float>, merge}; }

}  // namespace sdrpn
