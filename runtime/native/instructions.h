// Which instructions this processor has, of those that files are compiled for.
#pragma once

namespace sdrpn {

constexpr const char* kPlain = "plain";
constexpr const char* kAvx2 = "avx2";      // with F16C
constexpr const char* kAvx512 = "avx512";  // with VNNI

// The best of them here.
const char* best_instructions();

// Whether this processor has them: one of the three names.
bool has_instructions(const char* name);

}  // namespace sdrpn
