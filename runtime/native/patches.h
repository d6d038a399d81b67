// A box of one picture, resized, as the normalised patches of a vision transformer: does not check arguments, knows
// nothing about Python.
//
// A result of `height` x `width` pixels is divided into tokens of `merge` x `merge` patches, `patch` pixels a side. Both
// the tokens and the patches of a token are in rows; the numbers of a patch are (channel, y, x).
#pragma once

#include <functional>

#include "prepare.h"

namespace sdrpn {

struct PatchJob {
    Job job;  // one box inside the picture; float32; `out` is (patches, 3 * patch * patch)
    int patch;
    int merge;
    bool columns_first;  // the columns are resized first and rounded to bytes, then the rows; else the rows first
};

// `poll` is called from the calling thread repeatedly, and may throw.
void write_patches(const PatchJob& job, const std::function<void()>& poll);

}  // namespace sdrpn
