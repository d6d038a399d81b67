#include "instructions.h"

#include <cstring>

namespace sdrpn {

bool has_instructions(const char* name) {
    if (std::strcmp(name, kPlain) == 0) return true;
#ifdef SDRPN_X86_STEPS
    if (std::strcmp(name, kAvx2) == 0) {
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    }
    if (std::strcmp(name, kAvx512) == 0) {
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vnni");
    }
#endif
    return false;
}

const char* best_instructions() {
    static const char* const best = has_instructions(kAvx512) ? kAvx512 : has_instructions(kAvx2) ? kAvx2 : kPlain;
    return best;
}

}  // namespace sdrpn
